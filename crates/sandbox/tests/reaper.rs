//! Killing what a kernel leaves: in a process of its own, because every child that the reaper does not know is killed.
#![expect(clippy::disallowed_methods, reason = "in `Reaper::start`, or what is to be killed")]

use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};

use sandbox::{KernelProcess, Pidfd, Reaper};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn start(reaper: &Reaper, script: &str) -> (Child, i32) {
    let start = || {
        let child = Command::new("sh").args(["-c", script]).spawn()?;
        let pid = i32::try_from(child.id()).expect("a pid");
        Ok(((child, pid), pid))
    };
    reaper.start(start).expect("started")
}

fn children(pid: i32) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect()
}

fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// It was killed by its number, whoever had that by then.
#[test]
fn a_number_that_means_another_process_by_now_is_left_alone() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let reaper = Reaper::new(true);
    let [(mut dead, dead_pid), (mut stranger, stranger_pid)] = [(); 2].map(|()| start(&reaper, "exec sleep 60"));
    let handle = Pidfd::open(dead_pid).expect("it lives");
    dead.kill().expect("killed");
    dead.wait().expect("reaped");
    let kernel = KernelProcess::new(stranger_pid, handle, sandbox::user_id(), None);
    reaper.kill_tree(&kernel);
    assert_eq!(stranger.try_wait().expect("asked"), None, "the stranger lives");
    stranger.kill().expect("killed");
    stranger.wait().expect("reaped");
}

/// A process that `clone` made its zygote's child was below no kernel, and outlived its call.
#[test]
fn a_child_of_a_zygote_that_was_not_announced_dies_and_a_kernel_on_its_way_does_not() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let reaper = Arc::new(Reaper::new(true));
    let (mut zygote, zygote_pid) = start(&reaper, "sleep 61 & sleep 62 & sleep 63 & wait");
    let mut found = children(zygote_pid);
    while found.len() < 3 && lives(zygote_pid) {
        found = children(zygote_pid);
    }
    let [kernel, newborn, strange] = found[..] else { panic!("three of them") };
    reaper.know_zygotes([zygote_pid]);
    reaper.birth().announce(kernel);
    let birth = reaper.birth();
    let process = KernelProcess::new(kernel, Pidfd::open(kernel).expect("it lives"), sandbox::user_id(), None);
    assert!(!reaper.kill_alone(&process), "there is more than the kernel");
    std::thread::scope(|scope| {
        scope.spawn(|| birth.announce(newborn));
        assert!(reaper.kill_tree(&process));
    });
    assert_eq!([kernel, newborn, strange].map(lives), [false, true, false]);
    Pidfd::open(newborn).expect("it lives").kill();
    zygote.kill().expect("killed");
    zygote.wait().expect("reaped");
}
