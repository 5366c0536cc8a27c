//! What the log is told of something that goes on failing.
//!
//! Rule: that it begins, that it has another reason now, and once a minute that it still does; not each try.

use std::time::{Duration, Instant};

const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What was told last.
#[derive(Debug, Default)]
pub(crate) struct Told {
    last: Option<(String, Instant)>,
    is_open: bool,
}

impl Told {
    /// Whether the log is to be told so now.
    pub(crate) fn is_news(&mut self, what: &str) -> bool {
        let is_old = self.last.as_ref().is_some_and(|(last, when)| last == what && when.elapsed() < AGAIN_AFTER);
        if !is_old {
            self.last = Some((what.to_owned(), Instant::now()));
            self.is_open = true;
        }
        !is_old
    }

    /// It fails no more: true when the log has been told of it since it last did not. What comes and goes is told once.
    pub(crate) fn is_over(&mut self) -> bool {
        std::mem::take(&mut self.is_open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_hears_of_a_failure_when_it_begins_and_when_it_becomes_another() {
        let mut told = Told::default();
        assert!(!told.is_over());
        let news = ["full", "full", "read-only", "read-only", "full"].map(|what| told.is_news(what));
        assert_eq!(news, [true, false, true, false, true]);
        assert!(told.is_over() && !told.is_over());
        assert!(!told.is_news("full") && !told.is_over(), "it comes and goes");
    }
}
