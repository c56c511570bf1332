//! Rows of one session: round trips, starts, interrupts, output, ends.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use remuda::{CancelToken, Outcome, Request, Runtime, Session, SessionConfig, Template};
use rustix::process::Signal;

use super::floors::{BUSY, Bare, ECHO, EVALUATE, FIRST_BYTE, FLOOD, Watched};
use super::measure::{Pinned, Samples, Size, micros, millis};
use super::report::Row;
use super::{Bench, Context, Failure, Measured};

/// The hidden argument that makes this program the host of `host_killed_to_gone`.
pub(super) const DOOMED: &str = "doomed-host";

/// The hidden argument that makes this program the host of `idle_session_host_bytes`.
pub(super) const SPARSE: &str = "sparse-host";

/// The suite, in the order of the table.
pub(super) const BENCHES: &[Bench] = &[
    Bench { rows: &[("execute_roundtrip", "µs")], run: execute_roundtrip },
    Bench { rows: &[("execute_roundtrip_cached", "µs")], run: execute_roundtrip_cached },
    Bench { rows: &[("cold_ready", "ms"), ("cold_first_answer", "ms")], run: cold },
    Bench { rows: &[("interrupt_busy_loop", "µs")], run: interrupt_busy_loop },
    Bench { rows: &[("output_100mib", "MB/s")], run: output_100mib },
    Bench { rows: &[("idle_death_to_flag", "ms")], run: idle_death_to_flag },
    Bench { rows: &[("idle_session_host_bytes", "bytes")], run: idle_session_host_bytes },
    Bench { rows: &[("host_killed_to_gone", "ms")], run: host_killed_to_gone },
    Bench { rows: &[("ignoring_code_replaced", "ms")], run: ignoring_code_replaced },
];

/// Turns of ours and the floor.
const ROUNDS: usize = 20;

fn config(context: &Context) -> SessionConfig {
    Session::builder(Runtime::python(&context.python))
}

/// A new source each time, so that both compile.
fn execute_roundtrip(context: &Context) -> Measured {
    let (mut session, mut bare, _pinned) = on_one_core(context, EVALUATE)?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    let mut answer = [0; 4096];
    for round in 0..ROUNDS {
        let sources: Vec<String> =
            (0..context.times(400)).map(|i| format!("1+{}", 1_000_000 + round * 1000 + i)).collect();
        for source in &sources {
            let started = Instant::now();
            session.execute(source)?;
            ours.push(micros(started.elapsed()));
        }
        for source in &sources {
            let started = Instant::now();
            bare.ask(source.as_bytes(), &mut answer)?;
            floor.push(micros(started.elapsed()));
        }
    }
    Ok(vec![Row::of("execute_roundtrip", "µs", &ours, Some(&floor))])
}

fn execute_roundtrip_cached(context: &Context) -> Measured {
    let (mut session, mut bare, _pinned) = on_one_core(context, ECHO)?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    let mut answer = [0; 4096];
    for _ in 0..ROUNDS {
        for _ in 0..context.times(500) {
            let started = Instant::now();
            session.execute("1+1")?;
            ours.push(micros(started.elapsed()));
        }
        for _ in 0..context.times(500) {
            let started = Instant::now();
            bare.ask(&[b'x'; 20], &mut answer)?;
            floor.push(micros(started.elapsed()));
        }
    }
    Ok(vec![Row::of("execute_roundtrip_cached", "µs", &ours, Some(&floor))])
}

/// A session and a bare loop, warmed up, on this thread's core.
fn on_one_core(context: &Context, program: &str) -> Result<(Session, Bare, Pinned), Failure> {
    let mut session = config(context).start()?;
    let mut bare = Bare::start(&context.python, program)?;
    let pinned = Pinned::here()?;
    pinned.with(session.pid())?;
    pinned.with(bare.id())?;
    for i in 0..50 {
        let source = format!("{i}");
        session.execute(&source)?;
        bare.ask(source.as_bytes(), &mut [0; 64])?;
    }
    Ok((session, bare, pinned))
}

fn cold(context: &Context) -> Measured {
    // The first session of a program asks the interpreter for its version: not part of this.
    config(context).start()?.terminate();
    let (mut ready, mut answered, mut floor) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..context.times(60) {
        let started = Instant::now();
        let mut session = config(context).start()?;
        ready.push(millis(started.elapsed()));
        session.execute("1+1")?;
        answered.push(millis(started.elapsed()));
        session.terminate();

        let started = Instant::now();
        let mut bare = Bare::start(&context.python, FIRST_BYTE)?;
        bare.read(&mut [0; 1])?;
        floor.push(millis(started.elapsed()));
    }
    Ok(vec![
        Row::of("cold_ready", "ms", &ready, Some(&floor)),
        Row::of("cold_first_answer", "ms", &answered, Some(&floor)),
    ])
}

/// From `cancel` to the result of the *next* request: an interrupt that costs the session is none.
fn interrupt_busy_loop(context: &Context) -> Measured {
    let mut session = config(context).start()?;
    let mut bare = Bare::start(&context.python, BUSY)?;
    bare.read(&mut [0; 1])?;
    bare.signal(Signal::INT)?;
    bare.read(&mut [0; 1])?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..context.times(200) {
        let token = CancelToken::new();
        let (outcome, cancelled) = thread::scope(|scope| {
            let canceller = scope.spawn(|| {
                // Long enough for the loop to be running.
                thread::sleep(Duration::from_millis(3));
                let now = Instant::now();
                token.cancel();
                now
            });
            let run = session.execute(Request::code("while True: pass").cancel_token(&token));
            (run.map(|run| run.outcome), canceller.join())
        });
        let outcome = outcome?;
        if outcome != (Outcome::Cancelled { killed: false }) {
            return Err(format!("a busy loop was not interrupted: {outcome}").into());
        }
        session.execute("1")?;
        let cancelled = cancelled.map_err(|_| "the cancelling thread panicked")?;
        ours.push(micros(cancelled.elapsed()));

        // It rests while ours is measured.
        bare.resume()?;
        bare.read(&mut [0; 1])?;
        // As long as ours gets.
        thread::sleep(Duration::from_millis(3));
        let started = Instant::now();
        bare.signal(Signal::INT)?;
        bare.read(&mut [0; 1])?;
        floor.push(micros(started.elapsed()));
    }
    Ok(vec![Row::of("interrupt_busy_loop", "µs", &ours, Some(&floor))])
}

fn output_100mib(context: &Context) -> Measured {
    const BYTES: usize = 100 << 20;
    const CODE: &str = "\
import sys
block = b'x' * (1 << 20)
for _ in range(100):
    sys.stdout.buffer.write(block)
";
    let rate = |started: Instant| BYTES as f64 / 1e6 / started.elapsed().as_secs_f64();
    let mut session = config(context).output_cap(2 * BYTES).start()?;
    let mut bare = Bare::start(&context.python, FLOOD)?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..context.times(15) {
        let started = Instant::now();
        let run = session.execute(CODE)?;
        ours.push(rate(started));
        if run.stdout.len() != BYTES {
            return Err(format!("{} bytes arrived instead of {BYTES}", run.stdout.len()).into());
        }
        drop(run);

        let started = Instant::now();
        let kept = bare.collect(BYTES)?;
        floor.push(rate(started));
        drop(kept);
    }
    Ok(vec![Row::of("output_100mib", "MB/s", &ours, Some(&floor))])
}

/// From SIGKILL by a stranger until the session says so.
fn idle_death_to_flag(context: &Context) -> Measured {
    let mut ours = Samples::default();
    for _ in 0..context.times(60) {
        let session = config(context).start()?;
        let victim = Watched::open(session.pid())?;
        let started = Instant::now();
        victim.kill();
        while session.is_alive() {
            if started.elapsed() > Duration::from_secs(5) {
                return Err("a dead session still counts as alive after 5 s".into());
            }
            thread::yield_now();
        }
        ours.push(millis(started.elapsed()));
    }
    Ok(vec![Row::of("idle_death_to_flag", "ms", &ours, None)])
}

/// In a program of its own: memory that other rows have freed would hide what sessions take.
fn idle_session_host_bytes(context: &Context) -> Measured {
    let count = context.times(80);
    let host = Command::new(std::env::current_exe()?)
        .args(["bench", SPARSE, &count.to_string()])
        .arg(&context.python)
        .stderr(Stdio::inherit())
        .output()?;
    let answer = String::from_utf8(host.stdout)?;
    let numbers: Vec<f64> = answer.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [bytes, threads] = numbers[..] else { return Err(format!("the host said {answer:?}").into()) };
    let grown = Size { bytes, threads };
    Ok(vec![Row::figure("idle_session_host_bytes", "bytes", bytes, count).note(grown.threads_note())])
}

/// Sessions before those that are measured: they bring what stays for all (watchdog, reaper) and take
/// the memory that the very first start has freed again.
const FIRST: usize = 40;

/// Starts and uses `count` sessions; prints the private memory of each and the threads of all.
///
/// # Errors
/// If a session cannot start.
pub(super) fn sparse_host(count: usize, python: &Path) -> Result<(), Failure> {
    let config = Session::builder(Runtime::python(python));
    let mut sessions = Vec::with_capacity(FIRST + count);
    let mut start = |count| -> Result<(), Failure> {
        for _ in 0..count {
            let mut session = config.start()?;
            session.execute("print('used'); 1+1")?;
            sessions.push(session);
        }
        Ok(())
    };
    start(FIRST)?;
    let before = Size::of(std::process::id())?;
    start(count)?;
    let after = Size::of(std::process::id())?;
    let mut out = std::io::stdout();
    let bytes = (after.bytes - before.bytes) / count as f64;
    Ok(writeln!(out, "{bytes} {}", after.threads - before.threads)?)
}

/// This program again, as a host that is killed while its session is busy and has a child.
fn host_killed_to_gone(context: &Context) -> Measured {
    let mut ours = Samples::default();
    for _ in 0..context.times(20) {
        let mut host = Command::new(std::env::current_exe()?)
            .args(["bench", DOOMED])
            .arg(&context.python)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = host.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let pids: Vec<u32> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [worker, child] = pids[..] else { return Err(format!("the host said {line:?}").into()) };
        let gone = [Watched::open(worker)?, Watched::open(child)?];
        let started = Instant::now();
        host.kill()?;
        let waited = gone.iter().try_for_each(Watched::wait);
        ours.push(millis(started.elapsed()));
        host.wait()?;
        if let Err(error) = waited {
            gone.iter().for_each(Watched::kill);
            return Err(format!("a worker outlived its host: {error}").into());
        }
    }
    Ok(vec![Row::of("host_killed_to_gone", "ms", &ours, None)])
}

/// Starts a session that is busy for ever, with a child of its own, and tells their pids.
///
/// # Errors
/// If the session cannot start or its code ends.
pub(super) fn doomed_host(python: &Path) -> Result<(), Failure> {
    const CODE: &str = "\
import os, subprocess
child = subprocess.Popen(['sleep', '60'])
print(os.getpid(), child.pid, flush=True)
while True:
    pass
";
    let mut session = Session::builder(Runtime::python(python)).start()?;
    let mut out = std::io::stdout();
    // Bounded, in case nobody kills this host.
    let request = Request::code(CODE).time_limit(Duration::from_secs(30)).on_output(move |_, bytes| {
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    });
    Err(format!("it was not killed: {}", session.execute(request)?.outcome).into())
}

/// From the end of the grace to a fresh session, when code cannot be interrupted.
fn ignoring_code_replaced(context: &Context) -> Measured {
    const LIMIT: Duration = Duration::from_millis(20);
    let template = Template::start(&config(context).grace(LIMIT))?;
    let mut session = template.session()?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..context.times(40) {
        let started = Instant::now();
        // One call into C: Python looks at signals only after it.
        let run = session.execute(Request::code("sum(range(10**12))").time_limit(LIMIT))?;
        if !matches!(run.outcome, Outcome::TimedOut { killed: true, .. }) {
            return Err(format!("code that cannot be interrupted was not killed: {}", run.outcome).into());
        }
        session.restart()?;
        ours.push(millis(started.elapsed().saturating_sub(2 * LIMIT)));

        let mut bare = Bare::start(&context.python, BUSY)?;
        bare.read(&mut [0; 1])?;
        let watched = Watched::open(bare.id())?;
        let started = Instant::now();
        watched.kill();
        watched.wait()?;
        floor.push(millis(started.elapsed()));
    }
    let made = template.info();
    if made.cold_starts > 0 {
        return Err(format!("sessions started cold: {made:?}").into());
    }
    Ok(vec![Row::of("ignoring_code_replaced", "ms", &ours, Some(&floor))])
}
