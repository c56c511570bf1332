//! `remuda ps` and `remuda cleanup`: what a tracker knows.

use std::fmt::Write as _;
use std::process::ExitCode;

use remuda::tracker::api::{LONGEST_PAGE, TrackerState};
use remuda::{Result, TrackedSession, TrackerOperator};

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
    if !args.json {
        operator.state()?.iter().for_each(warn);
    }
    let mut left = args.limit.unwrap_or(usize::MAX);
    let mut table = Table::default();
    let page_size = left.clamp(1, LONGEST_PAGE);
    let mut code = ExitCode::SUCCESS;
    for page in operator.session_pages(args.query.clone().limit(page_size)) {
        let mut sessions = page?.sessions;
        sessions.truncate(left);
        left -= sessions.len();
        code = say(&if args.json { lines(&sessions) } else { table.lines(&sessions) });
        if left == 0 || code != ExitCode::SUCCESS {
            break;
        }
    }
    Ok(code)
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
    match error {
        remuda::Error::Tracker { reason, .. } if reason.starts_with("it does not answer") => {
            complain(format_args!("{error}; `remuda serve` starts one, --server names another"));
        }
        remuda::Error::Tracker { reason, .. } if reason.starts_with("it answers 401") => {
            complain(format_args!("{error}; {GIVE_TOKEN}"));
        }
        _ => complain(error),
    }
    ExitCode::FAILURE
}

/// One JSON object on each line.
fn lines(sessions: &[TrackedSession]) -> String {
    let line = |session| serde_json::to_string(session).map_or_else(|_| String::new(), |json| json + "\n");
    sessions.iter().map(line).collect()
}

/// A table that comes in pieces: a column is as wide as the widest text so far.
#[derive(Default)]
struct Table {
    widths: [usize; 7],
    has_begun: bool,
}

impl Table {
    fn lines(&mut self, sessions: &[TrackedSession]) -> String {
        let mut rows = Vec::new();
        if !std::mem::replace(&mut self.has_begun, true) {
            rows.push(["ID", "APP", "USER", "STATUS", "TASK", "RUNS FOR", "LAST BEAT"].map(str::to_owned));
        }
        rows.extend(sessions.iter().map(cells));
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut text = String::new();
        for row in rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(self.widths) {
                // Writing to a string cannot fail.
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
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

/// Names come from anybody: what would move the cursor of a terminal is replaced.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A length of time in its largest unit.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}
