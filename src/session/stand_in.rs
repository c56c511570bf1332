//! The hook of the test kit: something in this very process that plays the worker's part.
//!
//! The process that is started then only holds the worker's place: its number, its group, its pidfd,
//! its end. Everything else of a session is as always.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::SessionId;
use super::process::ChildEnds;

/// Plays workers.
pub(crate) trait StandIn: Send + Sync {
    /// Takes a worker's ends of fds 0, 1 and 2. Returns what the process gets in their place, and
    /// what is called once that process runs.
    fn take(&self, session: SessionId, ends: ChildEnds) -> io::Result<(ChildEnds, Entrance)>;
}

/// Begins a part that was taken.
pub(crate) type Entrance = Box<dyn FnOnce(Body) -> io::Result<()>>;

/// The process that holds the place of a played worker.
pub(crate) struct Body {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

/// Who plays the workers of a runtime. Two runtimes are equal if the same one does.
#[derive(Clone)]
pub(crate) struct Player(pub(crate) Arc<dyn StandIn>);

impl PartialEq for Player {
    fn eq(&self, other: &Player) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Player {}

impl fmt::Debug for Player {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Player")
    }
}
