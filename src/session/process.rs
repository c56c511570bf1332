//! One worker process: how it is started, watched, signalled and accounted for.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, pidfd_send_signal,
    test_kill_process, waitid,
};

use super::SessionId;
use super::config::SessionConfig;
use super::exchange::END_PATIENCE;
use super::execution::{Cause, Exit};
use super::proc::{self, Memory};
use super::runtime::{self, Launch};
#[cfg(feature = "testing")]
use super::stand_in::Body;
use super::transport::timespec;
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::sync::Mutex;

/// Variables of the host that a worker sees although its environment is clean. `LC_*` too.
const KEPT_VARIABLES: [&str; 10] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TERM", "TMPDIR", "LD_LIBRARY_PATH"];

/// A worker process as seen by everyone who may watch or kill it, whichever thread uses its session.
///
/// It leads a process group of its own. Its number stays taken until the reaper has reaped it, and
/// signals are sent under the lock that reaping takes: none can reach a stranger. (A host that
/// reaps every child of its own takes that away; then a look at the number comes before a signal.)
///
/// A child of a template cannot be waited for here: the template keeps it unreaped until it is told to
/// let it go, and `/proc` says how it ended. When the template ends, `init` reaps its children; whether
/// a number is still its own is then what the pidfd says.
#[derive(Debug)]
pub(crate) struct Process {
    session: SessionId,
    pid: Pid,
    pidfd: OwnedFd,
    /// Whose child it is, if it is not ours, and the number by which that knows it.
    parent: Option<(Arc<dyn Parent>, u64)>,
    /// Cleared by whoever notices the death or decides it; never set again.
    alive: AtomicBool,
    end: Mutex<End>,
    peak: AtomicU64,
    /// The process that is accounted for: a wrapper may have the worker for a child. 0: it cannot be
    /// seen from here.
    measured: AtomicU32,
}

/// A process whose children are sessions of this program.
pub(crate) trait Parent: fmt::Debug + Send + Sync {
    /// Has it wait for a child, so that the child's number becomes free. Never blocks.
    fn reap(&self, child: u64);
}

#[derive(Debug, Default)]
struct End {
    cause: Option<Cause>,
    exit: Option<Exit>,
    reaped: bool,
    /// Somebody else reaped it (a host that waits for any child): its number may have a new owner.
    lost: bool,
}

/// The worker's ends of fds 0, 1 and 2.
pub(crate) struct ChildEnds {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Process {
    /// Starts the program in a process group of its own. `posix_spawn` is used as long as nothing
    /// here asks for more (a `pre_exec` would fork the host: 30 ms for each GiB it holds).
    pub(crate) fn spawn(
        session: SessionId,
        launch: &Launch,
        config: &SessionConfig,
        directory: &Path,
        ends: ChildEnds,
    ) -> Result<Process> {
        #[cfg(feature = "testing")]
        let (ends, entrance) = match config.runtime.player() {
            Some(player) => {
                let taken = player.0.take(session, ends);
                let (ends, entrance) = taken.map_err(|error| Error::io("playing a worker", error))?;
                (ends, Some(entrance))
            }
            None => (ends, None),
        };
        let mut command = Command::new(&launch.program);
        command
            .args(&launch.args)
            .process_group(0)
            .current_dir(directory)
            .stdin(Stdio::from(ends.stdin))
            .stdout(Stdio::from(ends.stdout))
            .stderr(Stdio::from(ends.stderr));
        set_environment(&mut command, config);
        let mut child = command.spawn().map_err(|error| Error::Runtime {
            program: launch.program.clone(),
            reason: runtime::spawn_advice(&error).to_owned(),
            source: Some(error),
        })?;
        let watched = runtime::pid(child.id())
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|pid| Ok((pid, pidfd_open(pid, PidfdFlags::empty())?)));
        let (pid, pidfd) = match watched {
            Ok(watched) => watched,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::io("opening a pidfd", error));
            }
        };
        let process = Process::of(session, pid, pidfd, None);
        if let Err(error) = config.limits.set(process.pid) {
            process.kill_group(Cause::Retired);
            let _ = child.wait();
            return Err(error);
        }
        #[cfg(feature = "testing")]
        if let Some(enter) = entrance {
            let body = process.pidfd.try_clone().map(|pidfd| Body { pid: process.id(), pidfd });
            if let Err(error) = body.and_then(enter) {
                process.kill_group(Cause::Retired);
                let _ = child.wait();
                return Err(Error::io("playing a worker", error));
            }
        }
        // From here on the reaper waits for it, through the pidfd.
        Ok(process)
    }

    /// Takes over a child that a template has made; its limits are set as those of any other. Whatever
    /// fails leaves it to the end of its channels.
    pub(crate) fn forked(
        session: SessionId,
        pidfd: OwnedFd,
        (template, number): (Arc<dyn Parent>, u64),
        template_pid: Option<u32>,
        config: &SessionConfig,
    ) -> Result<Process> {
        let strange = |what: &str| {
            Error::io(
                "starting a session from its template",
                io::Error::new(io::ErrorKind::InvalidData, what),
            )
        };
        let id = proc::number_of(pidfd.as_fd()).ok_or_else(|| strange("the new process has ended"))?;
        // What is killed later is a child of the template, in a group of its own, and nothing else.
        let kin = proc::kinship(id).filter(|(parent, group)| Some(*parent) == template_pid && *group == id);
        let pid = runtime::pid(id).filter(|_| kin.is_some());
        let pid = pid.ok_or_else(|| strange("what it sent is no child of its own"))?;
        let process = Process::of(session, pid, pidfd, Some((template, number)));
        if let Err(error) = config.limits.set(process.pid) {
            process.kill_group(Cause::Retired);
            process.ends_within(END_PATIENCE);
            process.reap();
            return Err(error);
        }
        Ok(process)
    }

    fn of(session: SessionId, pid: Pid, pidfd: OwnedFd, parent: Option<(Arc<dyn Parent>, u64)>) -> Process {
        Process {
            session,
            pid,
            pidfd,
            parent,
            alive: AtomicBool::new(true),
            end: Mutex::default(),
            peak: AtomicU64::new(0),
            measured: AtomicU32::new(pid.as_raw_nonzero().get().unsigned_abs()),
        }
    }

    /// Whether it is the worker itself, rather than what may be a wrapper of it.
    pub(crate) fn is_forked(&self) -> bool {
        self.parent.is_some()
    }

    pub(crate) fn session(&self) -> SessionId {
        self.session
    }

    pub(crate) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The number of its process group.
    pub(crate) fn group(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Readable once the process has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether the process is thought to live and to be of use: one atomic load.
    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// Nobody shall use this process any more.
    pub(crate) fn give_up(&self) {
        self.alive.store(false, Ordering::Release);
    }

    /// Asks the kernel (0.3 µs) and remembers a death; returns whether it lives.
    pub(crate) fn check_alive(&self) -> bool {
        if self.is_alive() && self.has_ended() {
            self.give_up();
        }
        self.is_alive()
    }

    /// Whether the process has ended, reaped or not.
    pub(crate) fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Waits at most `limit` for the end of the process; returns whether it has ended.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        let deadline = Moment::after(limit);
        loop {
            let timeout = timespec(deadline.saturating_since(Moment::now()));
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&timeout)) {
                Ok(ready) => return ready > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// How it ended, if it has; it stays unreaped.
    pub(crate) fn exit(&self) -> Option<Exit> {
        let mut end = self.end.lock();
        self.look(&mut end);
        end.exit
    }

    fn look(&self, end: &mut End) {
        if end.exit.is_some() || end.reaped {
            return;
        }
        end.exit = if self.is_forked() { self.exit_of_forked(end) } else { self.exit_of_child(end) };
        if end.exit.is_some() {
            end.cause.get_or_insert(Cause::Itself);
            self.give_up();
        }
    }

    fn exit_of_child(&self, end: &mut End) -> Option<Exit> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(Some(status)) => Some(status_of(&status)),
            // Somebody else waited for our child (a host that ignores SIGCHLD): it is gone.
            Err(rustix::io::Errno::CHILD) => {
                end.lost = true;
                Some(Exit::Unknown)
            }
            Ok(None) | Err(_) => None,
        }
    }

    fn exit_of_forked(&self, end: &mut End) -> Option<Exit> {
        if !self.has_ended() {
            return None;
        }
        let status = proc::wait_status(self.id());
        // Looked at after that: as long as it holds its number, the status is its own.
        end.lost = !self.holds_number();
        let status = status.filter(|_| !end.lost).map(ExitStatus::from_raw);
        let known = status
            .and_then(|status| status.code().map(Exit::Code).or_else(|| status.signal().map(Exit::Signal)));
        Some(known.unwrap_or(Exit::Unknown))
    }

    /// Whether somebody else has reaped a child of a template.
    fn may_have_lost_its_number(&self) -> bool {
        self.is_forked() && self.has_ended() && !self.holds_number()
    }

    /// Whether the process has its number yet: nobody has reaped it.
    fn holds_number(&self) -> bool {
        proc::number_of(self.pidfd.as_fd()) == Some(self.id())
    }

    /// Who ended it and why, as far as that is known.
    pub(crate) fn cause(&self) -> Cause {
        self.end.lock().cause.clone().unwrap_or(Cause::Itself)
    }

    /// SIGKILL to the worker and its whole group; `cause` is remembered if the process still lived.
    pub(crate) fn kill_group(&self, cause: Cause) {
        self.remember_peak();
        let mut end = self.end.lock();
        self.look(&mut end);
        end.cause.get_or_insert(cause);
        self.give_up();
        self.signal_group(&end, Signal::KILL);
        if !end.reaped {
            // The group may be without its leader: a process can leave it.
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
    }

    /// A signal to what is left of the group. A group outlives its leader, and as long as it does no
    /// other process can get the leader's number: where there is one, the group is not ours any more.
    fn signal_group(&self, end: &End, signal: Signal) {
        // `lost` may have become true of a template's child since it was looked at.
        let lost = end.lost || self.may_have_lost_its_number();
        let ours = !lost || test_kill_process(self.pid) == Err(rustix::io::Errno::SRCH);
        if !end.reaped && ours {
            let _ = kill_process_group(self.pid, signal);
        }
    }

    /// SIGINT to the whole group: children of user code end, the worker looks for its cancel frame.
    pub(crate) fn interrupt_group(&self) {
        let mut end = self.end.lock();
        self.look(&mut end);
        self.signal_group(&end, Signal::INT);
    }

    /// Remembers why the process is about to end by itself (a graceful shutdown).
    pub(crate) fn expect_end(&self, cause: Cause) {
        let mut end = self.end.lock();
        self.look(&mut end);
        end.cause.get_or_insert(cause);
        self.give_up();
    }

    /// For the reaper alone: kills what is left of the group, then frees the process's number.
    /// `None` if the process has not ended.
    pub(crate) fn reap(&self) -> Option<(Exit, Cause)> {
        let mut end = self.end.lock();
        self.look(&mut end);
        let exit = end.exit?;
        if !end.reaped {
            self.signal_group(&end, Signal::KILL);
            if let Some((parent, number)) = &self.parent {
                parent.reap(*number);
            } else {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), options);
            }
            end.reaped = true;
        }
        Some((exit, end.cause.clone().unwrap_or(Cause::Itself)))
    }

    pub(crate) fn is_reaped(&self) -> bool {
        self.end.lock().reaped
    }

    /// The worker has told its process id, by its own count; `None`: it runs on another machine.
    pub(crate) fn announced(&self, pid: Option<u32>) {
        let worker = pid.and_then(|own| self.unless_reaped(|| proc::descendant(self.id(), own)));
        self.measured.store(worker.unwrap_or(0), Ordering::Relaxed);
    }

    /// Resident size now and its peak, from the kernel (about 30 µs); `None` once it is gone.
    pub(crate) fn memory(&self) -> Option<Memory> {
        let pid = self.measured()?;
        let memory = self.unless_reaped(|| proc::memory(pid))?;
        self.peak.fetch_max(memory.peak, Ordering::Relaxed);
        Some(memory)
    }

    /// As [`memory`](Process::memory), with what is shared told apart. The kernel walks every page.
    pub(crate) fn memory_in_detail(&self) -> Option<Memory> {
        let (memory, pid) = (self.memory()?, self.measured()?);
        let shares = self.unless_reaped(|| proc::shares(pid));
        let (proportional, unique) = shares.map_or((None, None), |(pss, uss)| (Some(pss), Some(uss)));
        Some(Memory { proportional, unique, ..memory })
    }

    /// CPU time of all its threads so far, in steps of 10 ms; also after its end, until it is reaped.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        let pid = self.measured()?;
        self.unless_reaped(|| proc::cpu_times(pid)).map(|(own, _)| own)
    }

    /// As [`cpu_time`](Process::cpu_time), with the children that it has waited for: of a wrapper
    /// that waits for the worker, it is the worker's.
    pub(crate) fn cpu_time_with_children(&self) -> Option<Duration> {
        self.unless_reaped(|| proc::cpu_times(self.id())).map(|(own, children)| own + children)
    }

    /// The worker itself, where a wrapper is the process that was started; `None` if it cannot be seen.
    pub(crate) fn worker_id(&self) -> Option<u32> {
        self.measured()
    }

    fn measured(&self) -> Option<u32> {
        Some(self.measured.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// Reads while the process's number is surely its own. (That of a worker behind a wrapper may get a
    /// new owner before the wrapper ends: nothing but reports depends on it.)
    fn unless_reaped<T>(&self, read: impl FnOnce() -> Option<T>) -> Option<T> {
        let end = self.end.lock();
        if end.reaped || self.may_have_lost_its_number() { None } else { read() }
    }

    /// The largest resident size that anybody has seen.
    pub(crate) fn peak_seen(&self) -> Option<u64> {
        Some(self.peak.load(Ordering::Relaxed)).filter(|peak| *peak > 0)
    }

    fn remember_peak(&self) {
        let _ = self.memory();
    }

    /// Starts a new measurement of the peak. Needs the same user; where it fails, the peak is that
    /// of the process's whole life.
    pub(crate) fn reset_peak(&self) {
        if let Some(pid) = self.measured() {
            self.unless_reaped(|| proc::reset_peak(pid));
        }
    }
}

fn status_of(status: &rustix::process::WaitIdStatus) -> Exit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Unknown,
    }
}

fn set_environment(command: &mut Command, config: &SessionConfig) {
    if !config.inherit_env {
        command.env_clear();
        for (name, value) in std::env::vars_os() {
            let Some(text) = name.to_str() else { continue };
            if KEPT_VARIABLES.contains(&text) || text.starts_with("LC_") {
                command.env(name, value);
            }
        }
    } else if let Some((prefix, false)) = config.runtime.own_variables() {
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
    }
    command.envs(&config.env);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Runtime;
    use crate::session::runtime::Channels;
    use std::fs;
    use std::process::Child;

    fn sleeper(group: i32) -> Child {
        Command::new("sleep").arg("600").process_group(group).spawn().expect("sleep")
    }

    fn started() -> Process {
        let runtime = Runtime::command("sleep", ["600"]);
        let launch = runtime.launch(Duration::from_secs(60)).expect("a command");
        assert_eq!(launch.channels, Channels::Stdio);
        let null =
            || OwnedFd::from(fs::File::options().read(true).write(true).open("/dev/null").expect("null"));
        let ends = ChildEnds { stdin: null(), stdout: null(), stderr: null() };
        Process::spawn(SessionId(1), &launch, &SessionConfig::new(runtime), Path::new("/"), ends)
            .expect("sleep")
    }

    #[test]
    fn a_group_whose_leader_the_host_has_reaped_is_still_killed() {
        let process = started();
        let mut member = sleeper(process.group());
        rustix::process::kill_process(process.pid, Signal::KILL).expect("kill");
        waitid(WaitId::Pid(process.pid), WaitIdOptions::EXITED).expect("the host reaps it");
        assert_eq!(process.reap(), Some((Exit::Unknown, Cause::Itself)));
        member.wait().expect("the member ends too");
    }

    #[test]
    fn a_stranger_with_the_number_of_a_worker_that_the_host_has_reaped_is_left_alone() {
        let mut process = started();
        process.kill_group(Cause::Retired);
        assert!(process.ends_within(Duration::from_secs(60)));
        process.reap().expect("it has ended");
        let mut stranger = sleeper(0);
        process.pid = runtime::pid(stranger.id()).expect("a number");
        *process.end.lock() = End { exit: Some(Exit::Unknown), lost: true, ..End::default() };
        process.interrupt_group();
        process.kill_group(Cause::Retired);
        process.reap();
        assert!(stranger.try_wait().expect("try_wait").is_none());
        stranger.kill().expect("kill");
        stranger.wait().expect("wait");
    }
}
