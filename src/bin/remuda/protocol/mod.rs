//! `remuda protocol check`: drives any worker program through the whole protocol, row by row.
//!
//! [`driver`] is a host of its own, without [`remuda::Session`], which would hide too much: it sends
//! any bytes and sees every frame. [`rows`] are written from docs/worker-protocol.md, [`dialect`]
//! knows what to say to a worker in its language, [`report`] tells what became of each row.

mod channels;
mod child;
mod dialect;
mod driver;
mod frames;
mod options;
mod report;
mod rows;

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use lexopt::Parser;
use remuda::CancelToken;

use crate::lines::write_through;
use crate::signals::Signals;
use crate::{BROKEN_PIPE, UNUSABLE, complain, refused, say, unusable};
use driver::Subject;
use options::Wanted;
use report::{Miss, Tally};

/// Why the other rows of a worker that never gets ready are not driven.
const DOES_NOT_START: &str = "the worker does not start";

/// What `remuda help protocol` prints.
pub(crate) const HELP: &str = "\
Drives a worker program through the whole worker protocol and reports row by row.

Usage: remuda protocol check [OPTIONS] -- PROGRAM [ARG...]
       remuda protocol check [OPTIONS] --python PATH
       remuda protocol check [OPTIONS] --node PATH

docs/worker-protocol.md is the protocol. Most rows start a process of their own; each has a deadline
and leaves no process behind. Rows about what the worker does not announce are skipped, and say so; so
are rows that need code in a language that this program does not know.

Workers run in an empty directory: name the files among their arguments by absolute paths.

Options:
      --stdio           everything on fds 0 and 1 [default for PROGRAM and node]
      --pipes           channels handed over with go [default for python]
      --python PATH     check the built-in worker for Python, run by this interpreter
      --node PATH       check the built-in worker for Node, run by this program
      --execute CODE=JSON
                        code with its value, for a language that this program does not know (it knows
                        python and node); may be repeated
      --call FUNCTION=ARGS=JSON
                        a function with its arguments (a JSON array) and its value; may be repeated
      --row TEXT        only the rows whose name contains this
      --timeout SECS    the deadline of each row [default: 10]; a worker whose host is gone gets a tenth
                        of it to take its process group along
      --json            print one JSON object per row: row, status (ok, failed, skipped), milliseconds,
                        reason, expected, found, hex (the first bytes of a broken frame)
  -h, --help            show this

Exit status: 0 if no row failed, 1 if one did, 2 if the command line or the program cannot be used,
130 after Ctrl-C, 143 after SIGTERM.
";

pub(crate) fn main(parser: Parser) -> ExitCode {
    let options = match options::parse(parser) {
        Ok(Wanted::Check(options)) => options,
        Ok(Wanted::Help) => return say(HELP),
        Err(error) => return unusable(error),
    };
    let stop = CancelToken::new();
    let signals = match Signals::listen(stop.clone(), || {}) {
        Ok(signals) => signals,
        Err(error) => return unusable(format!("cannot listen for signals: {error}")),
    };
    let mut launch = match options.runtime.launch(options.timeout) {
        Ok(launch) => launch,
        Err(error) => return refused(&error),
    };
    if let Some(channels) = options.channels {
        launch.channels = channels;
    }
    let scratch = match Scratch::create() {
        Ok(scratch) => scratch,
        Err(error) => return unusable(format!("cannot create a directory for workers: {error}")),
    };
    let subject = Subject {
        channels: launch.channels,
        launch,
        timeout: options.timeout,
        directory: scratch.0.clone(),
        stop,
        given: options.given,
    };
    let broken_pipe = check(&subject, options.row.as_deref(), options.json);
    match (signals.exit_code(), broken_pipe) {
        (Some(code), _) | (None, Err(code)) => ExitCode::from(code),
        (None, Ok(Tally { failed: 0, .. })) => ExitCode::SUCCESS,
        (None, Ok(_)) => ExitCode::FAILURE,
    }
}

/// Runs the rows, in the order of the document; an error is the exit status after one that no row
/// has to do with.
fn check(subject: &Subject, wanted: Option<&str>, as_json: bool) -> Result<Tally, u8> {
    let print =
        |text: &str| write_through(&mut io::stdout().lock(), text.as_bytes()).map_err(|_| BROKEN_PIPE);
    let mut tally = Tally::default();
    let mut rows = rows::all().collect::<Vec<_>>();
    rows.retain(|(name, _)| wanted.is_none_or(|wanted| name.contains(wanted)));
    if rows.is_empty() {
        complain(format!("no row has {:?} in its name", wanted.unwrap_or_default()));
        return Err(UNUSABLE);
    }
    // A worker that never gets ready would fail every row for one reason.
    let never_ready = match subject.start() {
        Err(Miss::NoProcess(why)) => {
            complain(why);
            return Err(UNUSABLE);
        }
        Err(Miss::Failed(_)) => true,
        Ok(_) | Err(_) => false,
    };
    for (index, (name, row)) in rows.iter().enumerate() {
        if never_ready && tally.failed > 0 && !as_json {
            print(&tally.leave_out(rows.len() - index, DOES_NOT_START))?;
            if let Some(file) = relative_file(subject) {
                print(&format!("Workers run in an empty directory: is {file} to be found from there?\n"))?;
            }
            break;
        }
        let started = Instant::now();
        let checked = match tally.failed {
            1.. if never_ready => Err(Miss::skipped(DOES_NOT_START)),
            _ => row(subject),
        };
        let stopped = matches!(checked, Err(Miss::Stopped));
        print(&tally.add(name, &checked, started.elapsed(), as_json))?;
        if stopped {
            break;
        }
    }
    if !as_json {
        print(&tally.summary())?;
    }
    Ok(tally)
}

/// An argument that names a file from here, but not from where workers run.
fn relative_file(subject: &Subject) -> Option<String> {
    let mut args = subject.launch.args.iter();
    args.find(|arg| Path::new(arg).is_relative() && Path::new(arg).is_file())
        .map(|arg| arg.to_string_lossy().into_owned())
}

/// Where workers run; removed with what they left.
struct Scratch(PathBuf);

impl Scratch {
    fn create() -> io::Result<Scratch> {
        let path = env::temp_dir().join(format!("remuda-check-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
