//! What the server does about silence, and the routes about sessions that are gone and about the
//! tracker itself.

use std::time::Duration;

use super::access::Caller;
use super::audit::tell;
use super::input::limit;
use super::kills::before;
use super::replies::Refusal;
use super::tracker::Tracker;
use crate::Result as RemudaResult;
use crate::clock::Moment;
use crate::tracker::TrackedId;
use crate::tracker::api::{
    AuditAction, AuditResult, EndReason, HistoryPage, HistoryQuery, PURGE_AFTER, TrackerState,
};
use crate::tracker::http::{Request, Response};
use crate::tracker::life::Change;

impl Tracker {
    /// Looks for a mass silence; while one is held, nobody is removed.
    pub(super) fn look_for_mass_silence(&self, now: Moment, lasts: Duration) -> bool {
        let (stale, all) = self.store().count_stale(now);
        let (change, holds) = {
            let mut guard = self.guard.lock();
            (guard.look(now, stale, all, lasts), guard.holds(now))
        };
        match change {
            Change::None => {}
            Change::Began => {
                log::warn!("{stale} of {all} tracked sessions are stale; nobody is removed for {lasts:?}");
                self.tell_of_mass_silence(stale, all, Some(lasts));
            }
            Change::Over => {
                log::info!("enough tracked sessions beat again, or are gone");
                self.tell_of_mass_silence(stale, all, None);
            }
            Change::RanOut => {
                self.tell_of_mass_silence(stale, all, None);
                log::warn!("{stale} of {all} tracked sessions are stale still; they are removed now");
            }
        }
        holds
    }

    /// Removes the silent because somebody asked for it. The ancestors' dashboard asks for the usual
    /// age every few seconds: that is no reason to give up a mass silence.
    pub(super) fn clean_up_by_hand(
        &self,
        older_than: Duration,
        caller: &Caller,
    ) -> RemudaResult<Vec<TrackedId>> {
        let holds = self.guard.lock().holds(self.store().clock().now());
        if holds && older_than >= PURGE_AFTER {
            return Ok(Vec::new());
        }
        let asker = caller.asker();
        let gone = self.clean_up(older_than, EndReason::CleanedUp, Some(asker.clone()))?;
        if !gone.is_empty() {
            tell(AuditAction::CleanUp, None, Some(&asker), AuditResult::Done, gone.len());
        }
        Ok(gone)
    }

    pub(super) fn answer_history(&self, request: &Request) -> Result<Response, Refusal> {
        let limit = limit(request)?;
        let query = HistoryQuery {
            before: before(request)?,
            limit,
            app: request.parameter("app").map(str::to_owned),
            session: request.parameter("session").map(TrackedId::from),
        };
        let history = self.store().history(query)?;
        let next_before = history.last().filter(|_| history.len() == limit).map(|last| last.entry);
        Ok(Response::json(&HistoryPage { history, next_before }))
    }

    /// How the tracker itself is.
    pub(super) fn state(&self) -> TrackerState {
        let store = self.store();
        let now = store.clock().now();
        let (stale, all) = store.count_stale(now);
        let mass_silence = self.guard.lock().shown(now);
        TrackerState {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: store.uptime().as_secs_f64(),
            sessions: all as u64,
            stale: stale as u64,
            restart_grace_seconds: store.restart_grace().as_secs_f64(),
            mass_silence,
            kills: store.kill_stats(),
            embargoes: store.embargoes(),
        }
    }
}
