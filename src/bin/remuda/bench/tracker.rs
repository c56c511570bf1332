//! Rows of the tracker: how fast a kill arrives among a thousand, and how many beats a server takes.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token, Waker};
use remuda::{SessionClient, TrackerOperator, TrackerServer};

use super::measure::{Samples, millis};
use super::report::Row;
use super::{Bench, Context, Failure, Measured};
use crate::serve::open_all_files;

/// The suite, in the order of the table.
pub(super) const BENCHES: &[Bench] = &[
    Bench { rows: &[("kill_to_callback_1000", "ms")], run: kill_to_callback },
    Bench { rows: &[("heartbeats", "/s")], run: heartbeats },
];

const CLIENTS: usize = 1_000;
/// Connections of the load; one thread serves them all.
const CONNECTIONS: usize = 64;

/// A server with its database on the disk, which is removed at the end.
struct Tracker {
    server: Option<TrackerServer>,
    directory: PathBuf,
}

impl Tracker {
    fn start() -> Result<Tracker, Failure> {
        let directory = std::env::temp_dir().join(format!("remuda-bench-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let builder = TrackerServer::builder().listen("127.0.0.1:0").database(directory.join("bench.db"));
        let server = builder.start().inspect_err(|_| drop(fs::remove_dir_all(&directory)))?;
        Ok(Tracker { server: Some(server), directory })
    }

    fn server(&self) -> Result<&TrackerServer, Failure> {
        self.server.as_ref().ok_or_else(|| "the tracker has ended".into())
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.server = None;
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A thousand clients of one process are parked; from the kill of one, through the database and the
/// wire, to its callback. The floor is one byte to and fro between two threads over loopback.
fn kill_to_callback(context: &Context) -> Measured {
    open_all_files();
    let tracker = Tracker::start()?;
    let url = format!("http://{}", tracker.server()?.local_addr());
    let operator = TrackerOperator::new(&url)?;
    let (tell, told) = mpsc::channel();
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let client = SessionClient::builder("bench").server_url(&url).start()?;
        let tell = tell.clone();
        client.on_kill(move || {
            // The other end is gone only when the measurement is over.
            let _ = tell.send((number, Instant::now()));
        });
        clients.push(client);
    }
    // Every one has sent its first beat and is parked.
    let parked = |row: &remuda::TrackedSession| row.last_heartbeat != row.start_time;
    while !operator.sessions()?.iter().all(parked) {
        // A poll, outside of what is measured.
        thread::sleep(Duration::from_millis(100));
    }
    let mut echo = Echo::start()?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for round in 0..context.times(200) {
        // 617 and 1 000 have no common factor: no victim comes twice.
        let victim = (round * 617) % CLIENTS;
        let started = Instant::now();
        operator.kill(&clients[victim].id())?;
        let (who, when) = told.recv_timeout(Duration::from_secs(10))?;
        if who != victim {
            return Err("a neighbour was killed".into());
        }
        ours.push(millis(when.saturating_duration_since(started)));
        floor.push(millis(echo.round_trip()?));
    }
    Ok(vec![Row::of("kill_to_callback_1000", "ms", &ours, Some(&floor))])
}

/// Beats per second over 64 connections, written to the database within a second. The floor is the
/// same load on a loop of mio and httparse that answers without looking.
fn heartbeats(context: &Context) -> Measured {
    let tracker = Tracker::start()?;
    let server = tracker.server()?;
    let ids = (0..CONNECTIONS).map(|_| server.store().create_session("bench", None));
    let requests: Vec<Vec<u8>> = ids
        .map(|id| {
            let id = id?;
            Ok(format!(
                "POST /sessions/{id}/heartbeat HTTP/1.1\r\nHost: localhost:8000\r\nContent-Length: 2\r\n\
                 Content-Type: application/json\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n{{}}"
            )
            .into_bytes())
        })
        .collect::<remuda::Result<_>>()?;
    let bare = BareServer::start()?;
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    let rounds = context.times(2_000);
    for _ in 0..5 {
        ours.push(load(server.local_addr(), &requests, rounds)?);
        floor.push(load(bare.address, &requests, rounds)?);
    }
    let mut row = Row::of("heartbeats", "/s", &ours, Some(&floor));
    row.p99 = None;
    row.n = rounds * CONNECTIONS * 5;
    Ok(vec![row])
}

/// Sends one request on every connection, reads all answers, and so on; requests per second.
fn load(address: SocketAddr, requests: &[Vec<u8>], rounds: usize) -> Result<f64, Failure> {
    let mut connections = Vec::new();
    for request in requests {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(request)?;
        // The first answer tells how long an answer is.
        let length = stream.read(&mut [0; 4096])?;
        connections.push((stream, request, vec![0; length]));
    }
    let started = Instant::now();
    for _ in 0..rounds {
        for (stream, request, _) in &mut connections {
            stream.write_all(request)?;
        }
        for (stream, _, answer) in &mut connections {
            stream.read_exact(answer)?;
        }
    }
    Ok((rounds * requests.len()) as f64 / started.elapsed().as_secs_f64())
}

/// A thread that sends back what it gets.
struct Echo {
    stream: TcpStream,
    thread: Option<thread::JoinHandle<()>>,
}

impl Echo {
    fn start() -> io::Result<Echo> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        stream.set_nodelay(true)?;
        let (mut other, _) = listener.accept()?;
        other.set_nodelay(true)?;
        let thread = thread::Builder::new().name("echo".to_owned()).spawn(move || {
            let mut byte = [0];
            while other.read_exact(&mut byte).and_then(|()| other.write_all(&byte)).is_ok() {}
        })?;
        Ok(Echo { stream, thread: Some(thread) })
    }

    fn round_trip(&mut self) -> io::Result<Duration> {
        let started = Instant::now();
        self.stream.write_all(&[1])?;
        self.stream.read_exact(&mut [0])?;
        Ok(started.elapsed())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The least that a server on mio and httparse does.
struct BareServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
    thread: Option<thread::JoinHandle<()>>,
}

const BARE_ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 24\r\n\r\n{\"kill_requested\":false}";
const LISTENER: Token = Token(usize::MAX - 1);
const WAKER: Token = Token(usize::MAX - 2);

impl BareServer {
    fn start() -> io::Result<BareServer> {
        let poll = Poll::new()?;
        let mut listener = mio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = listener.local_addr()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = thread::Builder::new().name("bare-server".to_owned()).spawn(move || {
            // A failure shows as an answer that is missing.
            let _ = serve(poll, &listener, &seen);
        })?;
        Ok(BareServer { address, stop, waker, thread: Some(thread) })
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(mut poll: Poll, listener: &mio::net::TcpListener, stop: &AtomicBool) -> io::Result<()> {
    let mut events = Events::with_capacity(1024);
    let mut connections: Vec<mio::net::TcpStream> = Vec::new();
    let mut buffer = [0; 16 * 1024];
    while !stop.load(Ordering::SeqCst) {
        poll.poll(&mut events, None)?;
        for event in &events {
            match event.token() {
                WAKER => {}
                LISTENER => {
                    while let Ok((mut stream, _)) = listener.accept() {
                        stream.set_nodelay(true)?;
                        poll.registry().register(
                            &mut stream,
                            Token(connections.len()),
                            Interest::READABLE,
                        )?;
                        connections.push(stream);
                    }
                }
                Token(slot) => {
                    let Ok(read) = connections[slot].read(&mut buffer) else { continue };
                    let mut headers = [httparse::EMPTY_HEADER; 32];
                    let mut request = httparse::Request::new(&mut headers);
                    if read > 0 && request.parse(&buffer[..read]).is_ok_and(|status| status.is_complete()) {
                        connections[slot].write_all(BARE_ANSWER)?;
                    }
                }
            }
        }
    }
    Ok(())
}
