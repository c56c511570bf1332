//! The last events as threads share them: who records, who follows.
//!
//! Whoever records does so after its commit. Followers are not called: a bell is rung, if anybody
//! listens, and then they look for themselves.

use std::sync::{Arc, OnceLock};

use super::TrackedId;
use super::events::{Begin, Behind, Cursor, Filter, Kept, Ring, Told};
use crate::sync::Mutex;

type Bell = Box<dyn Fn() + Send + Sync>;

/// The events of this process.
pub(super) struct Feed {
    ring: Mutex<Ring>,
    /// Each follower has a clone. Whoever becomes one looks at the ring after that, and whoever
    /// records counts them after it has changed the ring: one of the two sees the other.
    followers: Arc<()>,
    bell: OnceLock<Bell>,
}

/// That somebody follows.
pub(super) struct Following {
    _count: Arc<()>,
}

impl Feed {
    pub(super) fn new() -> Feed {
        // Another one than that of any other process; ids are a hyphen longer.
        let mut boot = TrackedId::random().as_str().to_owned();
        boot.truncate(8);
        Feed { ring: Mutex::new(Ring::new(boot)), followers: Arc::default(), bell: OnceLock::new() }
    }

    /// Adds events, in this order.
    pub(super) fn record(&self, told: Told) {
        if told.is_empty() {
            return;
        }
        let (skipped, kept) = told.kept();
        {
            let mut ring = self.ring.lock();
            ring.skip(skipped);
            for event in kept {
                ring.push(event);
            }
        }
        if Arc::strong_count(&self.followers) > 1
            && let Some(bell) = self.bell.get()
        {
            bell();
        }
    }

    /// Has `bell` rung from now on when there is something new; the first one counts.
    pub(super) fn follow(&self, bell: impl FnOnce() -> Bell) -> Following {
        self.bell.get_or_init(bell);
        Following { _count: Arc::clone(&self.followers) }
    }

    /// See [`Ring::begin`].
    pub(super) fn begin(&self, after: Option<&str>) -> Begin {
        self.ring.lock().begin(after)
    }

    /// See [`Ring::read`].
    pub(super) fn read(
        &self,
        cursor: Cursor,
        filter: &Filter,
        take: impl FnMut(&str, &Kept) -> bool,
    ) -> Result<Cursor, Behind> {
        self.ring.lock().read(cursor, filter, take)
    }

    /// How many events there have been.
    pub(super) fn recorded(&self) -> u64 {
        self.ring.lock().end() - 1
    }

    /// See [`Ring::id_before`].
    pub(super) fn id_before(&self, cursor: Cursor) -> String {
        self.ring.lock().id_before(cursor)
    }
}
