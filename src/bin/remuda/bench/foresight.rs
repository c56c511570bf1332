//! What foresight gains: the same bursts with and without it.

use std::thread;
use std::time::{Duration, Instant};

use remuda::{Foresight, Reuse, Runtime, SessionPool};

use super::measure::{Samples, millis};
use super::report::Row;
use super::{Context, Failure, Measured};

/// Callers of one burst, and sessions at most.
const BURST: usize = 6;
const SESSIONS: usize = 8;
/// Between two bursts: long enough for the pool to look at what came, and to start what it wants.
const PAUSE: Duration = Duration::from_millis(400);

/// Bursts on a pool that gives each user a new process, so that nothing stays from one to the next.
/// The figure is the hit rate with foresight, beside that without it as its floor.
pub(super) fn predictive_ramp(context: &Context) -> Measured {
    let rounds = context.times(30);
    let (without, waits_without) = bursts(context, Foresight::Off, rounds)?;
    let (with, waits_with) = bursts(context, Foresight::ArrivalRate, rounds)?;
    let mut row = Row::figure("predictive_ramp", "%", with, rounds * BURST);
    row.floor = Some(without);
    row.ratio = Some(with / without);
    let p99 = |waits: &Samples| waits.quantile(0.99).unwrap_or(f64::NAN);
    let note = format!("hit rate; p99 wait {:.1} ms, without {:.1}", p99(&waits_with), p99(&waits_without));
    Ok(vec![row.note(note)])
}

/// Hit rate in percent, and the waits in milliseconds.
fn bursts(context: &Context, foresight: Foresight, rounds: usize) -> Result<(f64, Samples), Failure> {
    let pool = SessionPool::builder(Runtime::python(&context.python))
        .min_idle(1)
        .max_sessions(SESSIONS)
        .reuse(Reuse::Fresh)
        .foresight(foresight)
        .start()?;
    let mut waits = Samples::default();
    for _ in 0..rounds {
        thread::sleep(PAUSE);
        let mut held = Vec::new();
        for _ in 0..BURST {
            let started = Instant::now();
            held.push(pool.acquire()?);
            waits.push(millis(started.elapsed()));
        }
    }
    Ok((pool.metrics().hit_rate * 100.0, waits))
}
