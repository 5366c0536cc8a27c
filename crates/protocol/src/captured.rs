//! Keeps the head and the tail of a stream of any length in bounded memory, and counts what it drops.

use std::collections::VecDeque;

/// One captured stream.
#[derive(Debug)]
pub(crate) struct Captured {
    /// What the head may take, and the tail.
    most: [usize; 2],
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
}

impl Captured {
    /// Keeps at most `cap` bytes, half from the beginning and half from the end.
    pub(crate) fn new(cap: usize) -> Self {
        Self { most: [cap - cap / 2, cap / 2], head: Vec::new(), tail: VecDeque::new(), total: 0 }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let [head, tail] = self.most;
        let room = head - self.head.len();
        let (head, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(head);
        let rest = &rest[rest.len().saturating_sub(tail)..];
        let excess = (self.tail.len() + rest.len()).saturating_sub(tail);
        self.tail.drain(..excess);
        self.tail.extend(rest);
    }

    /// The text with a note where something is missing, and how many bytes that is.
    pub(crate) fn finish(mut self) -> (String, u64) {
        if self.total == (self.head.len() + self.tail.len()) as u64 {
            self.head.extend(self.tail);
            return (text(self.head), 0);
        }
        // Of a character that was cut nothing is kept.
        self.head.truncate(self.head.len() - cut_off(&self.head));
        let rest = self.tail.iter().take(3).take_while(|byte| **byte & 0xC0 == 0x80).count();
        self.tail.drain(..rest);
        let dropped = self.total - (self.head.len() + self.tail.len()) as u64;
        let tail = text(self.tail.into());
        (format!("{}\n… [{dropped} bytes left out] …\n{tail}", text(self.head)), dropped)
    }
}

/// Bytes at the end that begin a character and don't end it.
fn cut_off(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    if std::str::from_utf8(last).is_err_and(|error| error.error_len().is_none()) { last.len() } else { 0 }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_whole_and_what_does_not_keeps_both_ends() {
        let mut captured = Captured::new(10);
        captured.push(b"0123");
        captured.push(b"456789");
        assert_eq!(captured.finish(), ("0123456789".to_owned(), 0));

        let mut captured = Captured::new(10);
        for piece in [&b"01"[..], b"23456", b"789abcdefgh", b"", b"xyz"] {
            captured.push(piece);
        }
        assert_eq!(captured.finish(), ("01234\n… [11 bytes left out] …\nghxyz".to_owned(), 11));
    }

    /// Each end had a U+FFFD that the code had not printed.
    #[test]
    fn no_character_is_cut_in_two() {
        let printed = "aé€𝄞".repeat(10);
        for cap in 8..16 {
            let mut captured = Captured::new(cap);
            captured.push(printed.as_bytes());
            let (text, dropped) = captured.finish();
            let (head, rest) = text.split_once("\n… [").expect("a note");
            let (_, tail) = rest.split_once(" …\n").expect("a note");
            assert!(printed.starts_with(head) && printed.ends_with(tail), "{cap}: {text}");
            let kept = head.len() + tail.len();
            assert!((cap - 6..=cap).contains(&kept) && dropped == (printed.len() - kept) as u64, "{cap}: {text}");
        }
        // What is no text is kept as it is.
        let mut captured = Captured::new(4);
        captured.push(b"a\xff---\xff\xff");
        assert_eq!(captured.finish(), ("a\u{fffd}\n… [3 bytes left out] …\n\u{fffd}\u{fffd}".to_owned(), 3));
    }

    #[test]
    fn an_odd_limit_is_used_to_its_last_byte() {
        let mut captured = Captured::new(5);
        captured.push(b"01234");
        assert_eq!(captured.finish(), ("01234".to_owned(), 0));
        let mut captured = Captured::new(1);
        captured.push(b"0");
        captured.push(b"1");
        assert_eq!(captured.finish(), ("0\n… [1 bytes left out] …\n".to_owned(), 1));
    }

    #[test]
    fn bytes_that_are_no_text_become_replacement_characters() {
        let mut captured = Captured::new(10);
        captured.push(b"a\xffb");
        assert_eq!(captured.finish().0, "a\u{fffd}b");
    }
}
