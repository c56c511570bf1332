//! What the fuzz targets of `tests/fuzz` see: each takes any bytes, and must return.

use crate::protocol::{Frame, HEADER};
use crate::session::decoders::Decoders;

/// A cap that fuzzed lengths pass as often as not.
const CAP: usize = 1 << 16;

/// Decodes a stream of frames, whole and in pieces; both must find the same.
pub fn frames(bytes: &[u8]) {
    let whole = frames_of(bytes, bytes.len());
    // The first byte says where to cut.
    let cut = bytes.first().map_or(0, |byte| usize::from(*byte)).min(bytes.len());
    assert_eq!(whole, frames_of(bytes, cut), "pieces are decoded as the whole");
}

/// Decodes what arrives up to `cut`, then the rest; what was found, as sizes and numbers.
fn frames_of(bytes: &[u8], cut: usize) -> Vec<Result<(u64, usize, usize), String>> {
    let (mut found, mut start) = (Vec::new(), 0);
    for end in [cut, bytes.len()] {
        loop {
            match Frame::decode(&bytes[start..end], CAP) {
                Ok(None) => break,
                Ok(Some((frame, used))) => {
                    assert!(used == HEADER + 4 + frame.first.len() + frame.second.len());
                    found.push(Ok((frame.header.request, frame.first.len(), frame.second.len())));
                    start += used;
                }
                Err(malformed) => {
                    found.push(Err(malformed.to_string()));
                    return found;
                }
            }
        }
    }
    found
}

/// Decodes a frame's body in every way that a host does.
pub fn bodies(bytes: &[u8]) {
    thread_local! {
        static DECODERS: Decoders = Decoders::new();
    }
    let (Some((flags, rest)), mut first) = (bytes.split_first(), 0) else { return };
    // Where the first part ends.
    if let Some((low, _)) = rest.split_first_chunk::<2>() {
        first = usize::from(u16::from_le_bytes(*low)).min(rest.len() - 2);
    }
    let Some((first, second)) = rest.get(2..).and_then(|rest| rest.split_at_checked(first)) else { return };
    DECODERS.with(|decoders| decoders.decode_as_everything(*flags, first, second));
}

/// Reads a connection's bytes as HTTP requests, whole and in pieces; both must find the same.
#[cfg(feature = "server")]
pub fn http(bytes: &[u8]) {
    let whole = crate::tracker::read_requests(&[bytes]);
    // The last byte says where to cut: the first is nearly always a letter of a method.
    let cut = bytes.last().map_or(0, |byte| usize::from(*byte)).min(bytes.len());
    let (first, second) = bytes.split_at(cut);
    assert_eq!(whole, crate::tracker::read_requests(&[first, second]), "pieces are read as the whole");
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(whole, crate::tracker::read_requests(&single), "single bytes are read as the whole");
}
