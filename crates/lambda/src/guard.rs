//! What has to hold while user code runs in a function.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use server::{Guard, Service};
use tokio::sync::watch;

use crate::lock::Lock;
use crate::workspace::Workspace;

/// The guard of one invocation.
pub(crate) struct InvocationGuard {
    lock: Option<Arc<Lock>>,
    workspace: Option<Arc<Workspace>>,
    service: Arc<Service>,
    /// User code is about to run.
    wanted: watch::Sender<bool>,
    /// The runtime has begun to send the response.
    opened: watch::Sender<bool>,
}

impl InvocationGuard {
    pub(crate) fn new(lock: Option<Arc<Lock>>, workspace: Option<Arc<Workspace>>, service: Arc<Service>) -> Self {
        Self { lock, workspace, service, wanted: watch::Sender::new(false), opened: watch::Sender::new(false) }
    }

    /// The response is being sent from here on.
    pub(crate) fn open(&self) {
        self.opened.send_replace(true);
    }
}

impl Guard for InvocationGuard {
    fn wanted(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let _ = self.wanted.subscribe().wait_for(|wanted| *wanted).await;
        })
    }

    fn before_code(&self) -> BoxFuture<'_, Result<Option<String>, String>> {
        Box::pin(async {
            if let Some(workspace) = &self.workspace
                && workspace.code_may_have_run()
            {
                // The run before this one was given up, and what comes after a run did not come.
                self.clean(workspace).await;
            }
            let Some(lock) = &self.lock else { return Ok(None) };
            self.wanted.send_replace(true);
            let _ = self.opened.subscribe().wait_for(|opened| *opened).await;
            let confirmed = lock.confirm().await;
            self.service.set_door_layers(vec![lock.layer()]);
            confirmed
        })
    }

    fn after_code(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Some(workspace) = &self.workspace {
                self.clean(workspace).await;
            }
        })
    }
}

impl InvocationGuard {
    async fn clean(&self, workspace: &Arc<Workspace>) {
        let purged = self.service.purge().await;
        let wiping = workspace.clone();
        let wiped = tokio::task::spawn_blocking(move || wiping.wipe()).await.unwrap_or_else(|error| Err(error.into()));
        if let Err(error) = purged.and(wiped) {
            end_environment(&error);
        }
    }
}

/// Something of the code is left, or the engine is harmed: the next call gets a new environment.
#[expect(clippy::exit, reason = "Lambda replaces a function that has ended")]
fn end_environment(error: &std::io::Error) {
    tracing::error!(%error, "something of the code is left, or the engine is harmed: this environment ends");
    std::process::exit(1);
}
