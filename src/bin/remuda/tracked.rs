//! A run as a tracked session: seen, stopped, paused and drained on a page.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use remuda::tracker::api::{DEFAULT_PORT, Verb};
use remuda::{CancelToken, ClientConfig, SessionClient, SessionPool, Stream, TaskGuard, TrackerServer};
use serde_json::json;

use crate::args::TrackerChoice;
use crate::complain;
use crate::progress::Screen;
use crate::ps::GIVE_TOKEN;

/// The longest list of scripts that is shown as the task.
const LONGEST_TASK: usize = 200;

/// A registered run. Dropped in this order: the task ends, the session leaves the list, the server
/// ends.
pub(crate) struct Tracked {
    task: TaskGuard,
    client: SessionClient,
    server: Option<TrackerServer>,
}

impl Tracked {
    /// Registers the run and says where it can be seen; a kill cancels `token`, a pause holds what
    /// waits for a session of the pool. Nothing here keeps the run from going on: `None` if there is to
    /// be no tracker, or none can be had.
    pub(crate) fn start(
        choice: &TrackerChoice,
        scripts: &[&str],
        pool: &SessionPool,
        token: &CancelToken,
        screen: &Arc<Screen>,
    ) -> Option<Tracked> {
        let (url, access, server) = match choice {
            TrackerChoice::None => return None,
            TrackerChoice::Server(tracker) => {
                let access =
                    tracker.token().inspect_err(|error| complain(format!("the run is not tracked: {error}")));
                (tracker.server.clone(), access.ok()?, None)
            }
            TrackerChoice::Own => {
                let server = own_server()?;
                (format!("http://{}", server.local_addr()), None, Some(server))
            }
        };
        let mut config = ClientConfig::new("remuda run").server_url(url.as_str());
        if let Some(access) = access {
            config = config.token(access);
        }
        if let Some(user) = std::env::var("USER").ok().filter(|user| !user.is_empty() && user.len() <= 256) {
            config = config.user_id(user);
        }
        let client =
            config.start().inspect_err(|error| log::warn!("the run is not tracked: {error}")).ok()?;
        // A tracker of its own is there, however late the registration gets through on a busy machine.
        if server.is_some() || client.is_connected() {
            complain(format!("to watch or stop this run: {url}/"));
        } else {
            complain(match client.last_trouble().filter(|trouble| trouble.starts_with("it answers ")) {
                Some(denied) if denied.starts_with("it answers 401") => {
                    format!("the tracker at {url}: {denied}; {GIVE_TOKEN}; the scripts run unseen")
                }
                Some(denied) => format!("the tracker at {url}: {denied}; the scripts run unseen"),
                None => format!("the tracker at {url} does not answer; the scripts run unseen until it does"),
            });
        }
        let (of_kill, of_pool) = (token.clone(), pool.clone());
        client.on_kill(move || of_kill.cancel());
        client.on_verb(obey(pool.clone(), Arc::clone(screen)));
        client.attach("pool", move || {
            let info = of_pool.info();
            let counts = info.counts;
            let busy = info.sessions.iter().filter(|row| row.holder.is_some());
            let sessions: Vec<_> =
                busy.map(|row| json!({"pid": row.pid, "state": row.state, "holder": row.holder})).collect();
            json!({"busy": counts.busy, "idle": counts.idle, "total": counts.total, "sessions": sessions})
        });
        let task = client.task(task_name(scripts));
        Some(Tracked { task, client, server })
    }

    /// Whether no further script shall begin. Set before those who wait for a session get one.
    pub(crate) fn is_draining(&self) -> bool {
        self.client.is_draining()
    }

    /// How many of all scripts have ended; the next heartbeat tells.
    #[expect(clippy::cast_precision_loss, reason = "nobody starts 2^52 scripts")]
    pub(crate) fn progress(&self, ended: usize, all: usize) {
        self.task.set_progress(ended as f64 / all as f64);
    }

    /// Takes the run off the list; says what somebody at the tracker has asked of it.
    pub(crate) fn end(self) -> Asked {
        let asked = match (self.client.is_killed(), self.client.is_draining()) {
            (true, _) => Asked::Stop,
            (false, true) => Asked::Drain,
            (false, false) => Asked::Nothing,
        };
        drop(self.task);
        drop(self.client);
        drop(self.server);
        asked
    }
}

/// What somebody at the tracker wants of a run at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Nothing,
    Drain,
    Stop,
}

/// Pauses the pool and has it go on. Whoever waits for a session of a paused pool when the run shall
/// drain gets one, and leaves without using it.
fn obey(pool: SessionPool, screen: Arc<Screen>) -> impl Fn(Verb) + Send + Sync {
    let draining = AtomicBool::new(false);
    move |verb| {
        let said = match verb {
            // What leaves does not wait.
            Verb::Pause if draining.load(Ordering::SeqCst) => return,
            Verb::Pause => {
                pool.pause();
                "paused by somebody at the tracker: what runs goes on, nothing more begins"
            }
            Verb::Drain => {
                draining.store(true, Ordering::SeqCst);
                pool.resume();
                "drained by somebody at the tracker: what runs is finished, nothing more begins"
            }
            Verb::Resume => {
                draining.store(false, Ordering::SeqCst);
                pool.resume();
                "resumed by somebody at the tracker"
            }
            _ => return,
        };
        screen.write(Stream::Stderr, format!("remuda: {said}\n").as_bytes());
    }
}

/// A tracker in this process: at its usual port, where other commands look for it, or at a free one.
fn own_server() -> Option<TrackerServer> {
    let start =
        |port: u16| TrackerServer::builder().listen(format!("127.0.0.1:{port}")).database(":memory:").start();
    start(DEFAULT_PORT)
        .or_else(|_| start(0))
        .inspect_err(|error| log::warn!("the run is not tracked: {error}"))
        .ok()
}

fn task_name(scripts: &[&str]) -> String {
    let names = scripts.join(", ");
    let names = match names.char_indices().nth(LONGEST_TASK) {
        Some((end, _)) => format!("{}…", &names[..end]),
        None => names,
    };
    if scripts.len() == 1 { names } else { format!("{} scripts: {names}", scripts.len()) }
}
