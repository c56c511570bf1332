//! Floors of the tracker: the least that a server on mio and httparse does, and a byte to and fro.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Events, Interest, Poll, Token, Waker};

/// A thread that sends back what it gets.
pub(crate) struct Echo {
    stream: TcpStream,
    thread: Option<thread::JoinHandle<()>>,
}

impl Echo {
    pub(crate) fn start() -> io::Result<Echo> {
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

    pub(crate) fn round_trip(&mut self) -> io::Result<Duration> {
        let started = Instant::now();
        self.stream.write_all(&[1])?;
        self.stream.read_exact(&mut [0])?;
        Ok(started.elapsed())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Reads whole requests and gives all of them the same answer.
pub(crate) struct BareServer {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
    thread: Option<thread::JoinHandle<()>>,
}

const LISTENER: Token = Token(usize::MAX - 1);
const WAKER: Token = Token(usize::MAX - 2);

impl BareServer {
    /// `body` is that of the answer.
    pub(crate) fn start(body: &str) -> io::Result<BareServer> {
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let poll = Poll::new()?;
        let mut listener = mio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = listener.local_addr()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = thread::Builder::new().name("bare-server".to_owned()).spawn(move || {
            let mut server = Loop { poll, listener, answer: answer.into_bytes(), connections: Vec::new() };
            // A failure shows as an answer that is missing.
            let _ = server.run(&seen);
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

struct Loop {
    poll: Poll,
    listener: mio::net::TcpListener,
    answer: Vec<u8>,
    connections: Vec<Connection>,
}

struct Connection {
    stream: mio::net::TcpStream,
    buffer: Vec<u8>,
    /// So much of the buffer is filled.
    filled: usize,
}

impl Loop {
    fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        while !stop.load(Ordering::SeqCst) {
            self.poll.poll(&mut events, None)?;
            events.iter().try_for_each(|event| self.serve(event))?;
        }
        Ok(())
    }

    fn serve(&mut self, event: &Event) -> io::Result<()> {
        match event.token() {
            WAKER => Ok(()),
            LISTENER => {
                while let Ok((mut stream, _)) = self.listener.accept() {
                    stream.set_nodelay(true)?;
                    let token = Token(self.connections.len());
                    self.poll.registry().register(&mut stream, token, Interest::READABLE)?;
                    self.connections.push(Connection { stream, buffer: vec![0; 16 * 1024], filled: 0 });
                }
                Ok(())
            }
            Token(slot) => self.connections[slot].answer(&self.answer),
        }
    }
}

impl Connection {
    /// Reads until a request is whole, and answers it: its client waits for that before it sends more.
    fn answer(&mut self, answer: &[u8]) -> io::Result<()> {
        loop {
            if self.filled == self.buffer.len() {
                self.buffer.resize(2 * self.filled, 0);
            }
            match self.stream.read(&mut self.buffer[self.filled..]) {
                // Closed, or all is read for now.
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Ok(read) => self.filled += read,
                Err(error) => return Err(error),
            }
            if length(&self.buffer[..self.filled]).is_some_and(|length| length <= self.filled) {
                self.filled = 0;
                return self.stream.write_all(answer);
            }
        }
    }
}

/// How long the request is, with its body; nothing while its head is not whole.
fn length(bytes: &[u8]) -> Option<usize> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = request.parse(bytes) else { return None };
    let field = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"))?;
    Some(head + std::str::from_utf8(field.value).ok()?.parse::<usize>().ok()?)
}
