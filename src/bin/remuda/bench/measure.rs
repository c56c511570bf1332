//! Samples, pinning, and the exactness of timers.

use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity, set_current_timer_slack};
use rustix::time::{ClockId, clock_gettime};

/// Measured values in one unit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn append(&mut self, other: Samples) {
        self.0.extend(other.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The value that a share `q` of the samples does not exceed.
    pub(crate) fn quantile(&self, q: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        // The truncation is the rank: both numbers are small and positive.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank below len")]
        let rank = (last as f64 * q).round() as usize;
        sorted.get(rank).copied()
    }

    /// Each sample less `value`.
    pub(crate) fn less(&self, value: f64) -> Samples {
        self.0.iter().map(|sample| sample - value).collect()
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5).unwrap_or(f64::NAN)
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Samples {
        Samples(values.into_iter().collect())
    }
}

pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Processor time of all threads of this process so far.
pub(crate) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}

/// How large a process is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Size {
    /// Its private memory.
    pub(crate) bytes: f64,
    pub(crate) threads: f64,
}

impl Size {
    pub(crate) fn of(pid: u32) -> io::Result<Size> {
        let number = |file: &str, key: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
            number.ok_or_else(|| io::Error::other(format!("{file} has no {key}")))
        };
        let kib = number("smaps_rollup", "Private_Dirty:")?;
        Ok(Size { bytes: kib * 1024.0, threads: number("status", "Threads:")? })
    }

    /// What to say beside the memory that a process has grown by.
    pub(crate) fn threads_note(self) -> String {
        if self.threads > 0.0 { format!("and {} threads more", self.threads) } else { "no thread".to_owned() }
    }
}

/// Nanoseconds of one call, from the time of a batch of them.
pub(crate) fn nanos_each(batch: usize, mut call: impl FnMut()) -> f64 {
    let started = Instant::now();
    for _ in 0..batch {
        call();
    }
    started.elapsed().as_secs_f64() * 1e9 / batch as f64
}

/// Keeps this thread, and whatever processes and threads it starts meanwhile, on one core.
/// Dropping it gives the thread its cores back.
#[derive(Debug)]
pub(crate) struct Pinned {
    before: CpuSet,
    core: CpuSet,
}

impl Pinned {
    /// Pins to the last core that this thread may use: the first tends to serve interrupts.
    pub(crate) fn here() -> io::Result<Pinned> {
        let before = sched_getaffinity(None)?;
        let mut core = CpuSet::new();
        let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| before.is_set(*cpu));
        core.set(last.unwrap_or(0));
        sched_setaffinity(None, &core)?;
        Ok(Pinned { before, core })
    }

    /// Pins a process that was started elsewhere to the same core.
    pub(crate) fn with(&self, pid: u32) -> io::Result<()> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        Ok(sched_setaffinity(pid, &self.core)?)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// Lets this thread's short sleeps end on time instead of up to 50 µs late.
pub(crate) fn exact_timers() {
    let _ = set_current_timer_slack(NonZeroU64::new(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let samples: Samples = (1..=100).map(f64::from).collect();
        assert_eq!(samples.quantile(0.99), Some(99.0));
        assert_eq!(samples.quantile(0.0), Some(1.0));
        assert_eq!(Samples::default().quantile(0.5), None);
    }
}
