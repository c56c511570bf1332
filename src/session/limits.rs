//! What a worker may use of the machine: limits that the kernel holds.
//!
//! They are part of a session's options, and running into one is a typed outcome.

use std::io;

use rustix::process::{Pid, Resource, Rlimit, prlimit, setpriority_process};

use super::execution::Limit;
use crate::error::{Error, Result};

/// Fewer descriptors than a worker needs for its channels; Python and Node use up to 24.
const FEWEST_FILES: u64 = 32;
/// Less than any program needs to start. (Python needs 8 MiB of address space, Node about 1 GiB.)
const LEAST_MEMORY: u64 = 1 << 20;
/// What `nice` knows.
const NICENESS: std::ops::RangeInclusive<i32> = -20..=19;

/// Resource limits of one worker process, held by the kernel (`setrlimit(2)`) and set before the
/// worker is told to go (what a program does before it listens to that is not limited). Children
/// inherit them; each process has an account of its own.
///
/// `None`, the default of all, leaves the limit that the host itself has. Core files are never
/// written. Code that runs into a limit that was set here ends with
/// [`Outcome::LimitExceeded`](crate::Outcome::LimitExceeded) where that can be told: see each limit.
///
/// Wrappers ([`Runtime::prefix`](crate::Runtime::prefix)) and what they start are limited as the
/// worker is: they run only once the limits are set. A worker that is reached by
/// [`Runtime::remote`](crate::Runtime::remote) cannot be limited from here; use what is there, such
/// as a prefix inside the remote wrapper: `.prefix(["prlimit", "--data=1000000000"]).remote(…)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Private data (heap and anonymous mappings, whether touched or not), in bytes, at least 1 MiB
    /// (`RLIMIT_DATA`). Beyond it Python raises `MemoryError`; Node, Rust and C++ abort, which is
    /// told by their last words on stderr. The limit to prefer for memory.
    pub data: Option<u64>,
    /// All mappings, program and libraries and files included, in bytes, at least 1 MiB
    /// (`RLIMIT_AS`). Beyond it as beyond [`data`](Limits::data), which is named if both are set.
    /// Node and programs with many threads reserve far more than they use: prefer `data`.
    pub address_space: Option<u64>,
    /// CPU time of the process over its whole life, warm-up included, in seconds, at least 1
    /// (`RLIMIT_CPU`). Then the process gets `SIGXCPU`, which ends one that does not handle it; a
    /// second later `SIGKILL`. A limit for one execution is its time limit.
    pub cpu_seconds: Option<u64>,
    /// Open file descriptors, at least 32 (`RLIMIT_NOFILE`). Beyond it code gets `EMFILE`, in Python
    /// an `OSError`.
    pub open_files: Option<u64>,
    /// Largest file that may be written, in bytes (`RLIMIT_FSIZE`); pipes are no files. Beyond it
    /// Python gets `EFBIG`, an `OSError`; other programs `SIGXFSZ`, which ends one that does not
    /// ignore it.
    pub file_size: Option<u64>,
    /// Processes and threads of the worker's *user*, all of them counted, whoever started them
    /// (`RLIMIT_NPROC`). It is of use for workers that run as a user of their own, and does not hold
    /// for root. Beyond it a fork fails with `EAGAIN`: `BlockingIOError` in Python.
    pub processes: Option<u64>,
    /// How readily the worker leaves the CPU to others: from -20 to 19 (`nice(2)`). Less than the
    /// host's own needs privileges. No limit: nothing can exceed it.
    pub niceness: Option<i32>,
}

impl Limits {
    /// No limits but those of the host.
    pub fn new() -> Limits {
        Limits::default()
    }

    /// Sets [`data`](Limits::data).
    pub fn data(mut self, bytes: u64) -> Limits {
        self.data = Some(bytes);
        self
    }

    /// Sets [`address_space`](Limits::address_space).
    pub fn address_space(mut self, bytes: u64) -> Limits {
        self.address_space = Some(bytes);
        self
    }

    /// Sets [`cpu_seconds`](Limits::cpu_seconds).
    pub fn cpu_seconds(mut self, seconds: u64) -> Limits {
        self.cpu_seconds = Some(seconds);
        self
    }

    /// Sets [`open_files`](Limits::open_files).
    pub fn open_files(mut self, count: u64) -> Limits {
        self.open_files = Some(count);
        self
    }

    /// Sets [`file_size`](Limits::file_size).
    pub fn file_size(mut self, bytes: u64) -> Limits {
        self.file_size = Some(bytes);
        self
    }

    /// Sets [`processes`](Limits::processes).
    pub fn processes(mut self, count: u64) -> Limits {
        self.processes = Some(count);
        self
    }

    /// Sets [`niceness`](Limits::niceness).
    pub fn niceness(mut self, niceness: i32) -> Limits {
        self.niceness = Some(niceness);
        self
    }

    /// Whether anything is limited.
    pub(crate) fn any(&self) -> bool {
        *self != Limits::default()
    }

    /// Whether this one is limited.
    pub(crate) fn is_set(&self, limit: Limit) -> bool {
        match limit {
            Limit::Data => self.data.is_some(),
            Limit::AddressSpace => self.address_space.is_some(),
            Limit::CpuTime => self.cpu_seconds.is_some(),
            Limit::OpenFiles => self.open_files.is_some(),
            Limit::FileSize => self.file_size.is_some(),
            Limit::Processes => self.processes.is_some(),
        }
    }

    /// Refuses what no worker could start with.
    pub(crate) fn validate(&self) -> Result<()> {
        let refuse = |reason: String| Err(Error::config("limits", reason));
        for (name, bytes) in [("data", self.data), ("address_space", self.address_space)] {
            if let Some(bytes) = bytes.filter(|bytes| *bytes < LEAST_MEMORY) {
                return refuse(format!("{name} of {bytes} bytes; no program starts with less than 1 MiB"));
            }
        }
        if self.cpu_seconds == Some(0) {
            return refuse(
                "cpu_seconds is 0, so no code could ever run; leave it out for no limit".to_owned(),
            );
        }
        if let Some(count) = self.open_files.filter(|count| *count < FEWEST_FILES) {
            return refuse(format!("{count} open_files; a worker needs {FEWEST_FILES} to talk to its host"));
        }
        if let Some(niceness) = self.niceness.filter(|niceness| !NICENESS.contains(niceness)) {
            return refuse(format!("niceness {niceness}; it must lie between -20 and 19"));
        }
        Ok(())
    }

    /// Limits a process of ours from outside.
    pub(crate) fn set(&self, pid: Pid) -> Result<()> {
        let equal = |limit: Option<u64>| limit.map(|limit| (limit, limit));
        // A program that handles SIGXCPU gets a second to say its last words.
        let cpu = self.cpu_seconds.map(|seconds| (seconds, seconds.saturating_add(1)));
        let all = [
            ("core", Resource::Core, Some((0, 0))),
            ("data", Resource::Data, equal(self.data)),
            ("address_space", Resource::As, equal(self.address_space)),
            ("cpu_seconds", Resource::Cpu, cpu),
            ("open_files", Resource::Nofile, equal(self.open_files)),
            ("file_size", Resource::Fsize, equal(self.file_size)),
            ("processes", Resource::Nproc, equal(self.processes)),
        ];
        for (name, resource, limit) in all {
            let Some((soft, hard)) = limit else { continue };
            let limit = Rlimit { current: Some(soft), maximum: Some(hard) };
            prlimit(Some(pid), resource, limit).map_err(|error| refused(name, i128::from(soft), error))?;
        }
        if let Some(niceness) = self.niceness {
            setpriority_process(Some(pid), niceness)
                .map_err(|error| refused("niceness", i128::from(niceness), error))?;
        }
        Ok(())
    }
}

/// A limit that the kernel does not grant.
fn refused(name: &str, value: i128, error: rustix::io::Errno) -> Error {
    if !matches!(error, rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) {
        return Error::io("limiting a worker", error);
    }
    let error = io::Error::from(error);
    let reason = format!("{name} of {value}: {error}; more than the host has itself needs privileges");
    Error::config("limits", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_worker_could_start_with_is_refused_by_name() {
        for (limits, name) in [
            (Limits::new().data(0), "data"),
            (Limits::new().address_space(LEAST_MEMORY - 1), "address_space"),
            (Limits::new().cpu_seconds(0), "cpu_seconds"),
            (Limits::new().open_files(FEWEST_FILES - 1), "open_files"),
            (Limits::new().niceness(20), "niceness"),
            (Limits::new().niceness(-21), "niceness"),
        ] {
            let error = limits.validate().expect_err(name);
            assert!(
                matches!(&error, Error::InvalidConfig { option: "limits", reason } if reason.contains(name))
            );
        }
        let least = Limits::new().data(LEAST_MEMORY).cpu_seconds(1).open_files(FEWEST_FILES).niceness(19);
        least.file_size(0).processes(0).validate().expect("small, but not senseless");
    }
}
