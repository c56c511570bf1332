//! Who shares the pool: tenants, what they may have, and whose turn it is.
//!
//! Each tenant has a line of waiters: higher priority first, then first come, first served. Of the
//! tenants whose line is not empty and who may have one lease more, the one with the smallest
//! `leases / weight` is next; of equals, the one that was served longest ago. A tenant that is new
//! counts as served when it came, so that ever new names cannot keep an old one waiting: a tenant
//! without leases is served after at most as many grants as tenants stood before it.
//!
//! Callers without a name are one tenant without a quota. It has no entry, and what it holds is not
//! counted here (it is what the named ones do not hold), so that taking and giving back without a
//! name costs nothing.
//!
//! Names come from users: an entry without leases, waiters and a quota of its own is removed.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
    /// The line of those without a name, and when they were served last.
    anonymous: Line,
    anonymous_turn: u64,
    turns: u64,
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

    /// Joins the line of its tenant.
    pub(super) fn join(&mut self, name: Option<&Arc<str>>, priority: i32, ticket: Ticket) {
        let place = (Reverse(priority), ticket);
        match name {
            Some(name) => self.change(name, |tenant| tenant.line.insert(place)),
            None => self.anonymous.insert(place),
        };
    }

    /// Leaves the line to be served.
    pub(super) fn called(&mut self, name: Option<&Arc<str>>, priority: i32, ticket: Ticket) {
        if name.is_none() {
            self.anonymous_turn = self.next_turn();
        }
        self.leave(name, priority, ticket, |_| {});
    }

    /// Leaves the line unserved.
    pub(super) fn refused(&mut self, name: Option<&Arc<str>>, priority: i32, ticket: Ticket) {
        self.leave(name, priority, ticket, |tenant| tenant.refused += 1);
    }

    /// Leaves the line because its time is over; says how many stood before it, as far as `most`.
    pub(super) fn timed_out(
        &mut self,
        name: Option<&Arc<str>>,
        priority: i32,
        ticket: Ticket,
        most: usize,
    ) -> usize {
        let line = name.and_then(|name| self.named.get(name)).map_or(&self.anonymous, |tenant| &tenant.line);
        let ahead = line.range(..(Reverse(priority), ticket)).take(most).count();
        self.leave(name, priority, ticket, |tenant| tenant.timed_out += 1);
        ahead
    }

    fn leave(
        &mut self,
        name: Option<&Arc<str>>,
        priority: i32,
        ticket: Ticket,
        note: impl FnOnce(&mut Tenant),
    ) {
        let place = (Reverse(priority), ticket);
        let stood = match name {
            Some(name) => self.change(name, |tenant| {
                note(tenant);
                tenant.line.remove(&place)
            }),
            None => self.anonymous.remove(&place),
        };
        debug_assert!(stood, "who leaves a line stood in it");
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

    /// The ticket whose turn it is. `unnamed`: leases of those without a name.
    pub(super) fn next(&self, unnamed: usize) -> Option<Ticket> {
        let named = self.eligible.first_key_value();
        let anonymous = self.anonymous.first().map(|(_, ticket)| *ticket);
        let Some((key, name)) = named else { return anonymous };
        let unnamed = (Share { leases: unnamed, weight: 1 }, self.anonymous_turn);
        if anonymous.is_some() && unnamed < *key {
            return anonymous;
        }
        self.named.get(name)?.line.first().map(|(_, ticket)| *ticket)
    }

    /// The order in which waiters are served if leases begin and none ends, as far as `most`: those who
    /// may be served first, then those whose tenants would have as much as they may by then.
    pub(super) fn order(&self, unnamed: usize, most: usize) -> Vec<(Ticket, bool)> {
        let mut heads: BTreeMap<Key, (usize, Places<'_>)> = BTreeMap::new();
        for tenant in self.named.values() {
            if let Some(key) = tenant.listed {
                heads.insert(key, (tenant.servable(), tenant.line.iter()));
            }
        }
        let key = (Share { leases: unnamed, weight: 1 }, self.anonymous_turn);
        heads.insert(key, (usize::MAX, self.anonymous.iter()));
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
        self.anonymous.len() + self.servable
    }

    /// Leases of all named tenants.
    pub(super) fn leases(&self) -> usize {
        self.leases
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

    /// How many stand in the line of a tenant, as far as `most`.
    pub(super) fn queued(&self, name: Option<&Arc<str>>, most: usize) -> usize {
        match name {
            Some(name) => self.named.get(name).map_or(0, |tenant| tenant.line.len()).min(most),
            None => self.anonymous.len().min(most),
        }
    }

    /// The line of each tenant, those without a name first.
    pub(super) fn lines(&self) -> impl Iterator<Item = &Line> {
        std::iter::once(&self.anonymous).chain(self.named.values().map(|tenant| &tenant.line))
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

    /// Panics if the sums or the eligible are not what the entries say.
    pub(super) fn check(&self) {
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
