//! `GET /sessions`: every session, or a page of them.

use super::input::{given, limit, refused};
use super::replies::Refusal;
use super::tracker::Tracker;
use crate::tracker::TrackedStatus;
use crate::tracker::api::{SessionList, SessionQuery};
use crate::tracker::http::{Request, Response};

/// With any of these it is a page.
const PARAMETERS: [&str; 10] =
    ["limit", "cursor", "app", "user", "status", "state", "label", "id", "q", "sort"];

impl Tracker {
    pub(super) fn answer_list(&self, request: &Request) -> Result<Response, Refusal> {
        if PARAMETERS.iter().any(|name| request.parameter(name).is_some()) {
            let page = self.store().sessions_page(&query(request)?).map_err(refused)?;
            return Ok(Response::json(&page));
        }
        Ok(Response::json(&SessionList { sessions: self.store().get_all_sessions()? }))
    }
}

/// Which page is wanted.
fn query(request: &Request) -> Result<SessionQuery, Refusal> {
    let text = |name| given(request, name).map(str::to_owned);
    let status = |name| text(name).map(TrackedStatus::from);
    let mut query = SessionQuery::new().limit(limit(request)?);
    (query.cursor, query.app, query.user) = (text("cursor"), text("app"), text("user"));
    (query.status, query.state) = (status("status"), status("state"));
    (query.label, query.search) = (text("label"), text("q"));
    if let Some(beginning) = text("id") {
        query = query.id(beginning);
    }
    if let Some(sort) = given(request, "sort") {
        query.sort = sort.parse().map_err(refused)?;
    }
    Ok(query)
}
