//! Acquire and release beside other pools and a floor: `cargo bench --bench pool`.
//!
//! Ours hands out processes that do nothing, the peers hand out numbers: what is compared is the
//! pool, not the resource. Everything is created beforehand, measured in turns within one run, and
//! printed with its ratio to r2d2. Takes about a minute.

#![allow(missing_docs, reason = "a program")]
#![expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]

#[allow(dead_code, unused_imports, reason = "shared with `remuda bench`, which needs more of it")]
#[path = "../src/bin/remuda/bench/contend.rs"]
mod contend;
#[allow(dead_code, unused_imports, reason = "shared with `remuda bench`, which needs more of it")]
#[path = "../src/bin/remuda/bench/measure.rs"]
mod measure;
#[allow(dead_code, unused_imports, reason = "shared with `remuda bench`, which needs more of it")]
#[path = "../src/bin/remuda/bench/queue.rs"]
mod queue;
#[path = "../src/bin/remuda/bench/scripted.rs"]
mod scripted;

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use contend::{Contended, alone, contend};
use measure::{Pinned, Samples};
use queue::{BargingQueue, FairQueue};

const THREADS: usize = 16;
const RESOURCES: usize = 8;
const HOLD: Duration = Duration::from_micros(50);
const ROUND: Duration = Duration::from_millis(1000);
const ROUNDS: usize = 5;

/// Makes numbers for r2d2 and deadpool.
#[derive(Debug)]
struct Numbers;

impl r2d2::ManageConnection for Numbers {
    type Connection = u64;
    type Error = Infallible;

    fn connect(&self) -> Result<u64, Infallible> {
        Ok(0)
    }

    fn is_valid(&self, _: &mut u64) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, _: &mut u64) -> bool {
        false
    }
}

impl deadpool::managed::Manager for Numbers {
    type Type = u64;
    type Error = Infallible;

    async fn create(&self) -> Result<u64, Infallible> {
        Ok(0)
    }

    async fn recycle(
        &self,
        _: &mut u64,
        _: &deadpool::managed::Metrics,
    ) -> deadpool::managed::RecycleResult<Infallible> {
        Ok(())
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The least that runs a future: deadpool's waiting needs no runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

fn r2d2_pool(size: usize) -> Result<r2d2::Pool<Numbers>, r2d2::Error> {
    let size = u32::try_from(size).unwrap_or(1);
    r2d2::Pool::builder().max_size(size).test_on_check_out(false).build(Numbers)
}

fn deadpool_pool(size: usize) -> Result<deadpool::managed::Pool<Numbers>, Box<dyn Error>> {
    let pool = deadpool::managed::Pool::builder(Numbers).max_size(size).build()?;
    let all: Vec<_> = (0..size).map(|_| block_on(pool.get()).ok()).collect();
    drop(all);
    Ok(pool)
}

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test --benches` only wants to know that it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(());
    }
    uncontended()?;
    contended()
}

fn uncontended() -> Result<(), Box<dyn Error>> {
    let ours = scripted::pool(1).start()?;
    let (r2d2, deadpool, queue) = (r2d2_pool(1)?, deadpool_pool(1)?, BargingQueue::new([0_u64]));
    let pinned = Pinned::here()?;
    let mut samples: [Samples; 4] = Default::default();
    for _ in 0..60 {
        samples[0].append(alone(5, || ours.acquire().ok()));
        samples[1].append(alone(5, || r2d2.get().ok()));
        samples[2].append(alone(5, || block_on(deadpool.get()).ok()));
        samples[3].append(alone(5, || queue.acquire()));
    }
    drop(pinned);
    println!("acquire and release, one thread, nobody waits");
    println!("{:<28} {:>9} {:>9} {:>12}", "pool", "ns p50", "ns p99", "over r2d2");
    let peer = samples[1].median();
    for (name, samples) in NAMES.iter().zip(&samples) {
        let p99 = samples.quantile(0.99).unwrap_or(f64::NAN);
        println!("{name:<28} {:>9.1} {p99:>9.1} {:>12.2}", samples.median(), samples.median() / peer);
    }
    Ok(())
}

const NAMES: [&str; 4] =
    ["remuda (Keep)", "r2d2 (no check)", "deadpool (managed)", "mutex + condvar (floor)"];

fn contended() -> Result<(), Box<dyn Error>> {
    let ours = scripted::pool(RESOURCES).start()?;
    let (r2d2, deadpool) = (r2d2_pool(RESOURCES)?, deadpool_pool(RESOURCES)?);
    let (barging, fair) = (BargingQueue::new(0..RESOURCES), FairQueue::new(0..RESOURCES));
    let mut rounds: [Vec<Contended>; 5] = Default::default();
    for _ in 0..ROUNDS {
        rounds[0].push(contend(THREADS, HOLD, ROUND, &|| ours.acquire().ok()));
        rounds[1].push(contend(THREADS, HOLD, ROUND, &|| r2d2.get().ok()));
        rounds[2].push(contend(THREADS, HOLD, ROUND, &|| block_on(deadpool.get()).ok()));
        rounds[3].push(contend(THREADS, HOLD, ROUND, &|| barging.acquire()));
        rounds[4].push(contend(THREADS, HOLD, ROUND, &|| fair.acquire()));
    }
    println!("\n16 threads on 8, each held for 50 µs: time in acquire");
    println!(
        "{:<28} {:>9} {:>9} {:>9} {:>9} {:>14}",
        "pool", "ops/s", "µs p50", "µs p99", "max/min", "p99 over r2d2"
    );
    let over =
        |rounds: &[Contended], of: fn(&Contended) -> f64| rounds.iter().map(of).collect::<Samples>().median();
    let p50 = |round: &Contended| round.waits.quantile(0.5).unwrap_or(f64::NAN);
    let p99 = |round: &Contended| round.waits.quantile(0.99).unwrap_or(f64::NAN);
    let peer = over(&rounds[1], p99);
    let names = NAMES.into_iter().chain(["fair hand-off (floor)"]);
    for (name, rounds) in names.zip(&rounds) {
        let rate = over(rounds, |round| round.waits.len() as f64) / ROUND.as_secs_f64();
        let (tail, unfairness) = (over(rounds, p99), over(rounds, |round| round.unfairness));
        println!(
            "{name:<28} {rate:>9.0} {:>9.1} {tail:>9.1} {unfairness:>9.2} {:>14.2}",
            over(rounds, p50),
            tail / peer
        );
    }
    Ok(())
}
