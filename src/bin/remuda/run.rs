//! `remuda run`: scripts in a pool of warm sessions.

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use remuda::{
    CancelToken, Error, Execution, PoolConfig, PooledSession, Request, Reuse, Scope, SessionPool, Stream,
};

use crate::args::RunArgs;
use crate::exec::{LEAVE, session_config};
use crate::lines::Lines;
use crate::progress::{Board, Progress, Screen};
use crate::report::{self, End};
use crate::script::{self, Script};
use crate::signals::Signals;
use crate::tracked::{Asked, Tracked};
use crate::{BROKEN_PIPE, complain, refused, unusable};

pub(crate) fn main(args: &RunArgs) -> ExitCode {
    let scripts = match script::load(&args.scripts) {
        Ok(scripts) => scripts,
        Err(problems) => return unusable(problems.join("\nremuda: ")),
    };
    let token = CancelToken::new();
    let started: Arc<OnceLock<SessionPool>> = Arc::default();
    let to_kill = Arc::clone(&started);
    let kill = move || {
        if let Some(pool) = to_kill.get() {
            pool.terminate();
        }
    };
    let signals = match Signals::listen(token.clone(), kill) {
        Ok(signals) => signals,
        Err(error) => return unusable(format!("cannot listen for signals: {error}")),
    };
    let pool = match pool_config(args, scripts.len()).start() {
        Ok(pool) => started.get_or_init(|| pool),
        Err(error) => return refused(&error),
    };

    let labels: Vec<_> = scripts.iter().map(|script| script.label.as_str()).collect();
    let screen = Arc::new(Screen::new(&token));
    let tracked = Tracked::start(&args.tracker, &labels, pool, &token, &screen);
    let run = Run::new(args, &scripts, &token, screen);
    let began = Instant::now();
    run.all(pool, tracked.as_ref());
    let took = began.elapsed();
    if token.is_cancelled() {
        pool.terminate();
    } else {
        pool.shutdown(LEAVE);
    }
    match tracked.map(Tracked::end) {
        Some(Asked::Stop) => complain("stopped by somebody at the tracker"),
        Some(Asked::Drain) if run.ended() < scripts.len() => {
            let left = scripts.len() - run.ended();
            complain(format!("drained by somebody at the tracker: {left} of {} did not run", scripts.len()));
        }
        _ => {}
    }
    run.conclude(took, &signals)
}

/// As many sessions as can be of use; each script in a new process unless the user wants otherwise.
fn pool_config(args: &RunArgs, scripts: usize) -> PoolConfig {
    let sessions = args.jobs.min(scripts);
    PoolConfig::of(session_config(&args.session))
        .min_idle(sessions)
        .max_sessions(sessions)
        .max_concurrent_starts(sessions)
        .recycle_after_executions(None)
        .reuse(if args.reuse { Reuse::Reset } else { Reuse::Fresh })
}

/// One run of all scripts, shared by the threads that drive the sessions.
struct Run<'a> {
    args: &'a RunArgs,
    scripts: &'a [Script],
    token: &'a CancelToken,
    screen: Arc<Screen>,
    board: Board,
    /// Index of the next script that nobody has taken.
    next: AtomicUsize,
    /// `None` until it is known, and has been printed if JSON is wanted.
    ends: Mutex<Vec<Option<End>>>,
}

impl<'a> Run<'a> {
    fn new(args: &'a RunArgs, scripts: &'a [Script], token: &'a CancelToken, screen: Arc<Screen>) -> Run<'a> {
        let ends = scripts.iter().map(|_| None).collect();
        Run {
            args,
            scripts,
            token,
            screen,
            board: Board::new(scripts.len()),
            next: AtomicUsize::new(0),
            ends: Mutex::new(ends),
        }
    }

    /// Runs every script; returns when all have ended, early if the token is cancelled or the run is
    /// drained.
    fn all(&self, pool: &SessionPool, tracked: Option<&Tracked>) {
        let scope = pool.scope(self.token);
        thread::scope(|threads| {
            let progress = Progress::start(threads, &self.screen, &self.board);
            let drivers: Vec<_> = (0..self.args.jobs.min(self.scripts.len()))
                .map(|_| threads.spawn(|| self.drive(&scope, tracked)))
                .collect();
            for driver in drivers {
                if driver.join().is_err() {
                    complain("a thread that drives a session has panicked; this is a bug in remuda");
                }
            }
            drop(progress);
        });
    }

    /// Takes script after script until none is left or the run is stopped or drained. The session comes
    /// first: whoever has to wait for it, because the run is paused, has taken no script.
    fn drive(&self, scope: &Scope, tracked: Option<&Tracked>) {
        let is_leaving = || self.token.is_cancelled() || tracked.is_some_and(Tracked::is_draining);
        while self.next.load(Ordering::Relaxed) < self.scripts.len() && !is_leaving() {
            let session = scope.acquire();
            if is_leaving() {
                return;
            }
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(script) = self.scripts.get(index) else { return };
            let end = End::of(session.and_then(|session| self.one(session, index, script)));
            self.board.ended(index);
            self.print_json(script, &end);
            self.ends.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(end);
            if let Some(tracked) = tracked {
                tracked.progress(self.ended(), self.scripts.len());
            }
        }
    }

    /// Runs one script in a session of its own and shows what it writes.
    fn one(&self, mut session: PooledSession, index: usize, script: &Script) -> Result<Execution, Error> {
        self.board.started(index, &script.label);
        let request = Request::script(&script.source, &script.file, self.args.script_args.iter().cloned())
            .measure(true);
        if self.args.session.json {
            return session.execute(request);
        }
        let mut output = Output::new(self, script);
        let result =
            session.execute(request.output_cap(0).on_output(|stream, bytes| output.push(stream, bytes)));
        output.finish();
        if let Ok(execution) = &result {
            let complaint = report::complaint(execution);
            output.push(Stream::Stderr, complaint.unwrap_or_default().as_bytes());
        }
        result
    }

    fn print_json(&self, script: &Script, end: &End) {
        if self.args.session.json {
            let line = format!("{}\n", report::json(Some(&script.file), end));
            self.screen.write(Stream::Stdout, line.as_bytes());
        }
    }

    /// How many scripts have ended.
    fn ended(&self) -> usize {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).iter().flatten().count()
    }

    /// Prints the table and finds the exit status.
    fn conclude(&self, took: Duration, signals: &Signals) -> ExitCode {
        let ends = std::mem::take(&mut *self.ends.lock().unwrap_or_else(PoisonError::into_inner));
        let ends: Vec<End> = ends
            .into_iter()
            .zip(self.scripts)
            .map(|(end, script)| {
                // Whoever reads the objects finds every script among them.
                end.unwrap_or_else(|| {
                    self.print_json(script, &End::NotStarted);
                    End::NotStarted
                })
            })
            .collect();
        if !self.args.session.json {
            let rows = self.scripts.iter().map(|script| script.label.as_str()).zip(ends.iter());
            self.screen.write(Stream::Stdout, format!("\n{}", report::table(rows, took)).as_bytes());
        }
        match signals.exit_code() {
            Some(code) => ExitCode::from(code),
            None if self.screen.is_broken() => ExitCode::from(BROKEN_PIPE),
            None if ends.iter().all(End::succeeded) => ExitCode::SUCCESS,
            None => ExitCode::FAILURE,
        }
    }
}

/// The output of one script on its way to the screen.
struct Output<'a> {
    screen: &'a Screen,
    streams: [Lines; 2],
    ready: Vec<u8>,
}

impl<'a> Output<'a> {
    fn new(run: &'a Run<'_>, script: &Script) -> Output<'a> {
        let width = run.scripts.iter().map(|script| script.label.chars().count()).max().unwrap_or(0);
        let prefix = format!("{:<width$} | ", script.label);
        Output {
            screen: &run.screen,
            streams: [Lines::new(prefix.clone()), Lines::new(prefix)],
            ready: Vec::new(),
        }
    }

    fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let lines = match stream {
            Stream::Stdout => &mut self.streams[0],
            Stream::Stderr => &mut self.streams[1],
        };
        lines.push(bytes, &mut self.ready);
        self.screen.write(stream, &self.ready);
        self.ready.clear();
    }

    /// The last lines, if they have no end.
    fn finish(&mut self) {
        for (lines, stream) in self.streams.iter_mut().zip([Stream::Stdout, Stream::Stderr]) {
            lines.finish(&mut self.ready);
            self.screen.write(stream, &self.ready);
            self.ready.clear();
        }
    }
}
