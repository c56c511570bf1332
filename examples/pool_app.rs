//! Document 001's demo on the console: tracked sessions that share one pool, each killable alone.
//!
//! ```sh
//! cargo run --example pool_app
//! ```
//!
//! Two tracked sessions, each with two workers in a pool of four processes that all sessions of this
//! program share. A worker logs every five seconds, with the first eight characters of its session's
//! id, until its session is stopped. Commands, a line each:
//!
//! ```text
//! new       one more session
//! kill ID   stop one session, by the first characters of its id; the others go on
//! kill-all  stop all: the pool ends with its last session, and comes back with the next "new"
//! quit      the same, and leave
//! ```
//!
//! The dashboard whose address is printed can kill as well. To use a tracker that runs already:
//! `cargo run --example pool_app -- http://localhost:8000`.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use remuda::{
    CancelToken, Error, Request, Result, Runtime, SessionClient, SessionPool, SharedHandle, SharedPool,
    TrackerServer,
};

const APP: &str = "pool_app";
const WORKERS: usize = 2;

/// Shared by all sessions; the first starts it, the last ends it.
static POOL: SharedPool = SharedPool::new(|| {
    SessionPool::builder(Runtime::python("python3")).min_idle(4).max_sessions(4).warm_import("remuda")
});

/// What each worker runs. The wait ends early when the session is killed: it is interrupted.
const WORKER: &str = r#"
import itertools, time
for number in itertools.count(1):
    print(f"[{session}] worker {worker}: step {number}", flush=True)
    time.sleep(5)
"#;

/// One user of the pool: a tracked session with its own cancellation.
struct Session {
    client: SessionClient,
    jobs: Vec<remuda::Job>,
}

/// The sessions that run, by id.
type Sessions = Arc<Mutex<BTreeMap<String, Session>>>;

fn main() -> Result<()> {
    // Without an address of somebody else's tracker, this program brings its own.
    let (server, url) = match std::env::args().nth(1) {
        Some(url) => (None, url),
        None => {
            let server = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").start()?;
            let url = format!("http://{}", server.local_addr());
            (Some(server), url)
        }
    };
    println!("dashboard: {url}/");
    let sessions = Sessions::default();
    for _ in 0..2 {
        start(&sessions, &url)?;
    }
    println!("commands: new, kill ID, kill-all, quit");
    for line in io::stdin().lines() {
        let line = line.map_err(|source| Error::Io { doing: "reading a command", source })?;
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["new"] => start(&sessions, &url)?,
            ["kill", id] => kill(&sessions, id),
            ["kill-all"] => kill_all(&sessions),
            ["quit"] => break,
            [] => {}
            _ => println!("new, kill ID, kill-all or quit"),
        }
    }
    kill_all(&sessions);
    drop(server);
    Ok(())
}
