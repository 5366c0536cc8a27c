use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

fn cache(root: &Path, max_bytes: u64, guarded: bool) -> Cache {
    Cache::open(&root.join("packages"), max_bytes, guarded).expect("a cache")
}

fn install(cache: &Cache, set: &str) {
    let work = cache.work().expect("a folder");
    std::fs::write(work.0.join("target/module.py"), vec![b'#'; 100_000]).expect("written");
    drop(cache.publish(&work.0.join("target"), set).expect("published"));
}

#[test]
fn the_least_recently_used_set_goes_and_never_one_in_use() {
    let root = tempfile::tempdir().expect("a folder");
    let cache = cache(root.path(), 250_000, true);
    for set in ["a", "b", "c"] {
        install(&cache, set);
        let old = SystemTime::now() - Duration::from_secs(1000 - u64::from(set.as_bytes()[0]));
        File::open(cache.mark_file(set)).and_then(|mark| mark.set_modified(old)).expect("aged");
    }
    let held = cache.lease("a").expect("it is there");
    File::open(cache.mark_file("a")).and_then(|mark| mark.set_modified(SystemTime::UNIX_EPOCH)).expect("aged");
    cache.make_room(None);
    assert!(cache.lease("a").is_some(), "it was in use");
    assert!(cache.lease("b").is_none(), "it was the oldest that was not");
    assert!(cache.lease("c").is_some());
    drop(held);
}

#[test]
fn an_install_that_was_broken_off_leaves_nothing_that_can_be_seen() {
    let root = tempfile::tempdir().expect("a folder");
    let first = cache(root.path(), 1 << 30, true);
    let left = first.work_root().join("999999999-0/target");
    std::fs::create_dir_all(&left).expect("made");
    assert!(first.sets().is_empty());
    let again = cache(root.path(), 1 << 30, true);
    assert!(!left.exists() && again.sets().is_empty());
}

#[test]
fn a_set_that_code_has_written_to_is_not_used_again() {
    let root = tempfile::tempdir().expect("a folder");
    let cache = cache(root.path(), 1 << 30, false);
    install(&cache, "a");
    assert!(cache.lease("a").is_some());
    let file = cache.directory("a").join("module.py");
    let before = file.metadata().expect("there").modified().expect("a time");
    let mut content = std::fs::read(&file).expect("read");
    content[0] = b'!';
    std::fs::write(&file, content).expect("written");
    // What code would do to hide it.
    File::options().write(true).open(&file).and_then(|file| file.set_modified(before)).expect("set back");
    assert!(cache.lease("a").is_none());
    assert!(!file.exists(), "it is gone");
    install(&cache, "a");
    std::fs::write(cache.directory("a").join("added.py"), "").expect("written");
    assert!(cache.lease("a").is_none());
}

#[test]
fn what_somebody_else_can_write_to_is_refused() {
    let root = tempfile::tempdir().expect("a folder");
    let open = root.path().join("packages");
    std::fs::create_dir(&open).expect("made");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("opened");
    assert!(Cache::open(&open, 1, true).expect_err("refused").to_string().contains("nobody else can write"));
}

#[test]
fn answers_are_remembered_across_restarts_only_where_code_cannot_write_them() {
    let root = tempfile::tempdir().expect("a folder");
    let answer = Answer { set: None, separate: false, packages: vec!["a==1".to_owned()], doubtful: Vec::new() };
    for guarded in [true, false] {
        let first = cache(root.path(), 1, guarded);
        first.remember("key", answer.clone());
        assert_eq!(first.answer("key"), Some(answer.clone()));
        assert_eq!(cache(root.path(), 1, guarded).answer("key").is_some(), guarded);
    }
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("the owner may");
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().expect("there").mode() & 0o7777
}

/// What a cell of the server's own user can do through Landlock: `chmod` and `utime`, and no change of content.
#[test]
fn a_set_whose_rights_or_times_code_has_changed_is_mended() {
    let root = tempfile::tempdir().expect("a folder");
    let cache = cache(root.path(), 1 << 30, true);
    install(&cache, "a");
    let (set, file) = (cache.directory("a"), cache.directory("a").join("module.py"));
    cache.remember("key", Answer::default());
    for (path, right) in [
        (&file, 0o644),
        (&set, 0o755),
        (&Cache::sets_in(&cache.root), 0o711),
        (&cache.root, 0o711),
        (&cache.mark_file("a"), 0o600),
        (&cache.root.join(LOCKS).join("a"), 0o600),
        (&cache.root.join(LOCKS), 0o700),
        (&cache.root.join(MARKS), 0o700),
    ] {
        for wrong in [0, 0o4755, 0o400] {
            chmod(path, wrong);
            assert!(cache.lease("a").is_some(), "{} {wrong:o}", path.display());
            if [&file, &set, &Cache::sets_in(&cache.root), &cache.root].contains(&path) {
                assert_eq!(mode(path), right, "{} {wrong:o}", path.display());
            }
        }
    }
    File::open(&file).and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH)).expect("aged");
    assert!(cache.lease("a").is_some());
    // Also for the server that comes after this one.
    chmod(&file, 0);
    chmod(&set, 0);
    assert!(self::cache(root.path(), 1 << 30, true).lease("a").is_some());
    assert_eq!((mode(&set), mode(&file)), (0o755, 0o644));
    // An install finds all folders as they must be, and an answer's file may be set to any time.
    let answer = cache.root.join("answers/key");
    File::open(&answer).and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH)).expect("aged");
    for folder in ALL {
        chmod(&cache.root.join(folder), 0);
    }
    assert!(cache.answer("key").is_some());
    for folder in ALL {
        chmod(&cache.root.join(folder), 0);
    }
    install(&cache, "b");
    assert!(cache.lease("b").is_some());
}

#[test]
fn a_set_with_other_content_is_never_used_again() {
    let root = tempfile::tempdir().expect("a folder");
    let cache = cache(root.path(), 1 << 30, true);
    let changes: [&dyn Fn(&Path); 4] = [
        &|set| std::fs::write(set.join("module.py"), "evil").expect("written"),
        &|set| std::fs::write(set.join("added.py"), "evil").expect("written"),
        &|set| std::fs::remove_file(set.join("module.py")).expect("removed"),
        &|set| {
            std::fs::remove_file(set.join("module.py")).expect("removed");
            std::os::unix::fs::symlink("/etc/passwd", set.join("module.py")).expect("linked");
        },
    ];
    for change in changes {
        install(&cache, "a");
        assert!(cache.lease("a").is_some());
        change(&cache.directory("a"));
        assert!(cache.lease("a").is_none() && !cache.directory("a").exists());
    }
}

#[test]
fn what_others_could_write_to_is_emptied() {
    let root = tempfile::tempdir().expect("a folder");
    let cache = cache(root.path(), 1 << 30, true);
    for folder in [cache.root.clone(), Cache::sets_in(&cache.root)] {
        install(&cache, "a");
        chmod(&folder, 0o777);
        assert!(cache.lease("a").is_none() && !cache.directory("a").exists());
        assert_eq!(mode(&folder), 0o711);
        // And not for ever.
        install(&cache, "a");
        assert!(cache.lease("a").is_some());
    }
    chmod(&cache.root, 0o777);
    assert!(self::cache(root.path(), 1 << 30, true).lease("a").is_none());
}

#[test]
fn bytecode_belongs_to_a_set_once_it_was_compiled() {
    let root = tempfile::tempdir().expect("a folder");
    let cache = cache(root.path(), 1 << 30, true);
    install(&cache, "a");
    assert!(cache.takes_bytecode("a"));
    let bytecode = cache.directory("a").join("__pycache__");
    std::fs::create_dir(&bytecode).expect("made");
    std::fs::write(bytecode.join("module.pyc"), "1").expect("written");
    assert!(cache.lease("a").is_some(), "while it is being compiled");
    cache.has_bytecode("a");
    assert!(cache.lease("a").is_some() && !cache.takes_bytecode("a"));
    std::fs::write(bytecode.join("module.pyc"), "2").expect("written");
    assert!(cache.lease("a").is_some() && !bytecode.exists(), "the sources are right");
    assert!(cache.takes_bytecode("a"), "it is compiled anew");
}

/// Every user of a folder that a process can open can lock it.
#[test]
fn a_lock_on_a_set_blocks_nobody() {
    let root = tempfile::tempdir().expect("a folder");
    for guarded in [true, false] {
        let cache = cache(root.path(), 0, guarded);
        install(&cache, "a");
        let mut paths = vec![cache.directory("a"), Cache::sets_in(&cache.root), cache.root.clone()];
        if !guarded {
            // There code can open all that the server can.
            std::fs::write(cache.root.join(LOCKS).join("a"), "").expect("written");
            paths.extend([cache.mark_file("a"), cache.root.join(LOCKS).join("a"), cache.root.join(WORK)]);
        }
        let locked = paths.iter().map(|path| {
            let file = File::open(path).expect("it opens");
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).expect("locked");
            file
        });
        let locked = locked.collect::<Vec<_>>();
        let lease = cache.lease("a");
        assert!(lease.is_some(), "guarded: {guarded}");
        install(&cache, "b");
        cache.make_room(None);
        assert!(cache.directory("a").exists() && !cache.directory("b").exists(), "one is in use, the other is not");
        drop((lease, locked));
    }
}

#[test]
fn each_install_has_downloads_of_its_own() {
    let root = tempfile::tempdir().expect("a folder");
    let cache = cache(root.path(), 1 << 30, true);
    let (first, second) = (cache.downloads().expect("one"), cache.downloads().expect("another"));
    assert!(first.0 != second.0 && cache.downloads().is_none());
    let kept = first.0.join("kept");
    std::fs::write(&kept, "").expect("written");
    drop(first);
    let again = cache.downloads().expect("it is free");
    assert!(kept.exists());
    drop(again);
    chmod(&kept, 0);
    drop(cache.downloads().expect("it is free"));
    assert!(!kept.exists(), "an installer would fail on it for ever");
    assert!(self::cache(&root.path().join("other"), 1 << 30, false).downloads().is_none());
}

#[test]
fn a_package_that_nests_folders_without_end_is_refused() {
    let root = tempfile::tempdir().expect("a folder");
    let cache = cache(root.path(), 1 << 30, true);
    let work = cache.work().expect("a folder");
    std::fs::create_dir_all(work.0.join("target").join("deep/".repeat(200))).expect("made");
    let error = cache.publish(&work.0.join("target"), "a").expect_err("refused");
    assert!(error.to_string().contains("nests folders too deep") && cache.lease("a").is_none(), "{error}");
}

/// C17d: thousands of files were removed on a thread that other calls waited for.
#[test]
fn a_folder_of_an_install_is_removed_behind_whoever_drops_it() {
    let root = tempfile::tempdir().expect("a folder");
    let cache = cache(root.path(), 1 << 30, true);
    let work = cache.work().expect("a folder");
    let path = work.0.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build();
    runtime.expect("a runtime").block_on(async {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || held.recv());
        drop(work);
        assert!(path.exists(), "its turn has not come");
        release.send(()).expect("it waits");
        busy.await.expect("it ends").expect("released");
        // One thread takes one after the other.
        tokio::task::spawn_blocking(|| ()).await.expect("it ends");
        assert!(!path.exists());
    });
}

/// Only an install that went well looked at them.
#[test]
fn downloads_of_installs_that_came_to_nothing_are_bounded_too() {
    let root = tempfile::tempdir().expect("a folder");
    let cache = cache(root.path(), 100_000, true);
    let first = cache.downloads().expect("one");
    let left = first.0.join("left");
    std::fs::write(&left, vec![b'#'; 200_000]).expect("written");
    drop(first);
    let again = cache.downloads().expect("it is free");
    assert!(again.0.join("left") == left && !left.exists() && again.0.exists());
}

#[test]
fn a_folder_that_has_taken_the_place_of_another_is_seen() {
    let root = tempfile::tempdir().expect("a folder");
    let cache = cache(root.path(), 1 << 30, true);
    install(&cache, "a");
    chmod(&cache.root, 0);
    assert!(cache.is_where_it_was(), "closed, and to be mended");
    cache.make_folders().expect("mended");
    let sets = Cache::sets_in(&cache.root);
    std::fs::remove_dir_all(&sets).expect("removed");
    assert!(!cache.is_where_it_was());
    cache.make_folders().expect("made");
    assert!(sets.exists() && !cache.is_where_it_was());
}
