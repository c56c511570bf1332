//! The command line: what can be asked for, and clear words when something else was.

use std::ffi::OsString;
use std::fmt::Display;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};
use remuda::ClientConfig;
use remuda::tracker::api::Verb;

use crate::help::Topic;
use crate::past_args::{self, AuditArgs, EventsArgs, HistoryArgs};
use crate::tracker_args::{self, CleanupArgs, KillArgs, OrderArgs, PsArgs, ServeArgs, Tracker};

/// Fewer sessions than this serve nobody: scripts wait for more than the processor.
const LEAST_JOBS: usize = 4;

const COMMANDS: &str = "run, exec, serve, token, ps, kill, pause, drain, resume, protect, unprotect, cleanup, history, \
                        events, audit, bench, protocol";

/// What the command line asks for.
pub(crate) enum Command {
    Run(RunArgs),
    Exec(ExecArgs),
    Serve(ServeArgs),
    /// A new access token.
    Token,
    Ps(PsArgs),
    Kill(KillArgs),
    Order(OrderArgs),
    Cleanup(CleanupArgs),
    History(HistoryArgs),
    Events(EventsArgs),
    Audit(AuditArgs),
    /// The benchmarks read their own arguments.
    Bench(Parser),
    /// So does what is about the protocol.
    Protocol(Parser),
    Help(Topic),
    Version,
}

/// `remuda run`.
pub(crate) struct RunArgs {
    pub(crate) scripts: Vec<PathBuf>,
    /// What every script finds behind its name in `sys.argv`.
    pub(crate) script_args: Vec<String>,
    pub(crate) jobs: usize,
    /// Sessions are reset and used again; otherwise each script gets a new process.
    pub(crate) reuse: bool,
    pub(crate) tracker: TrackerChoice,
    pub(crate) session: SessionArgs,
}

/// Which tracker shows the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TrackerChoice {
    /// One in this process.
    Own,
    /// The one at this address.
    Server(Tracker),
    None,
}

/// `remuda exec`.
pub(crate) struct ExecArgs {
    /// `None`: from standard input.
    pub(crate) code: Option<String>,
    pub(crate) session: SessionArgs,
}

/// Options that both have.
pub(crate) struct SessionArgs {
    pub(crate) python: PathBuf,
    pub(crate) imports: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) time_limit: Option<Duration>,
    pub(crate) json: bool,
}

/// A command line that cannot be followed: what is wrong, and where to read on.
#[derive(Debug)]
pub(crate) struct UsageError {
    message: String,
    hint: &'static str,
}

impl UsageError {
    pub(crate) fn new(message: impl Into<String>, topic: Topic) -> UsageError {
        UsageError { message: message.into(), hint: topic.command() }
    }
}

impl Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\nTry '{}'.", self.message, self.hint)
    }
}

/// Reads the whole command line.
pub(crate) fn parse(mut parser: Parser) -> Result<Command, UsageError> {
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), Topic::Overview);
    let Some(first) = parser.next().map_err(usage)? else {
        let message = format!("what shall remuda do? Name a command, one of {COMMANDS}");
        return Err(UsageError::new(message, Topic::Overview));
    };
    let command = match first {
        Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Overview)),
        Arg::Short('V') | Arg::Long("version") => return Ok(Command::Version),
        Arg::Value(name) => name.to_string_lossy().into_owned(),
        other => return Err(usage(other.unexpected())),
    };
    match command.as_str() {
        "run" => run(parser),
        "exec" => exec(parser),
        "serve" => tracker_args::serve(parser),
        "token" => tracker_args::token(parser),
        "ps" => tracker_args::ps(parser),
        "kill" => tracker_args::kill(parser),
        "cleanup" => tracker_args::cleanup(parser),
        "history" => past_args::history(parser),
        "events" => past_args::events(parser),
        "audit" => past_args::audit(parser),
        "bench" => Ok(Command::Bench(parser)),
        "protocol" => Ok(Command::Protocol(parser)),
        "help" => help(&mut parser),
        other => {
            if let Some(verb) = Verb::named(other) {
                return tracker_args::order(verb, parser);
            }
            let message = format!("there is no command '{other}'; there are {COMMANDS} and help");
            Err(UsageError::new(message, Topic::Overview))
        }
    }
}

fn help(parser: &mut Parser) -> Result<Command, UsageError> {
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), Topic::Overview);
    let topic = match parser.next().map_err(usage)? {
        None => Topic::Overview,
        Some(Arg::Value(name)) => match name.to_str() {
            Some("run") => Topic::Run,
            Some("exec") => Topic::Exec,
            Some("serve") => Topic::Serve,
            Some("token") => Topic::Token,
            Some("ps") => Topic::Ps,
            Some("kill") => Topic::Kill,
            Some(verb) if Verb::named(verb).is_some() => Topic::Order,
            Some("cleanup") => Topic::Cleanup,
            Some("history") => Topic::History,
            Some("events") => Topic::Events,
            Some("audit") => Topic::Audit,
            Some("bench") => Topic::Bench,
            Some("protocol") => Topic::Protocol,
            _ => {
                let message = format!("there is no help on '{}'; there is on {COMMANDS}", name.display());
                return Err(UsageError::new(message, Topic::Overview));
            }
        },
        Some(other) => return Err(usage(other.unexpected())),
    };
    Ok(Command::Help(topic))
}

fn run(mut parser: Parser) -> Result<Command, UsageError> {
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), Topic::Run);
    let mut session = SessionArgs::default();
    let (mut scripts, mut script_args, mut jobs, mut reuse) = (Vec::new(), Vec::new(), None, false);
    let (mut tracker, mut token_file) = (TrackerChoice::Own, None);
    loop {
        if let Some(rest) = after_separator(&mut parser) {
            for arg in rest {
                script_args.push(
                    text("an argument for the scripts", arg).map_err(|m| UsageError::new(m, Topic::Run))?,
                );
            }
            break;
        }
        let Some(arg) = parser.next().map_err(usage)? else { break };
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Run)),
            Arg::Short('j') | Arg::Long("jobs") => {
                let value = parser.value().map_err(usage)?;
                jobs = Some(job_count(&value).map_err(|m| UsageError::new(m, Topic::Run))?);
            }
            Arg::Long("reuse") => reuse = true,
            Arg::Long("no-tracker") => tracker = TrackerChoice::None,
            Arg::Long("server") => {
                let url = text("--server", parser.value().map_err(usage)?);
                let url = url.and_then(server_url).map_err(|m| UsageError::new(m, Topic::Run))?;
                tracker = TrackerChoice::Server(Tracker { server: url, token_file: None });
            }
            Arg::Long("token-file") => token_file = Some(PathBuf::from(parser.value().map_err(usage)?)),
            Arg::Value(path) => scripts.push(PathBuf::from(path)),
            other => match SessionOption::of(&other) {
                Some(option) => option.take(&mut session, &mut parser, Topic::Run)?,
                None => return Err(usage(other.unexpected())),
            },
        }
    }
    if scripts.is_empty() {
        return Err(UsageError::new("which scripts? Name at least one file", Topic::Run));
    }
    match &mut tracker {
        TrackerChoice::Server(server) => server.token_file = token_file,
        _ if token_file.is_some() => {
            return Err(UsageError::new("--token-file is for the tracker that --server names", Topic::Run));
        }
        _ => {}
    }
    let jobs = jobs.unwrap_or_else(default_jobs);
    Ok(Command::Run(RunArgs { scripts, script_args, jobs, reuse, tracker, session }))
}

fn exec(mut parser: Parser) -> Result<Command, UsageError> {
    let usage = |error: lexopt::Error| UsageError::new(error.to_string(), Topic::Exec);
    let mut session = SessionArgs::default();
    let mut code = None;
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Help(Topic::Exec)),
            Arg::Value(value) if code.is_none() => {
                code = Some(text("the code", value).map_err(|m| UsageError::new(m, Topic::Exec))?);
            }
            Arg::Value(_) => {
                let message = "more than one piece of code; put quotes around the whole of it";
                return Err(UsageError::new(message, Topic::Exec));
            }
            other => match SessionOption::of(&other) {
                Some(option) => option.take(&mut session, &mut parser, Topic::Exec)?,
                None => return Err(usage(other.unexpected())),
            },
        }
    }
    let code = code.filter(|code| code != "-");
    Ok(Command::Exec(ExecArgs { code, session }))
}

impl Default for SessionArgs {
    fn default() -> SessionArgs {
        SessionArgs {
            python: PathBuf::from("python3"),
            imports: Vec::new(),
            env: Vec::new(),
            time_limit: None,
            json: false,
        }
    }
}

/// One of the options in [`SessionArgs`].
#[derive(Clone, Copy)]
enum SessionOption {
    Python,
    Import,
    Env,
    TimeLimit,
    Json,
}

impl SessionOption {
    fn of(arg: &Arg<'_>) -> Option<SessionOption> {
        match arg {
            Arg::Long("python") => Some(SessionOption::Python),
            Arg::Long("import") => Some(SessionOption::Import),
            Arg::Long("env") => Some(SessionOption::Env),
            Arg::Long("time-limit") => Some(SessionOption::TimeLimit),
            Arg::Long("json") => Some(SessionOption::Json),
            _ => None,
        }
    }

    fn take(self, session: &mut SessionArgs, parser: &mut Parser, topic: Topic) -> Result<(), UsageError> {
        let usage = |message: String| UsageError::new(message, topic);
        if let SessionOption::Json = self {
            session.json = true;
            return Ok(());
        }
        let value = parser.value().map_err(|error| usage(error.to_string()))?;
        match self {
            SessionOption::Json => {}
            SessionOption::Python => session.python = PathBuf::from(value),
            SessionOption::Import => session.imports.push(text("--import", value).map_err(usage)?),
            SessionOption::Env => session.env.push(variable(value).map_err(usage)?),
            SessionOption::TimeLimit => session.time_limit = Some(seconds(&value).map_err(usage)?),
        }
        Ok(())
    }
}

/// The arguments behind `--`, if that comes next.
pub(crate) fn after_separator(parser: &mut Parser) -> Option<Vec<OsString>> {
    let mut raw = parser.try_raw_args()?;
    raw.next_if(|arg| arg == "--")?;
    Some(raw.collect())
}

/// An address that a client can use.
fn server_url(url: String) -> Result<String, String> {
    match ClientConfig::new("run").server_url(url.as_str()).validate() {
        Ok(()) => Ok(url),
        Err(_) => Err(format!("--server {url}: an address is wanted, such as http://localhost:8000")),
    }
}

fn default_jobs() -> usize {
    available_parallelism().map_or(LEAST_JOBS, |cores| cores.get().max(LEAST_JOBS))
}

fn job_count(value: &OsString) -> Result<usize, String> {
    match value.to_str().and_then(|text| text.parse().ok()) {
        Some(0) => Err("--jobs 0: nothing could ever run; the least is 1".to_owned()),
        Some(count @ 1..=4096) => Ok(count),
        _ => Err(format!("--jobs {}: a number from 1 to 4096 is wanted", value.display())),
    }
}

fn seconds(value: &OsString) -> Result<Duration, String> {
    let limit = value.to_str().and_then(|text| text.parse().ok()).map(Duration::try_from_secs_f64);
    match limit {
        Some(Ok(limit)) if !limit.is_zero() => Ok(limit),
        _ => Err(format!(
            "--time-limit {}: a number of seconds above zero is wanted, such as 2.5",
            value.display()
        )),
    }
}

fn variable(value: OsString) -> Result<(String, String), String> {
    let value = text("--env", value)?;
    match value.split_once('=') {
        Some((name, content)) if !name.is_empty() => Ok((name.to_owned(), content.to_owned())),
        _ => Err(format!("--env {value}: NAME=VALUE is wanted")),
    }
}

fn text(what: &str, value: OsString) -> Result<String, String> {
    value.string().map_err(|_| format!("{what} is not valid UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[&str]) -> Result<Command, UsageError> {
        parse(Parser::from_args(line.iter().copied()))
    }

    fn refused(line: &[&str]) -> String {
        match parsed(line) {
            Ok(_) => panic!("{line:?} was accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn run_takes_scripts_options_and_arguments_for_the_scripts() {
        let line = [
            "run",
            "a.py",
            "-j3",
            "--time-limit=1.5",
            "--env",
            "A=b=c",
            "b.py",
            "--json",
            "--",
            "--jobs",
            "x",
        ];
        let Ok(Command::Run(args)) = parsed(&line) else { panic!("not understood") };
        assert_eq!(args.scripts, [PathBuf::from("a.py"), PathBuf::from("b.py")]);
        assert_eq!(args.script_args, ["--jobs", "x"]);
        assert_eq!((args.jobs, args.reuse), (3, false));
        assert_eq!(args.tracker, TrackerChoice::Own);
        assert_eq!(args.session.time_limit, Some(Duration::from_millis(1500)));
        assert_eq!(args.session.env, [("A".to_owned(), "b=c".to_owned())]);
        assert!(args.session.json);
    }

    #[test]
    fn the_tracker_is_chosen_by_the_last_word_about_it() {
        let chosen = |line: &[&str]| match parsed(line) {
            Ok(Command::Run(args)) => args.tracker,
            _ => panic!("{line:?} is not understood"),
        };
        let url = "http://localhost:9000".to_owned();
        let server = |token_file: Option<&str>| {
            let token_file = token_file.map(PathBuf::from);
            TrackerChoice::Server(Tracker { server: url.clone(), token_file })
        };
        assert_eq!(chosen(&["run", "a.py", "--server", &url]), server(None));
        assert_eq!(chosen(&["run", "a.py", "--token-file", "t", "--server", &url]), server(Some("t")));
        assert_eq!(chosen(&["run", "a.py", "--server", &url, "--no-tracker"]), TrackerChoice::None);
    }

    #[test]
    fn there_are_at_least_four_jobs_by_default() {
        let Ok(Command::Run(args)) = parsed(&["run", "a.py"]) else { panic!("not understood") };
        assert!(args.jobs >= LEAST_JOBS);
    }

    #[test]
    fn a_dash_and_nothing_mean_standard_input() {
        for line in [&["exec", "-"][..], &["exec"][..]] {
            let Ok(Command::Exec(args)) = parsed(line) else { panic!("not understood") };
            assert_eq!(args.code, None);
        }
        let Ok(Command::Exec(args)) = parsed(&["exec", "--", "-1"]) else { panic!("not understood") };
        assert_eq!(args.code.as_deref(), Some("-1"));
    }

    #[test]
    fn what_is_not_understood_is_named_with_a_hint() {
        for (line, named, hint) in [
            (&["run", "--wat", "a.py"][..], "--wat", "remuda help run"),
            (&["run", "a.py", "--server", "here"][..], "--server here", "remuda help run"),
            (&["run", "a.py", "--token-file", "t"][..], "--server", "remuda help run"),
            (&["run"][..], "which scripts", "remuda help run"),
            (&["run", "a.py", "--jobs", "0"][..], "--jobs 0", "remuda help run"),
            (&["run", "a.py", "--jobs", "many"][..], "--jobs many", "remuda help run"),
            (&["run", "a.py", "--jobs"][..], "--jobs", "remuda help run"),
            (&["run", "a.py", "--json=yes"][..], "--json", "remuda help run"),
            (&["exec", "1", "--time-limit", "-1"][..], "--time-limit -1", "remuda help exec"),
            (&["exec", "1", "--time-limit", "nan"][..], "--time-limit nan", "remuda help exec"),
            (&["exec", "1", "--env", "=x"][..], "--env =x", "remuda help exec"),
            (&["exec", "1", "2"][..], "more than one", "remuda help exec"),
            (&["fly"][..], "'fly'", "remuda --help"),
            (&["--wat"][..], "--wat", "remuda --help"),
            (&["help", "fly"][..], "'fly'", "remuda --help"),
            (&[][..], "command", "remuda --help"),
        ] {
            let message = refused(line);
            assert!(message.contains(named) && message.contains(hint), "{line:?}: {message}");
        }
    }
}
