//! Who asks for a session, and who has one.

use std::panic::Location;
use std::sync::Arc;

use super::{Place, Refusal, Resource, State};

/// Who asks for a session: it goes from the caller to the queue and from there to the slot, or to
/// the slot at once. Small, because every lease carries one.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// Where in the program.
    pub(crate) place: &'static Location<'static>,
    /// The number of the thread that asks; 0 for a job, which no thread waits for.
    pub(crate) thread: u64,
    /// What most callers do not say.
    pub(crate) who: Option<Box<Who>>,
}

/// What a caller says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Who {
    pub(crate) tenant: Option<Arc<str>>,
    pub(crate) label: Option<Arc<str>>,
    /// Higher is served first, within a tenant.
    pub(crate) priority: i32,
}

impl Claim {
    /// A claim of whoever calls this.
    #[inline]
    #[track_caller]
    pub(crate) fn new(thread: u64, who: Option<Box<Who>>) -> Claim {
        Claim { place: Location::caller(), thread, who }
    }

    /// A claim of a job that is submitted here.
    #[track_caller]
    pub(crate) fn of_job(who: Option<Box<Who>>) -> Claim {
        Claim::new(0, who)
    }

    pub(crate) fn is_job(&self) -> bool {
        self.thread == 0
    }

    pub(crate) fn tenant(&self) -> Option<&Arc<str>> {
        self.who.as_ref()?.tenant.as_ref()
    }

    pub(crate) fn label(&self) -> Option<&Arc<str>> {
        self.who.as_ref()?.label.as_ref()
    }

    pub(crate) fn priority(&self) -> i32 {
        self.who.as_ref().map_or(0, |who| who.priority)
    }
}

/// A thread that holds a session of the pool asks for another one.
#[derive(Debug)]
pub(crate) struct Nested {
    /// Where it acquired the one that it holds.
    pub(crate) held_at: &'static Location<'static>,
    /// Whether nobody did so before in this pool.
    pub(crate) first: bool,
}

#[allow(clippy::inline_always, reason = "measured: see acquire and release")]
impl<S: Resource, W> State<S, W> {
    /// A busy slot belongs to whoever claimed it.
    #[inline(always)]
    pub(super) fn lend(&mut self, index: u32, claim: &mut Claim) {
        let who = claim.who.take();
        let claim = Claim { place: claim.place, thread: claim.thread, who };
        self.count_lease(&claim);
        self.hold(index, claim);
    }

    #[inline]
    pub(super) fn count_lease(&mut self, claim: &Claim) {
        if let Some(name) = claim.tenant() {
            self.tenants.lent(name);
        } else if claim.is_job() {
            self.tenants.lent_to_job();
        }
    }

    #[inline(always)]
    pub(super) fn hold(&mut self, index: u32, claim: Claim) {
        let slot = &mut self.slots[index as usize];
        debug_assert!(matches!(slot.place, Place::Busy), "it is lent once");
        slot.holder = Some(claim);
    }

    /// The lease of a slot is over, if somebody had it.
    #[inline(always)]
    pub(super) fn end_lease(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.reported = false;
        let Some(claim) = slot.holder.take() else { return };
        if let Some(name) = claim.tenant() {
            self.tenants.returned(name);
        } else if claim.is_job() {
            self.tenants.returned_by_job();
        }
    }

    /// Looks whether the thread that is about to wait holds a session already; counts if so.
    pub(crate) fn nested(&mut self, claim: &Claim) -> Option<Nested> {
        if claim.is_job() {
            return None;
        }
        let mut holders = self.slots.iter().filter_map(|slot| slot.holder.as_ref());
        let held_at = holders.find(|holder| holder.thread == claim.thread)?.place;
        self.counters.nested_acquires += 1;
        Some(Nested { held_at, first: self.counters.nested_acquires == 1 })
    }

    /// Refuses a thread that holds a session already.
    pub(crate) fn refuse_nested(&mut self, claim: &Claim) -> Result<(), Refusal> {
        let Some(Nested { held_at, .. }) = self.nested(claim) else { return Ok(()) };
        let refusal = Refusal::Nested { held_at };
        self.counters.refused(&refusal);
        self.tenants.turned_away(claim.tenant());
        Err(refusal)
    }
}
