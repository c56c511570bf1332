//! The routes about kills and their receipts.

use super::access::Caller;
use super::audit::tell;
use super::input::{body, duration, limit};
use super::replies::{Refusal, not_found, refusal, unprocessable};
use super::tracker::Tracker;
use crate::Result as RemudaResult;
use crate::tracker::TrackedId;
use crate::tracker::api::{
    AuditAction, AuditResult, KillAllResponse, KillRequest, KillResponse, MAX_EMBARGO, OrderReply,
    ReceiptList, ReceiptQuery, Verb, Whom,
};
use crate::tracker::http::{Request, Response};
use crate::tracker::store::{KillOrder, Killed, NotKilled};

/// Longest words of a kill, in bytes.
const LONGEST_NAME: usize = 256;
const LONGEST_REASON: usize = 1_024;

impl Tracker {
    /// Asks whoever is meant to stop; their parked beats are answered at once.
    pub(super) fn kill(&self, whom: &Whom, order: KillOrder) -> RemudaResult<Result<Killed, NotKilled>> {
        // They are what somebody says, and shall not look like lines of the log.
        let by = order.requested_by.as_deref().unwrap_or("somebody").escape_debug().to_string();
        let reason = order.reason.as_deref().unwrap_or_default().escape_debug().to_string();
        let asked_by = order.asked_by.clone();
        let killed = self.store().kill(whom.clone(), order)?;
        let (result, sessions) = match &killed {
            Ok(killed) => (AuditResult::Done, killed.receipts.len()),
            Err(NotKilled::Unknown) => (AuditResult::Unknown, 0),
            Err(NotKilled::Protected) => (AuditResult::Protected, 0),
            Err(NotKilled::StaleGeneration) => (AuditResult::StaleGeneration, 0),
        };
        tell(AuditAction::Kill, Some(whom), asked_by.as_ref(), result, sessions);
        for receipt in killed.iter().flat_map(|killed| &killed.receipts) {
            self.tell_parked(&receipt.session_id);
            log::info!(
                session_id = receipt.session_id.as_str(), kill_id = receipt.kill_id;
                "{by} wants tracked session {} of {} to stop: {reason}",
                receipt.session_id, receipt.app_name.escape_debug()
            );
        }
        Ok(killed)
    }

    pub(super) fn answer_kill(
        &self,
        whom: &Whom,
        caller: &Caller,
        request: &Request,
    ) -> Result<Response, Refusal> {
        let asked = kill_request(request)?;
        if asked.dry_run {
            let preview = self.store().preview(whom)?;
            let is_unknown = matches!(whom, Whom::Session(_)) && preview.sessions.is_empty();
            return Ok(if is_unknown { not_found() } else { Response::json(&preview) });
        }
        if asked.embargo_seconds.is_some() && !matches!(whom, Whom::App(_)) {
            return Err(unprocessable("embargo_seconds: only kill-all of an app can lay an embargo"));
        }
        let order = KillOrder {
            asked_by: Some(caller.asker()),
            requested_by: asked.requested_by,
            reason: asked.reason,
            force: asked.force,
            generation: asked.generation,
            embargo: asked.embargo_seconds.map(duration),
        };
        let single = matches!(whom, Whom::Session(_));
        Ok(match self.kill(whom, order)? {
            Ok(Killed { mut receipts, .. }) if single => {
                let status = "kill_requested".to_owned();
                Response::json(&KillResponse { status, receipt: receipts.pop() })
            }
            Ok(Killed { receipts, protected }) => Response::json(&KillAllResponse {
                killed_count: receipts.len() as u64,
                session_ids: receipts.iter().map(|receipt| receipt.session_id.clone()).collect(),
                receipts,
                protected,
            }),
            Err(NotKilled::Unknown) => not_found(),
            Err(NotKilled::Protected) => {
                refusal(409, "the session is protected; to kill it all the same takes force", "protected")
            }
            Err(NotKilled::StaleGeneration) => {
                let detail = "the sessions are not those of the preview any more: nobody is killed";
                refusal(409, detail, "stale_generation")
            }
        })
    }

    pub(super) fn answer_order(&self, whom: &Whom, verb: Verb, caller: &Caller) -> Result<Response, Refusal> {
        let single = matches!(whom, Whom::Session(_));
        let asker = caller.asker();
        let session_ids = self.store().order(whom.clone(), verb, Some(asker.clone()))?;
        let is_unknown = single && session_ids.is_empty();
        let result = if is_unknown { AuditResult::Unknown } else { AuditResult::Done };
        tell(verb.into(), Some(whom), Some(&asker), result, session_ids.len());
        if is_unknown {
            return Ok(not_found());
        }
        if !matches!(verb, Verb::Protect | Verb::Unprotect) {
            for id in &session_ids {
                self.tell_parked(id);
            }
        }
        Ok(Response::json(&OrderReply { session_ids }))
    }

    pub(super) fn answer_receipts(&self, request: &Request) -> Result<Response, Refusal> {
        let (limit, before) = (limit(request)?, before(request)?);
        let query = ReceiptQuery {
            before,
            limit,
            app: request.parameter("app").map(str::to_owned),
            session: request.parameter("session").map(TrackedId::from),
            open: flag(request, "open")?,
        };
        let kills = self.store().receipts(query)?;
        let next_before = kills.last().filter(|_| kills.len() == limit).map(|last| last.kill_id);
        Ok(Response::json(&ReceiptList { kills, next_before }))
    }

    pub(super) fn answer_receipt(&self, kill_id: u64) -> Result<Response, Refusal> {
        let receipt = self.store().receipt(kill_id)?;
        Ok(receipt.map_or_else(|| Response::detail(404, "Kill not found"), |found| Response::json(&found)))
    }
}

/// Whether the request only asks what it would hit.
pub(super) fn is_dry_run(request: &Request) -> bool {
    kill_request(request).is_ok_and(|asked| asked.dry_run)
}

/// A kill without a body is the usual one.
fn kill_request(request: &Request) -> Result<KillRequest, Refusal> {
    let mut asked: KillRequest = match request.body.trim_ascii() {
        b"" => KillRequest::default(),
        bytes => body(bytes)?,
    };
    asked.dry_run |= flag(request, "dry_run")?;
    let is_long = |text: &Option<String>, most| text.as_ref().is_some_and(|text| text.len() > most);
    if is_long(&asked.requested_by, LONGEST_NAME) {
        return Err(unprocessable("requested_by: must have at most 256 bytes"));
    }
    if is_long(&asked.reason, LONGEST_REASON) {
        return Err(unprocessable("reason: must have at most 1024 bytes"));
    }
    let longest = MAX_EMBARGO.as_secs_f64();
    if asked.embargo_seconds.is_some_and(|seconds| !(0.0..=longest).contains(&seconds)) {
        return Err(unprocessable(&format!("embargo_seconds: must be from 0 to {longest}")));
    }
    Ok(asked)
}

/// A parameter that is `1` or `true` if it is there.
fn flag(request: &Request, name: &str) -> Result<bool, Refusal> {
    match request.parameter(name) {
        None | Some("0" | "false") => Ok(false),
        Some("1" | "true") => Ok(true),
        Some(_) => Err(unprocessable(&format!("{name}: must be 1 or 0"))),
    }
}

/// The `before` parameter of a list: where the page before it ended.
pub(super) fn before(request: &Request) -> Result<Option<u64>, Refusal> {
    let parse = |text: &str| text.parse().map_err(|_| unprocessable("before: must be a number"));
    request.parameter("before").map(parse).transpose()
}
