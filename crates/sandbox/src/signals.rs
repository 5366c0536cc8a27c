//! What signals do to this process.

use rustix::process::{Resource, Rlimit, Signal};

/// Whether whoever started this program wants it to outlive the signal, as `nohup` and a shell's `&` do it.
pub fn is_ignored(signal: i32) -> bool {
    #[expect(unsafe_code, reason = "there is no safe way to ask")]
    // SAFETY: all bytes zero are a valid `sigaction`, which the call may fill; nothing is changed by it.
    unsafe {
        let mut now = std::mem::zeroed::<libc::sigaction>();
        libc::sigaction(signal, std::ptr::null(), &raw mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}

/// Gives signals the meaning that the system gives them: from here on they end the process at once.
pub fn restore(signals: &[i32]) {
    for &signal in signals {
        #[expect(unsafe_code, reason = "a handler can't be taken away in another way")]
        // SAFETY: the default action is installed, no function of ours.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Ends this process as the signal would have, without a core file. Comes back where the system lets no signal end it: as
/// the first process of a container.
pub fn die_of(signal: i32) {
    let _ = rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    restore(&[signal]);
    if let Some(signal) = Signal::from_named_raw(signal) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
    }
}
