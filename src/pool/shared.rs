//! A pool that many parts of a program share by counting: the third strategy of
//! `docs/guide/shared-pools.md`.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::job::{self, Job};
use super::{Acquire, PoolConfig, PoolInfo, PoolMetrics, PooledSession, Scope, SessionPool};
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::session::Request;
use crate::sync::{Condvar, Mutex};

/// A pool that is started by its first user and terminated by its last.
///
/// ```no_run
/// use remuda::{Runtime, SessionPool, SharedPool};
///
/// static POOL: SharedPool = SharedPool::new(|| SessionPool::builder(Runtime::python("python3")));
///
/// let handle = POOL.handle()?;
/// let run = handle.acquire()?.execute("6 * 7")?;
/// handle.release(); // or drop it; fit for a kill callback
/// # Ok::<(), remuda::Error>(())
/// ```
///
/// Each [`handle`](SharedPool::handle) counts one up, each release or drop of a handle one down; at
/// zero the pool is terminated, and the next handle starts a new one. A handle cannot terminate the
/// pool by itself: the mistake of ending everybody's work does not compile.
#[derive(Debug)]
pub struct SharedPool {
    make: fn() -> PoolConfig,
    shared: OnceLock<Arc<Shared>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<Users>,
    started: Condvar,
}

/// The pool and its users, changed under one lock.
#[derive(Default)]
struct Users {
    pool: Option<SessionPool>,
    count: usize,
    starting: bool,
}

impl SharedPool {
    /// A pool that `make` configures when it is first needed. Can be the value of a `static`.
    pub const fn new(make: fn() -> PoolConfig) -> SharedPool {
        SharedPool { make, shared: OnceLock::new() }
    }

    /// Counts one user more; starts the pool if this is the first. Blocks while it starts, whoever
    /// starts it.
    ///
    /// # Errors
    /// As [`SessionPool::start`]; the next call tries again.
    pub fn handle(&self) -> Result<SharedHandle> {
        let shared = self.shared.get_or_init(Arc::default);
        let mut users = shared.state.lock();
        loop {
            if let Some(pool) = &users.pool {
                let pool = pool.clone();
                users.count += 1;
                return Ok(SharedHandle {
                    shared: Arc::clone(shared),
                    pool,
                    released: AtomicBool::new(false),
                });
            }
            if users.starting {
                shared.started.wait(&mut users);
                continue;
            }
            users.starting = true;
            drop(users);
            let starting = Starting(shared);
            let pool = (self.make)().start()?;
            users = shared.state.lock();
            users.pool = Some(pool);
            users.starting = false;
            std::mem::forget(starting);
            shared.started.notify_all();
        }
    }

    /// Users that hold an unreleased handle.
    pub fn users(&self) -> usize {
        self.shared.get().map_or(0, |shared| shared.state.lock().count)
    }
}

/// Takes back that somebody starts the pool when that failed or panicked.
struct Starting<'a>(&'a Shared);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().starting = false;
        self.0.started.notify_all();
    }
}

/// One user's handle of a [`SharedPool`]. Dropping it releases it.
pub struct SharedHandle {
    shared: Arc<Shared>,
    pool: SessionPool,
    released: AtomicBool,
}

impl SharedHandle {
    /// Counts this user off; the last one terminates the pool and waits for the end of its
    /// processes (milliseconds). Later calls do nothing, so that a kill callback and the end of the
    /// program may both release. From now on the acquires of this handle return [`Error::Closed`].
    pub fn release(&self) {
        if self.released.swap(true, Ordering::SeqCst) {
            return;
        }
        let last = {
            let mut users = self.shared.state.lock();
            users.count -= 1;
            if users.count == 0 { users.pool.take() } else { None }
        };
        if let Some(pool) = last {
            pool.terminate();
        }
    }

    /// As [`SessionPool::acquire`].
    ///
    /// # Errors
    /// As there; [`Error::Closed`] after [`release`](SharedHandle::release).
    #[track_caller]
    pub fn acquire(&self) -> Result<PooledSession> {
        self.pool()?.acquire()
    }

    /// As [`SessionPool::acquire_timeout`].
    ///
    /// # Errors
    /// As there; [`Error::Closed`] after [`release`](SharedHandle::release).
    #[track_caller]
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<PooledSession> {
        self.pool()?.acquire_timeout(timeout)
    }

    /// As [`SessionPool::try_acquire`].
    ///
    /// # Errors
    /// As there; [`Error::Closed`] after [`release`](SharedHandle::release).
    #[track_caller]
    pub fn try_acquire(&self) -> Result<PooledSession> {
        self.pool()?.try_acquire()
    }

    /// As [`SessionPool::acquire_as`].
    ///
    /// # Errors
    /// As there; [`Error::Closed`] after [`release`](SharedHandle::release).
    #[track_caller]
    pub fn acquire_as(&self, tenant: &str) -> Result<PooledSession> {
        self.pool()?.acquire_as(tenant)
    }

    /// As [`SessionPool::acquire_with`].
    ///
    /// # Errors
    /// As there; [`Error::Closed`] after [`release`](SharedHandle::release).
    #[track_caller]
    pub fn acquire_with(&self, ask: Acquire) -> Result<PooledSession> {
        self.pool()?.acquire_with(ask)
    }

    /// As [`SessionPool::scope`]. The scope does not count as a user; it works as long as the pool
    /// has one.
    pub fn scope(&self, token: &CancelToken) -> Scope {
        self.pool.scope(token)
    }

    /// As [`SessionPool::submit`]; the job is done with [`Error::Closed`] after
    /// [`release`](SharedHandle::release).
    #[track_caller]
    pub fn submit(&self, request: impl Into<Request<'static>>) -> Job {
        match self.pool() {
            Ok(pool) => pool.submit(request),
            Err(closed) => job::refused(request.into(), closed),
        }
    }

    /// As [`SessionPool::info`].
    pub fn info(&self) -> PoolInfo {
        self.pool.info()
    }

    /// As [`SessionPool::metrics`].
    pub fn metrics(&self) -> PoolMetrics {
        self.pool.metrics()
    }

    fn pool(&self) -> Result<&SessionPool> {
        if self.released.load(Ordering::SeqCst) { Err(Error::Closed) } else { Ok(&self.pool) }
    }
}

impl Drop for SharedHandle {
    fn drop(&mut self) {
        self.release();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("users", &self.state.lock().count).finish_non_exhaustive()
    }
}

impl fmt::Debug for SharedHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedHandle").field("released", &self.released).finish_non_exhaustive()
    }
}
