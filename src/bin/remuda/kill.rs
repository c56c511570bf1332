//! `remuda kill`: asks tracked sessions to stop, and tells whether they do.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use remuda::tracker::api::{KillAllResponse, KillPreview, KillReceipt, KillState, SessionQuery, Whom};
use remuda::{Result, TrackedSession, TrackerOperator};
use serde_json::Value;

use crate::order::name;
use crate::ps::failed;
use crate::table::{line, plain};
use crate::tracker_args::{Chosen, KillArgs};
use crate::{TIMED_OUT, complain, say};

pub(crate) fn main(args: &KillArgs) -> ExitCode {
    match args.tracker.operator().and_then(|operator| kill(&operator, args)) {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

/// Whom it concerns; `None`, with the reason told, if an id is not found. All or nothing is decided
/// before the first is touched: a mistyped id hits nobody.
pub(crate) fn chosen(operator: &TrackerOperator, chosen: &Chosen) -> Result<Option<Vec<Whom>>> {
    let ids = match chosen {
        Chosen::All(whom) => return Ok(Some(vec![whom.clone()])),
        Chosen::Sessions(ids) => ids,
    };
    let mut all = Vec::new();
    for id in ids {
        match named(operator, id)?.as_slice() {
            [one] => all.push(Whom::Session(one.session_id.clone())),
            [] => {
                complain(format_args!("no tracked session has the id {id}"));
                return Ok(None);
            }
            _ => {
                complain(format_args!("several tracked sessions have an id that begins with {id}"));
                return Ok(None);
            }
        }
    }
    Ok(Some(all))
}

/// The session whose id is `text` or, if there is none, those whose id begins with it: two of them, if there
/// are that many.
fn named(operator: &TrackerOperator, text: &str) -> Result<Vec<TrackedSession>> {
    let mut found = Vec::new();
    for page in operator.session_pages(SessionQuery::new().id(text).limit(2)) {
        found.extend(page?.sessions);
        // In the order of their ids: the text itself stands before all that begin with it.
        if found.first().is_some_and(|session| session.session_id.as_str() == text) {
            found.truncate(1);
            break;
        }
        if found.len() > 1 {
            break;
        }
    }
    Ok(found)
}

fn kill(operator: &TrackerOperator, args: &KillArgs) -> Result<ExitCode> {
    let Some(all) = chosen(operator, &args.chosen)? else { return Ok(ExitCode::FAILURE) };
    if args.request.dry_run {
        return preview(operator, &all, args.json);
    }
    let (mut receipts, mut code, mut is_any_killed) = (Vec::new(), ExitCode::SUCCESS, false);
    for whom in &all {
        let killed = operator.kill_with(whom, &args.request);
        if let Err(remuda::Error::Tracker { reason, .. }) = &killed
            && reason.starts_with("it answers 409: the session is protected")
        {
            complain(format_args!("{} is protected; --force kills it all the same", name(whom)));
            code = ExitCode::FAILURE;
            continue;
        }
        let killed = killed?;
        if killed.is_some()
            && let Some(seconds) = args.request.embargo_seconds
        {
            complain(embargo(whom, seconds));
        }
        let protected = killed.as_ref().map_or(0, |killed| killed.protected.len());
        if protected > 0 {
            let what = if protected == 1 { "session" } else { "sessions" };
            complain(format_args!("{protected} protected {what} of {}: not killed", name(whom)));
        }
        let Some(killed) = killed.filter(|killed| killed.killed_count > 0) else {
            if protected == 0 {
                complain(format_args!("no tracked session to kill: {}", name(whom)));
            }
            code = ExitCode::FAILURE;
            continue;
        };
        is_any_killed = true;
        if !args.json {
            say(&requested(whom, &killed));
        }
        receipts.extend(killed.receipts);
    }
    match args.wait {
        Some(_) if !is_any_killed => Ok(code),
        Some(_) if receipts.is_empty() => {
            complain("this tracker gives no receipts: there is nothing to wait for");
            Ok(ExitCode::FAILURE)
        }
        Some(timeout) => wait(operator, &receipts, timeout, args.json).map(|ended| match code {
            ExitCode::SUCCESS => ended,
            failure => failure,
        }),
        None => {
            if args.json {
                say(&receipts.iter().map(line).collect::<String>());
            }
            Ok(code)
        }
    }
}

/// What becomes of sessions that are not there yet.
fn embargo(whom: &Whom, seconds: f64) -> String {
    if seconds == 0.0 {
        return format!("no embargo on {} any more", name(whom));
    }
    format!("new sessions of {} are killed for {seconds} s; --embargo 0 lifts it", name(whom))
}

/// A line for each kill; for several, their number first.
fn requested(whom: &Whom, killed: &KillAllResponse) -> String {
    let count = killed.killed_count;
    let mut text = match whom {
        Whom::Session(_) => String::new(),
        Whom::App(name) => format!("kill requested: {count} of {}\n", plain(name)),
        Whom::Label { key, value } => {
            format!("kill requested: {count} with {}={}\n", plain(key), plain(value))
        }
    };
    for (at, id) in killed.session_ids.iter().enumerate() {
        let receipt = killed.receipts.get(at).map(|receipt| format!(", receipt {}", receipt.kill_id));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "kill requested: {id}{}", receipt.unwrap_or_default());
    }
    text
}

fn wait(
    operator: &TrackerOperator,
    receipts: &[KillReceipt],
    timeout: Duration,
    json: bool,
) -> Result<ExitCode> {
    let numbers: Vec<u64> = receipts.iter().map(|receipt| receipt.kill_id).collect();
    let ended = operator.wait_for_kills(&numbers, timeout)?;
    say(&ended.iter().map(|receipt| if json { line(receipt) } else { outcome(receipt) }).collect::<String>());
    if ended.iter().any(|receipt| !receipt.state.is_final()) {
        return Ok(ExitCode::from(TIMED_OUT));
    }
    let all_confirmed = ended.iter().all(|receipt| receipt.state == KillState::Confirmed);
    Ok(if all_confirmed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How far a kill is, and when it came there.
fn outcome(receipt: &KillReceipt) -> String {
    let steps = [
        ("delivered", receipt.delivered_seconds),
        ("stopping", receipt.stopping_seconds),
        ("confirmed", receipt.confirmed_seconds),
        ("expired", receipt.expired_seconds),
    ];
    let told = steps.iter().filter_map(|(step, after)| Some(format!("{step} after {:.3} s", (*after)?)));
    let told: Vec<String> = told.collect();
    let told = if told.is_empty() { "nothing is heard yet".to_owned() } else { told.join(", ") };
    format!("{}: {} ({told})\n", receipt.state, receipt.session_id)
}

fn preview(operator: &TrackerOperator, all: &[Whom], json: bool) -> Result<ExitCode> {
    for whom in all {
        let Some(preview) = operator.preview_kill(whom)? else {
            complain(format_args!("no tracked session to kill: {}", name(whom)));
            return Ok(ExitCode::FAILURE);
        };
        say(&if json { line(&preview) } else { shown(&preview) });
    }
    Ok(ExitCode::SUCCESS)
}

/// What a kill would hit, for people.
fn shown(preview: &KillPreview) -> String {
    let mut text = String::new();
    for session in &preview.sessions {
        let (app, task) = (plain(&session.app_name), plain(session.current_task.as_deref().unwrap_or("-")));
        let user = plain(session.user_id.as_deref().unwrap_or("-"));
        let place = match (&session.host, session.pid) {
            (Some(host), Some(pid)) => format!(", process {pid} on {}", plain(host)),
            _ => String::new(),
        };
        // Writing to a string cannot fail.
        let _ =
            writeln!(text, "would stop: {} of {app}, user {user}, task {task}{place}", session.session_id);
        for lease in &session.leases {
            let pid = lease.pid.map_or("-".to_owned(), |pid| pid.to_string());
            let holder = lease.holder.as_ref().and_then(holder).unwrap_or_default();
            let _ = writeln!(text, "    with worker {pid} of pool {}{holder}", plain(&lease.pool));
        }
    }
    for id in &preview.protected {
        let _ = writeln!(text, "protected: {id}");
    }
    for one in &preview.neighbours {
        let (app, pool) = (plain(&one.app_name), plain(&one.pool));
        let _ = writeln!(text, "would go on, in the same pool {pool}: {} of {app}", one.session_id);
    }
    let _ = writeln!(text, "generation {}: {} would stop", preview.generation, preview.sessions.len());
    text
}

/// Who holds a worker, as far as people can tell from it; all of it is in the JSON.
fn holder(holder: &Value) -> Option<String> {
    if let Some(name) = holder.as_str() {
        return Some(format!(", held by {}", plain(name)));
    }
    let names = [("tenant", "tenant"), ("label", "label"), ("thread", "thread_name")];
    let said = names.iter().filter_map(|(word, name)| Some((word, holder.get(name)?.as_str()?)));
    let said: Vec<String> = said.map(|(word, text)| format!("{word} {}", plain(text))).collect();
    (!said.is_empty()).then(|| format!(", held by {}", said.join(", ")))
}
