//! What a kernel writes to its channel: a stream of frames, in pieces of any size.
//!
//! The decoder must say the same as a reader that has all bytes at hand, whatever the pieces; it must store no more than one
//! frame ahead.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;

#[allow(dead_code, reason = "the engine uses it all")]
#[path = "../../crates/interpreter/src/wire/frames.rs"]
mod frames;

use frames::{BrokenFraming, Frame, HEADER, MAX_PAYLOAD, Report};

/// The frames that are whole, and whether the next can't be one.
type Decoded = (Vec<(u8, Bytes)>, bool);

/// As the contract has it, without care for memory.
fn expected(mut bytes: &[u8]) -> Decoded {
    let mut whole = Vec::new();
    while bytes.len() >= HEADER {
        let length = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
        let longest = if matches!(bytes[0], b'V' | b'Z') { 1 << 20 } else { 6 << 20 };
        if !matches!(bytes[0], b'H' | b'R' | b'B' | b'O' | b'E' | b'I' | b'V' | b'Z' | b'S') || length > longest {
            return (whole, true);
        }
        let Some(payload) = bytes[HEADER..].get(..length) else { break };
        whole.push((bytes[0], Bytes::copy_from_slice(payload)));
        bytes = &bytes[HEADER + length..];
    }
    (whole, false)
}

fn decoded(bytes: &[u8], piece: usize) -> Decoded {
    let (mut buffer, mut whole) = (BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match frames::next(&mut buffer) {
                Ok(Some(frame)) => whole.push(taken_apart(frame)),
                Ok(None) => break,
                Err(BrokenFraming) => return (whole, true),
            }
        }
        assert!(buffer.capacity() <= 2 * (bytes.len() + HEADER + MAX_PAYLOAD), "{} bytes are held", buffer.capacity());
    }
    (whole, false)
}

fn taken_apart(frame: Frame) -> (u8, Bytes) {
    match frame {
        Frame::Handover => (b'H', Bytes::new()),
        Frame::Ready => (b'R', Bytes::new()),
        Frame::Begun => (b'B', Bytes::new()),
        Frame::Sync => (b'S', Bytes::new()),
        Frame::Stdout(payload) => (b'O', payload),
        Frame::Stderr(payload) => (b'E', payload),
        Frame::Image(payload) => (b'I', payload),
        Frame::Report(payload) => (b'V', report(payload)),
        Frame::End(payload) => (b'Z', report(payload)),
    }
}

/// What is in it may be anything; it must be readable or refused.
fn report(payload: Bytes) -> Bytes {
    if let Ok(mut report) = serde_json::from_slice::<Report>(&payload) {
        let exit = report.exit;
        report.amend(Report { exit: Some(7), ..Report::default() });
        assert_eq!(report.exit, exit.or(Some(7)));
    }
    payload
}

fuzz_target!(|input: (u16, &[u8])| {
    let (piece, bytes) = input;
    let mut expected = expected(bytes);
    // Signals have no payload that anybody looks at.
    for (kind, payload) in &mut expected.0 {
        if b"HRBS".contains(kind) {
            payload.clear();
        }
    }
    for piece in [usize::from(piece).max(1), 1 + usize::from(piece) % 7, bytes.len().max(1)] {
        assert_eq!(decoded(bytes, piece), expected, "in pieces of {piece}");
    }
});
