//! The one error type of the crate.

use std::fmt;
use std::io;
use std::panic::Location;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::session::{Feature, PostMortem, SessionId};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call could not do what it was asked to.
///
/// What *user code* does (an exception, a time-out, the death of its process) is not an error of
/// the call: it is the [`Outcome`](crate::Outcome) of an [`Execution`](crate::Execution).
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A configuration value makes no sense, from `start` and the builders.
    InvalidConfig {
        /// The option's name.
        option: &'static str,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// The program of a runtime cannot be used: missing, not executable, too old, not what it
    /// claims to be. From `Session::start` and `SessionPool::start`.
    Runtime {
        /// The program as configured.
        program: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
        /// The operating system's error, if it was one.
        source: Option<io::Error>,
    },
    /// A worker process did not become ready in its start time limit.
    StartTimeout {
        /// The session that was starting.
        session: SessionId,
        /// How long it was given.
        limit: Duration,
        /// The last bytes it wrote to stderr.
        stderr: String,
    },
    /// A worker process ended before it was ready.
    StartDied {
        /// How it ended.
        post_mortem: Box<PostMortem>,
    },
    /// The warm-up code or a required warm import failed in a new session.
    WarmUp {
        /// What failed: `warmup_code` or the module's name.
        what: String,
        /// The exception: type and message.
        message: String,
        /// The traceback of the warm-up code's lines; empty for a module.
        traceback: String,
    },
    /// The worker broke the protocol; its session is ended.
    Protocol {
        /// The session.
        session: SessionId,
        /// What it did.
        reason: String,
    },
    /// The session's process is gone, or the session was ended.
    SessionDead {
        /// The session.
        session: SessionId,
        /// How the process ended, once that is known.
        post_mortem: Option<Box<PostMortem>>,
    },
    /// The worker does not take such requests, by its own account.
    Unsupported {
        /// The session.
        session: SessionId,
        /// What it would have to be able to do.
        feature: Feature,
    },
    /// Two processes cannot both have what is in this one, so it cannot be copied; it goes on.
    NotForkable {
        /// The session.
        session: SessionId,
        /// What is in the way: threads, connections, files open to write, child processes, …
        obstacles: Vec<String>,
    },
    /// The worker lives, but did not answer a `ping`, `names` or `fingerprint` in time; it is killed.
    Unresponsive {
        /// The session.
        session: SessionId,
        /// How long it was given.
        limit: Duration,
    },
    /// A request is larger than the frame cap.
    RequestTooLarge {
        /// The request's size in bytes.
        bytes: usize,
        /// The cap in bytes.
        cap: usize,
    },
    /// No session became free in time, from `acquire_timeout` and `try_acquire`.
    AcquireTimeout {
        /// How long the caller waited.
        waited: Duration,
        /// How many waited in front of it at the end, of its tenant.
        ahead: usize,
        /// Why the last start of a session failed, if it did.
        last_start_error: Option<Arc<Error>>,
        /// Whether the pool was paused at the end.
        paused: bool,
        /// The tenant's [`max_leases`](crate::Quota::max_leases), if it held as many sessions at the end: that
        /// is what the caller waited for, other sessions may have been idle.
        max_leases: Option<usize>,
    },
    /// Fewer sessions than asked for were ready in time, from
    /// [`wait_ready`](crate::SessionPool::wait_ready).
    NotReady {
        /// How long the caller waited.
        waited: Duration,
        /// How many were ready at the end, in use or not.
        ready: usize,
        /// How many were asked for.
        wanted: usize,
        /// Why the last start of a session failed, if it did.
        last_start_error: Option<Arc<Error>>,
    },
    /// No session is alive and starting one failed; callers are refused until the next attempt.
    StartFailing {
        /// Why the last start failed.
        cause: Arc<Error>,
        /// When the pool will try again.
        retry_in: Duration,
    },
    /// Too many callers wait for a session already.
    TooManyWaiters {
        /// The configured limit.
        limit: usize,
    },
    /// A tenant has as much of the pool as its [`Quota`](crate::Quota) lets it have.
    QuotaExceeded {
        /// The tenant.
        tenant: String,
        /// The configured limit.
        limit: usize,
        /// Of what.
        kind: QuotaKind,
    },
    /// The thread holds a session of the pool already and would wait for another one, from an acquire
    /// of a pool with [`NestedAcquire::Refuse`](crate::NestedAcquire::Refuse).
    NestedAcquire {
        /// Where it acquired the one that it holds.
        held_at: &'static Location<'static>,
        /// Where it asked for another one.
        asked_at: &'static Location<'static>,
    },
    /// A tenant's name is empty, or too long to be kept.
    TenantName {
        /// Its length in bytes.
        bytes: usize,
        /// The longest one, in bytes.
        cap: usize,
    },
    /// The pool's [`on_create`](crate::PoolConfig::on_create()) hook refused a new session.
    Hook {
        /// The session.
        session: SessionId,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pool's [`validate_with`](crate::PoolConfig::validate_with()) hook refused one session after the
    /// other. From the acquire functions.
    Unfit {
        /// How many it refused.
        refused: u32,
    },
    /// Sessions got ready and ended or misbehaved before anybody used them, one after the other. The cause
    /// in [`Error::StartFailing`]; the pool's last post-mortems tell how they ended.
    EndedUnused {
        /// How many in a row.
        sessions: u32,
    },
    /// The token of the caller was cancelled before the work began.
    Cancelled,
    /// The pool is shut down.
    Closed,
    /// The tracker's database cannot be opened, read or written. From `SessionStore` and
    /// `TrackerServerBuilder::start`.
    Store {
        /// The kind of trouble.
        fault: StoreFault,
        /// What was being done.
        doing: &'static str,
        /// The database's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A line of the access tokens makes no sense. From `Tokens`.
    Tokens {
        /// The line's number, from 1.
        line: usize,
        /// What is wrong with it. It never repeats a token.
        reason: String,
    },
    /// A tracker does not answer, or not as one. From `TrackerOperator`.
    Tracker {
        /// Its address.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The tracker cannot listen on its address, from `TrackerServerBuilder::start`.
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file in a session's working directory cannot be read or written, from [`Files`](crate::Files).
    File {
        /// Its name as given.
        name: PathBuf,
        /// What is wrong.
        problem: FileProblem,
    },
    /// The working directory of the session is not on this machine, from
    /// [`Session::files`](crate::Session::files) and
    /// [`Request::artefacts`](crate::Request::artefacts).
    FilesElsewhere {
        /// The session.
        session: SessionId,
    },
    /// An operating system call failed.
    Io {
        /// What was being done.
        doing: &'static str,
        /// The error.
        source: io::Error,
    },
}

/// What is wrong with a file in a session's working directory.
#[derive(Debug)]
#[non_exhaustive]
pub enum FileProblem {
    /// The name is empty, absolute, or has a part such as `..` or `.`.
    BadName,
    /// There is none.
    NotFound,
    /// A symbolic link is there or on the way.
    Link,
    /// It is a directory, a pipe, a device, a socket; or a part of the way is no directory.
    NotRegular,
    /// It is larger than what may be read at once.
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The cap in bytes.
        cap: u64,
    },
    /// The operating system says otherwise no.
    Io(io::Error),
}

/// What kind of trouble the tracker's database is in, in [`Error::Store`]. Nothing that was stored is
/// thrown away in any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreFault {
    /// Another tracker has the file open, or another program holds it locked for seconds.
    InUse,
    /// The file is no database, or one of another program.
    Foreign,
    /// The file was written by a newer version of remuda.
    Newer,
    /// The database contradicts itself: the file was damaged.
    Damaged,
    /// The file or its directory must not be written.
    ReadOnly,
    /// The disk, or what may be used of it, is full.
    Full,
    /// Reading or writing the file fails, or somebody has removed it.
    Io,
    /// Anything else.
    Other,
}

impl StoreFault {
    /// The fault that a cause tells.
    #[cfg(feature = "server")]
    pub(crate) fn of(cause: &(dyn std::error::Error + Send + Sync + 'static)) -> StoreFault {
        if let Some(code) =
            cause.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code)
        {
            use rusqlite::ErrorCode;
            return match code {
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => StoreFault::InUse,
                ErrorCode::NotADatabase => StoreFault::Foreign,
                ErrorCode::DatabaseCorrupt => StoreFault::Damaged,
                ErrorCode::ReadOnly | ErrorCode::PermissionDenied => StoreFault::ReadOnly,
                ErrorCode::DiskFull => StoreFault::Full,
                ErrorCode::SystemIoFailure | ErrorCode::CannotOpen => StoreFault::Io,
                _ => StoreFault::Other,
            };
        }
        match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => StoreFault::ReadOnly,
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge) => {
                StoreFault::Full
            }
            Some(_) => StoreFault::Io,
            None => StoreFault::Other,
        }
    }
}

/// What a tenant has as much of as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QuotaKind {
    /// Sessions in use: [`Quota::max_leases`](crate::Quota::max_leases).
    Leases,
    /// Callers and jobs that wait: [`Quota::max_queued`](crate::Quota::max_queued).
    Queued,
}

impl Error {
    pub(crate) fn io(doing: &'static str, source: impl Into<io::Error>) -> Error {
        Error::Io { doing, source: source.into() }
    }

    /// [`Error::Store`] of the kind that the cause tells.
    #[cfg(feature = "server")]
    pub(crate) fn store(
        doing: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        let source = source.into();
        Error::Store { fault: StoreFault::of(source.as_ref()), doing, source }
    }

    /// [`Error::Store`] of a kind that no cause tells.
    #[cfg(feature = "server")]
    pub(crate) fn store_fault(fault: StoreFault, doing: &'static str, reason: impl Into<String>) -> Error {
        Error::Store { fault, doing, source: reason.into().into() }
    }

    pub(crate) fn config(option: &'static str, reason: impl Into<String>) -> Error {
        Error::InvalidConfig { option, reason: reason.into() }
    }
}

/// A number and what it counts.
fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

impl Error {
    /// In words, what came of a wait for sessions whose time was over.
    fn fmt_late(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last_start_error = match self {
            Error::AcquireTimeout { waited, paused: true, .. } => {
                return write!(f, "no session within {waited:?}: the pool is paused");
            }
            Error::AcquireTimeout { waited, max_leases: Some(limit), .. } => {
                let held = count(*limit, "session");
                return write!(
                    f,
                    "no session within {waited:?}: the tenant holds {held}, as many as it may (max_leases)"
                );
            }
            Error::AcquireTimeout { waited, ahead, last_start_error, .. } => {
                write!(f, "no session became free within {waited:?} ({} ahead)", count(*ahead, "caller"))?;
                last_start_error
            }
            Error::NotReady { waited, ready, wanted, last_start_error } => {
                write!(f, "{ready} of {wanted} sessions were ready within {waited:?}")?;
                last_start_error
            }
            _ => return Ok(()),
        };
        match last_start_error {
            Some(error) => write!(f, "; the last start of a session failed: {error}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::InvalidConfig { option, reason } => write!(f, "invalid {option}: {reason}"),
            Error::Runtime { program, reason, source: None } => {
                write!(f, "cannot use {}: {reason}", program.display())
            }
            Error::Runtime { program, reason, source: Some(source) } => {
                write!(f, "cannot use {}: {reason}: {source}", program.display())
            }
            Error::StartTimeout { session, limit, stderr } => {
                write!(f, "session {session} was not ready after {limit:?}")?;
                said(f, stderr)
            }
            Error::StartDied { post_mortem } => {
                write!(f, "session {} ended before it was ready: {post_mortem}", post_mortem.session)
            }
            Error::WarmUp { what, message, .. } => write!(f, "warm-up failed in {what}: {message}"),
            Error::Protocol { session, reason } => {
                write!(f, "the worker of session {session} broke the protocol: {reason}")
            }
            Error::SessionDead { session, post_mortem: None } => write!(f, "session {session} has ended"),
            Error::SessionDead { session, post_mortem: Some(post_mortem) } => {
                write!(f, "session {session} has ended: {post_mortem}")
            }
            Error::Unsupported { session, feature } => {
                write!(f, "the worker of session {session} cannot do this: it has no feature \"{feature}\"")
            }
            Error::NotForkable { session, obstacles } => {
                write!(f, "session {session} cannot be copied: {}", obstacles.join("; "))
            }
            Error::Unresponsive { session, limit } => {
                write!(f, "the worker of session {session} did not answer within {limit:?}")
            }
            Error::RequestTooLarge { bytes, cap } => {
                write!(f, "a request of {bytes} bytes is over the frame cap of {cap} bytes")
            }
            Error::AcquireTimeout { .. } | Error::NotReady { .. } => self.fmt_late(f),
            Error::StartFailing { cause, retry_in } => {
                write!(f, "sessions cannot be started (next attempt in {retry_in:?}): {cause}")
            }
            Error::TooManyWaiters { limit } => {
                write!(f, "as many callers wait for a session as may (max_waiters: {limit})")
            }
            Error::QuotaExceeded { tenant, limit, kind: QuotaKind::Leases } => {
                write!(f, "tenant {tenant:?} holds {}, as many as it may", count(*limit, "session"))
            }
            Error::QuotaExceeded { tenant, limit, kind: QuotaKind::Queued } => {
                write!(
                    f,
                    "as many calls of tenant {tenant:?} wait for a session as may (max_queued: {limit})"
                )
            }
            Error::NestedAcquire { held_at, asked_at } => write!(
                f,
                "this thread holds a session of the pool already, acquired at {held_at}, and would wait for another \
                 one at {asked_at}"
            ),
            Error::TenantName { bytes: 0, .. } => {
                f.write_str("a tenant's name is empty; leave it out for callers without a tenant")
            }
            Error::TenantName { bytes, cap } => {
                write!(f, "a tenant's name of {bytes} bytes is over the cap of {cap} bytes")
            }
            Error::Hook { session, source } => {
                write!(f, "the on_create hook refused session {session}: {source}")
            }
            Error::Unfit { refused } => match refused {
                1 => f.write_str("the validate_with hook refused the session"),
                _ => write!(f, "the validate_with hook refused {refused} sessions, one after the other"),
            },
            Error::EndedUnused { sessions } => write!(f, "{sessions} sessions in a row ended unused"),
            Error::Cancelled => f.write_str("cancelled"),
            Error::Closed => f.write_str("the pool is shut down"),
            Error::Store { doing, source, .. } => write!(f, "the tracker's database: {doing}: {source}"),
            Error::Tokens { line, reason } => write!(f, "invalid tokens: line {line}: {reason}"),
            Error::Tracker { url, reason } => write!(f, "the tracker at {url}: {reason}"),
            Error::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
                write!(
                    f,
                    "cannot listen on {address}: {source}; a tracker may run there already, port 0 takes a free one"
                )
            }
            Error::Listen { address, source } => write!(f, "cannot listen on {address}: {source}"),
            Error::File { name, problem } => write!(f, "the session's file {}: {problem}", name.display()),
            Error::FilesElsewhere { session } => {
                write!(f, "the files of session {session} are behind a remote wrapper, not on this machine")
            }
            Error::Io { doing, source } => write!(f, "{doing}: {source}"),
        }
    }
}

impl fmt::Display for FileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileProblem::BadName => f.write_str("the name must be relative and have no `..` or `.`"),
            FileProblem::NotFound => f.write_str("there is none"),
            FileProblem::Link => f.write_str("a symbolic link is there or on the way; none is followed"),
            FileProblem::NotRegular => {
                f.write_str("it is no regular file, or lies below what is no directory")
            }
            FileProblem::TooLarge { size, cap } => write!(f, "{size} bytes, over the cap of {cap} bytes"),
            FileProblem::Io(error) => error.fmt(f),
        }
    }
}

/// Appends what a worker said last, if anything.
fn said(f: &mut fmt::Formatter<'_>, stderr: &str) -> fmt::Result {
    match stderr.trim_end() {
        "" => Ok(()),
        text => write!(f, "; its stderr: {text}"),
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. }
            | Error::File { problem: FileProblem::Io(source), .. }
            | Error::Listen { source, .. }
            | Error::Runtime { source: Some(source), .. } => Some(source),
            Error::Store { source, .. } | Error::Hook { source, .. } => Some(source.as_ref()),
            Error::StartFailing { cause, .. }
            | Error::AcquireTimeout { last_start_error: Some(cause), .. }
            | Error::NotReady { last_start_error: Some(cause), .. } => Some(cause.as_ref()),
            _ => None,
        }
    }
}
