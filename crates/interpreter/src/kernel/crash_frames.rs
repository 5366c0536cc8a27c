//! Keeps the harness's own frames out of what Python writes to standard error when it crashes (`faulthandler`).
//!
//! Rule: only whole lines that are such a frame are taken out. A line is held back for no longer than it may yet become one.

/// How such a line begins.
const FRAME: &[u8] = b"  File \"<";
/// A longer one is somebody else's.
const MAX_LINE: usize = 512;

/// Looks at standard error as it comes.
#[derive(Debug, Default)]
pub(super) struct CrashFrames {
    /// The beginning of a line that may become a frame.
    held: Vec<u8>,
    /// The last line has been passed on in part.
    within_a_line: bool,
    /// The last line was taken out.
    behind_a_frame: bool,
}

impl CrashFrames {
    /// What is passed on of these bytes, and of what was held back before them.
    pub(super) fn without(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut text = std::mem::take(&mut self.held);
        text.extend_from_slice(bytes);
        let mut rest = Vec::with_capacity(text.len());
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let is_whole = line.ends_with(b"\n");
            let may_be_frame = !self.within_a_line && (line.starts_with(FRAME) || FRAME.starts_with(line));
            if may_be_frame && !is_whole && line.len() < MAX_LINE {
                self.held = line.to_vec();
            } else if may_be_frame && is_whole && is_of_harness(line, self.behind_a_frame) {
                self.behind_a_frame = true;
            } else {
                rest.extend_from_slice(line);
                (self.within_a_line, self.behind_a_frame) = (!is_whole, false);
            }
        }
        rest
    }

    /// What is still held back, when something else comes: it became nothing.
    pub(super) fn held(&mut self) -> Vec<u8> {
        self.within_a_line |= !self.held.is_empty();
        std::mem::take(&mut self.held)
    }

    /// Something was passed on by another way.
    pub(super) fn passed(&mut self, text: &[u8]) {
        if let Some(last) = text.last() {
            (self.within_a_line, self.behind_a_frame) = (*last != b'\n', false);
        }
    }
}

/// `behind_one`: the frame that called this one was taken out.
fn is_of_harness(line: &[u8], behind_one: bool) -> bool {
    let Ok(line) = std::str::from_utf8(line) else { return false };
    // The interpreter's own start. A traceback has a comma there.
    let is_start =
        line.starts_with("  File \"<string>\", line ") && line.trim_end().ends_with(" in <module>") && !line.contains(", in ");
    line.starts_with("  File \"<harness ") || behind_one && is_start
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "Fatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n  \
        File \"<cell>\", line 2 in f\n  File \"<harness harness_cell>\", line 40 in run\n  File \"<string>\", line 1 in <module>\n";
    const LEFT: &str = "Fatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n  \
        File \"<cell>\", line 2 in f\n";

    /// In pieces of this size, and which of them were passed on at once.
    fn passed(text: &str, size: usize) -> String {
        let mut frames = CrashFrames::default();
        let mut passed = text.as_bytes().chunks(size).flat_map(|piece| frames.without(piece)).collect::<Vec<_>>();
        passed.extend(frames.held());
        String::from_utf8(passed).expect("text")
    }

    #[test]
    fn a_crash_shows_the_cells_frames_and_none_of_ours_in_whatever_pieces_it_comes() {
        for size in [1, 2, 7, 13, 64, 1000] {
            assert_eq!(passed(DUMP, size), LEFT, "{size}");
        }
    }

    #[test]
    fn all_else_is_passed_on() {
        let traceback =
            "  File \"<string>\", line 1, in <module>\n  File \"<stdin>\", line 1 in x\nno  File \"<harness a>\"\n  Fi";
        let long = format!("  File \"<harness {}", "x".repeat(MAX_LINE));
        for text in [traceback, "  5 %\r 10 %", long.as_str(), "\n\n", "  "] {
            for size in [1, 5, 1000] {
                assert_eq!(passed(text, size), text, "{size}");
            }
        }
    }

    /// A piece that was held back came behind what was printed after it.
    #[test]
    fn what_comes_by_another_way_finds_nothing_held_back() {
        let mut frames = CrashFrames::default();
        assert_eq!(frames.without(b"  "), b"");
        assert_eq!(frames.held(), b"  ");
        frames.passed(b"hello");
        assert_eq!(frames.without(b"  File \"<harness x\n"), b"  File \"<harness x\n", "it is the rest of a line");
        frames.passed(b"whole\n");
        assert_eq!(frames.without(b"  File \"<harness x\n"), b"");
    }

    #[test]
    fn a_line_that_can_be_no_frame_does_not_wait_for_its_end() {
        let mut frames = CrashFrames::default();
        assert_eq!(frames.without(b"10 %"), b"10 %");
        assert_eq!(frames.without(b"  File \"<"), b"  File \"<", "the line had begun before");
        assert_eq!(frames.without(b"\n  Fil"), b"\n");
        assert_eq!(frames.without(b"m"), b"  Film");
    }
}
