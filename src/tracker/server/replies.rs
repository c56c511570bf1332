//! What is answered in more than one place.

use crate::tracker::api::{ErrorBody, HeartbeatResponse, NOT_FOUND};
use crate::tracker::http::Response;
use crate::tracker::life::Gone;
use crate::tracker::store::Missed;

/// Go on.
pub(super) const GO_ON: Response = Response::fixed_json(r#"{"kill_requested":false}"#);

/// Nobody knows who asks.
pub(super) const UNAUTHORIZED: Response = Response::fixed_refusal(
    401,
    &[("WWW-Authenticate", "Bearer")],
    r#"{"detail":"an access token that is known here is needed: Authorization: Bearer TOKEN","reason":"unauthorized"}"#,
);
/// Who asks may not.
pub(super) const FORBIDDEN: Response = Response::fixed_refusal(
    403,
    &[],
    r#"{"detail":"this access token is not for that","reason":"forbidden"}"#,
);

/// An answer that ends the handling of a request.
pub(super) struct Refusal(pub(super) Response);

impl From<crate::Error> for Refusal {
    fn from(error: crate::Error) -> Refusal {
        log::warn!("a request is refused: {error}");
        Refusal(Response::detail(503, &error.to_string()))
    }
}

pub(super) fn unprocessable(detail: &str) -> Refusal {
    Refusal(Response::detail(422, detail))
}

pub(super) fn not_found() -> Response {
    Response::detail(404, NOT_FOUND)
}

/// A refusal with a word for programs.
pub(super) fn refusal(status: u16, detail: &str, reason: &str) -> Response {
    let body = ErrorBody { detail: detail.to_owned(), reason: Some(reason.to_owned()) };
    Response { status, ..Response::json(&body) }
}

/// What a session hears.
pub(super) fn heard(reply: &HeartbeatResponse) -> Response {
    if *reply == HeartbeatResponse::default() { GO_ON } else { Response::json(reply) }
}

/// A beat that counts for nothing. The ancestors' clients, which number no beats, know one 404.
pub(super) fn missed_beat(missed: Missed, is_numbered: bool) -> Response {
    match missed {
        Missed::Late => refusal(409, "a newer beat of this session has come before", missed_word(missed)),
        Missed::Gone(_) if !is_numbered => not_found(),
        Missed::Gone(_) => refusal(404, NOT_FOUND, missed_word(missed)),
    }
}

/// Why a beat counts for nothing, for programs.
pub(super) fn missed_word(missed: Missed) -> &'static str {
    match missed {
        Missed::Late => "late_beat",
        Missed::Gone(how) => how.map_or("unknown", Gone::as_str),
    }
}
