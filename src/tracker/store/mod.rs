//! The tracked sessions in SQLite.
//!
//! One thread writes ([`writer`]): what came in meanwhile is one transaction, and a call that
//! registers, kills, sets a status or deletes returns after its commit, which is on the disk.
//! Beats touch memory only ([`memory`]) and are written within a second. Readers have connections
//! of their own, so a long list and a write do not wait for each other.
//!
//! What the disk refuses is told ([`StoreFault`]) and undone. While it takes nothing,
//! beats go on in memory, [`check`](SessionStore::check) says so, and writing is tried again ([`trouble`]).
//!
//! Ages are decided by the monotonic clock: whoever was silent before the store was opened counts
//! as seen at that moment, so nobody is stale before one threshold has passed. Wall-clock times
//! are stored and shown, and decide nothing.

mod ancestor;
mod attached;
mod audit;
mod batch;
mod census;
mod crowd;
mod history;
mod kills;
mod life;
mod list;
mod looks;
mod membership;
mod memory;
mod owners;
mod preview;
mod rows;
mod schema;
mod trouble;
mod write;
mod writer;

use std::fmt;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

pub(super) use self::batch::News;
use self::census::BeatCounts;
pub(super) use self::census::{BeatOutcome, Census};
pub(super) use self::kills::KillOrder;
use self::memory::Memory;
pub(super) use self::memory::Missed;
use self::trouble::Trouble;
pub(super) use self::write::{Killed, NotKilled};
use self::write::{Now, Outcome, Write};
use self::writer::{Command, Writer};
use super::api::{Asker, EndReason, Heartbeat, STALE_AFTER, SessionCreate, Whom};
use super::feed::Feed;
use super::life::Thresholds;
use super::{TrackedId, TrackedSession, civil};
use crate::clock::{Clock, Moment, wall};
use crate::sync::Mutex;
use crate::{Error, Result, StoreFault};

/// Read connections that are kept.
const READERS: usize = 4;

/// The tracker's database: what [`TrackerServer`](super::TrackerServer) stands on, usable without it.
///
/// Its operations are those of the Python ancestor's `session_db`, under their names; `init_db` is
/// [`open`](SessionStore::open).
///
/// All methods take `&self` and may be called from any thread. Methods that return a
/// [`Result`] wait for the disk; their error is [`Error::Store`], and then nothing has changed.
/// Dropping the store writes the last beats and closes the database.
///
/// ```
/// use remuda::SessionStore;
///
/// let store = SessionStore::open(":memory:")?;
/// let id = store.create_session("reports", Some("ann"))?;
/// assert_eq!(store.update_heartbeat(&id), Some(false));
/// assert!(store.request_kill(&id)?);
/// assert_eq!(store.update_heartbeat(&id), Some(true));
/// assert_eq!(store.get_all_sessions()?[0].app_name, "reports");
/// # Ok::<(), remuda::Error>(())
/// ```
pub struct SessionStore {
    memory: Arc<Mutex<Memory>>,
    writer: Writer,
    readers: Readers,
    thresholds: Thresholds,
    clock: Clock,
    feed: Arc<Feed>,
    beats: BeatCounts,
    opened: Moment,
    /// Held as long as the database is open.
    _lock: Option<File>,
}

enum Readers {
    Own {
        path: PathBuf,
        idle: Mutex<Vec<Connection>>,
    },
    /// A database in memory has one connection; the writer reads for everybody.
    Writer,
}

impl SessionStore {
    /// Opens or creates the database at `path`; `:memory:` keeps it in memory.
    ///
    /// A database of the Python ancestor is taken over: its sessions are copied, its table stays
    /// beside ours as `ancestor_sessions`. While it is open, a second store on the same file is
    /// refused.
    ///
    /// # Errors
    /// [`Error::Store`] if the path is empty, the file cannot be opened or written, is in use by another
    /// tracker, damaged, newer than this version, no database or one of something else; its
    /// [`StoreFault`] tells which. The file is left as it is.
    pub fn open(path: impl AsRef<Path>) -> Result<SessionStore> {
        SessionStore::open_with(path.as_ref(), STALE_AFTER, Clock::system())
    }

    pub(super) fn open_with(path: &Path, stale_after: Duration, clock: Clock) -> Result<SessionStore> {
        SessionStore::open_file(path, stale_after, clock).map_err(|error| match error {
            // SQLite tells the whole path of what it cannot open at all.
            Error::Store { fault, doing, source }
                if !std::path::absolute(path)
                    .is_ok_and(|path| source.to_string().contains(&*path.to_string_lossy())) =>
            {
                Error::store_fault(fault, doing, format!("{source} ({})", path.display()))
            }
            other => other,
        })
    }

    fn open_file(path: &Path, stale_after: Duration, clock: Clock) -> Result<SessionStore> {
        if path.as_os_str().is_empty() {
            // SQLite would take a file of its own for each connection, and delete it at the end.
            return Err(Error::store("opening it", "its path is empty"));
        }
        let in_memory = path == Path::new(":memory:");
        // Whole, because readers open it later, whatever the working directory is by then; and because
        // SQLite takes what begins with `file:` for an address that may mean anything.
        let path = &std::path::absolute(path).map_err(|error| Error::store("opening it", error))?;
        if !in_memory && path.is_dir() {
            return Err(Error::store_fault(StoreFault::Io, "opening it", "it is a directory"));
        }
        let lock = if in_memory { None } else { Some(Lock::take(path)?) };
        let connection = if in_memory {
            Connection::open_in_memory()
        } else {
            create(path);
            Connection::open(path)
        };
        let mut connection = connection.map_err(|error| Error::store("opening it", error))?;
        if let Err(error) = schema::prepare(&mut connection) {
            if let (Some(lock), Error::Store { fault: StoreFault::Foreign, .. }) = (lock, &error) {
                lock.undo();
            }
            return Err(error);
        }
        let now = Now { moment: clock.now(), millis: civil::millis(wall()) };
        let memory =
            rows::load(&connection, now).map_err(|error| Error::store("loading the sessions", error))?;
        let memory = Arc::new(Mutex::new(memory));
        let trouble = Trouble::none((!in_memory).then_some(path));
        let feed = Arc::new(Feed::new());
        let writer =
            Writer::start(connection, Arc::clone(&memory), clock.clone(), trouble, Arc::clone(&feed))?;
        let readers = if in_memory {
            Readers::Writer
        } else {
            Readers::Own { path: path.clone(), idle: Mutex::new(Vec::new()) }
        };
        let thresholds = Thresholds { stale: stale_after };
        Ok(SessionStore {
            memory,
            writer,
            readers,
            thresholds,
            clock,
            feed,
            beats: BeatCounts::default(),
            opened: now.moment,
            _lock: lock.map(|lock| lock.file),
        })
    }

    /// Registers a tracked session and returns its new id. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn create_session(&self, app_name: &str, user_id: Option<&str>) -> Result<TrackedId> {
        self.register(SessionCreate {
            app_name: app_name.to_owned(),
            user_id: user_id.map(str::to_owned),
            ..SessionCreate::default()
        })
    }

    /// Registers a tracked session with all it may say of itself; see [`SessionCreate`]. Durable
    /// when it returns.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn register(&self, session: SessionCreate) -> Result<TrackedId> {
        self.register_for(None, session)
    }

    /// Registers a session that belongs to `owner`. If its id is that of a session of somebody else, it gets
    /// another one.
    pub(super) fn register_for(&self, owner: Option<&str>, session: SessionCreate) -> Result<TrackedId> {
        let id = session.session_id.clone().unwrap_or_else(TrackedId::random);
        let (owner, session) = (owner.map(str::to_owned), Box::new(session));
        let write = |id: &TrackedId| {
            let (owner, session) = (owner.clone(), session.clone());
            self.changed("registering a session", Write::Register { id: id.clone(), owner, session })
        };
        if write(&id)? {
            return Ok(id);
        }
        let id = TrackedId::random();
        write(&id)?;
        Ok(id)
    }

    /// Registers many tracked sessions in one wait for the disk, and returns their ids. Durable when it
    /// returns.
    ///
    /// # Errors
    /// [`Error::Store`]; then some of them may be registered.
    pub fn register_all(&self, sessions: Vec<SessionCreate>) -> Result<Vec<TrackedId>> {
        let id_of = |session: &SessionCreate| session.session_id.clone().unwrap_or_else(TrackedId::random);
        let ids: Vec<TrackedId> = sessions.iter().map(id_of).collect();
        let registered = ids.iter().cloned().zip(sessions);
        let writes = registered
            .map(|(id, session)| Write::Register { id, session: Box::new(session), owner: None })
            .collect();
        self.writer.write_all(writes).map_err(|error| Error::store("registering sessions", error))?;
        Ok(ids)
    }

    /// Whether this is a session of somebody else. Does not block.
    pub(super) fn is_foreign(&self, id: &TrackedId, owner: &str) -> bool {
        self.memory.lock().is_foreign(id, owner)
    }

    /// Ends a tracked session: it moves to the history. False if there is no such session.
    /// Durable when it returns.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn delete_session(&self, id: &TrackedId) -> Result<bool> {
        self.delete_for(None, id)
    }

    /// [`delete_session`](SessionStore::delete_session), for somebody who is not the session itself.
    pub(super) fn delete_for(&self, asked_by: Option<Asker>, id: &TrackedId) -> Result<bool> {
        let write = Write::Delete { id: id.clone(), asked_by: asked_by.map(Box::new) };
        self.changed("deleting a session", write)
    }

    /// Notes a sign of life and tells whether somebody wants the session to stop; `None` if there
    /// is no such session. Does not block; written to the disk within a second.
    pub fn update_heartbeat(&self, id: &TrackedId) -> Option<bool> {
        self.beat(id, Heartbeat::default(), Duration::ZERO).ok().map(|reply| reply.kill_requested)
    }

    /// Whether somebody wants the session to stop, without a sign of life; `None` if there is no
    /// such session. Does not block.
    pub fn kill_requested(&self, id: &TrackedId) -> Option<bool> {
        self.memory.lock().kill_requested(id)
    }

    /// Sets status and task; also a sign of life. False if there is no such session. Durable when
    /// it returns.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn update_status(&self, id: &TrackedId, status: &str, current_task: Option<&str>) -> Result<bool> {
        self.update_numbered_status(id, status, current_task, None)
    }

    /// [`update_status`](SessionStore::update_status), ignored if a status with a higher number has
    /// come before.
    pub(super) fn update_numbered_status(
        &self,
        id: &TrackedId,
        status: &str,
        current_task: Option<&str>,
        number: Option<u64>,
    ) -> Result<bool> {
        let write = Write::Status {
            id: id.clone(),
            status: status.to_owned(),
            current_task: current_task.map(str::to_owned),
            number: number.map(|number| i64::try_from(number).unwrap_or(i64::MAX)),
        };
        let known = self.changed("setting a status", write)?;
        if known && self.memory.lock().touch(id, self.clock.now()) {
            self.writer.send(Command::BeatsCame);
        }
        Ok(known)
    }

    /// Asks a tracked session to stop, even if it is protected. False if there is no such session.
    /// Durable when it returns.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn request_kill(&self, id: &TrackedId) -> Result<bool> {
        let order = KillOrder { force: true, ..KillOrder::default() };
        Ok(self.kill(Whom::Session(id.clone()), order)?.is_ok())
    }

    /// Asks all tracked sessions of an app to stop, except those that are protected, and returns how
    /// many there are. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn request_kill_by_app(&self, app_name: &str) -> Result<usize> {
        let killed = self.kill(Whom::App(app_name.to_owned()), KillOrder::default())?;
        Ok(killed.map_or(0, |killed| killed.receipts.len()))
    }

    /// All tracked sessions, newest first.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn get_all_sessions(&self) -> Result<Vec<TrackedSession>> {
        let rows = self.read("listing the sessions", rows::list)?;
        let now = self.now();
        let memory = self.memory.lock();
        Ok(rows.into_iter().filter_map(|row| rows::complete(row, &memory, self.thresholds, now)).collect())
    }

    /// Moves the sessions that have been silent for `older_than` to the history and returns how
    /// many there were. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn cleanup_stale_sessions(&self, older_than: Duration) -> Result<usize> {
        Ok(self.remove_silent(older_than, EndReason::CleanedUp, None)?.len())
    }

    /// Whether the database takes changes, as far as is known: an error from the first write that fails
    /// because of the file or its disk until one succeeds, which is tried all the time; and when the
    /// file was removed. This is what `GET /readyz` answers. Does not wait for the disk.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn check(&self) -> Result<()> {
        self.writer.trouble().check()
    }

    fn now(&self) -> Now {
        Now { moment: self.clock.now(), millis: civil::millis(wall()) }
    }

    fn changed(&self, doing: &'static str, write: Write) -> Result<bool> {
        Ok(matches!(self.write(doing, write)?, Outcome::Changed(true)))
    }

    fn moved(&self, doing: &'static str, write: Write) -> Result<Vec<TrackedId>> {
        match self.write(doing, write)? {
            Outcome::Ids(ids) => Ok(ids),
            Outcome::Changed(_) | Outcome::Kills(_) => Ok(Vec::new()),
        }
    }

    fn write(&self, doing: &'static str, write: Write) -> Result<Outcome> {
        self.writer.write(write).map_err(|error| Error::store(doing, error))
    }

    fn read<T: Send + 'static>(
        &self,
        doing: &'static str,
        body: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let failed = |error| Error::store(doing, error);
        let Readers::Own { path, idle } = &self.readers else {
            return self.writer.read(body).map_err(failed);
        };
        let idle_one = idle.lock().pop();
        let connection = match idle_one {
            Some(connection) => connection,
            None => schema::open_reader(path).map_err(|error| failed(error.into()))?,
        };
        let value = body(&connection).map_err(|error| {
            if StoreFault::of(&error) == StoreFault::Damaged {
                self.writer.trouble().note(StoreFault::Damaged, error.to_string());
            }
            failed(error.into())
        })?;
        let mut idle = idle.lock();
        if idle.len() < READERS {
            idle.push(connection);
        }
        Ok(value)
    }
}

impl fmt::Debug for SessionStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionStore").finish_non_exhaustive()
    }
}

/// Creates the database's file for its owner alone, unless it is there. What keeps it from that keeps SQLite
/// from it as well, which tells.
fn create(path: &Path) {
    let _ = File::options().write(true).create_new(true).mode(0o600).open(path);
}

/// Two stores on one file would each keep beats and kills that the other does not see. The lock
/// ends with the process, however it ends. It lies in a file beside the database, because closing
/// a second descriptor of the database itself would give up SQLite's own locks.
struct Lock {
    file: File,
    path: PathBuf,
    /// There was none before.
    is_new: bool,
}

impl Lock {
    fn take(database: &Path) -> Result<Lock> {
        let mut path = database.as_os_str().to_owned();
        path.push("-lock");
        let path = PathBuf::from(path);
        let is_new = !path.exists();
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Error::store("opening its lock file", error))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { file, path, is_new }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let reason = "another tracker uses it; name another file";
                Err(Error::store_fault(StoreFault::InUse, "opening it", reason))
            }
            Err(error) => Err(Error::store("locking it", std::io::Error::from(error))),
        }
    }

    /// Leaves no file beside what is no tracker's database: nobody will hold it.
    fn undo(self) {
        if self.is_new {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod tests;
