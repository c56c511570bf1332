//! `remuda serve`: the tracker as a program.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use remuda::{CancelToken, Tokens, TrackerServer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::SIGXFSZ;

use crate::signals::Signals;
use crate::tracker_args::ServeArgs;
use crate::{complain, refused, say, unusable};

pub(crate) fn main(args: ServeArgs) -> ExitCode {
    tell_warnings();
    open_all_files();
    if let Err(error) = survive_full_files() {
        return unusable(format!("cannot listen for signals: {error}"));
    }
    let token = CancelToken::new();
    let signals = match Signals::listen(token.clone(), || {}) {
        Ok(signals) => signals,
        Err(error) => return unusable(format!("cannot listen for signals: {error}")),
    };
    let mut builder = TrackerServer::builder();
    if let Some(listen) = args.listen {
        builder = builder.listen(listen);
    }
    if let Some(database) = args.database {
        builder = builder.database(database);
    }
    let tokens = match &args.tokens {
        Some(file) => Tokens::from_file(file).map(Some),
        None => Tokens::from_env(),
    };
    if args.tokens.is_some() && std::env::var_os("REMUDA_TOKENS").is_some() {
        complain("--tokens counts: the tokens in REMUDA_TOKENS are not taken");
    }
    match tokens {
        Ok(Some(tokens)) => builder = builder.tokens(tokens),
        Ok(None) => {}
        Err(error) => return refused(&error),
    }
    builder = builder.allowed_hosts(args.hosts);
    let database = builder.database.clone();
    let asks = match &builder.tokens {
        None => "nobody is asked for a token".to_owned(),
        Some(tokens) => format!("access tokens: {}", tokens.len()),
    };
    let server = match builder.start() {
        Ok(server) => server,
        Err(error) => return refused(&error),
    };
    // Whoever started this may have no interest in its output.
    let _ = say(&format!(
        "tracker on http://{}/, database {}, {asks}\n",
        server.local_addr(),
        database.display()
    ));
    while !token.wait_timeout(Duration::MAX) {}
    server.shutdown();
    drop(signals);
    ExitCode::SUCCESS
}

/// Every parked beat holds a file descriptor; the limit that a shell sets is often 1024, and the
/// process may raise it.
pub(crate) fn open_all_files() {
    let limit = getrlimit(Resource::Nofile);
    // If it cannot be raised, fewer connections are accepted.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// A file that may not grow any more shall make a write fail, like a full disk, and not end the tracker.
fn survive_full_files() -> io::Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map(drop)
}

/// What the library warns of goes to stderr.
fn tell_warnings() {
    static LOGGER: Stderr = Stderr;
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // If stderr is closed there is nobody to tell.
        let _ = writeln!(io::stderr(), "remuda: {}", record.args());
    }

    fn flush(&self) {}
}
