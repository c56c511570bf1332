//! One place for a session, and what the pool knows of the session in it.

use super::{Claim, Removal, Resource};
use crate::clock::Moment;

/// One tenancy of a slot; a stale id fits nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SlotId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts, set and cleared one by one")]
pub(super) struct Slot<S: Resource> {
    /// Whole, so that it is read at once.
    pub(super) id: SlotId,
    pub(super) place: Place<S>,
    pub(super) handle: Option<S::Handle>,
    /// Who has it: while it is busy, unless it is about to leave.
    pub(super) holder: Option<Claim>,
    /// When it came to its place; unknown while the monitor has it in hand.
    pub(super) since: Option<Moment>,
    /// Since when it was idle when it was taken in hand to be looked at: that is no use.
    pub(super) rested: Option<Moment>,
    pub(super) ready_at: Moment,
    /// How many sessions had become ready by then.
    pub(super) born: u64,
    pub(super) leases: u64,
    pub(super) executions: u64,
    /// Executions after which it is recycled, and the moment.
    pub(super) budget: u64,
    pub(super) expires: Moment,
    /// The monitor saw an event while the slot was busy or starting, so nothing is armed any more.
    pub(super) signalled: bool,
    /// The monitor saw the process end while the slot was starting.
    pub(super) died: bool,
    /// The monitor listens to this idle session.
    pub(super) armed: bool,
    /// Why it should leave when its turn comes, apart from its budget and its age.
    pub(super) due: Option<Removal>,
    /// Why it leaves once its replacement is there.
    pub(super) aging: Option<Removal>,
    /// When it last gave a sign of life, as far as a reset, a release or a ping shows.
    pub(super) heard: Moment,
    /// What it held when it was last weighed, and how many leases it had served by then.
    pub(super) memory: Option<Weight>,
    /// Its lease was reported as a leak.
    pub(super) reported: bool,
}

/// A session's memory at some moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weight {
    pub(super) bytes: u64,
    pub(super) at: Moment,
    pub(super) leases: u64,
}

#[derive(Debug)]
pub(super) enum Place<S> {
    Free,
    Starting,
    Idle(S),
    Busy,
    /// `None` while the monitor has it in hand.
    Resetting(Option<S>),
    Retiring,
}

/// Generations have 31 bits, so that a slot id and one more bit fit an epoll token.
pub(super) const GENERATIONS: u32 = u32::MAX >> 1;
