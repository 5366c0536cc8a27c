//! What outlives the processes of a user without being a file: System V objects, and the keys of its key rings.
//!
//! Rule: nothing that could be somebody else's is touched. A kind is only emptied where it was empty at the start, as on a
//! machine that is a function's own. POSIX message queues can't be listed; kernels can't make any (`RLIMIT_MSGQUEUE`).

use std::io;

const SYSTEM_V: [&str; 3] = ["shm", "msg", "sem"];

const USER_KEYRING: libc::c_long = -4;
const USER_SESSION_KEYRING: libc::c_long = -5;
const THREAD_KEYRING: libc::c_long = -1;
const CLEAR: libc::c_long = 7;
const READ: libc::c_long = 11;
const GET_PERSISTENT: libc::c_long = 22;
/// The user's session key ring holds a link to the user's key ring, as the kernel makes it.
const ONE_LINK_BYTES: i64 = 4;

/// Which kinds are emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leftovers {
    /// Shared memory, message queues and semaphores.
    pub system_v: bool,
    /// The user's key rings.
    pub keys: bool,
}

impl Leftovers {
    /// Looks at what is there before any user code has run.
    pub fn of_this_machine() -> Self {
        let any = SYSTEM_V.iter().any(|kind| objects(kind).next().is_some());
        let empty = |ring, most| keyctl(READ, ring, 0).is_none_or(|bytes| bytes <= most);
        Self { system_v: !any, keys: empty(USER_KEYRING, 0) && empty(USER_SESSION_KEYRING, ONE_LINK_BYTES) }
    }

    /// Removes what `user` has left. Blocks.
    ///
    /// # Errors
    /// When something is left that can't be removed.
    pub fn remove(self, user: u32) -> io::Result<()> {
        if self.keys {
            clear_keyrings();
        }
        if !self.system_v {
            return Ok(());
        }
        // Who made an object can give it another owner, and stays its maker.
        let left = || SYSTEM_V.iter().flat_map(|kind| objects(kind).map(|object| (*kind, object)));
        let of_user = |(_, object): &(&str, Object)| [object.owner, object.maker].contains(&user);
        for (kind, object) in left().filter(of_user) {
            remove_object(kind, object.id);
        }
        match left().find(of_user) {
            Some((kind, object)) => Err(io::Error::other(format!("the System V object {kind} {} can't be removed", object.id))),
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Object {
    id: i32,
    owner: u32,
    maker: u32,
}

/// All of the machine, whatever their rights. Where there is no list there are no objects: both come with the same option of
/// the kernel.
fn objects(kind: &str) -> impl Iterator<Item = Object> + use<> {
    let text = std::fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap_or_default();
    let mut lines = text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let names = lines.next().unwrap_or_default();
    let column = move |name: &str| names.iter().position(|column| column == name);
    let (owner, maker) = (column("uid"), column("cuid"));
    let objects = lines.filter_map(|fields| {
        let number = |at: Option<usize>| fields.get(at?)?.parse().ok();
        Some(Object { id: fields.get(1)?.parse().ok()?, owner: number(owner)?, maker: number(maker)? })
    });
    objects.collect::<Vec<_>>().into_iter()
}

#[expect(unsafe_code, reason = "System V objects")]
fn remove_object(kind: &str, id: i32) {
    // SAFETY: removing takes no pointer: the buffer is null, and the kernel does not look at it.
    unsafe {
        match kind {
            "shm" => libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()),
            "msg" => libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()),
            _ => libc::semctl(id, 0, libc::IPC_RMID),
        }
    };
}

/// The user's own, the one that outlives its sessions for days, and the one of processes that have no session.
fn clear_keyrings() {
    // What a thread possesses ends with it.
    let clearing = std::thread::spawn(|| {
        if let Some(persistent) = keyctl(GET_PERSISTENT, -1, THREAD_KEYRING) {
            keyctl(CLEAR, persistent, 0);
        }
        keyctl(CLEAR, USER_KEYRING, 0);
        keyctl(CLEAR, USER_SESSION_KEYRING, 0);
    });
    let _ = clearing.join();
}

/// `None` when it is refused.
#[expect(unsafe_code, reason = "keyctl")]
fn keyctl(operation: libc::c_long, first: libc::c_long, second: libc::c_long) -> Option<libc::c_long> {
    // SAFETY: none of the three operations is given memory: a read without a buffer answers with the size alone.
    let answer = unsafe { libc::syscall(libc::SYS_keyctl, operation, first, second, 0 as libc::c_long, 0 as libc::c_long) };
    (answer >= 0).then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_is_left_alone_and_what_is_made_later_is_found() {
        #[expect(unsafe_code, reason = "System V objects")]
        // SAFETY: no pointer is given.
        let id = unsafe { libc::msgget(libc::IPC_PRIVATE, 0) };
        assert!(id >= 0, "{}", io::Error::last_os_error());
        let found = objects("msg").find(|object| object.id == id).expect("it is listed, though nobody may read it");
        assert_eq!((found.owner, found.maker), (crate::user_id(), crate::user_id()));
        let theirs = Leftovers::of_this_machine();
        assert!(!theirs.system_v);
        theirs.remove(crate::user_id()).expect("nothing to do");
        assert!(objects("msg").any(|object| object.id == id));
        remove_object("msg", id);
        assert!(objects("msg").all(|object| object.id != id));
    }
}
