//! The library in one page: a pool, a lease, a value, an exception, a time limit, a call.
//!
//! ```sh
//! cargo run --example quickstart
//! ```

use std::time::Duration;

use remuda::{Call, Outcome, Request, Reuse, Runtime, SessionPool};

fn main() -> remuda::Result<()> {
    // Two Python processes wait, with `json` imported; at most four run.
    let pool = SessionPool::builder(Runtime::python("python3"))
        .min_idle(2)
        .max_sessions(4)
        .warm_import("json")
        .reuse(Reuse::Reset)
        .start()?;

    // A lease: the session is ours until it is dropped.
    let mut session = pool.acquire()?;
    let run = session.execute("print('hello from', __name__); 6 * 7")?;
    println!("value {}, output {:?}, in {:?}", run.value, run.stdout, run.duration);

    // State stays for as long as the lease lasts.
    session.execute("prices = {'rope': 8.5, 'lamp': 42.0}")?;
    let run = session.execute("sum(prices.values())")?;
    println!("the sum is {}", run.value);

    // What user code does wrong is a value, not an error of the call.
    let run = session.execute("prices['anchor']")?;
    if let Some(error) = &run.error {
        println!("{}: {error}", run.outcome);
    }

    // A time limit interrupts; the session lives on.
    let run = session.execute(Request::code("while True: pass").time_limit(Duration::from_millis(200)))?;
    assert!(matches!(run.outcome, Outcome::TimedOut { .. }));
    println!("an endless loop {} after {:.1?}", run.outcome, run.duration);
    drop(session);

    // A call of a function, with JSON for arguments and result; the pool picks the session.
    let job = pool.submit(Call::new("math:hypot").arg(3).arg(4));
    println!("hypot(3, 4) is {}", job.wait()?.value);

    pool.shutdown(Duration::from_secs(5));
    Ok(())
}
