//! The thread of a group for what cannot wait for a parked beat.

use std::sync::{Arc, Weak};

use super::super::link::Trouble;
use super::super::pace::{Backoff, random};
use super::super::shared::{Shared, Standing};
use super::super::status::{self, Look};
use super::{Group, Member};
use crate::clock::Moment;
use crate::tracker::api::{HTTP_TIMEOUT, Heartbeat};

pub(super) fn run(group: &Group) {
    let mut side = Side { group, backoff: Backoff::default(), not_before: None, next: None, renew: false };
    while !group.is_over() {
        let pokes = group.state.lock().pokes;
        side.look();
        let reachable = group.state.lock().reachable == Some(true);
        if std::mem::take(&mut side.renew) && reachable {
            renew(group);
        }
        let mut state = group.state.lock();
        while !state.over && state.pokes == pokes && !group.wait(&mut state, side.next) {}
    }
}

struct Side<'a> {
    group: &'a Group,
    backoff: Backoff,
    /// Registrations fail: none is tried before this.
    not_before: Option<Moment>,
    /// When there is something to do, as far as that is known.
    next: Option<Moment>,
    renew: bool,
}

impl Side<'_> {
    fn look(&mut self) {
        self.next = None;
        for member in self.group.living() {
            if self.group.is_over() {
                return;
            }
            let Some(shared) = member.shared.upgrade() else { continue };
            if shared.standing() == Standing::Unknown {
                self.register(&member, &shared);
            }
            self.report(&shared);
            let said = member.track.lock().pulse.said();
            self.renew |= said.is_some_and(|said| shared.callbacks.stage() != said);
        }
    }

    fn later(&mut self, at: Moment) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    fn register(&mut self, member: &Member, shared: &Arc<Shared>) {
        let (now, of_member) = (Moment::now(), member.track.lock().not_before);
        if let Some(at) = self.not_before.max(of_member).filter(|at| *at > now) {
            // Whoever starts it need not wait for that.
            shared.give_up_waiting();
            return self.later(at);
        }
        let Some((body, number)) = shared.begin_registration() else { return };
        let result = self.group.side.register(&body, HTTP_TIMEOUT);
        shared.end_registration(&result, number);
        match result {
            Ok(created) => {
                self.group.reached();
                self.group.state.lock().longest_wait = created.max_wait_seconds.unwrap_or(0);
                member.track.lock().proven = false;
                self.backoff.reset();
                self.not_before = None;
                self.renew = true;
            }
            Err(trouble) => {
                self.group.troubled(&trouble);
                self.group.poke();
                let at = Moment::after(self.backoff.after(&trouble, random()));
                self.not_before = Some(at);
                self.later(at);
            }
        }
    }

    fn report(&mut self, shared: &Arc<Shared>) {
        let look = status::look(&shared.lock());
        match look {
            Look::Report { id, status, version } => {
                let result = self.group.side.status(&id, &status, HTTP_TIMEOUT);
                status::note(shared, version, &result);
                // Again later; or at once, if there is news meanwhile or the session must register.
                let again = status::look(&shared.lock());
                match again {
                    Look::At(at) => self.later(at),
                    Look::Report { .. } => self.group.poke(),
                    Look::Nothing => {}
                }
                if matches!(result, Err(Trouble::Unknown)) {
                    self.group.poke();
                }
            }
            Look::At(at) => self.later(at),
            Look::Nothing => {}
        }
    }
}

/// Has the beat thread begin anew, so that its next request says and waits for what is new.
fn renew(group: &Group) {
    let parked = {
        let mut state = group.state.lock();
        state.renew = true;
        state.parked.take()
    };
    group.changed.notify_all();
    let Some(shared) = parked.as_ref().and_then(Weak::upgrade) else { return };
    let Some(id) = shared.known_id() else { return };
    let (number, _) = shared.count_beat();
    let beat = Heartbeat { beat_number: Some(number), ..Heartbeat::default() };
    // Only a beat that waits takes the place of another; the next batch ends its wait.
    if let Err(trouble) = group.side.beat(&id, &beat, 1, HTTP_TIMEOUT) {
        log::debug!("a parked batch of heartbeats was not renewed: {trouble}");
    }
}
