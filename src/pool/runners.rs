//! The threads that run jobs, and the way of a job to one of them. A job stands in the pool's queue among
//! the callers; once it has a session, a runner takes it over.

use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::acquire::CancelledWaiter;
use super::core::{Core, Pooled};
use super::events::TARGET;
use super::gate::{Decided, Waiter};
use super::guard::PooledSession;
use super::job::{Job, Shared};
use super::state::{Claim, Decision, Lease, Refusal, Take, Ticket, Who};
use crate::background::shielded;
use crate::cancel::CancelToken;
use crate::clock::{Clock, Moment};
use crate::error::{Error, Result};
use crate::session::{Execution, Request};
use crate::sync::{Condvar, Mutex, wait_by};

/// A runner without work ends after this time.
const LINGER: Duration = Duration::from_secs(10);
/// The name of the threads.
const NAME: &str = "remuda-job";

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
        self.shared.keep_while_queued([self.shared.token.register(waker)]);
    }
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
