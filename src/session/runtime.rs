//! Which program becomes a worker, and how it is started.
use std::ffi::OsString;
use std::path::PathBuf;

/// Which program becomes a worker.
#[derive(Clone, Debug)]
pub struct Runtime {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) kind: Kind,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Python,
    Command,
}
impl Runtime {
    /// A Python interpreter (3.9 or later), by name or path; the worker program is built in.
    pub fn python(interpreter: impl Into<PathBuf>) -> Runtime {
        Runtime { program: interpreter.into(), args: vec![], kind: Kind::Python }
    }
    /// Any program that speaks the worker protocol on its standard input and output.
    pub fn command(
        program: impl Into<PathBuf>,
        args: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Runtime {
        Runtime {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            kind: Kind::Command,
        }
    }
    /// Whether a worker can go back to its warm state by a `reset` frame.
    pub(crate) fn can_reset(&self) -> bool {
        self.kind == Kind::Python
    }
}
