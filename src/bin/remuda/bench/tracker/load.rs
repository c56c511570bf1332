//! The load of beats: requests whose values change each time, sent by one thread on many connections.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

/// What the numbers of beats begin with, so that all have as many digits.
const FIRST: u64 = 10_000_000;

/// A request that carries beats. Sent again it says something new of each: another number, another
/// progress, another amount of memory.
pub(crate) struct Beats {
    bytes: Vec<u8>,
    /// The digits to be written anew.
    number: Vec<Range<usize>>,
    progress: Vec<Range<usize>>,
    memory: Vec<Range<usize>>,
    next: u64,
}

impl Beats {
    /// `POST /sessions/{id}/heartbeat`, to be parked for so many seconds unless that is 0.
    pub(crate) fn single(id: &str, wait: u64) -> Beats {
        let wait = if wait == 0 { String::new() } else { format!("?wait={wait}") };
        let beat = format!("{{{}}}", values());
        Beats::new(&format!("/sessions/{id}/heartbeat{wait}"), &beat)
    }

    /// `POST /heartbeats`
    pub(crate) fn batch<'a>(ids: impl IntoIterator<Item = &'a str>) -> Beats {
        let values = values();
        let mut body = String::from("{\"beats\":[");
        for (at, id) in ids.into_iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            // Writing to a string cannot fail.
            let _ = write!(body, "{comma}{{\"session_id\":\"{id}\",{values}}}");
        }
        body.push_str("]}");
        Beats::new("/heartbeats", &body)
    }

    fn new(target: &str, body: &str) -> Beats {
        let text = format!(
            "POST {target} HTTP/1.1\r\nHost: localhost:8000\r\nContent-Length: {}\r\n\
             Content-Type: application/json\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n{body}",
            body.len()
        );
        let places = |key: &str, digits: usize| {
            let places = text.match_indices(key).map(|(at, key)| at + key.len());
            places.map(|start| start..start + digits).collect()
        };
        Beats {
            number: places("\"beat_number\":", 8),
            progress: places("\"progress\":0.", 4),
            memory: places("\"memory_bytes\":1", 8),
            next: 1,
            bytes: text.into_bytes(),
        }
    }

    /// How many beats are in it.
    pub(crate) fn len(&self) -> usize {
        self.number.len()
    }

    /// The request, with other values than the last time.
    pub(crate) fn next(&mut self) -> &[u8] {
        let Beats { bytes, number, progress, memory, next } = self;
        for (places, value) in [(number, FIRST + *next), (progress, *next), (memory, *next)] {
            for place in places {
                write_digits(&mut bytes[place.clone()], value);
            }
        }
        *next += 1;
        bytes
    }

    /// The memory that each of its sessions has told with the last request.
    pub(crate) fn last_memory(&self) -> u64 {
        100_000_000 + (self.next - 1)
    }
}

/// What a client of this crate says with a beat.
fn values() -> String {
    format!("\"beat_number\":{FIRST},\"verbs_number\":0,\"progress\":0.0000,\"memory_bytes\":100000000")
}

/// The last digits of the value, as many as there is room for.
fn write_digits(place: &mut [u8], mut value: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

/// Connections to one server, each with a request of its own.
pub(crate) struct Load {
    connections: Vec<(TcpStream, Vec<u8>)>,
}

impl Load {
    /// Connects, and sends each request once: its answer tells how long all answers are.
    ///
    /// # Errors
    /// If the server does not answer, or refuses.
    pub(crate) fn connect(address: SocketAddr, beats: &mut [Beats]) -> Result<Load, Box<dyn Error>> {
        let mut connections = Vec::new();
        for beats in beats {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(beats.next())?;
            let mut answer = vec![0; 4096];
            let length = stream.read(&mut answer)?;
            answer.truncate(length);
            check(&answer)?;
            connections.push((stream, answer));
        }
        Ok(Load { connections })
    }

    /// Sends one request on every connection, reads all answers, and so on; requests per second.
    ///
    /// # Errors
    /// As [`connect`](Load::connect).
    pub(crate) fn run(&mut self, beats: &mut [Beats], rounds: usize) -> Result<f64, Box<dyn Error>> {
        let started = Instant::now();
        for _ in 0..rounds {
            for ((stream, _), beats) in self.connections.iter_mut().zip(&mut *beats) {
                stream.write_all(beats.next())?;
            }
            for (stream, answer) in &mut self.connections {
                stream.read_exact(answer)?;
                check(answer)?;
            }
        }
        Ok((rounds * self.connections.len()) as f64 / started.elapsed().as_secs_f64())
    }
}

fn check(answer: &[u8]) -> Result<(), Box<dyn Error>> {
    if answer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    Err(format!("a beat was not taken: {}", String::from_utf8_lossy(answer)).into())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn each_beat_says_something_new() {
        let mut beats = Beats::batch(["a", "b"]);
        let mut seen = Vec::new();
        for _ in 0..20 {
            let text = String::from_utf8(beats.next().to_vec()).expect("text");
            let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
            assert!(head.contains(&format!("Content-Length: {}", body.len())));
            let body: Value = serde_json::from_str(body).expect("JSON");
            assert_eq!(body["beats"][1]["session_id"], "b");
            for key in ["beat_number", "progress", "memory_bytes"] {
                assert_eq!(body["beats"][0][key], body["beats"][1][key]);
                assert!(!seen.contains(&(key, body["beats"][0][key].clone())), "{key} twice");
                seen.push((key, body["beats"][0][key].clone()));
            }
            assert_eq!(body["beats"][0]["memory_bytes"], json!(beats.last_memory()));
        }
    }
}
