//! A run as a tracked session: seen and stopped on a page.

use remuda::tracker::api::DEFAULT_PORT;
use remuda::{CancelToken, ClientConfig, SessionClient, SessionPool, TaskGuard, TrackerServer};
use serde_json::json;

use crate::args::TrackerChoice;
use crate::complain;

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
    /// Registers the run and says where it can be seen; a kill cancels `token`. Nothing here keeps
    /// the run from going on: `None` if there is to be no tracker, or none can be had.
    pub(crate) fn start(
        choice: &TrackerChoice,
        scripts: &[&str],
        pool: &SessionPool,
        token: &CancelToken,
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
        if client.is_connected() {
            complain(format!("to watch or stop this run: {url}/"));
        } else {
            let denied = client.last_trouble().filter(|trouble| trouble.starts_with("it answers 401"));
            let why = denied.unwrap_or_else(|| "does not answer".to_owned());
            complain(format!("the tracker at {url} {why}; the scripts run unseen until it does"));
        }
        let (of_kill, of_pool) = (token.clone(), pool.clone());
        client.on_kill(move || of_kill.cancel());
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

    /// Takes the run off the list; true if somebody has asked it to stop.
    pub(crate) fn end(self) -> bool {
        let killed = self.client.is_killed();
        drop(self.task);
        drop(self.client);
        drop(self.server);
        killed
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
