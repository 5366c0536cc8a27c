//! The restricted policy, through every door that takes it.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::{Home, Server, program, told};

async fn restricted(server: &Server, code: &str) -> Value {
    server.run_with(json!({"code": code, "policy": "restricted"})).await
}

#[tokio::test]
async fn a_restricted_cell_does_what_analysis_needs() {
    for preload in ["core", "data"] {
        let server = Server::with(Home::Caller, &[("PRELOAD", preload)]);
        for (code, stdout) in [
            (
                "import json, math\nfrom collections import Counter\nprint(json.dumps(Counter('aab')), math.pi > 3)",
                "{\"a\": 2, \"b\": 1} True\n",
            ),
            ("import numpy as np, pandas as pd\nprint(pd.DataFrame({'a': np.arange(3)}).describe().shape)", "(8, 1)\n"),
            ("class A:\n    def __init__(self, x): self.x = x\nprint(getattr(A(3), 'x'), A.__name__)", "3 A\n"),
            ("from dataclasses import dataclass", ""),
            (
                "import datetime, statistics, re, random, decimal, fractions\nprint([x * 2 for x in range(3)], f'{1.5:.2f}')",
                "[0, 2, 4] 1.50\n",
            ),
            ("try: 1/0\nexcept ZeroDivisionError as e: print(e)", "division by zero\n"),
        ] {
            let result = restricted(&server, code).await;
            if code.contains("dataclasses") {
                assert_eq!(result["error"]["code"], "policy_denied");
            } else {
                assert_eq!((&result["stdout"], &result["success"]), (&json!(stdout), &json!(true)), "{code}: {result:#}");
            }
        }
    }
}

#[tokio::test]
async fn refusals_say_line_column_what_and_why_before_anything_runs() {
    let server = Server::start();
    for (code, line, column, what) in [
        ("print('ran')\nimport os", 2, 1, "import of os"),
        ("print('ran')\nx = 1; import os.path as p", 2, 8, "import of os.path"),
        ("from subprocess import run", 1, 1, "import of subprocess"),
        ("from json import _default_decoder", 1, 1, "import of json._default_decoder"),
        ("from . import x", 1, 1, "relative imports"),
        ("print(1)\nif True:\n    open('/etc/passwd')", 3, 5, "open is refused"),
        ("eval('1')", 1, 1, "eval is refused"),
        ("f = exec", 1, 5, "exec is refused"),
        ("__import__('os')", 1, 1, "__import__ is refused"),
        ("().__class__", 1, 1, "the attribute __class__"),
        ("().__cl\u{ff41}ss__", 1, 1, "the attribute __class__"),
        ("g = (x for x in [1])\ng.gi_frame.f_back", 2, 1, "the attribute"),
        ("getattr((), '__cla' + 'ss__')", 1, 1, "getattr is refused"),
        ("getattr((), '__class__')", 1, 1, "getattr is refused"),
        ("import random\nrandom._os.system('true')", 2, 1, "the attribute _os"),
        ("match ():\n    case object(__class__=c): print(c)", 2, 10, "the attribute __class__"),
        ("h = getattr", 1, 5, "getattr is refused"),
        ("'{0.__class__}'.format(1)", 1, 1, "this text is refused"),
        ("@eval\nclass A: pass", 1, 2, "eval is refused"),
        ("__builtins__['open']", 1, 1, "__builtins__ is refused"),
        ("def f(x=globals()): pass", 1, 9, "globals is refused"),
    ] {
        let result = restricted(&server, code).await;
        let error = &result["error"];
        assert_eq!(error["code"], "policy_denied", "{code}: {result:#}");
        assert_eq!((&error["line"], &error["column"]), (&json!(line), &json!(column)), "{code}: {error:#}");
        assert!(error["message"].as_str().unwrap().contains(what), "{code}: {error:#}");
        assert_eq!(result["stdout"], "", "nothing may run: {code}");
    }
}

/// `policy.json`: what must be refused, and honest code that must run, for one list of authorised imports.
#[derive(Deserialize)]
struct Corpus {
    /// Besides the default list.
    imports: Option<String>,
    refused: Vec<Snippet>,
    honest: Vec<Snippet>,
}

#[derive(Deserialize)]
struct Snippet {
    id: String,
    code: String,
    /// It is refused outside of the cell's own lines.
    #[serde(default)]
    unplaced: bool,
}

async fn holds(corpus: &str) {
    let all: Value = serde_json::from_str(include_str!("policy.json")).unwrap();
    let corpus: Corpus = serde_json::from_value(all[corpus].clone()).unwrap();
    let default = "json,math,datetime,statistics,itertools,functools,collections,re,string,random,decimal,fractions,numpy,pandas";
    let list = corpus.imports.map(|added| format!("{default},{added}"));
    // What is refused must be the policy's own doing, and so programs may start.
    let mut settings = vec![("POLICY", "restricted"), ("ALLOW_SUBPROCESS", "true"), ("DEFAULT_TIMEOUT", "60")];
    settings.extend(list.as_deref().map(|list| ("AUTHORIZED_IMPORTS", list)));
    let server = Server::with(Home::Caller, &settings);
    let mut wrong = Vec::new();
    for Snippet { id, code, unplaced } in &corpus.refused {
        let result = server.run(code).await;
        let error = &result["error"];
        let denied = error["code"] == "policy_denied" && !result["stdout"].as_str().unwrap().contains("PWN");
        let placed = *unplaced || error["line"].is_u64() && error["column"].is_u64();
        if !(denied && placed) {
            wrong.push(format!("{id} is not refused: {result:#}"));
        }
    }
    for Snippet { id, code, .. } in &corpus.honest {
        let result = server.run(code).await;
        let stdout = result["stdout"].as_str().unwrap();
        if result["success"] != true || stdout.is_empty() || stdout.contains("PWN") {
            wrong.push(format!("{id} does not run: {result:#}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each is a way that reached files, modules or the real builtins, or a close kin of one.
#[tokio::test]
async fn every_known_way_around_the_policy_is_refused_and_honest_code_runs() {
    holds("default").await;
}

#[tokio::test]
async fn what_an_operator_adds_works_and_opens_no_way_to_files() {
    holds("added").await;
}

/// Syntax shows nothing of these.
#[tokio::test]
async fn a_refusal_at_run_time_can_not_be_caught() {
    let server =
        Server::with(Home::Caller, &[("PRELOAD", "core"), ("AUTHORIZED_IMPORTS", "json,os"), ("ALLOW_SUBPROCESS", "true")]);
    for call in [
        "[json][0].codecs",
        "os.system('true')",
        "os.fork()",
        "os.kill(1, 0)",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.mkdir('x')",
        "os.open('/etc/passwd', 0)",
        "[str][0].format('{0.__cl' + 'ass__}', 1)",
    ] {
        for rest in ["except BaseException:\n      pass", "finally:\n      return 1"] {
            let code = format!("import json, os\ndef run():\n  try:\n    {call}\n  {rest}\nrun()");
            let result = restricted(&server, &code).await;
            let error = &result["error"];
            assert_eq!(error["code"], "policy_denied", "{code}: {result:#}");
            assert_eq!((&error["line"], &error["column"]), (&json!(4), &json!(5)), "{code}: {result:#}");
        }
    }
}

/// A cell that has got hold of a module's globals may write any name into them. Here gc gives them away.
#[tokio::test]
async fn a_module_with_a_forged_name_is_not_taken_for_the_import_system() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("AUTHORIZED_IMPORTS", "json,functools,gc")]);
    let code = "import json, functools, gc\n\
        g = [each for each in gc.get_referents(json.load) if type(each) is dict and '__builtins__' in each][0]\n\
        class F: pass\n\
        f = F()\n\
        b = g['__builtins__']\n";
    for (name, read) in [
        ("importlib._bootstrap", "b['open'], '/etc/passwd'"),
        ("collections", "b['eval'], '1+1'"),
        ("dataclasses", "b['exec'], 'import os', {'__name__': '_frozen_importlib'}"),
        ("pandas.core.computation.expr", "b['eval'], '1+1'"),
    ] {
        let code = format!("{code}g['__name__'] = '{name}'\nf.read = functools.partial({read})\njson.load(f)");
        let result = restricted(&server, &code).await;
        assert_eq!(result["error"]["code"], "policy_denied", "{code}: {result:#}");
    }
}

#[tokio::test]
async fn a_restricted_server_takes_no_open_call_and_its_list_is_its_own() {
    let server = Server::with(Home::Caller, &[("PRELOAD", "core"), ("POLICY", "restricted"), ("AUTHORIZED_IMPORTS", "os, json")]);
    assert_eq!(server.run("import os\nprint(os.sep)").await["stdout"], "/\n");
    let refused = server.run("import math").await;
    assert_eq!(refused["error"]["code"], "policy_denied");
    assert!(refused["error"]["message"].as_str().unwrap().contains("authorised are json, os"), "{refused}");
    let answer = server.call("execute_python", json!({"code": "1", "policy": "open"})).await;
    assert_eq!(
        told(&answer)["error"]["message"],
        "policy: must be restricted, as the server's is: a call can only be stricter",
        "{answer}"
    );
    let environment = server.call("get_environment_info", json!({})).await;
    assert_eq!(told(&environment)["policy"], "restricted");
}

#[test]
fn the_command_line_takes_the_policy() {
    let run = |code: &str| {
        let output = program().args(["run", "--policy", "restricted", "--json", "--code", code]).output().unwrap();
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let (code, result) = run("import os");
    assert_eq!((code, &result["error"]["code"]), (Some(1), &json!("policy_denied")));
    assert_eq!(run("import math\nmath.floor(2.5)").1["result"], "2");
}
