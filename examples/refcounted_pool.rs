//! Strategy 3 of `docs/guide/shared-pools.md`: one pool that lives from its first user to its last.
//!
//! A handle cannot terminate the pool. The kill callback releases it, as dropping it does; the last
//! release terminates the pool, and the next user gets a new one.
//!
//! ```sh
//! cargo run --example refcounted_pool
//! ```

use std::sync::Arc;

use remuda::{Runtime, SessionPool, SharedPool};

static POOL: SharedPool =
    SharedPool::new(|| SessionPool::builder(Runtime::python("python3")).min_idle(1).max_sessions(2));

fn main() -> remuda::Result<()> {
    println!("{} users: no process runs", POOL.users());
    let ada = Arc::new(POOL.handle()?);
    let ben = POOL.handle()?;
    let pid = |run: remuda::Execution| run.value;
    let first = pid(ada.acquire()?.execute("import os; os.getpid()")?);
    println!("{} users, a session with process id {first}", POOL.users());

    // What Ada registers as her kill callback. Releasing twice counts once.
    let on_kill = {
        let ada = Arc::clone(&ada);
        move || ada.release()
    };
    on_kill();
    on_kill();
    println!(
        "ada was killed: {} user is left, and ada's handle says: {}",
        POOL.users(),
        outcome(ada.acquire().err())
    );
    println!("ben works on: {}", ben.acquire()?.execute("6 * 7")?.value);

    drop(ben);
    println!("ben left: {} users, the pool is terminated", POOL.users());

    let cleo = POOL.handle()?;
    let second = pid(cleo.acquire()?.execute("import os; os.getpid()")?);
    println!("cleo came: {} user, a new pool, a new process: {}", POOL.users(), first != second);
    cleo.release();
    Ok(())
}

fn outcome(error: Option<remuda::Error>) -> String {
    error.map_or_else(|| "a session".to_owned(), |error| error.to_string())
}
