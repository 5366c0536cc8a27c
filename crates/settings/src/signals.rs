//! The signals that end a program.
//!
//! Rule: they are heard, so that the engine ends first: no process and no directory is left. What whoever started the
//! program has ignored stays ignored. Once the engine is to end, another one ends the program at once, unless it comes so soon
//! that the end has had no time: then processes and directories of calls would be left.

use std::io;
use std::process::ExitCode;
use std::task::Poll;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long the end may take before another signal cuts it short.
const GRACE: Duration = Duration::from_secs(3);

/// SIGINT, SIGTERM, SIGHUP and SIGQUIT.
#[derive(Debug)]
pub struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// From here on they are heard instead of ending the process. To be called inside of a runtime.
    ///
    /// # Errors
    /// When the system has no place for them.
    pub fn listen() -> io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        let heard = kinds.into_iter().filter(|kind| !sandbox::is_ignored(kind.as_raw_value()));
        heard.map(|kind| Ok((kind.as_raw_value(), signal(kind)?))).collect::<io::Result<_>>().map(Self)
    }

    /// The number of the next that comes.
    pub async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            let come = |(number, signal): &mut (i32, Signal)| signal.poll_recv(context).is_ready().then_some(*number);
            self.0.iter_mut().find_map(come).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// After a grace time the next one ends the process.
    pub fn let_go(self) {
        let numbers = self.0.iter().map(|(number, _)| *number).collect::<Vec<_>>();
        // Heard and ignored until then. Without a thread for it they stay so: the end has a limit of its own.
        let _ = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            std::thread::sleep(GRACE);
            sandbox::restore(&numbers);
        });
    }
}

/// Ends this process as the signal would have, so that a shell and a service manager see what ended it. Gives the status
/// that says the same where no signal can end it: as the first process of a container.
pub fn die_of(signal: i32) -> ExitCode {
    sandbox::die_of(signal);
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which signals this process has handlers for, as bits.
    fn heard() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("a process has one");
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("Linux gives it");
        u64::from_str_radix(mask.trim(), 16).expect("a number")
    }

    #[test]
    fn after_the_first_signal_the_next_ends_the_process() {
        let all = [1, 2, 3, 15].into_iter().fold(0, |bits, number: u64| bits | 1 << (number - 1));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let first = runtime.block_on(async {
            let mut signals = Signals::listen().expect("heard");
            assert_eq!(heard() & all, all);
            let kill = format!("kill -HUP {}", std::process::id());
            std::process::Command::new("sh").args(["-c", &kill]).status().expect("sh runs");
            let first = signals.next().await;
            signals.let_go();
            first
        });
        assert_eq!((first, heard() & all), (1, all), "at first the end goes on undisturbed");
        while heard() & all != 0 {
            std::thread::yield_now();
        }
    }
}
