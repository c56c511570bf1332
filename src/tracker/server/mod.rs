//! The tracker's server: options, start, end.
//!
//! A request is understood by the table in [`routing`], read by [`input`], answered by [`tracker`]
//! (`list`, `kills`, `lives`, `batch`, `parked`, `events`, `metrics` and `pools` are parts of it).

mod access;
mod audit;
mod batch;
mod events;
mod input;
mod kills;
mod list;
mod lives;
mod metrics;
mod openapi;
mod pages;
mod parked;
mod pools;
mod reaper;
mod replies;
mod routing;
mod tokens;
mod tracker;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use self::access::Door;
use self::reaper::Reaper;
pub use self::tokens::Tokens;
use self::tracker::Tracker;
use super::TrackedId;
use super::api::Whom;
use super::api::{CONNECTION_IDLE, DEFAULT_PORT, PURGE_AFTER, STALE_AFTER};
use super::http::{BodyBytes, Hosts, HttpServer, Limits};
use super::store::{KillOrder, SessionStore};
use crate::clock::Clock;
#[cfg(feature = "testing")]
use crate::clock::ManualClock;
use crate::{Error, Result};

/// How long `shutdown` waits for answers that are being written.
const GRACE: Duration = Duration::from_secs(5);
/// File descriptors that are left to everything but connections.
const SPARE_FILES: u64 = 64;

/// A running tracker: an HTTP server, its database and its reaper, in this process.
///
/// It owns seven threads whatever the number of clients: one for all connections, four that answer
/// what waits for the disk (at most two of them lists), one that writes, one that removes silent
/// sessions. Dropping it ends it like [`shutdown`](TrackerServer::shutdown), without waiting for
/// clients.
///
/// ```
/// use remuda::TrackerServer;
///
/// let server = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").start()?;
/// println!("http://{}/", server.local_addr());
/// server.shutdown();
/// # Ok::<(), remuda::Error>(())
/// ```
#[must_use = "dropping a server stops it"]
pub struct TrackerServer {
    // In this order they end: no request comes in, nobody reaps, the database closes.
    http: HttpServer,
    _reaper: Reaper,
    tracker: Arc<Tracker>,
}

/// The options of a [`TrackerServer`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TrackerServerBuilder {
    /// Address and port to listen on, default `127.0.0.1:8000`; port 0 takes a free one. Others than
    /// those of this machine's loopback only together with [`tokens`](TrackerServerBuilder::tokens).
    pub listen: String,
    /// The database's file, default `remuda.db` in the working directory; `:memory:` keeps it in
    /// memory.
    pub database: PathBuf,
    /// Silence after which a session is shown as stale, default 120 s.
    pub stale_after: Duration,
    /// Silence after which a session is moved to the history, default 600 s; not less than
    /// `stale_after`. While more than 85 % of at least 20 sessions are stale, twice as long: see
    /// [`MassSilence`](super::api::MassSilence).
    pub purge_after: Duration,
    /// Open connections, default 10 000, and never more than the process may have files. Nine of
    /// ten may be parked beats or streams of events, one of ten streams; of the others, one that has been idle for the longest time makes room
    /// for a new one.
    pub max_connections: usize,
    /// How often clients shall beat that can be told (those of this crate); default: as they like.
    /// From 10 ms to an hour; at most half of `stale_after`.
    pub heartbeat_interval: Option<Duration>,
    /// The access tokens that it takes: see [`Role`](super::api::Role). Default: none, and whoever
    /// reaches it may ask for everything.
    pub tokens: Option<Tokens>,
    /// Names, without a port, under which it may be asked beside those of loopback: that of a proxy in
    /// front of it. A page that came from one of them by HTTPS is its own. Default: none. On an address
    /// that is not of loopback it may also be asked by any address.
    pub allowed_hosts: Vec<String>,
    /// For tests: the clock by which silence is judged. Default: the system's.
    #[cfg(feature = "testing")]
    pub clock: Option<ManualClock>,
}

impl Default for TrackerServerBuilder {
    fn default() -> TrackerServerBuilder {
        TrackerServerBuilder {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)).to_string(),
            database: PathBuf::from("remuda.db"),
            stale_after: STALE_AFTER,
            purge_after: PURGE_AFTER,
            max_connections: Limits::default().connections,
            heartbeat_interval: None,
            tokens: None,
            allowed_hosts: Vec::new(),
            #[cfg(feature = "testing")]
            clock: None,
        }
    }
}

impl TrackerServerBuilder {
    /// Sets [`listen`](TrackerServerBuilder::listen).
    pub fn listen(mut self, listen: impl Into<String>) -> Self {
        self.listen = listen.into();
        self
    }

    /// Sets [`database`](TrackerServerBuilder::database).
    pub fn database(mut self, database: impl Into<PathBuf>) -> Self {
        self.database = database.into();
        self
    }

    /// Sets [`stale_after`](TrackerServerBuilder::stale_after).
    pub fn stale_after(mut self, stale_after: Duration) -> Self {
        self.stale_after = stale_after;
        self
    }

    /// Sets [`purge_after`](TrackerServerBuilder::purge_after).
    pub fn purge_after(mut self, purge_after: Duration) -> Self {
        self.purge_after = purge_after;
        self
    }

    /// Sets [`max_connections`](TrackerServerBuilder::max_connections).
    pub fn max_connections(mut self, max_connections: usize) -> Self {
        self.max_connections = max_connections;
        self
    }

    /// Sets [`heartbeat_interval`](TrackerServerBuilder::heartbeat_interval).
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.heartbeat_interval = Some(interval);
        self
    }

    /// Sets [`tokens`](TrackerServerBuilder::tokens).
    pub fn tokens(mut self, tokens: Tokens) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// Sets [`allowed_hosts`](TrackerServerBuilder::allowed_hosts), all of them.
    pub fn allowed_hosts(mut self, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.allowed_hosts = hosts.into_iter().map(Into::into).collect();
        self
    }

    /// Sets [`clock`](TrackerServerBuilder::clock).
    #[cfg(feature = "testing")]
    pub fn clock(mut self, clock: &ManualClock) -> Self {
        self.clock = Some(clock.clone());
        self
    }

    #[cfg_attr(not(feature = "testing"), allow(clippy::unused_self, reason = "the option is not there"))]
    fn the_clock(&self) -> Clock {
        #[cfg(feature = "testing")]
        if let Some(clock) = &self.clock {
            return Clock::manual(clock.clone());
        }
        Clock::system()
    }

    /// Opens the database and serves. Returns when connections are accepted.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], [`Error::Store`], [`Error::Listen`].
    pub fn start(self) -> Result<TrackerServer> {
        let address = self.validate()?;
        if self.tokens.is_none() && !self.allowed_hosts.is_empty() {
            log::warn!(
                "whoever reaches the tracker as {} may kill: there are no tokens",
                self.allowed_hosts.join(" or ")
            );
        }
        // Before the database is touched: an address that is taken leaves no file behind.
        TcpListener::bind(address).map_err(|source| Error::Listen { address, source })?;
        let store = SessionStore::open_with(&self.database, self.stale_after, self.the_clock())?;
        let tracker = Arc::new(Tracker::new(store, Door::new(self.tokens.clone()), self.heartbeat_interval));
        let http =
            HttpServer::start(address, Arc::clone(&tracker), self.limits(address, Arc::clone(&tracker)))
                .map_err(|source| Error::Listen { address, source })?;
        let mass_silence = self.purge_after.saturating_mul(2).saturating_sub(self.stale_after);
        let reaper = Reaper::start(Arc::clone(&tracker), self.purge_after, mass_silence)
            .map_err(|error| Error::io("starting the tracker's reaper", error))?;
        log::info!("tracker listens on http://{}/", http.local_addr());
        Ok(TrackerServer { http, _reaper: reaper, tracker })
    }

    fn validate(&self) -> Result<SocketAddr> {
        let address = match self.listen.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}").parse(),
            None => self.listen.parse::<SocketAddr>(),
        };
        let Ok(address) = address else {
            let reason = format!("{:?} is not ADDRESS:PORT, such as 127.0.0.1:{DEFAULT_PORT}", self.listen);
            return Err(Error::config("listen", reason));
        };
        if !address.ip().to_canonical().is_loopback() && self.tokens.is_none() {
            let reason = format!(
                "{address} can be reached from other machines, which takes access tokens (see tokens); \
                 without them use an address of 127.0.0.0/8 or [::1]"
            );
            return Err(Error::config("listen", reason));
        }
        if let Some(host) = self.allowed_hosts.iter().find(|host| !is_host(host)) {
            let reason = format!("{host:?} is not the name of a host, without a port");
            return Err(Error::config("allowed_hosts", reason));
        }
        if self.stale_after.is_zero() {
            return Err(Error::config("stale_after", "must be more than zero"));
        }
        if self.purge_after < self.stale_after {
            return Err(Error::config("purge_after", "must not be less than stale_after"));
        }
        if let Some(interval) = self.heartbeat_interval {
            if !(Duration::from_millis(10)..=Duration::from_secs(3_600)).contains(&interval) {
                return Err(Error::config("heartbeat_interval", "must be from 10 ms to an hour"));
            }
            if interval > self.stale_after / 2 {
                return Err(Error::config("heartbeat_interval", "must not be more than half of stale_after"));
            }
        }
        if self.max_connections == 0 {
            return Err(Error::config("max_connections", "must be at least 1"));
        }
        Ok(address)
    }

    fn limits(&self, address: SocketAddr, tracker: Arc<Tracker>) -> Limits {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(SPARE_FILES);
        let connections = self.max_connections.min(usize::try_from(files.max(1)).unwrap_or(usize::MAX));
        Limits {
            connections,
            // Some connections are kept for whoever comes to look or to kill.
            waiting: connections - connections.div_ceil(10),
            streams: connections.div_ceil(10),
            body_bytes: BodyBytes(Arc::new(move |request| tracker.max_body(request))),
            idle_time: CONNECTION_IDLE,
            hosts: Hosts {
                names: self.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
                addresses: !address.ip().to_canonical().is_loopback(),
            },
            ..Limits::default()
        }
    }
}

/// A name, or an address as it stands in a `Host`.
fn is_host(host: &str) -> bool {
    let name = host.strip_prefix('[').map_or(Some(host), |rest| rest.strip_suffix(']'));
    name.is_some_and(|name| {
        let in_brackets = name.len() < host.len();
        let fits = |byte: u8| {
            byte.is_ascii_alphanumeric() || b"-._".contains(&byte) || (in_brackets && byte == b':')
        };
        !name.is_empty() && name.bytes().all(fits)
    })
}

impl TrackerServer {
    /// The options, with their defaults.
    pub fn builder() -> TrackerServerBuilder {
        TrackerServerBuilder::default()
    }

    /// The address that it listens on, with the port that was taken.
    pub fn local_addr(&self) -> SocketAddr {
        self.http.local_addr()
    }

    /// Everything that it can be asked for: method, path, and who may ask: `everybody`, `app`, `viewer` or
    /// `operator`.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn endpoints() -> Vec<(&'static str, &'static str, &'static str)> {
        routing::endpoints().map(|row| (row.method.as_str(), row.path, row.access.as_str())).collect()
    }

    /// The store that it stands on. A kill that is requested here reaches a parked beat no sooner
    /// than its end: use the routes, or [`kill`](TrackerServer::kill).
    pub fn store(&self) -> &SessionStore {
        self.tracker.store()
    }

    /// Asks a tracked session to stop, even if it is protected; a parked beat of it is answered at once. False if there is
    /// no such session. Blocks until the request is on the disk.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn kill(&self, id: &TrackedId) -> Result<bool> {
        let order = KillOrder { force: true, ..KillOrder::default() };
        Ok(self.tracker.kill(&Whom::Session(id.clone()), order)?.is_ok())
    }

    /// Ends the server: answers the requests that have arrived, parked beats at once, for at most
    /// 5 s; writes the last beats; closes the database. Blocks until all of its threads have ended.
    pub fn shutdown(mut self) {
        self.http.shutdown(GRACE);
    }
}

impl fmt::Debug for TrackerServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackerServer").field("address", &self.local_addr()).finish_non_exhaustive()
    }
}
