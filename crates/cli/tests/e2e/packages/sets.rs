//! Installed sets: what code can do to them, and what an operator can.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Shop, Tool};
use crate::client::{Home, Server};
use crate::index::{Index, Manner, wheel};

#[tokio::test]
async fn nothing_of_a_package_runs_that_was_not_imported_and_nothing_can_be_written_to() {
    let index = Index::start();
    let files = [
        ("evil.pth", "import os; os.environ['PTH'] = 'ran'\n"),
        ("sitecustomize.py", "import os; os.environ['SITE'] = 'ran'\n"),
        ("quiet/__init__.py", "x = 1\n"),
    ];
    index.add("quiet", "quiet-1.0-py3-none-any.whl", wheel("quiet", "1.0", &[], &files), Manner::Well);
    let shop = Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &index.url())]);
    let code = "import os, quiet\nprint(os.environ.get('PTH'), os.environ.get('SITE'))\nfor path in (quiet.__file__, os.path.dirname(quiet.__file__) + '/new'):\n    \
                try:\n        open(path, 'a').write('x')\n        print('written')\n    except OSError as e:\n        print('refused')\nos.path.dirname(os.path.dirname(quiet.__file__))";
    let result = shop.run(&["quiet"], code).await;
    assert_eq!(result["stdout"], "None None\nrefused\nrefused\n", "{result}");
    // After the first use its bytecode is compiled, behind the calls.
    let set = shop.outside(result["result"].as_str().unwrap().trim_matches('\''));
    let started = Instant::now();
    while !set.join("quiet/__pycache__").exists() {
        assert!(started.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
#[cfg_attr(not(root), ignore = "needs root")]
async fn an_ordinary_user_installs_with_pip_and_a_function_does_not_keep_what_code_has_changed() {
    let index = Index::start();
    index.add_module("good-one", "1.0", &[]);
    let code = "import good_one, os\ntry:\n    os.chmod(good_one.__file__, 0o666)\n    open(good_one.__file__, 'w').write('__version__ = \"evil\"')\n    \
                print('written')\nexcept OSError:\n    print('refused')\ngood_one.__version__";
    for (home, effect) in [(Home::User, "refused\n"), (Home::Lambda, "written\n")] {
        let shop = Shop::open(home, Tool::Pip, &[("PACKAGE_INDEX", &index.url())]);
        for _ in 0..2 {
            let result = shop.run(&["good-one"], code).await;
            assert_eq!((&result["stdout"], &result["result"]), (&json!(effect), &json!("'1.0'")), "{home:?}: {result}");
        }
    }
}

/// To a cell of an ordinary user's server the sets are its own: it can't write to them, and can `chmod` and lock them.
#[tokio::test]
#[cfg_attr(not(root), ignore = "needs root")]
async fn what_a_call_does_to_a_set_breaks_no_later_call_and_no_later_server() {
    let index = Index::start();
    index.add_module("good-one", "1.0", &[]);
    let harms = [
        "os.chmod(module, 0)",
        "os.chmod(package, 0)",
        "os.chmod(set_, 0)",
        "os.chmod(sets, 0)",
        "os.chmod(root, 0)",
        "os.chmod(root + '/marks', 0)",
        "os.chmod(root + '/work', 0)",
        "os.chmod(root + '/locks/' + os.path.basename(set_), 0)",
        "os.chmod(root + '/marks/' + os.path.basename(set_), 0)",
        "os.utime(module, (0, 0))",
        "os.chmod(module, 0o4777)",
        "[os.chmod(path, 0) for path in (module, package, set_, sets, root + '/work', root)]",
    ];
    // Where nothing keeps code from writing, too.
    let more_harms = [
        "os.rename(set_, set_ + '-away')",
        "os.chmod(os.path.dirname(root), 0)",
        "os.rename(sets, sets + '-away'); os.symlink('/tmp', sets)",
        "__import__('shutil').rmtree(root)",
        "open(module, 'w').write('__version__ = \"evil\"')",
    ];
    let opened = ["os.chmod(sets, 0o777)", "os.chmod(root, 0o777)"];
    for home in [Home::User, Home::NoLandlock, Home::Lambda] {
        let shop = Shop::open(home, Tool::Pip, &[("PACKAGE_INDEX", &index.url())]);
        let harms = match home {
            Home::User => [&harms[..], &opened].concat(),
            Home::NoLandlock => [&harms[..], &opened, &more_harms].concat(),
            _ => more_harms.to_vec(),
        };
        for harm in harms {
            let code = format!(
                "import good_one, os\nmodule = good_one.__file__\npackage = os.path.dirname(module)\nset_ = os.path.dirname(package)\n\
                 sets = os.path.dirname(set_)\nroot = os.path.dirname(sets)\ntry:\n    {harm}\nexcept OSError:\n    pass\n\
                 good_one.__version__"
            );
            let result = shop.run(&["good-one"], &code).await;
            assert_eq!(result["result"], "'1.0'", "{home:?} {harm}: {result}");
            let next = shop.run(&["good-one"], "import good_one; good_one.__version__").await;
            assert_eq!(next["result"], "'1.0'", "{home:?} after {harm}: {next}");
        }
        if home != Home::User {
            continue;
        }
        // As a cell could, were it not for mounts of its own.
        let module = shop.run(&["good-one"], "import good_one; print(good_one.__file__)").await;
        let module = shop.outside(module["stdout"].as_str().unwrap().trim());
        let set = module.ancestors().nth(2).unwrap();
        for path in [&module, set, set.parent().unwrap()] {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
        }
        let directory = shop.folder.path().join("packages");
        drop(shop.server);
        let (url, wheel) = (index.url(), "good_one-1.0-py3-none-any.whl");
        let served = index.times_served(wheel);
        let settings = [("PRELOAD", "core"), ("UV", "off"), ("PACKAGE_INDEX", &*url)];
        let again = Server::with(home, &[&settings[..], &[("PACKAGE_DIR", &directory.display().to_string())]].concat());
        // Every set that a cell can open, it can lock.
        let sets = std::fs::read_dir(directory.join("sets")).unwrap().map(|set| set.unwrap().path());
        let locked = sets.chain([directory.join("sets"), directory]).map(|path| {
            let file = std::fs::File::open(path).unwrap();
            rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
            file
        });
        let locked = locked.collect::<Vec<_>>();
        assert!(locked.len() > 2, "there is a set");
        let result = again.run_with(json!({"code": "import good_one; good_one.__version__", "requirements": ["good-one"]})).await;
        assert_eq!((&result["result"], index.times_served(wheel)), (&json!("'1.0'"), served), "found again: {result}");
    }
}

/// C17e: the rule that lets code in is for a folder and not for its name, so installs went well and every
/// import was refused.
#[tokio::test]
async fn a_package_folder_that_an_operator_has_cleared_is_used_again_or_told_of() {
    let index = Index::start();
    index.add_module("good-one", "1.0", &[]);
    let url = index.url();
    let shop = Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &url)]);
    let code = "import good_one; good_one.__version__";
    assert_eq!(shop.run(&["good-one"], code).await["result"], "'1.0'");
    let directory = shop.folder.path().join("packages");
    for set in std::fs::read_dir(directory.join("sets")).unwrap() {
        std::fs::remove_dir_all(set.unwrap().path()).unwrap();
    }
    assert_eq!(shop.run(&["good-one"], code).await["result"], "'1.0'", "installed anew");
    for cleared in [directory.join("sets"), directory.clone()] {
        std::fs::remove_dir_all(cleared).unwrap();
        // Also the second time, when it might be there again.
        for _ in 0..2 {
            let result = shop.run(&["good-one"], code).await;
            let told = result["error"]["message"]
                .as_str()
                .is_some_and(|message| message.contains("PACKAGE_DIR was removed") && message.contains("restart the server"));
            // Where nothing but the name counts, there is nothing to tell.
            assert!(told || result["result"] == "'1.0'", "{result}");
        }
    }
    let directory = directory.display().to_string();
    let again = Server::with(Home::Caller, &[("PRELOAD", "core"), ("PACKAGE_INDEX", &*url), ("PACKAGE_DIR", &*directory)]);
    let result = again.run_with(json!({"code": code, "requirements": ["good-one"]})).await;
    assert_eq!(result["result"], "'1.0'", "{result}");
}
