//! `remuda bench`: the figures of `docs/performance.md`, measured on this machine beside floors.
//!
//! A floor is the least that the operating system and the language need for the same work, measured
//! in the same run, in turns with ours and pinned alike: ratios hold where microseconds do not.

#![expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]

mod contend;
mod floors;
mod foresight;
mod measure;
mod million;
mod pool;
mod queue;
mod report;
mod scope;
mod scripted;
mod session;
mod template;
mod tracker;

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use lexopt::{Arg, ValueExt};

use report::Row;

/// What `remuda bench --help` prints.
pub(crate) const HELP: &str = "\
Measures remuda on this machine, beside the floor of each figure in the same run.

usage: remuda bench [SUITE] [--json] [--quick] [--million] [--row NAME] [--python PATH]

  SUITE          session, pool, template, scope or tracker (default: all of them)
  --json         one JSON object per line:
                 {\"suite\",\"name\",\"unit\",\"p50\",\"p99\",\"n\",\"floor\",\"ratio\"}
  --quick        about a tenth of the time; the figures are rougher
  --million      also the rows of a tracker with a million sessions, which take two minutes and 1 GiB
                 in the directory for temporary files
  --row NAME     only this row
  --python PATH  the interpreter (default: python3)
";

type Failure = Box<dyn Error>;
type Measured = Result<Vec<Row>, Failure>;

/// One measurement; it yields the rows named.
#[derive(Clone, Copy)]
struct Bench {
    rows: &'static [(&'static str, &'static str)],
    run: fn(&Context) -> Measured,
}

/// Options that every measurement sees.
#[derive(Debug)]
struct Context {
    /// The interpreter itself: not a shim that starts it.
    python: PathBuf,
    quick: bool,
    /// The only row that is wanted, if just one is.
    row: Option<String>,
}

impl Context {
    fn wants(&self, row: &str) -> bool {
        self.row.as_ref().is_none_or(|wanted| wanted == row)
    }

    /// How often to measure: a tenth with `--quick`, never less than three times.
    fn times(&self, full: usize) -> usize {
        if self.quick { (full / 10).max(3) } else { full }
    }
}

#[derive(Debug, Default)]
struct Options {
    suite: Option<String>,
    json: bool,
    quick: bool,
    million: bool,
    row: Option<String>,
    python: Option<PathBuf>,
}

/// Runs `remuda bench` with the arguments that are left. Blocks for up to two minutes.
///
/// The exit code is 1 if a row could not be measured, 2 if nothing could; a missed target is no
/// failure.
pub(crate) fn main(mut args: lexopt::Parser) -> ExitCode {
    run(&mut args).unwrap_or_else(|error| {
        // If stderr is closed there is nobody to tell.
        let _ = writeln!(io::stderr(), "remuda: {error}");
        ExitCode::from(2)
    })
}

fn run(parser: &mut lexopt::Parser) -> Result<ExitCode, Failure> {
    let mut options = Options::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => options.json = true,
            Arg::Long("quick") => options.quick = true,
            Arg::Long("million") => options.million = true,
            Arg::Long("row") => options.row = Some(parser.value()?.string()?),
            Arg::Long("python") => options.python = Some(parser.value()?.into()),
            Arg::Long("help") | Arg::Short('h') => {
                io::stdout().write_all(HELP.as_bytes())?;
                return Ok(ExitCode::SUCCESS);
            }
            // Started by `host_killed_to_gone`: a program that is going to be killed.
            Arg::Value(value) if value == session::DOOMED => {
                session::doomed_host(&PathBuf::from(parser.value()?))?;
                return Ok(ExitCode::SUCCESS);
            }
            // Started by `idle_session_host_bytes`: a program with nothing else in its memory.
            Arg::Value(value) if value == session::SPARSE => {
                let count = parser.value()?.parse()?;
                session::sparse_host(count, &PathBuf::from(parser.value()?))?;
                return Ok(ExitCode::SUCCESS);
            }
            // Started by `parked_polls_10k_bytes`: a server whose memory is looked at.
            Arg::Value(value) if value == tracker::HOST => {
                tracker::parked_host(parser.value()?.into())?;
                return Ok(ExitCode::SUCCESS);
            }
            Arg::Value(value) if options.suite.is_none() => options.suite = Some(value.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let is_asked_for = |row: &str| options.row.as_ref().is_some_and(|wanted| wanted == row);
    let is_million = options.million
        || million::BENCHES.iter().any(|bench| bench.rows.iter().any(|row| is_asked_for(row.0)));
    let mut suites = suites().to_vec();
    suites.extend(is_million.then_some(("tracker", million::BENCHES)));
    let is_chosen = |name| options.suite.as_ref().is_none_or(|suite| suite == name);
    let chosen: Vec<_> = suites.iter().filter(|(name, _)| is_chosen(name)).collect();
    if chosen.is_empty() {
        return Err("there is no such suite; there are session, pool, template, scope and tracker".into());
    }
    let wanted = |bench: &Bench| match &options.row {
        Some(row) => bench.rows.iter().any(|(name, _)| name == row),
        None => true,
    };
    if !chosen.iter().any(|(_, benches)| benches.iter().any(wanted)) {
        let names: Vec<_> = chosen
            .iter()
            .flat_map(|(_, benches)| *benches)
            .flat_map(|bench| bench.rows)
            .map(|row| row.0)
            .collect();
        return Err(format!("no such row; there are {}", names.join(", ")).into());
    }
    let python = interpreter(options.python.as_deref().unwrap_or(Path::new("python3")))?;
    let context = Context { python, quick: options.quick, row: options.row.clone() };
    let mut complete = true;
    let mut last = "";
    for (name, benches) in chosen {
        if !options.json && std::mem::replace(&mut last, name) != *name {
            say(&format!("{name}\n{}", report::table_head()))?;
        }
        for bench in benches.iter().filter(|bench| wanted(bench)) {
            complete &= measure(name, bench, &context, &options)?;
        }
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn suites() -> [(&'static str, &'static [Bench]); 5] {
    [
        ("session", session::BENCHES),
        ("pool", pool::BENCHES),
        ("template", template::BENCHES),
        ("scope", scope::BENCHES),
        ("tracker", tracker::BENCHES),
    ]
}

/// Runs one measurement and prints its rows; false if it failed and its rows are empty.
fn measure(suite: &str, bench: &Bench, context: &Context, options: &Options) -> io::Result<bool> {
    let (rows, ok) = match (bench.run)(context) {
        Ok(rows) => (rows, true),
        Err(error) => {
            let rows = bench.rows.iter().map(|(name, unit)| Row::empty(name, unit).note(error.to_string()));
            let rows: Vec<Row> = rows.collect();
            if options.json {
                writeln!(io::stderr(), "{}: {error}", bench.rows[0].0)?;
            }
            (rows, false)
        }
    };
    for row in rows.iter().filter(|row| context.wants(row.name)) {
        say(&if options.json { report::json_line(suite, row) } else { report::table_line(suite, row) })?;
    }
    Ok(ok)
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// The path of the interpreter behind a name: a shim in front of it would count as cold start.
fn interpreter(name: &Path) -> Result<PathBuf, Failure> {
    let output = Command::new(name)
        .args(["-I", "-c", "import sys; sys.stdout.write(sys.executable)"])
        .output()
        .map_err(|error| format!("cannot run {}: {error}", name.display()))?;
    let path = String::from_utf8(output.stdout)?;
    if path.is_empty() {
        return Err(format!("{} does not say which interpreter it is", name.display()).into());
    }
    Ok(PathBuf::from(path))
}
