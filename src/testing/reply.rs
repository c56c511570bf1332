//! What a scripted worker is asked, and what it does about it.

use serde::Serialize;
use serde_json::{Map, Value};

use super::hold::Hold;
use crate::protocol::{Frame, Kind};
use crate::session::{SessionId, Stream};

/// What a [`FakeWorker`](crate::testing::FakeWorker) was asked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FakeRequest {
    /// What sort of request.
    pub kind: FakeKind,
    /// The session that asked.
    pub session: SessionId,
    /// Which of the fake worker's processes was asked, counted from 1 in the order of their starts.
    pub start: u64,
    /// Which code or call of this process it is, counted from 1. For other kinds: how many came before.
    pub number: u64,
    /// The code, or the name of the function; for a warm-up its code.
    pub text: String,
    /// Positional arguments of a call; for a warm-up the names of the modules.
    pub args: Vec<Value>,
    /// Named arguments of a call.
    pub kwargs: Map<String, Value>,
}

/// What sort of request a worker gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FakeKind {
    /// Code to run.
    Code,
    /// A function to call.
    Call,
    /// Modules to import and code to run before the first request.
    WarmUp,
    /// To go back to its warm state.
    Reset,
    /// Whether it is there.
    Ping,
    /// To stop what it does.
    Cancel,
    /// To leave.
    Shutdown,
}

impl FakeRequest {
    pub(super) fn cancel(session: SessionId, start: u64, number: u64) -> FakeRequest {
        let (text, args, kwargs) = (String::new(), Vec::new(), Map::new());
        FakeRequest { kind: FakeKind::Cancel, session, start, number, text, args, kwargs }
    }

    /// What this frame asks for; `None`: nothing that a fake worker knows.
    pub(super) fn of(frame: &Frame<'_>, session: SessionId, start: u64) -> Option<FakeRequest> {
        let kind = match frame.header.kind {
            Kind::Execute => FakeKind::Code,
            Kind::Call => FakeKind::Call,
            Kind::Warm => FakeKind::WarmUp,
            Kind::Reset => FakeKind::Reset,
            Kind::Ping => FakeKind::Ping,
            Kind::Cancel => FakeKind::Cancel,
            Kind::Shutdown => FakeKind::Shutdown,
            _ => return None,
        };
        let mut text = String::from_utf8_lossy(frame.second).into_owned();
        let (mut args, mut kwargs) = (Vec::new(), Map::new());
        if kind == FakeKind::Call
            && let Ok(Value::Object(mut call)) = serde_json::from_slice(frame.second)
        {
            if let Some(Value::String(function)) = call.remove("function") {
                text = function;
            }
            if let Some(Value::Array(given)) = call.remove("args") {
                args = given;
            }
            if let Some(Value::Object(given)) = call.remove("kwargs") {
                kwargs = given;
            }
        } else if kind == FakeKind::WarmUp {
            args = serde_json::from_slice(frame.first).unwrap_or_default();
        }
        Some(FakeRequest { kind, session, start, number: 0, text, args, kwargs })
    }
}

/// What a [`FakeWorker`](crate::testing::FakeWorker) does about a request: steps, one after the
/// other, then an ending.
///
/// ```
/// use remuda::testing::{FakeReply, Hold};
///
/// let half_way = Hold::new();
/// let reply = FakeReply::value(7).stdout("begun\n").hold(&half_way).stdout("done\n");
/// let crash = FakeReply::signal(11).stderr("Segmentation fault\n");
/// # drop((reply, crash));
/// ```
#[derive(Clone, Debug)]
#[must_use = "a reply does nothing until a fake worker gives it"]
pub struct FakeReply {
    pub(super) steps: Vec<Step>,
    pub(super) ending: Ending,
    pub(super) repr: Option<String>,
    pub(super) ignores_cancel: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Output(Stream, Vec<u8>),
    Hold(Hold),
}

#[derive(Clone, Debug)]
pub(super) enum Ending {
    None,
    Value(Value),
    /// What could not be made a JSON value, and why.
    NotJson(String),
    Bytes(Vec<u8>),
    Error {
        kind: String,
        message: String,
    },
    Exit(u8),
    Signal(i32),
    Hang,
}

impl FakeReply {
    fn of(ending: Ending) -> FakeReply {
        FakeReply { steps: Vec::new(), ending, repr: None, ignores_cancel: false }
    }

    /// It ends well, without a value.
    pub fn none() -> FakeReply {
        FakeReply::of(Ending::None)
    }

    /// It ends well, with this value. What JSON cannot hold is a value that is omitted.
    #[allow(clippy::needless_pass_by_value, reason = "`value(7)` and `value(json!(…))` read well")]
    pub fn value(value: impl Serialize) -> FakeReply {
        FakeReply::of(match serde_json::to_value(value) {
            Ok(value) => Ending::Value(value),
            Err(error) => Ending::NotJson(error.to_string()),
        })
    }

    /// It ends well, with a byte string.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> FakeReply {
        FakeReply::of(Ending::Bytes(bytes.into()))
    }

    /// It raises this.
    pub fn error(kind: impl Into<String>, message: impl Into<String>) -> FakeReply {
        FakeReply::of(Ending::Error { kind: kind.into(), message: message.into() })
    }

    /// The process ends with this exit code instead of an answer.
    pub fn exit(code: u8) -> FakeReply {
        FakeReply::of(Ending::Exit(code))
    }

    /// A signal with this number ends the process instead of an answer.
    pub fn signal(number: i32) -> FakeReply {
        FakeReply::of(Ending::Signal(number))
    }

    /// It never ends by itself.
    pub fn hang() -> FakeReply {
        FakeReply::of(Ending::Hang)
    }

    /// Then it writes this to file descriptor 1.
    pub fn stdout(self, bytes: impl Into<Vec<u8>>) -> FakeReply {
        self.then(Step::Output(Stream::Stdout, bytes.into()))
    }

    /// Then it writes this to file descriptor 2.
    pub fn stderr(self, bytes: impl Into<Vec<u8>>) -> FakeReply {
        self.then(Step::Output(Stream::Stderr, bytes.into()))
    }

    /// Then it stops until `hold` lets it go.
    pub fn hold(self, hold: &Hold) -> FakeReply {
        self.then(Step::Hold(hold.clone()))
    }

    fn then(mut self, step: Step) -> FakeReply {
        self.steps.push(step);
        self
    }

    /// Its value looks like this to people. Default: its JSON.
    pub fn repr(mut self, text: impl Into<String>) -> FakeReply {
        self.repr = Some(text.into());
        self
    }

    /// It goes on although it is cancelled: where it is held or hangs, only a kill ends it.
    pub fn ignoring_cancels(mut self) -> FakeReply {
        self.ignores_cancel = true;
        self
    }
}
