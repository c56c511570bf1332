//! Rows of the tracker: how many beats a server takes, what parked ones cost it, how fast a kill arrives.

mod bare;
mod kills;
mod load;
mod parked;

use std::fs;
use std::path::PathBuf;
use std::thread;

use remuda::{TrackedId, TrackerServer};

use self::bare::BareServer;
use self::load::{Beats, Load};
use super::measure::Samples;
use super::report::Row;
use super::{Bench, Context, Failure, Measured};

pub(super) use parked::{HOST, parked_host};

/// The suite, in the order of the table.
pub(super) const BENCHES: &[Bench] = &[
    Bench {
        rows: &[("kill_to_callback_1000", "ms"), ("kill_to_callback_loaded", "ms")],
        run: kills::kill_to_callback,
    },
    Bench { rows: &[("group_kill_to_callback", "ms")], run: kills::group_kill_to_callback },
    Bench { rows: &[("heartbeats", "/s")], run: heartbeats },
    Bench { rows: &[("batch_heartbeats_100", "/s")], run: batches_of_100 },
    Bench { rows: &[("batch_heartbeats_1000", "/s")], run: batches_of_1000 },
    Bench { rows: &[("parked_polls_10k_bytes", "bytes")], run: parked::parked_polls },
];

/// Connections of the load; one thread serves them all.
const CONNECTIONS: usize = 64;

/// The name of a database.
const DATABASE: &str = "bench.db";

/// A server with its database on the disk, which is removed at the end.
struct Tracker {
    server: Option<TrackerServer>,
    directory: PathBuf,
}

impl Tracker {
    fn start() -> Result<Tracker, Failure> {
        let directory = std::env::temp_dir().join(format!("remuda-bench-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let database = directory.join(DATABASE);
        let builder = TrackerServer::builder().listen("127.0.0.1:0").database(database);
        let server = builder.start().inspect_err(|_| drop(fs::remove_dir_all(&directory)))?;
        Ok(Tracker { server: Some(server), directory })
    }

    fn server(&self) -> Result<&TrackerServer, Failure> {
        self.server.as_ref().ok_or_else(|| "the tracker has ended".into())
    }

    /// Ends the server; its database stays as long as this lives.
    fn stop(&mut self) -> PathBuf {
        self.server = None;
        self.directory.join(DATABASE)
    }

    fn url(&self) -> Result<String, Failure> {
        Ok(format!("http://{}", self.server()?.local_addr()))
    }

    /// So many sessions, and the requests with their beats.
    fn beats(&self, count: usize) -> Result<Vec<Beats>, Failure> {
        let ids = create_sessions(self.server()?, count)?;
        Ok(ids.iter().map(|id| Beats::single(id.as_str(), 0)).collect())
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.server = None;
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn create_sessions(server: &TrackerServer, count: usize) -> Result<Vec<TrackedId>, Failure> {
    together(count, |_| server.store().create_session("bench", None))
}

/// What `make` makes for each number below `count`. Many threads ask at the same time, so that the server
/// writes what many of them want at once.
fn together<T: Send>(
    count: usize,
    make: impl Fn(usize) -> remuda::Result<T> + Sync,
) -> Result<Vec<T>, Failure> {
    const THREADS: usize = 50;
    let numbers: Vec<usize> = (0..count).collect();
    let make = |numbers: &[usize]| numbers.iter().map(|number| make(*number)).collect::<remuda::Result<_>>();
    let parts: Vec<Vec<T>> = thread::scope(|scope| {
        let threads: Vec<_> =
            numbers.chunks(count.div_ceil(THREADS)).map(|part| scope.spawn(|| make(part))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().map_err(|_| "a thread panicked");
        threads.into_iter().map(|thread| Ok::<_, Failure>(join(thread)??)).collect::<Result<_, _>>()
    })?;
    Ok(parts.into_iter().flatten().collect())
}

/// Beats per second over 64 connections, written to the database within a second. The floor is the
/// same load on a loop of mio and httparse that answers without looking.
fn heartbeats(context: &Context) -> Measured {
    let tracker = Tracker::start()?;
    let beats = tracker.beats(CONNECTIONS)?;
    let bare = BareServer::start(r#"{"kill_requested":false}"#)?;
    Ok(vec![compare("heartbeats", &tracker, &bare, beats, context.times(2_000))?])
}

fn batches_of_100(context: &Context) -> Measured {
    Ok(vec![batches("batch_heartbeats_100", 100, context.times(200))?])
}

fn batches_of_1000(context: &Context) -> Measured {
    Ok(vec![batches("batch_heartbeats_1000", 1_000, context.times(20))?])
}

/// Beats per second in requests with `size` of them, on eight connections. The floor reads the same
/// requests.
fn batches(name: &'static str, size: usize, rounds: usize) -> Result<Row, Failure> {
    let tracker = Tracker::start()?;
    let ids = create_sessions(tracker.server()?, 8 * size)?;
    let beats = ids.chunks(size).map(|ids| Beats::batch(ids.iter().map(TrackedId::as_str))).collect();
    compare(name, &tracker, &BareServer::start(r#"{"answers":[]}"#)?, beats, rounds)
}

/// Five turns of ours and the floor with the same requests; beats per second.
fn compare(
    name: &'static str,
    tracker: &Tracker,
    bare: &BareServer,
    mut beats: Vec<Beats>,
    rounds: usize,
) -> Result<Row, Failure> {
    let server = tracker.server()?;
    let mut of_server = Load::connect(server.local_addr(), &mut beats)?;
    let mut of_floor = Load::connect(bare.address, &mut beats)?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    let size = beats.iter().map(Beats::len).sum::<usize>() / beats.len();
    for _ in 0..5 {
        ours.push(of_server.run(&mut beats, rounds)? * size as f64);
        check_arrived(server, &beats)?;
        floor.push(of_floor.run(&mut beats, rounds)? * size as f64);
    }
    let mut row = Row::of(name, "/s", &ours, Some(&floor));
    row.p99 = None;
    row.n = rounds * beats.len() * size * 5;
    Ok(row)
}

/// Whether the last beat of each session is what the server knows of it.
fn check_arrived(server: &TrackerServer, beats: &[Beats]) -> Result<(), Failure> {
    let told: Vec<u64> = beats.iter().map(Beats::last_memory).collect();
    let rows = server.store().get_all_sessions()?;
    if rows.iter().all(|row| row.memory_bytes.is_some_and(|memory| told.contains(&memory))) {
        return Ok(());
    }
    Err("the server does not know the last beat of each session".into())
}
