//! Frames that came from a worker, and what each must look like.

use remuda::protocol::{Frame, Kind, flag};
use serde_json::Value;

use super::report::{Checked, Miss};

/// A frame, taken out of the stream.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    pub(super) kind: Kind,
    pub(super) flags: u8,
    pub(super) request: u64,
    pub(super) first: Vec<u8>,
    pub(super) second: Vec<u8>,
}

/// A request's answer with what came before it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) frame: Owned,
    pub(super) events: Vec<Owned>,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

impl Owned {
    pub(super) fn of(frame: &Frame<'_>) -> Owned {
        let header = frame.header;
        Owned {
            kind: header.kind,
            flags: header.flags,
            request: header.request,
            first: frame.first.to_vec(),
            second: frame.second.to_vec(),
        }
    }

    /// In a few words.
    pub(super) fn tell(&self) -> String {
        let first = String::from_utf8_lossy(&self.first[..self.first.len().min(200)]).into_owned();
        let (flags, request, second) = (self.flags, self.request, self.second.len());
        format!("{:?}, flags {flags}, request {request}, {first:?} and {second} bytes", self.kind)
    }

    /// The first part, which is JSON.
    pub(super) fn json(&self) -> Checked<Value> {
        serde_json::from_slice(&self.first).map_err(|error| {
            Miss::broken(
                format!("{:?} with JSON in its first part", self.kind),
                error.to_string(),
                &self.first,
            )
        })
    }

    /// Checks flags and body against what the document says of this kind.
    pub(super) fn check(&self) -> Checked {
        let wrong = |what: &str| {
            let expected = format!("{:?} {what}", self.kind);
            Err(Miss::failed(expected, self.tell()))
        };
        let known = match self.kind {
            Kind::Result => 63,
            Kind::Error => flag::STOPPED,
            Kind::Output => flag::STDERR,
            _ => 0,
        };
        if self.flags & !known != 0 {
            return wrong("with no flags but those that the document names");
        }
        match self.kind {
            Kind::Ready => self.check_json("with protocol, pid, language, version and features", is_ready),
            Kind::Frozen => self.check_json("with a list of obstacles", |body| {
                body["obstacles"].as_array().is_some_and(|all| all.iter().all(Value::is_string))
            }),
            Kind::Warmed => self.check_json("with a line for each module", is_report),
            Kind::Result => match self.result_flaw() {
                None => Ok(()),
                Some(what) => wrong(what),
            },
            Kind::Error => self.check_json("with type, message and traceback, all text", is_error),
            Kind::Clean => {
                self.check_json("with a list of reasons", |reasons| all(reasons, Value::is_string))
            }
            Kind::Display if !self.sizes_add_up()? => wrong("with forms as long as it says"),
            Kind::Progress => self.check_json("with fraction and message", is_progress),
            Kind::Input => self.check_json("with prompt and secret", |input| {
                input["prompt"].is_string() && input["secret"].is_boolean()
            }),
            Kind::Attachment => self.check_json("with a name", |body| body["name"].is_string()),
            Kind::Usage => self.check_json("with cpu_seconds, zero or more", |body| {
                body["cpu_seconds"].as_f64().is_some_and(|seconds| seconds >= 0.0)
            }),
            _ => Ok(()),
        }
    }

    fn check_json(&self, what: &str, is_right: impl Fn(&Value) -> bool) -> Checked {
        let body = self.json()?;
        if is_right(&body) {
            return Ok(());
        }
        Err(Miss::failed(format!("{:?} {what}", self.kind), self.tell()))
    }

    /// What is wrong with a *result*.
    fn result_flaw(&self) -> Option<&'static str> {
        let forms = self.flags & (flag::IS_JSON | flag::NOT_JSON | flag::TOO_LARGE | flag::IS_BYTES);
        if self.flags & flag::HAS_VALUE == 0 {
            let empty = forms == 0 && self.first.is_empty() && self.second.is_empty();
            return (!empty).then_some("with flag 1, or without a value and a repr");
        }
        if std::str::from_utf8(&self.second).is_err() {
            return Some("with a repr in UTF-8");
        }
        match forms {
            flag::IS_JSON => serde_json::from_slice::<serde::de::IgnoredAny>(&self.first)
                .is_err()
                .then_some("with JSON in its first part, as flag 2 says"),
            flag::NOT_JSON => std::str::from_utf8(&self.first).is_err().then_some("with a reason in UTF-8"),
            flag::TOO_LARGE => {
                let size = std::str::from_utf8(&self.first).ok().and_then(|size| size.parse::<u64>().ok());
                size.is_none().then_some("with a size in decimal, as flag 8 says")
            }
            flag::IS_BYTES => None,
            _ => Some("with one of the flags 2, 4, 8 and 32"),
        }
    }

    fn sizes_add_up(&self) -> Checked<bool> {
        let body = self.json()?;
        let Some(types) = body["types"].as_array() else { return Ok(false) };
        let mut left = self.second.len() as u64;
        for entry in types {
            let size = entry[1].as_u64().filter(|_| entry[0].is_string());
            match size.and_then(|size| left.checked_sub(size)) {
                Some(rest) => left = rest,
                None => return Ok(false),
            }
        }
        Ok(left == 0 && matches!(body["result"], Value::Null | Value::Bool(_)))
    }
}

impl Answer {
    /// The value, which came as JSON.
    pub(super) fn value(&self) -> Checked<Value> {
        if self.frame.kind == Kind::Result && self.frame.flags & flag::IS_JSON != 0 {
            return self.frame.json();
        }
        Err(Miss::failed("a result with a JSON value", self.frame.tell()))
    }

    /// Fails unless the value is this one.
    pub(super) fn is(&self, value: &Value) -> Checked {
        let found = self.value()?;
        if found == *value { Ok(()) } else { Err(Miss::failed(shown(value), shown(&found))) }
    }

    /// The error that it is.
    pub(super) fn error(&self) -> Checked<Value> {
        if self.frame.kind == Kind::Error {
            return self.frame.json();
        }
        Err(Miss::failed("an error", self.frame.tell()))
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.frame.flags & flag::STOPPED != 0 && matches!(self.frame.kind, Kind::Result | Kind::Error)
    }

    pub(super) fn events(&self, kind: Kind) -> Vec<&Owned> {
        self.events.iter().filter(|event| event.kind == kind).collect()
    }
}

/// A value, cut where it is long.
fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if let Some((end, _)) = text.char_indices().nth(200) {
        text.truncate(end);
        text.push('…');
    }
    text
}

fn all(list: &Value, is_right: impl Fn(&Value) -> bool) -> bool {
    list.as_array().is_some_and(|list| list.iter().all(is_right))
}

fn is_ready(ready: &Value) -> bool {
    let text = |name: &str| ready[name].as_str().is_some_and(|text| !text.is_empty());
    ready["protocol"] == remuda::protocol::VERSION
        && ready["pid"].as_u64().is_some_and(|pid| pid > 0)
        && text("language")
        && text("version")
        && all(&ready["features"], Value::is_string)
}

fn is_report(report: &Value) -> bool {
    all(report, |line| {
        line["module"].is_string()
            && line["milliseconds"].as_f64().is_some_and(|time| time >= 0.0)
            && matches!(line["error"], Value::Null | Value::String(_))
            && (line["bytes"].is_null() || line["bytes"].is_i64() || line["bytes"].is_u64())
    })
}

fn is_error(error: &Value) -> bool {
    ["type", "message", "traceback"].iter().all(|name| error[name].is_string())
        && (error["exit_code"].is_null() || error["exit_code"].is_i64())
        && matches!(error["limit"].as_str(), None | Some("data" | "open_files" | "file_size" | "cpu"))
}

fn is_progress(progress: &Value) -> bool {
    let fraction = &progress["fraction"];
    (fraction.is_null() || fraction.is_number())
        && matches!(progress["message"], Value::Null | Value::String(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: Kind, flags: u8, first: &str, second: &[u8]) -> Owned {
        Owned { kind, flags, request: 1, first: first.into(), second: second.to_vec() }
    }

    #[test]
    fn well_formed_bodies_pass() {
        for frame in [
            frame(Kind::Result, 0, "", b""),
            frame(Kind::Result, 3, "[1]", b"[1]"),
            frame(Kind::Result, 9, "70000000", b"'xxx'"),
            frame(Kind::Result, 33, "\u{1}", b"b'\\x01'"),
            frame(Kind::Error, 16, r#"{"type":"E","message":"","traceback":"","exit_code":null}"#, b""),
            frame(Kind::Display, 0, r#"{"types":[["a/b",2],["c/d",0]]}"#, b"xy"),
            frame(Kind::Progress, 0, r#"{"fraction":0.5,"message":null}"#, b""),
            frame(Kind::Warmed, 0, r#"[{"module":"m","milliseconds":0.1,"bytes":-4}]"#, b""),
        ] {
            assert!(frame.check().is_ok(), "{}", frame.tell());
        }
    }

    #[test]
    fn bodies_that_the_document_does_not_allow_are_told() {
        for frame in [
            frame(Kind::Result, 1, "", b"x"),
            frame(Kind::Result, 7, "1", b"1"),
            frame(Kind::Result, 3, "NaN", b"nan"),
            frame(Kind::Result, 9, "many", b""),
            frame(Kind::Result, 0, "1", b""),
            frame(Kind::Pong, 1, "", b""),
            frame(Kind::Error, 0, r#"{"type":"E","message":""}"#, b""),
            frame(Kind::Error, 0, r#"{"type":"E","message":"","traceback":"","limit":"luck"}"#, b""),
            frame(Kind::Display, 0, r#"{"types":[["a/b",2],["c/d",9]]}"#, b"xy"),
            frame(Kind::Display, 0, r#"{"types":[["a/b",1]]}"#, b"xy"),
            frame(Kind::Usage, 0, r#"{"cpu_seconds":-1}"#, b""),
            frame(Kind::Clean, 0, "[1]", b""),
            frame(
                Kind::Ready,
                0,
                r#"{"protocol":2,"pid":1,"language":"x","version":"1","features":[]}"#,
                b"",
            ),
        ] {
            assert!(frame.check().is_err(), "{}", frame.tell());
        }
    }
}
