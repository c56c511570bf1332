//! `GET /pools`: what apps attach to their beats.

use super::input::limit;
use super::replies::{Refusal, unprocessable};
use super::tracker::Tracker;
use crate::tracker::TrackedId;
use crate::tracker::api::PoolQuery;
use crate::tracker::http::{Request, Response};

impl Tracker {
    pub(super) fn answer_pools(&self, request: &Request) -> Result<Response, Refusal> {
        let after = request.parameter("after").map(str::parse).transpose();
        let after = after.map_err(|_| unprocessable("after: must be a number"))?;
        let query = PoolQuery {
            after,
            limit: limit(request)?,
            app: request.parameter("app").map(str::to_owned),
            session: request.parameter("session").map(TrackedId::from),
            name: request.parameter("name").map(str::to_owned),
        };
        Ok(Response::json(&self.store().attached(&query)?))
    }
}
