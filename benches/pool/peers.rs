//! Those who are measured: ours, floors, r2d2, deadpool, bb8.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::Failure;
use super::contend::{self, Contended};
use super::queue::{BargingQueue, FairQueue};
use super::scripted;

/// What is measured.
#[derive(Clone, Copy)]
pub(crate) enum Case {
    /// Nanoseconds of acquiring and giving back on one thread.
    Alone,
    /// Microseconds of waiting in acquire.
    Contended { threads: usize, hold: Duration, time: Duration },
    /// Microseconds from giving back to the return of the acquire that waited.
    Handoff,
    /// Microseconds that an acquire of 10 ms gives up late.
    Overshoot,
}

/// One pool, ready to be measured.
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    pub(crate) has_limits: bool,
    pub(crate) run: Box<dyn Fn(Case) -> Contended>,
    /// How many were out at most while half of those who waited gave up, and how many are back.
    pub(crate) give_ups: Box<dyn Fn() -> (usize, usize)>,
}

/// All of them, each with `size` values.
pub(crate) fn contestants(size: usize) -> Result<Vec<Contestant>, Failure> {
    // Floors lend by reference.
    let barging: &'static _ = Box::leak(Box::new(BargingQueue::new(0..size)));
    let fair: &'static _ = Box::leak(Box::new(FairQueue::new(0..size)));
    let ours = scripted::pool(size).start()?;
    let (r2d2, deadpool, bb8) = (r2d2_pool(size)?, deadpool_pool(size)?, bb8_pool(size)?);
    let without_limit = |_: Option<Duration>| Some(barging.acquire());
    Ok(vec![
        contestant("remuda (Keep)", size, move |limit| match limit {
            None => ours.acquire().ok(),
            Some(limit) => ours.acquire_timeout(limit).ok(),
        }),
        contestant("r2d2 (no check)", size, move |limit| match limit {
            None => r2d2.get().ok(),
            Some(limit) => r2d2.get_timeout(limit).ok(),
        }),
        contestant("deadpool (managed)", size, move |limit| match limit {
            None => block_on(deadpool.get()).ok(),
            Some(limit) => {
                let limits = deadpool::managed::Timeouts { wait: Some(limit), ..Default::default() };
                with_timers(|| deadpool.timeout_get(&limits)).ok()
            }
        }),
        contestant("bb8 (no check)", size, move |limit| {
            with_timers(|| async {
                match limit {
                    None => bb8.get_owned().await.ok(),
                    Some(limit) => tokio::time::timeout(limit, bb8.get_owned()).await.ok()?.ok(),
                }
            })
        }),
        Contestant { has_limits: false, ..contestant("mutex + condvar (floor)", size, without_limit) },
        contestant("fair hand-off (floor)", size, move |limit| match limit {
            None => Some(fair.acquire()),
            Some(limit) => fair.acquire_until(Some(Instant::now() + limit)),
        }),
    ])
}

fn contestant<G: Send + 'static>(
    name: &'static str,
    size: usize,
    acquire: impl Fn(Option<Duration>) -> Option<G> + Sync + Send + 'static,
) -> Contestant {
    const LIMIT: Duration = Duration::from_millis(10);
    let acquire = Arc::new(acquire);
    let get = Arc::clone(&acquire);
    let run = move |case: Case| {
        let forever = || get(None);
        let waits = match case {
            Case::Alone => contend::alone(5, forever),
            Case::Contended { threads, hold, time } => {
                return contend::contend(threads, hold, time, &forever);
            }
            Case::Handoff => contend::handoff(50, &forever),
            Case::Overshoot => {
                let _held = get(None);
                contend::overshoot(5, LIMIT, |limit| drop(get(Some(limit))))
            }
        };
        Contended { waits, unfairness: f64::NAN }
    };
    let give_ups = move || {
        let (out, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let end = Instant::now() + Duration::from_millis(300);
        let work = |limit: Option<Duration>| {
            while Instant::now() < end {
                let Some(held) = acquire(limit) else { continue };
                most.fetch_max(out.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Stands for the work that a holder does.
                thread::sleep(Duration::from_micros(50));
                out.fetch_sub(1, Ordering::SeqCst);
                drop(held);
            }
        };
        thread::scope(|scope| {
            for number in 0..2 * size {
                let limit = (number % 2 == 0).then_some(Duration::from_micros(30));
                scope.spawn(move || work(limit));
            }
        });
        let back: Vec<G> = (0..=size).map_while(|_| acquire(Some(Duration::from_millis(5)))).collect();
        (most.into_inner(), back.len())
    };
    Contestant { name, has_limits: true, run: Box::new(run), give_ups: Box::new(give_ups) }
}

/// Makes numbers.
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

impl bb8::ManageConnection for Numbers {
    type Connection = u64;
    type Error = Infallible;

    async fn connect(&self) -> Result<u64, Infallible> {
        Ok(0)
    }

    async fn is_valid(&self, _: &mut u64) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, _: &mut u64) -> bool {
        false
    }
}

fn r2d2_pool(size: usize) -> Result<r2d2::Pool<Numbers>, Failure> {
    let size = u32::try_from(size)?;
    Ok(r2d2::Pool::builder().max_size(size).test_on_check_out(false).build(Numbers)?)
}

fn deadpool_pool(size: usize) -> Result<deadpool::managed::Pool<Numbers>, Failure> {
    let builder = deadpool::managed::Pool::builder(Numbers).runtime(deadpool::Runtime::Tokio1);
    let pool = builder.max_size(size).build()?;
    let all: Vec<_> = (0..size).map(|_| block_on(pool.get()).ok()).collect();
    drop(all);
    Ok(pool)
}

fn bb8_pool(size: usize) -> Result<bb8::Pool<Numbers>, Failure> {
    let size = u32::try_from(size)?;
    let builder = bb8::Pool::builder().max_size(size).min_idle(size).test_on_check_out(false);
    let builder = builder.idle_timeout(None).max_lifetime(None);
    Ok(with_timers(|| builder.build(Numbers))?)
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
}

/// Runs a future that waits by tokio's timers.
fn with_timers<F: Future>(future: impl FnOnce() -> F) -> F::Output {
    RUNTIME.with(|runtime| runtime.block_on(async { future().await }))
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The least that runs a future: deadpool's waiting without a limit needs no runtime.
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
