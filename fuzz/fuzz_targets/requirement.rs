//! What a call requires: a name with versions, or a refusal.
//!
//! What is taken is handed to an installer's command line and files as a line: it must name no option, place or file, and be
//! read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, reason = "installs use it all")]
#[path = "../../crates/packages/src/error.rs"]
mod error;
#[allow(dead_code, reason = "installs use it all")]
#[path = "../../crates/packages/src/installed.rs"]
mod installed;
#[allow(dead_code, reason = "installs use it all")]
#[path = "../../crates/packages/src/names.rs"]
mod names;
#[allow(dead_code, reason = "installs use it all")]
#[path = "../../crates/packages/src/pin.rs"]
mod pin;
#[allow(dead_code, reason = "installs use it all")]
#[path = "../../crates/packages/src/requirement.rs"]
mod requirement;

use error::Reason;
use installed::Package;
use requirement::{Against, Parsed, name_of, parse};

fuzz_target!(|text: &str| {
    let name = name_of(text);
    match parse(text) {
        Ok((Parsed::Wanted(wanted), _)) => {
            let line = wanted.line();
            assert_eq!(name, wanted.name);
            let is_plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
            assert!(wanted.name.chars().all(is_plain) && wanted.name.starts_with(|first: char| first != '-'), "{line:?}");
            assert!(line.chars().all(|letter| letter.is_ascii_graphic() || letter == ' '), "{line:?}");
            assert!(!line.contains(['/', '\\', '@', ';', '#', '$', '"', '\'', '%']), "{line:?}");
            match parse(&line) {
                Ok((Parsed::Wanted(again), _)) => assert_eq!(again, wanted, "{line:?}"),
                other => panic!("{line:?} was taken, and is now {other:?}"),
            }
            let package = Package { name: wanted.name.clone(), version: "1.0".into(), import_name: String::new() };
            assert_ne!((wanted.against(&[package]), wanted.against(&[])), (Against::Absent, Against::Satisfied));
        }
        Ok((Parsed::StandardLibrary(module), note)) => {
            assert_eq!(name, module);
            assert!(note.is_some_and(|note| note.contains(&module)));
        }
        Err(error) => {
            assert_eq!(error.reason, Reason::InvalidRequirement);
            assert!(error.message.len() < 4000 && !error.message.chars().any(char::is_control), "{}", error.message);
        }
    }
});
