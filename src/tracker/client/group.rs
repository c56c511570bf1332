//! Many tracked sessions of one process that beat together: two threads and two connections for all
//! of them.
//!
//! `remuda-group` sends the beats of all sessions as one request, which the tracker holds until one of
//! them has something to hear. `remuda-side` does what cannot wait for that: it registers sessions,
//! reports tasks, and *renews* the parked request when it has become old, because a session joined or
//! went on with a kill: a single beat of one of its sessions, that waits itself, ends the wait. `remuda-deadman` exists if
//! some session has a dead-man policy.
//!
//! Each session keeps its own state in its [`Shared`]; the group's lock guards only what is the group's
//! own. The two are never held together. Threads hold sessions weakly while they wait, so that the last
//! client that goes ends the group.
//!
//! A renewal is not lost: whoever sets `renew` before the request is noted in `parked` keeps it from
//! being parked; whoever sets it afterwards sends a beat with a higher number, which either ends the
//! wait or makes one of the batch's beats late, and a batch with a late beat is not parked.

mod beats;
mod side;

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::SessionClient;
use super::config::ClientConfig;
use super::dead_man::{self, DeadMan};
use super::link::{Link, Trouble};
use super::pace::Backoff;
use super::pulse::Pulse;
use super::registry;
use super::shared::Shared;
use crate::background::Background;
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::sync::{Condvar, Mutex, MutexGuard, wait_until};
use crate::tracker::AccessToken;

/// More sessions than this would not find room in one request.
const MOST_MEMBERS: usize = 1_000;

/// Tracked sessions of one process that share their threads and connections.
///
/// A [`SessionClient`] has threads and connections of its own. A server with hundreds of user sessions
/// starts them in a group instead: their heartbeats travel in one request, and a kill of one of them
/// still arrives at once. Everything else is as with clients that stand alone. With a tracker that
/// takes no batches each session beats by itself, one after the other.
///
/// A group has at most 1 000 sessions that live; start another for more. What they attach may weigh
/// 700 KiB together, shared out evenly. The shortest heartbeat interval among them is that of all.
///
/// It lives until it and all of its clients are dropped. A clone is the same group.
///
/// ```no_run
/// use remuda::{ClientConfig, SessionGroup};
///
/// let group = SessionGroup::new("http://localhost:8000")?;
/// let ann = group.start(ClientConfig::new("reports").user_id("ann"))?;
/// let bob = group.start(ClientConfig::new("reports").user_id("bob"))?;
/// # Ok::<(), remuda::Error>(())
/// ```
#[derive(Clone)]
pub struct SessionGroup {
    owner: Arc<Owner>,
}

impl SessionGroup {
    /// A group without sessions, for the tracker at this address: see
    /// [`ClientConfig::server_url`]. Does not talk to it.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for an address that makes no sense, [`Error::Io`] if its threads
    /// cannot be started.
    pub fn new(server_url: impl AsRef<str>) -> Result<SessionGroup> {
        SessionGroup::begin(server_url.as_ref(), None)
    }

    /// A group whose sessions show this access token: see [`ClientConfig::token`].
    ///
    /// # Errors
    /// As [`new`](SessionGroup::new).
    pub fn with_token(server_url: impl AsRef<str>, token: AccessToken) -> Result<SessionGroup> {
        SessionGroup::begin(server_url.as_ref(), Some(token))
    }

    fn begin(server_url: &str, token: Option<AccessToken>) -> Result<SessionGroup> {
        Ok(SessionGroup { owner: Owner::start(server_url, token)? })
    }

    /// Starts a client as [`SessionClient::start`] does, as one of the group. The options'
    /// [`server_url`](ClientConfig::server_url) and [`token`](ClientConfig::token) are replaced by those of
    /// the group.
    ///
    /// # Errors
    /// As [`SessionClient::start`]; also [`Error::InvalidConfig`] if the group is full.
    pub fn start(&self, config: ClientConfig) -> Result<SessionClient> {
        SessionClient::start_in(self.options(config), &self.owner)
    }

    /// The client that lives for `key` in this process, or a new one of the group with these options: see
    /// [`SessionClient::get_tracker`], which knows the same keys. A client that lives for the key outside
    /// of the group stays there; that is logged.
    ///
    /// # Errors
    /// As [`start`](SessionGroup::start).
    pub fn get_tracker(&self, key: impl AsRef<str>, config: ClientConfig) -> Result<Arc<SessionClient>> {
        registry::get(key.as_ref(), self.options(config), Some(&self.owner))
    }

    /// With what is the group's.
    fn options(&self, config: ClientConfig) -> ClientConfig {
        let Group { url, token, .. } = &*self.owner.group;
        ClientConfig { token: token.clone(), ..config.server_url(&**url) }
    }

    /// How many of its sessions live.
    pub fn len(&self) -> usize {
        self.owner.group.living().len()
    }

    /// Whether none of its sessions lives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for SessionGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = &self.owner.group;
        f.debug_struct("SessionGroup").field("server_url", &group.url).finish_non_exhaustive()
    }
}

/// Ends the group when the handle and all clients are gone.
pub(super) struct Owner {
    pub(super) group: Arc<Group>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        let mut state = self.group.state.lock();
        state.over = true;
        let threads = std::mem::take(&mut state.threads);
        self.group.changed.notify_all();
        drop(state);
        // Nobody is registered any more; what still waits for an answer is not worth waiting for.
        self.group.beats.shut();
        self.group.side.shut();
        for thread in threads {
            if self.group.has_ended(&thread) {
                drop(thread);
            } else {
                thread.leave();
            }
        }
    }
}

/// What the threads of a group share.
pub(super) struct Group {
    pub(super) url: String,
    token: Option<AccessToken>,
    pub(super) beats: Arc<Link>,
    pub(super) side: Arc<Link>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    members: Vec<Arc<Member>>,
    /// Counts what the side thread must look at.
    pokes: u64,
    /// The parked beat is old: another shall take its place.
    renew: bool,
    /// A session of the request that is parked.
    parked: Option<Weak<Shared>>,
    /// Whether the tracker answered well the last time; nothing before the first time.
    reachable: Option<bool>,
    /// The longest wait that the tracker offers, in seconds; 0: it parks no beats.
    longest_wait: u64,
    over: bool,
    has_dead_man: bool,
    threads: Vec<Background>,
    /// Threads that have ended.
    ended: Vec<std::thread::ThreadId>,
}

/// A session of the group.
struct Member {
    shared: Weak<Shared>,
    track: Mutex<Track>,
}

/// What the threads know of one session.
struct Track {
    pulse: Pulse,
    /// A beat went well since the last registration.
    proven: bool,
    backoff: Backoff,
    /// It is not registered before this.
    not_before: Option<Moment>,
}

impl Owner {
    fn start(server_url: &str, token: Option<AccessToken>) -> Result<Arc<Owner>> {
        let config =
            ClientConfig { token: token.clone(), ..ClientConfig::new("group").server_url(server_url) };
        let group = Group {
            url: server_url.to_owned(),
            token,
            beats: Arc::new(Link::new(&config)?),
            side: Arc::new(Link::new(&config)?),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        let owner = Owner { group: Arc::new(group) };
        for (name, body) in [("remuda-group", beats::run as fn(&Group)), ("remuda-side", side::run)] {
            owner.group.launch(name, body).map_err(|error| Error::io("starting a group's threads", error))?;
        }
        Ok(Arc::new(owner))
    }

    /// Takes a client in.
    pub(super) fn admit(&self, shared: &Arc<Shared>) -> Result<()> {
        let living = self.group.living().len();
        if living >= MOST_MEMBERS {
            return Err(Error::config("group", format!("it has {living} sessions; start another group")));
        }
        let has_policy = shared.config.on_server_lost != DeadMan::Continue;
        if has_policy && !std::mem::replace(&mut self.group.state.lock().has_dead_man, true) {
            self.group.launch("remuda-deadman", watch).map_err(|error| {
                self.group.state.lock().has_dead_man = false;
                Error::io("starting the dead-man thread", error)
            })?;
        }
        let track =
            Track { pulse: Pulse::default(), proven: true, backoff: Backoff::default(), not_before: None };
        let member = Arc::new(Member { shared: Arc::downgrade(shared), track: Mutex::new(track) });
        self.group.state.lock().members.push(member);
        self.group.poke();
        Ok(())
    }
}

impl Group {
    fn launch(self: &Arc<Self>, name: &'static str, body: fn(&Group)) -> std::io::Result<()> {
        let group = Arc::clone(self);
        let mut state = self.state.lock();
        let thread = Background::spawn(name, move || {
            let _ended = Ended(Arc::clone(&group));
            body(&group);
        })?;
        state.threads.push(thread);
        Ok(())
    }

    /// There is something to do for the side thread.
    pub(super) fn poke(&self) {
        self.state.lock().pokes += 1;
        self.changed.notify_all();
    }

    /// The sessions that live, to be asked without the lock; forgets the others.
    fn living(&self) -> Vec<Arc<Member>> {
        let members = self.state.lock().members.clone();
        let (living, gone): (Vec<_>, Vec<_>) = members
            .into_iter()
            .partition(|member| member.shared.upgrade().is_some_and(|shared| shared.is_open()));
        if !gone.is_empty() {
            let is_gone = |member: &Arc<Member>| gone.iter().any(|gone| Arc::ptr_eq(gone, member));
            self.state.lock().members.retain(|member| !is_gone(member));
        }
        living
    }

    fn is_over(&self) -> bool {
        self.state.lock().over
    }

    fn wait(&self, state: &mut MutexGuard<'_, State>, deadline: Option<Moment>) -> bool {
        wait_until(&self.changed, state, deadline)
    }

    /// The tracker answered well. True if it did not the last time.
    fn reached(&self) -> bool {
        let before = self.state.lock().reachable.replace(true);
        if before == Some(false) {
            log::info!("a group of tracked sessions is back at the tracker at {}", self.url);
        }
        before == Some(false)
    }

    /// The tracker did not answer well.
    fn troubled(&self, trouble: &Trouble) {
        let before = self.state.lock().reachable.replace(false);
        if before != Some(false) {
            log::warn!(
                "offline, a group of tracked sessions goes on without the tracker at {}: {trouble}",
                self.url
            );
        }
    }

    /// Waits for the thread a little; true when it has ended, or is the one that asks.
    fn has_ended(&self, thread: &Background) -> bool {
        let deadline = Moment::after(Duration::from_secs(1));
        let mut state = self.state.lock();
        let is_own = thread.id() == std::thread::current().id();
        while !is_own && !state.ended.contains(&thread.id()) {
            if self.wait(&mut state, Some(deadline)) {
                return false;
            }
        }
        true
    }
}

struct Ended(Arc<Group>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.state.lock().ended.push(std::thread::current().id());
        self.0.changed.notify_all();
    }
}

/// The dead-man thread of a group.
fn watch(group: &Group) {
    loop {
        let pokes = group.state.lock().pokes;
        let due: Vec<Moment> = group
            .living()
            .iter()
            .filter_map(|member| member.shared.upgrade())
            .filter(|shared| shared.config.on_server_lost != DeadMan::Continue)
            .filter_map(|shared| dead_man::look(&shared))
            .collect();
        let mut state = group.state.lock();
        while !state.over && state.pokes == pokes {
            if group.wait(&mut state, due.iter().min().copied()) {
                break;
            }
        }
        if state.over {
            return;
        }
    }
}
