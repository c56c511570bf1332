//! The handles of jobs, work that runs on the pool's own threads: to wait for it, to cancel it. What runs
//! it is in [`runners`](super::runners).

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::Serialize;

use crate::background::shielded;
use crate::cancel::{CancelToken, Registration, Wake};
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::session::{Execution, Request};
use crate::sync::{Condvar, Mutex, wait_until};

/// Number of a job, unique in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct JobId(pub(super) u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Work that was submitted to a pool or a scope.
///
/// It runs whether or not anybody waits for it: dropping a job lets go of its result, it does not
/// cancel it.
#[derive(Debug)]
#[must_use = "the result of a job is only seen by waiting for it"]
pub struct Job {
    pub(super) shared: Arc<Shared>,
}

/// What the handle and the runner of a job share.
pub(super) struct Shared {
    pub(super) id: JobId,
    /// Fires when the job, its scope or its request's own token is cancelled.
    pub(super) token: CancelToken,
    state: Mutex<State>,
    done: Condvar,
}

struct State {
    phase: Phase,
    /// Told when the job is done: the other end of an [`AsCompleted`].
    watcher: Option<(Sender<usize>, usize)>,
    /// Tokens that cancel this job; let go when it is done.
    registrations: Vec<Registration>,
}

enum Phase {
    Queued(Box<Request<'static>>),
    Running,
    Done(Box<Result<Execution>>),
    /// The result went to whoever waited.
    Taken,
}

impl Job {
    /// Its number.
    pub fn id(&self) -> JobId {
        self.shared.id
    }

    /// Whether its result is there, so that [`wait`](Job::wait) does not block.
    pub fn is_done(&self) -> bool {
        matches!(self.shared.state.lock().phase, Phase::Done(_))
    }

    /// Asks it to stop: it ends at once with [`Error::Cancelled`] while it is queued, through the
    /// session's cancel ladder while it runs. Does not wait.
    pub fn cancel(&self) {
        self.shared.wake();
    }

    /// Waits for its end, without limit.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if it was cancelled before it began, [`Error::Closed`] if the pool was
    /// closed before, else what [`Session::execute`](crate::Session::execute) and
    /// [`SessionPool::acquire`](crate::SessionPool::acquire) return.
    pub fn wait(self) -> Result<Execution> {
        match self.wait_until(None) {
            Ok(result) => result,
            Err(_) => unreachable!("there is no deadline"),
        }
    }

    /// Waits for its end, at most `timeout`.
    ///
    /// # Errors
    /// The job itself, if it is not done by then; it goes on.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Result<Execution>, Job> {
        self.wait_until(Some(Moment::after(timeout)))
    }

    fn wait_until(self, deadline: Option<Moment>) -> Result<Result<Execution>, Job> {
        let mut state = self.shared.state.lock();
        loop {
            match mem::replace(&mut state.phase, Phase::Taken) {
                Phase::Done(result) => return Ok(*result),
                other => state.phase = other,
            }
            if wait_until(&self.shared.done, &mut state, deadline) && !matches!(state.phase, Phase::Done(_)) {
                drop(state);
                return Err(self);
            }
        }
    }
}

impl Shared {
    /// A queued job that `scope` and the request's own token cancel.
    pub(super) fn new(mut request: Request<'static>, scope: Option<&CancelToken>) -> Arc<Shared> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let token = CancelToken::new();
        let own = request.cancel.replace(token.clone());
        let shared = Arc::new(Shared {
            id: JobId(NEXT.fetch_add(1, Ordering::Relaxed)),
            token,
            state: Mutex::new(State {
                phase: Phase::Queued(Box::new(request)),
                watcher: None,
                registrations: Vec::new(),
            }),
            done: Condvar::new(),
        });
        let parents = [scope, own.as_ref()].into_iter().flatten();
        shared.keep_while_queued(parents.map(|parent| parent.register(shared.clone())));
        shared
    }

    /// Keeps what may cancel this job until it is done. One that is cancelled already would keep itself
    /// alive through it.
    pub(super) fn keep_while_queued(&self, registrations: impl IntoIterator<Item = Registration>) {
        let registrations: Vec<_> = registrations.into_iter().collect();
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Queued(_)) {
            state.registrations.extend(registrations);
        }
    }

    /// The work, unless the job has been cancelled, or is about to hear of it: a token that fires tells
    /// its jobs one after the other.
    pub(super) fn begin(&self) -> Option<Request<'static>> {
        let mut state = self.state.lock();
        if state.registrations.iter().any(Registration::has_fired) {
            return None;
        }
        match mem::replace(&mut state.phase, Phase::Running) {
            Phase::Queued(request) => Some(*request),
            other => {
                state.phase = other;
                None
            }
        }
    }

    pub(super) fn finish(&self, result: Result<Execution>) {
        self.end(result, |phase| matches!(phase, Phase::Queued(_) | Phase::Running));
    }

    /// Sets the result if the job is in a phase that `may` end this way.
    fn end(&self, result: Result<Execution>, may: impl FnOnce(&Phase) -> bool) {
        let mut state = self.state.lock();
        if !may(&state.phase) {
            return;
        }
        let request = mem::replace(&mut state.phase, Phase::Done(Box::new(result)));
        let watcher = state.watcher.take();
        let registrations = mem::take(&mut state.registrations);
        drop(state);
        self.done.notify_all();
        if let Some((watcher, index)) = watcher {
            let _ = watcher.send(index);
        }
        // A request holds the user's callback: dropped without the lock, and its drop may panic.
        shielded("dropping the request of a job", || drop((request, registrations)));
    }

    /// Has `sender` told `index` when the job is done, at once if it is.
    fn watch(&self, sender: &Sender<usize>, index: usize) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Done(_) | Phase::Taken) {
            let _ = sender.send(index);
        } else {
            state.watcher = Some((sender.clone(), index));
        }
    }
}

impl Wake for Shared {
    /// A token of this job fired.
    fn wake(&self) {
        self.token.cancel();
        self.end(Err(Error::Cancelled), |phase| matches!(phase, Phase::Queued(_)));
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = match self.state.lock().phase {
            Phase::Queued(_) => "queued",
            Phase::Running => "running",
            Phase::Done(_) | Phase::Taken => "done",
        };
        f.debug_struct("Job").field("id", &self.id).field("phase", &phase).finish_non_exhaustive()
    }
}

/// A job that is done before it began.
pub(super) fn refused(request: Request<'static>, error: Error) -> Job {
    let shared = Shared::new(request, None);
    shared.finish(Err(error));
    Job { shared }
}

/// Jobs in the order in which they end: see [`as_completed`].
#[derive(Debug)]
#[must_use = "an iterator does nothing until it is asked"]
pub struct AsCompleted {
    jobs: Vec<Option<Job>>,
    left: usize,
    done: Receiver<usize>,
}

/// Yields each job when it is done, in order of completion; [`Job::wait`] on it does not block.
///
/// Dropping the iterator early leaves the other jobs running;
/// [`into_remaining`](AsCompleted::into_remaining) returns them, to be cancelled for example.
pub fn as_completed(jobs: impl IntoIterator<Item = Job>) -> AsCompleted {
    let (sender, done) = unbounded();
    let jobs: Vec<Option<Job>> = jobs.into_iter().map(Some).collect();
    for (index, job) in jobs.iter().flatten().enumerate() {
        job.shared.watch(&sender, index);
    }
    AsCompleted { left: jobs.len(), jobs, done }
}

impl AsCompleted {
    /// The next job that is done within `timeout`; `None` if none is, or if there are no more.
    pub fn next_timeout(&mut self, timeout: Duration) -> Option<Job> {
        if self.left == 0 {
            return None;
        }
        let index = self.done.recv_timeout(timeout).ok()?;
        self.take(index)
    }

    /// The jobs that were not yielded yet.
    pub fn into_remaining(self) -> Vec<Job> {
        self.jobs.into_iter().flatten().collect()
    }

    fn take(&mut self, index: usize) -> Option<Job> {
        self.left -= 1;
        self.jobs[index].take()
    }
}

impl Iterator for AsCompleted {
    type Item = Job;

    /// Blocks until one more job is done.
    fn next(&mut self) -> Option<Job> {
        if self.left == 0 {
            return None;
        }
        let index = self.done.recv().ok()?;
        self.take(index)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}
