//! `GET /pools`: what apps attach to their beats.

use super::input::{given, limit};
use super::replies::{Refusal, unprocessable};
use super::tracker::Tracker;
use crate::tracker::TrackedId;
use crate::tracker::http::{Request, Response};
use crate::tracker::store::AttachedFilter;

impl Tracker {
    pub(super) fn answer_pools(&self, request: &Request) -> Result<Response, Refusal> {
        let after = given(request, "after").map(str::parse).transpose();
        let after = after.map_err(|_| unprocessable("after: must be a number"))?.unwrap_or(0);
        let filter = AttachedFilter {
            after,
            limit: limit(request)?,
            app_name: given(request, "app").map(str::to_owned),
            session: given(request, "session").map(TrackedId::from),
            name: given(request, "name").map(str::to_owned),
        };
        Ok(Response::json(&self.store().attached(&filter)?))
    }
}
