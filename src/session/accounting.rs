//! What an execution used, and which limit it ran into.

use std::time::Duration;

use super::config::Limits;
use super::execution::{ExecutionError, Exit, Limit, Usage};
use super::process::Process;

/// A measurement under way.
pub(crate) struct Meter {
    cpu_before: Duration,
}

impl Meter {
    /// Starts a measurement: resets the peak of the process's memory.
    pub(crate) fn start(process: &Process) -> Meter {
        process.reset_peak();
        Meter { cpu_before: process.cpu_time().unwrap_or_default() }
    }

    /// Ends it. `reported`: CPU time by the worker's own account.
    pub(crate) fn stop(self, process: &Process, reported: Option<Duration>) -> Usage {
        let memory = process.memory();
        let cpu = || process.cpu_time().unwrap_or_default().saturating_sub(self.cpu_before);
        Usage {
            cpu_time: reported.unwrap_or_else(cpu),
            peak_memory: memory.map(|memory| memory.peak).or_else(|| process.peak_seen()),
            memory: memory.map(|memory| memory.resident),
        }
    }
}

/// The limit that code ran into, by the exception that it raised.
pub(crate) fn exceeded_by_error(limits: &Limits, error: &ExecutionError) -> Option<Limit> {
    error.limit.filter(|limit| limits.is_set(*limit))
}

/// The limit that a worker died of: by its end and its last words.
pub(crate) fn exceeded_by_end(limits: &Limits, exit: Exit, stderr: &str) -> Option<Limit> {
    const XCPU: i32 = rustix::process::Signal::XCPU.as_raw();
    const XFSZ: i32 = rustix::process::Signal::XFSZ.as_raw();
    let out_of_memory = || stderr.contains("out of memory") || stderr.contains("memory allocation of");
    let limit = match exit {
        Exit::Signal(XCPU) => Limit::CpuTime,
        Exit::Signal(XFSZ) => Limit::FileSize,
        Exit::Signal(_) if out_of_memory() => Limit::Data,
        _ => return None,
    };
    limits.is_set(limit).then_some(limit)
}
