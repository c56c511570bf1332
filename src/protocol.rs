//! Frames of the worker protocol, version 1: pure bytes, no I/O. For writing workers and hosts.
//!
//! `docs/worker-protocol.md` is the reference. A frame is a 16-byte header and a body; a body has
//! two parts, the first small (JSON or numbers), the second raw (code, a repr). Everything that
//! arrives is untrusted: decoding is total and every size is checked before it is used.
//!
//! ```
//! use remuda::protocol::{self, Frame, Kind};
//!
//! let bytes = protocol::encode(Kind::Execute, 7, b"", b"1 + 1", protocol::DEFAULT_FRAME_CAP).unwrap();
//! let (frame, used) = Frame::decode(&bytes, protocol::DEFAULT_FRAME_CAP)?.unwrap();
//! assert_eq!((frame.header.kind, frame.header.request, frame.second), (Kind::Execute, 7, &b"1 + 1"[..]));
//! assert_eq!(used, bytes.len());
//! # Ok::<(), protocol::Malformed>(())
//! ```

use std::fmt;

/// Version of the protocol that this crate speaks.
pub const VERSION: u64 = 1;
/// Bytes of a frame's header.
pub const HEADER: usize = 16;
/// Largest body by default, in bytes.
pub const DEFAULT_FRAME_CAP: usize = 64 << 20;
/// Smallest frame cap that can be configured.
pub const MIN_FRAME_CAP: usize = 64 << 10;
/// Largest frame cap that can be configured.
pub const MAX_FRAME_CAP: usize = 1 << 30;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Kind {
    /// Host: here are your channels.
    Go = 1,
    /// Worker: I can take requests.
    Ready = 2,
    /// Host: import these modules, run this code, remember the state as warm.
    Warm = 3,
    /// Worker: the report of it.
    Warmed = 4,
    /// Host: run code.
    Execute = 5,
    /// Host: call a function.
    Call = 6,
    /// Worker: a request ended with this value.
    Result = 7,
    /// Worker: a request ended with this exception.
    Error = 8,
    /// Host: interrupt this request.
    Cancel = 9,
    /// Host: go back to the warm state.
    Reset = 10,
    /// Worker: done, and this could not be undone.
    Clean = 11,
    /// Host: are you there?
    Ping = 12,
    /// Worker: yes.
    Pong = 13,
    /// Host: leave in good order.
    Shutdown = 14,
    /// Worker, where no pipe carries it: the running code wrote this.
    Output = 15,
    /// Worker: the running code shows something, in one or more forms.
    Display = 16,
    /// Worker: how far the running code says it is.
    Progress = 17,
    /// Worker: the running code wants a line of input.
    Input = 18,
    /// Host: here it is.
    InputReply = 19,
    /// Either: bytes that belong to a request, or to its result.
    Attachment = 20,
    /// Host: what is in your namespace, what did your user leave?
    Inspect = 21,
    /// Worker: this.
    Inspected = 22,
    /// Worker: what the request has used so far.
    Usage = 23,
    /// Host: run no requests any more, make sessions of copies of yourself.
    Freeze = 24,
    /// Worker: I am a template now, or why I cannot be one.
    Frozen = 25,
    /// Host, on the control channel: make a session; here are its control channel and its outputs.
    Fork = 26,
    /// Worker, on the control channel: here is a descriptor of its process.
    Forked = 27,
    /// Host, on the control channel: nobody needs the number of that process any more.
    Reap = 28,
}

/// Flags of frames, by kind.
pub mod flag {
    /// *result*: there is a value; the second part is its repr.
    pub const HAS_VALUE: u8 = 1;
    /// *result*: the first part is the value as JSON.
    pub const IS_JSON: u8 = 2;
    /// *result*: the first part says why there is no JSON.
    pub const NOT_JSON: u8 = 4;
    /// *result*: the first part is the size that the JSON would have had.
    pub const TOO_LARGE: u8 = 8;
    /// *result* and *error*: the code noticed that it was cancelled.
    pub const STOPPED: u8 = 16;
    /// *result*: the value is a byte string, the first part is that.
    pub const IS_BYTES: u8 = 32;
    /// *execute* and *call*: the host answers *input*.
    pub const ANSWERS_INPUT: u8 = 1;
    /// *execute* and *call*: send *usage* before the answer.
    pub const MEASURE: u8 = 2;
    /// *execute* and *call*: run it only if the reset before undid everything; else drop it.
    pub const ONLY_IF_CLEAN: u8 = 4;
    /// *reset*: such a request follows, so output of the last user must not come any more.
    pub const REQUEST_FOLLOWS: u8 = 1;
    /// *reset*: the request has been sent already; that it will be run is told by the memory file, and the
    /// answer to the reset comes with the next one.
    pub const REQUEST_IS_HERE: u8 = 2;
    /// *output*: it went to stderr; without it, to stdout.
    pub const STDERR: u8 = 1;
    /// *input reply*: there is no more input.
    pub const END_OF_INPUT: u8 = 1;
    /// *input reply*: nobody answered in time.
    pub const NO_ANSWER: u8 = 2;
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the body.
    pub length: usize,
    /// What the frame is.
    pub kind: Kind,
    /// Flags; what they mean depends on the kind.
    pub flags: u8,
    /// Number of the request that it belongs to.
    pub request: u64,
}

/// A whole frame, borrowed from the buffer it arrived in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its header.
    pub header: Header,
    /// The small, structured part of the body.
    pub first: &'a [u8],
    /// The raw part of the body.
    pub second: &'a [u8],
}

/// Bytes that are no frame of this protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub(crate) String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

impl Kind {
    /// The kind with this number.
    pub fn from_byte(byte: u8) -> Option<Kind> {
        Kind::ALL.get(usize::from(byte).wrapping_sub(1)).copied()
    }

    /// Every kind, in the order of their numbers.
    const ALL: [Kind; 28] = [
        Kind::Go,
        Kind::Ready,
        Kind::Warm,
        Kind::Warmed,
        Kind::Execute,
        Kind::Call,
        Kind::Result,
        Kind::Error,
        Kind::Cancel,
        Kind::Reset,
        Kind::Clean,
        Kind::Ping,
        Kind::Pong,
        Kind::Shutdown,
        Kind::Output,
        Kind::Display,
        Kind::Progress,
        Kind::Input,
        Kind::InputReply,
        Kind::Attachment,
        Kind::Inspect,
        Kind::Inspected,
        Kind::Usage,
        Kind::Freeze,
        Kind::Frozen,
        Kind::Fork,
        Kind::Forked,
        Kind::Reap,
    ];

    /// Whether a worker may send it any number of times before its answer.
    pub fn is_event(self) -> bool {
        use Kind::{Attachment, Display, Input, Output, Progress, Usage};
        matches!(self, Output | Display | Progress | Input | Attachment | Usage)
    }
}

impl Header {
    /// Decodes the first 16 bytes of `bytes`; `None` while there are fewer.
    ///
    /// # Errors
    /// [`Malformed`]: a length over `cap`, an unknown kind, reserved bytes that are not zero.
    pub fn decode(bytes: &[u8], cap: usize) -> Result<Option<Header>, Malformed> {
        let Some((header, _)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [l0, l1, l2, l3, kind, flags, z0, z1, request @ ..] = *header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > cap {
            let start = &header[..4];
            let text = std::str::from_utf8(start).ok().filter(|_| start.iter().all(u8::is_ascii_graphic));
            // What a program prints where its frames should be.
            let hint = text.map(|text| format!(", or a text that begins with {text:?}")).unwrap_or_default();
            return Err(Malformed(format!("a frame of {length} bytes is over the cap of {cap}{hint}")));
        }
        let Some(kind) = Kind::from_byte(kind) else {
            return Err(Malformed(format!("unknown frame kind {kind}")));
        };
        if (z0, z1) != (0, 0) {
            return Err(Malformed("reserved header bytes are not zero".to_owned()));
        }
        Ok(Some(Header { length, kind, flags, request: u64::from_le_bytes(request) }))
    }
}

impl<'a> Frame<'a> {
    /// Decodes the frame at the start of `bytes`; `None` while it is incomplete. The second value is
    /// the number of bytes that it took.
    ///
    /// # Errors
    /// [`Malformed`]: as [`Header::decode`], or parts that do not fit into the body.
    pub fn decode(bytes: &'a [u8], cap: usize) -> Result<Option<(Frame<'a>, usize)>, Malformed> {
        let Some(header) = Header::decode(bytes, cap)? else { return Ok(None) };
        let end = HEADER + header.length;
        let Some(body) = bytes.get(HEADER..end) else { return Ok(None) };
        let Some((size, parts)) = body.split_first_chunk::<4>() else {
            return Err(Malformed("a body is shorter than its first length".to_owned()));
        };
        let size = u32::from_le_bytes(*size) as usize;
        let Some((first, second)) = parts.split_at_checked(size) else {
            return Err(Malformed("the first part of a body is longer than the body".to_owned()));
        };
        Ok(Some((Frame { header, first, second }, end)))
    }
}

/// Encodes a frame without flags. `None` if its body does not fit into `cap` bytes.
pub fn encode(kind: Kind, request: u64, first: &[u8], second: &[u8], cap: usize) -> Option<Vec<u8>> {
    encode_with_flags(kind, 0, request, first, second, cap)
}

/// Encodes a frame. `None` if its body does not fit into `cap` bytes.
pub fn encode_with_flags(
    kind: Kind,
    flags: u8,
    request: u64,
    first: &[u8],
    second: &[u8],
    cap: usize,
) -> Option<Vec<u8>> {
    let body = 4 + first.len() + second.len();
    if body > cap {
        return None;
    }
    let mut frame = Vec::with_capacity(HEADER + body);
    frame.extend_from_slice(&u32::try_from(body).ok()?.to_le_bytes());
    frame.extend_from_slice(&[kind as u8, flags, 0, 0]);
    frame.extend_from_slice(&request.to_le_bytes());
    frame.extend_from_slice(&u32::try_from(first.len()).ok()?.to_le_bytes());
    frame.extend_from_slice(first);
    frame.extend_from_slice(second);
    Some(frame)
}

/// The numbers of a `Go` frame's first part.
pub fn go_numbers(session: u64, frame_cap: usize, history: u32) -> Vec<u8> {
    [VERSION, session, frame_cap as u64, u64::from(history)]
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

/// Whether every integer in a JSON text fits into 64 bits, so that a parser into doubles and
/// 64-bit integers loses nothing.
pub(crate) fn integers_fit(json: &[u8]) -> bool {
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        match byte {
            b'"' => at = end_of_string(json, at),
            b'-' | b'0'..=b'9' => {
                let end = number_end(json, at);
                let token = &json[at..end];
                let integer = !token.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E'));
                // 18 digits always fit.
                if integer && token.len() > 18 {
                    let text = std::str::from_utf8(token).unwrap_or_default();
                    if text.parse::<i64>().is_err() && text.parse::<u64>().is_err() {
                        return false;
                    }
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    true
}

/// The index behind the string that starts at `start`.
fn end_of_string(json: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = json.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

fn number_end(json: &[u8], start: usize) -> usize {
    json[start..]
        .iter()
        .position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
        .map_or(json.len(), |length| start + length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAP: usize = 1 << 16;

    #[test]
    fn what_is_encoded_is_decoded() {
        let bytes = encode(Kind::Execute, 7, b"{}", b"1+1", CAP).expect("fits");
        let (frame, used) = Frame::decode(&bytes, CAP).expect("well formed").expect("complete");
        assert_eq!((frame.first, frame.second, used), (&b"{}"[..], &b"1+1"[..], bytes.len()));
        assert_eq!(frame.header.kind, Kind::Execute);
        assert_eq!(frame.header.request, 7);
    }

    #[test]
    fn a_cut_frame_is_incomplete_at_every_length() {
        let bytes = encode(Kind::Result, 1, b"2", b"2", CAP).expect("fits");
        for length in 0..bytes.len() {
            assert_eq!(Frame::decode(&bytes[..length], CAP), Ok(None));
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_before_its_body_is_read() {
        let mut bytes = encode(Kind::Result, 1, b"", b"", CAP).expect("fits");
        bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Frame::decode(&bytes, CAP).is_err());
        assert!(encode(Kind::Execute, 1, b"", &vec![0; CAP], CAP).is_none());
    }

    #[test]
    fn only_integers_beyond_64_bits_do_not_fit() {
        for fits in
            ["1", "-9223372036854775808", "18446744073709551615", "1e400", "0.1234567890123456789012", "[]"]
        {
            assert!(integers_fit(fits.as_bytes()), "{fits}");
        }
        assert!(integers_fit(br#""99999999999999999999 \" 99999999999999999999""#));
        for lossy in ["18446744073709551616", "-9223372036854775809", r#"{"a": [1, 99999999999999999999]}"#] {
            assert!(!integers_fit(lossy.as_bytes()), "{lossy}");
        }
    }

    #[test]
    fn every_kind_has_its_number() {
        for byte in 0..=u8::MAX {
            match Kind::from_byte(byte) {
                Some(kind) => assert_eq!(kind as u8, byte),
                None => assert!(byte == 0 || usize::from(byte) > Kind::ALL.len(), "{byte}"),
            }
        }
    }

    proptest! {
        #[test]
        fn decoding_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frame::decode(&bytes, CAP);
            let _ = integers_fit(&bytes);
        }

        #[test]
        fn a_valid_header_with_any_body_is_total(
            kind in 0_u8..30, flags: u8, request: u64, body in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut bytes = u32::try_from(body.len()).expect("small").to_le_bytes().to_vec();
            bytes.extend_from_slice(&[kind, flags, 0, 0]);
            bytes.extend_from_slice(&request.to_le_bytes());
            bytes.extend_from_slice(&body);
            if let Ok(Some((frame, used))) = Frame::decode(&bytes, CAP) {
                prop_assert_eq!(frame.first.len() + frame.second.len() + 4 + HEADER, used);
            }
        }
    }
}
