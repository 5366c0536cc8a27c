//! What has to hold while user code runs in a function.

use std::sync::Arc;

use server::{Boxed, Guard};
use tokio::sync::watch;

use crate::lock::Lock;
use crate::workspace::Workspace;

/// The guard of one invocation.
#[derive(Debug)]
pub(crate) struct InvocationGuard {
    lock: Option<Arc<Lock>>,
    workspace: Option<Arc<Workspace>>,
    /// User code is about to run.
    wanted: watch::Sender<bool>,
    /// The runtime has begun to send the response.
    opened: watch::Sender<bool>,
}

impl InvocationGuard {
    pub(crate) fn new(lock: Option<Arc<Lock>>, workspace: Option<Arc<Workspace>>) -> Self {
        Self { lock, workspace, wanted: watch::Sender::new(false), opened: watch::Sender::new(false) }
    }

    /// Comes back when user code waits for the response to be opened.
    pub(crate) async fn wanted(&self) {
        let _ = self.wanted.subscribe().wait_for(|wanted| *wanted).await;
    }

    /// The response is being sent from here on.
    pub(crate) fn open(&self) {
        self.opened.send_replace(true);
    }
}

impl Guard for InvocationGuard {
    fn before_code(&self) -> Boxed<'_, Result<(), String>> {
        Box::pin(async {
            let Some(lock) = &self.lock else { return Ok(()) };
            self.wanted.send_replace(true);
            let _ = self.opened.subscribe().wait_for(|opened| *opened).await;
            lock.confirm().await
        })
    }

    fn after_code(&self) -> Boxed<'_, ()> {
        Box::pin(async {
            let Some(workspace) = self.workspace.clone() else { return };
            match tokio::task::spawn_blocking(move || workspace.wipe()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "something of the code is left in the temporary directory"),
                Err(error) => tracing::error!(%error, "the temporary directory was not wiped"),
            }
        })
    }
}
