//! `remuda history`: the tracked sessions that are no more.

use std::process::ExitCode;

use remuda::tracker::api::HistoryEntry;
use remuda::{Result, TrackerOperator};

use crate::past_args::HistoryArgs;
use crate::ps::failed;
use crate::table::{Table, plain, plain_or_dash, show, span, time};

pub(crate) fn main(args: &HistoryArgs) -> ExitCode {
    match args.tracker.operator().and_then(|operator| list(&operator, args)) {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

fn list(operator: &TrackerOperator, args: &HistoryArgs) -> Result<ExitCode> {
    let query = args.query.clone().limit(args.rows.page_size());
    let pages = operator.history_pages(query).map(|page| page.map(|page| page.history));
    let head = ["ENDED", "ID", "APP", "USER", "OUTCOME", "TASK", "RAN FOR"];
    show(pages, args.rows, Table::new(head, cells))
}

fn cells(entry: &HistoryEntry) -> [String; 7] {
    let outcome = plain(entry.outcome.as_str());
    [
        time(&entry.end_time),
        plain(entry.session_id.as_str()),
        plain(&entry.app_name),
        plain_or_dash(entry.user_id.as_deref()),
        entry.reason.map_or(outcome.clone(), |reason| format!("{outcome}, {reason}")),
        plain_or_dash(entry.current_task.as_deref()),
        span(entry.duration_seconds),
    ]
}
