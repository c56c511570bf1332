//! `remuda events`: what happens to the tracked sessions.

use std::process::ExitCode;
use std::time::Duration;

use remuda::tracker::api::{EventList, EventPosition, MAX_EVENTS, TrackerEvent};
use remuda::{CancelToken, Error, Result, TrackerOperator};

use crate::past_args::EventsArgs;
use crate::ps::failed;
use crate::signals::Signals;
use crate::table::{Table, line, plain, plain_or_dash, span, time};
use crate::{complain, say, unusable};

pub(crate) fn main(args: &EventsArgs) -> ExitCode {
    if !args.follow {
        return match args.tracker.operator().and_then(|operator| list(&operator, args)) {
            Ok(code) => code,
            Err(error) => failed(&error),
        };
    }
    let token = CancelToken::new();
    let signals = match Signals::listen(token.clone(), || {}) {
        Ok(signals) => signals,
        Err(error) => return unusable(format!("cannot listen for signals: {error}")),
    };
    let followed = args.tracker.operator().and_then(|operator| follow(&operator, args, &token));
    match (signals.exit_code(), followed) {
        (Some(code), Ok(ExitCode::SUCCESS) | Err(Error::Cancelled)) => ExitCode::from(code),
        (_, Ok(code)) => code,
        (_, Err(error)) => failed(&error),
    }
}

/// Shows what the tracker still knows.
fn list(operator: &TrackerOperator, args: &EventsArgs) -> Result<ExitCode> {
    let query = args.query.clone().limit(MAX_EVENTS);
    let mut screen = Screen::new(args.json);
    let mut position = EventPosition::Oldest;
    loop {
        let list = operator.events_after(&position, &query, Duration::ZERO)?;
        let Some(list) = list else { return Ok(foreign(args)) };
        let code = screen.show(&list);
        if list.events.is_empty() || code != ExitCode::SUCCESS {
            return Ok(code);
        }
        position = EventPosition::After(list.last);
    }
}

/// Shows what happens from now on, until `token` is cancelled.
fn follow(operator: &TrackerOperator, args: &EventsArgs, token: &CancelToken) -> Result<ExitCode> {
    let query = args.query.clone().limit(MAX_EVENTS);
    let lists = operator.follow_events(&EventPosition::Now, query, token)?;
    let Some(lists) = lists else { return Ok(foreign(args)) };
    let mut screen = Screen::new(args.json);
    // The head of the table: it has begun.
    let mut code = screen.show(&EventList::default());
    let mut is_away = false;
    for list in lists {
        match list {
            Ok(list) => {
                is_away = false;
                code = screen.show(&list);
            }
            Err(Error::Tracker { reason, .. }) if may_come_back(&reason) => {
                if !std::mem::replace(&mut is_away, true) {
                    let (server, reason) = (&args.tracker.server, plain(&reason));
                    complain(format_args!("the tracker at {server}: {reason}; asking again"));
                }
            }
            Err(error) => return Err(error),
        }
        if code != ExitCode::SUCCESS {
            break;
        }
    }
    Ok(code)
}

fn may_come_back(reason: &str) -> bool {
    ["it does not answer", "it answers 503"].iter().any(|beginning| reason.starts_with(beginning))
}

fn foreign(args: &EventsArgs) -> ExitCode {
    complain(format_args!(
        "the tracker at {} is one of another kind: it tells no events",
        args.tracker.server
    ));
    ExitCode::FAILURE
}

/// Where events are written.
struct Screen {
    json: bool,
    table: Table<TrackerEvent, 5>,
}

impl Screen {
    fn new(json: bool) -> Screen {
        Screen { json, table: Table::new(["TIME", "EVENT", "ID", "APP", "WHAT"], cells) }
    }

    fn show(&mut self, list: &EventList) -> ExitCode {
        if list.reset {
            complain("some events are not known any more: they are missing here");
        }
        say(&if self.json { list.events.iter().map(line).collect() } else { self.table.lines(&list.events) })
    }
}

fn cells(event: &TrackerEvent) -> [String; 5] {
    [
        time(&event.time),
        event.kind.to_string(),
        plain_or_dash(event.session_id.as_ref().map(AsRef::as_ref)),
        plain_or_dash(event.app_name.as_deref()),
        what(event),
    ]
}

/// What else is said of it.
fn what(event: &TrackerEvent) -> String {
    let text =
        |before: &str, text: &Option<String>| text.as_ref().map(|text| format!("{before}{}", plain(text)));
    let silent = event.stale.zip(event.sessions);
    let said = [
        text("user ", &event.user_id),
        text("", &event.status),
        text("task ", &event.current_task),
        event.kill_id.map(|number| format!("receipt {number}")),
        event.verb.map(|verb| verb.to_string()),
        event.ended.map(|reason| reason.to_string()),
        text("by ", &event.requested_by),
        text("", &event.reason),
        silent.map(|(stale, all)| format!("{stale} of {all}")),
        event.seconds.map(span),
    ];
    let said: Vec<String> = said.into_iter().flatten().collect();
    if said.is_empty() { "-".to_owned() } else { said.join(", ") }
}
