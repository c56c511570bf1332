//! What tests of the tracker share: a server without a file, one as a program, and a plain HTTP client
//! that shows every byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use remuda::TrackerServer;
use serde_json::{Value, json};

use crate::cli_run::remuda;
use crate::support::{GENEROUS, own_loopback};

/// A tracker on a port of this process alone, with its database in memory.
pub(crate) fn server() -> TrackerServer {
    TrackerServer::builder().listen(own_loopback()).database(":memory:").start().expect("a tracker starts")
}

/// A keep-alive connection.
pub(crate) struct Http {
    stream: TcpStream,
    /// What was read beyond the last answer.
    rest: Vec<u8>,
    /// Further header fields of what is sent.
    fields: String,
}

/// An answer, as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// A header field, by its lower-case name.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        fields.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

impl Http {
    pub(crate) fn connect(address: SocketAddr) -> Http {
        let stream = TcpStream::connect(address).expect("the server accepts");
        stream.set_read_timeout(Some(GENEROUS)).unwrap();
        Http { stream, rest: Vec::new(), fields: String::new() }
    }

    /// Sends this access token with all that follows.
    pub(crate) fn with_token(mut self, token: &str) -> Http {
        self.fields = format!("Authorization: Bearer {token}\r\n");
        self
    }

    /// Sends a request without waiting for its answer.
    pub(crate) fn send(&mut self, method: &str, target: &str, body: &str) {
        let (length, fields) = (body.len(), &self.fields);
        self.raw(format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
        ));
    }

    /// Sends bytes as they are. The server may have hung up already.
    pub(crate) fn raw(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// A second value on the same connection, to send from another thread.
    pub(crate) fn another_handle(&self) -> Http {
        let (rest, fields) = (Vec::new(), self.fields.clone());
        Http { stream: self.stream.try_clone().unwrap(), rest, fields }
    }

    /// Whether an answer, or the connection's end, has arrived.
    pub(crate) fn has_input(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let arrived = self.stream.peek(&mut [0]).is_ok();
        self.stream.set_nonblocking(false).unwrap();
        arrived || !self.rest.is_empty()
    }

    /// Whether bytes were read that belong to no answer.
    pub(crate) fn has_rest(&self) -> bool {
        !self.rest.is_empty()
    }

    /// The next answer, which has no body whatever its head says.
    pub(crate) fn answer_to_head(&mut self) -> Option<Answer> {
        self.next_head()
    }

    /// The next answer; `None` when the server has closed the connection.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let mut answer = self.next_head()?;
        let length: usize = answer.field("content-length").map_or(0, |length| length.parse().unwrap());
        while self.rest.len() < length {
            assert!(self.read(), "the body is cut: {answer:?}");
        }
        answer.body = self.rest.drain(..length).collect();
        Some(answer)
    }

    /// The head of an answer that goes on.
    pub(crate) fn head_of_stream(&mut self) -> Answer {
        self.next_head().expect("an answer")
    }

    /// The next chunk of an answer that goes on, the last of which is empty; `None` if the connection
    /// ends before that.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let line_end = loop {
            if let Some(at) = self.rest.windows(2).position(|window| window == b"\r\n") {
                break at;
            }
            if !self.read() {
                return None;
            }
        };
        let length = std::str::from_utf8(&self.rest[..line_end]).unwrap();
        let length = usize::from_str_radix(length, 16).unwrap_or_else(|_| panic!("{length:?} is no length"));
        while self.rest.len() < line_end + length + 4 {
            if !self.read() {
                return None;
            }
        }
        let chunk = self.rest[line_end + 2..line_end + 2 + length].to_vec();
        self.rest.drain(..line_end + length + 4);
        Some(chunk)
    }

    fn next_head(&mut self) -> Option<Answer> {
        let head_end = loop {
            if let Some(at) = self.rest.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            if !self.read() {
                return None;
            }
        };
        let head = String::from_utf8(self.rest[..head_end].to_vec()).expect("a head is text");
        self.rest.drain(..head_end + 4);
        let status = head[9..12].parse().expect("a status");
        Some(Answer { status, head, body: Vec::new() })
    }

    fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(read) => {
                self.rest.extend_from_slice(&buffer[..read]);
                read > 0
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("the server does not answer: {error}"),
        }
    }

    /// One exchange.
    pub(crate) fn call(&mut self, method: &str, target: &str, body: &str) -> Answer {
        self.send(method, target, body);
        self.answer().expect("the connection stays open")
    }

    /// One exchange that succeeds.
    pub(crate) fn ok(&mut self, method: &str, target: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.call(method, target, &body);
        assert_eq!(answer.status, 200, "{method} {target}: {}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }

    /// Registers a session and returns its id.
    pub(crate) fn register(&mut self, app_name: &str) -> String {
        let created = self.ok("POST", "/sessions", &json!({ "app_name": app_name }));
        created["session_id"].as_str().expect("an id").to_owned()
    }

    /// The rows of `GET /sessions`.
    pub(crate) fn list(&mut self) -> Vec<Value> {
        self.ok("GET", "/sessions", &Value::Null)["sessions"].as_array().expect("rows").clone()
    }

    /// The row of one session.
    pub(crate) fn row(&mut self, id: &str) -> Option<Value> {
        self.list().into_iter().find(|row| row["session_id"] == id)
    }

    /// No more requests will come.
    pub(crate) fn finish_sending(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

/// One exchange on a connection of its own.
pub(crate) fn call(address: SocketAddr, method: &str, target: &str, body: &str) -> Answer {
    Http::connect(address).call(method, target, body)
}

/// A running `remuda serve`; killed and reaped at its end.
pub(crate) struct Served {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    /// The first line that it printed.
    pub(crate) line: String,
}

impl Served {
    pub(crate) fn start(directory: &Path, database: &str) -> Served {
        Served::from(remuda(directory, &["serve", "--listen", &own_loopback(), "--db", database]))
    }

    pub(crate) fn from(mut command: Command) -> Served {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split(['/', ',']).nth(2).and_then(|address| address.parse().ok());
        Served { child, address: address.unwrap_or_else(|| panic!("no address in {line:?}")), line }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
