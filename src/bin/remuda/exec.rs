//! `remuda exec`: a piece of code in one session.

use std::io::{self, Read};
use std::process::ExitCode;
use std::time::Duration;

use remuda::{CancelToken, Execution, Outcome, Request, SessionConfig, Stream};

use crate::args::{ExecArgs, SessionArgs};
use crate::progress::Screen;
use crate::report::{End, complaint, json, succeeded};
use crate::signals::Signals;
use crate::{BROKEN_PIPE, refused, unusable};

/// Time that a session gets to end as a program ends (its `atexit` functions) before it is killed.
pub(crate) const LEAVE: Duration = Duration::from_secs(2);

pub(crate) fn main(args: ExecArgs) -> ExitCode {
    let ExecArgs { code, session: options } = args;
    let code = match code.map_or_else(from_stdin, Ok) {
        Ok(code) => code,
        Err(problem) => return unusable(problem),
    };
    let token = CancelToken::new();
    let signals = match Signals::listen(token.clone(), || {}) {
        Ok(signals) => signals,
        Err(error) => return unusable(format!("cannot listen for signals: {error}")),
    };
    let mut session = match session_config(&options).start() {
        Ok(session) => session,
        Err(error) => return refused(&error),
    };

    let screen = Screen::new(&token);
    let mut request = Request::code(code).cancel_token(&token).measure(options.json);
    if !options.json {
        request = request.output_cap(0).on_output(|stream, bytes| screen.write(stream, bytes));
    }
    let result = session.execute(request);
    if token.is_cancelled() {
        session.terminate();
    } else {
        session.shutdown(LEAVE);
    }

    let status = status(&result);
    let end = End::of(result);
    if options.json {
        screen.write(Stream::Stdout, format!("{}\n", json(None, &end)).as_bytes());
    } else {
        tell(&screen, &end);
    }
    match signals.exit_code() {
        Some(code) => ExitCode::from(code),
        None if screen.is_broken() => ExitCode::from(BROKEN_PIPE),
        None => ExitCode::from(status),
    }
}

/// A session as both commands want it: where the user is, with what the user has.
pub(crate) fn session_config(options: &SessionArgs) -> SessionConfig {
    let runtime = remuda::Runtime::python(&options.python);
    let mut config = SessionConfig::new(runtime).work_dir(remuda::WorkDir::Inherit).inherit_env(true);
    config.warm_imports.clone_from(&options.imports);
    config.require_warm_imports = true;
    config.env.extend(options.env.iter().cloned());
    config.time_limit = options.time_limit;
    config
}

fn from_stdin() -> Result<String, String> {
    let mut code = Vec::new();
    io::stdin()
        .lock()
        .read_to_end(&mut code)
        .map_err(|error| format!("cannot read standard input: {error}"))?;
    String::from_utf8(code).map_err(|_| "the code on standard input is not UTF-8".to_owned())
}

/// The value, and what went wrong.
fn tell(screen: &Screen, end: &End) {
    match end {
        End::Ran(run) => {
            if let Some(repr) = &run.repr {
                screen.write(Stream::Stdout, format!("{repr}\n").as_bytes());
            }
            if let Some(text) = complaint(run) {
                screen.write(Stream::Stderr, text.as_bytes());
            }
            if matches!(run.outcome, Outcome::TimedOut { .. } | Outcome::Died) {
                let death =
                    run.post_mortem.as_ref().map_or_else(String::new, |death| format!(": {}", death.exit));
                screen.write(Stream::Stderr, format!("remuda: {}{death}\n", run.outcome).as_bytes());
            }
        }
        End::Refused(error) => crate::complain(error),
        End::NotStarted => {}
    }
}

/// 0 if it succeeded, the status that the code asked for, else 1.
fn status(result: &remuda::Result<Execution>) -> u8 {
    match result {
        Ok(run) if succeeded(run) => 0,
        Ok(run) => match run.error.as_ref().and_then(|error| error.exit_code) {
            // As the kernel does with a program's status.
            Some(code) => code.to_le_bytes()[0],
            None => 1,
        },
        Err(_) => 1,
    }
}
