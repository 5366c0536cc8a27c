//! The arguments of one call of a tool, each as the text it came as.
//!
//! Rule: an argument's type is seen by its first character; nothing is built of one that is not of the type that is wanted.

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use crate::json::{Members, count_values, kind};
use crate::request::ArgumentError;

/// What an argument may take that is neither code nor data.
const MAX_SMALL_BYTES: usize = 64 << 10;
/// What each of a list of strings may have: names with versions.
const MAX_ITEM_CHARACTERS: usize = 1000;

/// The arguments of one call, in the order they came in. Each is a value that can be built.
#[derive(Debug, Default)]
pub struct Arguments(Vec<(String, Box<RawValue>)>);

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
        let arguments = arguments.into_iter().collect::<Vec<_>>();
        for (name, value) in &arguments {
            count_values(value.get()).map_err(|error| unreadable(name, &error))?;
        }
        Ok(Self(arguments))
    }

    /// How long they are as text.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.get().len()).sum()
    }

    /// The first that is none of these.
    pub fn unknown(&self, known: &[&str]) -> Option<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).find(|name| !known.contains(name))
    }

    /// A string of any length, also where it is null.
    pub(crate) fn long_string(&self, name: &str, wanted: &str) -> Result<Option<String>, ArgumentError> {
        self.get(name).map(|value| string(name, wanted, value)).transpose()
    }

    /// An object of any size.
    pub(crate) fn take_object(&mut self, name: &str, wanted: &str) -> Result<Option<Box<RawValue>>, ArgumentError> {
        let Some(at) = self.0.iter().position(|(known, _)| known == name) else { return Ok(None) };
        match kind(&self.0[at].1) {
            "null" => Ok(None),
            "an object" => Ok(Some(self.0.swap_remove(at).1)),
            other => Err(wrong_type(name, wanted, other)),
        }
    }

    pub(crate) fn number(&self, name: &str, wanted: &str) -> Result<Option<f64>, ArgumentError> {
        let read = |value: &RawValue| match kind(value) {
            "a number" => serde_json::from_str(value.get()).map_err(|error| unreadable(name, &error)),
            other => Err(wrong_type(name, wanted, other)),
        };
        self.small(name)?.map(read).transpose()
    }

    /// A short string; null is none.
    ///
    /// # Errors
    /// When it is something else.
    pub fn string(&self, name: &str, wanted: &str) -> Result<Option<String>, ArgumentError> {
        self.small(name)?.map(|value| string(name, wanted, value)).transpose()
    }

    /// A list of short strings; null is none.
    ///
    /// # Errors
    /// When it is something else, or an item is.
    pub fn strings(&self, name: &str, wanted: &str, wanted_item: &str) -> Result<Vec<String>, ArgumentError> {
        let Some(value) = self.small(name)? else { return Ok(Vec::new()) };
        if kind(value) != "an array" {
            return Err(wrong_type(name, wanted, kind(value)));
        }
        let items = serde_json::from_str::<Vec<&RawValue>>(value.get()).map_err(|error| unreadable(name, &error))?;
        let item = |(index, item): (usize, &RawValue)| {
            let field = format!("{name}[{index}]");
            let text = string(&field, wanted_item, item)?;
            if text.chars().count() > MAX_ITEM_CHARACTERS {
                return Err(ArgumentError::new(field, format!("must have at most {MAX_ITEM_CHARACTERS} characters")));
            }
            Ok(text)
        };
        items.into_iter().enumerate().map(item).collect()
    }

    fn get(&self, name: &str) -> Option<&RawValue> {
        self.0.iter().find_map(|(known, value)| (known == name).then_some(&**value))
    }

    /// One that is given, not null, and small.
    fn small(&self, name: &str) -> Result<Option<&RawValue>, ArgumentError> {
        match self.get(name).filter(|value| kind(value) != "null") {
            Some(value) if value.get().len() > MAX_SMALL_BYTES => {
                Err(ArgumentError::new(name, format!("must be at most {MAX_SMALL_BYTES} bytes long, not {}", value.get().len())))
            }
            value => Ok(value),
        }
    }
}

impl From<Map<String, Value>> for Arguments {
    fn from(arguments: Map<String, Value>) -> Self {
        Self(arguments.into_iter().filter_map(|(name, value)| Some((name, to_raw_value(&value).ok()?))).collect())
    }
}

fn string(name: &str, wanted: &str, value: &RawValue) -> Result<String, ArgumentError> {
    match kind(value) {
        "a string" => serde_json::from_str(value.get()).map_err(|error| unreadable(name, &error)),
        other => Err(wrong_type(name, wanted, other)),
    }
}

fn wrong_type(field: &str, wanted: &str, got: &str) -> ArgumentError {
    ArgumentError::new(field, format!("must be {wanted}, not {got}"))
}

fn unreadable(field: &str, error: &serde_json::Error) -> ArgumentError {
    ArgumentError::new(field, format!("can't be read: {error}"))
}
