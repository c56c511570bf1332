//! From frames to results: what a worker's answer means.

use serde::Deserialize;
use serde_json::Value;

use super::execution::{ExecutionError, Omitted};
use super::features::Features;
use crate::protocol::{Frame, Kind, flag, integers_fit};

/// A decoded answer to *execute* or *call*.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) value: Value,
    pub(crate) repr: Option<String>,
    pub(crate) omitted: Option<Omitted>,
    pub(crate) bytes: Option<Vec<u8>>,
    pub(crate) error: Option<ExecutionError>,
    /// The code noticed that it was asked to stop.
    pub(crate) stopped: bool,
}

impl Answer {
    /// Decodes a *result* or *error* frame; anything else breaks the protocol.
    pub(crate) fn decode(frame: &Frame<'_>) -> Result<Answer, String> {
        let flags = frame.header.flags;
        let mut answer = Answer { stopped: flags & flag::STOPPED != 0, ..Answer::default() };
        match frame.header.kind {
            Kind::Error => answer.error = Some(decode_error(frame.first)?),
            Kind::Result if flags & flag::HAS_VALUE == 0 => {}
            Kind::Result => {
                answer.repr = Some(text(frame.second));
                if flags & flag::IS_BYTES != 0 {
                    answer.bytes = Some(frame.first.to_vec());
                    return Ok(answer);
                }
                match decode_value(flags, frame.first)? {
                    Ok(value) => answer.value = value,
                    Err(omitted) => answer.omitted = Some(omitted),
                }
            }
            other => return Err(format!("it answered an execution with {other:?}")),
        }
        Ok(answer)
    }
}

/// The value of a result, or why there is none. JSON that our parser refuses (too deep, a number
/// beyond a double) is a value that was omitted, not a broken protocol.
fn decode_value(flags: u8, first: &[u8]) -> Result<Result<Value, Omitted>, String> {
    if flags & flag::IS_JSON != 0 {
        if !integers_fit(first) {
            return Ok(Err(Omitted::InexactNumber));
        }
        return Ok(serde_json::from_slice(first).map_err(|error| Omitted::NotJson(error.to_string())));
    }
    if flags & flag::TOO_LARGE != 0 {
        let bytes = text(first).parse().map_err(|_| "a size that is no number".to_owned())?;
        return Ok(Err(Omitted::TooLarge { bytes }));
    }
    if flags & flag::NOT_JSON != 0 {
        return Ok(Err(Omitted::NotJson(text(first))));
    }
    Err("a value without a form".to_owned())
}

pub(crate) fn decode_error(first: &[u8]) -> Result<ExecutionError, String> {
    serde_json::from_slice(first).map_err(|error| format!("an error frame that cannot be read: {error}"))
}

/// What a worker says of itself when it is ready.
#[derive(Debug, Deserialize)]
pub(crate) struct ReadyReport {
    pub(crate) protocol: u64,
    #[serde(default)]
    pub(crate) pid: u32,
    pub(crate) language: String,
    pub(crate) version: String,
    #[serde(default)]
    pub(crate) features: Features,
}

/// One line of the report on warm imports.
#[derive(Debug, Deserialize)]
pub(crate) struct ImportReport {
    pub(crate) module: String,
    pub(crate) milliseconds: f64,
    #[serde(default)]
    pub(crate) bytes: Option<u64>,
    #[serde(default)]
    pub(crate) error: Option<String>,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Header;

    fn result(flags: u8, first: &[u8]) -> Result<Answer, String> {
        let header = Header { length: 0, kind: Kind::Result, flags: flags | flag::HAS_VALUE, request: 1 };
        Answer::decode(&Frame { header, first, second: b"repr" })
    }

    #[test]
    fn a_value_is_never_silently_rounded() {
        let answer = result(flag::IS_JSON, b"123456789012345678901234567890").expect("well formed");
        assert_eq!((answer.value, answer.omitted), (Value::Null, Some(Omitted::InexactNumber)));
    }

    #[test]
    fn json_that_is_too_deep_is_omitted_and_breaks_nothing() {
        let deep = ["[".repeat(500), "]".repeat(500)].concat();
        let answer = result(flag::IS_JSON, deep.as_bytes()).expect("well formed");
        assert!(matches!(answer.omitted, Some(Omitted::NotJson(_))));
        assert_eq!(answer.repr.as_deref(), Some("repr"));
    }

    #[test]
    fn a_result_without_a_form_breaks_the_protocol() {
        assert!(result(0, b"").is_err());
        assert!(result(flag::TOO_LARGE, b"many").is_err());
    }
}
