//! `remuda audit`: what operators have asked for, and what became of it.

use std::process::ExitCode;

use remuda::tracker::api::{Asker, AuditEntry};
use remuda::{Result, TrackerOperator};

use crate::past_args::AuditArgs;
use crate::ps::failed;
use crate::table::{Table, plain, plain_or_dash, show, time};

pub(crate) fn main(args: &AuditArgs) -> ExitCode {
    match args.tracker.operator().and_then(|operator| list(&operator, args)) {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

fn list(operator: &TrackerOperator, args: &AuditArgs) -> Result<ExitCode> {
    let query = args.query.clone().limit(args.rows.page_size());
    let pages = operator.audit_pages(query).map(|page| page.map(|page| page.audit));
    let head = ["TIME", "ACTION", "RESULT", "OF", "SESSIONS", "TOKEN", "ADDRESS", "ASKED BY", "REASON"];
    show(pages, args.rows, Table::new(head, cells))
}

fn cells(entry: &AuditEntry) -> [String; 9] {
    let asker = entry.asked_by.as_ref();
    [
        time(&entry.time),
        entry.action.to_string(),
        entry.result.to_string(),
        whom(entry),
        entry.sessions.to_string(),
        asker.map_or("-".to_owned(), token),
        plain_or_dash(asker.map(|asker| asker.address.as_str())),
        plain_or_dash(entry.requested_by.as_deref()),
        plain_or_dash(entry.reason.as_deref()),
    ]
}

fn whom(entry: &AuditEntry) -> String {
    let app = entry.app_name.as_ref().map(|app| format!("app {app}"));
    let label = entry.label.as_ref().map(|label| format!("label {label}"));
    let session = entry.session_id.as_ref().map(ToString::to_string);
    plain_or_dash(session.or(app).or(label).as_deref())
}

/// The name of the access token, and what it is for.
fn token(asker: &Asker) -> String {
    match (&asker.token, asker.role) {
        (Some(name), Some(role)) => format!("{} ({role})", plain(name)),
        (Some(name), None) => plain(name),
        (None, Some(role)) => format!("({role})"),
        (None, None) => "-".to_owned(),
    }
}
