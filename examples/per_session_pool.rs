//! Strategy 1 of `docs/guide/shared-pools.md`: every user has a pool of its own.
//!
//! Then `pool.terminate()` is the right thing to do on a kill: it ends this user's processes, and
//! there is nobody else's in the pool. The price is a set of warm processes per user.
//!
//! ```sh
//! cargo run --example per_session_pool
//! ```

use std::sync::Arc;
use std::thread;

use remuda::{Error, Execution, Request, Runtime, SessionPool};

/// One tracked session of an application, with all that it owns.
struct User {
    name: &'static str,
    pool: SessionPool,
}

impl User {
    fn arrive(name: &'static str) -> remuda::Result<User> {
        let pool = SessionPool::builder(Runtime::python("python3")).min_idle(1).max_sessions(2).start()?;
        Ok(User { name, pool })
    }

    /// What to register as the kill callback. It may be called from any thread, more than once.
    fn on_kill(&self) -> impl Fn() + Send + 'static {
        let pool = self.pool.clone();
        move || pool.terminate()
    }
}

fn main() -> remuda::Result<()> {
    let ada = Arc::new(User::arrive("ada")?);
    let ben = Arc::new(User::arrive("ben")?);
    let kill_ada = ada.on_kill();

    // Ada's work would take a minute. It reports when it has begun, so that the kill finds it running.
    let (say, heard) = std::sync::mpsc::channel();
    let worker = thread::spawn({
        let ada = Arc::clone(&ada);
        move || -> remuda::Result<Execution> {
            let code = "import time\nprint('begun', flush=True)\ntime.sleep(60)";
            let request = Request::code(code).on_output(move |_, _| {
                // The receiver is gone once it has heard the first word.
                let _ = say.send(());
            });
            ada.pool.acquire()?.execute(request)
        }
    });
    heard.recv().expect("ada's work begins");
    kill_ada();

    let run = worker.join().expect("the worker does not panic")?;
    let how = run.post_mortem.map_or_else(String::new, |death| death.to_string());
    println!("{}: the running work {} after {:.1?}: {how}", ada.name, run.outcome, run.duration);
    match ada.pool.acquire() {
        Err(Error::Closed) => println!("{}: the pool is closed", ada.name),
        other => println!("{}: unexpected: {other:?}", ada.name),
    }

    let run = ben.pool.acquire()?.execute("sum(range(101))")?;
    println!("{}: noticed nothing: {}", ben.name, run.value);
    ben.pool.terminate();
    Ok(())
}
