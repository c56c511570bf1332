//! Measurements of anything that can be acquired and given back: ours, floors, peers.

use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::measure::{Samples, exact_timers, micros, nanos_each};

/// What `contend` saw.
#[derive(Debug, Default)]
pub(crate) struct Contended {
    /// Time in acquire, in microseconds.
    pub(crate) waits: Samples,
    /// The busiest thread's operations over those of the least busy one.
    pub(crate) unfairness: f64,
}

/// Some threads acquire, hold for a sleep of `hold`, and give back, over and over for `time`.
pub(crate) fn contend<G>(
    threads: usize,
    hold: Duration,
    time: Duration,
    acquire: &(impl Fn() -> G + Sync),
) -> Contended {
    let barrier = Barrier::new(threads);
    let work = || {
        exact_timers();
        barrier.wait();
        let end = Instant::now() + time;
        let mut waits = Samples::default();
        loop {
            let started = Instant::now();
            if started >= end {
                return waits;
            }
            let lease = acquire();
            waits.push(micros(started.elapsed()));
            // Stands for the work that a holder does.
            thread::sleep(hold);
            drop(lease);
        }
    };
    let of_threads: Vec<Samples> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let counts = of_threads.iter().map(|waits| waits.len() as f64);
    let (least, most) = counts
        .fold((f64::INFINITY, 0.0), |(least, most): (f64, f64), count| (least.min(count), most.max(count)));
    let mut waits = Samples::default();
    for of_thread in of_threads {
        waits.append(of_thread);
    }
    Contended { waits, unfairness: most / least }
}

/// From giving back to the return of the `acquire` that waited for it, in microseconds. There must
/// be exactly one thing to acquire.
pub(crate) fn handoff<G>(times: usize, acquire: &(impl Fn() -> G + Sync)) -> Samples {
    let (ask, asked) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            while asked.recv().is_ok() {
                let held = acquire();
                let now = Instant::now();
                drop(held);
                if tell.send(now).is_err() {
                    return;
                }
            }
        });
        let mut samples = Samples::default();
        for _ in 0..times {
            let held = acquire();
            if ask.send(()).is_err() {
                break;
            }
            // Long enough for the other thread to be asleep in the queue.
            thread::sleep(Duration::from_micros(300));
            let released = Instant::now();
            drop(held);
            let Ok(acquired) = told.recv() else { break };
            samples.push(micros(acquired.saturating_duration_since(released)));
        }
        drop(ask);
        samples
    })
}

/// Nanoseconds of acquiring and giving back on one thread: medians of batches.
pub(crate) fn alone<G>(batches: usize, acquire: impl Fn() -> G) -> Samples {
    (0..batches).map(|_| nanos_each(5_000, || drop(acquire()))).collect()
}

/// How late an acquire that cannot succeed gives up, in microseconds.
pub(crate) fn overshoot(times: usize, limit: Duration, give_up: impl Fn(Duration)) -> Samples {
    let late = |_| {
        let started = Instant::now();
        give_up(limit);
        micros(started.elapsed().saturating_sub(limit))
    };
    (0..times).map(late).collect()
}
