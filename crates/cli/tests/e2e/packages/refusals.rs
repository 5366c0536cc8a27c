//! What is refused, each with its reason, by either tool.

use serde_json::json;

use super::{Shop, Tool, bad_index};
use crate::client::Home;
use crate::index::Index;

async fn refuses_everything_bad(home: Home, tool: Tool) {
    let index = bad_index();
    let url = index.url();
    let settings = [("PACKAGE_INDEX", &*url), ("BLOCKED_PACKAGES", "Blocked_One"), ("MIN_PACKAGE_AGE", "2")];
    let shop = Shop::open(home, tool, &[&settings[..], &[("INSTALL_TIMEOUT", "60")]].concat());
    let good = shop.run(&["good-one"], "import good_one; print(good_one.__version__)").await;
    assert_eq!((&good["stdout"], &good["packages"]["outcome"]), (&json!("1.0\n"), &json!("added")), "{tool:?}: {good}");
    for (requirement, expected) in [
        // pip does not say that there are sources.
        ("sdist-only", if tool == Tool::Uv { "no_wheel" } else { "not_found" }),
        ("not-there-at-all", "not_found"),
        ("good-one==7", "not_found"),
        // A number that stands for something else in another place.
        ("good-one==1.401", "not_found"),
        ("young-one", "not_found"),
        ("wrong-hash", "hash_mismatch"),
        ("half-one", "index_unreachable"),
        ("blocked-one", "blocked"),
        ("needs-more", "blocked"),
        ("reqeusts", "likely_typosquat"),
        ("git+https://example.org/x", "invalid_requirement"),
    ] {
        let (reason, message) = shop.refusal(requirement).await;
        assert_eq!(reason, expected, "{tool:?} {requirement}: {message}");
        assert!(requirement != "young-one" || message.contains("MIN_PACKAGE_AGE"), "{message}");
        assert!(!message.contains("://") || requirement.contains("://"), "{message}");
        assert!(!message.contains(&*shop.folder.path().to_string_lossy()) && !message.contains("wanted.txt"), "{message}");
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
        assert_eq!(reason, "index_unreachable", "{tool:?}: {message}");
        assert!(!message.contains("wrong-secret") && !message.contains("reader"), "{message}");
    }
}

#[tokio::test]
async fn requirements_that_contradict_one_another_are_told_by_their_names() {
    let index = Index::start();
    index.add_module("base-one", "1.0", &[]);
    index.add_module("base-one", "2.0", &[]);
    index.add_module("wants-first", "1.0", &["base-one==1.0"]);
    index.add_module("wants-second", "1.0", &["base-one==2.0"]);
    for tool in [Tool::Uv, Tool::Pip] {
        let shop = Shop::open(Home::Caller, tool, &[("PACKAGE_INDEX", &index.url())]);
        let error = shop.run(&["wants-first", "wants-second"], "1").await["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert_eq!(error["type"], "no_solution", "{tool:?}: {message}");
        assert!(message.contains("wants-first") && message.contains("wants-second"), "{tool:?}: {message}");
        assert!(!message.contains(".txt") && !message.contains("/tmp"), "{tool:?}: {message}");
    }
}

/// pip itself says then that there is no such package.
#[tokio::test]
async fn an_index_that_is_not_there_is_told_from_a_package_that_is_not_there() {
    for tool in [Tool::Uv, Tool::Pip] {
        let shop = Shop::open(Home::Caller, tool, &[("PACKAGE_INDEX", "http://127.0.0.1:9/simple/")]);
        let (reason, message) = shop.refusal("good-one").await;
        assert_eq!(reason, "index_unreachable", "{tool:?}: {message}");
    }
}
