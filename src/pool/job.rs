//! Jobs: work that runs on the pool's own threads, and the handles to wait for it.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::Serialize;

use super::core::{Core, Patience};
use super::events::TARGET;
use crate::cancel::{CancelToken, Registration, Wake};
use crate::clock::{Clock, Moment};
use crate::error::{Error, Result};
use crate::session::{Execution, Request};
use crate::sync::{Condvar, Mutex, wait_by, wait_until};

/// A runner without work ends after this time.
const LINGER: Duration = Duration::from_secs(10);
/// The name of the threads.
const NAME: &str = "remuda-job";

/// Number of a job, unique in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct JobId(u64);

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
    shared: Arc<Shared>,
}

struct Shared {
    id: JobId,
    /// Fires when the job, its scope or its request's own token is cancelled.
    token: CancelToken,
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
    fn new(mut request: Request<'static>, scope: Option<&CancelToken>) -> Arc<Shared> {
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
        let registrations = parents.map(|parent| parent.register(shared.clone())).collect::<Vec<_>>();
        let mut state = shared.state.lock();
        // A job that is cancelled already would keep itself alive through them.
        if matches!(state.phase, Phase::Queued(_)) {
            state.registrations = registrations;
        }
        drop(state);
        shared
    }

    /// The work, unless the job has been cancelled.
    fn begin(&self) -> Option<Request<'static>> {
        let mut state = self.state.lock();
        match mem::replace(&mut state.phase, Phase::Running) {
            Phase::Queued(request) => Some(*request),
            other => {
                state.phase = other;
                None
            }
        }
    }

    fn finish(&self, result: Result<Execution>) {
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
        // A request holds the user's callback: dropped without the lock.
        drop((request, registrations));
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

/// The pool's job queue and the number of its runners.
pub(super) struct Jobs {
    queue: Mutex<Queue>,
    wanted: Condvar,
    clock: Clock,
}

struct Queue {
    open: bool,
    waiting: VecDeque<Arc<Shared>>,
    runners: usize,
    max_runners: usize,
    idle: usize,
}

impl Queue {
    /// Whether one more runner is to be started; counts it.
    fn another_runner(&mut self) -> bool {
        let spawn = self.waiting.len() > self.idle && self.runners < self.max_runners;
        self.runners += usize::from(spawn);
        spawn
    }
}

impl Jobs {
    pub(super) fn new(max_runners: usize, clock: Clock) -> Jobs {
        let queue = Queue { open: true, waiting: VecDeque::new(), runners: 0, max_runners, idle: 0 };
        Jobs { queue: Mutex::new(queue), wanted: Condvar::new(), clock }
    }

    /// Ends the runners; queued jobs end with [`Error::Closed`].
    pub(super) fn close(&self) {
        let waiting = {
            let mut queue = self.queue.lock();
            queue.open = false;
            mem::take(&mut queue.waiting)
        };
        self.wanted.notify_all();
        for job in waiting {
            job.finish(Err(Error::Closed));
        }
    }

    /// Has runners without work look at the clock, which a test has moved.
    pub(super) fn clock_moved(&self) {
        let _queue = self.queue.lock();
        self.wanted.notify_all();
    }

    /// The next job, or `None` when this runner should end.
    fn next(&self) -> Option<Arc<Shared>> {
        let mut queue = self.queue.lock();
        let deadline = self.clock.after(LINGER);
        loop {
            if let Some(job) = queue.waiting.pop_front() {
                return Some(job);
            }
            if !queue.open {
                break;
            }
            queue.idle += 1;
            let late = wait_by(&self.clock, &self.wanted, &mut queue, Some(deadline));
            queue.idle -= 1;
            if late && queue.waiting.is_empty() {
                break;
            }
        }
        queue.runners -= 1;
        None
    }
}

/// Queues work; starts a runner if all are busy and one more is allowed.
pub(super) fn submit(core: &Arc<Core>, request: Request<'static>, scope: Option<&CancelToken>) -> Job {
    let shared = Shared::new(request, scope);
    let job = Job { shared: Arc::clone(&shared) };
    let jobs = &core.jobs;
    let spawn = {
        let mut queue = jobs.queue.lock();
        if !queue.open {
            drop(queue);
            shared.finish(Err(Error::Closed));
            return job;
        }
        queue.waiting.push_back(shared);
        queue.another_runner()
    };
    if spawn {
        start_runner(core);
    } else {
        jobs.wanted.notify_one();
    }
    job
}

/// From now on at most `max_runners` jobs run at the same time; those that run go on.
pub(super) fn resize(core: &Arc<Core>, max_runners: usize) {
    core.jobs.queue.lock().max_runners = max_runners;
    while core.jobs.queue.lock().another_runner() {
        start_runner(core);
    }
}

/// A job that is done before it began.
pub(super) fn refused(request: Request<'static>, error: Error) -> Job {
    let shared = Shared::new(request, None);
    shared.finish(Err(error));
    Job { shared }
}

fn start_runner(core: &Arc<Core>) {
    let Err(error) = core.spawn_thread(NAME, run) else { return };
    let orphans = {
        let mut queue = core.jobs.queue.lock();
        queue.runners -= 1;
        // Other runners take the work over; without any, nobody would.
        if queue.runners == 0 { mem::take(&mut queue.waiting) } else { VecDeque::new() }
    };
    let (pool, reason) = (core.config.name.as_str(), error.to_string());
    log::warn!(target: TARGET, pool, reason = reason.as_str(); "no thread for jobs");
    for job in orphans {
        let source = std::io::Error::other(error.to_string());
        job.finish(Err(Error::io("starting a thread for jobs", source)));
    }
}

/// A runner thread.
fn run(core: &Arc<Core>) {
    while let Some(job) = core.jobs.next() {
        let Some(request) = job.begin() else { continue };
        job.finish(execute(core, &job, request));
    }
}

/// Runs a job on the next free session, which is given back before the job is done.
fn execute(core: &Arc<Core>, job: &Shared, request: Request<'static>) -> Result<Execution> {
    let mut session = core.acquire(Patience::Forever, Some(&job.token))?;
    let id = session.id();
    // Only a user's output callback can panic in there; the session is dead then.
    catch_unwind(AssertUnwindSafe(|| session.execute(request))).unwrap_or_else(|_| {
        let (pool, session) = (core.config.name.as_str(), id.number());
        log::error!(target: TARGET, pool, session, job = job.id.0; "the output callback of a job panicked");
        Err(Error::SessionDead { session: id, post_mortem: None })
    })
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
