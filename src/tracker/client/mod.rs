//! The app's side of the tracker: it registers, beats, hears kills, and never harms the app.

mod beat;
mod callbacks;
mod config;
mod dead_man;
mod group;
mod link;
mod orders;
mod pace;
mod pulse;
mod registry;
mod shared;
mod status;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

pub use config::ClientConfig;
pub use dead_man::DeadMan;
pub use group::SessionGroup;
pub(super) use link::{authorization, parse_server_url};
pub use status::TaskGuard;

use crate::cancel::CancelToken;
use crate::error::Result;
use crate::tracker::TrackedId;
use crate::tracker::api::Verb;
use shared::{Contact, Shared};

/// A running app as the tracker sees it: one tracked session.
///
/// ```no_run
/// use remuda::SessionClient;
///
/// let client = SessionClient::builder("nightly report").start()?;
/// client.on_kill(|| eprintln!("asked to stop"));
/// let token = client.cancel_token();
/// let _task = client.task("loading");
/// while !token.is_cancelled() {
///     // work, in small pieces
/// #   break;
/// }
/// # Ok::<(), remuda::Error>(())
/// ```
///
/// The app's work never depends on the tracker. While no tracker can be had (absent, hanging,
/// refusing, something else on its port) the client is *offline*: the work goes on, and the client
/// keeps trying, at first after half a second, later every 15 s at most. A tracker that has
/// forgotten the session gets it again, with the same id. The log is told once when the client goes
/// offline and once when it is back.
///
/// # A kill
/// Nothing is killed by force. When somebody asks the session to stop, the
/// [`cancel_token`](SessionClient::cancel_token) is cancelled and the [`on_kill`](SessionClient::on_kill)
/// callbacks run: at once if the tracker parks heartbeats (this crate's does), else with the next
/// one. What they do is up to the app. The same happens, once, at [`stop`](SessionClient::stop) and
/// on drop.
///
/// # The tracker is away
/// An operator cannot stop what no tracker reaches. An app that must not run unseen says with
/// [`on_server_lost`](ClientConfig::on_server_lost) that it wants to pause or stop once the tracker
/// has been away for [`lost_after`](ClientConfig::lost_after); by default it goes on.
///
/// # Threads
/// `remuda-beat` for its whole life, `remuda-status` from the first task on, `remuda-kill` and
/// `remuda-orders` while callbacks run, `remuda-deadman` with a dead-man policy. Hundreds of sessions
/// of one process share theirs in a [`SessionGroup`]. All have ended when `stop` or the drop returns, except one that hangs in the
/// system's name lookup, in a snapshot of the app's or in a callback of
/// [`on_verb`](SessionClient::on_verb): it ends by itself and calls nobody.
///
/// Dropping it is the same as [`stop`](SessionClient::stop). A callback or snapshot that holds an
/// `Arc` of its own client keeps it from being dropped: let it hold a `Weak`.
pub struct SessionClient {
    shared: Arc<Shared>,
}

impl SessionClient {
    /// Options of a client, to be started: see [`ClientConfig`].
    pub fn builder(app_name: impl Into<String>) -> ClientConfig {
        ClientConfig::new(app_name)
    }

    /// Starts a client and waits for its registration, at most one second and only as long as that
    /// is under way: an absent tracker is not an error, the client is offline then.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) for an option that makes no sense,
    /// [`Error::Io`](crate::Error::Io) if its thread cannot be started.
    pub fn start(config: ClientConfig) -> Result<SessionClient> {
        let client = SessionClient { shared: Shared::start(config, None)? };
        client.shared.await_first_contact();
        Ok(client)
    }

    fn start_in(config: ClientConfig, owner: &Arc<group::Owner>) -> Result<SessionClient> {
        let client = SessionClient { shared: Shared::start(config, Some(Arc::clone(owner)))? };
        client.shared.await_first_contact();
        Ok(client)
    }

    /// The client that lives for `key` in this process, or a new one with these options: one
    /// tracked session per, say, user session of a server. It lives as long as somebody holds the
    /// `Arc`. Options that differ from those of the living client are logged and have no effect.
    ///
    /// Blocks as [`start`](SessionClient::start) does; several threads that ask for the same key get
    /// the same client. [`SessionGroup::get_tracker`] has the same keys and starts it in a group.
    ///
    /// # Errors
    /// As [`start`](SessionClient::start).
    pub fn get_tracker(key: impl AsRef<str>, config: ClientConfig) -> Result<Arc<SessionClient>> {
        registry::get(key.as_ref(), config, None)
    }

    /// Whether it beats in this group, or alone.
    fn is_in(&self, owner: Option<&Arc<group::Owner>>) -> bool {
        self.shared.owner().map(Arc::as_ptr) == owner.map(Arc::as_ptr)
    }

    /// Shows the app as running this task until the guard is dropped. Of several tasks the newest
    /// that still runs is shown.
    ///
    /// Returns when the tracker knows, at the latest after one second, and at once while the client
    /// is offline or the tracker is slow; what did not get through is sent again on its own.
    pub fn task(&self, name: impl AsRef<str>) -> TaskGuard {
        TaskGuard::begin(&self.shared, name.as_ref())
    }

    /// Has `callback` run when the session is asked to stop, and at the latest at
    /// [`stop`](SessionClient::stop) or on drop. Does not block.
    ///
    /// Callbacks run once, one after the other in the order of their registration, on a thread of
    /// their own while the heartbeats go on; one that panics does not keep the others from running.
    /// One that is added afterwards runs at once, on such a thread.
    pub fn on_kill(&self, callback: impl FnOnce() + Send + 'static) {
        self.shared.callbacks.add(Box::new(callback));
    }

    /// The token that is cancelled when the callbacks are due, before the first of them runs. The
    /// same one each time.
    pub fn cancel_token(&self) -> CancelToken {
        self.shared.callbacks.token.clone()
    }

    /// Has `callback` called when an operator has the session pause, drain or go on
    /// ([`Verb::Pause`], [`Verb::Drain`], [`Verb::Resume`]), and when the dead-man policy has it pause
    /// and go on. Nothing else happens: what a pause means is up to the app. Does not block.
    ///
    /// A callback hears of each change once and in order, on a thread of their own (`remuda-orders`);
    /// one that is added during a pause hears of it at once. What is taken back before a callback is
    /// free to hear of it is not told. [`Verb::Resume`] takes everything back that was told before.
    /// None is called after [`stop`](SessionClient::stop).
    pub fn on_verb(&self, callback: impl Fn(Verb) + Send + Sync + 'static) {
        self.shared.orders.add(Arc::new(callback));
    }

    /// Whether the session shall take no new task until it is resumed.
    pub fn is_paused(&self) -> bool {
        self.shared.orders.is_paused()
    }

    /// Whether the session shall finish its task, take no other, and leave.
    pub fn is_draining(&self) -> bool {
        self.shared.orders.is_draining()
    }

    /// Has `snapshot` called before each heartbeat; its value is shown beside the session. A
    /// snapshot of the same name is replaced.
    ///
    /// It runs on the heartbeat thread: one that takes long delays the beats, and all of them
    /// together may weigh 60 KiB; what does not fit is left out, with a warning.
    pub fn attach(&self, name: impl Into<String>, snapshot: impl Fn() -> Value + Send + Sync + 'static) {
        self.shared.attach(name.into(), Arc::new(snapshot));
    }

    /// Whether the tracker answered well the last time. False while offline and once stopped.
    pub fn is_connected(&self) -> bool {
        let state = self.shared.lock();
        state.contact == Contact::Connected && state.phase == shared::Phase::Open
    }

    /// Why the tracker could not be used the last time, in words; `None` while it can, or was not asked
    /// yet. One that does not take the [`token`](ClientConfig::token) says so here.
    pub fn last_trouble(&self) -> Option<String> {
        self.shared.lock().trouble.clone()
    }

    /// Whether the tracker has been away for so long that
    /// [`on_server_lost`](ClientConfig::on_server_lost) has struck, and is not back. Never true with
    /// [`DeadMan::Continue`].
    pub fn is_lost(&self) -> bool {
        self.shared.lock().lost
    }

    /// The time between two heartbeats that is kept to: the client's own, or what the tracker has
    /// asked for.
    pub fn heartbeat_interval(&self) -> Duration {
        self.shared.interval()
    }

    /// Whether the tracker has asked this session to stop.
    pub fn is_killed(&self) -> bool {
        self.shared.is_killed()
    }

    /// Whether [`stop`](SessionClient::stop) was called, even if its callbacks still run.
    pub fn is_stopped(&self) -> bool {
        self.shared.is_stopping()
    }

    /// The id of the tracked session. It is the client's own, except with a tracker that insists on
    /// giving ids: then it changes with the registration.
    pub fn id(&self) -> TrackedId {
        self.shared.lock().id.clone()
    }

    /// The options in effect.
    pub fn config(&self) -> &ClientConfig {
        &self.shared.config
    }

    /// Ends the tracked session: runs the callbacks unless they have run, then takes it off the
    /// tracker's list and ends the threads. Later calls do nothing but wait for the first.
    ///
    /// Waits for the callbacks, as long as they take, and then for the tracker, at most one second.
    /// Inside a callback it returns at once; the session ends when the last callback has.
    pub fn stop(&self) {
        let shared = Arc::clone(&self.shared);
        self.shared.begin_stop();
        self.shared.callbacks.fire();
        if self.shared.callbacks.wait_or(move || shared.close()) {
            self.shared.close();
        }
    }
}

impl Drop for SessionClient {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for SessionClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionClient")
            .field("id", &self.id())
            .field("app_name", &self.shared.config.app_name)
            .field("connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}
