//! Keeps the head and the tail of a stream of any length in bounded memory, and counts what it drops.

use std::collections::VecDeque;

/// One captured stream.
#[derive(Debug)]
pub(crate) struct Captured {
    half: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
}

impl Captured {
    /// Keeps at most `cap` bytes, half from the beginning and half from the end.
    pub(crate) fn new(cap: usize) -> Self {
        Self { half: cap / 2, head: Vec::new(), tail: VecDeque::new(), total: 0 }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = self.half - self.head.len();
        let (head, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(head);
        let rest = &rest[rest.len().saturating_sub(self.half)..];
        let excess = (self.tail.len() + rest.len()).saturating_sub(self.half);
        self.tail.drain(..excess);
        self.tail.extend(rest);
    }

    /// The text with a note where something is missing, and how many bytes that is.
    pub(crate) fn finish(mut self) -> (String, u64) {
        let dropped = self.total - (self.head.len() + self.tail.len()) as u64;
        if dropped == 0 {
            self.head.extend(self.tail);
            return (text(self.head), 0);
        }
        let tail = text(self.tail.into());
        (format!("{}\n… [{dropped} bytes left out] …\n{tail}", text(self.head)), dropped)
    }
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

    #[test]
    fn bytes_that_are_no_text_become_replacement_characters() {
        let mut captured = Captured::new(10);
        captured.push(b"a\xffb");
        assert_eq!(captured.finish().0, "a\u{fffd}b");
    }
}
