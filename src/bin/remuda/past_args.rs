//! The command lines of `history`, `events` and `audit`.

use lexopt::{Arg, Parser};
use remuda::TrackedId;
use remuda::tracker::api::{AuditAction, AuditQuery, EventKind, EventQuery, HistoryQuery};

use crate::args::{Command, UsageError};
use crate::help::Topic;
use crate::table::Rows;
use crate::tracker_args::{Tracker, limit, string};

/// `remuda history`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct HistoryArgs {
    pub(crate) tracker: Tracker,
    pub(crate) query: HistoryQuery,
    pub(crate) rows: Rows,
}

/// `remuda events`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct EventsArgs {
    pub(crate) tracker: Tracker,
    pub(crate) query: EventQuery,
    /// What happens from now on.
    pub(crate) follow: bool,
    pub(crate) json: bool,
}

/// `remuda audit`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct AuditArgs {
    pub(crate) tracker: Tracker,
    pub(crate) query: AuditQuery,
    pub(crate) rows: Rows,
}

pub(crate) fn history(mut parser: Parser) -> Result<Command, UsageError> {
    const TOPIC: Topic = Topic::History;
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), TOPIC);
    let mut args = HistoryArgs::default();
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(TOPIC)),
            Arg::Long("app") => args.query.app = Some(string(&mut parser, TOPIC)?),
            Arg::Long("session") => args.query.session = Some(session(&mut parser, TOPIC)?),
            Arg::Long("limit") => args.rows.limit = Some(limit(&mut parser, TOPIC)?),
            Arg::Long("json") => args.rows.json = true,
            Arg::Long("server") => args.tracker.server = string(&mut parser, TOPIC)?,
            Arg::Long("token-file") => args.tracker.token_file = Some(parser.value().map_err(usage)?.into()),
            other => return Err(usage(other.unexpected())),
        }
    }
    Ok(Command::History(args))
}

pub(crate) fn events(mut parser: Parser) -> Result<Command, UsageError> {
    const TOPIC: Topic = Topic::Events;
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), TOPIC);
    let mut args = EventsArgs::default();
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(TOPIC)),
            Arg::Short('f') | Arg::Long("follow") => args.follow = true,
            Arg::Long("kind") => {
                let word = string(&mut parser, TOPIC)?;
                let refused = || UsageError::new(format!("--kind {word}: there are no such events"), TOPIC);
                args.query.kinds.push(EventKind::named(&word).ok_or_else(refused)?);
            }
            Arg::Long("app") => args.query.app = Some(string(&mut parser, TOPIC)?),
            Arg::Long("session") => args.query.session = Some(session(&mut parser, TOPIC)?),
            Arg::Long("json") => args.json = true,
            Arg::Long("server") => args.tracker.server = string(&mut parser, TOPIC)?,
            Arg::Long("token-file") => args.tracker.token_file = Some(parser.value().map_err(usage)?.into()),
            other => return Err(usage(other.unexpected())),
        }
    }
    Ok(Command::Events(args))
}

pub(crate) fn audit(mut parser: Parser) -> Result<Command, UsageError> {
    const TOPIC: Topic = Topic::Audit;
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), TOPIC);
    let mut args = AuditArgs::default();
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(TOPIC)),
            Arg::Long("action") => {
                let word = string(&mut parser, TOPIC)?;
                let refused = || UsageError::new(format!("--action {word}: there is no such action"), TOPIC);
                args.query.action = Some(AuditAction::named(&word).ok_or_else(refused)?);
            }
            Arg::Long("by") => args.query.token = Some(string(&mut parser, TOPIC)?),
            Arg::Long("limit") => args.rows.limit = Some(limit(&mut parser, TOPIC)?),
            Arg::Long("json") => args.rows.json = true,
            Arg::Long("server") => args.tracker.server = string(&mut parser, TOPIC)?,
            Arg::Long("token-file") => args.tracker.token_file = Some(parser.value().map_err(usage)?.into()),
            other => return Err(usage(other.unexpected())),
        }
    }
    Ok(Command::Audit(args))
}

fn session(parser: &mut Parser, topic: Topic) -> Result<TrackedId, UsageError> {
    string(parser, topic).map(TrackedId::from)
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
        let line = ["history", "--app=a", "--session", "s", "--limit", "7", "--json", "--server=u"];
        let Ok(Command::History(args)) = parsed(&line) else { panic!("not understood") };
        assert_eq!(args.query, HistoryQuery::new().app("a").session("s"));
        assert_eq!((args.rows, args.tracker.server.as_str()), (Rows { limit: Some(7), json: true }, "u"));
        let line = ["events", "-f", "--kind", "ended", "--kind=stale", "--app", "a", "--token-file", "t"];
        let Ok(Command::Events(args)) = parsed(&line) else { panic!("not understood") };
        assert_eq!(args.query, EventQuery::new().app("a").kinds([EventKind::Ended, EventKind::Stale]));
        assert!(args.follow && !args.json && args.tracker.token_file.is_some());
        let line = ["audit", "--action", "clean_up", "--by", "ops"];
        let Ok(Command::Audit(args)) = parsed(&line) else { panic!("not understood") };
        assert_eq!(args.query, AuditQuery::new().action(AuditAction::CleanUp).token("ops"));
    }

    #[test]
    fn what_is_not_understood_is_named_with_a_hint() {
        for (line, named, hint) in [
            (&["history", "x"][..], "x", "remuda help history"),
            (&["history", "--limit", "0"][..], "--limit 0", "remuda help history"),
            (&["history", "--session"][..], "--session", "remuda help history"),
            (&["events", "--kind", "beat"][..], "--kind beat", "remuda help events"),
            (&["events", "--kind", "unknown"][..], "--kind unknown", "remuda help events"),
            (&["events", "--limit", "1"][..], "--limit", "remuda help events"),
            (&["audit", "--action", "look"][..], "--action look", "remuda help audit"),
        ] {
            let message = parsed(line).err().expect("it is refused").to_string();
            assert!(message.contains(named) && message.contains(hint), "{line:?}: {message}");
        }
    }
}
