//! The closed list of reasons why a session leaves.

use serde::Serialize;

use crate::named::show_by_name;

/// Why a session leaves the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Removal {
    /// Its process ended.
    Dead,
    /// Its last lease left it in a state that only a new process gets rid of.
    Tainted,
    /// The worker could not go back to its warm state, or not in time.
    ResetFailed,
    /// It sent bytes that nobody asked for.
    Misbehaved,
    /// It did not answer a ping.
    Hung,
    /// The check before use refused it.
    Unfit,
    /// Its execution budget is spent.
    Recycled,
    /// Its lifetime is over.
    MaxAge,
    /// It, or all idle sessions together, took more memory than allowed.
    Memory,
    /// All sessions are replaced, as [`recycle_all`](crate::SessionPool::recycle_all) asked for.
    Outdated,
    /// It was idle too long.
    Idle,
    /// Its user asked for it.
    Discarded,
    /// The pool gives each user a new process.
    Fresh,
    /// The pool was made smaller.
    Resized,
    /// Its user held it for too long, and the pool took it back.
    Reclaimed,
    /// The pool is closed.
    Shutdown,
}

impl Removal {
    /// Each reason, at the place of its number.
    pub(crate) const ALL: [Removal; 16] = [
        Removal::Dead,
        Removal::Tainted,
        Removal::ResetFailed,
        Removal::Misbehaved,
        Removal::Hung,
        Removal::Unfit,
        Removal::Recycled,
        Removal::MaxAge,
        Removal::Memory,
        Removal::Outdated,
        Removal::Idle,
        Removal::Discarded,
        Removal::Fresh,
        Removal::Resized,
        Removal::Reclaimed,
        Removal::Shutdown,
    ];

    /// Its name in metrics and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Removal::Dead => "dead",
            Removal::Tainted => "tainted",
            Removal::ResetFailed => "reset_failed",
            Removal::Misbehaved => "misbehaved",
            Removal::Hung => "hung",
            Removal::Unfit => "unfit",
            Removal::Recycled => "recycled",
            Removal::MaxAge => "max_age",
            Removal::Memory => "memory",
            Removal::Outdated => "outdated",
            Removal::Idle => "idle",
            Removal::Discarded => "discarded",
            Removal::Fresh => "fresh",
            Removal::Resized => "resized",
            Removal::Reclaimed => "reclaimed",
            Removal::Shutdown => "shutdown",
        }
    }

    /// Whether a session that served well is replaced because of its age or size.
    pub(crate) fn is_recycling(self) -> bool {
        matches!(self, Removal::Recycled | Removal::MaxAge | Removal::Memory | Removal::Outdated)
    }

    /// Whether the session is dead or unusable, so that nothing is gained by a graceful end.
    pub(crate) fn is_defect(self) -> bool {
        matches!(
            self,
            Removal::Dead
                | Removal::Tainted
                | Removal::ResetFailed
                | Removal::Misbehaved
                | Removal::Hung
                | Removal::Unfit
                | Removal::Reclaimed
        )
    }
}

show_by_name!(Removal);
