//! What a handler answers: a value, bytes, nothing, or a failure.

use std::error::Error;
use std::fmt::{self, Write as _};

use serde::Serialize;
use serde_json::json;

use super::outbox::Outbox;
use crate::protocol::{Kind, flag};

/// A repr is cut at this many bytes.
const REPR_CAP: usize = 64 << 10;
/// Each text of an error is cut at this many bytes.
const TEXT_CAP: usize = 256 << 10;

/// What a handler returns; `?` turns any error into a [`Failure`].
pub type Result<T = Answer> = std::result::Result<T, Failure>;

/// The value of a request.
#[derive(Clone, Debug, Default)]
#[must_use = "an answer does nothing until the handler returns it"]
pub struct Answer {
    form: Form,
    repr: Option<String>,
}

#[derive(Clone, Debug, Default)]
enum Form {
    #[default]
    None,
    Json(String),
    NotJson(String),
    Bytes(Vec<u8>),
}

impl Answer {
    /// No value: what a function without a result returns.
    pub fn none() -> Answer {
        Answer::default()
    }

    /// A value that goes to the host as JSON. What JSON cannot hold (a map whose keys are no
    /// strings) arrives as a value that is omitted, with the reason; NaN and infinities are null.
    pub fn value<T: Serialize + ?Sized>(value: &T) -> Answer {
        let form = match serde_json::to_string(value) {
            Ok(json) => Form::Json(json),
            Err(error) => Form::NotJson(error.to_string()),
        };
        Answer { form, repr: None }
    }

    /// A byte string, which travels as it is.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Answer {
        Answer { form: Form::Bytes(bytes.into()), repr: None }
    }

    /// Shows the value like this to people, instead of as its JSON or its size. Cut at 64 KiB.
    pub fn with_repr(mut self, text: impl Into<String>) -> Answer {
        self.repr = Some(text.into());
        self
    }

    /// Sends the *result* frame.
    pub(super) fn send(self, outbox: &Outbox, request: u64, flags: u8) {
        let (form, body, shown) = match &self.form {
            Form::None => {
                outbox.send(Kind::Result, flags, request, b"", b"");
                return;
            }
            Form::Json(json) => (flag::IS_JSON, json.as_bytes(), json.as_str()),
            Form::NotJson(reason) => (flag::NOT_JSON, cut(reason, TEXT_CAP / 8).as_bytes(), ""),
            Form::Bytes(bytes) => (flag::IS_BYTES, bytes.as_slice(), ""),
        };
        let sized = format!("{} bytes", body.len());
        let repr = match &self.repr {
            Some(repr) => repr,
            None if form == flag::IS_BYTES => &sized,
            None => shown,
        };
        let flags = flags | flag::HAS_VALUE;
        if outbox.fits(body.len(), 0) {
            let room = outbox.cap - 4 - body.len();
            let repr = cut(repr, REPR_CAP.min(room));
            outbox.send(Kind::Result, flags | form, request, body, repr.as_bytes());
        } else {
            let size = body.len().to_string();
            let repr = cut(repr, REPR_CAP.min(outbox.cap / 2));
            outbox.send(Kind::Result, flags | flag::TOO_LARGE, request, size.as_bytes(), repr.as_bytes());
        }
    }
}

impl From<()> for Answer {
    fn from((): ()) -> Answer {
        Answer::none()
    }
}

impl From<serde_json::Value> for Answer {
    fn from(value: serde_json::Value) -> Answer {
        Answer::value(&value)
    }
}

/// Why a request failed: what the host finds in [`Execution::error`](crate::Execution::error).
///
/// Any error becomes one by `?`: its type without its path is the kind, its sources are listed in
/// the traceback. (A `Failure` is no `std::error::Error` itself: it could not be told from its cause.)
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a failure does nothing until the handler returns it"]
pub struct Failure {
    kind: String,
    message: String,
    traceback: String,
}

impl Failure {
    /// A failure of this kind; by custom a name such as `NotFound`.
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Failure {
        Failure { kind: kind.into(), message: message.into(), traceback: String::new() }
    }

    /// What else there is to say: where it happened, what led to it.
    pub fn with_traceback(mut self, traceback: impl Into<String>) -> Failure {
        self.traceback = traceback.into();
        self
    }

    /// The request was cancelled.
    pub(super) fn cancelled() -> Failure {
        Failure::new("Cancelled", "the request was cancelled")
    }

    /// Sends an *error* frame of this kind of answer, cut to what a frame can hold.
    pub(super) fn send(&self, outbox: &Outbox, request: u64, flags: u8) {
        let mut limit = TEXT_CAP;
        loop {
            let body = json!({
                "type": cut(&self.kind, limit),
                "message": cut(&self.message, limit),
                "traceback": cut(&self.traceback, limit),
            });
            // A control character takes six bytes of JSON: how much fits is known afterwards only.
            if outbox.send(Kind::Error, flags, request, body.to_string().as_bytes(), b"") || limit == 0 {
                return;
            }
            limit /= 2;
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        let path = std::any::type_name::<E>();
        let path = path.split_once('<').map_or(path, |(path, _)| path);
        let kind = path.rsplit_once("::").map_or(path, |(_, name)| name);
        let mut traceback = String::new();
        let mut source = error.source();
        while let Some(cause) = source {
            // Writing to a string does not fail.
            let _ = writeln!(traceback, "caused by: {cause}");
            source = cause.source();
        }
        Failure::new(kind, error.to_string()).with_traceback(traceback)
    }
}

/// The first `limit` bytes of a text, and not half a character more.
pub(super) fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Frame, MIN_FRAME_CAP};

    fn sent(send: impl FnOnce(&Outbox)) -> (u8, Vec<u8>, Vec<u8>) {
        let (read_end, write_end) = rustix::pipe::pipe().expect("pipe");
        rustix::pipe::fcntl_setpipe_size(&write_end, 1 << 20).expect("room");
        let outbox = Outbox::new(write_end, MIN_FRAME_CAP);
        send(&outbox);
        let mut buffer = vec![0; 1 << 20];
        let count = rustix::io::read(&read_end, &mut buffer).expect("read");
        let (frame, used) =
            Frame::decode(&buffer[..count], MIN_FRAME_CAP).expect("well formed").expect("whole");
        assert_eq!(used, count, "one frame");
        (frame.header.flags, frame.first.to_vec(), frame.second.to_vec())
    }

    #[test]
    fn a_value_that_leaves_little_room_has_a_short_repr_and_one_over_the_cap_its_size() {
        let fits = "x".repeat(MIN_FRAME_CAP - 4 - 2);
        let (flags, first, second) = sent(|outbox| Answer::value(&fits).send(outbox, 1, 0));
        assert_eq!((flags, first.len(), second.len()), (flag::HAS_VALUE | flag::IS_JSON, fits.len() + 2, 0));
        let (flags, first, _) = sent(|outbox| Answer::value(&[fits.as_str(); 2]).send(outbox, 1, 0));
        assert_eq!(flags, flag::HAS_VALUE | flag::TOO_LARGE);
        assert_eq!(first, (2 * (fits.len() + 2) + 3).to_string().as_bytes());
        let (flags, first, second) = sent(|outbox| Answer::bytes(vec![7; MIN_FRAME_CAP]).send(outbox, 1, 0));
        assert_eq!((flags, first), (flag::HAS_VALUE | flag::TOO_LARGE, b"65536".to_vec()));
        assert_eq!(second, b"65536 bytes");
    }

    #[test]
    fn what_json_cannot_hold_is_a_value_with_a_reason() {
        let map = std::collections::BTreeMap::from([((1, 2), 3)]);
        let (flags, first, _) = sent(|outbox| Answer::value(&map).send(outbox, 1, 0));
        assert_eq!(flags, flag::HAS_VALUE | flag::NOT_JSON);
        assert!(String::from_utf8(first).expect("text").contains("key"));
        let (flags, first, second) = sent(|outbox| Answer::none().send(outbox, 1, 0));
        assert_eq!((flags, first.len(), second.len()), (0, 0, 0));
    }

    #[test]
    fn an_error_is_cut_until_its_json_fits() {
        let long = "\u{1}é".repeat(1 << 20);
        let failure = Failure::new("Long", long.clone()).with_traceback(long);
        let (_, first, _) = sent(|outbox| failure.send(outbox, 1, flag::STOPPED));
        let body: serde_json::Value = serde_json::from_slice(&first).expect("JSON");
        assert_eq!(body["type"], "Long");
        assert!(body["message"].as_str().expect("text").len() > 1 << 10);
    }

    #[test]
    fn an_error_of_another_type_brings_its_name_and_its_causes() {
        let error = "x".parse::<i32>().map_err(std::io::Error::other).unwrap_err();
        let failure = Failure::from(error);
        assert_eq!(failure.to_string(), "Error: invalid digit found in string");
        let error = "x".parse::<i32>().unwrap_err();
        assert_eq!(Failure::from(error).kind, "ParseIntError");
    }
}
