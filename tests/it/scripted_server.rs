//! HTTP servers for the client's tests: one that follows a script, and a small tracker made of it.
//!
//! A server is a handler: what it returns is sent, garbage included. It reads requests with a
//! `Content-Length` or none, on one thread per connection, and is gone without a trace when dropped.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use remuda::{ClientConfig, SessionClient};
use serde_json::{Value, json};

use crate::support::{GENEROUS, own_loopback, poll};

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    /// Names in small letters.
    pub(crate) headers: BTreeMap<String, String>,
    /// `null` if there was none.
    pub(crate) body: Value,
    /// The server is being dropped.
    over: Arc<AtomicBool>,
}

impl Asked {
    pub(crate) fn is(&self, method: &str, end: &str) -> bool {
        self.method == method && self.path.split('?').next().is_some_and(|path| path.ends_with(end))
    }

    pub(crate) fn wait(&self) -> Option<u64> {
        self.path.split_once("?wait=").and_then(|(_, seconds)| seconds.parse().ok())
    }
}

/// What a server does with a request.
pub(crate) enum Reply {
    Json(u16, Value),
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// Nothing, until the server is dropped.
    Hang,
    /// The end of the connection.
    Close,
}

pub(crate) fn fine(body: Value) -> Reply {
    Reply::Json(200, body)
}

/// Serves until it is dropped.
pub(crate) struct ScriptedServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

type Handler = Box<dyn Fn(&Asked) -> Reply + Send + Sync>;

struct Shared {
    handler: Handler,
    asked: Mutex<Vec<Asked>>,
    connections: Mutex<Vec<(TcpStream, JoinHandle<()>)>>,
    over: Arc<AtomicBool>,
    given_up: AtomicUsize,
}

impl ScriptedServer {
    pub(crate) fn start(handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> ScriptedServer {
        ScriptedServer::at(own_loopback().parse().unwrap(), handler)
    }

    /// Serves at an address that another one has had.
    pub(crate) fn at(
        address: SocketAddr,
        handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> ScriptedServer {
        let listener = TcpListener::bind(address).expect("a port on loopback");
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            asked: Mutex::default(),
            connections: Mutex::default(),
            over: Arc::default(),
            given_up: AtomicUsize::new(0),
        });
        let of_acceptor = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept(&listener, &of_acceptor));
        ScriptedServer { address, shared, acceptor: Some(acceptor) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Connections that were made so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.lock().unwrap().len()
    }

    /// Requests that got no answer and whose client does not wait for one any more.
    pub(crate) fn given_up(&self) -> usize {
        self.shared.given_up.load(Ordering::SeqCst)
    }

    pub(crate) fn count(&self, method: &str, end: &str) -> usize {
        self.asked().iter().filter(|asked| asked.is(method, end)).count()
    }

    /// Waits until more requests have come than these.
    pub(crate) fn await_more(&self, count: usize) {
        poll(|| self.asked().len() > count, || format!("nothing after {:?}", self.asked()));
    }

    /// Waits until this many such requests have come; returns the last of them.
    pub(crate) fn await_count(&self, count: usize, method: &str, end: &str) -> Asked {
        poll(
            || self.count(method, end) >= count,
            || format!("not {count} times {method} {end} in {:?}", self.asked()),
        );
        self.asked().into_iter().rfind(|asked| asked.is(method, end)).unwrap()
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        drop(TcpStream::connect(self.address));
        self.acceptor.take().unwrap().join().expect("the acceptor ends");
        let connections = std::mem::take(&mut *self.shared.connections.lock().unwrap());
        for (stream, _) in &connections {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for (_, thread) in connections {
            thread.join().expect("a connection ends");
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept() {
        if shared.over.load(Ordering::SeqCst) {
            return;
        }
        let (mine, of_thread) = (stream.try_clone().unwrap(), Arc::clone(shared));
        // Under the lock: whoever has seen a request finds its connection counted.
        let mut connections = shared.connections.lock().unwrap();
        connections.push((mine, std::thread::spawn(move || serve(&stream, &of_thread))));
    }
}

fn serve(stream: &TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(stream);
    while let Some(asked) = read(&mut reader, &shared.over) {
        shared.asked.lock().unwrap().push(asked.clone());
        let reply = (shared.handler)(&asked);
        let mut writer = stream;
        let written = match reply {
            Reply::Json(status, body) => {
                let body = body.to_string();
                let head = format!(
                    "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                writer.write_all((head + &body).as_bytes())
            }
            Reply::Raw(bytes) => {
                let _ = writer.write_all(&bytes);
                break;
            }
            Reply::Hang => {
                let _ = std::io::copy(&mut reader, &mut std::io::sink());
                shared.given_up.fetch_add(1, Ordering::SeqCst);
                break;
            }
            Reply::Close => break,
        };
        if written.is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

fn read(reader: &mut BufReader<&TcpStream>, over: &Arc<AtomicBool>) -> Option<Asked> {
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        line.ends_with("\r\n").then(|| line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let header = line()?;
        let Some((name, value)) = header.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().expect("a length"));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") };
    Some(Asked { method, path, headers, body, over: Arc::clone(over) })
}

/// A tracker's memory, with the routes that a client uses. Clone it to change it while it serves.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    state: Arc<(Mutex<BTreeMap<String, Row>>, Condvar)>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Row {
    pub(crate) status: String,
    pub(crate) task: Option<String>,
    pub(crate) killed: bool,
}

impl Memory {
    /// A tracker that parks beats for up to a minute.
    pub(crate) fn parking(&self) -> impl Fn(&Asked) -> Reply + Send + Sync + 'static {
        let memory = self.clone();
        move |asked| memory.answer(asked, Some(60))
    }

    /// A tracker that answers every beat at once, as the ancestor did.
    pub(crate) fn plain(&self) -> impl Fn(&Asked) -> Reply + Send + Sync + 'static {
        let memory = self.clone();
        move |asked| memory.answer(asked, None)
    }

    pub(crate) fn answer(&self, asked: &Asked, longest_wait: Option<u64>) -> Reply {
        let unknown = || Reply::Json(404, json!({"detail": "Session not found"}));
        let mut words = asked.path.split(['/', '?']).skip(2);
        let id = words.next().unwrap_or_default().to_owned();
        let (rows, changed) = &*self.state;
        let mut rows = rows.lock().unwrap();
        match (asked.method.as_str(), words.next().unwrap_or_default()) {
            ("POST", "") => {
                let id = asked.body["session_id"].as_str().expect("the client's own id").to_owned();
                let row = rows.entry(id.clone()).or_default();
                asked.body["status"].as_str().unwrap_or("idle").clone_into(&mut row.status);
                row.task = asked.body["current_task"].as_str().map(str::to_owned);
                fine(match longest_wait {
                    Some(seconds) => json!({"session_id": id, "max_wait_seconds": seconds}),
                    None => json!({"session_id": id}),
                })
            }
            ("POST", "heartbeat") => {
                let wait = longest_wait.and(asked.wait()).unwrap_or(0);
                let until = Instant::now() + Duration::from_secs(wait);
                while rows.get(&id).is_some_and(|row| !row.killed)
                    && Instant::now() < until
                    && !asked.over.load(Ordering::SeqCst)
                {
                    // In slices, because the end of the server tells no condition variable.
                    rows = changed.wait_timeout(rows, Duration::from_millis(20)).unwrap().0;
                }
                match rows.get(&id) {
                    _ if asked.over.load(Ordering::SeqCst) => Reply::Close,
                    None => unknown(),
                    Some(row) => fine(json!({"kill_requested": row.killed})),
                }
            }
            ("PUT", "status") => match rows.get_mut(&id) {
                None => unknown(),
                Some(row) => {
                    asked.body["status"].as_str().expect("a status").clone_into(&mut row.status);
                    row.task = asked.body["current_task"].as_str().map(str::to_owned);
                    fine(json!({"status": "updated"}))
                }
            },
            ("DELETE", "") => {
                if rows.remove(&id).is_none() {
                    return unknown();
                }
                changed.notify_all();
                fine(json!({"status": "deleted"}))
            }
            _ => Reply::Json(404, json!({"detail": "Not Found"})),
        }
    }

    pub(crate) fn row(&self, id: &str) -> Option<Row> {
        self.state.0.lock().unwrap().get(id).cloned()
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.state.0.lock().unwrap().keys().cloned().collect()
    }

    pub(crate) fn await_row(&self, id: &str, wanted: impl Fn(&Row) -> bool) {
        poll(|| self.row(id).is_some_and(|row| wanted(&row)), || format!("{id} is {:?}", self.row(id)));
    }

    pub(crate) fn kill(&self, id: &str) {
        self.state.0.lock().unwrap().get_mut(id).expect("a row").killed = true;
        self.state.1.notify_all();
    }

    /// Forgets a session, as a tracker that was away for too long.
    pub(crate) fn forget(&self, id: &str) {
        self.state.0.lock().unwrap().remove(id).expect("a row");
        self.state.1.notify_all();
    }
}

/// Collects what is logged in this process. Call it once, before anything is logged.
pub(crate) fn collect_log() -> Log {
    let log = Log::default();
    log::set_logger(Box::leak(Box::new(log.clone()))).expect("one logger in this process");
    log::set_max_level(log::LevelFilter::Info);
    log
}

/// The messages of at least level info, with their level in front.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, part: &str) -> usize {
        self.lines().iter().filter(|line| line.contains(part)).count()
    }

    pub(crate) fn await_count(&self, count: usize, part: &str) {
        poll(|| self.count(part) >= count, || format!("not {count} times {part:?} in {:?}", self.lines()));
    }
}

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("remuda")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

/// An address where nobody listens, and nobody will unless this process does.
pub(crate) fn nobody() -> SocketAddr {
    TcpListener::bind(own_loopback()).expect("a port on loopback").local_addr().unwrap()
}

/// Waits for something that a client is to reach by itself.
pub(crate) fn eventually(what: &str, done: impl Fn() -> bool) {
    poll(done, || format!("{what}: not within {GENEROUS:?}"));
}

/// Starts a client and waits until its tracker knows it: the start waits a second for that, which may pass
/// on a busy machine.
pub(crate) fn connected(config: ClientConfig) -> SessionClient {
    let client = config.start().unwrap();
    eventually("the client is registered", || client.is_connected());
    client
}

/// Runs what waits for the tracker's answer, then looks whether that was taken in. Whoever waits does so for
/// a second at most, and after a wait in vain not again before the next answer: it may come later only then.
pub(crate) fn takes_effect<T>(act: impl FnOnce() -> T, done: impl Fn() -> bool) -> T {
    // In this process, which is that of one test.
    static IN_VAIN: AtomicBool = AtomicBool::new(false);
    let began = Instant::now();
    let value = act();
    let in_vain = began.elapsed() >= Duration::from_secs(1);
    let in_vain = IN_VAIN.fetch_or(in_vain, Ordering::SeqCst) || in_vain;
    assert!(done() || in_vain, "nobody has waited for the tracker");
    eventually("the tracker takes it in", done);
    value
}
