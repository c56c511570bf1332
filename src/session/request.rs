//! What a session is asked to run.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value};

use super::events::{Attachment, Display, Progress, Prompt};
use crate::cancel::CancelToken;

/// Receives output while code runs: which stream, and the bytes as they came (a character may be
/// split between two calls). Called on the thread that executes.
pub type OutputCallback<'a> = Box<dyn FnMut(Stream, &[u8]) + Send + 'a>;

type TextCallback<'a> = Box<dyn FnMut(Stream, &str) + Send + 'a>;
type Callback<'a, T> = Box<dyn FnMut(&T) + Send + 'a>;

/// Who looks on while a request runs. All are called on the thread that executes.
#[derive(Default)]
pub(crate) struct Observers<'a> {
    pub(crate) output: Option<OutputCallback<'a>>,
    pub(crate) text: Option<TextCallback<'a>>,
    pub(crate) display: Option<Callback<'a, Display>>,
    pub(crate) progress: Option<Callback<'a, Progress>>,
    pub(crate) input: Option<Box<dyn FnMut(Prompt) + Send + 'a>>,
}

/// One of the two output streams of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// One piece of work for a session: code or a call, with its options.
///
/// ```
/// use remuda::{Call, Request};
/// use std::time::Duration;
///
/// let code = Request::code("sum(range(10))").time_limit(Duration::from_secs(5));
/// let call = Request::from(Call::new("math:hypot").arg(3).arg(4));
/// # drop((code, call));
/// ```
#[must_use = "a request does nothing until a session executes it"]
pub struct Request<'a> {
    pub(crate) work: Work,
    pub(crate) time_limit: Option<Duration>,
    pub(crate) hard_time_limit: Option<Duration>,
    pub(crate) cancel: Option<CancelToken>,
    pub(crate) observers: Observers<'a>,
    pub(crate) input_timeout: Option<Duration>,
    pub(crate) output_cap: Option<usize>,
    pub(crate) attachments: Vec<Attachment>,
    pub(crate) measure: bool,
    pub(crate) artefacts: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Work {
    Code { source: String, script: Option<Script> },
    Call(Call),
}

/// A source file run as a program of its own.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) file: String,
    pub(crate) args: Vec<String>,
}

/// A call of a function by its dotted path, with JSON arguments.
#[derive(Clone, Debug)]
#[must_use = "a call does nothing until a session executes it"]
pub struct Call {
    pub(crate) function: String,
    pub(crate) args: Vec<Value>,
    pub(crate) kwargs: Map<String, Value>,
}

impl<'a> Request<'a> {
    /// Code in the worker's language. If its last statement is an expression, its value is the
    /// value of the execution.
    pub fn code(source: impl Into<String>) -> Request<'a> {
        Request::new(Work::Code { source: source.into(), script: None })
    }

    /// Code that runs as the program `file` would: its name in tracebacks and `__file__`, its
    /// directory first on the module path, `args` behind it in `sys.argv`.
    pub fn script(
        source: impl Into<String>,
        file: impl Into<String>,
        args: impl IntoIterator<Item = impl Into<String>>,
    ) -> Request<'a> {
        let script = Script { file: file.into(), args: args.into_iter().map(Into::into).collect() };
        Request::new(Work::Code { source: source.into(), script: Some(script) })
    }

    fn new(work: Work) -> Request<'a> {
        Request {
            work,
            time_limit: None,
            hard_time_limit: None,
            cancel: None,
            observers: Observers::default(),
            input_timeout: None,
            output_cap: None,
            attachments: Vec::new(),
            measure: false,
            artefacts: false,
        }
    }

    /// The soft time limit: afterwards the code is asked to stop, and killed if it has not ended
    /// within the session's grace. Default: the session's
    /// [`time_limit`](crate::SessionConfig::time_limit).
    pub fn time_limit(mut self, limit: Duration) -> Request<'a> {
        self.time_limit = Some(limit);
        self
    }

    /// The hard time limit: at this moment the process group is killed, asked before or not.
    /// Default: none.
    pub fn hard_time_limit(mut self, limit: Duration) -> Request<'a> {
        self.hard_time_limit = Some(limit);
        self
    }

    /// Ends the work through the cancel ladder when this token fires. Work of a
    /// [`Scope`](crate::Scope) is bound to the scope's token as well.
    pub fn cancel_token(mut self, token: &CancelToken) -> Request<'a> {
        self.cancel = Some(token.clone());
        self
    }

    /// Calls `callback` with every byte of output as it arrives; a character may be split between
    /// two calls. While it works, nothing more is read: the code waits when the pipe is full, and so
    /// do a time limit and a cancel. A panic in it ends the session.
    pub fn on_output(mut self, callback: impl FnMut(Stream, &[u8]) + Send + 'a) -> Request<'a> {
        self.observers.output = Some(Box::new(callback));
        self
    }

    /// As [`on_output`](Request::on_output), with whole characters: what is no UTF-8 is replaced.
    pub fn on_text(mut self, callback: impl FnMut(Stream, &str) + Send + 'a) -> Request<'a> {
        self.observers.text = Some(Box::new(callback));
        self
    }

    /// Calls `callback` with everything that the code shows, as it shows it. All of it is in
    /// [`Execution::displays`](crate::Execution::displays) too, up to the session's
    /// [`event_cap`](crate::SessionConfig::event_cap).
    pub fn on_display(mut self, callback: impl FnMut(&Display) + Send + 'a) -> Request<'a> {
        self.observers.display = Some(Box::new(callback));
        self
    }

    /// Calls `callback` when the code says how far it is (`remuda.progress`).
    pub fn on_progress(mut self, callback: impl FnMut(&Progress) + Send + 'a) -> Request<'a> {
        self.observers.progress = Some(Box::new(callback));
        self
    }

    /// Calls `callback` when the code wants a line of input (`input()`). It need not answer at once:
    /// the [`Prompt`] can be kept and answered later, from any thread. Without this, reading input
    /// finds its end.
    ///
    /// ```no_run
    /// # let mut session = remuda::Session::builder(remuda::Runtime::python("python3")).start()?;
    /// let request = remuda::Request::code("input('name? ')").on_input(|prompt| prompt.answer("Ada"));
    /// assert_eq!(session.execute(request)?.value, "Ada");
    /// # Ok::<(), remuda::Error>(())
    /// ```
    pub fn on_input(mut self, callback: impl FnMut(Prompt) + Send + 'a) -> Request<'a> {
        self.observers.input = Some(Box::new(callback));
        self
    }

    /// How long each question may stay without an answer; then the code is told (Python raises
    /// `TimeoutError`). The time limits go on meanwhile. Default: no limit.
    pub fn input_timeout(mut self, limit: Duration) -> Request<'a> {
        self.input_timeout = Some(limit);
        self
    }

    /// Gives the code bytes under a name: in Python `remuda.attachments[name]`, and for a
    /// [`Call`] the keyword argument of that name. They travel as they are, not as JSON.
    pub fn attach(mut self, name: impl Into<String>, data: impl Into<Vec<u8>>) -> Request<'a> {
        self.attachments.push(Attachment { name: name.into(), data: data.into() });
        self
    }

    /// Keeps this many bytes of each stream instead of the session's
    /// [`output_cap`](crate::SessionConfig::output_cap).
    pub fn output_cap(mut self, bytes: usize) -> Request<'a> {
        self.output_cap = Some(bytes);
        self
    }

    /// Measures what this execution uses: [`Execution::usage`](crate::Execution::usage). Costs about
    /// 50 µs. Default: off.
    pub fn measure(mut self, measure: bool) -> Request<'a> {
        self.measure = measure;
        self
    }

    /// Finds out which files of the working directory this execution makes or changes:
    /// [`Execution::artefacts`](crate::Execution::artefacts). Looks at every file before and after:
    /// about 50 µs, and 1 ms for each thousand files. Behind a [remote](crate::Runtime::remote) wrapper
    /// it is an [`Error::FilesElsewhere`](crate::Error::FilesElsewhere). Default: off.
    pub fn artefacts(mut self, artefacts: bool) -> Request<'a> {
        self.artefacts = artefacts;
        self
    }
}

impl Call {
    /// A call of `function`, written `module:function` or `module:Class.method`.
    pub fn new(function: impl Into<String>) -> Call {
        Call { function: function.into(), args: Vec::new(), kwargs: Map::new() }
    }

    /// Adds a positional argument.
    pub fn arg(mut self, value: impl Into<Value>) -> Call {
        self.args.push(value.into());
        self
    }

    /// Adds a named argument.
    pub fn kwarg(mut self, name: impl Into<String>, value: impl Into<Value>) -> Call {
        self.kwargs.insert(name.into(), value.into());
        self
    }
}

impl From<&str> for Request<'_> {
    fn from(source: &str) -> Self {
        Request::code(source)
    }
}

impl From<String> for Request<'_> {
    fn from(source: String) -> Self {
        Request::code(source)
    }
}

impl From<&String> for Request<'_> {
    fn from(source: &String) -> Self {
        Request::code(source)
    }
}

impl From<Call> for Request<'_> {
    fn from(call: Call) -> Self {
        Request::new(Work::Call(call))
    }
}

impl fmt::Debug for Request<'_> {
    /// Names the work's kind and options; user code stays out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let work = match &self.work {
            Work::Code { source, script: None } => format!("code of {} bytes", source.len()),
            Work::Code { script: Some(script), .. } => format!("script {}", script.file),
            Work::Call(call) => format!("call of {}", call.function),
        };
        f.debug_struct("Request")
            .field("work", &work)
            .field("time_limit", &self.time_limit)
            .finish_non_exhaustive()
    }
}
