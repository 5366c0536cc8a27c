//! How an outcome becomes the result of a tool.
//!
//! Rule: the JSON text of the first block is the contract, and it says what comes beside it. An answer that goes out as an
//! event is below what clients read of one; what has to go is left out in a fixed order, and the answer says so.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use protocol::{Dropped, Image, Outcome, OutputFile};
use rmcp::RoleServer;
use rmcp::model::{CallToolResult, ContentBlock, ErrorData, RequestId, ResourceContents};
use rmcp::service::RequestContext;
use serde::Serialize;

use crate::message::InEvents;
use crate::service::StructuredContent;

/// Python's clients end a stream with an event above this.
const MAX_EVENT_BYTES: usize = 1 << 20;
/// What is around a result: the message, the event's own lines, what rmcp and `mcp.rs` add.
const FRAME_BYTES: usize = 2 << 10;
/// For the warning that something was left out.
const WARNING_BYTES: usize = 512;

/// Types of text that don't look it.
const TEXT_TYPES: [&str; 7] = [
    "application/json",
    "application/sql",
    "application/toml",
    "application/x-ndjson",
    "application/x-tex",
    "application/xml",
    "application/yaml",
];

/// How many bytes a result may have. `begun`: progress was told already, so that over HTTP the answer is an event too.
pub(crate) fn room(context: &RequestContext<RoleServer>, begun: bool) -> usize {
    let over_http = context.extensions.get::<http::request::Parts>().is_some();
    if over_http && begun || InEvents::of(context) { room_of_event(&context.id) } else { usize::MAX }
}

fn room_of_event(id: &RequestId) -> usize {
    MAX_EVENT_BYTES.saturating_sub(FRAME_BYTES + size(id))
}

/// The answer to `execute_python`, in at most so many bytes.
pub(crate) fn of_outcome(mut outcome: Outcome, structured: StructuredContent, room: usize) -> Result<CallToolResult, ErrorData> {
    let result = whole(&outcome, structured)?;
    if room == usize::MAX || size(&result) <= room {
        return Ok(result);
    }
    drop(result);
    leave_out_attachments(&mut outcome, room);
    let mut result = whole(&outcome, StructuredContent::Never)?;
    // Once is enough; what is cut is measured all the same.
    for _ in 0..8 {
        let excess = size(&result).saturating_sub(room);
        if excess == 0 {
            break;
        }
        cut_texts(&mut outcome, excess + WARNING_BYTES);
        result = whole(&outcome, StructuredContent::Never)?;
    }
    Ok(result)
}

/// A result as structured content and, for clients that read only text, as JSON.
pub(crate) fn of_report(report: &impl Serialize, success: bool) -> Result<CallToolResult, ErrorData> {
    let mut result = of_text(report, success)?;
    result.structured_content = Some(serde_json::to_value(report).map_err(|error| internal(&error))?);
    Ok(result)
}

fn of_text(value: &impl Serialize, success: bool) -> Result<CallToolResult, ErrorData> {
    let text = serde_json::to_string_pretty(value).map_err(|error| internal(&error))?;
    let content = vec![ContentBlock::text(text)];
    Ok(if success { CallToolResult::success(content) } else { CallToolResult::error(content) })
}

fn internal(error: &serde_json::Error) -> ErrorData {
    ErrorData::internal_error(error.to_string(), None)
}

fn whole(outcome: &Outcome, structured: StructuredContent) -> Result<CallToolResult, ErrorData> {
    let is_text_alone = outcome.images.is_empty() && outcome.files.is_empty();
    let is_structured = match structured {
        StructuredContent::Auto => is_text_alone,
        StructuredContent::Always => true,
        StructuredContent::Never => false,
    };
    let (answer, success) = (outcome.answer(), outcome.result.success);
    let mut result = if is_structured { of_report(&answer, success)? } else { of_text(&answer, success)? };
    result.content.extend(outcome.images.iter().map(image_block));
    result.content.extend(outcome.files.iter().filter(|file| file.is_whole()).map(file_block));
    Ok(result)
}

fn image_block(image: &Image) -> ContentBlock {
    ContentBlock::image(BASE64.encode(&image.bytes), image.mime_type)
}

/// Text where it is said to be and is, so that a model can read it.
fn file_block(file: &OutputFile) -> ContentBlock {
    let uri = format!("file:///mnt/data/{}", escaped(&file.name));
    let kind = file.mime_type.as_str();
    let is_text = kind.starts_with("text/") || kind.ends_with("+json") || kind.ends_with("+xml") || TEXT_TYPES.contains(&kind);
    let contents = match std::str::from_utf8(&file.bytes) {
        Ok(text) if is_text => ResourceContents::text(text, uri),
        _ => ResourceContents::blob(BASE64.encode(&file.bytes), uri),
    };
    ContentBlock::resource(contents.with_mime_type(&file.mime_type))
}

/// A path within a URI.
fn escaped(path: &str) -> String {
    let escaped = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    path.bytes().map(escaped).collect()
}

/// Leaves out the images and what is in the files that don't fit, in their order.
fn leave_out_attachments(outcome: &mut Outcome, room: usize) {
    let attached = outcome.images.iter().map(|image| size(&image_block(image)));
    let attached = attached.chain(outcome.files.iter().filter(|file| file.is_whole()).map(|file| size(&file_block(file))));
    let texts = whole(outcome, StructuredContent::Never).map_or(0, |result| size(&result)) - attached.sum::<usize>();
    let mut room = room.saturating_sub(texts + WARNING_BYTES);
    let mut fits = |block: ContentBlock| {
        let bytes = size(&block) + 1;
        let fits = bytes <= room;
        room -= if fits { bytes } else { 0 };
        fits
    };
    let all = (outcome.images.len(), outcome.files.iter().filter(|file| file.is_whole()).count());
    outcome.images.retain(|image| fits(image_block(image)));
    for file in outcome.files.iter_mut().filter(|file| file.is_whole()) {
        if !fits(file_block(file)) {
            file.bytes.clear();
        }
    }
    let kept = (outcome.images.len(), outcome.files.iter().filter(|file| file.is_whole()).count());
    for (what, kept, all, cure) in
        [("images", kept.0, all.0, "make fewer or smaller ones"), ("files", kept.1, all.1, "write smaller ones")]
    {
        if kept < all {
            let note = format!("{} of {all} {what} were left out: {REASON}; {cure}", all - kept);
            outcome.result.warnings.push(note);
        }
    }
}

const REASON: &str = "this answer goes out as an event, and clients read none above 1 MiB";

/// Shortens the longest texts by this many bytes together.
fn cut_texts(outcome: &mut Outcome, excess: usize) {
    let result = &mut outcome.result;
    let mut texts: Vec<&mut String> = vec![&mut result.stdout, &mut result.stderr];
    texts.extend(&mut result.result);
    if let Some(error) = &mut result.error {
        texts.push(&mut error.message);
        texts.extend(&mut error.traceback);
    }
    texts.extend(&mut result.warnings);
    let costs = texts.iter().map(|text| cost(text)).collect::<Vec<_>>();
    let most = level(&costs, excess);
    let cut = texts.into_iter().zip(costs).map(|(text, cost)| if cost > most { cut(text, most) } else { 0 }).collect::<Vec<_>>();
    let (stdout_bytes, stderr_bytes, other) = (cut[0], cut[1], cut[2..].iter().sum::<u64>());
    if stdout_bytes + stderr_bytes > 0 {
        result.truncated = true;
        let dropped = result.dropped.get_or_insert_with(Dropped::default);
        dropped.stdout_bytes += stdout_bytes;
        dropped.stderr_bytes += stderr_bytes;
    }
    result.warnings.push(format!(
        "{stdout_bytes} bytes of stdout, {stderr_bytes} of stderr and {other} of other text were left out: {REASON}; print less"
    ));
}

/// How high a text may be, so that all above it come to at least `excess`.
fn level(costs: &[usize], excess: usize) -> usize {
    let mut sorted = costs.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let mut above = 0;
    for (count, cost) in (1..).zip(&sorted) {
        above += cost;
        // Those above the next one, all cut to the same.
        let most = above.saturating_sub(excess) / count;
        if most >= sorted.get(count).copied().unwrap_or(0) {
            return most;
        }
    }
    0
}

/// What a text takes in the answer: in JSON that is a string in JSON.
fn cost(text: &str) -> usize {
    text.chars().map(cost_of).sum()
}

fn cost_of(character: char) -> usize {
    match character {
        '"' | '\\' => 4,
        '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 3,
        '\0'..='\u{1f}' => 7,
        _ => character.len_utf8(),
    }
}

/// Keeps of a text what costs `most`, half from its beginning and half from its end, and says how many bytes have gone.
fn cut(text: &mut String, most: usize) -> u64 {
    // `\n… [18446744073709551615 bytes left out] …\n`
    let half = most.saturating_sub(64) / 2;
    let end_of = |characters: &mut dyn Iterator<Item = char>| {
        let mut room = half;
        let fits = |character: &char| {
            room.checked_sub(cost_of(*character)).is_some_and(|left| {
                room = left;
                true
            })
        };
        characters.take_while(fits).map(char::len_utf8).sum::<usize>()
    };
    let (head, tail) = (end_of(&mut text.chars()), end_of(&mut text.chars().rev()));
    let dropped = text.len() - head - tail;
    *text = format!("{}\n… [{dropped} bytes left out] …\n{}", &text[..head], &text[text.len() - tail..]);
    dropped as u64
}

/// How long a value is in JSON.
fn size(value: &impl Serialize) -> usize {
    struct Counter(usize);
    impl Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // What can't be written is no answer either.
    serde_json::to_writer(&mut counter, value).map_or(usize::MAX, |()| counter.0)
}

#[cfg(test)]
mod tests {
    use protocol::{ErrorCode, ExecutionError};
    use serde_json::{Value, json};

    use super::*;

    fn outcome() -> Outcome {
        let mut outcome = Outcome::refused(ErrorCode::Internal, "");
        (outcome.result.success, outcome.result.error) = (true, None);
        outcome
    }

    fn told(result: &CallToolResult) -> Value {
        let result = serde_json::to_value(result).expect("JSON");
        serde_json::from_str(result["content"][0]["text"].as_str().expect("text")).expect("JSON in JSON")
    }

    fn image(bytes: usize) -> Image {
        Image { mime_type: "image/png", bytes: vec![0; bytes].into() }
    }

    fn file(name: &str, mime_type: &str, bytes: &[u8]) -> OutputFile {
        OutputFile { name: name.to_owned(), mime_type: mime_type.to_owned(), bytes: bytes.to_vec(), size: bytes.len() as u64 }
    }

    #[test]
    fn what_a_text_costs_is_what_it_takes_in_the_answer() {
        let all = (0..0x500).chain([0x2028, 0xfeff, 0xffff, 0x1f40d]).filter_map(char::from_u32);
        for character in all {
            let text = character.to_string();
            let inner = serde_json::to_string(&text).expect("JSON");
            assert_eq!(cost(&text), size(&inner) - size(&"\"\""), "{character:?}");
        }
    }

    #[test]
    fn structured_content_is_where_it_hides_nothing_unless_it_is_set() {
        let with = |images: usize, files: usize, structured| {
            let mut outcome = outcome();
            outcome.images = vec![image(1); images];
            outcome.files = vec![file("a.csv", "text/csv", b"1"); files];
            let result = of_outcome(outcome, structured, usize::MAX).expect("a result");
            assert_eq!((told(&result)["images"].clone(), result.content.len()), (json!(images), 1 + images + files));
            result.structured_content.inspect(|structured| assert_eq!(structured["images"], images)).is_some()
        };
        for (structured, expected) in [
            (StructuredContent::Auto, [true, false, false]),
            (StructuredContent::Always, [true; 3]),
            (StructuredContent::Never, [false; 3]),
        ] {
            assert_eq!([with(0, 0, structured), with(2, 0, structured), with(0, 1, structured)], expected, "{structured:?}");
        }
    }

    #[test]
    fn files_are_text_where_a_model_can_read_them() {
        let mut outcome = outcome();
        outcome.files = vec![
            file("a b/ä.csv", "text/csv", "ä".as_bytes()),
            file("a.json", "application/json", b"\xff"),
            file("a.ipynb", "application/x-ipynb+json", b"{}"),
            file("a.toml", "application/toml", b"a = 1"),
            file("a.pdf", "application/pdf", b"%PDF"),
            OutputFile { size: 5, ..file("large.bin", "application/octet-stream", b"") },
        ];
        let result = of_outcome(outcome, StructuredContent::Auto, usize::MAX).expect("a result");
        let blocks = serde_json::to_value(&result.content[1..]).expect("JSON");
        let resource = |uri: &str, mime: &str, member: &str, value: &str| json!({"type": "resource", "resource": {"uri": uri, "mimeType": mime, member: value}});
        assert_eq!(
            blocks,
            json!([
                resource("file:///mnt/data/a%20b/%C3%A4.csv", "text/csv", "text", "ä"),
                resource("file:///mnt/data/a.json", "application/json", "blob", "/w=="),
                resource("file:///mnt/data/a.ipynb", "application/x-ipynb+json", "text", "{}"),
                resource("file:///mnt/data/a.toml", "application/toml", "text", "a = 1"),
                resource("file:///mnt/data/a.pdf", "application/pdf", "blob", "JVBERg=="),
            ])
        );
        assert_eq!(told(&result)["files"].as_array().map(Vec::len), Some(6));
    }

    #[test]
    fn an_event_loses_structured_content_first_and_then_the_images_that_do_not_fit() {
        let room = room_of_event(&RequestId::Number(1));
        let mut both = outcome();
        both.result.stdout = "a".repeat(600_000);
        let result = of_outcome(both, StructuredContent::Auto, room).expect("a result");
        assert_eq!((&result.structured_content, told(&result)["truncated"].clone()), (&None, json!(false)));
        let mut outcome = outcome();
        outcome.images = [300_000, 600_000, 200_000, 400_000].map(image).into();
        outcome.files = vec![file("large.csv", "text/csv", &[b'1'; 700_000]), file("small.csv", "text/csv", b"1")];
        let result = of_outcome(outcome, StructuredContent::Always, room).expect("a result");
        assert!(size(&result) <= room);
        let told = told(&result);
        assert_eq!((&told["images"], told["files"].as_array().map(Vec::len), result.content.len()), (&json!(2), Some(2), 4));
        let warnings = told["warnings"].as_array().expect("warnings");
        assert!(warnings[0].as_str().is_some_and(|warning| warning.starts_with("2 of 4 images were left out: ")), "{told}");
        assert!(warnings[1].as_str().is_some_and(|warning| warning.starts_with("1 of 2 files were left out: ")), "{told}");
    }

    /// Control characters take seven bytes each.
    #[test]
    fn the_longest_texts_of_an_event_are_cut_and_counted() {
        let room = room_of_event(&RequestId::String("é".repeat(30_000).into()));
        for fill in ["\0", "a", "🐍", "\"", "\n", "\u{7f}"] {
            let mut outcome = outcome();
            outcome.result.stdout = fill.repeat(1_500_000 / fill.len());
            outcome.result.stderr = fill.repeat(200_000 / fill.len());
            outcome.result.result = Some(fill.repeat(1000));
            outcome.result.warnings = vec!["short".to_owned()];
            let (stdout, stderr) = (outcome.result.stdout.len() as u64, outcome.result.stderr.len() as u64);
            let result = of_outcome(outcome, StructuredContent::Auto, room).expect("a result");
            let bytes = size(&result);
            assert!(bytes <= room && bytes > room - 4000, "{fill:?}: {bytes} of {room}");
            let told = told(&result);
            let kept = |name: &str| told[name].as_str().map_or(0, |text| text.matches(fill).count() * fill.len()) as u64;
            let dropped = |name: &str| told["dropped"][name].as_u64().expect("a number");
            // The note has two line feeds of its own.
            let notes = |dropped: u64| if fill == "\n" && dropped > 0 { 2 } else { 0 };
            assert_eq!(kept("stdout") + dropped("stdout_bytes"), stdout + notes(dropped("stdout_bytes")), "{fill:?}");
            assert_eq!(kept("stderr") + dropped("stderr_bytes"), stderr + notes(dropped("stderr_bytes")), "{fill:?}");
            assert_eq!((&told["truncated"], &told["warnings"][0]), (&json!(true), &json!("short")));
            assert_eq!(told["result"].as_str(), Some(&*fill.repeat(1000)));
        }
    }

    /// A forged report may have all of its texts at their bounds.
    #[test]
    fn an_answer_that_is_long_in_every_part_becomes_an_event() {
        let mut outcome = outcome();
        let long = "\u{1}".repeat(65_000);
        outcome.result.warnings = vec!["\0".repeat(2000); 100];
        (outcome.result.stdout, outcome.result.result) = (long.clone(), Some(long.clone()));
        outcome.result.error = Some(ExecutionError {
            code: ErrorCode::PythonError,
            kind: "\0".repeat(200),
            message: "\0".repeat(8000),
            traceback: Some(long),
            line: None,
            column: None,
        });
        let room = room_of_event(&RequestId::Number(1));
        assert!(size(&of_outcome(outcome, StructuredContent::Auto, room).expect("a result")) <= room);
    }

    #[test]
    fn the_level_takes_off_what_is_too_much() {
        for (costs, excess) in
            [(vec![10, 5, 1], 4), (vec![10, 10, 10], 7), (vec![3, 2], 5), (vec![3, 2], 50), (vec![7], 1), (vec![], 3)]
        {
            let level = level(&costs, excess);
            let taken = costs.iter().map(|cost| cost.saturating_sub(level)).sum::<usize>();
            assert!(
                taken >= excess.min(costs.iter().sum()) && taken < excess + costs.len().max(1),
                "{costs:?} {excess}: {level}"
            );
        }
    }
}
