//! The arguments of one call of a tool, each as the text it came as.
//!
//! Rule: an argument's type is seen by its first character; nothing is built of one that is not of the type that is wanted.
//! What is not as it should be and yet can mean only one thing is taken, with a warning that says how it was read.

use std::fmt::Display;

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use crate::argument_error::{ArgumentError, shortened};
use crate::json::{Members, count_values, kind};

/// What an argument may take that is neither code nor data.
const MAX_SMALL_BYTES: usize = 64 << 10;
/// What each of a list of strings may have: names with versions.
const MAX_ITEM_CHARACTERS: usize = 1000;
/// How many arguments that a tool does not have are named to the caller.
const MAX_UNKNOWN_NAMED: usize = 8;

/// The arguments of one call, in the order they came in. Each is a value that can be built.
#[derive(Debug, Default)]
pub struct Arguments {
    given: Vec<(String, Box<RawValue>)>,
    /// What was understood although it was not as it should be.
    warnings: Vec<String>,
}

impl Arguments {
    /// Takes an object apart.
    ///
    /// # Errors
    /// When it is no object, or the first argument that is no value, although its grammar is right.
    pub fn read(object: &RawValue) -> Result<Self, ArgumentError> {
        match kind(object) {
            "null" => return Ok(Self::default()),
            "an object" => {}
            other => return Err(wrong_type("arguments", "an object", other)),
        }
        let members = Members::read(object.get()).map_err(|error| unreadable("arguments", &error))?;
        Self::new(members.iter().map(|(name, value)| (name.to_owned(), value.to_owned())))
    }

    /// Arguments that were made here.
    ///
    /// # Errors
    /// The first argument that is no value, although its grammar is right.
    pub fn new(arguments: impl IntoIterator<Item = (String, Box<RawValue>)>) -> Result<Self, ArgumentError> {
        let given = arguments.into_iter().collect::<Vec<_>>();
        for (name, value) in &given {
            count_values(value.get()).map_err(|error| unreadable(name, &error))?;
        }
        Ok(Self { given, warnings: Vec::new() })
    }

    /// How long they are as text.
    pub fn bytes(&self) -> usize {
        self.given.iter().map(|(name, value)| name.len() + value.get().len()).sum()
    }

    /// The first that is none of these.
    pub fn unknown(&self, known: &[&str]) -> Option<&str> {
        self.given.iter().map(|(name, _)| name.as_str()).find(|name| !known.contains(name))
    }

    /// Notes something about an argument that its caller should know.
    pub fn warn(&mut self, field: &str, note: impl Display) {
        self.warnings.push(format!("{}: {note}", shortened(field)));
    }

    /// A string of any length, by the first of its names that is given; the empty one is a string too.
    pub(crate) fn long_string(&mut self, names: &[&str], wanted: &str) -> Result<Option<String>, ArgumentError> {
        self.take(names, |_| true).map(|value| string(names[0], wanted, &value)).transpose()
    }

    /// An object of any size, or the text of one.
    pub(crate) fn object(&mut self, name: &str, wanted: &str) -> Result<Option<Box<RawValue>>, ArgumentError> {
        let Some(value) = self.take(&[name], is_given) else { return Ok(None) };
        match kind(&value) {
            "an object" => Ok(Some(value)),
            "a string" => {
                let object = RawValue::from_string(string(name, wanted, &value)?).ok();
                let object = object.filter(|object| kind(object) == "an object");
                let object = object.ok_or_else(|| wrong_type(name, wanted, "a string that holds none"))?;
                count_values(object.get()).map_err(|error| unreadable(name, &error))?;
                self.warn(name, "the object was read from a string of JSON");
                Ok(Some(object))
            }
            other => Err(wrong_type(name, wanted, other)),
        }
    }

    /// A number, or the text of one.
    pub(crate) fn number(&mut self, name: &str, wanted: &str) -> Result<Option<f64>, ArgumentError> {
        let Some(value) = self.take_small(&[name])? else { return Ok(None) };
        match kind(&value) {
            "a number" => serde_json::from_str(value.get()).map(Some).map_err(|error| unreadable(name, &error)),
            "a string" => {
                let text = string(name, wanted, &value)?;
                let number = text.trim().parse::<f64>().ok().filter(|number| !number.is_nan());
                let number = number.ok_or_else(|| wrong_type(name, wanted, &format!("{:?}", shortened(&text))))?;
                self.warn(name, "the number was read from a string");
                Ok(Some(number))
            }
            other => Err(wrong_type(name, wanted, other)),
        }
    }

    /// A short string; null and the empty one are none.
    ///
    /// # Errors
    /// When it is something else.
    pub fn string(&mut self, name: &str, wanted: &str) -> Result<Option<String>, ArgumentError> {
        self.take_small(&[name])?.map(|value| string(name, wanted, &value)).transpose()
    }

    /// A list of short strings, by the first of its names that is given, or one text with them; null is none.
    ///
    /// # Errors
    /// When it is something else, or an item is.
    pub fn strings(&mut self, names: &[&str], wanted: &str, wanted_item: &str) -> Result<Vec<String>, ArgumentError> {
        let name = names[0];
        let Some(mut value) = self.take_small(names)? else { return Ok(Vec::new()) };
        if kind(&value) == "a string" {
            let text = string(name, wanted, &value)?;
            self.warn(name, "the list was read from a string");
            match RawValue::from_string(text.clone()).ok().filter(|list| kind(list) == "an array") {
                Some(list) => value = list,
                None => return parted(&text).into_iter().map(|item| short(name, item)).collect(),
            }
        }
        if kind(&value) != "an array" {
            return Err(wrong_type(name, wanted, kind(&value)));
        }
        let items = serde_json::from_str::<Vec<&RawValue>>(value.get()).map_err(|error| unreadable(name, &error))?;
        let item = |(index, item): (usize, &RawValue)| {
            let field = format!("{name}[{index}]");
            let text = string(&field, wanted_item, item)?;
            short(&field, text)
        };
        items.into_iter().enumerate().map(item).collect()
    }

    /// What a caller should know: also of each argument that is left, that it had no effect. `known`: the names that may be
    /// left, as null. `missed`: what of a value's meaning is not had.
    pub fn finish(mut self, tool: &str, known: &[&str], missed: impl Fn(&str, &RawValue) -> Option<&'static str>) -> Vec<String> {
        let mut left = std::mem::take(&mut self.given);
        left.retain(|(name, _)| !known.contains(&name.as_str()));
        let takes = in_words(known);
        for (name, value) in left.iter().take(MAX_UNKNOWN_NAMED) {
            match missed(name, value) {
                Some(note) => self.warn(name, format_args!("had no effect: {note}")),
                None => self.warn(name, format_args!("is not an argument of {tool} and was ignored; it takes {takes}")),
            }
        }
        if left.len() > MAX_UNKNOWN_NAMED {
            self.warnings.push(format!("{} more arguments were ignored", left.len() - MAX_UNKNOWN_NAMED));
        }
        self.warnings
    }

    /// The value by the first of these names under which there is one.
    fn take(&mut self, names: &[&str], is_one: impl Fn(&RawValue) -> bool) -> Option<Box<RawValue>> {
        let is_given = |value: &RawValue| kind(value) != "null" && is_one(value);
        let at = |name: &&str| self.given.iter().position(|(known, value)| known == name && is_given(value));
        let (name, at) = names.iter().find_map(|name| Some((*name, at(name)?)))?;
        if name != names[0] {
            self.warn(name, format_args!("was taken as {}", names[0]));
        }
        Some(self.given.remove(at).1)
    }

    /// One that is given and small.
    fn take_small(&mut self, names: &[&str]) -> Result<Option<Box<RawValue>>, ArgumentError> {
        match self.take(names, is_given) {
            Some(value) if value.get().len() > MAX_SMALL_BYTES => Err(ArgumentError::new(
                names[0],
                format!("must be at most {MAX_SMALL_BYTES} bytes long, not {}", value.get().len()),
            )),
            value => Ok(value),
        }
    }
}

impl From<Map<String, Value>> for Arguments {
    fn from(arguments: Map<String, Value>) -> Self {
        let given = arguments.into_iter().filter_map(|(name, value)| Some((name, to_raw_value(&value).ok()?))).collect();
        Self { given, warnings: Vec::new() }
    }
}

fn string(name: &str, wanted: &str, value: &RawValue) -> Result<String, ArgumentError> {
    match kind(value) {
        "a string" => serde_json::from_str(value.get()).map_err(|error| unreadable(name, &error)),
        other => Err(wrong_type(name, wanted, other)),
    }
}

/// Clients that fill in every field have empty strings for what is not given.
fn is_given(value: &RawValue) -> bool {
    value.get() != r#""""#
}

fn short(field: &str, text: String) -> Result<String, ArgumentError> {
    if text.chars().count() > MAX_ITEM_CHARACTERS {
        return Err(ArgumentError::new(field, format!("must have at most {MAX_ITEM_CHARACTERS} characters")));
    }
    Ok(text)
}

/// The requirements in one text, parted by lines or commas. A comma that stands within brackets or before a version is part
/// of its requirement, and so is a blank: whether what is left is one, the installer tells.
fn parted(text: &str) -> Vec<String> {
    let mut parts = Vec::<String>::new();
    for line in text.lines() {
        let mut open = 0;
        for (index, piece) in line.split(',').enumerate() {
            let goes_on = index > 0 && (open > 0 || piece.trim_start().starts_with(['<', '>', '=', '!', '~']));
            match parts.last_mut().filter(|_| goes_on) {
                Some(part) => part.extend([",", piece]),
                None => parts.push(piece.to_owned()),
            }
            open += piece.matches('[').count().cast_signed() - piece.matches(']').count().cast_signed();
        }
    }
    parts.iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

/// `a, b and c`
fn in_words(names: &[&str]) -> String {
    match names {
        [] => "none".to_owned(),
        [name] => (*name).to_owned(),
        [names @ .., last] => format!("{} and {last}", names.join(", ")),
    }
}

fn wrong_type(field: &str, wanted: &str, got: &str) -> ArgumentError {
    ArgumentError::new(field, format!("must be {wanted}, not {got}"))
}

fn unreadable(field: &str, error: &serde_json::Error) -> ArgumentError {
    ArgumentError::new(field, format!("can't be read: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: Value) -> Arguments {
        let Value::Object(arguments) = value else { panic!("the case must be an object") };
        arguments.into()
    }

    #[test]
    fn one_text_is_a_list_where_lines_or_commas_part_it() {
        for (text, list) in [
            ("humanize", &["humanize"][..]),
            (" humanize>=4, <5 ", &["humanize>=4, <5"]),
            ("humanize>=4,<5,rich", &["humanize>=4,<5", "rich"]),
            ("a[x,y],b\nc\n\n", &["a[x,y]", "b", "c"]),
            ("[\"a\", \"b>=1,<2\"]", &["a", "b>=1,<2"]),
            ("two words", &["two words"]),
        ] {
            let mut arguments = of(json!({"packages": text}));
            assert_eq!(
                arguments.strings(&["packages"], "a list", "a string"),
                Ok(list.iter().map(ToString::to_string).collect())
            );
            assert_eq!(arguments.finish("a_tool", &["packages"], |_, _| None), ["packages: the list was read from a string"]);
        }
        for (value, error) in [
            (json!("[1]"), "packages[0]: must be a string, not a number"),
            (json!({"a": 1}), "packages: must be a list, not an object"),
            (json!("a".repeat(1001)), "packages: must have at most 1000 characters"),
        ] {
            let refused = of(json!({"packages": value})).strings(&["packages"], "a list", "a string");
            assert_eq!(refused.expect_err(error).to_string(), error);
        }
    }

    /// Sixty thousand commas within brackets: the time grows with the text, not with its square.
    #[test]
    fn a_long_text_of_commas_is_read_at_once() {
        let text = format!("a[{}", ",".repeat(60_000));
        assert_eq!(parted(&text), [text]);
    }

    #[test]
    fn what_is_left_is_named_within_bounds() {
        let many = (0..20).map(|n| (format!("{n}{}", "a".repeat(2000)), json!(n)));
        let warnings = of(Value::Object(many.collect())).finish("a_tool", &["a", "b", "c"], |_, _| None);
        assert_eq!(warnings.len(), 9);
        assert!(warnings[0].contains("is not an argument of a_tool and was ignored; it takes a, b and c"), "{}", warnings[0]);
        assert_eq!(warnings[8], "12 more arguments were ignored");
        assert!(warnings.concat().len() < 4000);
    }
}
