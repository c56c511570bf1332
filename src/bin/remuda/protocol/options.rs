//! The command line of `remuda protocol check`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};
use remuda::{Channels, Runtime};
use serde_json::{Deserializer, Value};

use super::dialect::Given;
use crate::args::UsageError;
use crate::help::Topic;

/// What the command line asks for.
pub(super) enum Wanted {
    Check(Options),
    Help,
}

pub(super) struct Options {
    pub(super) runtime: Runtime,
    /// Other ones than a session would give it.
    pub(super) channels: Option<Channels>,
    pub(super) given: Given,
    pub(super) row: Option<String>,
    pub(super) timeout: Duration,
    pub(super) json: bool,
}

pub(super) fn parse(parser: Parser) -> Result<Wanted, UsageError> {
    read(parser).map_err(|message| UsageError::new(message, Topic::Protocol))
}

fn read(mut parser: Parser) -> Result<Wanted, String> {
    let wrong = |error: lexopt::Error| error.to_string();
    match parser.next().map_err(wrong)? {
        Some(Arg::Value(name)) if name == "check" => {}
        Some(Arg::Short('h') | Arg::Long("help")) => return Ok(Wanted::Help),
        Some(Arg::Value(other)) => {
            return Err(format!("there is no 'protocol {}'; there is check", other.display()));
        }
        Some(other) => return Err(wrong(other.unexpected())),
        None => return Err("what about the protocol? Say check".to_owned()),
    }
    let (mut runtime, mut channels, mut row, mut json) = (None, None, None, false);
    let (mut given, mut timeout) = (Given::default(), Duration::from_secs(10));
    let mut name = |chosen: Runtime| match runtime.replace(chosen) {
        None => Ok(()),
        Some(_) => Err("more than one worker; check them one by one".to_owned()),
    };
    loop {
        if let Some(argv) = crate::args::after_separator(&mut parser) {
            let mut argv = argv.into_iter();
            let program = argv.next().ok_or("which program? Name it behind --")?;
            name(Runtime::command(program, argv))?;
            break;
        }
        let Some(arg) = parser.next().map_err(wrong)? else { break };
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Wanted::Help),
            Arg::Long("stdio") => channels = Some(Channels::Stdio),
            Arg::Long("pipes") => channels = Some(Channels::Pipes),
            Arg::Long("json") => json = true,
            Arg::Long("python") => name(Runtime::python(PathBuf::from(parser.value().map_err(wrong)?)))?,
            Arg::Long("node") => name(Runtime::node(PathBuf::from(parser.value().map_err(wrong)?)))?,
            Arg::Long("row") => row = Some(text("--row", parser.value().map_err(wrong)?)?),
            Arg::Long("timeout") => timeout = seconds(&text("--timeout", parser.value().map_err(wrong)?)?)?,
            Arg::Long("execute") => {
                given.execute.push(execute(&text("--execute", parser.value().map_err(wrong)?)?)?);
            }
            Arg::Long("call") => given.call.push(call(&text("--call", parser.value().map_err(wrong)?)?)?),
            Arg::Value(program) => {
                let program = program.display();
                return Err(format!("a worker program stands behind --, as in 'check -- {program}'"));
            }
            other => return Err(wrong(other.unexpected())),
        }
    }
    let runtime = runtime.ok_or("which worker? Name a program behind --, or --python or --node")?;
    Ok(Wanted::Check(Options { runtime, channels, given, row, timeout, json }))
}

fn text(what: &str, value: OsString) -> Result<String, String> {
    value.string().map_err(|_| format!("{what} is not valid UTF-8"))
}

fn seconds(value: &str) -> Result<Duration, String> {
    match value.parse().map(Duration::try_from_secs_f64) {
        Ok(Ok(limit)) if (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&limit) => {
            Ok(limit)
        }
        _ => Err(format!("--timeout {value}: a number of seconds from 0.1 to 3600 is wanted")),
    }
}

/// `CODE=JSON`; code may hold the sign too, so that the first one with JSON behind it counts.
fn execute(value: &str) -> Result<(String, Value), String> {
    let split = value
        .match_indices('=')
        .find_map(|(at, _)| Some((value[..at].to_owned(), serde_json::from_str(&value[at + 1..]).ok()?)));
    split.ok_or_else(|| format!("--execute {value}: CODE=JSON is wanted, such as '1 + 1=2'"))
}

/// `FUNCTION=ARGS=JSON`.
fn call(value: &str) -> Result<(String, Value, Value), String> {
    let split = value.split_once('=').and_then(|(function, rest)| {
        let mut parts = Deserializer::from_str(rest).into_iter::<Value>();
        let args = parts.next()?.ok().filter(Value::is_array)?;
        let result = rest[parts.byte_offset()..].strip_prefix('=')?;
        Some((function.to_owned(), args, serde_json::from_str(result).ok()?))
    });
    split.ok_or_else(|| format!("--call {value}: FUNCTION=ARGS=JSON is wanted, such as 'add=[1,2]=3'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &[&str]) -> String {
        match parse(Parser::from_args(line.iter().copied())) {
            Ok(_) => panic!("{line:?} was accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn code_and_calls_are_given_with_their_values() {
        assert_eq!(execute("a = 1; a == 1=true"), Ok(("a = 1; a == 1".to_owned(), true.into())));
        assert_eq!(execute(r#"x="=""#), Ok(("x".to_owned(), "=".into())));
        let args = serde_json::json!([1, "=[2]="]);
        assert_eq!(call(r#"f=[1,"=[2]="]=3"#), Ok(("f".to_owned(), args, 3.into())));
    }

    #[test]
    fn a_program_keeps_its_own_options() {
        let line = ["check", "--pipes", "--timeout=2", "--", "worker", "--json", "--"];
        let Ok(Wanted::Check(options)) = parse(Parser::from_args(line)) else { panic!("not understood") };
        assert_eq!(options.runtime, Runtime::command("worker", ["--json", "--"]));
        assert_eq!(options.channels, Some(Channels::Pipes));
        assert_eq!((options.timeout, options.json), (Duration::from_secs(2), false));
    }

    #[test]
    fn what_is_not_understood_is_named_with_a_hint() {
        for (line, named) in [
            (&[][..], "check"),
            (&["fly"][..], "'protocol fly'"),
            (&["check"][..], "which worker"),
            (&["check", "--"][..], "which program"),
            (&["check", "worker"][..], "'check -- worker'"),
            (&["check", "--python", "a", "--", "b"][..], "more than one"),
            (&["check", "--timeout", "0"][..], "--timeout 0"),
            (&["check", "--execute", "1 + 1"][..], "CODE=JSON"),
            (&["check", "--call", "f=1=1"][..], "FUNCTION=ARGS=JSON"),
        ] {
            let message = refused(line);
            assert!(
                message.contains(named) && message.contains("remuda help protocol"),
                "{line:?}: {message}"
            );
        }
    }
}
