//! One contract: the same call gives the same answer through every door.
//!
//! Rule: `parity/corpus.json` goes through all doors, and each field of each answer is held to that of the first. What
//! differs is in `parity/differences.json` with its reason, and so in docs/doors.md: a difference that is not written
//! there fails, and so does one that is and no longer occurs. Of what changes from run to run only the value is passed
//! over, never whether there is one.

mod doors;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use self::doors::{Answer, Door};
use crate::index::Index;

const CORPUS: &str = include_str!("parity/corpus.json");
const DIFFERENCES: &str = include_str!("parity/differences.json");
/// Around them in the page for people.
const START: &str = "<!-- differences -->\n";
const END: &str = "<!-- /differences -->";

/// One call, and enough about its answer to know that it shows what it is for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    tool: Option<String>,
    /// Its lines.
    code: Option<Vec<String>>,
    /// The other arguments, as they are sent.
    arguments: Option<Box<RawValue>>,
    /// `success`, the error's code, or `protocol_error`; `failure` where there is neither.
    outcome: String,
    /// What the answer must have.
    #[serde(default)]
    about: Vec<String>,
}

impl Case {
    fn tool(&self) -> &str {
        self.tool.as_deref().unwrap_or("execute_python")
    }

    fn code(&self) -> Option<String> {
        self.code.as_ref().map(|lines| lines.join("\n"))
    }

    fn other_arguments(&self) -> &str {
        self.arguments.as_ref().map_or("{}", |arguments| arguments.get())
    }

    /// The message that asks for it. Its arguments are no tree on the way: that would change numbers and names.
    fn message(&self, id: u64, meta: &Value) -> String {
        let others = self.other_arguments();
        let others = others[1..others.len() - 1].trim();
        let code = self.code().map(|code| format!("\"code\":{}", json!(code)));
        let arguments = code.into_iter().chain((!others.is_empty()).then(|| others.to_owned()));
        let arguments = arguments.collect::<Vec<_>>().join(",");
        format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{}","arguments":{{{arguments}}},"_meta":{meta}}}}}"#,
            self.tool()
        )
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    volatile: Vec<Volatile>,
    differences: Vec<Difference>,
}

/// A value that changes from run to run.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Volatile {
    /// Without what tells one member of a list from another.
    field: String,
    /// All, when there are none.
    #[serde(default)]
    cases: Vec<String>,
    /// It may also not be there.
    #[serde(default)]
    may_be_missing: bool,
    reason: String,
}

impl Volatile {
    fn is(&self, case: &str, field: &str) -> bool {
        let shape = match (field.find('['), field.rfind(']')) {
            (Some(start), Some(end)) => format!("{}[]{}", &field[..start], &field[end + 1..]),
            _ => field.to_owned(),
        };
        shape == self.field && (self.cases.is_empty() || self.cases.iter().any(|name| name == case))
    }

    fn occurs(&self, cases: &[Case], answers: &[(&str, Vec<Answer>)]) -> bool {
        let mut asked = answers.iter().flat_map(|(_, answers)| cases.iter().zip(answers));
        asked.any(|(case, answer)| {
            answer.as_ref().is_ok_and(|answer| fields(case, answer, &[]).keys().any(|field| self.is(&case.name, field)))
        })
    }
}

/// What is another at these doors than at the first one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    doors: Vec<String>,
    fields: Vec<String>,
    /// What some of them are there.
    #[serde(default)]
    there: Fields,
    cases: Vec<String>,
    reason: String,
}

/// An answer's members, those of objects and of lists of objects by their path.
type Fields = BTreeMap<String, Value>;

fn flatten(path: &str, value: &Value, fields: &mut Fields) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, value) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, value, fields);
            }
        }
        Value::Array(values) if !values.is_empty() && values.iter().all(Value::is_object) => {
            for value in values {
                let name = value["name"].as_str().or(value["package"].as_str()).unwrap_or_default();
                flatten(&format!("{path}[{name}]"), value, fields);
            }
        }
        _ => assert_eq!(fields.insert(path.to_owned(), value.clone()), None, "{path} is there twice"),
    }
}

fn fields(case: &Case, answer: &Value, volatile: &[Volatile]) -> Fields {
    let mut fields = Fields::new();
    flatten("", answer, &mut fields);
    for volatile in volatile {
        if volatile.may_be_missing {
            fields.retain(|field, _| !volatile.is(&case.name, field));
        }
        for (_, value) in fields.iter_mut().filter(|(field, _)| volatile.is(&case.name, field)) {
            *value = json!("varies");
        }
    }
    fields
}

fn outcome(answer: &Value) -> &str {
    match (answer["success"].as_bool(), answer["error"]["code"].as_str()) {
        (Some(true), _) => "success",
        (_, Some(code)) => code,
        _ if answer.get("protocol_error").is_some() => "protocol_error",
        _ => "failure",
    }
}

fn is_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

/// What each case came to at a door, in the corpus's order.
fn ask_all(door: &dyn Door, cases: &[Case]) -> Vec<Answer> {
    let next = AtomicUsize::new(0);
    let answers = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..door.at_once() {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(number) else { break };
                    let answer = door.ask(case);
                    answers.lock().unwrap().insert(number, answer);
                }
            });
        }
    });
    answers.into_inner().unwrap().into_values().collect()
}

/// The whole corpus through all doors at the same time.
fn ask_everywhere(cases: &[Case]) -> Vec<(&'static str, Vec<Answer>)> {
    let index = Index::start();
    for (name, version) in [("good-one", "1.0"), ("other-one", "2.0"), ("numpy", "0.1")] {
        index.add_module(name, version, &[]);
    }
    let ask = |door| ask_all(&*doors::open(door, &index), cases);
    std::thread::scope(|scope| {
        let asking = doors::NAMES.map(|door| (door, scope.spawn(move || ask(door))));
        let answers = asking.map(|(door, answers)| (door, answers.join().unwrap_or_else(|_| panic!("{door} failed"))));
        answers.into()
    })
}

/// Cases that don't show what they are for.
fn empty_cases(cases: &[Case], first: &[Answer]) -> String {
    let mut told = String::new();
    for (case, answer) in cases.iter().zip(first) {
        let answer = answer.as_ref().unwrap_or_else(|reason| panic!("{}: {reason}", case.name));
        if outcome(answer) != case.outcome {
            let _ = writeln!(told, "{}: came to {}, not {}: {answer}", case.name, outcome(answer), case.outcome);
        }
        for field in case.about.iter().filter(|field| !is_something(&answer[field.as_str()])) {
            let _ = writeln!(told, "{}: is about {field} and has none: {answer}", case.name);
        }
    }
    told
}

/// By door, case and field: the two values.
type Found<'a> = BTreeMap<(&'a str, &'a str, String), String>;

fn compare<'a>(cases: &'a [Case], answers: &[(&'a str, Vec<Answer>)], volatile: &[Volatile]) -> Found<'a> {
    let mut found = Found::new();
    let (first_door, first) = &answers[0];
    for (door, answers) in &answers[1..] {
        for ((case, first), answer) in cases.iter().zip(first).zip(answers) {
            let mut add = |field: &str, differs| found.insert((*door, case.name.as_str(), field.to_owned()), differs);
            let (first, answer) = match (first, answer) {
                (Ok(first), Ok(answer)) => (fields(case, first, volatile), fields(case, answer, volatile)),
                (_, Err(reason)) | (Err(reason), _) => {
                    add(reason, String::new());
                    continue;
                }
            };
            for field in first.keys().chain(answer.keys()).collect::<BTreeSet<_>>() {
                let (one, other) = (first.get(field), answer.get(field));
                if one != other {
                    add(field, format!("\n    {first_door}: {}\n    {door}: {}", shortened(one), shortened(other)));
                }
            }
        }
    }
    found
}

fn shortened(value: Option<&Value>) -> String {
    let text = value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    match text.char_indices().nth(600) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}

/// Every door, case and field that is written down as another.
fn listed(written: &[Difference]) -> BTreeSet<(&str, &str, String)> {
    let mut listed = BTreeSet::new();
    for Difference { doors, fields, cases, .. } in written {
        for (door, case) in doors.iter().flat_map(|door| cases.iter().map(move |case| (door, case))) {
            listed.extend(fields.iter().map(|field| (door.as_str(), case.as_str(), field.clone())));
        }
    }
    listed
}

/// What is another, and not what is written to be there.
fn not_as_there(written: &[Difference], cases: &[Case], answers: &[(&str, Vec<Answer>)]) -> String {
    let mut told = String::new();
    for difference in written {
        for (door, answers) in answers.iter().filter(|(name, _)| difference.doors.iter().any(|door| door == name)) {
            let named = cases.iter().zip(answers).filter(|(case, _)| difference.cases.contains(&case.name));
            for (case, answer) in named.filter_map(|(case, answer)| Some((case, answer.as_ref().ok()?))) {
                let fields = fields(case, answer, &[]);
                for (field, expected) in difference.there.iter().filter(|(field, value)| fields.get(*field) != Some(*value)) {
                    let is = shortened(fields.get(field));
                    let _ = writeln!(told, "{door}, {}: {field} is written down as {expected} there, and is {is}", case.name);
                }
            }
        }
    }
    told
}

#[test]
fn every_door_gives_the_same_answer_but_for_what_is_written_down() {
    let cases: Vec<Case> = serde_json::from_str(CORPUS).unwrap();
    let written: Written = serde_json::from_str(DIFFERENCES).unwrap();
    let answers = ask_everywhere(&cases);
    let mut told = empty_cases(&cases, &answers[0].1);
    let found = compare(&cases, &answers, &written.volatile);
    let listed = listed(&written.differences);
    for ((door, case, field), differs) in found.iter().filter(|(difference, _)| !listed.contains(*difference)) {
        let _ = writeln!(told, "{door}, {case}: {field} is another, and that is not written down{differs}");
    }
    for (door, case, field) in listed.iter().filter(|difference| !found.contains_key(*difference)) {
        let _ = writeln!(told, "{door}, {case}: {field} is written down as another, and is not");
    }
    told += &not_as_there(&written.differences, &cases, &answers);
    for volatile in written.volatile.iter().filter(|volatile| !volatile.occurs(&cases, &answers)) {
        let _ = writeln!(told, "{} is written down as volatile, and is nowhere", volatile.field);
    }
    assert!(told.is_empty(), "\n{told}");
}

/// The written list as people read it.
fn in_words(written: &Written) -> String {
    let code = |words: &[String]| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    let mut text = "| door | in the answer | to | why |\n| --- | --- | --- | --- |\n".to_owned();
    for Difference { doors, fields, there, cases, reason } in &written.differences {
        assert!(there.keys().all(|field| fields.contains(field)), "{there:?} is not among {fields:?}");
        let field = |field: &String| match there.get(field) {
            Some(value) => format!("`{field}` (`{value}`)"),
            None => format!("`{field}`"),
        };
        let fields = fields.iter().map(field).collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "| {} | {fields} | {} | {reason} |", code(doors), code(cases));
    }
    text += "\nNot compared, but for whether it is there:\n\n";
    for Volatile { field, cases, may_be_missing, reason } in &written.volatile {
        let cases = if cases.is_empty() { String::new() } else { format!(" of {}", code(cases)) };
        let missing = if *may_be_missing { " (which may also be missing)" } else { "" };
        let _ = writeln!(text, "- `{field}`{cases}{missing}: {reason}");
    }
    text
}

#[test]
fn the_differences_are_published_as_they_are() {
    let written: Written = serde_json::from_str(DIFFERENCES).unwrap();
    let path = homes::repository().join("docs/doors.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(START).unwrap();
    let (published, after) = rest.split_once(END).unwrap();
    let expected = in_words(&written);
    if std::env::var_os("UPDATE_DOORS").is_some() {
        std::fs::write(&path, format!("{before}{START}{expected}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(published, expected, "run `make doors`");
}
