//! Which program becomes a worker, and what is found out about it before the first start.

mod node;
mod python;
mod wrapper;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;

use wrapper::Wrapper;

use crate::error::{Error, Result};
#[cfg(feature = "testing")]
use crate::session::stand_in::Player;

/// Which program becomes a worker.
///
/// Nothing is started or looked for until a session starts.
///
/// # Wrappers
///
/// [`prefix`](Runtime::prefix), [`remote`](Runtime::remote) and
/// [`remote_shell`](Runtime::remote_shell) put another program in front, which then runs the worker:
/// on this machine with other rights, another priority or in a sandbox, or on another machine. They
/// may be combined: each one wraps what is there already, so that the last one is the outermost.
///
/// ```
/// use remuda::Runtime;
///
/// // nice -n 10 python3 …
/// let polite = Runtime::python("python3").prefix(["nice", "-n", "10"]);
/// // ssh build7 'exec nice -n 10 python3 …'
/// let far = polite.remote_shell(["ssh", "build7"]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    program: PathBuf,
    args: Vec<OsString>,
    kind: Kind,
    /// The innermost first.
    wrappers: Vec<Wrapper>,
    /// The program only holds the place of workers that are played in this process.
    #[cfg(feature = "testing")]
    player: Option<Player>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Python { isolated: bool },
    Node { isolated: bool },
    Native,
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

/// Holds a wrapper back until a line comes, byte by byte as a shell reads: the limits of this process
/// are set by then, and a wrapper that forks passes them on.
const HOLD: [&str; 4] = ["/bin/sh", "-c", "read -r go && exec \"$@\"", "sh"];
const RELEASE: &[u8] = b"\n";

impl Runtime {
    /// A Python interpreter, version 3.9 or later, by name (looked up in `PATH`) or path, such as
    /// that of a virtual environment. The worker program is built in; nothing needs installing.
    ///
    /// The interpreter runs isolated (`-I`): `PYTHON*` variables, the user's site directory and the
    /// working directory do not change what it imports. See [`Runtime::with_user_environment`].
    pub fn python(interpreter: impl Into<PathBuf>) -> Runtime {
        Runtime::of(Kind::Python { isolated: true }, interpreter.into(), Vec::new())
    }

    /// A Node program, version 18 or later, by name (looked up in `PATH`) or path. The worker program
    /// is built in; nothing needs installing. It is started through `sh`, which keeps the protocol
    /// away from what user code may write to or close.
    ///
    /// `NODE_*` variables of the host do not reach it. See [`Runtime::with_user_environment`].
    pub fn node(program: impl Into<PathBuf>) -> Runtime {
        Runtime::of(Kind::Node { isolated: true }, program.into(), Vec::new())
    }

    /// A program that serves requests by [`remuda::worker`](crate::worker), with its arguments.
    pub fn native<A: Into<OsString>>(
        program: impl Into<PathBuf>,
        args: impl IntoIterator<Item = A>,
    ) -> Runtime {
        Runtime::of(Kind::Native, program.into(), args.into_iter().map(Into::into).collect())
    }

    /// This very program, started again as a worker: its `main` calls
    /// [`worker::serve_if_asked`](crate::worker::serve_if_asked) (or
    /// [`Worker::serve_if_asked`](crate::worker::Worker::serve_if_asked)) first.
    ///
    /// A program that does not call it would do all its work again in the worker process.
    pub fn this_program() -> Runtime {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        Runtime::native(program, [crate::worker::ARGUMENT])
    }

    /// Any program that speaks the worker protocol on its standard input and output
    /// (`docs/worker-protocol.md`), with its arguments.
    pub fn command<A: Into<OsString>>(
        program: impl Into<PathBuf>,
        args: impl IntoIterator<Item = A>,
    ) -> Runtime {
        Runtime::of(Kind::Command, program.into(), args.into_iter().map(Into::into).collect())
    }

    fn of(kind: Kind, program: PathBuf, args: Vec<OsString>) -> Runtime {
        Runtime {
            program,
            args,
            kind,
            wrappers: Vec::new(),
            #[cfg(feature = "testing")]
            player: None,
        }
    }

    /// Workers that are played in this process; `program` holds the place of each.
    #[cfg(feature = "testing")]
    pub(crate) fn played(program: &str, args: &[&str], player: Player) -> Runtime {
        let args = args.iter().map(OsString::from).collect();
        Runtime { player: Some(player), ..Runtime::of(Kind::Native, program.into(), args) }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn player(&self) -> Option<&Player> {
        self.player.as_ref()
    }

    /// Lets a Python interpreter heed its `PYTHON*` variables, the user's site directory and the
    /// working directory (no `-I`), and Node its `NODE_*` variables. No effect on other runtimes.
    pub fn with_user_environment(mut self) -> Runtime {
        if let Kind::Python { isolated } | Kind::Node { isolated } = &mut self.kind {
            *isolated = false;
        }
        self
    }

    /// Puts a program of this machine in front, which runs its further arguments and lets them keep
    /// their file descriptors: `nice`, `bwrap`, `setpriv`, `timeout`, `sh -c 'exec "$@"' sh`.
    ///
    /// The worker is started as without it, through the same channels. What a wrapper must leave
    /// alone: the standard streams, and the process group (`setsid` takes the worker out of it; it
    /// then ends with its host by its own care only). A `/bin/sh` in front of the wrapper waits until
    /// the session's [`Limits`](crate::Limits) are set. An empty prefix changes nothing.
    pub fn prefix<A: Into<OsString>>(self, argv: impl IntoIterator<Item = A>) -> Runtime {
        let argv: Vec<OsString> = argv.into_iter().map(Into::into).collect();
        if argv.is_empty() { self } else { self.wrapped(Wrapper::Prefix(argv)) }
    }

    /// Puts a program in front that runs its further arguments somewhere else and carries nothing
    /// but the three standard streams: `docker exec -i NAME`, `kubectl exec -i NAME --`, a relay.
    ///
    /// The program of this runtime, its arguments and its path are those of the other side, where it
    /// is not looked for before. Nothing but the streams reaches it: no signals, no environment, no
    /// directory, no [`Limits`](crate::Limits); `env` and `work_dir` are those of the wrapper.
    /// What programs that the code starts write to fd 1 or 2 comes as stderr, perhaps after the answer.
    /// Everything that is sent to code to stop it goes through the stream, and killing kills the
    /// wrapper: the worker then finds the end of its input and kills itself and its group.
    pub fn remote<A: Into<OsString>>(self, argv: impl IntoIterator<Item = A>) -> Runtime {
        self.wrapped(Wrapper::Remote(argv.into_iter().map(Into::into).collect()))
    }

    /// As [`remote`](Runtime::remote), for a program that hands its further arguments to a shell, as
    /// `ssh HOST` does: it gets the program and its arguments as one argument, quoted for a POSIX
    /// shell.
    pub fn remote_shell<A: Into<OsString>>(self, argv: impl IntoIterator<Item = A>) -> Runtime {
        self.wrapped(Wrapper::RemoteShell(argv.into_iter().map(Into::into).collect()))
    }

    fn wrapped(mut self, wrapper: Wrapper) -> Runtime {
        self.wrappers.push(wrapper);
        self
    }

    /// Whether only the standard streams reach the worker: its process id, signals, limits and files
    /// are not those of the process that this one starts.
    pub(crate) fn is_remote(&self) -> bool {
        self.wrappers.iter().any(Wrapper::is_remote)
    }

    /// Whether a worker of this runtime can become a template, as far as that can be told without one.
    pub(crate) fn forks(&self) -> bool {
        matches!(self.kind, Kind::Python { .. }) && !self.is_remote()
    }

    /// How the names of those variables begin that change what the program does, and whether they are
    /// part of the worker's environment.
    pub(crate) fn own_variables(&self) -> Option<(&'static str, bool)> {
        match self.kind {
            Kind::Python { isolated } => Some(("PYTHON", !isolated)),
            Kind::Node { isolated } => Some(("NODE_", !isolated)),
            Kind::Native | Kind::Command => None,
        }
    }

    /// Checks what can be checked without starting anything.
    pub(crate) fn validate(&self) -> Result<()> {
        #[cfg(feature = "testing")]
        if self.player.is_some() && !self.wrappers.is_empty() {
            return Err(Error::config("runtime", "there is no program to put a wrapper in front of"));
        }
        if self.wrappers.iter().any(|wrapper| wrapper.argv().is_empty()) {
            return Err(Error::config(
                "runtime",
                "a remote wrapper is empty; name the program that leads there",
            ));
        }
        Ok(())
    }

    /// Finds out how to start a worker. An interpreter is asked once per process, which blocks for
    /// at most `limit`; nothing else is started.
    ///
    /// # Errors
    /// [`Error::Runtime`]: the interpreter cannot be used.
    pub fn launch(&self, limit: Duration) -> Result<Launch> {
        let remote = self.is_remote();
        // A path on another machine is not ours to change.
        let program = if remote { self.program.clone() } else { absolute(&self.program) };
        let (program, args, boot) = match self.kind {
            Kind::Python { isolated } if remote => {
                (program, python::remote_args(isolated), python::remote_boot())
            }
            Kind::Python { isolated } => {
                let python = python::interpreter(&self.local_prefix(), &self.program, limit)?;
                (python.path.clone(), python::local_args(isolated), Arc::clone(&python.boot))
            }
            Kind::Node { .. } => {
                if self.wrappers.is_empty() {
                    // `sh` would only say so on its stderr.
                    node::check(&program).map_err(|error| Error::Runtime {
                        program: self.program.clone(),
                        reason: spawn_advice(&error).to_owned(),
                        source: Some(error),
                    })?;
                }
                (node::SHELL.into(), node::launch_args(program), node::boot())
            }
            Kind::Native | Kind::Command => (program, self.args.clone(), Arc::from([])),
        };
        let mut command = vec![program.into_os_string()];
        command.extend(args);
        for wrapper in &self.wrappers {
            command = wrapper.wrap(command);
        }
        let held = !remote && !self.wrappers.is_empty();
        if held {
            command = [HOLD.map(OsString::from).to_vec(), command].concat();
        }
        let boot = if held { [RELEASE, &*boot].concat().into() } else { boot };
        let mut words = command.into_iter();
        let Some(program) = words.next() else { unreachable!("it holds the program at least") };
        let channels = match self.kind {
            Kind::Python { .. } | Kind::Native if !remote => Channels::Pipes,
            _ => Channels::Stdio,
        };
        Ok(Launch { program: absolute(Path::new(&program)), args: words.collect(), boot, channels })
    }

    /// What stands in front of a program that runs on this machine, the outermost first.
    fn local_prefix(&self) -> Vec<OsString> {
        self.wrappers.iter().rev().flat_map(|wrapper| wrapper.argv().iter().cloned()).collect()
    }

    /// Forgets what is known of the interpreter: it may have been replaced on disk.
    pub(crate) fn forget(&self) {
        python::forget(&self.local_prefix(), &self.program);
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
