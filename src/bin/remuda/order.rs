//! `remuda pause` and its like: tells tracked sessions how to go on.

use std::process::ExitCode;

use remuda::tracker::api::Whom;
use remuda::{Result, TrackerOperator};

use crate::kill::chosen;
use crate::ps::failed;
use crate::tracker_args::OrderArgs;
use crate::{complain, say};

pub(crate) fn main(args: &OrderArgs) -> ExitCode {
    match args.tracker.operator().and_then(|operator| order(&operator, args)) {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

fn order(operator: &TrackerOperator, args: &OrderArgs) -> Result<ExitCode> {
    let Some(all) = chosen(operator, &args.chosen)? else { return Ok(ExitCode::FAILURE) };
    let verb = args.verb.as_str();
    let mut code = ExitCode::SUCCESS;
    for whom in &all {
        let ids = operator.order(whom, args.verb)?.unwrap_or_default();
        if ids.is_empty() {
            complain(format_args!("no tracked session to {verb}: {}", name(whom)));
            code = ExitCode::FAILURE;
        }
        for id in ids {
            say(&format!("{verb}: {id}\n"));
        }
    }
    Ok(code)
}

/// Whom it concerns, in words.
pub(crate) fn name(whom: &Whom) -> String {
    match whom {
        Whom::Session(id) => id.to_string(),
        Whom::App(name) => format!("app {name:?}"),
        Whom::Label { key, value } => format!("label {key}={value}"),
    }
}
