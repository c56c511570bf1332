//! Answers that go on.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;

use super::*;
use crate::clock::Moment;
use crate::tracker::http::{Piece, Source, Stream};

/// What the source of `/stream` does when it is asked.
pub(super) type Made = Box<dyn FnOnce(Moment) -> Piece + Send>;

impl Scripted {
    pub(super) fn stream(&self) -> Stream {
        let source = Fed { pieces: self.pieces.clone() };
        let otherwise = Response::detail(503, "too many streams");
        Stream { head: Response::new(200, "text/plain", &b""[..]), source: Box::new(source), otherwise }
    }
}

/// Gives what the test has made, in order.
struct Fed {
    pieces: Receiver<Made>,
}

impl Source for Fed {
    fn next(&mut self, now: Moment, last: bool) -> Piece {
        match self.pieces.try_recv() {
            _ if last => Piece::End(b"bye".to_vec()),
            Ok(make) => make(now),
            Err(_) => Piece::Later(Moment::FAR_FUTURE),
        }
    }
}

impl Fixture {
    fn make(&self, piece: Piece) {
        self.make.send(Box::new(|_| piece)).unwrap();
    }

    /// A stream that waits for its first piece.
    fn begin_stream(&self) -> (TcpStream, Ticket) {
        let before = self.streams();
        let stream = self.send("stream");
        let ticket = self.tickets.recv().unwrap();
        self.await_streams(before + 1);
        (stream, ticket)
    }

    fn streams(&self) -> usize {
        self.service.counts.streams.load(Ordering::Relaxed)
    }

    fn cut(&self) -> u64 {
        self.service.counts.streams_cut.load(Ordering::Relaxed)
    }

    fn await_streams(&self, count: usize) {
        await_that(|| self.streams() == count);
    }
}

fn await_that(done: impl Fn() -> bool) {
    let deadline = Moment::after(Duration::from_secs(60));
    while !done() {
        assert!(Moment::now() < deadline, "it never happens");
        std::thread::yield_now();
    }
}

/// Reads until what was read ends like this.
fn until(mut stream: &TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {text:?}"));
        text.push(char::from(byte[0]));
    }
    text
}

fn some(text: &str) -> Piece {
    Piece::Some(text.as_bytes().to_vec())
}

#[test]
fn pieces_come_in_chunks_as_they_are_made_and_the_connection_goes_on_after_the_last() {
    let fixture = start(endless());
    let (mut stream, ticket) = fixture.begin_stream();
    fixture.make(some("one"));
    ticket.doorbell().ring();
    let head = until(&stream, "\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"), "{head}");
    assert!(
        head.contains("\r\nTransfer-Encoding: chunked\r\n") && !head.contains("Content-Length"),
        "{head}"
    );
    assert_eq!(until(&stream, "one\r\n"), "3\r\none\r\n");
    fixture.make(some(""));
    fixture.make(some("two"));
    fixture.make(Piece::End(b"three".to_vec()));
    ticket.doorbell().ring();
    assert_eq!(until(&stream, "0\r\n\r\n"), "3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n");
    fixture.await_streams(0);
    stream.write_all(b"GET /quick HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(answer(&stream).ends_with('1'));
}

#[test]
fn a_source_is_asked_again_at_its_time() {
    let fixture = start(endless());
    fixture.make.send(Box::new(|now| Piece::Later(now + SHORT))).unwrap();
    fixture.make.send(Box::new(|now| Piece::Later(now + SHORT))).unwrap();
    fixture.make(some("one"));
    until(&fixture.send("stream"), "3\r\none\r\n");
}

#[test]
fn a_stream_whose_first_piece_is_its_last_is_an_ordinary_answer() {
    let fixture = start(endless());
    let (stream, ticket) = fixture.begin_stream();
    fixture.make(Piece::End(b"9".to_vec()));
    ticket.doorbell().ring();
    let text = answer(&stream);
    assert!(text.contains("\r\nContent-Length: 1\r\n") && !text.contains("chunked"), "{text}");
    assert!(text.ends_with('9'), "{text}");
}

#[test]
fn to_http_1_0_a_body_goes_on_until_the_connection_ends() {
    let fixture = start(endless());
    fixture.make(some("one"));
    fixture.make(some("two"));
    fixture.make(Piece::End(b"three".to_vec()));
    let mut stream = fixture.connect();
    stream.write_all(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
    let text = rest(&stream);
    assert!(text.contains("\r\nConnection: close\r\n") && !text.contains("chunked"), "{text}");
    assert!(text.ends_with("\r\n\r\nonetwothree"), "{text}");
}

#[test]
fn who_asks_with_head_gets_the_head_alone() {
    let fixture = start(endless());
    let mut stream = fixture.connect();
    stream.write_all(b"HEAD /stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(until(&stream, "\r\n\r\n").contains("\r\nTransfer-Encoding: chunked\r\n"));
    stream.write_all(b"GET /quick HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(answer(&stream).ends_with('1'));
    assert_eq!(fixture.streams(), 0);
}

#[test]
fn a_request_behind_a_stream_is_answered_after_it() {
    let fixture = start(endless());
    let (mut stream, ticket) = fixture.begin_stream();
    stream.write_all(b"GET /quick HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    fixture.make(some("one"));
    fixture.make(Piece::End(Vec::new()));
    ticket.doorbell().ring();
    assert!(until(&stream, "0\r\n\r\n").ends_with("3\r\none\r\n0\r\n\r\n"));
    assert!(answer(&stream).ends_with('1'));
}

#[test]
fn one_stream_too_many_gets_another_answer_and_a_hang_up_makes_room() {
    let fixture = start(Limits { streams: 2, ..endless() });
    let (_first, _) = fixture.begin_stream();
    let (second, _) = fixture.begin_stream();
    assert!(rest_after(&fixture.send("stream")).starts_with("HTTP/1.1 503 "));
    fixture.tickets.recv().unwrap();
    assert_eq!(fixture.service.counts.streams_refused.load(Ordering::Relaxed), 1);
    drop(second);
    fixture.await_streams(1);
    let (third, ticket) = fixture.begin_stream();
    // Once for each of the two.
    for _ in 0..2 {
        fixture.make(some("one"));
        fixture.make(Piece::Later(Moment::FAR_FUTURE));
    }
    ticket.doorbell().ring();
    until(&third, "one\r\n");
}

#[test]
fn who_hangs_up_behind_many_bytes_makes_room_as_well() {
    let fixture = start(endless());
    let request = "GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n";
    // All at once, or when the stream waits already.
    for pause in [false, true] {
        let mut stream = fixture.connect();
        stream.write_all(request.as_bytes()).unwrap();
        if pause {
            fixture.tickets.recv().unwrap();
            fixture.await_streams(1);
        }
        stream.write_all(request.repeat(1_000).as_bytes()).unwrap();
        drop(stream);
        if !pause {
            fixture.tickets.recv().unwrap();
        }
        fixture.await_streams(0);
    }
    let (mut half_closed, _) = fixture.begin_stream();
    half_closed.write_all(request.repeat(1_000).as_bytes()).unwrap();
    half_closed.shutdown(std::net::Shutdown::Write).unwrap();
    let mut seen = vec![0; 4096];
    let read = half_closed.read(&mut seen).unwrap();
    assert!(String::from_utf8_lossy(&seen[..read]).contains("Connection: close"), "its answer still comes");
}

#[test]
fn streams_and_parked_replies_share_what_may_wait() {
    let fixture = start(Limits { waiting: 2, ..endless() });
    let _parked = fixture.send("park");
    fixture.tickets.recv().unwrap();
    let (stream, _) = fixture.begin_stream();
    assert!(answer(&fixture.send("park")).ends_with('0'));
    assert!(rest_after(&fixture.send("stream")).starts_with("HTTP/1.1 503 "));
    drop(stream);
    fixture.await_streams(0);
    let _another = fixture.begin_stream();
}

#[test]
fn who_has_finished_sending_gets_the_end() {
    let fixture = start(endless());
    let (stream, ticket) = fixture.begin_stream();
    fixture.make(some("one"));
    ticket.doorbell().ring();
    until(&stream, "one\r\n");
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rest(&stream), "3\r\nbye\r\n0\r\n\r\n");
}

/// The source always has more. What is made for a client that takes nothing is bounded, and while it
/// is waited for, others are served.
#[test]
fn who_takes_nothing_is_cut_off_while_others_are_served() {
    let stuck = |limits| {
        let fixture = start(limits);
        let (stream, ticket) = fixture.begin_stream();
        for _ in 0..4_000 {
            fixture.make(Piece::Some(vec![b'x'; 16 * 1024]));
        }
        ticket.doorbell().ring();
        (fixture, stream)
    };
    let (patient, _stream) = stuck(endless());
    for _ in 0..10 {
        assert!(answer(&patient.send("quick")).ends_with('1'));
    }
    assert_eq!((patient.cut(), patient.streams()), (0, 1));
    let (fixture, stream) = stuck(Limits { write_time: SHORT, ..endless() });
    await_that(|| fixture.cut() == 1);
    assert_eq!((fixture.cut(), fixture.streams()), (1, 0));
    assert!(!fixture.service.pieces.is_empty(), "64 MiB are more than the kernel holds for a connection");
    assert!(!rest(&stream).ends_with("0\r\n\r\n"), "a body that is cut off has no end");
}

#[test]
fn whom_the_source_calls_too_slow_is_cut_off_without_an_end() {
    let fixture = start(endless());
    fixture.make(some("one"));
    fixture.make(Piece::TooSlow);
    let stream = fixture.send("stream");
    assert!(!rest(&stream).ends_with("0\r\n\r\n"));
    await_that(|| fixture.cut() == 1);
}

#[test]
fn a_source_that_panics_hurts_nobody_else() {
    let fixture = start(endless());
    let (mut stream, ticket) = fixture.begin_stream();
    fixture.make.send(Box::new(|_| panic!("on purpose"))).unwrap();
    ticket.doorbell().ring();
    let mut byte = [0];
    let end = stream.read(&mut byte);
    assert!(end.is_err() || end.is_ok_and(|read| read == 0), "the connection ends");
    fixture.await_streams(0);
    assert_eq!(fixture.cut(), 0);
    assert!(answer(&fixture.send("quick")).ends_with('1'));
}

#[test]
fn a_stop_brings_streams_to_their_end() {
    let mut fixture = start(endless());
    fixture.make(some("one"));
    let begun = fixture.send("stream");
    until(&begun, "one\r\n");
    fixture.tickets.recv().unwrap();
    fixture.await_streams(1);
    let (silent, _) = fixture.begin_stream();
    fixture.server.shutdown(NEVER);
    assert_eq!(rest(&begun), "3\r\nbye\r\n0\r\n\r\n");
    let text = rest(&silent);
    assert!(text.contains("\r\nConnection: close\r\n") && text.ends_with("\r\n\r\nbye"), "{text}");
    let error = TcpStream::connect(fixture.server.local_addr()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}
