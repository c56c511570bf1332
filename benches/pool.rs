//! Our pool beside other pools and floors: `cargo bench --bench pool [-- --json FILE] [--quick]`.
//!
//! Ours hands out processes that do nothing, the peers hand out numbers: what is compared is the
//! pool, not the resource. Everything is created beforehand and measured in turns within one run. The
//! cases are those of `research/pool-peers.md` and the load that `docs/plots/` draws. Takes three minutes.

#![allow(missing_docs, reason = "a program")]
#![expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]

#[allow(dead_code, unused_imports, reason = "shared with `remuda bench`, which needs more of it")]
#[path = "../src/bin/remuda/bench/contend.rs"]
mod contend;
#[allow(dead_code, unused_imports, reason = "shared with `remuda bench`, which needs more of it")]
#[path = "../src/bin/remuda/bench/measure.rs"]
mod measure;
#[path = "pool/peers.rs"]
mod peers;
#[allow(dead_code, unused_imports, reason = "shared with `remuda bench`, which needs more of it")]
#[path = "../src/bin/remuda/bench/queue.rs"]
mod queue;
#[path = "../src/bin/remuda/bench/scripted.rs"]
mod scripted;

use std::error::Error;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use contend::Contended;
use measure::Samples;
use peers::{Case, Contestant, contestants};
use serde_json::{Value, json};

const SESSIONS: usize = 8;
const HOLD: Duration = Duration::from_micros(50);
/// Threads of the load that is drawn.
const LOAD: [usize; 10] = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64];

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let (mut quick, mut file) = (false, None);
    while let Some(argument) = args.next() {
        match argument.as_str() {
            // `cargo test --benches` only wants to know that it starts.
            "--test" => return Ok(()),
            "--quick" => quick = true,
            "--json" => file = Some(File::create(args.next().ok_or("--json FILE")?)?),
            // From cargo.
            "--bench" => {}
            other => return Err(format!("what is {other}?").into()),
        }
    }
    let mut figures = Vec::new();
    alone(quick, &mut figures)?;
    contended(quick, &mut figures)?;
    handoff(quick, &mut figures)?;
    overshoot(quick, &mut figures)?;
    give_ups(&mut figures)?;
    load(quick, &mut figures)?;
    if let Some(mut file) = file {
        for figure in figures {
            writeln!(file, "{figure}")?;
        }
    }
    Ok(())
}

fn times(quick: bool, full: usize) -> usize {
    if quick { full.div_ceil(10) } else { full }
}

/// Quantiles in the unit of the case.
fn figure(case: &str, pool: &str, threads: usize, unit: &str, samples: &Samples) -> Value {
    let at = |q| samples.quantile(q).map(|value| (value * 1000.0).round() / 1000.0);
    json!({
        "case": case, "pool": pool, "threads": threads, "unit": unit, "n": samples.len(), "p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": at(1.0),
    })
}

fn number(figure: &Value, key: &str) -> f64 {
    figure[key].as_f64().unwrap_or(f64::NAN)
}

/// A case with samples of one kind: all contestants in turns, as a table.
fn turns(
    case: &str,
    title: &str,
    unit: &str,
    rounds: usize,
    contestants: &[Contestant],
    what: Case,
    figures: &mut Vec<Value>,
) {
    let mut samples = vec![Samples::default(); contestants.len()];
    for _ in 0..rounds {
        for (contestant, samples) in contestants.iter().zip(&mut samples) {
            samples.append((contestant.run)(what).waits);
        }
    }
    println!("\n{title}\n{:<28} {:>10} {:>10} {:>12}", "pool", "p50", "p99", "p50 / r2d2");
    let peer = contestants.iter().position(|contestant| contestant.name.starts_with("r2d2"));
    let peer = peer.map_or(f64::NAN, |peer| samples[peer].median());
    for (contestant, samples) in contestants.iter().zip(&samples) {
        let figure = figure(case, contestant.name, 1, unit, samples);
        let (p50, p99) = (number(&figure, "p50"), number(&figure, "p99"));
        println!("{:<28} {p50:>10.1} {p99:>10.1} {:>12.2}", contestant.name, p50 / peer);
        figures.push(figure);
    }
}

fn alone(quick: bool, figures: &mut Vec<Value>) -> Result<(), Failure> {
    let pinned = measure::Pinned::here()?;
    let all = contestants(1)?;
    let title = "acquire and release, one thread, nobody waits: ns";
    turns("alone", title, "ns", times(quick, 60), &all, Case::Alone, figures);
    drop(pinned);
    Ok(())
}

fn handoff(quick: bool, figures: &mut Vec<Value>) -> Result<(), Failure> {
    let title = "hand-off to a sleeping waiter: µs";
    turns("handoff", title, "µs", times(quick, 40), &contestants(1)?, Case::Handoff, figures);
    Ok(())
}

fn overshoot(quick: bool, figures: &mut Vec<Value>) -> Result<(), Failure> {
    let title = "beyond a time limit of 10 ms: µs";
    let all: Vec<_> = contestants(1)?.into_iter().filter(|contestant| contestant.has_limits).collect();
    turns("overshoot", title, "µs", times(quick, 30), &all, Case::Overshoot, figures);
    Ok(())
}

fn contended(quick: bool, figures: &mut Vec<Value>) -> Result<(), Failure> {
    const THREADS: usize = 16;
    let (time, rounds) = (Duration::from_millis(if quick { 200 } else { 1000 }), times(quick, 5));
    let all = contestants(SESSIONS)?;
    let mut results: Vec<Vec<Contended>> = all.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (contestant, results) in all.iter().zip(&mut results) {
            results.push((contestant.run)(Case::Contended { threads: THREADS, hold: HOLD, time }));
        }
    }
    println!("\n16 threads on 8, each held for 50 µs: time in acquire, µs");
    println!(
        "{:<28} {:>9} {:>9} {:>9} {:>9} {:>10} {:>8}",
        "pool", "ops/s", "p50", "p99", "p99.9", "max", "max/min"
    );
    for (contestant, rounds) in all.iter().zip(results) {
        let unfairness = rounds.iter().map(|round| round.unfairness).collect::<Samples>().median();
        let waits = rounds.iter().fold(Samples::default(), |mut all, round| {
            all.append(round.waits.clone());
            all
        });
        let rate = waits.len() as f64 / (time.as_secs_f64() * rounds.len() as f64);
        let mut figure = figure("contended", contestant.name, THREADS, "µs", &waits);
        figure["rate"] = rate.round().into();
        figure["max_over_min"] = ((unfairness * 1000.0).round() / 1000.0).into();
        let of = |key| number(&figure, key);
        println!(
            "{:<28} {rate:>9.0} {:>9.1} {:>9.1} {:>9.1} {:>10.1} {unfairness:>8.2}",
            contestant.name,
            of("p50"),
            of("p99"),
            of("p999"),
            of("max")
        );
        figures.push(figure);
    }
    Ok(())
}

/// Sixteen threads, half of them giving up after 30 µs: how many are out at most, how many come back.
fn give_ups(figures: &mut Vec<Value>) -> Result<(), Failure> {
    println!("\nhalf of 16 threads give up after 30 µs: out at most, and back at the end, of {SESSIONS}");
    for contestant in contestants(SESSIONS)?.iter().filter(|contestant| contestant.has_limits) {
        let (out, back) = (contestant.give_ups)();
        println!("{:<28} {out:>3} {back:>3}", contestant.name);
        figures.push(json!({ "case": "give_ups", "pool": contestant.name, "most_out": out, "back": back }));
    }
    Ok(())
}

/// Waiting over the number of threads, for `docs/plots/draw.py`.
fn load(quick: bool, figures: &mut Vec<Value>) -> Result<(), Failure> {
    let time = Duration::from_millis(if quick { 100 } else { 300 });
    let all = contestants(SESSIONS)?;
    println!("\np99 of the wait in µs by number of threads on 8, each held for 50 µs");
    println!("{:<28} {}", "pool", LOAD.map(|threads| format!("{threads:>7}")).concat());
    let mut rows: Vec<String> = all.iter().map(|contestant| format!("{:<28} ", contestant.name)).collect();
    for threads in LOAD {
        let mut samples = vec![Samples::default(); all.len()];
        for _ in 0..3 {
            for (contestant, samples) in all.iter().zip(&mut samples) {
                samples.append((contestant.run)(Case::Contended { threads, hold: HOLD, time }).waits);
            }
        }
        for ((contestant, samples), row) in all.iter().zip(&samples).zip(&mut rows) {
            let figure = figure("load", contestant.name, threads, "µs", samples);
            let _ = write!(row, "{:>7.0}", number(&figure, "p99"));
            figures.push(figure);
        }
    }
    println!("{}", rows.join("\n"));
    Ok(())
}
