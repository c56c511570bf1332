//! The reaper: one thread per process that waits for ended workers, so that nobody else has to.
//!
//! Whoever is done with a worker hands it over as a [`Ward`]. The reaper lets it leave by itself
//! until its deadline, then kills its group, reaps it, removes its directory and tells the owner. A
//! directory that holds much is removed on a thread of its own: nobody waits for another's litter.

use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{read, write};

use super::execution::{Cause, Exit, PostMortem};
use super::process::Process;
use super::scratch::Scratch;
use super::transport::{Transport, timespec};
use super::watchdog::Watchdog;
use crate::background::{Background, shielded};
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::sync::Mutex;

/// A worker that nobody uses any more.
pub(crate) struct Ward {
    pub(crate) process: Arc<Process>,
    /// Kept open until the worker has gone, so that a graceful end meets no broken pipe.
    pub(crate) transport: Option<Transport>,
    pub(crate) scratch: Option<Scratch>,
    /// When the group is killed if it has not ended by then.
    pub(crate) kill_at: Moment,
    /// What is known so far; exit, cause and peak are filled in.
    pub(crate) post_mortem: PostMortem,
    /// Told on the reaper's thread once the process is reaped.
    pub(crate) gone: Box<dyn FnOnce(PostMortem) + Send>,
}

/// How long dropping the reaper waits for killed workers: far beyond what the kernel needs, except
/// for a process stuck in a device.
const PATIENCE: Duration = Duration::from_secs(10);

/// Handle of the reaper thread; dropping it waits until every ward is gone.
pub(crate) struct Reaper {
    shared: Arc<Shared>,
    thread: Background,
}

struct Shared {
    inbox: Mutex<Inbox>,
    wake: OwnedFd,
    watchdog: Arc<Watchdog>,
}

/// What is left of a ward once its process is reaped: to be told to its owner.
struct Farewell {
    post_mortem: PostMortem,
    gone: Box<dyn FnOnce(PostMortem) + Send>,
}

#[derive(Default)]
struct Inbox {
    wards: Vec<Ward>,
    /// Their directories have been removed on other threads.
    swept: Vec<Farewell>,
    /// Set when the last session has ended: what is left by then is given up.
    finish_by: Option<Moment>,
}

impl Reaper {
    pub(crate) fn start(watchdog: Arc<Watchdog>) -> Result<Reaper> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::io("creating an eventfd", error))?;
        let shared = Arc::new(Shared { inbox: Mutex::default(), wake, watchdog });
        let of_thread = Arc::clone(&shared);
        let thread = Background::spawn("remuda-reaper", move || of_thread.run())
            .map_err(|error| Error::io("starting the reaper thread", error))?;
        Ok(Reaper { shared, thread })
    }

    /// Takes over a worker. Never blocks.
    pub(crate) fn take(&self, ward: Ward) {
        self.shared.inbox.lock().wards.push(ward);
        self.shared.signal();
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.shared.inbox.lock().finish_by = Some(Moment::after(PATIENCE));
        self.shared.signal();
        self.thread.join();
    }
}

impl Shared {
    fn signal(&self) {
        // Can only fail when the counter is full, and then the thread is awake anyway.
        let _ = write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn run(self: &Arc<Shared>) {
        let mut wards: Vec<Ward> = Vec::new();
        let mut sweepers: Vec<Background> = Vec::new();
        loop {
            let (finish_by, swept) = {
                let mut inbox = self.inbox.lock();
                wards.append(&mut inbox.wards);
                (inbox.finish_by, mem::take(&mut inbox.swept))
            };
            swept.into_iter().for_each(Farewell::tell);
            // A sweeper's last act is a signal, so the one that was just heard of may still be here.
            sweepers.retain(|sweeper| !sweeper.is_finished());
            let now = Moment::now();
            if let Some(finish_by) = finish_by
                && (wards.is_empty() || now >= finish_by)
            {
                for ward in wards {
                    log::error!(pid = ward.process.id(); "a killed worker does not end; it is left behind");
                }
                drop(sweepers);
                mem::take(&mut self.inbox.lock().swept).into_iter().for_each(Farewell::tell);
                return;
            }
            for ward in wards.iter_mut().filter(|ward| ward.kill_at <= now) {
                ward.process.kill_group(Cause::Retired);
                ward.kill_at = Moment::FAR_FUTURE;
            }
            let next = wards.iter().map(|ward| ward.kill_at).chain(finish_by).min();
            let next = next.filter(|at| *at < Moment::FAR_FUTURE);
            let ended = self.wait(&wards, next);
            for index in ended.into_iter().rev() {
                sweepers.extend(self.bury(wards.swap_remove(index)));
            }
        }
    }

    /// Waits for an end, a new ward or the deadline; returns the indexes of ended wards, ascending.
    fn wait(&self, wards: &[Ward], deadline: Option<Moment>) -> Vec<usize> {
        let mut fds: Vec<PollFd<'_>> = vec![PollFd::new(&self.wake, PollFlags::IN)];
        fds.extend(wards.iter().map(|ward| PollFd::from_borrowed_fd(ward.process.pidfd(), PollFlags::IN)));
        let timeout = deadline.map(|deadline| timespec(deadline.saturating_since(Moment::now())));
        // An error (EINTR) counts as a wake-up: the loop looks again.
        let ready = poll(&mut fds, timeout.as_ref()).unwrap_or(0);
        if ready == 0 {
            return Vec::new();
        }
        if !fds[0].revents().is_empty() {
            let _ = read(&self.wake, &mut [0_u8; 8]);
        }
        (0..wards.len()).filter(|index| !fds[index + 1].revents().is_empty()).collect()
    }

    /// Reaps one ended worker, removes its directory, tells its owner. In this order: a program that
    /// has waited for the end of its sessions may exit at once. Returns the thread that removes a
    /// large directory; this one then tells the owner later.
    fn bury(self: &Arc<Shared>, ward: Ward) -> Option<Background> {
        // First, so that the number cannot be reused while it is listed. One that was reaped before
        // (its session was taken back from its user) is not listed, and its number may be another's.
        if !ward.process.is_reaped() {
            self.watchdog.remove(ward.process.group());
        }
        let (exit, cause) = ward.process.reap().unwrap_or((Exit::Unknown, Cause::Itself));
        let post_mortem =
            PostMortem { exit, cause, peak_memory: ward.process.peak_seen(), ..ward.post_mortem };
        drop(ward.transport);
        let exit = post_mortem.exit.to_string();
        log::debug!(session = post_mortem.session.0, pid = post_mortem.pid, exit = exit.as_str(); "worker gone");
        let farewell = Farewell { post_mortem, gone: ward.gone };
        let Some(scratch) = ward.scratch.filter(Scratch::is_large) else {
            farewell.tell();
            return None;
        };
        // Where there is no thread to be had, it stays here and is taken back.
        let work = Arc::new(Mutex::new(Some((scratch, farewell))));
        let (shared, of_thread) = (Arc::clone(self), Arc::clone(&work));
        let sweeper = Background::spawn("remuda-sweep", move || {
            let Some((scratch, farewell)) = of_thread.lock().take() else { return };
            drop(scratch);
            shared.inbox.lock().swept.push(farewell);
            shared.signal();
        });
        if sweeper.is_err()
            && let Some((scratch, farewell)) = work.lock().take()
        {
            drop(scratch);
            farewell.tell();
        }
        sweeper.ok()
    }
}

impl Farewell {
    fn tell(self) {
        shielded("a session's end callback", || (self.gone)(self.post_mortem));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Runtime, Session};
    use crossbeam_channel::unbounded;

    #[test]
    fn a_large_directory_is_removed_elsewhere_and_its_owner_told_after_that() {
        let (told, gone) = unbounded();
        let mut session = Session::start(&Session::builder(Runtime::python("python3"))).expect("starts");
        let run = session.execute("import os\nos.mkdir('deep')\nos.getcwd()").expect("runs");
        let directory = std::path::PathBuf::from(run.value.as_str().expect("a path"));
        let watched = directory.clone();
        let worker = session.worker.take().expect("alive");
        worker.process.kill_group(Cause::Retired);
        assert!(worker.process.ends_within(Duration::from_secs(60)));
        let watchdog = Arc::clone(&worker.keeper.watchdog);
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd");
        let shared = Arc::new(Shared { inbox: Mutex::default(), wake, watchdog });
        let sweeper = shared.bury(Ward {
            process: worker.process,
            transport: Some(worker.transport),
            scratch: worker.scratch,
            kill_at: Moment::FAR_FUTURE,
            post_mortem: PostMortem {
                session: session.id,
                pid: 0,
                exit: Exit::Unknown,
                cause: Cause::Itself,
                stderr_tail: String::new(),
                peak_memory: None,
                executions: 1,
                running: None,
            },
            gone: Box::new(move |post_mortem| told.send((post_mortem, watched.exists())).expect("heard")),
        });
        assert!(gone.try_recv().is_err(), "the owner is not told before");
        drop(sweeper.expect("a thread of its own"));
        assert!(!directory.exists());
        mem::take(&mut shared.inbox.lock().swept).into_iter().for_each(Farewell::tell);
        let (post_mortem, existed) = gone.try_recv().expect("told");
        assert_eq!((post_mortem.exit, post_mortem.cause, existed), (Exit::Signal(9), Cause::Retired, false));
    }
}
