//! The command lines of `serve`, `ps`, `kill` and `cleanup`.

use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};
use remuda::tracker::api::{DEFAULT_URL, PURGE_AFTER};

use crate::args::{Command, UsageError};
use crate::help::Topic;

/// `remuda serve`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ServeArgs {
    /// `None`: the library's default.
    pub(crate) listen: Option<String>,
    pub(crate) database: Option<PathBuf>,
}

/// `remuda ps`.
#[derive(Debug, PartialEq)]
pub(crate) struct PsArgs {
    pub(crate) server: String,
    pub(crate) json: bool,
}

/// `remuda kill`.
#[derive(Debug, PartialEq)]
pub(crate) struct KillArgs {
    pub(crate) server: String,
    pub(crate) whom: Whom,
}

/// Whom to kill.
#[derive(Debug, PartialEq)]
pub(crate) enum Whom {
    /// Ids or their beginnings.
    Sessions(Vec<String>),
    App(String),
}

/// `remuda cleanup`.
#[derive(Debug, PartialEq)]
pub(crate) struct CleanupArgs {
    pub(crate) server: String,
    pub(crate) older_than: Duration,
}

pub(crate) fn serve(mut parser: Parser) -> Result<Command, UsageError> {
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), Topic::Serve);
    let mut args = ServeArgs::default();
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Serve)),
            Arg::Long("listen") => args.listen = Some(string(&mut parser, Topic::Serve)?),
            Arg::Long("db") => args.database = Some(parser.value().map_err(usage)?.into()),
            other => return Err(usage(other.unexpected())),
        }
    }
    Ok(Command::Serve(args))
}

pub(crate) fn ps(mut parser: Parser) -> Result<Command, UsageError> {
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), Topic::Ps);
    let mut args = PsArgs { server: DEFAULT_URL.to_owned(), json: false };
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Ps)),
            Arg::Long("json") => args.json = true,
            Arg::Long("server") => args.server = string(&mut parser, Topic::Ps)?,
            other => return Err(usage(other.unexpected())),
        }
    }
    Ok(Command::Ps(args))
}

pub(crate) fn kill(mut parser: Parser) -> Result<Command, UsageError> {
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), Topic::Kill);
    let (mut server, mut app, mut ids) = (DEFAULT_URL.to_owned(), None, Vec::new());
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Kill)),
            Arg::Long("app") => app = Some(string(&mut parser, Topic::Kill)?),
            Arg::Long("server") => server = string(&mut parser, Topic::Kill)?,
            Arg::Value(id) => ids.push(id.string().map_err(usage)?),
            other => return Err(usage(other.unexpected())),
        }
    }
    // An empty beginning fits every id: "$ID" of a shell that has no ID must kill nobody.
    if ids.iter().any(String::is_empty) {
        return Err(UsageError::new("an ID is empty: nobody is killed", Topic::Kill));
    }
    let whom = match (app, ids.is_empty()) {
        (Some(app), true) => Whom::App(app),
        (None, false) => Whom::Sessions(ids),
        (None, true) => return Err(UsageError::new("whom? Name an ID or --app NAME", Topic::Kill)),
        (Some(_), false) => {
            return Err(UsageError::new("--app kills all of an app: it takes no ID", Topic::Kill));
        }
    };
    Ok(Command::Kill(KillArgs { server, whom }))
}

pub(crate) fn cleanup(mut parser: Parser) -> Result<Command, UsageError> {
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), Topic::Cleanup);
    let mut args = CleanupArgs { server: DEFAULT_URL.to_owned(), older_than: PURGE_AFTER };
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Cleanup)),
            Arg::Long("server") => args.server = string(&mut parser, Topic::Cleanup)?,
            Arg::Long("older-than") => {
                let value = string(&mut parser, Topic::Cleanup)?;
                args.older_than = minutes(&value)
                    .ok_or_else(|| format!("--older-than {value}: a number of minutes is wanted"))
                    .map_err(|message| UsageError::new(message, Topic::Cleanup))?;
            }
            other => return Err(usage(other.unexpected())),
        }
    }
    Ok(Command::Cleanup(args))
}

fn string(parser: &mut Parser, topic: Topic) -> Result<String, UsageError> {
    let value = parser.value().and_then(ValueExt::string);
    value.map_err(|error| UsageError::new(error.to_string(), topic))
}

fn minutes(value: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(value.parse::<f64>().ok()? * 60.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::parse;

    fn parsed(line: &[&str]) -> Result<Command, UsageError> {
        parse(Parser::from_args(line.iter().copied()))
    }

    #[test]
    fn what_is_asked_for_is_understood() {
        let Ok(Command::Serve(args)) = parsed(&["serve", "--listen", "127.0.0.1:9", "--db=:memory:"]) else {
            panic!("not understood")
        };
        assert_eq!(args.listen.as_deref(), Some("127.0.0.1:9"));
        assert_eq!(args.database, Some(PathBuf::from(":memory:")));
        let Ok(Command::Ps(args)) = parsed(&["ps", "--json"]) else { panic!("not understood") };
        assert_eq!(args, PsArgs { server: "http://localhost:8000".to_owned(), json: true });
        let Ok(Command::Kill(args)) = parsed(&["kill", "--server=u", "a", "b"]) else {
            panic!("not understood")
        };
        let whom = Whom::Sessions(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(args, KillArgs { server: "u".to_owned(), whom });
        let Ok(Command::Kill(args)) = parsed(&["kill", "--app", "my app"]) else { panic!("not understood") };
        assert_eq!(args.whom, Whom::App("my app".to_owned()));
        let Ok(Command::Cleanup(args)) = parsed(&["cleanup", "--older-than", "0.5"]) else {
            panic!("not understood")
        };
        assert_eq!(args.older_than, Duration::from_secs(30));
    }

    #[test]
    fn what_is_not_understood_is_named_with_a_hint() {
        for (line, named, hint) in [
            (&["serve", "8000"][..], "8000", "remuda help serve"),
            (&["serve", "--listen"][..], "--listen", "remuda help serve"),
            (&["ps", "x"][..], "x", "remuda help ps"),
            (&["kill"][..], "whom?", "remuda help kill"),
            (&["kill", ""][..], "empty", "remuda help kill"),
            (&["kill", "a", ""][..], "empty", "remuda help kill"),
            (&["kill", "--app", "a", "x"][..], "--app", "remuda help kill"),
            (&["cleanup", "--older-than", "soon"][..], "--older-than soon", "remuda help cleanup"),
            (&["cleanup", "--older-than", "-1"][..], "--older-than -1", "remuda help cleanup"),
        ] {
            let message = parsed(line).err().expect("it is refused").to_string();
            assert!(message.contains(named) && message.contains(hint), "{line:?}: {message}");
        }
    }
}
