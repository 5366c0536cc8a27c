//! Packages that a call requires: from the real index, and from one of the test's own with everything that can go wrong.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Home, Server, processes_named, told};
use crate::index::{Index, Manner, bomb, wheel};

/// The program that installs. pip is in the tree; uv is what the tests were built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Uv,
    Pip,
}

/// A server with a package folder of its own.
struct Shop {
    server: Server,
    folder: tempfile::TempDir,
}

impl Shop {
    fn open(home: Home, tool: Tool, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        if home != Home::Caller {
            std::os::unix::fs::chown(folder.path(), Some(homes::USER), Some(homes::USER)).unwrap();
        }
        let directory = folder.path().join("packages").display().to_string();
        let uv = homes::repository().join("build/tools/bin/uv").display().to_string();
        let mut all = vec![("PRELOAD", "core"), ("PACKAGE_DIR", &*directory)];
        match tool {
            Tool::Uv => all.push(("UV", &uv)),
            Tool::Pip => all.push(("UV", "")),
        }
        let certificates = std::env::var("SSL_CERT_FILE").unwrap_or_default();
        if !certificates.is_empty() {
            all.push(("SSL_CERT_FILE", &certificates));
        }
        all.extend(settings);
        Self { server: Server::with(home, &all), folder }
    }

    async fn run(&self, requirements: &[&str], code: &str) -> Value {
        self.server.run_with(json!({"code": code, "requirements": requirements})).await
    }

    /// The reason and the message of a refusal.
    async fn refusal(&self, requirement: &str) -> (String, String) {
        let result = self.run(&[requirement], "1").await;
        let error = &result["error"];
        assert_eq!((&error["code"], &result["success"]), (&json!("package_error"), &json!(false)), "{result}");
        (error["type"].as_str().unwrap().to_owned(), error["message"].as_str().unwrap().to_owned())
    }
}

#[tokio::test]
async fn a_package_from_the_real_index_is_added_and_then_remembered() {
    let shop = Shop::open(Home::Caller, Tool::Uv, &[]);
    let installed = shop.server.call("install_packages", json!({"packages": ["humanize"]})).await;
    let first = told(&installed);
    assert_eq!((&first["success"], &first["packages"][0]["already_installed"]), (&json!(true), &json!(false)), "{first}");
    let version = first["packages"][0]["installed_version"].as_str().unwrap();
    let again = shop.server.call("pip_install", json!({"package": "humanize", "version": "latest"})).await;
    let again = &told(&again)["packages"][0];
    assert_eq!((&again["already_installed"], &again["installed_version"]), (&json!(true), &json!(version)), "{again}");
    let result = shop.run(&["humanize"], "import humanize; print(humanize.__version__); humanize.intword(10**6)").await;
    assert_eq!(result["stdout"], format!("{version}\n"), "{result}");
    assert_eq!(result["result"], "'1.0 million'");
    assert_eq!(result["packages"], json!({"outcome": "added", "installed": [format!("humanize=={version}")]}));
    // Calls that did not ask for it don't have it.
    assert_eq!(shop.server.run("import humanize").await["error"]["type"], "ModuleNotFoundError");
}

#[tokio::test]
async fn what_the_stack_and_python_have_installs_nothing() {
    let shop = Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", "http://127.0.0.1:9/simple/")]);
    let result = shop.run(&["numpy>=1", "sklearn", "json"], "import numpy, sklearn, json").await;
    assert_eq!(result["packages"], json!({"outcome": "satisfied", "installed": []}), "{result}");
    let notes = result["warnings"].to_string();
    assert!(notes.contains("scikit-learn was taken") && notes.contains("standard library"), "{notes}");
}

/// `research`: with pandas preloaded, a path with another one in front gives the old module and the new metadata.
#[tokio::test]
async fn the_silent_version_trap_never_shows_one_version_and_runs_another() {
    let shop = Shop::open(Home::Caller, Tool::Uv, &[("PRELOAD", "data")]);
    let code = "import importlib.metadata, sys\nsite = [m for m in ('numpy', 'pandas') if m in sys.modules]\nimport pandas\n\
                print(site, pandas.__version__, importlib.metadata.version('pandas'))";
    let result = shop.run(&["pandas==2.3.3"], code).await;
    assert_eq!(result["stdout"], "[] 2.3.3 2.3.3\n", "{result}");
    assert_eq!(result["packages"]["outcome"], "separate");
    assert!(result["warnings"].to_string().contains("contradict the preinstalled packages"));
    // The stack is not behind it: a half-mixed interpreter would find it there.
    assert_eq!(shop.run(&["pandas==2.3.3"], "import scipy").await["error"]["type"], "ModuleNotFoundError");
    let warm = shop.server.run("import pandas; print(pandas.__version__)").await;
    assert!(warm["stdout"].as_str().unwrap().starts_with('3'), "{warm}");
}

fn bad_index() -> Index {
    let index = Index::start();
    index.add_module("good-one", "1.0", &[]);
    index.add_module("needs-more", "1.0", &["good-one", "blocked-one"]);
    index.add_module("blocked-one", "1.0", &[]);
    index.add_module("young-one", "9.0", &[]);
    index.add("sdist-only", "sdist_only-1.0.tar.gz", b"no wheel".to_vec(), Manner::Well);
    let of = |name: &str| wheel(name, "1.0", &[], &[("some_module.py", "x = 1\n")]);
    index.add("wrong-hash", "wrong_hash-1.0-py3-none-any.whl", of("wrong-hash"), Manner::WrongHash);
    index.add("half-one", "half_one-1.0-py3-none-any.whl", of("half-one"), Manner::Half);
    index.add("slow-one", "slow_one-1.0-py3-none-any.whl", of("slow-one"), Manner::Never);
    index
}

async fn refuses_everything_bad(home: Home, tool: Tool) {
    let index = bad_index();
    let url = index.url();
    let settings = [("PACKAGE_INDEX", &*url), ("BLOCKED_PACKAGES", "Blocked_One"), ("MIN_PACKAGE_AGE", "2")];
    let shop = Shop::open(home, tool, &[&settings[..], &[("INSTALL_TIMEOUT", "12")]].concat());
    let good = shop.run(&["good-one"], "import good_one; print(good_one.__version__)").await;
    assert_eq!((&good["stdout"], &good["packages"]["outcome"]), (&json!("1.0\n"), &json!("added")), "{tool:?}: {good}");
    for (requirement, reasons) in [
        ("sdist-only", &["no_wheel", "not_found"][..]),
        ("not-there-at-all", &["not_found"]),
        ("good-one==7", &["not_found"]),
        ("young-one", &["not_found", "no_wheel", "no_solution"]),
        ("wrong-hash", &["hash_mismatch"]),
        ("half-one", &["index_unreachable"]),
        ("blocked-one", &["blocked"]),
        ("needs-more", &["blocked"]),
        ("reqeusts", &["likely_typosquat"]),
        ("git+https://example.org/x", &["invalid_requirement"]),
    ] {
        let (reason, message) = shop.refusal(requirement).await;
        assert!(reasons.contains(&&*reason), "{tool:?} {requirement}: {reason}: {message}");
        assert!(!message.contains("://") || requirement.contains("://"), "{message}");
    }
    let sets = std::fs::read_dir(shop.folder.path().join("packages/sets"));
    if let Ok(sets) = sets.map(Iterator::count)
        && home == Home::Caller
    {
        assert_eq!(sets, 1, "only the good one is there");
    }
    shop.server.still_works().await;
}

#[tokio::test]
async fn uv_refuses_everything_bad_with_a_stable_reason() {
    refuses_everything_bad(Home::Caller, Tool::Uv).await;
}

#[tokio::test]
async fn pip_refuses_everything_bad_with_a_stable_reason() {
    refuses_everything_bad(Home::Caller, Tool::Pip).await;
}

/// A wheel's own words may name any place: the server would fetch from inside a network, open its files, and start git or a
/// build.
async fn follows_no_address(tool: Tool) {
    let index = Index::start();
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), format!("http://{}/elsewhere", index.address()));
    // Whoever opens it waits until the time for installing is over.
    let pipe = folder.path().join("x-1.0-py3-none-any.whl");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let places = [
        format!("{elsewhere}/x-1.0-py3-none-any.whl"),
        format!("{elsewhere}/x-1.0.tar.gz"),
        format!("git+{elsewhere}/x.git"),
        format!("file://{}", pipe.display()),
        "file:///etc/passwd".to_owned(),
        "file:///usr".to_owned(),
    ];
    for (number, place) in places.iter().enumerate() {
        let (reference, in_extra) = (format!("x @ {place}"), format!("x @ {place} ; extra == \"more\""));
        index.add_module(&format!("leads-away-{number}"), "1.0", &[&reference]);
        index.add_module(&format!("may-lead-{number}"), "1.0", &[&in_extra]);
        index.add_module(&format!("further-{number}"), "1.0", &[&format!("may-lead-{number}[more]")]);
    }
    let shop = Shop::open(Home::Caller, tool, &[("PACKAGE_INDEX", &index.url()), ("INSTALL_TIMEOUT", "20")]);
    for (number, place) in places.iter().enumerate() {
        for requirement in [format!("leads-away-{number}"), format!("may-lead-{number}[more]"), format!("further-{number}")] {
            let (reason, message) = shop.refusal(&requirement).await;
            assert_eq!(reason, "direct_reference", "{tool:?} {requirement} {place}: {message}");
            assert!(message.contains("only names on the package index are taken"), "{message}");
        }
    }
    assert_eq!(index.asked_beside(), Vec::<String>::new(), "{tool:?}");
    // What nobody asks for does no harm.
    assert_eq!(shop.run(&["may-lead-0"], "import may_lead_0").await["success"], true);
}

#[tokio::test]
async fn uv_follows_no_address_that_a_package_names() {
    follows_no_address(Tool::Uv).await;
}

#[tokio::test]
async fn pip_follows_no_address_that_a_package_names() {
    follows_no_address(Tool::Pip).await;
}

#[tokio::test]
async fn an_index_that_hangs_ends_with_the_time_for_installing() {
    let index = bad_index();
    let shop = Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &index.url()), ("INSTALL_TIMEOUT", "0.8")]);
    assert_eq!(shop.refusal("slow-one").await.0, "install_timeout");
    nothing_installs(&shop).await;
}

/// No installer of the shop's is alive.
async fn nothing_installs(shop: &Shop) {
    let started = Instant::now();
    let marker = shop.folder.path().display().to_string();
    while !processes_named(&format!("{marker}/packages/work")).is_empty() {
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", processes_named(&marker));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_the_installer_with_it() {
    let index = bad_index();
    let shop = Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &index.url())]);
    let marker = shop.folder.path().join("packages/work").display().to_string();
    let call = shop.run(&["slow-one"], "1");
    let installing = async {
        while !processes_named(&marker).iter().any(|line| line.contains("wanted.txt")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = call => panic!("{result}"),
        () = installing => {}
    }
    nothing_installs(&shop).await;
    shop.server.still_works().await;
}

#[tokio::test]
async fn a_wheel_of_two_gigabytes_of_nothing_is_not_unpacked() {
    let index = Index::start();
    index.add("bomb-one", "bomb_one-1.0-py3-none-any.whl", bomb("bomb-one"), Manner::Well);
    for tool in [Tool::Uv, Tool::Pip] {
        let shop = Shop::open(Home::Caller, tool, &[("PACKAGE_INDEX", &index.url()), ("MAX_INSTALL_MB", "64")]);
        let (reason, message) = shop.refusal("bomb-one").await;
        assert_eq!(reason, "too_large", "{tool:?}: {message}");
        let left = std::process::Command::new("du").arg("-sm").arg(shop.folder.path()).output().unwrap();
        let left = String::from_utf8(left.stdout).unwrap();
        assert!(left.split_whitespace().next().unwrap().parse::<u64>().unwrap() < 70, "{left}");
    }
}

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
    let set = result["result"].as_str().unwrap().trim_matches('\'').to_owned();
    let started = Instant::now();
    while !std::path::Path::new(&set).join("quiet/__pycache__").exists() {
        assert!(started.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn calls_that_want_the_same_set_at_once_install_it_once() {
    let index = Index::start();
    index.add_module("shared-one", "1.0", &[]);
    let shop = std::sync::Arc::new(Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &index.url())]));
    let code = "import shared_one; shared_one.__version__";
    let run = |requirement: &'static str| {
        let shop = shop.clone();
        tokio::spawn(async move { shop.run(&[requirement], code).await })
    };
    let calls = ["shared-one", "shared-one", "shared-one>=1", "Shared_One", "shared-one==1.0"].map(run);
    for call in calls {
        let result = call.await.unwrap();
        assert_eq!(result["result"], "'1.0'", "{result}");
    }
    assert_eq!(std::fs::read_dir(shop.folder.path().join("packages/sets")).unwrap().count(), 1);
    assert_eq!(index.times_served("shared_one-1.0-py3-none-any.whl"), 1);
}

#[tokio::test]
async fn the_operators_lists_hold_for_what_comes_along_too() {
    let index = bad_index();
    let url = index.url();
    let shop = Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &url), ("ALLOWED_PACKAGES", "good-one, needs-more")]);
    assert_eq!(shop.run(&["good-one"], "1").await["success"], true);
    assert_eq!(shop.refusal("young-one").await.0, "not_allowed");
    let (reason, message) = shop.refusal("needs-more").await;
    assert!(reason == "not_allowed" && message.contains("blocked-one is needed too"), "{message}");
    let few = Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &url), ("MAX_INSTALL_PACKAGES", "2")]);
    assert_eq!(few.refusal("needs-more").await.0, "too_many");
    let off = Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &url), ("ALLOW_INSTALL", "false")]);
    assert_eq!(off.refusal("good-one").await.0, "installs_off");
    assert_eq!(off.run(&["numpy"], "1").await["packages"]["outcome"], "satisfied");
}

#[tokio::test]
async fn a_slip_of_the_pen_is_refused_also_as_a_dependency_and_through_an_extra() {
    let index = Index::start();
    index.add_module("reqeusts", "1.0", &[]);
    index.add_module("little-known", "1.0", &["reqeusts"]);
    index.add_module("has-extra", "1.0", &["reqeusts ; extra == \"more\""]);
    index.add_module("further-one", "1.0", &["has-extra[more]"]);
    // Well known: it knows what it needs.
    index.add_module("humanize", "1.0", &["reqeusts"]);
    let url = index.url();
    for tool in [Tool::Uv, Tool::Pip] {
        let shop = Shop::open(Home::Caller, tool, &[("PACKAGE_INDEX", &url)]);
        for requirement in ["little-known", "has-extra[more]", "further-one"] {
            let (reason, message) = shop.refusal(requirement).await;
            assert!(
                reason == "likely_typosquat" && message.starts_with("reqeusts is needed too, and is one slip away"),
                "{tool:?} {requirement}: {reason} {message}"
            );
        }
        for requirement in ["has-extra", "humanize"] {
            assert_eq!(shop.run(&[requirement], "1").await["success"], true, "{tool:?} {requirement}");
        }
    }
    // An operator's word holds also for what is remembered.
    let known = Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &url), ("KNOWN_PACKAGES", "reqeusts")]);
    assert_eq!(known.run(&["little-known"], "import reqeusts").await["success"], true);
    let directory = known.folder.path().join("packages").display().to_string();
    let again = Server::with(Home::Caller, &[("PRELOAD", "core"), ("PACKAGE_INDEX", &*url), ("PACKAGE_DIR", &*directory)]);
    let result = again.run_with(json!({"code": "1", "requirements": ["little-known"]})).await;
    assert_eq!(result["error"]["type"], "likely_typosquat", "{result}");
}

#[tokio::test]
async fn with_a_list_of_hashes_nothing_else_is_installed() {
    let index = Index::start();
    index.add_module("listed-one", "1.0", &[]);
    index.add_module("listed-one", "2.0", &[]);
    index.add_module("other-one", "1.0", &[]);
    let bytes = wheel("listed-one", "1.0", &[], &[("listed_one/__init__.py", "__version__ = \"1.0\"\n")]);
    let hash = <sha2::Sha256 as sha2::Digest>::digest(&bytes);
    let list = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(list.path(), format!("listed-one==1.0 --hash=sha256:{hash:x}\n")).unwrap();
    let path = list.path().display().to_string();
    let shop = Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &index.url()), ("PACKAGE_HASHES", &path)]);
    let result = shop.run(&["listed-one"], "import listed_one; listed_one.__version__").await;
    assert_eq!(result["result"], "'1.0'", "{result}");
    assert_eq!(shop.refusal("other-one").await.0, "hash_missing");
    std::fs::write(list.path(), format!("listed-one==2.0 --hash=sha256:{hash:x}\n")).unwrap();
    let shop = Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &index.url()), ("PACKAGE_HASHES", &path)]);
    assert_eq!(shop.refusal("listed-one").await.0, "hash_mismatch");
}

#[tokio::test]
async fn credentials_of_a_private_index_are_shown_nowhere() {
    let index = bad_index();
    // "reader:top-secret%21" in the form of the header.
    index.ask_for("Basic cmVhZGVyOnRvcC1zZWNyZXQh");
    for tool in [Tool::Uv, Tool::Pip] {
        let url = index.url_with("reader:top-secret%21");
        let shop = Shop::open(Home::Caller, tool, &[("PACKAGE_INDEX", &url), ("LOG", "debug")]);
        let code = "import good_one, os\nfound = []\nfor root, _, files in os.walk(os.path.dirname(good_one.__file__) + '/..'):\n    \
                    for name in files:\n        if b'top-secret' in open(os.path.join(root, name), 'rb').read(): found.append(name)\n\
                    print(good_one.__version__, found, [k for k, v in os.environ.items() if 'top-secret' in v])";
        let result = shop.run(&["good-one"], code).await;
        assert_eq!(result["stdout"], "1.0 [] []\n", "{tool:?}: {result}");
        let (_, message) = shop.refusal("not-there-at-all").await;
        assert!(!message.contains("top-secret") && !message.contains("reader"), "{message}");
        let wrong = index.url_with("reader:wrong-secret");
        let shop = Shop::open(Home::Caller, tool, &[("PACKAGE_INDEX", &wrong)]);
        let (reason, message) = shop.refusal("good-one").await;
        assert!(reason == "index_unreachable" || reason == "not_found", "{tool:?}: {reason}: {message}");
        assert!(!message.contains("wrong-secret") && !message.contains("reader"), "{message}");
    }
}

#[tokio::test]
async fn an_ordinary_user_installs_with_pip_and_a_function_does_not_keep_what_code_has_changed() {
    if !homes::is_root() {
        return;
    }
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
async fn what_a_call_does_to_a_set_breaks_no_later_call_and_no_later_server() {
    if !homes::is_root() {
        return;
    }
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
        let module = std::path::PathBuf::from(module["stdout"].as_str().unwrap().trim());
        let set = module.ancestors().nth(2).unwrap();
        for path in [&module, set, set.parent().unwrap()] {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
        }
        let directory = shop.folder.path().join("packages");
        drop(shop.server);
        let (url, wheel) = (index.url(), "good_one-1.0-py3-none-any.whl");
        let served = index.times_served(wheel);
        let settings = [("PRELOAD", "core"), ("UV", ""), ("PACKAGE_INDEX", &*url)];
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

/// A real S3 server for one test, with one bucket.
async fn s3(root: &std::path::Path) -> String {
    std::fs::create_dir_all(root.join("shared")).unwrap();
    let mut builder = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
    builder.set_auth(s3s::auth::SimpleAuth::from_single("key", "of-the-bucket"));
    let service = builder.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service.clone()));
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn a_set_that_one_server_has_built_is_fetched_by_the_next_and_a_damaged_one_is_built_anew() {
    let bucket = tempfile::tempdir().unwrap();
    let endpoint = s3(bucket.path()).await;
    let index = Index::start();
    index.add_module("good-one", "1.0", &[]);
    let url = index.url();
    let settings = [
        ("PACKAGE_INDEX", &*url),
        ("S3_BUCKET", "shared"),
        ("AWS_ENDPOINT_URL", &*endpoint),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "of-the-bucket"),
        ("AWS_REGION", "eu-west-1"),
    ];
    let code = "import good_one, os; print(good_one.__version__, 'of-the-bucket' in str(os.environ))";
    let sets = bucket.path().join("shared/code-interpreter/packages/v1");
    let objects = || std::fs::read_dir(&sets).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    for (round, times_built) in ["built", "fetched", "built anew"].into_iter().zip([1, 1, 2]) {
        let shop = Shop::open(Home::Caller, Tool::Uv, &settings);
        let result = shop.run(&["good-one"], code).await;
        assert_eq!(result["stdout"], "1.0 False\n", "{round}: {result}");
        assert_eq!(index.times_served("good_one-1.0-py3-none-any.whl"), times_built, "{round}");
        let started = Instant::now();
        while objects().is_empty() {
            assert!(started.elapsed() < Duration::from_secs(30), "nothing was offered to the bucket");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if round == "fetched" {
            std::fs::write(&objects()[0], "spoilt").unwrap();
        }
    }
    // Out of order altogether: the call works all the same.
    let broken = [&settings[..2], &[("AWS_ENDPOINT_URL", "http://127.0.0.1:9")], &settings[3..]].concat();
    let shop = Shop::open(Home::Caller, Tool::Uv, &broken);
    assert_eq!(shop.run(&["good-one"], code).await["stdout"], "1.0 False\n");
}

/// `research/review.md` C17b: a server that only ever fetched kept all of it.
#[tokio::test]
async fn what_was_fetched_counts_in_what_all_packages_may_take() {
    let bucket = tempfile::tempdir().unwrap();
    let endpoint = s3(bucket.path()).await;
    let index = Index::start();
    let large = "#".repeat(700_000);
    for name in ["large-one", "large-two"] {
        let module = name.replace('-', "_");
        let bytes = wheel(name, "1.0", &[], &[(&format!("{module}.py"), &large)]);
        index.add(name, &format!("{module}-1.0-py3-none-any.whl"), bytes, Manner::Well);
    }
    let url = index.url();
    let settings = [
        ("PACKAGE_INDEX", &*url),
        ("S3_BUCKET", "shared"),
        ("AWS_ENDPOINT_URL", &*endpoint),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "of-the-bucket"),
        ("AWS_REGION", "eu-west-1"),
        ("PACKAGE_CACHE_MB", "1"),
    ];
    let objects = || std::fs::read_dir(bucket.path().join("shared/code-interpreter/packages/v1")).into_iter().flatten().count();
    let first = Shop::open(Home::Caller, Tool::Uv, &settings);
    for (name, kept) in [("large-one", 1), ("large-two", 2)] {
        assert_eq!(first.run(&[name], "1").await["success"], true);
        let started = Instant::now();
        while objects() < kept {
            assert!(started.elapsed() < Duration::from_secs(30), "nothing was offered to the bucket");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let served = || ["large_one", "large_two"].map(|module| index.times_served(&format!("{module}-1.0-py3-none-any.whl")));
    let (before, second) = (served(), Shop::open(Home::Caller, Tool::Uv, &settings));
    let within = |folder: &str| std::fs::read_dir(second.folder.path().join("packages").join(folder)).unwrap().count();
    for name in ["large-one", "large-two"] {
        assert_eq!(second.run(&[name], "1").await["success"], true);
        // While its bytecode is being compiled a set is in use.
        let started = Instant::now();
        while within("compiled") == 0 {
            assert!(started.elapsed() < Duration::from_secs(30), "no bytecode");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(served(), before, "both were fetched");
    assert_eq!(within("sets"), 1, "there is room for one");
}

#[tokio::test]
async fn whoever_waits_for_an_install_hears_of_it() {
    let index = Index::start();
    index.add_module("good-one", "1.0", &[]);
    let shop = Shop::open(Home::Caller, Tool::Pip, &[("PACKAGE_INDEX", &index.url())]);
    for (tool, arguments) in [
        ("execute_python", json!({"code": "1", "requirements": ["good-one"]})),
        ("install_packages", json!({"packages": ["good-one>=1"]})),
    ] {
        let params = json!({"name": tool, "arguments": arguments, "_meta": {"progressToken": 1}});
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string();
        let (_, text) = shop.server.request("POST", "/mcp", &[("content-type", "application/json")], body).await;
        assert!(text.contains("notifications/progress") && text.contains("resolving"), "{text}");
        if tool == "execute_python" {
            assert!(text.contains("downloaded 1 of 1") && text.contains("installed 1 packages"), "{text}");
        }
    }
}

#[tokio::test]
async fn lists_that_were_changed_hold_for_what_is_remembered() {
    let index = bad_index();
    let url = index.url();
    let shop = Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &url)]);
    assert_eq!(shop.run(&["needs-more"], "import blocked_one").await["success"], true);
    let directory = shop.folder.path().join("packages").display().to_string();
    let settings = [("PRELOAD", "core"), ("PACKAGE_INDEX", &*url), ("PACKAGE_DIR", &*directory)];
    let again = Server::with(Home::Caller, &[&settings[..], &[("BLOCKED_PACKAGES", "blocked-one")]].concat());
    let result = again.run_with(json!({"code": "1", "requirements": ["needs-more"]})).await;
    assert_eq!(result["error"]["type"], "blocked", "{result}");
    // What one server has installed the next one finds, without its index.
    let served = index.times_served("needs_more-1.0-py3-none-any.whl");
    let again = Server::with(Home::Caller, &settings);
    let result = again.run_with(json!({"code": "import needs_more", "requirements": ["needs-more"]})).await;
    assert_eq!((&result["success"], index.times_served("needs_more-1.0-py3-none-any.whl")), (&json!(true), served), "{result}");
}

#[test]
fn the_command_line_takes_requirements() {
    let index = Index::start();
    index.add_module("good-one", "1.0", &[]);
    let folder = tempfile::tempdir().unwrap();
    let run = |requirement: &str| {
        let mut command = crate::client::program();
        command.env("PACKAGE_DIR", folder.path().join("packages")).env("PACKAGE_INDEX", index.url());
        command.args(["run", "--requirement", requirement, "--code", "import good_one; print(good_one.__version__)"]);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, stdout, stderr) = run("good-one");
    assert!((code, &*stdout) == (Some(0), "1.0\n") && stderr.contains("note: installed 1 packages"), "{stderr}");
    let (code, stdout, stderr) = run("good-one");
    assert_eq!((code, &*stdout, &*stderr), (Some(0), "1.0\n", ""), "remembered, and so nothing to say");
    let (code, _, stderr) = run("../good-one");
    assert!(code == Some(1) && stderr.contains("paths are not taken"), "{stderr}");
}
