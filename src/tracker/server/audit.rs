//! Who has asked for what: in the log, in the audit, and the route that shows it.

use super::access::Caller;
use super::input::limit;
use super::kills::before;
use super::replies::{Refusal, unprocessable};
use super::routing::Route;
use super::tracker::Tracker;
use crate::tracker::api::{Asker, AuditAction, AuditPage, AuditQuery, AuditResult, Whom};
use crate::tracker::http::{Request, Response};

impl Caller {
    /// For receipts and the audit.
    pub(super) fn asker(&self) -> Asker {
        Asker::new(self.name.as_deref(), self.role, self.address.to_string())
    }
}

impl Route {
    /// What an operator asks for with it, and of whom; nothing if it changes nothing.
    fn deed(&self) -> Option<(AuditAction, Option<Whom>)> {
        match self {
            Route::Kill(whom) => Some((AuditAction::Kill, Some(whom.clone()))),
            Route::Order(whom, verb) => Some(((*verb).into(), Some(whom.clone()))),
            Route::CleanUp => Some((AuditAction::CleanUp, None)),
            _ => None,
        }
    }
}

impl Tracker {
    /// A caller was not let do this, and is to be told of. Does not wait for the disk.
    pub(super) fn note_forbidden(&self, route: &Route, caller: &Caller) {
        let Some((action, whom)) = route.deed() else { return };
        tell(action, whom.as_ref(), Some(&caller.asker()), AuditResult::Forbidden, 0);
        self.store().note_forbidden(action, whom, caller.asker());
    }

    pub(super) fn answer_audit(&self, request: &Request) -> Result<Response, Refusal> {
        let action = |word: &str| {
            AuditAction::named(word).ok_or_else(|| unprocessable("action: there is none of this name"))
        };
        let limit = limit(request)?;
        let query = AuditQuery {
            before: before(request)?,
            limit,
            action: request.parameter("action").map(action).transpose()?,
            token: request.parameter("token").map(str::to_owned),
        };
        let audit = self.store().audit(query)?;
        let next_before = audit.last().filter(|_| audit.len() == limit).map(|last| last.entry);
        Ok(Response::json(&AuditPage { audit, next_before }))
    }
}

/// Tells the log of what was asked for and what became of it.
pub(super) fn tell(
    action: AuditAction,
    whom: Option<&Whom>,
    asked_by: Option<&Asker>,
    result: AuditResult,
    sessions: usize,
) {
    let token = asked_by.and_then(|asker| asker.token.as_deref()).unwrap_or("-");
    let role = asked_by.and_then(|asker| asker.role).map_or("-", |role| role.as_str());
    let address = asked_by.map_or("-", |asker| asker.address.as_str());
    let whom = match whom {
        Some(Whom::Session(id)) => format!("session {}", id.as_str().escape_debug()),
        Some(Whom::App(name)) => format!("app {name:?}"),
        Some(Whom::Label { key, value }) => format!("label {key:?}={value:?}"),
        None => "the silent".to_owned(),
    };
    let (action, result) = (action.as_str(), result.as_str());
    log::info!(
        action = action, result = result, token = token, role = role, address = address, sessions = sessions;
        "{action} of {whom}: {result}, {sessions} sessions; asked by {token} ({role}) from {address}"
    );
}
