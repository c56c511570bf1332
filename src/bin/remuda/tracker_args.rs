//! The command lines of `serve`, `ps`, `kill`, `pause` and its like, and `cleanup`.

use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};
use remuda::tracker::api::{DEFAULT_URL, KillRequest, PURGE_AFTER, SessionQuery, Verb, Whom};
use remuda::{AccessToken, TrackedStatus, TrackerOperator};

use crate::args::{Command, UsageError};
use crate::help::Topic;
use crate::table::Rows;

/// `remuda serve`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ServeArgs {
    /// `None`: the library's default.
    pub(crate) listen: Option<String>,
    pub(crate) database: Option<PathBuf>,
    /// The file of access tokens. `None`: those of the environment, if there are any.
    pub(crate) tokens: Option<PathBuf>,
    pub(crate) hosts: Vec<String>,
}

/// Which tracker is asked, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tracker {
    pub(crate) server: String,
    /// The file of the access token. `None`: that of the environment, if there is one.
    pub(crate) token_file: Option<PathBuf>,
}

impl Default for Tracker {
    fn default() -> Tracker {
        Tracker { server: DEFAULT_URL.to_owned(), token_file: None }
    }
}

impl Tracker {
    pub(crate) fn operator(&self) -> remuda::Result<TrackerOperator> {
        let operator = TrackerOperator::new(&self.server)?;
        Ok(match self.token()? {
            Some(token) => operator.with_token(&token),
            None => operator,
        })
    }

    pub(crate) fn token(&self) -> remuda::Result<Option<AccessToken>> {
        match &self.token_file {
            Some(file) => AccessToken::from_file(file).map(Some),
            None => AccessToken::from_env(),
        }
    }
}

/// `remuda ps`.
#[derive(Debug, PartialEq)]
pub(crate) struct PsArgs {
    pub(crate) tracker: Tracker,
    pub(crate) query: SessionQuery,
    pub(crate) rows: Rows,
}

/// `remuda kill`.
#[derive(Debug, PartialEq)]
pub(crate) struct KillArgs {
    pub(crate) tracker: Tracker,
    pub(crate) chosen: Chosen,
    pub(crate) request: KillRequest,
    /// Wait for the end of the kills, for so long.
    pub(crate) wait: Option<Duration>,
    pub(crate) json: bool,
}

/// `remuda pause` and its like.
#[derive(Debug, PartialEq)]
pub(crate) struct OrderArgs {
    pub(crate) tracker: Tracker,
    pub(crate) chosen: Chosen,
    pub(crate) verb: Verb,
}

/// Whom it concerns.
#[derive(Debug, PartialEq)]
pub(crate) enum Chosen {
    /// Ids or their beginnings.
    Sessions(Vec<String>),
    /// All of an app, or all with a label.
    All(Whom),
}

/// `remuda cleanup`.
#[derive(Debug, PartialEq)]
pub(crate) struct CleanupArgs {
    pub(crate) tracker: Tracker,
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
            Arg::Long("tokens") => args.tokens = Some(parser.value().map_err(usage)?.into()),
            Arg::Long("allow-host") => args.hosts.push(string(&mut parser, Topic::Serve)?),
            other => return Err(usage(other.unexpected())),
        }
    }
    Ok(Command::Serve(args))
}

pub(crate) fn token(mut parser: Parser) -> Result<Command, UsageError> {
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), Topic::Token);
    match parser.next().map_err(usage)? {
        None => Ok(Command::Token),
        Some(Arg::Short('h') | Arg::Long("help")) => Ok(Command::Help(Topic::Token)),
        Some(other) => Err(usage(other.unexpected())),
    }
}

pub(crate) fn ps(mut parser: Parser) -> Result<Command, UsageError> {
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), Topic::Ps);
    let refused = |message: String| UsageError::new(message, Topic::Ps);
    let mut args = PsArgs { tracker: Tracker::default(), query: SessionQuery::new(), rows: Rows::default() };
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Ps)),
            Arg::Long("json") => args.rows.json = true,
            Arg::Long("server") => args.tracker.server = string(&mut parser, Topic::Ps)?,
            Arg::Long("token-file") => args.tracker.token_file = Some(parser.value().map_err(usage)?.into()),
            Arg::Long("app") => args.query.app = Some(string(&mut parser, Topic::Ps)?),
            Arg::Long("user") => args.query.user = Some(string(&mut parser, Topic::Ps)?),
            Arg::Long("label") => {
                let (key, value) = label(&string(&mut parser, Topic::Ps)?, Topic::Ps)?;
                args.query = args.query.label(&key, &value);
            }
            Arg::Long("state") => {
                let word = string(&mut parser, Topic::Ps)?;
                if !["running", "idle", "late", "stale"].contains(&word.as_str()) {
                    return Err(refused(format!("--state {word}: running, idle, late or stale is wanted")));
                }
                args.query.state = Some(TrackedStatus::from(word));
            }
            Arg::Short('q') => args.query.search = Some(string(&mut parser, Topic::Ps)?),
            Arg::Long("sort") => {
                let word = string(&mut parser, Topic::Ps)?;
                args.query.sort = word.parse().map_err(|error| refused(format!("--sort {word}: {error}")))?;
            }
            Arg::Long("limit") => args.rows.limit = Some(limit(&mut parser, Topic::Ps)?),
            other => return Err(usage(other.unexpected())),
        }
    }
    Ok(Command::Ps(args))
}

/// How long `kill --wait` waits if nothing is said.
const KILL_WAIT: Duration = Duration::from_secs(60);

pub(crate) fn kill(mut parser: Parser) -> Result<Command, UsageError> {
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), Topic::Kill);
    let mut choice = Choice::new(Topic::Kill);
    let (mut request, mut wait, mut timeout, mut json) = (KillRequest::default(), false, KILL_WAIT, false);
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Kill)),
            Arg::Long("reason") => request.reason = Some(string(&mut parser, Topic::Kill)?),
            Arg::Long("dry-run") => request.dry_run = true,
            Arg::Long("force") => request.force = true,
            Arg::Long("generation") => request.generation = Some(string(&mut parser, Topic::Kill)?),
            Arg::Long("embargo") => {
                let time = seconds(&mut parser, "--embargo", Topic::Kill)?;
                request.embargo_seconds = Some(time.as_secs_f64());
            }
            Arg::Long("wait") => wait = true,
            Arg::Long("timeout") => timeout = seconds(&mut parser, "--timeout", Topic::Kill)?,
            Arg::Long("json") => json = true,
            other => {
                let part = Part::of(other).map_err(usage)?;
                choice.take(part, &mut parser)?;
            }
        }
    }
    let (tracker, chosen) = choice.end()?;
    let refused = |message: &str| Err(UsageError::new(message, Topic::Kill));
    match &chosen {
        Chosen::Sessions(_) if request.embargo_seconds.is_some() || request.generation.is_some() => {
            return refused("--embargo and --generation are for --app, --generation for --label too");
        }
        Chosen::All(Whom::Label { .. }) if request.embargo_seconds.is_some() => {
            return refused("--embargo is for --app");
        }
        Chosen::All(_) if request.force => return refused("--force is for an ID: protected ones are named"),
        _ => {}
    }
    request.requested_by = std::env::var("USER").ok().filter(|user| !user.is_empty() && user.len() <= 256);
    let wait = wait.then_some(timeout);
    Ok(Command::Kill(KillArgs { tracker, chosen, request, wait, json }))
}

/// `remuda pause` and its like.
pub(crate) fn order(verb: Verb, mut parser: Parser) -> Result<Command, UsageError> {
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), Topic::Order);
    let mut choice = Choice::new(Topic::Order);
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Order)),
            other => {
                let part = Part::of(other).map_err(usage)?;
                choice.take(part, &mut parser)?;
            }
        }
    }
    let (tracker, chosen) = choice.end()?;
    Ok(Command::Order(OrderArgs { tracker, chosen, verb }))
}

/// What `kill` and `pause` and its like have in common: the tracker, and whom they concern.
struct Choice {
    topic: Topic,
    tracker: Tracker,
    app: Option<String>,
    label: Option<String>,
    ids: Vec<String>,
}

/// A part of a choice. An option's value is still to be read.
enum Part {
    Server,
    TokenFile,
    App,
    Label,
    Id(String),
}

impl Part {
    fn of(arg: Arg<'_>) -> Result<Part, lexopt::Error> {
        match arg {
            Arg::Long("server") => Ok(Part::Server),
            Arg::Long("token-file") => Ok(Part::TokenFile),
            Arg::Long("app") => Ok(Part::App),
            Arg::Long("label") => Ok(Part::Label),
            Arg::Value(id) => Ok(Part::Id(id.string()?)),
            other => Err(other.unexpected()),
        }
    }
}

impl Choice {
    fn new(topic: Topic) -> Choice {
        Choice { topic, tracker: Tracker::default(), app: None, label: None, ids: Vec::new() }
    }

    fn take(&mut self, part: Part, parser: &mut Parser) -> Result<(), UsageError> {
        match part {
            Part::Server => self.tracker.server = string(parser, self.topic)?,
            Part::TokenFile => self.tracker.token_file = Some(string(parser, self.topic)?.into()),
            Part::App => self.app = Some(string(parser, self.topic)?),
            Part::Label => self.label = Some(string(parser, self.topic)?),
            Part::Id(id) => self.ids.push(id),
        }
        Ok(())
    }

    fn end(self) -> Result<(Tracker, Chosen), UsageError> {
        let refused = |message: &str| Err(UsageError::new(message, self.topic));
        // An empty beginning fits every id: "$ID" of a shell that has no ID must hit nobody.
        if self.ids.iter().any(String::is_empty) {
            return refused("an ID is empty: nothing is done");
        }
        let chosen = match (self.app, self.label, self.ids.is_empty()) {
            (Some(app), None, true) => Chosen::All(Whom::App(app)),
            (None, Some(text), true) => {
                let (key, value) = label(&text, self.topic)?;
                Chosen::All(Whom::Label { key, value })
            }
            (None, None, false) => Chosen::Sessions(self.ids),
            (None, None, true) => return refused("whom? Name an ID, --app NAME or --label KEY=VALUE"),
            _ => return refused("either IDs or --app or --label: each names all whom it concerns"),
        };
        Ok((self.tracker, chosen))
    }
}

pub(crate) fn cleanup(mut parser: Parser) -> Result<Command, UsageError> {
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), Topic::Cleanup);
    let mut args = CleanupArgs { tracker: Tracker::default(), older_than: PURGE_AFTER };
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Cleanup)),
            Arg::Long("server") => args.tracker.server = string(&mut parser, Topic::Cleanup)?,
            Arg::Long("token-file") => args.tracker.token_file = Some(parser.value().map_err(usage)?.into()),
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

pub(crate) fn string(parser: &mut Parser, topic: Topic) -> Result<String, UsageError> {
    let value = parser.value().and_then(ValueExt::string);
    value.map_err(|error| UsageError::new(error.to_string(), topic))
}

/// The most rows that are wanted.
pub(crate) fn limit(parser: &mut Parser, topic: Topic) -> Result<usize, UsageError> {
    let value = string(parser, topic)?;
    let limit = value.parse().ok().filter(|&limit| limit > 0);
    limit.ok_or_else(|| UsageError::new(format!("--limit {value}: a number from 1 is wanted"), topic))
}

/// KEY=VALUE.
fn label(text: &str, topic: Topic) -> Result<(String, String), UsageError> {
    let parts = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let parts = parts.map(|(key, value)| (key.to_owned(), value.to_owned()));
    parts.ok_or_else(|| UsageError::new("--label: KEY=VALUE is wanted", topic))
}

fn seconds(parser: &mut Parser, option: &str, topic: Topic) -> Result<Duration, UsageError> {
    let value = string(parser, topic)?;
    let time = value.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or_else(|| UsageError::new(format!("{option} {value}: a number of seconds is wanted"), topic))
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
        assert_eq!((args.tokens, args.hosts.len()), (None, 0));
        let line = ["serve", "--tokens", "t", "--allow-host", "a", "--allow-host=b"];
        let Ok(Command::Serve(args)) = parsed(&line) else { panic!("not understood") };
        assert_eq!(args.tokens, Some(PathBuf::from("t")));
        assert_eq!(args.hosts, ["a", "b"]);
        let Ok(Command::Ps(args)) = parsed(&["ps", "--json"]) else { panic!("not understood") };
        let (tracker, query) = (Tracker::default(), SessionQuery::new());
        assert_eq!(args, PsArgs { tracker, query, rows: Rows { limit: None, json: true } });
        assert_eq!(Tracker::default().server, "http://localhost:8000");
        for line in [
            &["ps", "--token-file", "t"][..],
            &["kill", "--token-file=t", "a"],
            &["pause", "--token-file", "t", "a"],
            &["cleanup", "--token-file", "t"],
        ] {
            let tracker = match parsed(line) {
                Ok(Command::Ps(args)) => args.tracker,
                Ok(Command::Kill(args)) => args.tracker,
                Ok(Command::Order(args)) => args.tracker,
                Ok(Command::Cleanup(args)) => args.tracker,
                _ => panic!("{line:?} is not understood"),
            };
            assert_eq!(tracker.token_file, Some(PathBuf::from("t")), "{line:?}");
        }
        let line = ["ps", "--app=a", "--user", "u", "--state=late", "-q", "x", "--sort=-app", "--limit", "7"];
        let Ok(Command::Ps(args)) = parsed(&[&line[..], &["--label", "k=v=w"]].concat()) else {
            panic!("not understood")
        };
        let query = SessionQuery::new().app("a").user("u").state(TrackedStatus::Late).search("x");
        let query = query.sort("-app".parse().unwrap()).label("k", "v=w");
        assert_eq!((args.query, args.rows.limit), (query, Some(7)));
        let Ok(Command::Kill(args)) = parsed(&["kill", "--server=u", "a", "b"]) else {
            panic!("not understood")
        };
        let ids = Chosen::Sessions(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!((args.tracker.server.as_str(), args.chosen, args.wait), ("u", ids, None));
        let line = ["kill", "--app", "my app", "--embargo=1.5", "--wait", "--timeout", "5", "--reason", "r"];
        let Ok(Command::Kill(args)) = parsed(&line) else { panic!("not understood") };
        assert_eq!(args.chosen, Chosen::All(Whom::App("my app".to_owned())));
        assert_eq!((args.wait, args.request.reason.as_deref()), (Some(Duration::from_secs(5)), Some("r")));
        assert_eq!((args.request.embargo_seconds, args.request.dry_run), (Some(1.5), false));
        let Ok(Command::Order(args)) = parsed(&["drain", "--label", "team=a=b"]) else {
            panic!("not understood")
        };
        let label = Whom::Label { key: "team".to_owned(), value: "a=b".to_owned() };
        assert_eq!((args.verb, args.chosen), (Verb::Drain, Chosen::All(label)));
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
            (&["ps", "--state", "dead"][..], "--state dead", "remuda help ps"),
            (&["ps", "--sort", "size"][..], "--sort size", "remuda help ps"),
            (&["ps", "--limit", "0"][..], "--limit 0", "remuda help ps"),
            (&["ps", "--label", "x"][..], "KEY=VALUE", "remuda help ps"),
            (&["kill"][..], "whom?", "remuda help kill"),
            (&["kill", ""][..], "empty", "remuda help kill"),
            (&["kill", "a", ""][..], "empty", "remuda help kill"),
            (&["kill", "--app", "a", "x"][..], "--app", "remuda help kill"),
            (&["kill", "--app", "a", "--force"][..], "--force", "remuda help kill"),
            (&["kill", "x", "--embargo", "5"][..], "--embargo", "remuda help kill"),
            (&["kill", "x", "--timeout", "soon"][..], "--timeout soon", "remuda help kill"),
            (&["kill", "--label", "team"][..], "KEY=VALUE", "remuda help kill"),
            (&["pause"][..], "whom?", "remuda help pause"),
            (&["resume", "", "--reason"][..], "--reason", "remuda help pause"),
            (&["cleanup", "--older-than", "soon"][..], "--older-than soon", "remuda help cleanup"),
            (&["cleanup", "--older-than", "-1"][..], "--older-than -1", "remuda help cleanup"),
        ] {
            let message = parsed(line).err().expect("it is refused").to_string();
            assert!(message.contains(named) && message.contains(hint), "{line:?}: {message}");
        }
    }
}
