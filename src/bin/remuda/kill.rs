//! `remuda kill`: asks tracked sessions to stop.

use std::process::ExitCode;

use remuda::{Result, TrackerOperator};

use crate::ps::{failed, named};
use crate::tracker_args::{KillArgs, Whom};
use crate::{complain, say};

pub(crate) fn main(args: &KillArgs) -> ExitCode {
    match TrackerOperator::new(&args.server).and_then(|operator| kill(&operator, &args.whom)) {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

fn kill(operator: &TrackerOperator, whom: &Whom) -> Result<ExitCode> {
    match whom {
        Whom::App(name) => {
            let killed = operator.kill_app(name)?;
            if killed == 0 {
                complain(format_args!("no tracked session belongs to an app {name:?}"));
                return Ok(ExitCode::FAILURE);
            }
            Ok(say(&format!("kill requested: {killed} of {name}\n")))
        }
        Whom::Sessions(ids) => kill_each(operator, ids),
    }
}

/// All or nothing is decided before the first kill: a mistyped id kills nobody.
fn kill_each(operator: &TrackerOperator, ids: &[String]) -> Result<ExitCode> {
    let sessions = operator.sessions()?;
    let mut victims = Vec::new();
    for id in ids {
        match named(&sessions, id).as_slice() {
            [one] => victims.push(&one.session_id),
            [] => {
                complain(format_args!("no tracked session has the id {id}"));
                return Ok(ExitCode::FAILURE);
            }
            several => {
                complain(format_args!("{} tracked sessions have an id that begins with {id}", several.len()));
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    let mut code = ExitCode::SUCCESS;
    for id in victims {
        if operator.kill(id)? {
            say(&format!("kill requested: {id}\n"));
        } else {
            complain(format_args!("{id} has just gone"));
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
