//! JSON that is checked and passed on without being built.
//!
//! Rule: what a client sends costs a small multiple of its text. A tree of values costs a hundred times as much, so only
//! what is small becomes one.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::argument_error::shortened;

/// More than any message, its params or a tool's arguments have.
const MAX_MEMBERS: usize = 64;
/// More than any name of these has.
const MAX_NAME_BYTES: usize = 1000;

/// The members of an object, each with its value as text. No two have one name.
#[derive(Clone, Debug, Default)]
pub struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Members<'a> {
    /// The members of the object that `text` is.
    ///
    /// # Errors
    /// When it is no JSON; or, as an error of data, when it is no object, one with too many members or too long a name, or
    /// when a name is there twice.
    pub fn read(text: &'a str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }

    /// The value of a member.
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.iter().find_map(|(known, value)| (known == name).then_some(value))
    }

    /// Takes a member out.
    pub fn remove(&mut self, name: &str) -> Option<&'a RawValue> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(at).1)
    }

    /// Gives a member that is there another value.
    pub fn replace(&mut self, name: &str, value: &'a RawValue) {
        self.0.iter_mut().filter(|(known, _)| known == name).for_each(|member| member.1 = value);
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shallow;
        impl<'de> Visitor<'de> for Shallow {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Members::default();
                while let Some(name) = map.next_key::<String>()? {
                    if members.get(&name).is_some() {
                        return Err(A::Error::custom(format!("{} is there twice", shortened(&name))));
                    }
                    if name.len() > MAX_NAME_BYTES {
                        return Err(A::Error::custom(format!("{} is too long a name", shortened(&name))));
                    }
                    if members.0.len() == MAX_MEMBERS {
                        return Err(A::Error::custom(format!("there are more than {MAX_MEMBERS} members")));
                    }
                    members.0.push((name, map.next_value()?));
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Shallow)
    }
}

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.iter() {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// What a value is, in words. Looks at its first character only.
pub fn kind(value: &RawValue) -> &'static str {
    match value.get().as_bytes().first() {
        Some(b'n') => "null",
        Some(b't' | b'f') => "a boolean",
        Some(b'"') => "a string",
        Some(b'[') => "an array",
        Some(b'{') => "an object",
        _ => "a number",
    }
}

/// How many values and names `text` is made of.
///
/// # Errors
/// What makes it no value although its grammar is right: half of a surrogate pair, a number beyond all bounds, more than
/// 128 levels.
pub fn count_values(text: &str) -> serde_json::Result<usize> {
    let mut count = 0;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Counter(&mut count).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(count)
}

struct Counter<'a>(&'a mut usize);

impl Counter<'_> {
    #[expect(clippy::unnecessary_wraps, reason = "what every visit answers")]
    fn one<E>(self) -> Result<(), E> {
        *self.0 += 1;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Counter<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counter<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.one()
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        self.one()
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        self.one()
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        self.one()
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        self.one()
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        self.one()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        *self.0 += 1;
        while items.next_element_seed(Counter(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        *self.0 += 1;
        while members.next_key_seed(Counter(self.0))?.is_some() {
            members.next_value_seed(Counter(self.0))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_one_level_deep_and_written_as_they_were() {
        let members = Members::read(r#" {"a": [1,  {"b": 2}], "\u0063": 18446744073709551616.50} "#).expect("an object");
        assert_eq!(members.get("a").map(RawValue::get), Some(r#"[1,  {"b": 2}]"#));
        assert_eq!(serde_json::to_string(&members).expect("text"), r#"{"a":[1,  {"b": 2}],"c":18446744073709551616.50}"#);
    }

    #[test]
    fn no_object_two_of_a_name_and_too_many_members_are_errors_of_data() {
        let many = format!("{{{}}}", (0..=MAX_MEMBERS).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(","));
        let long = format!("{{\"{}\": 1}}", "é".repeat(MAX_NAME_BYTES));
        for text in ["[]", "7", "\"a\"", r#"{"a": 1, "\u0061": 2}"#, &many, &long] {
            assert!(Members::read(text).expect_err(text).is_data(), "{text}");
        }
        for text in ["", "{", "{\"a\":}", "{\"a\": 1} 2", "{'a': 1}", "{\"a\": NaN}", "{\"a\": 01}"] {
            assert!(!Members::read(text).expect_err(text).is_data(), "{text}");
        }
    }

    /// What `serde_json` takes as a value, to the word of its refusals.
    #[test]
    fn what_is_counted_is_what_a_tree_could_be_built_of() {
        let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        let (deep, too_deep, digits) = (deep(127), deep(128), "9".repeat(400));
        for text in [
            "1",
            "[]",
            "{}",
            r#"{"a": [1, -2.5e3, "\ud83d\ude00", null, true]}"#,
            r#""\ud800""#,
            r#"{"\udc00": 1}"#,
            "1e999",
            "-1e999",
            "NaN",
            "[1,]",
            "18446744073709551616",
            &deep,
            &too_deep,
            &digits,
            "1 2",
            "\"\n\"",
        ] {
            let built = serde_json::from_str::<serde_json::Value>(text).map(drop).map_err(|error| error.to_string());
            assert_eq!(count_values(text).map(drop).map_err(|error| error.to_string()), built, "{text}");
        }
        assert_eq!(count_values(r#"{"a": [1, 2], "b": null}"#).expect("a value"), 7);
    }
}
