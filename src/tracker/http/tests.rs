//! The server with deadlines short enough to wait for, and a service that does as it is told.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::*;

mod streams;

use streams::Made;

use crate::sync::Mutex;

const SHORT: Duration = Duration::from_millis(30);
const NEVER: Duration = Duration::from_secs(600);

/// `/quick` answers at once, `/park` parks, `/stream` streams, `/panic` panics, anything else waits for a permit.
struct Scripted {
    permits: Receiver<()>,
    entered: Sender<String>,
    tickets: Sender<Ticket>,
    pieces: Receiver<Made>,
    counts: Counts,
    answers: Mutex<Vec<Answered>>,
}

impl Service for Scripted {
    fn counts(&self) -> &Counts {
        &self.counts
    }

    fn quick(&self, request: Request, ticket: &Ticket) -> Result<Action, Request> {
        ticket.is_about(u16::try_from(request.path[0].len()).unwrap());
        match request.path[0].as_str() {
            "quick" => Ok(Action::Respond(Response::fixed_json("1"))),
            "park" => {
                self.tickets.send(ticket.clone()).unwrap();
                Ok(Action::Park { wait: NEVER, otherwise: Response::fixed_json("0") })
            }
            "park-briefly" => Ok(Action::Park { wait: SHORT, otherwise: Response::fixed_json("0") }),
            "panic" => panic!("on purpose"),
            "stream" => {
                self.tickets.send(ticket.clone()).unwrap();
                Ok(Action::Stream(self.stream()))
            }
            "block" => {
                self.entered.send("block".to_owned()).unwrap();
                self.permits.recv().unwrap();
                Ok(Action::Respond(Response::fixed_json("2")))
            }
            _ => Err(request),
        }
    }

    fn answered(&self, answered: Answered) {
        self.answers.lock().push(answered);
    }

    fn takes_long(&self, request: &Request) -> bool {
        request.path[0] == "long"
    }

    fn handle(&self, request: Request, _: &Ticket) -> Action {
        assert_ne!(request.path[0], "panic-later", "on purpose");
        self.entered.send(request.path[0].clone()).unwrap();
        self.permits.recv().unwrap();
        Action::Respond(Response::fixed_json("2"))
    }
}

struct Fixture {
    server: HttpServer,
    service: Arc<Scripted>,
    permits: Sender<()>,
    entered: Receiver<String>,
    tickets: Receiver<Ticket>,
    make: Sender<Made>,
}

/// No deadline comes unless a test shortens it.
fn endless() -> Limits {
    Limits {
        head_time: NEVER,
        body_time: NEVER,
        idle_time: NEVER,
        write_time: NEVER,
        linger_time: NEVER,
        ..Limits::default()
    }
}

fn start(limits: Limits) -> Fixture {
    let ((permits, permitted), (enter, entered)) = (unbounded(), unbounded());
    let ((give, tickets), (make, pieces)) = (unbounded(), unbounded());
    let counts = Counts::default();
    let service = Arc::new(Scripted {
        permits: permitted,
        entered: enter,
        tickets: give,
        pieces,
        counts,
        answers: Mutex::default(),
    });
    let server = HttpServer::start(own_address(), Arc::clone(&service), limits).unwrap();
    Fixture { server, service, permits, entered, tickets, make }
}

/// An address of loopback that no other server has: at the port that one has left nobody listens.
fn own_address() -> SocketAddr {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = std::process::id() << 8 | NUMBER.fetch_add(1, Ordering::Relaxed) & 0xff;
    SocketAddr::from((Ipv4Addr::from(0x7f80_0000 | number & 0x007f_ffff), 0))
}

impl Fixture {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.server.local_addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    fn send(&self, path: &str) -> TcpStream {
        let mut stream = self.connect();
        write!(stream, "GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        stream
    }
}

/// Everything until the server closes.
fn rest(mut stream: &TcpStream) -> String {
    let mut text = Vec::new();
    // A reset after the answer is an end as well.
    let _ = stream.read_to_end(&mut text);
    String::from_utf8(text).unwrap()
}

/// One answer with a body of one byte.
fn answer(mut stream: &TcpStream) -> String {
    let mut text = Vec::new();
    while !text.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    let mut body = [0];
    stream.read_exact(&mut body).unwrap();
    String::from_utf8(text).unwrap() + &String::from_utf8_lossy(&body)
}

/// Sends this on a new connection and reads to the end. Once more if it took so long that the server had
/// given the connection up by then, of which it says nothing.
fn rest_of(fixture: &Fixture, bytes: &[u8]) -> String {
    let deadline = crate::clock::Moment::after(Duration::from_secs(60));
    loop {
        let mut stream = fixture.connect();
        let _ = stream.write_all(bytes);
        let text = rest(&stream);
        if !text.is_empty() || crate::clock::Moment::now() > deadline {
            return text;
        }
    }
}

#[test]
fn a_head_that_does_not_come_to_its_end_is_answered_408() {
    let fixture = start(Limits { head_time: SHORT, ..endless() });
    assert!(rest_of(&fixture, b"GET / HTTP/1.1\r\nHo").starts_with("HTTP/1.1 408 "));
    assert_eq!(rest(&fixture.connect()), "", "a connection that says nothing is closed without a word");
}

#[test]
fn a_body_that_does_not_come_to_its_end_is_answered_408() {
    let fixture = start(Limits { body_time: SHORT, ..endless() });
    let mut slow = fixture.connect();
    slow.write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nab").unwrap();
    assert!(rest(&slow).starts_with("HTTP/1.1 408 "));
}

#[test]
fn bytes_that_trickle_do_not_move_the_deadline() {
    let fixture = start(Limits { head_time: Duration::from_millis(200), ..endless() });
    let mut buffer = [0; 512];
    let mut trickle = || {
        let mut slow = fixture.connect();
        let _ = slow.write_all(b"GET / HTTP/1.1\r\nX: ");
        slow.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        // Until the answer is there: the pauses are those of reading.
        loop {
            let _ = slow.write_all(b"x");
            match slow.read(&mut buffer) {
                Ok(read) => return String::from_utf8_lossy(&buffer[..read]).into_owned(),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return String::new(),
                Err(_) => {}
            }
        }
    };
    // One whose first bytes come too late is given up without a word.
    let mut answer = trickle();
    while answer.is_empty() {
        answer = trickle();
    }
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[test]
fn an_idle_connection_is_closed() {
    let fixture = start(Limits { idle_time: SHORT, ..endless() });
    let text = rest(&fixture.send("quick"));
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("\r\n\r\n1"), "{text}");
}

#[test]
fn a_client_that_does_not_close_is_closed_after_its_last_answer() {
    let fixture = start(Limits { linger_time: SHORT, ..endless() });
    let mut stream = fixture.connect();
    stream.write_all(b"GET /quick HTTP/1.0\r\n\r\n").unwrap();
    assert!(rest(&stream).ends_with('1'));
    // The server reads no more: sooner or later writing fails.
    while stream.write_all(&[0; 1024]).is_ok() {}
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let fixture = start(Limits { write_time: SHORT, ..endless() });
    let mut stream = fixture.connect();
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    let request = b"GET /quick HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1_000);
    let error = loop {
        if let Err(error) = stream.write_all(&request) {
            break error;
        }
    };
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the server neither reads nor hangs up");
}

#[test]
fn a_parked_reply_ends_by_itself_and_the_connection_goes_on() {
    let fixture = start(endless());
    let mut stream = fixture.send("park-briefly");
    assert!(answer(&stream).ends_with('0'));
    stream.write_all(b"GET /quick HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(answer(&stream).ends_with('1'));
}

#[test]
fn a_ticket_answers_once_and_never_a_later_request() {
    let fixture = start(endless());
    let mut stream = fixture.send("park");
    let first = fixture.tickets.recv().unwrap();
    first.send(Response::fixed_json("7"));
    first.send(Response::fixed_json("8"));
    assert!(answer(&stream).ends_with('7'));
    stream.write_all(b"GET /park HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let second = fixture.tickets.recv().unwrap();
    assert!(!first.same(&second));
    first.send(Response::fixed_json("9"));
    second.send(Response::fixed_json("6"));
    assert!(answer(&stream).ends_with('6'));
    drop(stream);
    // The slot may belong to somebody else by now.
    let other = fixture.send("park");
    let third = fixture.tickets.recv().unwrap();
    second.send(Response::fixed_json("9"));
    third.send(Response::fixed_json("5"));
    assert!(answer(&other).ends_with('5'));
}

#[test]
fn more_parked_replies_than_the_cap_are_answered_at_once() {
    let fixture = start(Limits { waiting: 2, ..endless() });
    let parked = [fixture.send("park"), fixture.send("park")];
    let tickets: Vec<Ticket> = (0..2).map(|_| fixture.tickets.recv().unwrap()).collect();
    assert!(answer(&fixture.send("park")).ends_with('0'));
    tickets[0].send(Response::fixed_json("1"));
    tickets[1].send(Response::fixed_json("1"));
    for stream in &parked {
        assert!(answer(stream).ends_with('1'));
    }
    let _ = fixture.tickets.recv().unwrap();
    let again = fixture.send("park");
    fixture.tickets.recv().unwrap().send(Response::fixed_json("3"));
    assert!(answer(&again).ends_with('3'), "a place has become free");
}

#[test]
fn a_panic_answers_500_and_hurts_nobody_else() {
    let fixture = start(endless());
    for path in ["panic", "panic-later"] {
        assert!(rest_after(&fixture.send(path)).starts_with("HTTP/1.1 500 "));
    }
    assert!(answer(&fixture.send("quick")).ends_with('1'));
}

/// The beginning of the next answer.
fn rest_after(mut stream: &TcpStream) -> String {
    let mut start = [0; 20];
    stream.read_exact(&mut start).unwrap();
    String::from_utf8_lossy(&start).into_owned()
}

#[test]
fn busy_handlers_do_not_hold_up_what_needs_none() {
    let fixture = start(endless());
    let busy: Vec<TcpStream> = (0..6).map(|_| fixture.send("slow")).collect();
    for _ in 0..4 {
        fixture.entered.recv().unwrap();
    }
    assert!(answer(&fixture.send("quick")).ends_with('1'));
    for _ in 0..6 {
        fixture.permits.send(()).unwrap();
    }
    for stream in &busy {
        assert!(answer(stream).ends_with('2'));
    }
}

#[test]
fn what_takes_long_leaves_handlers_to_the_rest() {
    let fixture = start(endless());
    let long: Vec<TcpStream> = (0..8).map(|_| fixture.send("long")).collect();
    for _ in 0..2 {
        assert_eq!(fixture.entered.recv().unwrap(), "long");
    }
    let short = fixture.send("slow");
    assert_eq!(fixture.entered.recv_timeout(Duration::from_secs(60)).as_deref(), Ok("slow"));
    for _ in 0..9 {
        fixture.permits.send(()).unwrap();
    }
    for stream in long.iter().chain([&short]) {
        assert!(answer(stream).ends_with('2'));
    }
}

#[test]
fn a_graceful_stop_answers_what_has_arrived_and_closes_the_rest() {
    let mut fixture = start(endless());
    let (busy, parked, idle) = (fixture.send("slow"), fixture.send("park"), fixture.send("quick"));
    fixture.entered.recv().unwrap();
    fixture.tickets.recv().unwrap();
    answer(&idle);
    let address = fixture.server.local_addr();
    let (stopping, stopped) = bounded(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            fixture.server.shutdown(NEVER);
            stopping.send(()).unwrap();
        });
        let text = rest(&parked);
        assert!(text.ends_with('0') && text.contains("Connection: close"), "{text}");
        assert_eq!(rest(&idle), "");
        assert!(TcpStream::connect(address).is_err(), "nobody new is let in");
        assert!(stopped.try_recv().is_err(), "a handler is at work");
        fixture.permits.send(()).unwrap();
        let text = rest(&busy);
        assert!(text.ends_with('2') && text.contains("Connection: close"), "{text}");
        stopped.recv().unwrap();
    });
}

/// Requests whose bytes are there when the stop begins, on connections the loop has not seen yet
/// as well as on those it holds.
#[test]
fn a_stop_answers_requests_that_nobody_has_read_yet() {
    let mut fixture = start(endless());
    let held = fixture.send("quick");
    answer(&held);
    // The loop is in the service until the permit comes: what follows waits in the sockets.
    let blocking = fixture.send("block");
    assert_eq!(fixture.entered.recv().unwrap(), "block");
    (&held).write_all(b"GET /quick HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let new = fixture.send("quick");
    fixture.server.begin_shutdown(NEVER);
    fixture.permits.send(()).unwrap();
    for (stream, body) in [(&held, '1'), (&new, '1'), (&blocking, '2')] {
        let text = rest(stream);
        assert!(text.ends_with(body), "{text}");
        assert_eq!(text.contains("Connection: close"), body == '1', "{text}");
    }
    fixture.server.shutdown(NEVER);
}

#[test]
fn a_request_with_a_cap_of_its_own_may_be_longer_than_the_others() {
    let body_bytes = |request: &Request| if request.path[0] == "quick" { 1024 * 1024 } else { 3 };
    let fixture = start(Limits { body_bytes: BodyBytes(Arc::new(body_bytes)), ..endless() });
    for (path, length, status) in [
        ("quick", 1024 * 1024, 200),
        ("quick", 1024 * 1024 + 1, 413),
        ("park-briefly", 3, 200),
        ("park", 4, 413),
    ] {
        let mut stream = fixture.connect();
        write!(stream, "POST /{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n")
            .unwrap();
        // Half, so that the server waits with a long body in its hands; and another request behind it.
        let body = vec![b' '; length];
        let _ = stream.write_all(&body[..length / 2]);
        let _ = stream.write_all(&body[length / 2..]);
        let _ = stream.write_all(b"GET /quick HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let text = rest(&stream);
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {length}: {text}");
        assert_eq!(
            text.matches("HTTP/1.1").count(),
            if status == 200 { 2 } else { 1 },
            "{path} {length}: {text}"
        );
    }
}

/// A new connection on which a request was answered. Another one if it took so long to send that the server
/// had given the connection up.
fn served(fixture: &Fixture, head_time: Duration) -> TcpStream {
    let deadline = crate::clock::Moment::after(Duration::from_secs(60));
    loop {
        let given_up = crate::clock::Moment::after(head_time);
        let mut stream = fixture.connect();
        let _ = stream.write_all(b"GET /quick HTTP/1.1\r\nHost: localhost\r\n\r\n");
        if stream.peek(&mut [0]).is_ok_and(|count| count > 0) {
            assert!(answer(&stream).ends_with('1'));
            return stream;
        }
        assert!(crate::clock::Moment::now() >= given_up, "new clients are served as well");
        assert!(crate::clock::Moment::now() < deadline, "new clients are never served");
    }
}

/// Each of 500 clients sends a byte now and then, as if its request came over a very thin line. Good
/// clients are served all the while, from the first to the last moment.
#[test]
fn slow_connections_are_dropped_while_good_clients_are_served() {
    let head_time = Duration::from_secs(1);
    let fixture = start(Limits { head_time, ..endless() });
    let good = served(&fixture, head_time);
    let connect = || (0..500).map(|_| (fixture.connect(), 0)).collect();
    let (mut slow, mut rounds): (Vec<(TcpStream, usize)>, _) = (connect(), 0);
    loop {
        slow.retain_mut(|(stream, sent)| {
            stream.set_nonblocking(true).unwrap();
            let line = b"GET / HTTP/1.1\r\nX: ";
            let _ = stream.write(&[*line.get(*sent).unwrap_or(&b'x')]);
            *sent += 1;
            // Its 408 or its end.
            stream.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        });
        match slow.is_empty() {
            true if rounds > 0 => break,
            // A busy machine: the first were given up before the last were there.
            true => slow = connect(),
            false => rounds += 1,
        }
        (&good).write_all(b"GET /quick HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert!(answer(&good).ends_with('1'));
        served(&fixture, head_time);
    }
}

/// The first is left out, as some clients send one after a body; more are no way to stay for ever.
#[test]
fn empty_lines_do_not_keep_a_connection() {
    let fixture = start(endless());
    let used = fixture.send("quick");
    assert!(answer(&used).ends_with('1'));
    for mut stream in [used, fixture.connect()] {
        stream.write_all(b"\r\n\r\n").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(rest(&stream).starts_with("HTTP/1.1 400 "));
    }
}

/// After a restart, say. None of them is told by silence to try again a second later.
#[test]
fn many_clients_that_come_at_once_are_let_in_even_while_the_loop_is_busy() {
    let fixture = start(endless());
    let busy = fixture.send("block");
    assert_eq!(fixture.entered.recv().unwrap(), "block");
    let address = fixture.server.local_addr();
    let clients: Vec<_> =
        (0..300).map(|_| TcpStream::connect_timeout(&address, Duration::from_secs(60)).unwrap()).collect();
    fixture.permits.send(()).unwrap();
    assert!(answer(&busy).ends_with('2'));
    drop(clients);
}

#[test]
fn each_answer_is_told_with_what_it_is_about() {
    let fixture = start(endless());
    assert!(answer(&fixture.send("quick")).ends_with('1'));
    let parked = fixture.send("park");
    fixture.tickets.recv().unwrap().send(Response::fixed_json("7"));
    answer(&parked);
    let mut garbage = fixture.connect();
    garbage.write_all(b"\x16\x03").unwrap();
    rest(&garbage);
    fixture.permits.send(()).unwrap();
    answer(&fixture.send("slower"));
    let told: Vec<_> = fixture.service.answers.lock().iter().map(summary).collect();
    let get = |length: u16, timed: bool| (Some(length), Method::Get, 200, timed);
    assert_eq!(told, [get(5, true), get(4, false), (None, Method::Other, 400, false), get(6, true)]);
}

fn summary(answered: &Answered) -> (Option<u16>, Method, u16, bool) {
    (answered.subject, answered.method, answered.status, answered.took.is_some())
}
