//! What a parked beat costs the server, in a process of its own.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use remuda::TrackerServer;
use rustix::process::{Resource, getrlimit};

use super::load::Beats;
use super::{Tracker, create_sessions};
use crate::bench::measure::Size;
use crate::bench::report::Row;
use crate::bench::{Context, Failure, Measured, say};
use crate::serve::open_all_files;

/// The hidden argument that makes this program the server of a database.
pub(in crate::bench) const HOST: &str = "parked-host";

const POLLS: usize = 10_000;
/// Descriptors of a process beside its connections.
const SPARE_FILES: usize = 200;

/// Memory of the server per parked beat: ten thousand, each on a connection of its own, of sessions that
/// are registered before. What the kernel keeps for a connection is not in it.
pub(super) fn parked_polls(_: &Context) -> Measured {
    open_all_files();
    let needed = most_connections() + SPARE_FILES;
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if files < needed as u64 {
        return Err(format!("it needs {needed} open files, and the limit is {files}").into());
    }
    let mut tracker = Tracker::start()?;
    let ids = create_sessions(tracker.server()?, POLLS)?;
    let mut host = Host::start(&tracker.stop())?;
    let before = host.settled()?;
    let mut polls = Vec::with_capacity(POLLS);
    for id in &ids {
        let mut stream = TcpStream::connect(host.address)?;
        stream.write_all(Beats::single(id.as_str(), 60).next())?;
        polls.push(stream);
    }
    let after = host.settled()?;
    for poll in &mut polls {
        poll.set_nonblocking(true)?;
        match poll.read(&mut [0; 256]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => return Err("a beat was answered instead of parked".into()),
        }
    }
    host.check_beats()?;
    let (bytes, threads) = ((after.bytes - before.bytes) / POLLS as f64, after.threads - before.threads);
    let row = Row::figure("parked_polls_10k_bytes", "bytes", bytes, POLLS);
    Ok(vec![row.note(Size { bytes, threads }.threads_note())])
}

/// Nine of ten connections may be parked.
fn most_connections() -> usize {
    POLLS + POLLS / 9 + 100
}

/// Serves until its input ends: prints its address and, when asked by an empty line, how many sessions
/// have sent a beat.
///
/// # Errors
/// If the server cannot start.
pub(in crate::bench) fn parked_host(database: PathBuf) -> Result<(), Failure> {
    open_all_files();
    let builder = TrackerServer::builder().listen("127.0.0.1:0").database(database);
    let server = builder.max_connections(most_connections()).start()?;
    say(&server.local_addr().to_string())?;
    for line in std::io::stdin().lines() {
        line?;
        let rows = server.store().get_all_sessions()?;
        say(&rows.iter().filter(|row| row.memory_bytes.is_some()).count().to_string())?;
    }
    Ok(())
}

/// The server's process.
struct Host {
    child: Child,
    answers: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Host {
    fn start(database: &Path) -> Result<Host, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", HOST]).arg(database).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let answers = BufReader::new(child.stdout.take().ok_or("no output of the server")?);
        let mut host = Host { child, answers, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        host.address = host.line()?.parse()?;
        Ok(host)
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Its size, when it has not changed for half a second.
    fn settled(&self) -> Result<Size, Failure> {
        let limit = Instant::now() + Duration::from_secs(20);
        let (mut last, mut same) = (Size::of(self.child.id())?, 0);
        while same < 5 {
            if Instant::now() > limit {
                return Err("the server's memory does not settle".into());
            }
            // A poll of what has no event.
            thread::sleep(Duration::from_millis(100));
            let size = Size::of(self.child.id())?;
            same = if size == last { same + 1 } else { 0 };
            last = size;
        }
        Ok(last)
    }

    /// Whether all of its sessions have sent their beat.
    fn check_beats(&mut self) -> Result<(), Failure> {
        let Some(stdin) = self.child.stdin.as_mut() else { return Err("no input of the server".into()) };
        stdin.write_all(b"\n")?;
        let beats = self.line()?;
        if beats != POLLS.to_string() {
            return Err(format!("the server has {beats} of {POLLS} beats").into());
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It ends with its input, which waiting closes first.
        let _ = self.child.wait();
    }
}
