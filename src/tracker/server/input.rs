//! What requests bring, read and checked.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::replies::{Refusal, unprocessable};
use crate::Error;
use crate::tracker::api::{
    DEFAULT_PAGE, Heartbeat, LONGEST_PAGE, MAX_ATTACHED, MAX_ATTACHED_DEPTH, MAX_WAIT, PURGE_AFTER,
    SessionCreate, is_too_deep, is_unspeakable,
};
use crate::tracker::http::Request;

pub(super) fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    // An object: serde would also read a list of the fields' values.
    if bytes.trim_ascii_start().starts_with(b"{")
        && let Ok(body) = serde_json::from_slice(bytes)
    {
        return Ok(body);
    }
    let object: Map<String, Value> = serde_json::from_slice(bytes)
        .map_err(|error| unprocessable(&format!("the body is not a JSON object: {error}")))?;
    let mut object = Value::Object(object);
    write_whole(&mut object);
    T::deserialize(object).map_err(|error| unprocessable(&format!("the body: {error}")))
}

/// Some clients write whole numbers as 3.0, which to JSON is the same. What is attached stays as it is.
fn write_whole(value: &mut Value) {
    match value {
        Value::Number(number) if number.as_f64().is_some_and(|number| number.fract() == 0.0) => {
            if let Some(whole) = number.as_f64().and_then(|number| format!("{number:.0}").parse::<u64>().ok())
            {
                *number = whole.into();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(write_whole),
        Value::Object(members) => {
            let read = members.iter_mut().filter(|(name, _)| *name != "attached");
            read.for_each(|(_, value)| write_whole(value));
        }
        _ => {}
    }
}

/// A beat without a body is the usual one.
pub(super) fn heartbeat(bytes: &[u8]) -> Result<Heartbeat, Refusal> {
    if bytes.trim_ascii().is_empty() {
        return Ok(Heartbeat::default());
    }
    let beat: Heartbeat = body(bytes)?;
    check_beat(&beat, bytes.len()).map_err(|refusal| unprocessable(&refusal))?;
    Ok(beat)
}

/// Whether a beat makes sense that came in a body of that many bytes.
pub(super) fn check_beat(beat: &Heartbeat, bytes: usize) -> Result<(), String> {
    if beat.progress.is_some_and(|progress| !(0.0..=1.0).contains(&progress)) {
        return Err("progress: must be from 0 to 1".to_owned());
    }
    if beat.attached.iter().flat_map(BTreeMap::values).any(is_too_deep) {
        return Err(format!("attached: must be nested at most {MAX_ATTACHED_DEPTH} levels deep"));
    }
    if let Some(attached) = &beat.attached
        && bytes > MAX_ATTACHED
        && serde_json::to_string(attached).is_ok_and(|json| json.len() > MAX_ATTACHED)
    {
        return Err(format!("attached: must have at most {MAX_ATTACHED} bytes"));
    }
    beat.status.as_deref().map_or(Ok(()), check_status)
}

pub(super) fn registration(session: SessionCreate) -> Result<SessionCreate, Refusal> {
    if session.app_name.is_empty() || session.app_name.len() > 1_024 {
        return Err(unprocessable("app_name: must have 1 to 1024 bytes"));
    }
    if is_unspeakable(&session.app_name) {
        return Err(unprocessable("app_name: must not contain NUL, because no path can name that"));
    }
    if session.session_id.as_ref().is_some_and(|id| !id.is_uuid()) {
        return Err(unprocessable("session_id: must be a UUID"));
    }
    if session.uptime_seconds.is_some_and(|uptime| !uptime.is_finite() || uptime < 0.0) {
        return Err(unprocessable("uptime_seconds: must not be negative"));
    }
    if session.interval_seconds.is_some_and(|interval| !(0.001..=31_536_000.0).contains(&interval)) {
        return Err(unprocessable("interval_seconds: must be from 0.001 to 31536000 (a year)"));
    }
    if session.version.as_ref().is_some_and(|version| version.len() > 256) {
        return Err(unprocessable("version: must have at most 256 bytes"));
    }
    if let Some(status) = &session.status {
        check_status(status).map_err(|refusal| unprocessable(&refusal))?;
    }
    Ok(session)
}

pub(super) fn check_status(status: &str) -> Result<(), String> {
    if status.is_empty() || status.len() > 64 {
        return Err("status: must have 1 to 64 bytes".to_owned());
    }
    Ok(())
}

/// The `wait` parameter, at most [`MAX_WAIT`].
pub(super) fn wait(request: &Request) -> Result<Duration, Refusal> {
    Ok(number(request, "wait")?.map_or(Duration::ZERO, |seconds| duration(seconds).min(MAX_WAIT)))
}

/// The `limit` parameter of a list.
pub(super) fn limit(request: &Request) -> Result<usize, Refusal> {
    match request.parameter("limit").map(str::parse::<usize>) {
        None => Ok(DEFAULT_PAGE),
        Some(Ok(limit)) if limit > 0 => Ok(limit.min(LONGEST_PAGE)),
        Some(_) => Err(unprocessable("limit: must be a number from 1")),
    }
}

/// A parameter, unless it is empty, as it is in the addresses that a form makes.
pub(super) fn given<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request.parameter(name).filter(|text| !text.is_empty())
}

/// An option that the library refuses is a parameter that is not understood.
pub(super) fn refused(error: Error) -> Refusal {
    match error {
        Error::InvalidConfig { option, reason } => unprocessable(&format!("{option}: {reason}")),
        other => other.into(),
    }
}

/// The `older_than_minutes` parameter, 10 by default.
pub(super) fn older_than(request: &Request) -> Result<Duration, Refusal> {
    Ok(number(request, "older_than_minutes")?.map_or(PURGE_AFTER, |minutes| duration(minutes * 60.0)))
}

pub(super) fn number(request: &Request, name: &str) -> Result<Option<f64>, Refusal> {
    let Some(text) = request.parameter(name) else { return Ok(None) };
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(Some(number)),
        _ => Err(unprocessable(&format!("{name}: must be a number that is not negative"))),
    }
}

pub(super) fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Heartbeat> {
        body(text.as_bytes()).ok()
    }

    #[test]
    fn whole_numbers_may_be_written_with_a_fraction_of_zero() {
        let text = r#" {"beat_number": 7.0, "memory_bytes": 1e3, "progress": 1, "kill": {"kill_id": 2.0, "step": "stopping"},
            "attached": {"load": 3.0}}"#;
        let beat = read(text).expect("it is read");
        assert_eq!((beat.beat_number, beat.memory_bytes, beat.progress), (Some(7), Some(1_000), Some(1.0)));
        assert_eq!(beat.kill.map(|kill| kill.kill_id), Some(2));
        assert_eq!(beat.attached.expect("it is there")["load"].to_string(), "3.0", "that is not ours");
        for text in [
            r#"{"beat_number": 7.5}"#,
            r#"{"beat_number": -1.0}"#,
            r#"{"beat_number": 18446744073709551616}"#,
            r#"{"beat_number": 1e300}"#,
            r#"{"beat_number": "7"}"#,
            "[null]",
            "",
        ] {
            assert!(read(text).is_none(), "{text}");
        }
    }

    #[test]
    fn of_a_member_that_is_there_twice_the_last_counts() {
        let beat = read(r#"{"beat_number": 1, "beat_number": 2}"#).expect("it is read");
        assert_eq!(beat.beat_number, Some(2));
    }
}
