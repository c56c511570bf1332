//! How fast a kill arrives: among a thousand clients, under load, and in a group.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use remuda::tracker::api::{KillRequest, Whom};
use remuda::{ClientConfig, SessionClient, SessionGroup, TrackedSession, TrackerOperator};

use super::bare::Echo;
use super::load::Load;
use super::{CONNECTIONS, Tracker, together};
use crate::bench::measure::{Samples, millis};
use crate::bench::report::Row;
use crate::bench::{Context, Failure, Measured};
use crate::serve::open_all_files;

const CLIENTS: usize = 1_000;
/// Longer than any kill takes.
const LIMIT: Duration = Duration::from_secs(10);

/// A thousand clients of one process are parked; from the kill of one, through the database and the
/// wire, to its callback; then the same while 64 connections beat as fast as they can. The floor is one
/// byte to and fro between two threads over loopback.
pub(super) fn kill_to_callback(context: &Context) -> Measured {
    open_all_files();
    let tracker = Tracker::start()?;
    let mut victims = Victims::start(&tracker.url()?, SessionClient::start)?;
    let times = context.times(200);
    let (ours, floor) = victims.kill(0..times, |_| Ok(()))?;
    let quiet = Row::of("kill_to_callback_1000", "ms", &ours, Some(&floor));
    let mut beats = tracker.beats(CONNECTIONS)?;
    let mut load = Load::connect(tracker.server()?.local_addr(), &mut beats)?;
    let over = AtomicBool::new(false);
    let (measured, rate) = thread::scope(|scope| {
        let loader = scope.spawn(|| {
            let mut rates = Samples::default();
            while !over.load(Ordering::Relaxed) {
                rates.push(load.run(&mut beats, 20).map_err(|error| error.to_string())?);
            }
            Ok::<_, String>(rates.median())
        });
        let measured = victims.kill(times..2 * times, |_| Ok(()));
        over.store(true, Ordering::Relaxed);
        (measured, loader.join())
    });
    let ((ours, floor), rate) = (measured?, rate.map_err(|_| "the load panicked")??);
    let loaded = Row::of("kill_to_callback_loaded", "ms", &ours, Some(&floor));
    Ok(vec![quiet, loaded.note(format!("beside {rate:.0} beats per second"))])
}

/// The same for a thousand sessions that beat in one request. The next kill comes when the last one is
/// confirmed and the request is parked again.
pub(super) fn group_kill_to_callback(context: &Context) -> Measured {
    let tracker = Tracker::start()?;
    let url = tracker.url()?;
    let group = SessionGroup::new(&url)?;
    let mut victims = Victims::start(&url, |config| group.start(config))?;
    let operator = TrackerOperator::new(&url)?;
    let (ours, floor) = victims.kill(0..context.times(100), |kill| {
        operator.wait_for_kills(&[kill], LIMIT)?;
        // Long enough for the next request to be parked.
        thread::sleep(Duration::from_millis(50));
        Ok(())
    })?;
    Ok(vec![Row::of("group_kill_to_callback", "ms", &ours, Some(&floor))])
}

/// A thousand clients that wait to be killed.
struct Victims {
    clients: Vec<SessionClient>,
    told: Receiver<(usize, Instant)>,
    operator: TrackerOperator,
    echo: Echo,
}

impl Victims {
    fn start(
        url: &str,
        start: impl Fn(ClientConfig) -> remuda::Result<SessionClient> + Sync,
    ) -> Result<Victims, Failure> {
        let (tell, told) = mpsc::channel();
        let clients = together(CLIENTS, |number| {
            let client = start(ClientConfig::new("bench").server_url(url))?;
            watch(&client, number, tell.clone());
            Ok(client)
        })?;
        let operator = TrackerOperator::new(url)?;
        // Every one has sent its first beat and is parked.
        let parked = |row: &TrackedSession| row.last_heartbeat != row.start_time;
        while !operator.sessions()?.iter().all(parked) {
            // A poll, outside of what is measured.
            thread::sleep(Duration::from_millis(100));
        }
        Ok(Victims { clients, told, operator, echo: Echo::start()? })
    }

    /// Times of ours and the floor, in turns, for these victims of all; calls `rest` after each kill.
    fn kill(
        &mut self,
        which: std::ops::Range<usize>,
        rest: impl Fn(u64) -> Result<(), Failure>,
    ) -> Result<(Samples, Samples), Failure> {
        let (mut ours, mut floor) = (Samples::default(), Samples::default());
        for round in which {
            // 617 and 1 000 have no common factor: no victim comes twice.
            let victim = (round * 617) % CLIENTS;
            let whom = Whom::Session(self.clients[victim].id());
            let started = Instant::now();
            let killed = self.operator.kill_with(&whom, &KillRequest::default())?;
            let (who, when) = self.told.recv_timeout(LIMIT)?;
            if who != victim {
                return Err("a neighbour was killed".into());
            }
            ours.push(millis(when.saturating_duration_since(started)));
            floor.push(millis(self.echo.round_trip()?));
            let receipt = killed.and_then(|killed| killed.receipts.into_iter().next());
            rest(receipt.ok_or("a kill without a receipt")?.kill_id)?;
        }
        Ok((ours, floor))
    }
}

fn watch(client: &SessionClient, number: usize, tell: Sender<(usize, Instant)>) {
    client.on_kill(move || {
        // The other end is gone only when the measurement is over.
        let _ = tell.send((number, Instant::now()));
    });
}
