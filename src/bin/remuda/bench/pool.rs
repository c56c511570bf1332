//! Rows of the pool: the queue with workers that do nothing, then Python behind it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use remuda::{Acquire, PooledSession, Reuse, Runtime, SessionPool};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::contend::{Contended, alone, contend, handoff, overshoot};
use super::floors::{Bare, EVALUATE};
use super::measure::{Pinned, Samples};
use super::queue::{BargingQueue, FairQueue};
use super::report::Row;
use super::{Bench, Context, Failure, Measured, foresight, scripted};

/// The suite, in the order of the table.
pub(super) const BENCHES: &[Bench] = &[
    Bench { rows: &[("acquire_release", "ns")], run: acquire_release },
    Bench { rows: &[("acquire_release_observed", "ns")], run: acquire_release_observed },
    Bench { rows: &[("contended_16x8", "µs"), ("fairness_16x8", "ratio")], run: contended },
    Bench { rows: &[("handoff", "µs")], run: handoff_row },
    Bench { rows: &[("timeout_overshoot", "µs")], run: timeout_overshoot },
    Bench { rows: &[("throughput_16x8", "ops/s"), ("throughput_16x8_reset", "ops/s")], run: throughput },
    Bench { rows: &[("acquire_release_1000_idle", "ns")], run: acquire_release_1000_idle },
    Bench { rows: &[("predictive_ramp", "%")], run: foresight::predictive_ramp },
];

const THREADS: usize = 16;
const SESSIONS: usize = 8;
/// Descriptors that one idle worker without data pipes needs in the host, with room to spare.
const DESCRIPTORS_EACH: u64 = 8;

/// A closure cannot pass an error on: workers that do nothing do not fail either.
fn acquire(pool: &SessionPool) -> Option<PooledSession> {
    pool.acquire().ok()
}

fn acquire_release(context: &Context) -> Measured {
    let pool = scripted::pool(1).start()?;
    let queue = BargingQueue::new([0_u64]);
    let _pinned = Pinned::here()?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..context.times(100) {
        ours.append(alone(5, || acquire(&pool)));
        floor.append(alone(5, || queue.acquire()));
    }
    Ok(vec![Row::of("acquire_release", "ns", &ours, Some(&floor))])
}

/// The same with everything on that looks on: a listener, the record of arrivals, and a name for who holds
/// what. The floor is our own pool without.
fn acquire_release_observed(context: &Context) -> Measured {
    let heard = Arc::new(AtomicUsize::new(0));
    let hear = Arc::clone(&heard);
    let observed = scripted::pool(1)
        .record_arrivals(10_000)
        .listener(move |_| {
            hear.fetch_add(1, Ordering::Relaxed);
        })
        .start()?;
    let plain = scripted::pool(1).start()?;
    let ask = Acquire::new().tenant("alice").label("bench");
    let _pinned = Pinned::here()?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..context.times(100) {
        ours.append(alone(5, || observed.acquire_with(ask.clone()).ok()));
        floor.append(alone(5, || acquire(&plain)));
    }
    Ok(vec![Row::of("acquire_release_observed", "ns", &ours, Some(&floor))])
}

/// Sixteen threads want eight sessions and hold each for a sleep of 50 µs.
fn contended(context: &Context) -> Measured {
    const HOLD: Duration = Duration::from_micros(50);
    let time = Duration::from_millis(if context.quick { 200 } else { 1000 });
    let pool = scripted::pool(SESSIONS).start()?;
    let queue = FairQueue::new(0..SESSIONS);
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..context.times(7) {
        ours.push(contend(THREADS, HOLD, time, &|| acquire(&pool)));
        floor.push(contend(THREADS, HOLD, time, &|| queue.acquire()));
    }
    let over_rounds = |rounds: &[Contended], of: fn(&Contended) -> f64| -> f64 {
        rounds.iter().map(of).collect::<Samples>().median()
    };
    let p50 = |round: &Contended| round.waits.quantile(0.5).unwrap_or(f64::NAN);
    let p99 = |round: &Contended| round.waits.quantile(0.99).unwrap_or(f64::NAN);
    let operations = ours.iter().map(|round| round.waits.len()).sum();
    let floor_p99 = over_rounds(&floor, p99);
    let mut waits = Row::figure("contended_16x8", "µs", over_rounds(&ours, p50), operations);
    waits.p99 = Some(over_rounds(&ours, p99));
    waits.floor = Some(over_rounds(&floor, p50));
    waits.ratio = waits.p99.map(|p99| p99 / floor_p99);
    let waits = waits.note(format!("ratio of p99; the floor's is {floor_p99:.1}"));

    let unfairness = over_rounds(&ours, |round| round.unfairness);
    let mut fairness = Row::figure("fairness_16x8", "ratio", unfairness, operations);
    fairness.floor = Some(over_rounds(&floor, |round| round.unfairness));
    fairness.ratio = fairness.floor.map(|floor| unfairness / floor);
    Ok(vec![waits, fairness])
}

fn handoff_row(context: &Context) -> Measured {
    let pool = scripted::pool(1).start()?;
    let queue = FairQueue::new([0_u64]);
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..context.times(40) {
        ours.append(handoff(50, &|| acquire(&pool)));
        floor.append(handoff(50, &|| queue.acquire()));
    }
    Ok(vec![Row::of("handoff", "µs", &ours, Some(&floor))])
}

/// With the timers as every program has them: 50 µs of slack.
fn timeout_overshoot(context: &Context) -> Measured {
    const LIMIT: Duration = Duration::from_millis(10);
    let pool = scripted::pool(1).start()?;
    let queue = FairQueue::new([0_u64]);
    let _held = (pool.acquire()?, queue.acquire());
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..context.times(30) {
        ours.append(overshoot(5, LIMIT, |limit| drop(pool.acquire_timeout(limit))));
        floor.append(overshoot(5, LIMIT, |limit| drop(queue.acquire_until(Some(Instant::now() + limit)))));
    }
    Ok(vec![Row::of("timeout_overshoot", "µs", &ours, Some(&floor))])
}

/// Sixteen threads on eight Python sessions beside eight threads with a bare loop each.
fn throughput(context: &Context) -> Measured {
    let time = Duration::from_millis(if context.quick { 200 } else { 1000 });
    let python = |reuse| {
        SessionPool::builder(Runtime::python(&context.python))
            .min_idle(SESSIONS)
            .max_sessions(SESSIONS)
            .recycle_after_executions(None)
            .reuse(reuse)
            .start()
    };
    let (keep, reset) = (python(Reuse::Keep)?, python(Reuse::Reset)?);
    let mut bare: Vec<Bare> =
        (0..SESSIONS).map(|_| Bare::start(&context.python, EVALUATE)).collect::<io::Result<_>>()?;
    let on_pool = |pool: &SessionPool| {
        let clients = (0..THREADS).map(|_| {
            || -> Result<(), Failure> {
                pool.acquire()?.execute("1+1")?;
                Ok(())
            }
        });
        rate(time, clients.collect())
    };
    let (mut kept, mut clean, mut floor) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..context.times(7) {
        if context.wants("throughput_16x8") {
            kept.push(on_pool(&keep)?);
        }
        let loops = bare.iter_mut().map(|bare| {
            || -> Result<(), Failure> {
                bare.ask(b"1+1", &mut [0; 64])?;
                Ok(())
            }
        });
        floor.push(rate(time, loops.collect())?);
        if context.wants("throughput_16x8_reset") {
            clean.push(on_pool(&reset)?);
        }
    }
    let row = |name, ours: &Samples| Row { p99: None, ..Row::of(name, "ops/s", ours, Some(&floor)) };
    Ok(vec![row("throughput_16x8", &kept), row("throughput_16x8_reset", &clean)])
}

/// Operations per second of these clients, each on a thread of its own.
fn rate<C>(time: Duration, clients: Vec<C>) -> Result<f64, Failure>
where
    C: FnMut() -> Result<(), Failure> + Send,
{
    let done = AtomicUsize::new(0);
    let started = Instant::now();
    let run = |mut client: C| {
        let mut count = 0;
        while started.elapsed() < time {
            client().map_err(|error| error.to_string())?;
            count += 1;
        }
        done.fetch_add(count, Ordering::Relaxed);
        Ok::<(), String>(())
    };
    let run = &run;
    thread::scope(|scope| {
        let threads: Vec<_> = clients.into_iter().map(|client| scope.spawn(move || run(client))).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => Err("a client panicked".to_owned()),
        })
    })?;
    Ok(done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
}

/// The floor is our own pool with one idle session: what a thousand add.
fn acquire_release_1000_idle(context: &Context) -> Measured {
    let limit = raise_descriptor_limit()?;
    let fit = usize::try_from(limit.saturating_sub(100) / DESCRIPTORS_EACH).unwrap_or(usize::MAX);
    let count = if context.quick { 100 } else { 1000 }.min(fit);
    let many = scripted::pool(count).start()?;
    let one = scripted::pool(1).start()?;
    let _pinned = Pinned::here()?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..context.times(100) {
        ours.append(alone(3, || acquire(&many)));
        floor.append(alone(3, || acquire(&one)));
    }
    let row = Row::of("acquire_release_1000_idle", "ns", &ours, Some(&floor));
    many.shutdown(Duration::from_secs(10));
    Ok(vec![if count == 1000 { row } else { row.note(format!("{count} idle")) }])
}

/// Raises the soft limit of open descriptors to the hard one and returns it.
fn raise_descriptor_limit() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}
