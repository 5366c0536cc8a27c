//! The lines of an `.env` file.
//!
//! Rule: a value is what is written. `$NAME` stands for nothing, or a password with a `$` in it would be another one, and what
//! is in the environment would get into settings that are told. Quotes keep blanks, `#` and quotes: '…' as they are, "…" with
//! `\n`, `\"`, `\\` and `\$`. Outside of them ` #` begins a comment.

/// What a line must be.
pub(crate) const FORM: &str = "NAME=value, with values that have blanks or quotes in quotes";

/// Name and value of each line that has one.
///
/// # Errors
/// The number of a line that can't be understood.
pub(crate) fn parse(text: &str) -> Result<Vec<(String, String)>, usize> {
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(number, line)| assignment(line).ok_or(number)).collect()
}

fn assignment(line: &str) -> Option<(String, String)> {
    let (name, rest) = line.split_once('=')?;
    let name = name.trim_end();
    let name = name.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t'])).map_or(name, str::trim_start);
    let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "_.".contains(letter));
    is_name.then_some(())?;
    let rest = rest.trim_start();
    let (value, after) = match rest.chars().next() {
        Some('\'') => rest[1..].split_once('\'').map(|(value, after)| (value.to_owned(), after))?,
        Some('"') => quoted(&rest[1..])?,
        Some('#') | None => (String::new(), ""),
        Some(_) => bare(rest)?,
    };
    // A comment needs a blank before it: 'a'#b is a slip.
    let ends = after.is_empty() || after.starts_with([' ', '\t']) && after.trim_start().starts_with('#');
    ends.then(|| (name.to_owned(), value))
}

fn bare(rest: &str) -> Option<(String, &str)> {
    let (value, after) = rest.split_at(rest.find([' ', '\t']).unwrap_or(rest.len()));
    (!value.contains(['\'', '"'])).then(|| (value.to_owned(), after))
}

/// Up to the closing quote, and what is behind it.
fn quoted(rest: &str) -> Option<(String, &str)> {
    let (mut value, mut letters) = (String::new(), rest.chars());
    loop {
        value.push(match letters.next()? {
            '"' => return Some((value, letters.as_str())),
            '\\' => match letters.next()? {
                'n' => '\n',
                plain @ ('"' | '\\' | '$') => plain,
                _ => return None,
            },
            plain => plain,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(line: &str) -> Option<String> {
        assignment(line).map(|(_, value)| value)
    }

    /// `$NAME` was the value of a variable, and nothing where there is none: `pa$$word` came out as `pa`.
    #[test]
    fn a_dollar_stands_for_itself() {
        for text in ["pa$$word", "$HOME", "${HOME}", "a$", "1$2"] {
            for line in [format!("X={text}"), format!("X='{text}'"), format!("X=\"{text}\"")] {
                assert_eq!(value(&line).as_deref(), Some(text), "{line}");
            }
        }
    }

    #[test]
    fn values_are_as_written_and_quotes_keep_what_would_end_them() {
        for (line, taken) in [
            ("X=", ""),
            ("X= # nothing", ""),
            ("X=#", ""),
            ("X=a#b", "a#b"),
            ("X=a # b", "a"),
            ("X = a", "a"),
            ("export X=a=b", "a=b"),
            ("export\tX=a", "a"),
            ("X='a # \"b\"' # c", "a # \"b\""),
            (r#"X="a\n\"b\\\$""#, "a\n\"b\\$"),
            (r"X=C:\new", r"C:\new"),
            ("X='é'", "é"),
        ] {
            assert_eq!(value(line).as_deref(), Some(taken), "{line}");
        }
        assert_eq!(assignment("export=a").map(|(name, _)| name).as_deref(), Some("export"));
        for line in ["X", "=a", "1X=a", "X Y=a", "X=a b", "X=it's", "X='a", "X='a'b", "X='a'#b", "X=\"a", r#"X="\q""#, r#"X="\"#]
        {
            assert_eq!(value(line), None, "{line}");
        }
    }

    #[test]
    fn the_line_that_is_wrong_is_counted_from_one() {
        assert_eq!(parse("\n# c\r\nX=1\r\n Y=2\n"), Ok(vec![("X".into(), "1".into()), ("Y".into(), "2".into())]));
        assert_eq!(parse("X=1\n\nno words\n"), Err(3));
    }
}
