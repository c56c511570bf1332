//! Who shares the pool: tenants, what they may have, and whose turn it is.
//!
//! Each tenant has a line of waiters: higher priority first, then first come, first served. Of the
//! tenants whose line is not empty and who may have one lease more, the one with the smallest
//! `leases / weight` is next; of equals, the one that was served longest ago. A tenant that is new
//! counts as served when it came, so that ever new names cannot keep an old one waiting: a tenant
//! without leases is served after at most as many grants as tenants stood before it.
//!
//! Callers without a name are one tenant without a quota, and so are jobs without a name: a batch of
//! jobs is not in the way of callers. They have no entry, and what such callers hold is not counted
//! here (it is what the others do not hold), so that taking and giving back without a name costs
//! nothing.
//!
//! Names come from users: an entry without leases, waiters and a quota of its own is removed.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::holder::Claim;
use super::queue::Ticket;
use crate::pool::quota::Quota;

/// The waiters of one tenant, the next one first.
pub(super) type Line = BTreeSet<(Reverse<i32>, Ticket)>;

/// The places of a line, one after the other.
type Places<'a> = std::collections::btree_set::Iter<'a, (Reverse<i32>, Ticket)>;

/// Sessions in use for a weight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    leases: usize,
    weight: u32,
}

/// The order of service; the second number is the turn, which no two tenants share.
type Key = (Share, u64);

#[derive(Debug)]
pub(super) struct Tenant {
    quota: Quota,
    /// Configured by name: it stays.
    stays: bool,
    leases: usize,
    line: Line,
    /// When it was served last, in grants.
    turn: u64,
    /// Its key among the eligible, if it stands there.
    listed: Option<Key>,
    served: u64,
    refused: u64,
    timed_out: u64,
}

/// One row for `info()`.
#[derive(Clone, Debug)]
pub(crate) struct TenantRow {
    pub(crate) name: Arc<str>,
    pub(crate) quota: Quota,
    pub(crate) leases: usize,
    pub(crate) queued: usize,
    pub(crate) served: u64,
    pub(crate) refused: u64,
    pub(crate) timed_out: u64,
}

/// All tenants of a pool.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    default: Quota,
    named: BTreeMap<Arc<str>, Tenant>,
    /// Those who wait and may have one lease more, in the order of service.
    eligible: BTreeMap<Key, Arc<str>>,
    /// Leases of all named tenants.
    leases: usize,
    /// Waiters of the named tenants that their quotas would let have a session now.
    servable: usize,
    /// Those without a name: callers, and jobs.
    callers: Unnamed,
    jobs: Unnamed,
    /// Leases of jobs without a name.
    job_leases: usize,
    turns: u64,
}

/// Waiters without a name, and when one of them was served last.
#[derive(Debug, Default)]
struct Unnamed {
    line: Line,
    turn: u64,
}

impl Tenant {
    fn new(quota: Quota, stays: bool, turn: u64) -> Tenant {
        Tenant {
            quota,
            stays,
            leases: 0,
            line: Line::new(),
            turn,
            listed: None,
            served: 0,
            refused: 0,
            timed_out: 0,
        }
    }

    /// Leases that it may have beyond those it has.
    fn room(&self) -> usize {
        self.quota.max_leases.map_or(usize::MAX, |most| most.saturating_sub(self.leases))
    }

    fn servable(&self) -> usize {
        self.line.len().min(self.room())
    }

    fn key(&self) -> Option<Key> {
        let share = Share { leases: self.leases, weight: self.quota.weight };
        (self.servable() > 0).then_some((share, self.turn))
    }

    fn is_unused(&self) -> bool {
        !self.stays && self.leases == 0 && self.line.is_empty()
    }
}

impl Tenants {
    pub(super) fn new(default: Quota, of: impl IntoIterator<Item = (Arc<str>, Quota)>) -> Tenants {
        let mut tenants = Tenants { default, ..Tenants::default() };
        // No two have the same turn.
        tenants.jobs.turn = tenants.next_turn();
        for (name, quota) in of {
            let turn = tenants.next_turn();
            tenants.named.insert(name, Tenant::new(quota, true, turn));
        }
        tenants
    }

    fn next_turn(&mut self) -> u64 {
        self.turns += 1;
        self.turns
    }

    /// One change of a tenant: keeps its place among the eligible and the sums, and lets go of it
    /// when nothing is left to know.
    fn change<R>(&mut self, name: &Arc<str>, change: impl FnOnce(&mut Tenant) -> R) -> R {
        if !self.named.contains_key(name) {
            let turn = self.next_turn();
            self.named.insert(Arc::clone(name), Tenant::new(self.default, false, turn));
        }
        let Some(tenant) = self.named.get_mut(name) else { unreachable!("just made") };
        let (leases, servable) = (tenant.leases, tenant.servable());
        let result = change(tenant);
        self.leases = self.leases + tenant.leases - leases;
        self.servable = self.servable + tenant.servable() - servable;
        let key = tenant.key();
        if key != tenant.listed {
            if let Some(old) = tenant.listed {
                self.eligible.remove(&old);
            }
            if let Some(new) = key {
                self.eligible.insert(new, Arc::clone(name));
            }
            tenant.listed = key;
        }
        if tenant.is_unused() {
            self.named.remove(name);
        }
        result
    }

    /// A lease of a job without a name begins.
    pub(super) fn lent_to_job(&mut self) {
        self.job_leases += 1;
    }

    /// A lease of a job without a name ends.
    pub(super) fn returned_by_job(&mut self) {
        self.job_leases -= 1;
    }

    /// A lease begins.
    pub(super) fn lent(&mut self, name: &Arc<str>) {
        let turn = self.next_turn();
        self.change(name, |tenant| {
            tenant.leases += 1;
            tenant.served += 1;
            tenant.turn = turn;
        });
    }

    /// A lease ends.
    pub(super) fn returned(&mut self, name: &Arc<str>) {
        self.change(name, |tenant| tenant.leases -= 1);
    }

    fn unnamed(&mut self, claim: &Claim) -> &mut Unnamed {
        if claim.is_job() { &mut self.jobs } else { &mut self.callers }
    }

    /// Joins the line of its tenant.
    pub(super) fn join(&mut self, claim: &Claim, ticket: Ticket) {
        let place = (Reverse(claim.priority()), ticket);
        match claim.tenant() {
            Some(name) => self.change(name, |tenant| tenant.line.insert(place)),
            None => self.unnamed(claim).line.insert(place),
        };
    }

    /// Leaves the line because it was served.
    pub(super) fn called(&mut self, claim: &Claim, ticket: Ticket) {
        if claim.tenant().is_none() {
            self.unnamed(claim).turn = self.next_turn();
        }
        self.leave(claim, ticket, |_| {});
    }

    /// Leaves the line unserved.
    pub(super) fn refused(&mut self, claim: &Claim, ticket: Ticket) {
        self.leave(claim, ticket, |tenant| tenant.refused += 1);
    }

    /// Leaves the line because its time is over; says how many stood before it, as far as `most`.
    pub(super) fn timed_out(&mut self, claim: &Claim, ticket: Ticket, most: usize) -> usize {
        let before = ..(Reverse(claim.priority()), ticket);
        let ahead = self.line(claim).map_or(0, |line| line.range(before).take(most).count());
        self.leave(claim, ticket, |tenant| tenant.timed_out += 1);
        ahead
    }

    fn leave(&mut self, claim: &Claim, ticket: Ticket, note: impl FnOnce(&mut Tenant)) {
        let place = (Reverse(claim.priority()), ticket);
        let stood = match claim.tenant() {
            Some(name) => self.change(name, |tenant| {
                note(tenant);
                tenant.line.remove(&place)
            }),
            None => self.unnamed(claim).line.remove(&place),
        };
        debug_assert!(stood, "who leaves a line stood in it");
    }

    /// The line of a claim's tenant, if it has one.
    fn line(&self, claim: &Claim) -> Option<&Line> {
        match claim.tenant() {
            Some(name) => self.named.get(name).map(|tenant| &tenant.line),
            None if claim.is_job() => Some(&self.jobs.line),
            None => Some(&self.callers.line),
        }
    }

    /// Somebody was not let into the line.
    pub(super) fn turned_away(&mut self, name: Option<&Arc<str>>) {
        if let Some(tenant) = name.and_then(|name| self.named.get_mut(name)) {
            tenant.refused += 1;
        }
    }

    /// Somebody who tries once found nothing.
    pub(super) fn gave_up(&mut self, name: Option<&Arc<str>>) {
        if let Some(tenant) = name.and_then(|name| self.named.get_mut(name)) {
            tenant.timed_out += 1;
        }
    }

    /// Those without a name who wait, with their keys. `busy`: all leases.
    fn unnamed_lines(&self, busy: usize) -> impl Iterator<Item = (Key, &Line)> {
        let callers = (busy - self.leases - self.job_leases, &self.callers);
        let both = [callers, (self.job_leases, &self.jobs)].into_iter();
        both.filter(|(_, unnamed)| !unnamed.line.is_empty())
            .map(|(leases, unnamed)| ((Share { leases, weight: 1 }, unnamed.turn), &unnamed.line))
    }

    /// The ticket whose turn it is. `busy`: all leases.
    pub(super) fn next(&self, busy: usize) -> Option<Ticket> {
        let named = self.eligible.first_key_value();
        let named = named.and_then(|(key, name)| Some((*key, &self.named.get(name)?.line)));
        let (_, line) = self.unnamed_lines(busy).chain(named).min_by_key(|(key, _)| *key)?;
        line.first().map(|(_, ticket)| *ticket)
    }

    /// The order in which waiters are served if leases begin and none ends, as far as `most`: those who
    /// may be served first, then those whose tenants would have as much as they may by then.
    pub(super) fn order(&self, busy: usize, most: usize) -> Vec<(Ticket, bool)> {
        let mut heads: BTreeMap<Key, (usize, Places<'_>)> = BTreeMap::new();
        for tenant in self.named.values() {
            if let Some(key) = tenant.listed {
                heads.insert(key, (tenant.servable(), tenant.line.iter()));
            }
        }
        heads.extend(self.unnamed_lines(busy).map(|(key, line)| (key, (usize::MAX, line.iter()))));
        let (mut order, mut turn) = (Vec::new(), self.turns);
        while order.len() < most
            && let Some(((share, _), (left, mut line))) = heads.pop_first()
        {
            let Some((_, ticket)) = line.next().filter(|_| left > 0) else { continue };
            order.push((*ticket, true));
            turn += 1;
            let share = Share { leases: share.leases + 1, ..share };
            heads.insert((share, turn), (left - 1, line));
        }
        let rest = self.named.values().flat_map(|tenant| tenant.line.iter().skip(tenant.servable()));
        order.extend(rest.map(|(_, ticket)| (*ticket, false)).take(most - order.len()));
        order
    }

    /// How many waiters could be served if sessions were there.
    pub(super) fn servable(&self) -> usize {
        self.callers.line.len() + self.jobs.line.len() + self.servable
    }

    /// The limit that a tenant has reached, if it has as many leases as it may.
    pub(super) fn lease_limit(&self, name: Option<&Arc<str>>) -> Option<usize> {
        let tenant = self.named.get(name?)?;
        tenant.quota.max_leases.filter(|_| tenant.room() == 0)
    }

    /// The limit that a tenant has reached, if as many wait as may.
    pub(super) fn queue_limit(&self, name: Option<&Arc<str>>) -> Option<usize> {
        let name = name?;
        let tenant = self.named.get(name);
        let quota = tenant.map_or(&self.default, |tenant| &tenant.quota);
        let queued = tenant.map_or(0, |tenant| tenant.line.len());
        quota.max_queued.filter(|most| queued >= *most)
    }

    /// How many stand in the line of a claim's tenant, as far as `most`.
    pub(super) fn queued(&self, claim: &Claim, most: usize) -> usize {
        self.line(claim).map_or(0, Line::len).min(most)
    }

    /// How many wait, in all lines.
    pub(super) fn standing(&self) -> usize {
        let named = self.named.values().map(|tenant| tenant.line.len()).sum::<usize>();
        self.callers.line.len() + self.jobs.line.len() + named
    }

    /// Named ones that are remembered.
    pub(super) fn count(&self) -> usize {
        self.named.len()
    }

    pub(super) fn rows(&self) -> Vec<TenantRow> {
        let row = |(name, tenant): (&Arc<str>, &Tenant)| TenantRow {
            name: Arc::clone(name),
            quota: tenant.quota,
            leases: tenant.leases,
            queued: tenant.line.len(),
            served: tenant.served,
            refused: tenant.refused,
            timed_out: tenant.timed_out,
        };
        self.named.iter().map(row).collect()
    }

    /// Panics if the sums, the lines or the eligible are not what the entries, those who wait and
    /// those who hold say.
    pub(super) fn check<'a>(
        &self,
        waiting: impl Fn(&Ticket) -> bool,
        holders: impl Iterator<Item = &'a Claim>,
    ) {
        let lines = [&self.callers.line, &self.jobs.line];
        let mut standing = lines.into_iter().chain(self.named.values().map(|tenant| &tenant.line)).flatten();
        assert!(standing.all(|(_, ticket)| waiting(ticket)), "9: a line");
        let (named, unnamed): (Vec<_>, Vec<_>) = holders.partition(|claim| claim.tenant().is_some());
        assert_eq!(self.leases, named.len(), "9: leases");
        assert_eq!(self.job_leases, unnamed.iter().filter(|claim| claim.is_job()).count(), "9: jobs");
        let tenants = || self.named.values();
        assert_eq!(self.leases, tenants().map(|tenant| tenant.leases).sum::<usize>(), "tenants: leases");
        assert_eq!(self.servable, tenants().map(Tenant::servable).sum::<usize>(), "tenants: servable");
        assert_eq!(self.eligible.len(), tenants().filter(|tenant| tenant.servable() > 0).count());
        for (name, tenant) in &self.named {
            assert!(!tenant.is_unused(), "an entry that says nothing was kept");
            assert!(tenant.quota.max_leases.is_none_or(|most| tenant.leases <= most), "too many leases");
            assert_eq!(tenant.key(), tenant.listed, "tenants: stale key");
            assert!(tenant.listed.is_none_or(|key| self.eligible.get(&key) == Some(name)), "tenants: listed");
        }
    }
}

impl Ord for Share {
    fn cmp(&self, other: &Share) -> Ordering {
        let cross = |one: Share, two: Share| one.leases as u128 * u128::from(two.weight);
        cross(*self, *other).cmp(&cross(*other, *self))
    }
}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Share) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Share {
    fn eq(&self, other: &Share) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Share {}
