//! What a call gets that requires packages.

use serde_json::json;

use super::{Shop, Tool};
use crate::client::{Home, variable};
use crate::index::Index;

/// The one test that asks the real index: that what the other tests serve is what it is like.
#[tokio::test]
async fn a_package_from_the_real_index_is_added() {
    for tool in [Tool::Uv, Tool::Pip] {
        let shop = Shop::open(Home::Caller, tool, &[]);
        let result = shop.run(&["humanize"], "import humanize; print(humanize.__version__); humanize.intword(10**6)").await;
        let version = result["stdout"].as_str().unwrap().trim();
        assert_eq!(result["result"], "'1.0 million'", "{tool:?}: {result}");
        assert_eq!(result["packages"], json!({"outcome": "added", "installed": [format!("humanize=={version}")]}));
    }
}

#[tokio::test]
async fn a_package_is_added_and_then_remembered() {
    let index = Index::start();
    index.add_module("good-one", "1.0", &[]);
    let shop = Shop::open(Home::Caller, Tool::Uv, &[("PACKAGE_INDEX", &index.url())]);
    let installed = shop.server.call("install_packages", json!({"packages": ["good-one"]})).await;
    let first = &installed["result"]["structuredContent"];
    assert_eq!((&first["success"], &first["packages"][0]["already_installed"]), (&json!(true), &json!(false)), "{first}");
    assert_eq!(first["packages"][0]["installed_version"], "1.0", "{first}");
    let again = shop.server.call("pip_install", json!({"package": "good-one", "version": "latest"})).await;
    let again = &again["result"]["structuredContent"]["packages"][0];
    assert_eq!((&again["already_installed"], &again["installed_version"]), (&json!(true), &json!("1.0")), "{again}");
    let result = shop.run(&["good-one"], "import good_one; good_one.__version__").await;
    assert_eq!(result["result"], "'1.0'", "{result}");
    assert_eq!(result["packages"], json!({"outcome": "added", "installed": ["good-one==1.0"]}));
    // Calls that did not ask for it don't have it.
    assert_eq!(shop.server.run("import good_one").await["error"]["type"], "ModuleNotFoundError");
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
    let index = Index::start();
    index.add_module("pandas", "2.3.3", &[]);
    let shop = Shop::open(Home::Caller, Tool::Uv, &[("PRELOAD", "data"), ("PACKAGE_INDEX", &index.url())]);
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

#[test]
fn the_command_line_takes_requirements() {
    let index = Index::start();
    index.add_module("good-one", "1.0", &[]);
    let folder = tempfile::tempdir().unwrap();
    let run = |requirement: &str| {
        let mut command = crate::client::program();
        command.env(variable("PACKAGE_DIR"), folder.path().join("packages")).env(variable("PACKAGE_INDEX"), index.url());
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
