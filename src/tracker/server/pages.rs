//! The files of the dashboard.

use crate::tracker::http::Response;

/// A file of the dashboard.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asset {
    content_type: &'static str,
    text: &'static str,
}

pub(super) static PAGE: Asset =
    Asset { content_type: "text/html; charset=utf-8", text: include_str!("../dashboard/index.html") };
pub(super) static STYLE: Asset =
    Asset { content_type: "text/css; charset=utf-8", text: include_str!("../dashboard/dashboard.css") };
pub(super) static SCRIPT: Asset =
    Asset { content_type: "text/javascript; charset=utf-8", text: include_str!("../dashboard/dashboard.js") };

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
