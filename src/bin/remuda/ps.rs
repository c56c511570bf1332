//! `remuda ps` and `remuda cleanup`: what a tracker knows.

use std::process::ExitCode;

use remuda::tracker::api::TrackerState;
use remuda::{Result, TrackedSession, TrackerOperator};

use crate::table::{Table, plain, show, span};
use crate::tracker_args::{CleanupArgs, PsArgs};
use crate::{complain, say};

pub(crate) fn main(args: &PsArgs) -> ExitCode {
    match args.tracker.operator().and_then(|operator| list(&operator, args)) {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

/// Shows the sessions as their pages come: a million are never held at once.
fn list(operator: &TrackerOperator, args: &PsArgs) -> Result<ExitCode> {
    if !args.rows.json {
        operator.state()?.iter().for_each(warn);
    }
    let query = args.query.clone().limit(args.rows.page_size());
    let pages = operator.session_pages(query).map(|page| page.map(|page| page.sessions));
    let head = ["ID", "APP", "USER", "STATUS", "TASK", "RUNS FOR", "LAST BEAT"];
    show(pages, args.rows, Table::new(head, cells))
}

/// What whoever looks at the list should know of the tracker.
fn warn(state: &TrackerState) {
    if let Some(silence) = &state.mass_silence {
        complain(format_args!(
            "{} of {} sessions have fallen silent at once: nobody is removed for another {}",
            silence.stale,
            silence.sessions,
            span(silence.ends_in_seconds)
        ));
    }
    for embargo in &state.embargoes {
        let app = plain(&embargo.app_name);
        complain(format_args!("new sessions of {app} are killed for another {}", span(embargo.left_seconds)));
    }
}

pub(crate) fn clean_up(args: &CleanupArgs) -> ExitCode {
    let clean_up = |operator: TrackerOperator| operator.cleanup_stale(args.older_than);
    match args.tracker.operator().and_then(clean_up) {
        Ok(count) => say(&format!("{count} removed\n")),
        Err(error) => failed(&error),
    }
}

/// What helps where a token is needed.
pub(crate) const GIVE_TOKEN: &str = "give it with --token-file, or in REMUDA_TOKEN";

/// The tracker could not be asked.
pub(crate) fn failed(error: &remuda::Error) -> ExitCode {
    let said = plain(&error.to_string());
    match error {
        remuda::Error::Tracker { reason, .. } if reason.starts_with("it does not answer") => {
            complain(format_args!("{said}; `remuda serve` starts one, --server names another"));
        }
        remuda::Error::Tracker { reason, .. } if reason.starts_with("it answers 401") => {
            complain(format_args!("{said}; {GIVE_TOKEN}"));
        }
        _ => complain(said),
    }
    ExitCode::FAILURE
}

fn cells(session: &TrackedSession) -> [String; 7] {
    let mut status = vec![plain(session.state.as_ref().unwrap_or(&session.status).as_str())];
    match &session.kill {
        Some(receipt) if session.kill_requested => status.push(format!("kill {}", receipt.state)),
        _ if session.kill_requested => status.push("to be killed".to_owned()),
        _ => {}
    }
    status.extend(session.verbs.iter().map(|verb| plain(verb)));
    status.extend(session.protected.then(|| "protected".to_owned()));
    [
        plain(session.session_id.as_str()),
        plain(&session.app_name),
        plain(session.user_id.as_deref().unwrap_or("-")),
        status.join(", "),
        plain(session.current_task.as_deref().unwrap_or("-")),
        span(session.duration_seconds),
        session.beat_age_seconds.map_or("-".to_owned(), |age| span(age) + " ago"),
    ]
}
