//! The `remuda` program: a thin user of the library.

mod args;
mod audit;
mod bench;
mod events;
mod exec;
mod help;
mod history;
mod kill;
mod lines;
mod order;
mod past_args;
mod progress;
mod protocol;
mod ps;
mod report;
mod run;
mod script;
mod serve;
mod signals;
mod table;
mod tracked;
mod tracker_args;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use args::Command;
use remuda::AccessToken;

/// The command line, a script or the interpreter cannot be used.
const UNUSABLE: u8 = 2;
/// Something did not happen in the time that was given to it.
const TIMED_OUT: u8 = 124;
/// What a shell reports for a program that wrote to a closed pipe.
const BROKEN_PIPE: u8 = 141;

fn main() -> ExitCode {
    let command = match args::parse(lexopt::Parser::from_env()) {
        Ok(command) => command,
        Err(error) => return unusable(error),
    };
    match command {
        Command::Run(args) => run::main(&args),
        Command::Exec(args) => exec::main(args),
        Command::Serve(args) => serve::main(args),
        Command::Token => say(&format!("{}\n", AccessToken::random().as_str())),
        Command::Ps(args) => ps::main(&args),
        Command::Kill(args) => kill::main(&args),
        Command::Order(args) => order::main(&args),
        Command::Cleanup(args) => ps::clean_up(&args),
        Command::History(args) => history::main(&args),
        Command::Events(args) => events::main(&args),
        Command::Audit(args) => audit::main(&args),
        Command::Bench(args) => bench::main(args),
        Command::Protocol(args) => protocol::main(args),
        Command::Help(topic) => say(topic.text()),
        Command::Version => say(concat!("remuda ", env!("CARGO_PKG_VERSION"), "\n")),
    }
}

/// Prints to stdout; a reader that has gone away is no reason to panic.
fn say(text: &str) -> ExitCode {
    match lines::write_through(&mut io::stdout().lock(), text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(BROKEN_PIPE),
    }
}

/// Tells what is wrong on stderr, before anything has started.
fn unusable(problem: impl Display) -> ExitCode {
    complain(problem);
    ExitCode::from(UNUSABLE)
}

fn complain(problem: impl Display) {
    // If stderr is closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "remuda: {problem}");
}

/// The exit status for a session or pool that could not start.
fn refused(error: &remuda::Error) -> ExitCode {
    complain(error);
    let traceback = match error {
        remuda::Error::WarmUp { traceback, .. } => traceback.trim_end(),
        _ => "",
    };
    if !traceback.is_empty() {
        let _ = writeln!(io::stderr(), "{traceback}");
    }
    match error {
        remuda::Error::Io { .. } | remuda::Error::Closed | remuda::Error::Cancelled => ExitCode::FAILURE,
        _ => ExitCode::from(UNUSABLE),
    }
}
