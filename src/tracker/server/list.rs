//! `GET /sessions`: every session, or a page of them.

use super::input::{given, limit, refused};
use super::replies::Refusal;
use super::tracker::Tracker;
use crate::Error;
use crate::tracker::TrackedStatus;
use crate::tracker::api::{LONGEST_PAGE, SessionQuery};
use crate::tracker::http::{Request, Response};

/// With any of these it is a page.
const PARAMETERS: [&str; 10] =
    ["limit", "cursor", "app", "user", "status", "state", "label", "id", "q", "sort"];

const BEGINNING: &[u8] = br#"{"sessions":["#;

impl Tracker {
    pub(super) fn answer_list(&self, request: &Request) -> Result<Response, Refusal> {
        if PARAMETERS.iter().any(|name| request.parameter(name).is_some()) {
            let page = self.store().sessions_page(&query(request)?).map_err(refused)?;
            return Ok(Response::json(&page));
        }
        Ok(Response::json_text(self.whole_list()?))
    }

    /// A [`SessionList`](crate::tracker::api::SessionList) of everybody, written page by page: a million
    /// sessions are never in memory but as text.
    fn whole_list(&self) -> Result<Vec<u8>, Refusal> {
        let mut text = BEGINNING.to_vec();
        let mut query = SessionQuery::new().limit(LONGEST_PAGE);
        loop {
            let page = self.store().sessions_page(&query).map_err(refused)?;
            for session in &page.sessions {
                if text.len() > BEGINNING.len() {
                    text.push(b',');
                }
                serde_json::to_writer(&mut text, session)
                    .map_err(|error| Error::store("writing the list", error))?;
            }
            query.cursor = page.next_cursor;
            if query.cursor.is_none() {
                text.extend_from_slice(b"]}");
                return Ok(text);
            }
        }
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
