//! Both sides of the wire against each other: what the types here say, and what the harness does.
//!
//! Rule: nothing is listed by hand that one side can tell. Each test fails when a side gets a field, a word, a kind or a
//! number that the other lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::BytesMut;
use protocol::Layer;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::frames::{self, Frame, Kind, MAX_PAYLOAD, MAX_REPORT, Raised, Report, ReportedError};
use super::*;
use crate::answer::MAX_TEXT;
use crate::kernel::MAX_IMAGES;
use crate::probe::Probe;
use crate::zygote::{BOOTSTRAP, COMMAND, MODULES};

type Words = BTreeSet<String>;

/// What `harness.py` tells.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Harness {
    reads: BTreeMap<String, Words>,
    words: BTreeMap<String, Words>,
    sends: BTreeMap<String, Words>,
    layers: Vec<String>,
    frames: BTreeMap<String, SentFrame>,
    /// In hexadecimal, as all that was written.
    reports: Vec<String>,
    job: Value,
    parents_of_mounts: Words,
    constants: BTreeMap<String, u64>,
    max_image_bytes: usize,
    max_text: usize,
}

#[derive(Deserialize)]
struct SentFrame {
    bytes: String,
    is_sent: bool,
}

/// Asks the tree's interpreter.
fn harness() -> Harness {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/tree/python/bin/python3");
    let told = json!({
        "sources": BTreeMap::from(MODULES),
        "others": {"bootstrap": BOOTSTRAP, "command": COMMAND},
        "job": job(RawValue::from_string("[1]".to_owned()).ok().as_deref()).encode(),
    });
    let mut command = Command::new(python);
    command.args(["-I", "-S", "-B", "-c", include_str!("harness.py")]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the tree's interpreter");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(told.to_string().as_bytes()).expect("it reads");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    serde_json::from_slice(&output.stdout).expect("what it tells")
}

fn bytes_of(hexadecimal: &str) -> BytesMut {
    let pair = |at: usize| u8::from_str_radix(&hexadecimal[at..at + 2], 16).expect("hexadecimal");
    (0..hexadecimal.len()).step_by(2).map(pair).collect()
}

fn start(filters: &Filters) -> Start<'_> {
    let config = Config {
        supervisor: 100,
        control_fd: 4,
        ruleset_fd: Some(5),
        root_ruleset_fd: Some(6),
        site: Path::new("/tree/site"),
        matplotlib: Path::new("/state/matplotlib"),
        state_directory: Path::new("/state"),
        places: &[],
        users: &[2],
        shared_memory_bytes: 1,
        probe_user: Some(2),
        find_heir: true,
        namespaces: true,
        first_process: "06".to_owned(),
        seccomp: filters,
        proc_file_rights: 3,
        root_rights: [("/", 4), ("/dev", 5), ("/mnt", 6), ("/var", 7)].into(),
        landlock_scopes_signals: true,
        allow_network: false,
        allow_subprocess: false,
        held: None,
    };
    Start { bootstrap: "the loader's text", sources: [("harness_zygote", "a module's text")].into(), config }
}

fn forks() -> [Fork<'static>; 2] {
    let stage = StageWork { name: "core", imports: &["math"], warm: "import re", kernel_warm: "1" };
    let kernel =
        ForkKernel { dir: Path::new("/state/k1"), uid: Some(2), site: Path::new("/tree/site"), file_size_bytes: 3, processes: 4 };
    [Fork::Zygote { stages: vec![stage] }, Fork::Kernel(kernel)]
}

fn job(input_data: Option<&RawValue>) -> Job<'_> {
    Job {
        code: "print(1)",
        input_data,
        authorized_imports: None,
        packages: Some(JobPackages { directory: "/packages".into(), separate: true }),
        memory_bytes: 1,
        cpu_seconds: 2,
        images_bytes: 3,
        is_kept: false,
    }
}

fn messages() -> [Message; 7] {
    let probes = [(Layer::Seccomp, Probe::Held), (Layer::Landlock, Probe::NOT_THERE)].into();
    [
        Message::Holder { probes, no_shared_memory: Probe::NotTried, heir: Some(1), directory: "/mnt/data".into(), number: None },
        Message::Ready { stage: "core".to_owned(), missing: vec!["a: no such module".to_owned()], number: Some((2, 3)) },
        Message::Importing { name: "math".to_owned() },
        Message::Broken { reason: "ValueError: no".to_owned() },
        Message::Spawned { id: 4, number: Some((5, 6)) },
        Message::Failed { id: 7, reason: "no room".to_owned() },
        Message::Exited { id: 8, status: -9, cpu_seconds: 0.5, peak_memory_kb: 4096 },
    ]
}

fn report() -> Report {
    let error = ReportedError {
        code: Raised::PythonError,
        kind: "ValueError".to_owned(),
        message: "no".to_owned(),
        traceback: "Traceback".to_owned(),
        line: Some(1),
        column: Some(2),
    };
    Report { value: Some("1".to_owned()), error: Some(error), exit: Some(3), warnings: vec!["a note".to_owned()] }
}

fn value(message: &impl serde::Serialize) -> Value {
    serde_json::to_value(message).expect("JSON")
}

fn keys(value: &Value) -> Words {
    value.as_object().expect("an object").keys().cloned().collect()
}

fn words(words: &[&str]) -> Words {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn each_message_and_frame_is_as_in_the_golden_snapshot() {
    let data = RawValue::from_string("{\"a\": 12345678901234567890123}".to_owned()).expect("JSON");
    let frames = Kind::ALL.map(|kind| (format!("{kind:?}"), char::from(kind as u8).to_string()));
    let encoded = job(Some(&data)).encode();
    let (length, text) = encoded.split_at(4);
    assert_eq!(u32::from_le_bytes(length.try_into().expect("four bytes")) as usize, text.len());
    let whole = json!({
        "start": value(&start(&Filters { own_signals: Some("06".to_owned()), ..Filters::default() })),
        "requests": forks().iter().map(|fork| value(&Request { id: 9, fork })).collect::<Vec<_>>(),
        "job": String::from_utf8_lossy(text),
        "messages": messages().iter().map(value).collect::<Vec<_>>(),
        "frames": BTreeMap::from(frames),
        "report": value(&report()),
        "bounds": {
            "frame_header": frames::HEADER,
            "payload": MAX_PAYLOAD,
            "report": MAX_REPORT,
            "shared_memory": SHARED_SIZE,
            "shared_header": SHARED_HEADER,
            "exit_code_of_a_harness_fault": HARNESS_FAULT,
        },
    });
    insta::assert_json_snapshot!("wire", whole);
}

#[test]
fn the_harness_reads_each_field_that_it_is_sent_and_no_other() {
    let harness = harness();
    let filters = Filters::default();
    let start = value(&start(&filters));
    let [zygote, kernel] = forks().map(|fork| value(&Request { id: 1, fork: &fork }));
    let job = value(&job(None));
    // `request` is either of two; `spawn` is one for a kernel, `last` the last stage of a zygote's.
    let read = |names: &[&str]| names.iter().filter_map(|name| harness.reads.get(*name)).flatten().cloned().collect::<Words>();
    assert_eq!(read(&["start"]), keys(&start));
    assert_eq!(read(&["config"]), keys(&start["config"]));
    assert_eq!(read(&["seccomp"]), keys(&start["config"]["seccomp"]));
    assert_eq!(read(&["request", "spawn"]), &keys(&zygote) | &keys(&kernel));
    assert!(read(&["spawn"]).is_subset(&keys(&kernel)));
    assert_eq!(read(&["stage", "last"]), keys(&zygote["stages"][0]));
    assert_eq!(read(&["job"]), keys(&job));
    assert_eq!(read(&["packages"]), keys(&job["packages"]));
    assert_eq!(keys(&harness.job), keys(&job), "as the channel receives it");
    assert_eq!(&harness.parents_of_mounts | &words(&["/"]), keys(&start["config"]["root_rights"]));
    // The rest of what is read by a word is the harness's own.
    let known = ["start", "config", "seccomp", "request", "spawn", "stage", "last", "job", "packages", "error"];
    assert_eq!(harness.reads.keys().cloned().collect::<Words>(), words(&known));
    let forks = [zygote, kernel].map(|fork| fork["fork"].as_str().expect("a word").to_owned());
    assert_eq!(harness.words["request['fork']"], Words::from(forks));
}

#[test]
fn the_harness_says_each_message_that_is_understood_and_no_other() {
    let harness = harness();
    let fields = |message: &Message| {
        let message = value(message);
        let kind = message["kind"].as_str().expect("a word").to_owned();
        (kind, &keys(&message) - &words(&["kind"]))
    };
    assert_eq!(harness.sends, messages().iter().map(fields).collect::<BTreeMap<_, _>>());
    // One finding is none of the layers.
    let told = harness.layers.iter().filter(|word| *word != "no_shared_memory");
    for word in told {
        word.parse::<Layer>().expect("a layer");
    }
    assert!(harness.layers.len() > 7, "{:?}", harness.layers);
}

/// A word or a field from another build is an error that names it.
#[test]
fn what_is_not_understood_is_named() {
    let refused = |text: &str| serde_json::from_str::<Message>(text).err().expect("refused").to_string();
    let moat =
        r#"{"kind": "holder", "probes": {"moat": 0}, "no_shared_memory": 0, "heir": null, "directory": "/", "number": null}"#;
    assert!(refused(moat).contains("moat"), "{}", refused(moat));
    assert!(
        refused(r#"{"kind": "exited", "id": 1, "status": 0, "cpu_seconds": 0, "peak_memory_kb": 0, "core": 1}"#).contains("core")
    );
    assert!(refused(r#"{"kind": "stopped", "id": 1}"#).contains("stopped"));
    assert!(serde_json::from_str::<Report>(r#"{"value": "1", "colour": "red"}"#).is_err());
}

#[test]
fn the_harness_sends_each_kind_of_frame_and_no_other() {
    let harness = harness();
    let name = |kind: Kind| format!("{kind:?}").to_uppercase();
    assert_eq!(harness.frames.keys().cloned().collect::<Words>(), Kind::ALL.into_iter().map(name).collect());
    for kind in Kind::ALL {
        let SentFrame { bytes, is_sent } = &harness.frames[&name(kind)];
        let written = bytes_of(bytes);
        assert_eq!(written[..], [&[kind as u8, 2, 0, 0, 0], &b"ab"[..]].concat(), "{kind:?}");
        assert!(is_sent, "nothing sends {kind:?}");
        assert!(frames::next(&mut bytes_of(bytes)).is_ok_and(|frame| frame.is_some()), "{kind:?}");
    }
}

#[test]
fn reports_are_understood_and_the_longest_is_taken() {
    let mut fields = Words::new();
    let mut errors = Words::new();
    for report in harness().reports {
        let Ok(Some(Frame::Report(payload))) = frames::next(&mut bytes_of(&report)) else {
            panic!("a report of {} bytes is not taken", report.len() / 2)
        };
        serde_json::from_slice::<Report>(&payload).expect("a report");
        let value = serde_json::from_slice::<Value>(&payload).expect("JSON");
        if let Some(error) = value.get("error") {
            errors.extend(keys(error));
        }
        fields.extend(keys(&value));
        for text in [&value["value"], &value["error"]["traceback"]].into_iter().filter_map(Value::as_str) {
            assert!(text.chars().count() <= MAX_TEXT, "{} characters", text.chars().count());
        }
    }
    assert_eq!(fields, keys(&value(&report())));
    assert_eq!(errors, keys(&value(&report())["error"]));
}

#[test]
fn what_stands_in_both_languages_is_the_same() {
    let harness = harness();
    let (_, descriptors) = sandbox::kernel_descriptors(SHARED_SIZE).expect("descriptors");
    let with_ruleset = descriptors.borrow().len() + 1;
    let here = [
        ("SHARED_SIZE", SHARED_SIZE),
        ("SHARED_HEADER", SHARED_HEADER),
        ("FRAME_HEADER", frames::HEADER as u64),
        ("HARNESS_FAULT", u64::from(HARNESS_FAULT.unsigned_abs())),
        ("MAX_IMAGES", MAX_IMAGES as u64),
        ("DESCRIPTORS_OF_A_KERNEL", with_ruleset as u64),
    ];
    assert_eq!(harness.constants, here.map(|(name, number)| (name.to_owned(), number)).into());
    assert!(harness.max_image_bytes + 64 < MAX_PAYLOAD);
    assert!(harness.max_text < MAX_TEXT);
}
