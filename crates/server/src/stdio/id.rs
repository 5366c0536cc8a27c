//! The id of a message that can't be read.
//!
//! Rule: who asked is told which of its questions can't be answered, however broken or long the rest is. Clients write the
//! id first or last: it is looked for along the whole of the text, in bounded memory.

use serde_json::Value;
use serde_json::value::RawValue;

/// An id is a number or a short string.
const MAX_ID_BYTES: usize = 1 << 10;
/// Messages in one text whose ids are kept.
const MAX_IDS: usize = 64;

/// Goes along a text that is, or should be, a message.
#[derive(Default)]
pub(super) struct IdSearch {
    /// How many objects and arrays are open.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The name or the value that is being read, of the outermost object.
    token: Vec<u8>,
    /// The value belongs to the name `id`.
    is_id: bool,
    found: Vec<Box<RawValue>>,
}

impl IdSearch {
    /// The ids of what is in the text, as they are written there: one, unless there is more than one message in it.
    pub(super) fn ids_of(text: &[u8]) -> Vec<Box<RawValue>> {
        let mut search = Self::default();
        search.read(text);
        search.found()
    }

    pub(super) fn found(self) -> Vec<Box<RawValue>> {
        self.found
    }

    /// Reads on.
    pub(super) fn read(&mut self, text: &[u8]) {
        for &byte in text {
            match byte {
                _ if self.in_string => {
                    self.keep(byte);
                    self.in_string = byte != b'"' || self.escaped;
                    self.escaped = byte == b'\\' && !self.escaped;
                }
                b'"' => {
                    self.in_string = true;
                    self.keep(byte);
                }
                b'{' | b'[' => {
                    self.depth += 1;
                    // What is in it is no id.
                    self.begin_token(false);
                }
                b'}' | b']' => {
                    self.end_value();
                    self.depth = self.depth.saturating_sub(1);
                }
                b',' => self.end_value(),
                b':' if self.depth == 1 => self.begin_token(self.token == b"\"id\""),
                byte if byte.is_ascii_whitespace() => {}
                byte => self.keep(byte),
            }
        }
    }

    fn keep(&mut self, byte: u8) {
        if self.depth == 1 && self.token.len() <= MAX_ID_BYTES {
            self.token.push(byte);
        }
    }

    fn begin_token(&mut self, is_id: bool) {
        self.token.clear();
        self.is_id = is_id;
    }

    fn end_value(&mut self) {
        if self.depth != 1 {
            return;
        }
        let fits = self.is_id && self.token.len() <= MAX_ID_BYTES && self.found.len() < MAX_IDS;
        // What can't be read as a value is none that a client could read back.
        let value =
            serde_json::from_slice::<Value>(&self.token).ok().filter(|value| fits && (value.is_number() || value.is_string()));
        let text = value.and_then(|_| String::from_utf8(std::mem::take(&mut self.token)).ok());
        self.found.extend(text.and_then(|text| RawValue::from_string(text).ok()));
        self.begin_token(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_wherever_it_is_and_nothing_else_is_taken_for_it() {
        let deep = "[".repeat(10_000);
        for (text, ids) in [
            (r#"{"jsonrpc":"2.0","id":5,"method":"#, vec!["5"]),
            (r#"{"method":"a","params":{"id":1,"a":[{"id":2}]},"id" : "a\"}" }"#, vec![r#""a\"}""#]),
            (r#"{"id":18446744073709551616,"#, vec!["18446744073709551616"]),
            (r#"{"a":1e400,"id":-1.5}"#, vec!["-1.5"]),
            (r#"{"id":1}{"id":2}"#, vec!["1", "2"]),
            (&format!(r#"{{"id":7,"params":{deep}"#), vec!["7"]),
            (r#"{"params":"\\","id":3}"#, vec!["3"]),
            (r#"{"params":"\",\"id\":3}","x":1}"#, vec![]),
            (r#"{"code":"id","x":"id:3,","params":["id",3]}"#, vec![]),
            // The end of a number that has no end is not known.
            (r#"{"id":5"#, vec![]),
            (r#"{"id":null,"a":{}}{"id":[1],"b":true}{"id":nonsense}{"id":1e400}{"id":"\ud800"}"#, vec![]),
            (r#"[{"id":1},"id",2]"#, vec![]),
            ("}}]]", vec![]),
            ("nonsense", vec![]),
        ] {
            let found = IdSearch::ids_of(text.as_bytes());
            assert_eq!(found.iter().map(|id| id.get()).collect::<Vec<_>>(), ids, "{}", &text[..text.len().min(80)]);
            // In pieces as well.
            let mut search = IdSearch::default();
            text.as_bytes().chunks(3).for_each(|piece| search.read(piece));
            assert_eq!(search.found().len(), ids.len());
        }
        let long = format!(r#"{{"id":"{}","a":1}}"#, "a".repeat(MAX_ID_BYTES));
        assert!(IdSearch::ids_of(long.as_bytes()).is_empty());
    }
}
