//! The files of the dashboard.

use crate::tracker::http::Response;

/// A file of the dashboard.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asset {
    name: &'static str,
    content_type: &'static str,
    text: &'static str,
}

macro_rules! asset {
    ($name:literal, $content_type:literal) => {
        Asset {
            name: $name,
            content_type: concat!($content_type, "; charset=utf-8"),
            text: include_str!(concat!("../dashboard/", $name)),
        }
    };
}

/// What `/` answers.
pub(super) static PAGE: Asset = asset!("index.html", "text/html");

/// What the page loads, from `/dashboard/`.
static PARTS: [Asset; 13] = [
    asset!("style.css", "text/css"),
    asset!("icon.svg", "image/svg+xml"),
    asset!("main.js", "text/javascript"),
    asset!("sessions.js", "text/javascript"),
    asset!("list.js", "text/javascript"),
    asset!("details.js", "text/javascript"),
    asset!("kills.js", "text/javascript"),
    asset!("panes.js", "text/javascript"),
    asset!("log.js", "text/javascript"),
    asset!("live.js", "text/javascript"),
    asset!("events.js", "text/javascript"),
    asset!("wire.js", "text/javascript"),
    asset!("words.js", "text/javascript"),
];

/// The part of the page with this name.
pub(super) fn part(name: &str) -> Option<&'static Asset> {
    PARTS.iter().find(|part| part.name == name)
}

/// Nothing from elsewhere, nothing inline, in nobody's frame.
const PAGE_FIELDS: &[(&str, &str)] = &[
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
];

pub(super) fn page(asset: &Asset) -> Response {
    Response::new(200, asset.content_type, asset.text.as_bytes()).with_fields(PAGE_FIELDS)
}
