//! A worker's process: started in a group of its own, watched, and gone for certain at the end.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, Command, Stdio};
use std::time::{Duration, Instant};

use remuda::Launch;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, pidfd_open, waitid,
};

/// How long a killed process may take to end: far beyond what the kernel needs.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// A worker's process. It is reaped when this is dropped, never before: until then its number and
/// that of its group are its own.
pub(super) struct Child {
    process: process::Child,
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    pub(super) fn spawn(launch: &Launch, directory: &Path, ends: [OwnedFd; 3]) -> io::Result<Child> {
        let [stdin, stdout, stderr] = ends.map(Stdio::from);
        let mut child = Command::new(&launch.program)
            .args(&launch.args)
            .process_group(0)
            .current_dir(directory)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr)
            .spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH);
        match pid.and_then(|pid| Ok((pid, pidfd_open(pid, PidfdFlags::empty())?))) {
            Ok((pid, pidfd)) => Ok(Child { process: child, pid, pidfd }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    /// Waits until the process has ended, at most until `until`; whether it has.
    pub(super) fn ends_by(&self, until: Instant) -> bool {
        loop {
            let left = timespec(until.saturating_duration_since(Instant::now()));
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                ready => return ready.is_ok_and(|ready| ready > 0),
            }
        }
    }

    /// Its exit code, if it has ended by itself.
    pub(super) fn exit_code(&self) -> Option<i32> {
        self.status().and_then(|status| status.exit_status())
    }

    /// How it ended, in words.
    pub(super) fn end(&self) -> String {
        match self.status() {
            None => "it lives".to_owned(),
            Some(status) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("it ended with code {code}"),
                (_, Some(signal)) => format!("signal {signal} ended it"),
                _ => "it ended".to_owned(),
            },
        }
    }

    fn status(&self) -> Option<rustix::process::WaitIdStatus> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(self.pid), options).ok().flatten()
    }

    /// The living processes of its group.
    pub(super) fn group(&self) -> Vec<u32> {
        let wanted = self.pid.as_raw_nonzero().to_string();
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        numbers.filter(|number| lives_in(*number, &wanted)).collect()
    }

    /// Kills the worker, not what it started.
    pub(super) fn kill_alone(&self) {
        let _ = kill_process(self.pid, Signal::KILL);
    }

    fn kill(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
        // It may have left its group.
        let _ = kill_process(self.pid, Signal::KILL);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        if self.ends_by(Instant::now() + KILL_PATIENCE) {
            let _ = self.process.wait();
        }
    }
}

/// Whether the process with this number is of that group, and no zombie.
fn lives_in(number: u32, group: &str) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{number}/stat")) else { return false };
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let state = fields.next();
    fields.nth(1) == Some(group) && !matches!(state, Some("Z" | "X"))
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
