//! What the kernel tells of a process, by its number: memory, CPU time, descendants.

use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use serde::Serialize;

/// So many processes may stand between the host and a worker that is accounted for.
const DEEPEST_WRAPPER: usize = 8;

/// Memory of a worker process, in bytes, as the kernel counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Memory {
    /// Resident now.
    pub resident: u64,
    /// The largest resident size so far.
    pub peak: u64,
    /// What it would cost alone: pages that several processes share count in parts (PSS). Only if it
    /// was asked for, and the kernel lets this user know.
    pub proportional: Option<u64>,
    /// What its end would free: pages that nobody shares (USS). As `proportional`.
    pub unique: Option<u64>,
}

/// Resident size and peak.
pub(crate) fn memory(pid: u32) -> Option<Memory> {
    let status = read(pid, "status")?;
    let (resident, peak) = (kib_field(&status, "VmRSS:")?, kib_field(&status, "VmHWM:")?);
    Some(Memory { resident, peak, proportional: None, unique: None })
}

/// Proportional and unique size; `None` where the kernel does not let this user know.
pub(crate) fn shares(pid: u32) -> Option<(u64, u64)> {
    let maps = read(pid, "smaps_rollup")?;
    let field = |name| kib_field(&maps, name);
    Some((field("Pss:")?, field("Private_Clean:")? + field("Private_Dirty:")?))
}

/// CPU time of all threads, and of children that were waited for.
pub(crate) fn cpu_times(pid: u32) -> Option<(Duration, Duration)> {
    let stat = read(pid, "stat")?;
    // The name may hold anything, blanks and brackets too: fields count from its end.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
    let mut ticks = || Some(fields.next()?.ok()? + fields.next()?.ok()?);
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let time = |ticks: u64| Duration::from_micros(ticks.saturating_mul(1_000_000) / per_second);
    Some((time(ticks()?), time(ticks()?)))
}

/// The number of the process behind a pidfd of ours; `None` once it is reaped, and of a process that
/// cannot be seen from here.
pub(crate) fn number_of(pidfd: BorrowedFd<'_>) -> Option<u32> {
    let info = read_at_once(&format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok().filter(|pid| *pid != 0)
}

/// Parent and process group.
pub(crate) fn kinship(pid: u32) -> Option<(u32, u32)> {
    let stat = read(pid, "stat")?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(1).map(str::parse::<u32>);
    Some((fields.next()?.ok()?, fields.next()?.ok()?))
}

/// How a process ended that nobody has reaped, as `wait` would tell it. `None` while it lives, and where
/// the kernel does not let this user know.
pub(crate) fn wait_status(pid: u32) -> Option<i32> {
    let stat = read(pid, "stat")?;
    let fields = stat.rsplit_once(')')?.1;
    let status: i32 = fields.split_ascii_whitespace().next_back()?.parse().ok()?;
    if !fields.trim_start().starts_with('Z') {
        return None;
    }
    // To those who may not know, the kernel says zero.
    (status != 0 || fs::read(format!("/proc/{pid}/io")).is_ok()).then_some(status)
}

/// Starts a new measurement of the peak; `None` where this user may not.
pub(crate) fn reset_peak(pid: u32) -> Option<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").ok()
}

/// The process that knows itself by the number `own`, perhaps in a PID namespace: `pid`, or one that
/// it has started.
pub(crate) fn descendant(pid: u32, own: u32) -> Option<u32> {
    let mut generation = vec![pid];
    for _ in 0..DEEPEST_WRAPPER {
        let knows_itself = |pid: &&u32| innermost_number(**pid) == Some(own);
        if let Some(found) = generation.iter().find(knows_itself) {
            return Some(*found);
        }
        let children =
            |pid: u32| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let next = generation.into_iter().flat_map(|pid| {
            children(pid).split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u32>>()
        });
        generation = next.collect();
    }
    None
}

/// The number of a process in its own PID namespace.
fn innermost_number(pid: u32) -> Option<u32> {
    let status = read(pid, "status")?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_ascii_whitespace().next_back()?.parse().ok()
}

/// A line such as `VmRSS:  1234 kB`, in bytes.
fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn read(pid: u32, name: &str) -> Option<String> {
    read_at_once(&format!("/proc/{pid}/{name}"))
}

/// These files do not say how long they are: without room for all of it, each is read in ten pieces.
fn read_at_once(path: &str) -> Option<String> {
    let mut text = String::with_capacity(4 << 10);
    fs::File::open(path).ok()?.read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_tells_of_itself() {
        let me = std::process::id();
        let memory = memory(me).expect("memory");
        assert!(memory.resident > 0 && memory.peak >= memory.resident);
        let (proportional, unique) = shares(me).expect("shares");
        assert!(unique > 0 && proportional >= unique);
        assert!(cpu_times(me).is_some());
        assert_eq!((cpu_times(u32::MAX), shares(u32::MAX)), (None, None));
    }

    #[test]
    fn a_descendant_is_found_and_a_stranger_is_not() {
        let me = std::process::id();
        assert_eq!(descendant(me, me), Some(me));
        let mut child = Command::new("sleep").arg("600").spawn().expect("sleep");
        let mut stranger = Command::new("sleep").arg("600").spawn().expect("sleep");
        assert_eq!(descendant(child.id(), child.id()), Some(child.id()));
        assert_eq!(descendant(child.id(), stranger.id()), None);
        for process in [&mut child, &mut stranger] {
            process.kill().expect("kill");
            process.wait().expect("wait");
        }
    }
}
