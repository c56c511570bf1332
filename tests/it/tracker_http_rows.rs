//! The protocol table of the research into HTTP servers (`research/http-tracker.md`, section 3), each
//! row at its strictest value. Other servers let some of them pass; the row's name says which case.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;

use crate::support::{GENEROUS, isolated};
use crate::tracker_support::{Http, server};

const HOST: &str = "Host: localhost\r\n";
/// Behind each case: it must not be run where the case is refused, because a proxy in front may have
/// taken these bytes for the body.
const HIDDEN: &str = "POST /apps/victim/kill-all HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// How a row of the table must end.
struct Row {
    name: &'static str,
    /// Request line and header fields, without the empty line.
    head: String,
    body: &'static str,
    /// All statuses until the server closes or, if `open`, falls silent.
    statuses: &'static [u16],
    open: bool,
}

fn row(name: &'static str, head: &str, body: &'static str, statuses: &'static [u16]) -> Row {
    Row { name, head: head.to_owned(), body, statuses, open: false }
}

/// A request line with a `Host` and these fields.
fn post(fields: &str) -> String {
    format!("POST /sessions HTTP/1.1\r\n{HOST}{fields}")
}

fn rows() -> Vec<Row> {
    let get = "GET /sessions HTTP/1.1\r\n";
    vec![
        row(
            "CL + TE, second request hidden",
            &post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
            "0\r\n\r\n",
            &[411],
        ),
        row(
            "CL + TE, the other way round",
            &post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
            "0\r\n\r\n",
            &[411],
        ),
        row(
            "TE `gzip, chunked` + CL",
            &post("Transfer-Encoding: gzip, chunked\r\nContent-Length: 5\r\n"),
            "0\r\n\r\n",
            &[411],
        ),
        row("two different CL", &post("Content-Length: 2\r\nContent-Length: 4\r\n"), "{}", &[400]),
        row("two equal CL", &post("Content-Length: 2\r\nContent-Length: 2\r\n"), "{}", &[400]),
        row("a list of CL", &post("Content-Length: 2, 2\r\n"), "{}", &[400]),
        row("`Content-Length: -1`", &post("Content-Length: -1\r\n"), "", &[400]),
        row("`Content-Length: +2`", &post("Content-Length: +2\r\n"), "{}", &[400]),
        row("no Host on 1.1", get, "", &[400]),
        row("two Host on 1.1", &format!("{get}{HOST}{HOST}"), "", &[400]),
        row("chunked body", &post("Transfer-Encoding: chunked\r\n"), "2\r\n{}\r\n0\r\n\r\n", &[411]),
        row("HTTP/1.0 closes", "GET /sessions HTTP/1.0\r\n", "", &[200]),
        Row {
            open: true,
            ..row(
                "HTTP/1.0 stays open on request",
                "GET /sessions HTTP/1.0\r\nConnection: keep-alive\r\n",
                "",
                &[200, 200],
            )
        },
        Row { open: true, ..row("HTTP/1.1 stays open", &format!("{get}{HOST}"), "", &[200, 200]) },
        row("HTTP/1.1 closes on request", &format!("{get}{HOST}Connection: close\r\n"), "", &[200]),
        row("bare LF between fields", &format!("{get}{HOST}X: a\nY: b\r\n"), "", &[400]),
        row("bare LF after the request line", "GET /sessions HTTP/1.1\nHost: localhost\r\n", "", &[400]),
    ]
}

isolated! {
    fn every_row_of_the_research_has_its_strict_status_and_nothing_hidden_is_run() {
        let server = server();
        let mut witness = Http::connect(server.local_addr());
        let victim = witness.register("victim");
        for Row { name, head, body, statuses, open } in rows() {
            let mut http = Http::connect(server.local_addr());
            let behind = if open { format!("GET /sessions HTTP/1.1\r\n{HOST}\r\n") } else { HIDDEN.to_owned() };
            http.raw(format!("{head}\r\n{body}{behind}"));
            for status in statuses {
                let answer = http.answer().unwrap_or_else(|| panic!("{name}: the server hangs up"));
                assert_eq!(answer.status, *status, "{name}");
            }
            // The server closes by itself, except where the connection is good for more.
            if open {
                http.finish_sending();
            }
            assert!(http.answer().is_none(), "{name}: one more answer");
            assert_eq!(witness.row(&victim).unwrap()["kill_requested"], false, "{name}: what was hidden was run");
        }
    }
}

isolated! {
    fn row_3_pipelined_all_three_are_answered_in_order() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let id = http.register("a");
        http.raw(format!(
            "POST /sessions/{id}/heartbeat HTTP/1.1\r\n{HOST}\r\n\
             GET /sessions HTTP/1.1\r\n{HOST}\r\n\
             DELETE /sessions/{id} HTTP/1.1\r\n{HOST}\r\n"
        ));
        assert_eq!(http.answer().unwrap().json()["kill_requested"], false);
        assert_eq!(http.answer().unwrap().json()["sessions"][0]["session_id"], *id);
        assert_eq!(http.answer().unwrap().json()["status"], "deleted");
    }
}

isolated! {
    fn row_expect_100_continue_the_body_is_asked_for_or_refused_unsent() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let body = r#"{"app_name":"a"}"#;
        let head = |length: usize| post(&format!("Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n"));
        http.raw(head(body.len()));
        assert_eq!(http.answer().unwrap().status, 100);
        http.raw(body);
        assert_eq!(http.answer().unwrap().status, 200);
        // Nothing to wait for: no invitation.
        http.raw(head(body.len()) + body);
        assert_eq!(http.answer().unwrap().status, 200);
        http.raw(head(64 * 1024 + 1));
        assert_eq!(http.answer().unwrap().status, 413);
        assert!(http.answer().is_none());
    }
}

isolated! {
    fn row_1_mb_header_is_431() {
        let server = server();
        for (name, fields) in [
            ("one field of 1 MB", format!("X: {}\r\n", "x".repeat(1024 * 1024))),
            ("1 MB of fields", "X: yyyyyyyyyy\r\n".repeat(75_000)),
        ] {
            let mut http = Http::connect(server.local_addr());
            http.raw(format!("GET /sessions HTTP/1.1\r\n{HOST}{fields}\r\n{HIDDEN}"));
            assert_eq!(http.answer().unwrap().status, 431, "{name}");
            assert!(http.answer().is_none(), "{name}");
        }
    }
}

isolated! {
    fn bodies_are_capped_at_64_kib_and_batches_at_1_mib() {
        let server = server();
        for (path, cap) in [("/sessions", 64 * 1024), ("/sessions/x/status", 64 * 1024), ("/heartbeats", 1024 * 1024)] {
            for length in [cap, cap + 1] {
                let mut http = Http::connect(server.local_addr());
                http.send("POST", path, &" ".repeat(length));
                let status = http.answer().unwrap().status;
                assert_eq!(status == 413, length > cap, "{path} with {length} bytes: {status}");
            }
        }
    }
}

/// What the kernel may hold of a connection on its own, both ends together, and what the server throws
/// away while the client may still read the answer. Far below what the client would send.
const BUFFERS: usize = 20 * 1024 * 1024;
const ENDLESS: usize = 100 * 1024 * 1024;

/// How many bytes of an endless request the server lets the client send before it hangs up.
fn taken(stream: &mut TcpStream, start: &str) -> usize {
    stream.set_write_timeout(Some(GENEROUS)).unwrap();
    stream.write_all(start.as_bytes()).unwrap();
    let piece = vec![b'x'; 64 * 1024];
    let mut taken = 0;
    while taken < ENDLESS {
        match stream.write(&piece) {
            Ok(written) => taken += written,
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
                    "the server neither reads nor hangs up: {error}"
                );
                break;
            }
        }
    }
    taken
}

/// The largest resident memory that this process, and so the server in it, has ever had.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

isolated! {
    fn rows_endless_header_and_100_mb_body_the_server_hangs_up_and_keeps_nothing() {
        let server = server();
        let before = peak_memory();
        for (name, start) in [
            ("endless header", format!("GET /sessions HTTP/1.1\r\n{HOST}X: ")),
            ("endless request line", "GET /".to_owned()),
            ("100 MB body", post(&format!("Content-Length: {ENDLESS}\r\n\r\n"))),
            ("endless chunked body", post("Transfer-Encoding: chunked\r\n\r\n")),
        ] {
            let mut stream = TcpStream::connect(server.local_addr()).unwrap();
            let taken = taken(&mut stream, &start);
            assert!(taken < BUFFERS, "{name}: {taken} bytes were taken");
        }
        let grown = peak_memory() - before;
        assert!(grown < 4 * 1024 * 1024, "the server kept {grown} bytes");
        assert!(Http::connect(server.local_addr()).list().is_empty());
    }
}
