//! What an execution used, and which limit it ran into.

use std::time::Duration;

use super::execution::{Cause, ExecutionError, Exit, Limit, Usage};
use super::limits::Limits;
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

/// The limit that code ran into, by the exception that it raised. One that is not set is not named.
pub(crate) fn exceeded_by_error(limits: &Limits, error: &ExecutionError) -> Option<Limit> {
    // Python says that a fork or a thread was denied, but not which limit denied it: to the worker it
    // is an error as any other.
    let denied = match error.kind.as_str() {
        "BlockingIOError" => error.message.contains("[Errno 11]"),
        "RuntimeError" => error.message.contains("can't start new thread"),
        _ => false,
    };
    let limit = error.limit.or_else(|| denied.then_some(Limit::Processes))?;
    set(limits, limit)
}

/// The limit that a worker died of, by its end, the CPU time that it had used by then, and what it
/// wrote to stderr. One that is not set is not named.
pub(crate) fn exceeded_by_end(limits: &Limits, process: &Process, stderr: &str) -> Option<Limit> {
    let exit = process.exit()?;
    if process.cause() != Cause::Itself {
        return None;
    }
    exceeded(limits, exit, process.cpu_time_with_children(), stderr)
}

fn exceeded(limits: &Limits, exit: Exit, cpu: Option<Duration>, stderr: &str) -> Option<Limit> {
    const ILL: i32 = rustix::process::Signal::ILL.as_raw();
    const TRAP: i32 = rustix::process::Signal::TRAP.as_raw();
    const ABORT: i32 = rustix::process::Signal::ABORT.as_raw();
    const BUS: i32 = rustix::process::Signal::BUS.as_raw();
    const KILL: i32 = rustix::process::Signal::KILL.as_raw();
    const SEGV: i32 = rustix::process::Signal::SEGV.as_raw();
    const XCPU: i32 = rustix::process::Signal::XCPU.as_raw();
    const XFSZ: i32 = rustix::process::Signal::XFSZ.as_raw();
    let out_of_cpu = limits.cpu_seconds.is_some_and(|limit| cpu.is_some_and(|cpu| cpu.as_secs() >= limit));
    match exit {
        Exit::Code(0) | Exit::Unknown => return None,
        // A wrapper that waits for the worker tells of its signal as a shell does.
        Exit::Code(code) if code == 128 + XFSZ => return set(limits, Limit::FileSize),
        Exit::Code(code) if code == 128 + XCPU => return set(limits, Limit::CpuTime),
        Exit::Code(code) if code == 128 + KILL => return out_of_cpu.then_some(Limit::CpuTime),
        Exit::Signal(XFSZ) => return set(limits, Limit::FileSize),
        Exit::Signal(XCPU) => return set(limits, Limit::CpuTime),
        Exit::Signal(KILL) => return out_of_cpu.then_some(Limit::CpuTime),
        Exit::Signal(ILL | TRAP | ABORT | BUS | SEGV) | Exit::Code(_) => {}
        Exit::Signal(_) => return None,
    }
    // The runtime gave up: what it said tells why.
    let said = stderr.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|words| said.contains(words));
    let memory =
        ["out of memory", "memory allocation of", "memoryerror", "bad_alloc", "cannot allocate memory"];
    if says(&memory) {
        set(limits, Limit::Data)
    } else if says(&["too many open files"]) {
        set(limits, Limit::OpenFiles)
    } else if says(&["resource temporarily unavailable"]) {
        set(limits, Limit::Processes)
    } else {
        None
    }
}

/// The limit to name: memory that ran out ran into whichever limit of memory there is.
fn set(limits: &Limits, limit: Limit) -> Option<Limit> {
    let all = if limit == Limit::Data { &[Limit::Data, Limit::AddressSpace][..] } else { &[limit] };
    all.iter().copied().find(|limit| limits.is_set(*limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn all() -> Limits {
        Limits::new().data(1).address_space(1).cpu_seconds(2).open_files(1).file_size(1).processes(1)
    }

    #[test]
    fn an_end_names_the_limit_behind_it() {
        let rust = "memory allocation of 1073741824 bytes failed";
        let node =
            "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory\n 1: 0xb7";
        for (exit, cpu, stderr, limit) in [
            (Exit::Signal(24), SECOND, "", Some(Limit::CpuTime)),
            (Exit::Code(152), SECOND, "", Some(Limit::CpuTime)),
            (Exit::Signal(9), 2 * SECOND, "", Some(Limit::CpuTime)),
            (Exit::Code(137), 2 * SECOND, "", Some(Limit::CpuTime)),
            (Exit::Signal(9), SECOND, "", None),
            (Exit::Code(137), SECOND, "", None),
            (Exit::Signal(25), SECOND, "", Some(Limit::FileSize)),
            (Exit::Code(153), SECOND, "", Some(Limit::FileSize)),
            (Exit::Signal(6), SECOND, rust, Some(Limit::Data)),
            (Exit::Signal(5), SECOND, node, Some(Limit::Data)),
            (Exit::Code(1), SECOND, "MemoryError", Some(Limit::Data)),
            (Exit::Signal(6), SECOND, "std::bad_alloc", Some(Limit::Data)),
            (Exit::Code(101), SECOND, "Too many open files (os error 24)", Some(Limit::OpenFiles)),
            (Exit::Code(101), SECOND, "Resource temporarily unavailable", Some(Limit::Processes)),
            (Exit::Signal(15), SECOND, rust, None),
            (Exit::Code(0), 2 * SECOND, rust, None),
            (Exit::Unknown, 2 * SECOND, rust, None),
            (Exit::Signal(11), SECOND, "goodbye", None),
        ] {
            assert_eq!(exceeded(&all(), exit, Some(cpu), stderr), limit, "{exit:?} {stderr}");
            assert_eq!(exceeded(&Limits::new(), exit, Some(cpu), stderr), None, "a limit that is not set");
        }
    }

    #[test]
    fn an_exception_names_the_limit_behind_it() {
        let raised = |kind: &str, message: &str, limit| ExecutionError {
            kind: kind.to_owned(),
            message: message.to_owned(),
            traceback: String::new(),
            exit_code: None,
            limit,
        };
        let fork = raised("BlockingIOError", "[Errno 11] Resource temporarily unavailable", None);
        let thread = raised("RuntimeError", "can't start new thread", None);
        let memory = raised("MemoryError", "", Some(Limit::Data));
        for (error, limit) in [(&fork, Limit::Processes), (&thread, Limit::Processes), (&memory, Limit::Data)]
        {
            assert_eq!(exceeded_by_error(&all(), error), Some(limit));
            assert_eq!(exceeded_by_error(&Limits::new().niceness(1), error), None);
        }
        assert_eq!(exceeded_by_error(&Limits::new().address_space(1), &memory), Some(Limit::AddressSpace));
        assert_eq!(exceeded_by_error(&all(), &raised("ValueError", "[Errno 11]", None)), None);
    }
}
