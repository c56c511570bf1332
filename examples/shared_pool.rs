//! Strategy 2 of `docs/guide/shared-pools.md`: one pool for all, a scope for each user.
//!
//! A kill cancels the user's token. What the user has queued never runs, what runs is interrupted,
//! what is done stays done; the pool and its other users go on.
//!
//! ```sh
//! cargo run --example shared_pool
//! ```

use std::time::Duration;

use remuda::{CancelToken, Error, Job, Request, Runtime, Scope, SessionPool};

/// A tenth of a second of work that can be told to stop, and its number.
fn item(number: u32) -> Request<'static> {
    Request::code(format!("import time\ntime.sleep(0.1)\n{number}"))
}

/// How many jobs completed, ended early, and never began.
fn sort(jobs: impl IntoIterator<Item = Job>) -> remuda::Result<(u32, u32, u32)> {
    let (mut completed, mut stopped, mut never) = (0, 0, 0);
    for job in jobs {
        match job.wait() {
            Ok(run) if run.is_completed() => completed += 1,
            Ok(_) => stopped += 1,
            Err(Error::Cancelled) => never += 1,
            Err(other) => return Err(other),
        }
    }
    Ok((completed, stopped, never))
}

fn submit(scope: &Scope, items: u32) -> Vec<Job> {
    (0..items).map(|number| scope.submit(item(number))).collect()
}

fn main() -> remuda::Result<()> {
    let pool = SessionPool::builder(Runtime::python("python3")).min_idle(4).max_sessions(4).start()?;
    let (ada, ben) = (CancelToken::new(), CancelToken::new());
    let (ada_scope, ben_scope) = (pool.scope(&ada), pool.scope(&ben));
    // The token is the kill callback: it signals, and never touches the pool.
    let on_kill = {
        let ada = ada.clone();
        move || ada.cancel()
    };

    let ada_jobs = submit(&ada_scope, 40);
    let ben_jobs = submit(&ben_scope, 12);

    // Ada takes results as they come, and is killed after the third.
    let mut done = ada_scope.as_completed(ada_jobs);
    for job in done.by_ref().take(3) {
        println!("ada: item {} is done", job.wait()?.value);
    }
    on_kill();
    let (completed, stopped, never) = sort(done)?;
    println!("ada: killed: running items that stopped: {stopped}, queued items that never ran: {never}");
    println!("ada: items that completed before they heard of it: {completed}");

    let (completed, stopped, never) = sort(ben_jobs)?;
    println!("ben: {completed} of 12 items completed, {stopped} stopped, {never} never ran");
    let run = pool.acquire()?.execute("'still here'")?;
    println!("pool: {}", run.value);
    pool.shutdown(Duration::from_secs(5));
    Ok(())
}
