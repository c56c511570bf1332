//! What a session is made of: runtime, warm-up, environment, limits.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::Session;
use super::limits::Limits;
use super::runtime::Runtime;
use crate::error::{Error, Result};
use crate::protocol;

/// Options of a [`Session`]; each field has a setter of the same name.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionConfig {
    /// The program that becomes the worker.
    pub runtime: Runtime,
    /// Modules that a new session imports before it is handed out, in order. Default: none.
    pub warm_imports: Vec<String>,
    /// Whether a module of [`warm_imports`](SessionConfig::warm_imports) that cannot be imported
    /// fails the start. By default it is logged and reported by
    /// [`Session::warm_report`](crate::Session::warm_report). Default: false.
    pub require_warm_imports: bool,
    /// Code that a new session runs once before it is handed out. What it defines is part of the
    /// warm state that a reset goes back to. Keep it under 100 ms: every start pays for it. Default:
    /// none.
    pub warmup_code: Option<String>,
    /// Time that the warm-up code gets before it is interrupted, and killed after the
    /// [`grace`](SessionConfig::grace). Default: what is left of
    /// [`start_timeout`](SessionConfig::start_timeout).
    pub warmup_time_limit: Option<Duration>,
    /// Whether a session whose warm-up code raised an exception is used all the same; the exception
    /// is in [`Session::warm_report`](crate::Session::warm_report). Default: false, the start fails.
    pub ignore_warmup_errors: bool,
    /// Time from spawn to ready, warm-up included; afterwards the start has failed. Default: 30 s.
    pub start_timeout: Duration,
    /// Time that interrupted code gets to end before its process group is killed. Default: 250 ms.
    pub grace: Duration,
    /// Time limit of executions that bring none of their own. Default: none.
    pub time_limit: Option<Duration>,
    /// Environment variables for the worker, on top of the clean environment (see
    /// [`inherit_env`](SessionConfig::inherit_env)). Default: none.
    pub env: BTreeMap<String, String>,
    /// Whether the worker sees all of the host's environment. By default it gets `PATH`, `HOME`,
    /// `USER`, `LOGNAME`, `SHELL`, `LANG`, `LC_*`, `TZ`, `TERM`, `TMPDIR` and `LD_LIBRARY_PATH` only.
    pub inherit_env: bool,
    /// The worker's working directory. Default: a new temporary one.
    pub work_dir: WorkDir,
    /// Limits that the kernel holds. Default: no core files, nothing else.
    pub limits: Limits,
    /// Bytes of stdout, and of stderr, that an [`Execution`](crate::Execution) keeps: the first
    /// half and the last half of this number; what lies between is counted and dropped.
    /// A callback gets every byte. Default: 16 MiB.
    pub output_cap: usize,
    /// Bytes of displays and attachments that an [`Execution`](crate::Execution) keeps; what comes
    /// beyond is dropped and counted. Callbacks get everything. Default: 64 MiB.
    pub event_cap: usize,
    /// How many sources (`In`) and values (`Out`) of past executions a Python or Node session keeps
    /// for its code to look at, as `IPython` does; `_` is the last value in any case. Default: 32.
    pub history: u32,
    /// Largest frame on the wire in either direction, in bytes: code, arguments, values.
    /// Default: 64 MiB.
    pub frame_cap: usize,
}

/// Where a worker runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkDir {
    /// An empty directory of the session's own, removed after its end.
    Temporary,
    /// The host's working directory.
    Inherit,
    /// This directory; it must exist.
    Path(PathBuf),
}

impl SessionConfig {
    /// The same with another runtime.
    pub(crate) fn with_runtime(&self, runtime: Runtime) -> SessionConfig {
        SessionConfig { runtime, ..self.clone() }
    }

    /// The defaults, for this runtime.
    pub fn new(runtime: Runtime) -> SessionConfig {
        SessionConfig {
            runtime,
            warm_imports: Vec::new(),
            require_warm_imports: false,
            warmup_code: None,
            warmup_time_limit: None,
            ignore_warmup_errors: false,
            start_timeout: Duration::from_secs(30),
            grace: Duration::from_millis(250),
            time_limit: None,
            env: BTreeMap::new(),
            inherit_env: false,
            work_dir: WorkDir::Temporary,
            limits: Limits::default(),
            output_cap: 16 << 20,
            event_cap: 64 << 20,
            history: 32,
            frame_cap: protocol::DEFAULT_FRAME_CAP,
        }
    }

    /// Starts a session: see [`Session::start`].
    ///
    /// # Errors
    /// As [`Session::start`].
    pub fn start(&self) -> Result<Session> {
        Session::start(self)
    }

    /// Adds one module to import: see [`warm_imports`](SessionConfig::warm_imports).
    pub fn warm_import(mut self, module: impl Into<String>) -> SessionConfig {
        self.warm_imports.push(module.into());
        self
    }

    /// Sets [`warmup_code`](SessionConfig::warmup_code).
    pub fn warmup_code(mut self, code: impl Into<String>) -> SessionConfig {
        self.warmup_code = Some(code.into());
        self
    }

    /// Sets [`require_warm_imports`](SessionConfig::require_warm_imports).
    pub fn require_warm_imports(mut self, require: bool) -> SessionConfig {
        self.require_warm_imports = require;
        self
    }

    /// Sets [`warmup_time_limit`](SessionConfig::warmup_time_limit).
    pub fn warmup_time_limit(mut self, limit: Duration) -> SessionConfig {
        self.warmup_time_limit = Some(limit);
        self
    }

    /// Sets [`ignore_warmup_errors`](SessionConfig::ignore_warmup_errors).
    pub fn ignore_warmup_errors(mut self, ignore: bool) -> SessionConfig {
        self.ignore_warmup_errors = ignore;
        self
    }

    /// Sets [`event_cap`](SessionConfig::event_cap).
    pub fn event_cap(mut self, bytes: usize) -> SessionConfig {
        self.event_cap = bytes;
        self
    }

    /// Sets [`history`](SessionConfig::history).
    pub fn history(mut self, slots: u32) -> SessionConfig {
        self.history = slots;
        self
    }

    /// Sets [`start_timeout`](SessionConfig::start_timeout).
    pub fn start_timeout(mut self, limit: Duration) -> SessionConfig {
        self.start_timeout = limit;
        self
    }

    /// Sets [`grace`](SessionConfig::grace).
    pub fn grace(mut self, grace: Duration) -> SessionConfig {
        self.grace = grace;
        self
    }

    /// Sets [`time_limit`](SessionConfig::time_limit).
    pub fn time_limit(mut self, limit: Duration) -> SessionConfig {
        self.time_limit = Some(limit);
        self
    }

    /// Adds one variable to [`env`](SessionConfig::env).
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> SessionConfig {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets [`inherit_env`](SessionConfig::inherit_env).
    pub fn inherit_env(mut self, inherit: bool) -> SessionConfig {
        self.inherit_env = inherit;
        self
    }

    /// Sets [`work_dir`](SessionConfig::work_dir).
    pub fn work_dir(mut self, dir: WorkDir) -> SessionConfig {
        self.work_dir = dir;
        self
    }

    /// Sets [`limits`](SessionConfig::limits).
    pub fn limits(mut self, limits: Limits) -> SessionConfig {
        self.limits = limits;
        self
    }

    /// Sets [`output_cap`](SessionConfig::output_cap).
    pub fn output_cap(mut self, bytes: usize) -> SessionConfig {
        self.output_cap = bytes;
        self
    }

    /// Sets [`frame_cap`](SessionConfig::frame_cap).
    pub fn frame_cap(mut self, bytes: usize) -> SessionConfig {
        self.frame_cap = bytes;
        self
    }

    /// Checks what can be checked without starting anything.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names the first option that makes no sense.
    pub fn validate(&self) -> Result<()> {
        self.runtime.validate()?;
        self.limits.validate()?;
        if self.runtime.is_remote() && self.limits.any() {
            return Err(Error::config(
                "limits",
                "they do not reach a worker behind a remote wrapper; limit it there, as by a prefix inside",
            ));
        }
        if self.start_timeout.is_zero() {
            return Err(Error::config(
                "start_timeout",
                "it is zero, so no session could ever start; the default is 30 s",
            ));
        }
        if self.time_limit.is_some_and(|limit| limit.is_zero()) {
            return Err(Error::config(
                "time_limit",
                "it is zero, so no code could ever run; leave it out for no limit",
            ));
        }
        if self.warmup_time_limit.is_some_and(|limit| limit.is_zero()) {
            return Err(Error::config(
                "warmup_time_limit",
                "it is zero, so no code could ever run; leave it out for no limit of its own",
            ));
        }
        if !(protocol::MIN_FRAME_CAP..=protocol::MAX_FRAME_CAP).contains(&self.frame_cap) {
            return Err(Error::config(
                "frame_cap",
                format!("{} bytes; it must lie between 64 KiB and 1 GiB", self.frame_cap),
            ));
        }
        if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return Err(Error::config("env", format!("{name:?} is not a variable's name")));
        }
        if let Some((name, _)) = self.env.iter().find(|(_, value)| value.contains('\0')) {
            return Err(Error::config("env", format!("the value of {name} contains a zero byte")));
        }
        match &self.work_dir {
            WorkDir::Path(dir) if !dir.is_dir() => {
                Err(Error::config("work_dir", format!("{} is not a directory", dir.display())))
            }
            _ => Ok(()),
        }
    }
}
