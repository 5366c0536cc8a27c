//! What requirements came to, for a day: the second time nothing is resolved.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Cache, lock};
use crate::folders::ANSWERS;

/// After this long a set of requirements is resolved anew: newer versions may be out.
const REMEMBERED_FOR: Duration = Duration::from_secs(24 * 3600);

/// What a set of requirements came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// None when the stack has it all.
    pub(crate) set: Option<String>,
    /// Instead of the stack.
    pub(crate) separate: bool,
    /// `name==version`, of the set.
    pub(crate) packages: Vec<String>,
    /// Those of them whose names look like slips, with nobody to vouch for them.
    pub(crate) doubtful: Vec<String>,
}

/// An answer as it is written down, with when it was found: a file's own time can be set by whoever owns it.
#[derive(Serialize, Deserialize)]
struct Remembered {
    at: SystemTime,
    answer: Answer,
}

impl Cache {
    /// What these requirements came to not long ago.
    pub(crate) fn answer(&self, requirements: &str) -> Option<Answer> {
        if !self.guarded {
            return lock(&self.answers).get(requirements).cloned();
        }
        let text = self.read(&self.answer_file(requirements)).ok()?;
        let remembered: Remembered = serde_json::from_slice(&text).ok()?;
        let age = SystemTime::now().duration_since(remembered.at).ok()?;
        (age < REMEMBERED_FOR).then_some(remembered.answer)
    }

    /// Remembers what these requirements came to.
    pub(crate) fn remember(&self, requirements: &str, answer: Answer) {
        if !self.guarded {
            lock(&self.answers).insert(requirements.to_owned(), answer);
            return;
        }
        // As many as there are: each is a line.
        let text = serde_json::to_vec(&Remembered { at: SystemTime::now(), answer }).unwrap_or_default();
        if let Err(error) = self.write(&self.answer_file(requirements), &text) {
            tracing::warn!(%error, "what requirements came to could not be written down");
        }
    }

    /// They are of no use any more.
    pub(super) fn forget_old_answers(&self) {
        for entry in std::fs::read_dir(self.root.join(ANSWERS)).into_iter().flatten().flatten() {
            let changed = entry.metadata().and_then(|metadata| metadata.modified());
            if changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > REMEMBERED_FOR)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn answer_file(&self, requirements: &str) -> PathBuf {
        self.root.join(ANSWERS).join(requirements)
    }
}
