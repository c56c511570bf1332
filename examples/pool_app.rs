//! The Python ancestor's demo, on the console: tracked sessions that share one pool, each killable alone.
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
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use remuda::{
    Error, Job, Request, Result, Runtime, SessionClient, SessionPool, SharedPool, TaskGuard, TrackerServer,
};

const WORKERS: u32 = 2;

/// Shared by all sessions: the first one starts it, the last one ends it.
static POOL: SharedPool =
    SharedPool::new(|| SessionPool::builder(Runtime::python("python3")).min_idle(4).max_sessions(4));

/// One user of the pool.
struct Session {
    jobs: Vec<Job>,
    _task: TaskGuard,
    client: Arc<SessionClient>,
}

/// The sessions that run, by id.
#[derive(Clone, Default)]
struct Sessions(Arc<Mutex<BTreeMap<String, Session>>>);

fn main() -> Result<()> {
    // Without the address of a tracker, this program brings its own.
    let (url, server) = if let Some(url) = std::env::args().nth(1) {
        (url, None)
    } else {
        let server = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").start()?;
        (format!("http://{}", server.local_addr()), Some(server))
    };
    println!("dashboard: {url}/");
    println!("commands: new, kill ID, kill-all, quit");
    let sessions = Sessions::default();
    for _ in 0..2 {
        sessions.begin(&url)?;
    }
    for line in io::stdin().lines() {
        let line = line.map_err(|source| Error::Io { doing: "reading a command", source })?;
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["new"] => sessions.begin(&url)?,
            ["kill", id] => sessions.kill(id),
            ["kill-all"] => sessions.kill(""),
            ["quit"] => break,
            _ => println!("commands: new, kill ID, kill-all, quit"),
        }
    }
    sessions.kill("");
    drop(server);
    Ok(())
}

impl Sessions {
    /// One more tracked session, and its workers.
    fn begin(&self, url: &str) -> Result<()> {
        let client = Arc::new(SessionClient::builder("pool_app").server_url(url).start()?);
        let id = client.id().to_string();
        let short = id[..8].to_owned();
        let handle = Arc::new(POOL.handle()?);
        // What the tracker shows at `/pools` for this session.
        let shown = Arc::downgrade(&handle);
        client.attach("pool", move || {
            shown.upgrade().and_then(|handle| serde_json::to_value(handle.info()).ok()).unwrap_or_default()
        });
        // Everything in the scope ends with this session's token, and nothing else does.
        let scope = handle.scope(&client.cancel_token());
        let jobs = (1..=WORKERS).map(|number| scope.submit(worker(&short, number))).collect();
        println!("[{short}] session {id} has begun, {} share the pool", POOL.users());

        // Locked until the session is in the list: a kill that comes at once finds it there.
        let mut list = self.list();
        let sessions = self.clone();
        let key = id.clone();
        client.on_kill(move || {
            let session = sessions.list().remove(&key);
            for job in session.into_iter().flat_map(|session| session.jobs) {
                // A worker never ends by itself: it was interrupted, or it had not begun.
                let _ = job.wait();
            }
            // The last one that releases its handle ends the pool.
            handle.release();
            println!("[{short}] has stopped, {} share the pool", POOL.users());
        });
        let task = client.task(format!("{WORKERS} workers"));
        list.insert(id, Session { jobs, _task: task, client });
        Ok(())
    }

    /// Stops the sessions whose id begins like this. Each one's callback takes it off the list.
    fn kill(&self, prefix: &str) {
        let clients: Vec<_> = self
            .list()
            .iter()
            .filter(|(id, _)| id.starts_with(prefix))
            .map(|(_, session)| Arc::clone(&session.client))
            .collect();
        println!("{} to stop", clients.len());
        for client in clients {
            client.stop();
        }
    }

    fn list(&self) -> MutexGuard<'_, BTreeMap<String, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs every five seconds until it is interrupted.
fn worker(session: &str, number: u32) -> Request<'static> {
    let code = format!(
        r#"
import itertools, time
for step in itertools.count(1):
    print("[{session}] worker {number}: step", step, flush=True)
    time.sleep(5)
"#
    );
    Request::code(code).on_output(|_, bytes| {
        // A console that is gone is no reason to stop.
        let _ = io::stdout().write_all(bytes);
    })
}
