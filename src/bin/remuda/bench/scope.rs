//! Rows of scopes: how fast what one user owns ends, and what jobs cost.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use remuda::{CancelToken, Job, Outcome, Request, Reuse, Runtime, Scope, SessionPool};

use super::floors::{BUSY, Bare, interrupt};
use super::measure::{Pinned, Samples, micros, millis, processor_time};
use super::report::Row;
use super::{Bench, Context, Failure, Measured};

/// The suite, in the order of the table.
pub(super) const BENCHES: &[Bench] = &[
    Bench { rows: &[("kill_to_ended", "ms")], run: kill_to_ended },
    Bench { rows: &[("kill_to_ended_uninterruptible", "ms")], run: kill_to_ended_uninterruptible },
    Bench { rows: &[("map_overhead", "µs")], run: map_overhead },
];

const SESSIONS: usize = 8;

fn pool(context: &Context, sessions: usize, grace: Duration) -> Result<SessionPool, Failure> {
    Ok(SessionPool::builder(Runtime::python(&context.python))
        .min_idle(sessions)
        .max_sessions(sessions)
        .recycle_after_executions(None)
        .reuse(Reuse::Keep)
        .grace(grace)
        .start()?)
}

/// Runs `code` in eight sessions of one scope, cancels it once all are at it, and returns the time
/// until all have ended and how the first did.
fn kill(pool: &SessionPool, code: &str) -> Result<(Duration, Outcome), Failure> {
    pool.ensure_min_sessions()?;
    // New sessions import in the background what tracebacks need.
    thread::sleep(Duration::from_millis(200));
    let token = CancelToken::new();
    let scope = pool.scope(&token);
    let (tell, told) = mpsc::channel();
    let submit = |_| {
        let tell = tell.clone();
        let code = format!("print('busy')\n{code}");
        scope.submit(Request::code(code).on_output(move |_, _| {
            // The other end is gone only when this measurement has failed.
            let _ = tell.send(());
        }))
    };
    let jobs: Vec<Job> = (0..SESSIONS).map(submit).collect();
    for _ in 0..SESSIONS {
        told.recv_timeout(Duration::from_secs(10))?;
    }
    let started = Instant::now();
    token.cancel();
    let mut outcomes = Vec::new();
    for job in jobs {
        outcomes.push(job.wait()?.outcome);
    }
    Ok((started.elapsed(), outcomes[0]))
}

/// How long everything runs undisturbed before something is measured.
const REST: Duration = Duration::from_millis(100);
/// How long the newcomer after a kill is left alone.
const SETTLE: Duration = Duration::from_millis(300);
/// Kills one after the other, of ours or of the floor, before the other one has its turn.
const KILLS: usize = 8;
/// What is busy: it says so once, then loops.
const LOOP: &str = "print('busy')\nwhile True: pass";

/// One of eight busy sessions belongs to a scope that is killed, beside seven that go on; the floor is
/// a SIGINT to one of eight bare loops. On two cores the interrupted one must get a turn first.
fn kill_to_ended(context: &Context) -> Measured {
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    let pool = pool(context, SESSIONS, Duration::from_secs(2))?;
    for _ in 0..context.times(6) {
        ours.append(kill_one_scope(&pool)?);
        // What was interrupted is replaced; the newcomers must not compete with the floor.
        pool.ensure_min_sessions()?;
        thread::sleep(REST);
        floor.append(interrupt_one_loop(context)?);
    }
    Ok(vec![Row::of("kill_to_ended", "ms", &ours, Some(&floor))])
}

/// Submits code that says when it is busy, and waits until it is.
fn busy(scope: &Scope, code: &str) -> Result<Job, Failure> {
    let (tell, told) = mpsc::channel();
    let job = scope.submit(Request::code(code).on_output(move |_, _| {
        // The other end is gone only when this measurement has failed.
        let _ = tell.send(());
    }));
    told.recv_timeout(Duration::from_secs(20))?;
    Ok(job)
}

fn kill_one_scope(pool: &SessionPool) -> Result<Samples, Failure> {
    let others = CancelToken::new();
    let scope = pool.scope(&others);
    let loops: Vec<Job> = (1..SESSIONS).map(|_| busy(&scope, LOOP)).collect::<Result<_, _>>()?;
    let mut samples = Samples::default();
    for _ in 0..KILLS {
        // A new session imports in the background what tracebacks need.
        pool.ensure_min_sessions()?;
        thread::sleep(SETTLE);
        let token = CancelToken::new();
        let victim = busy(&pool.scope(&token), LOOP)?;
        thread::sleep(REST);
        let started = Instant::now();
        token.cancel();
        let outcome = victim.wait()?.outcome;
        samples.push(millis(started.elapsed()));
        if outcome != (Outcome::Cancelled { killed: false }) {
            return Err(format!("a busy loop was not interrupted: {outcome}").into());
        }
    }
    others.cancel();
    for job in loops {
        job.wait()?;
    }
    Ok(samples)
}

/// As above: a thread waits for the loop's answer and tells the one that has interrupted it.
fn interrupt_one_loop(context: &Context) -> Result<Samples, Failure> {
    let mut bare: Vec<Bare> =
        (0..SESSIONS).map(|_| Bare::start(&context.python, BUSY)).collect::<io::Result<_>>()?;
    bare.iter_mut().try_for_each(|bare| bare.read(&mut [0; 1]).map(drop))?;
    let Some(mut victim) = bare.pop() else { return Err("no loop".into()) };
    let mut samples = Samples::default();
    for _ in 0..KILLS {
        thread::sleep(REST);
        let id = victim.id();
        samples.push(thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let victim = &mut victim;
            scope.spawn(move || tell.send(victim.read(&mut [0; 1])));
            // The reader is asleep in its read by then, as the one of ours is.
            thread::sleep(Duration::from_millis(5));
            let started = Instant::now();
            interrupt(id)?;
            told.recv()??;
            Ok::<f64, Failure>(millis(started.elapsed()))
        })?);
        victim.resume()?;
        victim.read(&mut [0; 1])?;
    }
    Ok(samples)
}

/// Beyond the grace: code in one long call into C has to be killed.
fn kill_to_ended_uninterruptible(context: &Context) -> Measured {
    const GRACE: Duration = Duration::from_millis(50);
    let pool = pool(context, SESSIONS, GRACE)?;
    let mut ours = Samples::default();
    for _ in 0..context.times(20) {
        let (time, outcome) = kill(&pool, "sum(range(10**12))")?;
        if outcome != (Outcome::Cancelled { killed: true }) {
            return Err(format!("code that cannot be interrupted was not killed: {outcome}").into());
        }
        ours.push(millis(time.saturating_sub(GRACE)));
    }
    Ok(vec![Row::of("kill_to_ended_uninterruptible", "ms", &ours, None)])
}

/// What a job adds to its execution: the host's processor time for jobs on one session, less that for
/// the same executions by a thread that holds the session, in turns. Processor time, because the
/// difference of two waits says more about the neighbours than about us.
fn map_overhead(context: &Context) -> Measured {
    const JOBS: usize = 200;
    let _pinned = Pinned::here()?;
    let pool = pool(context, 1, Duration::from_millis(250))?;
    let scope = pool.scope(&CancelToken::new());
    let (mut jobs, mut alone) = (Samples::default(), Samples::default());
    for _ in 0..context.times(60) {
        let before = processor_time();
        let submitted: Vec<Job> = (0..JOBS).map(|_| scope.submit("1+1")).collect();
        for job in scope.as_completed(submitted) {
            job.wait()?;
        }
        jobs.push(micros(processor_time().saturating_sub(before)) / JOBS as f64);

        let mut session = scope.acquire()?;
        let before = processor_time();
        for _ in 0..JOBS {
            session.execute("1+1")?;
        }
        alone.push(micros(processor_time().saturating_sub(before)) / JOBS as f64);
    }
    let execution = alone.median();
    let above = jobs.less(execution);
    let note = format!("above the {execution:.1} µs of the execution");
    Ok(vec![Row::of("map_overhead", "µs", &above, None).note(note)])
}
