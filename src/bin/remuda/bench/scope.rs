//! Rows of scopes: how fast what one user owns ends, and what jobs cost.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use remuda::{CancelToken, Job, Outcome, Request, Reuse, Runtime, SessionPool};
use rustix::process::Signal;

use super::floors::{BUSY, Bare};
use super::measure::{Samples, micros, millis};
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

/// Eight busy sessions on however many cores there are: the interrupted ones must get a turn first,
/// which is what the floor shows.
fn kill_to_ended(context: &Context) -> Measured {
    let pool = pool(context, SESSIONS, Duration::from_secs(2))?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..context.times(20) {
        let (time, outcome) = kill(&pool, "while True: pass")?;
        if outcome != (Outcome::Cancelled { killed: false }) {
            return Err(format!("a busy loop was not interrupted: {outcome}").into());
        }
        ours.push(millis(time));

        // What was interrupted is replaced; the newcomers must not compete with the floor.
        pool.ensure_min_sessions()?;
        let mut bare: Vec<Bare> =
            (0..SESSIONS).map(|_| Bare::start(&context.python, BUSY)).collect::<io::Result<_>>()?;
        bare.iter_mut().try_for_each(|bare| bare.read(&mut [0; 1]).map(drop))?;
        let started = Instant::now();
        bare.iter().try_for_each(|bare| bare.signal(Signal::INT))?;
        bare.iter_mut().try_for_each(|bare| bare.read(&mut [0; 1]).map(drop))?;
        floor.push(millis(started.elapsed()));
    }
    Ok(vec![Row::of("kill_to_ended", "ms", &ours, Some(&floor))])
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

/// Many jobs on one session, beside the same executions in a loop on a lease: what a job adds.
fn map_overhead(context: &Context) -> Measured {
    const JOBS: usize = 500;
    let pool = pool(context, 1, Duration::from_millis(250))?;
    let scope = pool.scope(&CancelToken::new());
    let mut ours = Samples::default();
    for _ in 0..context.times(30) {
        let started = Instant::now();
        let jobs: Vec<Job> = (0..JOBS).map(|_| scope.submit("1+1")).collect();
        for job in scope.as_completed(jobs) {
            job.wait()?;
        }
        let mapped = started.elapsed();

        let mut session = scope.acquire()?;
        let started = Instant::now();
        for _ in 0..JOBS {
            session.execute("1+1")?;
        }
        let executed = started.elapsed();
        drop(session);
        ours.push((micros(mapped) - micros(executed)) / JOBS as f64);
    }
    Ok(vec![Row::of("map_overhead", "µs", &ours, None)])
}
