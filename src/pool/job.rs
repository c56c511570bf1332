//! Jobs: work that runs on the pool's own threads, and the handles to wait for it.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::Serialize;

use super::acquire::CancelledWaiter;
use super::core::{Core, Pooled};
use super::events::TARGET;
use super::gate::{Decided, Waiter};
use super::guard::PooledSession;
use super::state::{Claim, Decision, Lease, Refusal, Take, Ticket, Who};
use crate::background::shielded;
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

    /// The work, unless the job has been cancelled, or is about to hear of it: a token that fires tells
    /// its jobs one after the other.
    fn begin(&self) -> Option<Request<'static>> {
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

/// A job in the queue of the pool's state, where it stands among the callers and belongs to its
/// tenant; no thread waits for it.
struct Queued {
    core: Arc<Core>,
    shared: Arc<Shared>,
    claim: Claim,
    began: Moment,
    /// Set under the lock under which it was enqueued.
    ticket: OnceLock<Ticket>,
}

/// A job that has a session, until a runner takes it over.
struct Ready {
    job: Arc<Queued>,
    lease: Lease<Box<Pooled>>,
}

/// The jobs that have a session, and the runners. There are never more jobs that have one, running
/// ones included, than sessions, so there are not more runners either.
pub(super) struct Jobs {
    queue: Mutex<Queue>,
    wanted: Condvar,
    clock: Clock,
}

struct Queue {
    open: bool,
    ready: VecDeque<Ready>,
    runners: usize,
    /// Runners that wait, or will look for work without anything in between but the end of a job
    /// whose session is given back.
    free: usize,
    /// No runner can be started: a thread is turning back whatever becomes ready.
    turning_back: bool,
}

impl Queue {
    /// Whether one more runner is to be started; counts it.
    fn another_runner(&mut self) -> bool {
        let spawn = self.ready.len() > self.free;
        self.runners += usize::from(spawn);
        self.free += usize::from(spawn);
        spawn
    }
}

impl Jobs {
    pub(super) fn new(clock: Clock) -> Jobs {
        let queue = Queue { open: true, ready: VecDeque::new(), runners: 0, free: 0, turning_back: false };
        Jobs { queue: Mutex::new(queue), wanted: Condvar::new(), clock }
    }

    /// Ends the runners; jobs that have not begun end with [`Error::Closed`]. The state is closed
    /// already, and has refused those that wait for a session.
    pub(super) fn close(&self) {
        let ready = {
            let mut queue = self.queue.lock();
            queue.open = false;
            mem::take(&mut queue.ready)
        };
        self.wanted.notify_all();
        for job in ready {
            job.turn_back(Error::Closed);
        }
    }

    /// Has runners without work look at the clock, which a test has moved.
    pub(super) fn clock_moved(&self) {
        let _queue = self.queue.lock();
        self.wanted.notify_all();
    }

    /// The next job, or `None` when this runner should end.
    fn next(&self) -> Option<Ready> {
        let mut queue = self.queue.lock();
        let deadline = self.clock.after(LINGER);
        loop {
            if let Some(job) = queue.ready.pop_front() {
                queue.free -= 1;
                return Some(job);
            }
            if !queue.open {
                break;
            }
            let late = wait_by(&self.clock, &self.wanted, &mut queue, Some(deadline));
            if late && queue.ready.is_empty() {
                break;
            }
        }
        queue.free -= 1;
        queue.runners -= 1;
        None
    }

    /// A runner is about to give its session back: whoever gets that needs no other runner.
    fn free_runner(&self) {
        self.queue.lock().free += 1;
    }
}

impl Decided for Queued {
    /// It was granted a session, or refused one.
    fn decided(self: Arc<Queued>) {
        let Some(ticket) = self.ticket.get() else { unreachable!("set under the lock of the decision") };
        let waited = self.core.clock().now().saturating_since(self.began);
        let decision = self.core.lock().state.collect(*ticket, waited);
        match decision {
            Some(Decision::Granted(lease)) => Ready { job: self, lease }.start(),
            // A request holds the user's callback, and this may be any thread.
            Some(Decision::Refused(refusal)) => {
                shielded("the end of a refused job", || self.refuse(refusal));
            }
            None => unreachable!("a decision is collected once"),
        }
    }
}

impl Queued {
    fn refuse(&self, refusal: Refusal) {
        self.shared.finish(Err(self.core.refused(refusal, self.claim.place, self.began, false)));
    }
}

impl Ready {
    /// Hands the job to a runner; starts one if all are busy.
    fn start(self) {
        let core = Arc::clone(&self.job.core);
        let spawn = {
            let mut queue = core.jobs.queue.lock();
            if !queue.open {
                drop(queue);
                return self.turn_back(Error::Closed);
            }
            queue.ready.push_back(self);
            if queue.turning_back {
                return;
            }
            queue.another_runner()
        };
        if spawn {
            start_runner(&core);
        } else {
            core.jobs.wanted.notify_one();
        }
    }

    /// Ends the job without having begun it; its session is as it was.
    fn turn_back(self, error: Error) {
        let core = &self.job.core;
        core.give_back_unused(self.lease);
        self.job.shared.finish(Err(error));
    }

    /// Runs the job on this thread. Its session is given back before it is done.
    fn run(self) {
        let Ready { job, lease } = self;
        let Some(request) = job.shared.begin() else {
            // Cancelled between its turn and now.
            job.core.jobs.free_runner();
            return Ready { job, lease }.turn_back(Error::Cancelled);
        };
        let mut session = job.core.lend(lease.slot, lease.session, Some(&job.shared.token));
        if let Some(recorder) = &job.core.recorder {
            session.record(recorder.note(job.began, job.core.clock().now(), true));
        }
        let result = match job.core.fit_for(session, &job.claim, &job.shared.token) {
            Ok(session) => job.execute(session, request),
            Err(error) => {
                job.core.jobs.free_runner();
                Err(error)
            }
        };
        job.shared.finish(result);
    }
}

impl Queued {
    fn execute(&self, mut session: PooledSession, request: Request<'static>) -> Result<Execution> {
        let id = session.id();
        // Only a user's output callback can panic in there; the session is dead then.
        let result = catch_unwind(AssertUnwindSafe(|| session.execute(request))).unwrap_or_else(|_| {
            let (pool, session, job) = (self.core.config.name.as_str(), id.number(), self.shared.id.0);
            log::error!(target: TARGET, pool, session, job; "the output callback of a job panicked");
            Err(Error::SessionDead { session: id, post_mortem: None })
        });
        self.core.jobs.free_runner();
        drop(session);
        result
    }
}

/// Queues work: it gets the next session that is its tenant's turn, and a runner then.
#[track_caller]
pub(super) fn submit(
    core: &Arc<Core>,
    request: Request<'static>,
    scope: Option<&CancelToken>,
    who: Option<Box<Who>>,
) -> Job {
    let mut claim = Claim::of_job(who);
    let shared = Shared::new(request, scope);
    let job = Job { shared: Arc::clone(&shared) };
    if shared.token.is_cancelled() {
        return job;
    }
    let began = core.clock().now();
    let queued = Arc::new(Queued {
        core: Arc::clone(core),
        shared,
        claim: claim.clone(),
        began,
        ticket: OnceLock::new(),
    });
    let waiter = Waiter::of_job(queued.clone());
    let entered = core.with(|state, fx| match state.take(&mut claim, began, fx) {
        Take::Hit(lease) => Ok(Some(lease)),
        Take::Closed => Err(Refusal::Closed),
        Take::Empty => {
            let ticket = state.enqueue(claim, Moment::FAR_FUTURE, waiter, began, fx)?;
            // Before anybody can be told of the decision.
            let _ = queued.ticket.set(ticket);
            Ok(None)
        }
    });
    match entered {
        Ok(Some(lease)) => Ready { job: queued, lease }.start(),
        Ok(None) => queued.listen(),
        Err(refusal) => queued.refuse(refusal),
    }
    job
}

impl Queued {
    /// Has the job leave the queue when its token fires.
    fn listen(&self) {
        let Some(ticket) = self.ticket.get() else { return };
        let waker = Arc::new(CancelledWaiter::new(Arc::clone(&self.core), *ticket));
        let registration = self.shared.token.register(waker);
        let mut state = self.shared.state.lock();
        if matches!(state.phase, Phase::Queued(_)) {
            state.registrations.push(registration);
        }
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
    {
        let mut queue = core.jobs.queue.lock();
        queue.runners -= 1;
        queue.free -= 1;
        // Other runners take the work over; without any, nobody would.
        if queue.runners > 0 {
            return;
        }
        queue.turning_back = true;
    }
    let (pool, reason) = (core.config.name.as_str(), error.to_string());
    log::warn!(target: TARGET, pool, reason = reason.as_str(); "no thread for jobs");
    // Each one that is turned back lets the next one have its session: it comes here, not deeper.
    loop {
        let mut queue = core.jobs.queue.lock();
        let Some(job) = queue.ready.pop_front() else {
            queue.turning_back = false;
            return;
        };
        drop(queue);
        let source = std::io::Error::other(error.to_string());
        job.turn_back(Error::io("starting a thread for jobs", source));
    }
}

/// A runner thread.
fn run(core: &Arc<Core>) {
    while let Some(job) = core.jobs.next() {
        // A runner counts as free before anything of the user's is dropped.
        shielded("a job", || job.run());
    }
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
