//! Our tracker beside axum: `cargo bench --bench tracker [-- --json FILE] [--quick]`.
//!
//! What is compared is the processor time of the server for a beat, over 64 connections that stay open.
//! Each server is a process of its own and gets the same load in turns within one run; between two turns
//! all of them rest for a second, in which ours writes the beats to the disk. axum stores nothing: it
//! notes each beat in a map, behind the same routes and bodies. Takes two to three minutes.

#![allow(missing_docs, reason = "a program")]
#![expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]

#[allow(dead_code, unused_imports, reason = "shared with `remuda bench`, which needs more of it")]
#[path = "../src/bin/remuda/bench/tracker/bare.rs"]
mod bare;
#[allow(dead_code, unused_imports, reason = "shared with `remuda bench`, which needs more of it")]
#[path = "../src/bin/remuda/bench/tracker/load.rs"]
mod load;
#[allow(dead_code, unused_imports, reason = "shared with `remuda bench`, which needs more of it")]
#[path = "../src/bin/remuda/bench/measure.rs"]
mod measure;
#[path = "tracker/servers.rs"]
mod servers;

use std::error::Error;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use load::{Beats, Load};
use measure::Samples;
use serde_json::json;
use servers::{Kind, SERVE, Server};

const CONNECTIONS: usize = 64;
const TURNS: usize = 7;
/// Longer than ours keeps beats in memory.
const REST: Duration = Duration::from_secs(1);

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
            SERVE => {
                let (name, directory) = args.next().zip(args.next()).ok_or("--serve NAME DIRECTORY")?;
                return Kind::serve(&name, Path::new(&directory));
            }
            // From cargo.
            "--bench" => {}
            other => return Err(format!("what is {other}?").into()),
        }
    }
    let directory = Scratch::new()?;
    let mut contestants = Kind::ALL
        .into_iter()
        .map(|kind| Contestant::start(kind, &directory.0))
        .collect::<Result<Vec<_>, _>>()?;
    let rounds = if quick { 300 } else { 3_000 };
    for _ in 0..TURNS {
        for contestant in &mut contestants {
            contestant.turn(rounds)?;
        }
    }
    let axum = contestants.iter().filter(|one| one.kind.name().starts_with("axum"));
    let axum = axum.map(|one| one.micros.median()).fold(f64::INFINITY, f64::min);
    println!("beats over {CONNECTIONS} connections: µs of the server's processor time for each");
    println!(
        "{:<28} {:>8} {:>8} {:>8} {:>10} {:>10}",
        "server", "p50", "least", "most", "p50 / axum", "beats/s"
    );
    for Contestant { kind, micros, rates, .. } in &contestants {
        let at = |q| micros.quantile(q).unwrap_or(f64::NAN);
        let (p50, rate) = (micros.median(), rates.median());
        let (name, least, most) = (kind.name(), at(0.0), at(1.0));
        println!("{name:<28} {p50:>8.2} {least:>8.2} {most:>8.2} {:>10.2} {rate:>10.0}", p50 / axum);
        if let Some(file) = &mut file {
            let figure = json!({
                "case": "heartbeat", "server": name, "unit": "µs", "n": rounds * CONNECTIONS * TURNS,
                "p50": p50, "least": least, "most": most, "rate": rate.round(),
            });
            writeln!(file, "{figure}")?;
        }
    }
    Ok(())
}

/// A server under its load.
struct Contestant {
    kind: Kind,
    server: Server,
    load: Load,
    beats: Vec<Beats>,
    /// Of processor time for each beat, one value for each turn.
    micros: Samples,
    /// Beats per second.
    rates: Samples,
}

impl Contestant {
    fn start(kind: Kind, directory: &Path) -> Result<Contestant, Failure> {
        let server = Server::start(kind, directory)?;
        let mut beats = Vec::new();
        for _ in 0..CONNECTIONS {
            beats.push(Beats::single(server.register()?.as_str(), 0));
        }
        let mut load = Load::connect(server.address, &mut beats)?;
        // Caches and branches are warm before the first turn.
        load.run(&mut beats, 50)?;
        Ok(Contestant { kind, server, load, beats, micros: Samples::default(), rates: Samples::default() })
    }

    fn turn(&mut self, rounds: usize) -> Result<(), Failure> {
        let before = self.server.micros()?;
        self.rates.push(self.load.run(&mut self.beats, rounds)?);
        // What the server does for these beats later, writing them, is in their price.
        thread::sleep(REST);
        let took = self.server.micros()? - before;
        self.micros.push(took / (rounds * CONNECTIONS) as f64);
        Ok(())
    }
}

/// A directory that is removed with all it holds.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch, Failure> {
        let path = std::env::temp_dir().join(format!("remuda-bench-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
