//! For programs that *are* workers: a Rust program serves the requests of a remuda host.
//!
//! ```no_run
//! use remuda::worker::{self, Answer, Request};
//!
//! fn main() -> std::process::ExitCode {
//!     worker::serve(|request, context| match request {
//!         Request::Call(call) if call.function() == "sum" => {
//!             let numbers: Vec<f64> = call.args()?;
//!             let mut sum = 0.0;
//!             for number in numbers {
//!                 context.check_cancelled()?;
//!                 sum += number;
//!             }
//!             Ok(Answer::value(&sum))
//!         }
//!         Request::Call(call) => Err(call.unknown()),
//!         _ => Err(worker::Failure::new("Unsupported", "this worker runs no code")),
//!     })
//! }
//! ```
//!
//! The host starts it by [`Runtime::native`](crate::Runtime::native). A program can be host and
//! worker in one: see [`serve_if_asked`] and
//! [`Runtime::this_program`](crate::Runtime::this_program).
//!
//! # What a handler may do
//!
//! Anything: print, start threads and child processes, panic, end the process. It runs on the thread
//! that calls `serve`. Its standard input is empty; what it, its threads and its children write to
//! stdout and stderr reaches the host, before the answer. A panic is caught and answered as an error
//! of kind `panic` with its place, and with a backtrace where `RUST_BACKTRACE` asks for one; the
//! worker goes on, with whatever state the panic left behind. (A program built with
//! `panic = "abort"` ends instead.)
//!
//! # Stopping
//!
//! Rust code cannot be interrupted from outside. A handler is asked to stop by
//! [`Context::is_cancelled`], and killed with its process group if it has not ended after the host's
//! grace. So such a worker announces neither `interrupt` nor `sigint`: the host never sends SIGINT
//! to its group. When the host is gone, the process kills its group and itself at once, whatever the
//! handler does.
//!
//! # Threads
//!
//! One, `remuda-control`, which waits for cancels; another, `remuda-stdout`, where the host can be
//! reached by the standard streams alone (through `ssh`, say). Both end with `serve`.

// Files, in the order of a request: `channels` takes the descriptors, `control` hears cancels, `inbox`
// and `outbox` carry frames, `stdout` what is printed, `link` holds these together; `request` and
// `context` are what a handler gets, `answer` is what it returns, `panics` what it may do instead.
mod answer;
mod channels;
mod context;
mod control;
mod inbox;
mod link;
mod outbox;
mod panics;
mod request;
mod stdout;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

pub use answer::{Answer, Failure, Result};
pub use context::Context;

#[cfg(feature = "testing")]
pub(crate) use channels::receive_go;
use context::Attached;
pub use request::{Call, Code, Request, Script};

use crate::clock::{Moment, process_cpu};
use crate::protocol::{Kind, VERSION, flag};
use inbox::{Incoming, Received};
use link::Link;
use panics::guarded;

/// The argument that tells a program to serve: see [`serve_if_asked`].
pub(crate) const ARGUMENT: &str = "--remuda-worker";

/// Exit codes, as in `sysexits.h`.
const SOFTWARE: u8 = 70;
const CONFIG: u8 = 78;

/// Serves the requests of the host with this handler, until the host wants the process to leave.
///
/// Short for a [`Worker`] that runs code and calls by one handler.
pub fn serve(handler: impl FnMut(Request<'_>, &Context<'_>) -> Result) -> ExitCode {
    let handler = RefCell::new(handler);
    one_handler(&handler).serve()
}

/// Serves the requests of the host if this process was started by
/// [`Runtime::this_program`](crate::Runtime::this_program), and never returns then; otherwise returns
/// at once. To be called first in `main`.
///
/// The program is asked by its one argument, `--remuda-worker`. (An environment variable would reach
/// the worker's own children too, and would not pass `ssh`.)
pub fn serve_if_asked(handler: impl FnMut(Request<'_>, &Context<'_>) -> Result) {
    let handler = RefCell::new(handler);
    one_handler(&handler).serve_if_asked();
}

fn one_handler<'w>(handler: &'w RefCell<impl FnMut(Request<'_>, &Context<'_>) -> Result + 'w>) -> Worker<'w> {
    Worker::new("native", env!("CARGO_PKG_VERSION"))
        .code(|code, context| (handler.borrow_mut())(Request::Code(code), context))
        .call(|call, context| (handler.borrow_mut())(Request::Call(call), context))
}

type OnCode<'w> = Box<dyn FnMut(Code<'_>, &Context<'_>) -> Result + 'w>;
type OnCall<'w> = Box<dyn FnMut(Call<'_>, &Context<'_>) -> Result + 'w>;
type OnWarm<'w> = Box<dyn FnMut(&str, &Context<'_>) -> Result<()> + 'w>;
type OnReset<'w> = Box<dyn FnMut() -> Vec<String> + 'w>;

/// A worker put together from its handlers. What it has no handler for, the host does not ask of it.
///
/// ```no_run
/// use remuda::worker::{Answer, Worker};
///
/// fn main() -> std::process::ExitCode {
///     Worker::new("text-tools", "1.0")
///         .function("upper", |call, _| {
///             let (text,): (String,) = call.args()?;
///             Ok(Answer::value(&text.to_uppercase()))
///         })
///         .function("size", |call, context| {
///             let (name,): (&str,) = call.args()?;
///             Ok(Answer::value(&context.attachment(name).map(<[u8]>::len)))
///         })
///         .serve()
/// }
/// ```
#[must_use = "a worker does nothing until it serves"]
pub struct Worker<'w> {
    language: String,
    version: String,
    functions: HashMap<String, OnCall<'w>>,
    call: Option<OnCall<'w>>,
    code: Option<OnCode<'w>>,
    warm: Option<OnWarm<'w>>,
    reset: Option<OnReset<'w>>,
}

impl<'w> Worker<'w> {
    /// A worker that can do nothing yet. `language` and `version` are what the host shows as
    /// [`SessionInfo::runtime`](crate::SessionInfo::runtime).
    pub fn new(language: impl Into<String>, version: impl Into<String>) -> Worker<'w> {
        Worker {
            language: language.into(),
            version: version.into(),
            functions: HashMap::new(),
            call: None,
            code: None,
            warm: None,
            reset: None,
        }
    }

    /// Answers calls of the function with this name.
    pub fn function(
        mut self,
        name: impl Into<String>,
        handler: impl FnMut(Call<'_>, &Context<'_>) -> Result + 'w,
    ) -> Worker<'w> {
        self.functions.insert(name.into(), Box::new(handler));
        self
    }

    /// Answers calls of functions that have no [`function`](Worker::function) of their own. Default:
    /// an error of kind `UnknownFunction`.
    pub fn call(mut self, handler: impl FnMut(Call<'_>, &Context<'_>) -> Result + 'w) -> Worker<'w> {
        self.call = Some(Box::new(handler));
        self
    }

    /// Runs code, in whatever language the worker has.
    pub fn code(mut self, handler: impl FnMut(Code<'_>, &Context<'_>) -> Result + 'w) -> Worker<'w> {
        self.code = Some(Box::new(handler));
        self
    }

    /// Warms up: called for each name in
    /// [`SessionConfig::warm_imports`](crate::SessionConfig::warm_imports). A failure goes into the
    /// report of the host. Warm-up code is run as code.
    pub fn warm(mut self, handler: impl FnMut(&str, &Context<'_>) -> Result<()> + 'w) -> Worker<'w> {
        self.warm = Some(Box::new(handler));
        self
    }

    /// Brings back the state after the warm-up, so that another user can have the process. Returns
    /// what could not be undone; unless that is nothing, the host takes a new process.
    pub fn reset(mut self, handler: impl FnMut() -> Vec<String> + 'w) -> Worker<'w> {
        self.reset = Some(Box::new(handler));
        self
    }

    /// Serves the requests of the host until that wants the process to leave. What follows in `main`
    /// is done within the host's grace; what it prints goes to stderr where stdout is no pipe of the
    /// host. If the host just goes, the process is killed in here.
    ///
    /// A process that no host has started says so on stderr and returns a code that is no success.
    pub fn serve(self) -> ExitCode {
        ExitCode::from(self.run())
    }

    /// As [`serve_if_asked`].
    pub fn serve_if_asked(self) {
        let mut args = std::env::args_os().skip(1);
        if (args.next(), args.next()) == (Some(ARGUMENT.into()), None) {
            std::process::exit(self.run().into());
        }
    }

    fn run(mut self) -> u8 {
        if std::io::stdin().is_terminal() {
            eprintln!("remuda worker: it is for a remuda host to start this program, not for a terminal");
            return CONFIG;
        }
        panics::watch();
        let link = match Link::open() {
            Ok(link) => link,
            Err(reason) => {
                eprintln!("remuda worker: {reason}");
                return CONFIG;
            }
        };
        let end = self.answer_all(&link);
        link.close();
        match end {
            Ok(()) => 0,
            Err(reason) => {
                eprintln!("remuda worker: {reason}");
                SOFTWARE
            }
        }
    }

    /// The loop of requests. An error is a host that does not keep to the protocol.
    fn answer_all(&mut self, link: &Link) -> std::result::Result<(), String> {
        link.outbox.send(Kind::Ready, 0, 0, self.ready().as_bytes(), b"");
        let mut attachments: Vec<Attached> = Vec::new();
        loop {
            // Not in the `match`: the lock would be held until its end.
            let incoming = link.inbox.lock().next();
            let frame = match incoming {
                Incoming::Frame(frame) => frame,
                Incoming::Bad { request, reason, lost } => {
                    refuse(link, request, &reason)?;
                    if lost {
                        return Err(reason);
                    }
                    continue;
                }
                Incoming::End | Incoming::Woken => control::die(),
            };
            let request = frame.header.request;
            match frame.header.kind {
                Kind::Attachment => {
                    match Attached::new(frame) {
                        Ok(attached) => attachments.push(attached),
                        Err(reason) => refuse(link, request, &reason)?,
                    }
                    continue;
                }
                Kind::Execute | Kind::Call if request != 0 => {
                    attachments.retain(|attachment| attachment.request() == request);
                    self.execute(link, &frame, std::mem::take(&mut attachments));
                }
                Kind::Warm if request != 0 => self.warm_up(link, &frame),
                Kind::Reset if self.reset.is_some() => self.bring_back(link, request),
                Kind::Ping => {
                    link.outbox.send(Kind::Pong, 0, request, b"", b"");
                }
                Kind::Shutdown => return Ok(()),
                // Nobody waits for it any more; what it was for is over.
                Kind::InputReply | Kind::Cancel => {}
                kind => refuse(link, request, &format!("this worker takes no {kind:?} frames"))?,
            }
            link.inbox.lock().recycle(frame);
        }
    }

    fn ready(&self) -> String {
        let calls = self.call.is_some() || !self.functions.is_empty();
        let features = [
            ("execute", self.code.is_some()),
            ("call", calls),
            ("warm", self.warm.is_some()),
            ("reset", self.reset.is_some()),
            ("input", true),
            ("attachments", true),
        ];
        let features: Vec<_> = features.iter().filter(|(_, has)| *has).map(|(name, _)| name).collect();
        json!({
            "protocol": VERSION,
            "pid": std::process::id(),
            "language": self.language,
            "version": self.version,
            "features": features,
        })
        .to_string()
    }

    /// *execute* or *call*, and its answer.
    fn execute(&mut self, link: &Link, frame: &Received, attachments: Vec<Attached>) {
        let (request, flags) = (frame.header.request, frame.header.flags);
        let context = Context::new(link, request, flags, attachments);
        let measured = (flags & flag::MEASURE != 0).then(process_cpu);
        link.begin(request);
        let result = context.check_cancelled().and_then(|()| {
            guarded(|| {
                if frame.header.kind == Kind::Call {
                    self.run_call(Call::decode(frame.second())?, &context)
                } else {
                    self.run_code(Code::decode(frame.first(), frame.second())?, &context)
                }
            })
        });
        link.finish();
        if let Some(before) = measured {
            let used = json!({ "cpu_seconds": process_cpu().saturating_sub(before).as_secs_f64() });
            link.outbox.send(Kind::Usage, 0, request, used.to_string().as_bytes(), b"");
        }
        let flags = if context.has_noticed() { flag::STOPPED } else { 0 };
        match result {
            Ok(answer) => answer.send(&link.outbox, request, flags),
            Err(failure) => failure.send(&link.outbox, request, flags),
        }
    }

    fn run_call(&mut self, call: Call<'_>, context: &Context<'_>) -> Result {
        match self.functions.get_mut(call.function()).or(self.call.as_mut()) {
            Some(handler) => handler(call, context),
            None => Err(call.unknown()),
        }
    }

    fn run_code(&mut self, code: Code<'_>, context: &Context<'_>) -> Result {
        match &mut self.code {
            Some(handler) => handler(code, context),
            None => Err(Failure::new("Unsupported", "this worker runs no code")),
        }
    }

    /// *warm*: each module in turn, then the code.
    fn warm_up(&mut self, link: &Link, frame: &Received) {
        let request = frame.header.request;
        let context = Context::new(link, request, 0, Vec::new());
        link.begin(request);
        let result = self.warm_all(frame, &context);
        link.finish();
        match result {
            Ok(report) => {
                let report = json!(report).to_string();
                if !link.outbox.send(Kind::Warmed, 0, request, report.as_bytes(), b"") {
                    let failure = Failure::new("TooLarge", "the report of the warm-up");
                    failure.send(&link.outbox, request, 0);
                }
            }
            Err(failure) => failure.send(&link.outbox, request, 0),
        }
    }

    fn warm_all(&mut self, frame: &Received, context: &Context<'_>) -> Result<Vec<Warmed>> {
        let modules: Vec<String> = serde_json::from_slice(frame.first())?;
        let mut report = Vec::with_capacity(modules.len());
        for module in modules {
            let started = Moment::now();
            let result = guarded(|| match &mut self.warm {
                Some(warm) => warm(&module, context),
                None => Err(Failure::new("Unsupported", "this worker warms nothing up")),
            });
            let milliseconds = Moment::now().saturating_since(started).as_secs_f64() * 1e3;
            report.push(Warmed { module, milliseconds, error: result.err().map(|error| error.to_string()) });
        }
        if !frame.second().is_empty() {
            // Its value is nobody's.
            drop(guarded(|| self.run_code(Code::decode(b"", frame.second())?, context))?);
        }
        Ok(report)
    }

    fn bring_back(&mut self, link: &Link, request: u64) {
        let result = guarded(|| Ok(self.reset.as_mut().map(|reset| reset()).unwrap_or_default()));
        link.finish();
        let reasons = result.unwrap_or_else(|failure| vec![failure.to_string()]);
        if !link.outbox.send(Kind::Clean, 0, request, json!(reasons).to_string().as_bytes(), b"") {
            link.outbox.send(Kind::Clean, 0, request, br#"["more than a frame can tell"]"#, b"");
        }
    }
}

/// One line of the report on the warm-up.
#[derive(Serialize)]
struct Warmed {
    module: String,
    milliseconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Answers a frame that is not for us, or gives up where there is nobody to answer.
fn refuse(link: &Link, request: u64, reason: &str) -> std::result::Result<(), String> {
    if request == 0 {
        return Err(reason.to_owned());
    }
    Failure::new("ProtocolError", reason).send(&link.outbox, request, 0);
    Ok(())
}
