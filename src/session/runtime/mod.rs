//! Which program becomes a worker, and what is found out about it before the first start.

mod python;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;

use crate::error::Result;

/// Which program becomes a worker.
///
/// Nothing is started or looked for until a session starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    program: PathBuf,
    args: Vec<OsString>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Python { isolated: bool },
    Command,
}

/// How to start a worker, and what to send it before the *go* frame: for hosts that do without
/// [`Session`](crate::Session) and speak the [`protocol`](crate::protocol) themselves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Launch {
    /// The program, by path or by a name that `PATH` finds.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// What the worker's fd 0 gets first, its length included; empty for programs that bring their
    /// own code.
    pub boot: Arc<[u8]>,
    /// The channels that a session gives it.
    pub channels: Channels,
}

/// Which file descriptors carry the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// A control socket on fd 0, two data pipes handed over with *go*, fds 1 and 2 captured.
    Pipes,
    /// Everything on fds 0 and 1; fd 2 captured.
    Stdio,
}

impl Runtime {
    /// A Python interpreter, version 3.9 or later, by name (looked up in `PATH`) or path, such as
    /// that of a virtual environment. The worker program is built in; nothing needs installing.
    ///
    /// The interpreter runs isolated (`-I`): `PYTHON*` variables, the user's site directory and the
    /// working directory do not change what it imports. See [`Runtime::with_user_environment`].
    pub fn python(interpreter: impl Into<PathBuf>) -> Runtime {
        Runtime { program: interpreter.into(), args: Vec::new(), kind: Kind::Python { isolated: true } }
    }

    /// Any program that speaks the worker protocol on its standard input and output
    /// (`docs/worker-protocol.md`), with its arguments.
    pub fn command<A: Into<OsString>>(
        program: impl Into<PathBuf>,
        args: impl IntoIterator<Item = A>,
    ) -> Runtime {
        let args = args.into_iter().map(Into::into).collect();
        Runtime { program: program.into(), args, kind: Kind::Command }
    }

    /// Lets a Python interpreter heed its `PYTHON*` variables, the user's site directory and the
    /// working directory (no `-I`). No effect on commands.
    pub fn with_user_environment(mut self) -> Runtime {
        if let Kind::Python { isolated } = &mut self.kind {
            *isolated = false;
        }
        self
    }

    /// Whether a worker can go back to its warm state when asked by a `reset` frame.
    pub(crate) fn can_reset(&self) -> bool {
        matches!(self.kind, Kind::Python { .. })
    }

    /// Whether `PYTHON*` variables are part of the worker's environment.
    pub(crate) fn keeps_python_variables(&self) -> bool {
        self.kind == Kind::Python { isolated: false }
    }

    /// Finds out how to start a worker. An interpreter is asked once per process, which blocks for
    /// at most `limit`; nothing else is started.
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime): the interpreter cannot be used.
    pub fn launch(&self, limit: Duration) -> Result<Launch> {
        let Kind::Python { isolated } = self.kind else {
            let program = absolute(&self.program);
            let boot = Arc::from([]);
            return Ok(Launch { program, args: self.args.clone(), boot, channels: Channels::Stdio });
        };
        let python = python::interpreter(&self.program, limit)?;
        let mut args: Vec<OsString> = ["-X", "utf8", "-c", python::PYTHON_STUB].map(OsString::from).to_vec();
        if isolated {
            args.insert(0, "-I".into());
        }
        Ok(Launch {
            program: python.path.clone(),
            args,
            boot: Arc::clone(&python.boot),
            channels: Channels::Pipes,
        })
    }

    /// Forgets what is known of the interpreter: it may have been replaced on disk.
    pub(crate) fn forget(&self) {
        python::forget(&self.program);
    }

    /// The program as configured.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }
}

pub(crate) fn pid(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw)
}

/// What to do about a program that could not be started.
pub(crate) fn spawn_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such program; give its path, or a name that PATH finds",
        io::ErrorKind::PermissionDenied => {
            "it may not be executed; is it a program, and may this user run it?"
        }
        _ => "it could not be started",
    }
}

/// A path with a slash is relative to the host's directory, not to the worker's; a bare name is
/// for `PATH`.
fn absolute(program: &Path) -> PathBuf {
    if program.as_os_str().as_bytes().contains(&b'/') {
        std::path::absolute(program).unwrap_or_else(|_| program.to_owned())
    } else {
        program.to_owned()
    }
}
