//! Those who are measured, each in a process of its own: ours with its database on the disk and in
//! memory, axum with the same routes on a map, and a loop that answers without looking.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::extract::{Path as Part, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use remuda::tracker::api::{
    ErrorBody, Heartbeat, HeartbeatResponse, NOT_FOUND, SessionCreate, SessionCreated,
};
use remuda::{TrackedId, TrackerServer};

use super::Failure;
use super::bare::BareServer;
use super::measure::processor_time;

/// The argument that makes this program one of the servers.
pub(crate) const SERVE: &str = "--serve";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Stored,
    InMemory,
    AxumOneThread,
    AxumThreads,
    Bare,
}

impl Kind {
    pub(crate) const ALL: [Kind; 5] =
        [Kind::Stored, Kind::InMemory, Kind::AxumOneThread, Kind::AxumThreads, Kind::Bare];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Stored => "remuda",
            Kind::InMemory => "remuda (:memory:)",
            Kind::AxumOneThread => "axum (one thread)",
            Kind::AxumThreads => "axum (a thread per core)",
            Kind::Bare => "mio + httparse (floor)",
        }
    }

    /// Serves until the input ends; prints the address first and, at each line of input, the processor
    /// time of this process in nanoseconds.
    ///
    /// # Errors
    /// If the server cannot start.
    pub(crate) fn serve(name: &str, directory: &Path) -> Result<(), Failure> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or("no such server")?;
        let tracker =
            |database: &Path| TrackerServer::builder().listen("127.0.0.1:0").database(database).start();
        match kind {
            Kind::Stored => {
                let server = tracker(&directory.join("bench.db"))?;
                tell(server.local_addr())
            }
            Kind::InMemory => {
                let server = tracker(Path::new(":memory:"))?;
                tell(server.local_addr())
            }
            Kind::AxumOneThread => tell(axum_server(tokio::runtime::Builder::new_current_thread())?),
            Kind::AxumThreads => tell(axum_server(tokio::runtime::Builder::new_multi_thread())?),
            Kind::Bare => tell(BareServer::start(r#"{"session_id":"any","kill_requested":false}"#)?.address),
        }
    }
}

fn tell(address: SocketAddr) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{address}")?;
    for line in io::stdin().lines() {
        line?;
        writeln!(out, "{}", processor_time().as_nanos())?;
    }
    Ok(())
}

/// A server in its process, which ends with this.
pub(crate) struct Server {
    child: Child,
    answers: BufReader<ChildStdout>,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn start(kind: Kind, directory: &Path) -> Result<Server, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([SERVE, kind.name()]).arg(directory).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let answers = BufReader::new(child.stdout.take().ok_or("no output of the server")?);
        let mut server = Server { child, answers, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        server.address = server.line()?.parse()?;
        Ok(server)
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Processor time of all of its threads so far, in microseconds.
    pub(crate) fn micros(&mut self) -> Result<f64, Failure> {
        self.child.stdin.as_mut().ok_or("no input of the server")?.write_all(b"\n")?;
        Ok(self.line()?.parse::<f64>()? / 1e3)
    }

    /// Registers a session, as a client does.
    pub(crate) fn register(&self) -> Result<TrackedId, Failure> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let body = r#"{"app_name":"bench"}"#;
        write!(
            stream,
            "POST /sessions HTTP/1.1\r\nHost: localhost:8000\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer)?;
        let text = String::from_utf8_lossy(&answer[..length]);
        let (_, body) = text.split_once("\r\n\r\n").ok_or("no answer to a registration")?;
        Ok(serde_json::from_str::<SessionCreated>(body)?.session_id)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends with its input, which waiting closes first.
        let _ = self.child.wait();
    }
}

/// What axum's handlers know of a session.
#[derive(Default)]
struct Row {
    seen: Option<SystemTime>,
    next_number: u64,
    progress: Option<f64>,
    memory_bytes: Option<u64>,
    kill_requested: bool,
}

type Rows = Arc<Mutex<HashMap<TrackedId, Row>>>;
type Refusal = (StatusCode, Json<ErrorBody>);

fn axum_server(mut builder: tokio::runtime::Builder) -> Result<SocketAddr, Failure> {
    let runtime = builder.enable_io().enable_time().build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    let routes = Router::new()
        .route("/sessions", post(register))
        .route("/sessions/{id}/heartbeat", post(heartbeat))
        .with_state(Rows::default());
    // It ends with the process.
    std::thread::spawn(move || {
        runtime.block_on(async {
            use axum::serve::ListenerExt as _;
            let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
            axum::serve(listener, routes).await
        })
    });
    Ok(address)
}

async fn register(State(rows): State<Rows>, Json(_): Json<SessionCreate>) -> Json<SessionCreated> {
    let session_id = TrackedId::random();
    let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
    rows.insert(session_id.clone(), Row::default());
    Json(SessionCreated { session_id, max_wait_seconds: None, interval_seconds: None })
}

async fn heartbeat(
    State(rows): State<Rows>,
    Part(id): Part<String>,
    Json(beat): Json<Heartbeat>,
) -> Result<Json<HeartbeatResponse>, Refusal> {
    let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(row) = rows.get_mut(&TrackedId::from(id.as_str())) else {
        return Err(refused(StatusCode::NOT_FOUND, NOT_FOUND));
    };
    if let Some(number) = beat.beat_number {
        if number < row.next_number {
            return Err(refused(StatusCode::CONFLICT, "a newer beat has come"));
        }
        row.next_number = number + 1;
    }
    row.seen = Some(SystemTime::now());
    row.progress = beat.progress.or(row.progress);
    row.memory_bytes = beat.memory_bytes.or(row.memory_bytes);
    Ok(Json(HeartbeatResponse { kill_requested: row.kill_requested, ..HeartbeatResponse::default() }))
}

fn refused(status: StatusCode, detail: &str) -> Refusal {
    (status, Json(ErrorBody { detail: detail.to_owned(), reason: None }))
}
