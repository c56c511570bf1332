//! Rows of a tracker with a million sessions: a page of its list, its memory, its start.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use remuda::SessionStore;
use remuda::tracker::api::{LONGEST_PAGE, SessionCreate};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::measure::{Samples, millis};
use super::report::Row;
use super::{Bench, Context, Failure, Measured};

/// Run only if they are asked for: to make a million sessions takes about a minute.
pub(super) const BENCHES: &[Bench] =
    &[Bench { rows: &[("list_page_1m", "ms"), ("rss_1m_mib", "MiB"), ("restart_1m", "s")], run: million }];

const SESSIONS: usize = 1_000_000;
const APPS: usize = 100;
/// Registered in one go.
const AT_ONCE: usize = 10_000;
/// Each session beats every 30 s: so many in one request, so often.
const BEATS: usize = 500;
const BEATS_EVERY: Duration = Duration::from_millis(15);

/// `list_page_1m`: a page of a hundred, in turns of all sessions and of one app's, from a random place, while
/// every session beats every 30 s. `rss_1m_mib`: what the server has in memory after that, and as p99 what it
/// had at most. `restart_1m`: from the start of the program to its first answer about sessions.
fn million(context: &Context) -> Measured {
    let directory = Directory::new()?;
    let database = directory.0.join("million.db");
    fill(&database)?;
    let server = Server::start(&database)?;
    let (ids, cursors) = walk(server.address)?;
    if ids.len() != SESSIONS {
        return Err(format!("the pages hold {} sessions", ids.len()).into());
    }
    let over = AtomicBool::new(false);
    let pages = thread::scope(|scope| {
        let beats = scope.spawn(|| beat(server.address, &ids, &over).map_err(|error| error.to_string()));
        let pages = pages(server.address, &cursors, context.times(2_000));
        over.store(true, Ordering::SeqCst);
        let sent = beats.join().map_err(|_| "the thread that beats has panicked")?;
        Ok::<_, Failure>((pages?, sent?))
    });
    let (pages, sent) = pages?;
    let [now, peak] = server.memory()?;
    server.stop()?;
    let mut starts = Samples::default();
    for _ in 0..context.times(5) {
        let started = Instant::now();
        let server = Server::start(&database)?;
        Client::connect(server.address)?.get("/sessions?limit=1")?;
        starts.push(started.elapsed().as_secs_f64());
        server.stop()?;
    }
    let mut memory = Row::figure("rss_1m_mib", "MiB", now, 1);
    memory.p99 = Some(peak);
    Ok(vec![
        Row::of("list_page_1m", "ms", &pages, None).note(format!("{sent} beats came in meanwhile")),
        memory,
        Row::of("restart_1m", "s", &starts, None),
    ])
}

/// Registers a million sessions of a hundred apps in a database of ours.
fn fill(database: &Path) -> Result<(), Failure> {
    let store = SessionStore::open(database)?;
    for first in (0..SESSIONS).step_by(AT_ONCE) {
        store.register_all((first..first + AT_ONCE).map(session).collect())?;
    }
    Ok(())
}

fn session(number: usize) -> SessionCreate {
    let is_busy = number.is_multiple_of(20);
    SessionCreate {
        app_name: format!("app {}", number % APPS),
        user_id: Some(format!("user {}", number % 1_009)),
        host: Some(format!("host-{}", number % 503)),
        pid: u32::try_from(number % 32_768).ok(),
        labels: [("team".to_owned(), format!("team {}", number % 11))].into(),
        uptime_seconds: Some((SESSIONS - number) as f64 / 100.0),
        status: is_busy.then(|| "running".to_owned()),
        current_task: is_busy.then(|| format!("report {number}")),
        version: Some("1.0".to_owned()),
        ..SessionCreate::default()
    }
}

/// All ids, and where the pages begin.
fn walk(address: SocketAddr) -> Result<(Vec<String>, Vec<String>), Failure> {
    let mut client = Client::connect(address)?;
    let (mut ids, mut cursors) = (Vec::new(), Vec::<String>::new());
    loop {
        let cursor = cursors.last().map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let page = client.get(&format!("/sessions?limit={LONGEST_PAGE}{cursor}"))?;
        let rows = page["sessions"].as_array().map(Vec::as_slice).unwrap_or_default();
        ids.extend(rows.iter().filter_map(|row| row["session_id"].as_str()).map(str::to_owned));
        match page["next_cursor"].as_str() {
            Some(next) => cursors.push(next.to_owned()),
            None => return Ok((ids, cursors)),
        }
    }
}

/// How long pages take.
fn pages(address: SocketAddr, cursors: &[String], count: usize) -> Result<Samples, Failure> {
    let mut client = Client::connect(address)?;
    let mut times = Samples::default();
    for round in 0..count {
        // 617 is prime: all places come, far from each other.
        let cursor = &cursors[round * 617 % cursors.len()];
        let app = if round % 2 == 0 { String::new() } else { format!("&app=app%20{}", round % APPS) };
        let started = Instant::now();
        client.ask(&format!("/sessions?limit=100&cursor={cursor}{app}"))?;
        times.push(millis(started.elapsed()));
    }
    Ok(times)
}

/// Beats of all sessions in turn, until it is over; how many.
fn beat(address: SocketAddr, ids: &[String], over: &AtomicBool) -> Result<usize, Failure> {
    let mut client = Client::connect(address)?;
    let (mut sent, started) = (0, Instant::now());
    for (round, some) in ids.chunks(BEATS).cycle().enumerate() {
        if over.load(Ordering::SeqCst) {
            break;
        }
        let beats: Vec<String> = some.iter().map(|id| format!(r#"{{"session_id":"{id}"}}"#)).collect();
        client.post("/heartbeats", &format!(r#"{{"beats":[{}]}}"#, beats.join(",")))?;
        sent += some.len();
        let due = BEATS_EVERY * u32::try_from(round).unwrap_or(u32::MAX);
        // The pace of a million sessions: what comes faster would be another load.
        thread::sleep(due.saturating_sub(started.elapsed()));
    }
    Ok(sent)
}

/// `remuda serve` as a process of its own.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Returns when it listens.
    fn start(database: &Path) -> Result<Server, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--listen", "127.0.0.1:0", "--db"])
            .arg(database)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let address = line.split(['/', ',']).nth(2).and_then(|address| address.parse().ok());
        if address.is_none() {
            child.kill()?;
            child.wait()?;
        }
        Ok(Server { child, address: address.ok_or("the server does not start")? })
    }

    /// What it has in memory and what it had at most, in MiB.
    fn memory(&self) -> Result<[f64; 2], Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
            kib.map(|kib| kib / 1024.0).ok_or_else(|| format!("the kernel does not tell {name}"))
        };
        Ok([of("VmRSS")?, of("VmHWM")?])
    }

    /// Ends it in good order.
    fn stop(mut self) -> Result<(), Failure> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A plain client that reads an answer as fast as it comes.
struct Client {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Client {
    fn connect(address: SocketAddr) -> Result<Client, Failure> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Client { stream, answer: Vec::new() })
    }

    fn get(&mut self, target: &str) -> Result<Value, Failure> {
        let body = self.ask(target)?;
        Ok(serde_json::from_slice(&self.answer[body..])?)
    }

    fn ask(&mut self, target: &str) -> Result<usize, Failure> {
        self.exchange(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    fn post(&mut self, target: &str, body: &str) -> Result<usize, Failure> {
        let length = body.len();
        self.exchange(&format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }

    /// Where the body of the answer begins, which must be a success.
    fn exchange(&mut self, request: &str) -> Result<usize, Failure> {
        self.stream.write_all(request.as_bytes())?;
        self.answer.clear();
        let mut piece = [0; 16 * 1024];
        let mut end = None;
        while end.is_none_or(|(_, end)| self.answer.len() < end) {
            let read = self.stream.read(&mut piece)?;
            if read == 0 {
                return Err("the server has hung up".into());
            }
            self.answer.extend_from_slice(&piece[..read]);
            if end.is_none() {
                end = ends(&self.answer)?;
            }
        }
        Ok(end.map_or(0, |(body, _)| body))
    }
}

/// Where the body of an answer begins and ends, once its head is there.
fn ends(answer: &[u8]) -> Result<Option<(usize, usize)>, Failure> {
    let Some(head_end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&answer[..head_end])?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(head.lines().next().unwrap_or_default().into());
    }
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length: usize = length.ok_or("an answer has no length")?.parse()?;
    Ok(Some((head_end + 4, head_end + 4 + length)))
}

/// Removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Directory, Failure> {
        let path = std::env::temp_dir().join(format!("remuda-bench-million-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
