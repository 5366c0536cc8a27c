//! The operator's lists, and names that look like slips.

use serde_json::json;

use super::{Shop, Tool, bad_index};
use crate::client::{Home, Server};
use crate::index::{Index, wheel};

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
