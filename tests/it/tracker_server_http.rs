//! What the server accepts as HTTP, byte by byte.

use remuda::TrackerServer;
use serde_json::Value;

use crate::support::isolated;
use crate::tracker_support::{Http, call, server};

/// Sends bytes on a new connection and returns the statuses of all answers until the server closes.
fn statuses(server: &TrackerServer, bytes: impl AsRef<[u8]>) -> Vec<u16> {
    let mut http = Http::connect(server.local_addr());
    http.raw(bytes);
    http.finish_sending();
    std::iter::from_fn(|| http.answer()).map(|answer| answer.status).collect()
}

const HOST: &str = "Host: localhost\r\n";

isolated! {
    /// Beside the rows of the research (`tracker_http_rows`): what is refused closes the connection, so
    /// that a hidden second request is never run.
    fn odd_fields_are_refused_and_nothing_behind_them_is_run() {
        let server = server();
        let hidden = format!("GET /sessions HTTP/1.1\r\n{HOST}\r\n");
        for (status, head, body) in [
            (411, "transfer-encoding:\tidentity\r\n", ""),
            (400, "Content-Length: 0x2\r\n", "{}"),
            (400, "Content-Length:\r\n", "{}"),
            (413, "Content-Length: 99999999999999999999999999\r\n", "{}"),
            (413, "Content-Length: 100000000\r\n", "{}"),
            (400, "Content-Length : 2\r\n", "{}"),
            (400, " folded: x\r\n", ""),
            (400, "X: a\r\n b\r\n", ""),
            (400, "X: a\rb\r\n", ""),
            (400, "X: a\0b\r\n", ""),
            (417, "Expect: the-unexpected\r\n", ""),
        ] {
            let request = format!("POST /sessions HTTP/1.1\r\n{HOST}{head}\r\n{body}{hidden}");
            assert_eq!(statuses(&server, request), [status], "{head:?}");
        }
    }
}

isolated! {
    fn a_request_line_is_read_strictly() {
        let server = server();
        for (status, line) in [
            (200, "GET /sessions HTTP/1.1"),
            (505, "GET /sessions HTTP/2.0"),
            (400, "GET http://localhost/sessions HTTP/1.1"),
            (400, "CONNECT localhost:80 HTTP/1.1"),
            (400, "OPTIONS * HTTP/1.1"),
            (400, "GET  /sessions HTTP/1.1"),
            (400, "GET /sessions"),
            (400, "GET /%zz HTTP/1.1"),
            (400, "GET /%2 HTTP/1.1"),
            (400, "GET /%ff HTTP/1.1"),
            (400, "GET /%00 HTTP/1.1"),
            (400, "GET /ä HTTP/1.1"),
            (400, "GET /a#b HTTP/1.1"),
        ] {
            assert_eq!(statuses(&server, format!("{line}\r\n{HOST}\r\n")), [status], "{line}");
        }
        assert_eq!(statuses(&server, b"\x16\x03\x01\x02\x00\x01"), [400], "TLS");
        assert_eq!(statuses(&server, ""), [0; 0]);
        assert_eq!(statuses(&server, "GET /sess"), [0; 0], "half a request");
    }
}

isolated! {
    fn heads_have_a_cap() {
        let server = server();
        let long = "x".repeat(1024 * 1024);
        assert_eq!(statuses(&server, format!("GET /{long} HTTP/1.1\r\n{HOST}\r\n")), [414]);
        assert_eq!(statuses(&server, format!("GET / HTTP/1.1\r\n{HOST}{}\r\n", "X: y\r\n".repeat(101))), [431]);
    }
}

isolated! {
    fn a_body_that_is_too_large_is_refused_while_it_is_sent() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        http.raw(format!("POST /sessions HTTP/1.1\r\n{HOST}Content-Length: 104857600\r\n\r\n"));
        let chunk = vec![b' '; 64 * 1024];
        for _ in 0..16 {
            http.raw(&chunk);
        }
        assert_eq!(http.answer().unwrap().status, 413);
        assert!(http.answer().is_none());
    }
}

isolated! {
    fn pipelined_requests_are_answered_in_order() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let id = http.register("a");
        let rounds = (0..200).map(|round| {
            let status = format!(r#"{{"status":"s{round}"}}"#);
            let length = status.len();
            format!(
                "PUT /sessions/{id}/status HTTP/1.1\r\n{HOST}Content-Length: {length}\r\n\r\n{status}\r\n\
                 GET /sessions HTTP/1.1\r\n{HOST}\r\n\
                 POST /sessions/{id}/heartbeat HTTP/1.1\r\n{HOST}\r\n"
            )
        });
        let batch = rounds.collect::<Vec<_>>().concat();
        http.raw(&batch[..batch.len() / 2]);
        http.raw(&batch[batch.len() / 2..]);
        for round in 0..200 {
            assert_eq!(http.answer().unwrap().json()["status"], "updated");
            assert_eq!(http.answer().unwrap().json()["sessions"][0]["status"], format!("s{round}"));
            assert_eq!(http.answer().unwrap().json()["kill_requested"], false);
        }
    }
}

isolated! {
    fn a_client_that_reads_late_gets_everything() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        for _ in 0..20 {
            http.register(&"a".repeat(1000));
        }
        // Far more than both socket buffers hold.
        let count = 1_000;
        let mut sender = http.another_handle();
        let writer = std::thread::Builder::new()
            .spawn(move || {
                for _ in 0..count {
                    sender.raw(format!("GET /sessions HTTP/1.1\r\n{HOST}\r\n"));
                }
            })
            .unwrap();
        let mut other = Http::connect(server.local_addr());
        other.register("b");
        for _ in 0..count {
            assert!(http.answer().unwrap().json()["sessions"].as_array().unwrap().len() >= 20);
        }
        writer.join().unwrap();
    }
}

isolated! {
    fn requests_in_the_smallest_pieces_are_understood() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let body = r#"{"app_name":"a"}"#;
        let request = format!("POST /sessions HTTP/1.1\r\n{HOST}Content-Length: {}\r\n\r\n{body}", body.len());
        for byte in request.as_bytes() {
            http.raw([*byte]);
        }
        assert_eq!(http.answer().unwrap().status, 200);
    }
}

isolated! {
    fn connections_close_when_the_client_wants_that() {
        let server = server();
        let get = "GET /sessions HTTP/1";
        for (first, answers, kept) in [
            (format!("{get}.1\r\n{HOST}connection: x, Close\r\n"), 1, "close"),
            (format!("{get}.1\r\n{HOST}Connection: x, keep-alive, close\r\n"), 1, "close"),
            (format!("{get}.1\r\n{HOST}Connection: closed\r\n"), 2, "keep-alive"),
            (format!("{get}.0\r\n"), 1, "close"),
            (format!("{get}.0\r\nConnection: Keep-Alive\r\n"), 2, "keep-alive"),
        ] {
            let mut http = Http::connect(server.local_addr());
            let bytes = format!("{first}\r\n{get}.1\r\n{HOST}\r\n");
            http.raw(&bytes);
            let first = http.answer().unwrap();
            assert_eq!((first.status, first.field("connection")), (200, Some(kept)), "{bytes}");
            if answers == 2 {
                assert_eq!(http.answer().unwrap().status, 200);
                http.finish_sending();
            }
            assert!(http.answer().is_none(), "{bytes}");
        }
    }
}

isolated! {
    fn a_head_is_answered_without_a_body() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        http.raw(format!("HEAD / HTTP/1.1\r\n{HOST}\r\nGET /sessions HTTP/1.1\r\n{HOST}\r\n"));
        let head = http.answer_to_head().unwrap();
        assert_eq!(head.status, 200);
        assert_ne!(head.field("content-length"), Some("0"));
        assert!(http.answer().unwrap().json()["sessions"].is_array());
    }
}

isolated! {
    /// Defect B9, the half about browsers.
    fn foreign_hosts_and_origins_are_refused() {
        let server = server();
        let address = server.local_addr();
        let id = Http::connect(address).register("a");
        for (status, fields) in [
            (403, "Host: evil.example\r\n".to_owned()),
            (403, format!("Host: evil.example:{}\r\n", address.port())),
            (403, format!("{HOST}Origin: http://evil.example\r\n")),
            (403, format!("{HOST}Origin: null\r\n")),
            (403, format!("{HOST}Origin: http://localhost:3000\r\n")),
            (200, format!("{HOST}Origin: http://localhost\r\n")),
            (200, format!("Host: {address}\r\nOrigin: http://{address}\r\n")),
            (200, HOST.to_owned()),
        ] {
            let mut http = Http::connect(address);
            http.raw(format!("POST /sessions/{id}/kill HTTP/1.1\r\n{fields}\r\n"));
            let answer = http.answer().unwrap();
            assert_eq!(answer.status, status, "{fields}");
            assert!(answer.field("access-control-allow-origin").is_none());
            let killed = Http::connect(address).row(&id).unwrap()["kill_requested"] == true;
            assert_eq!(killed, status == 200, "{fields}");
        }
    }
}

isolated! {
    fn a_full_server_says_so_and_recovers() {
        let builder = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").max_connections(2);
        let server = builder.start().unwrap();
        let mut held: Vec<Http> = (0..2).map(|_| Http::connect(server.local_addr())).collect();
        for http in &mut held {
            http.list();
            // Whoever is in the middle of a request keeps its place.
            http.raw("GET /sessions HTTP/1.1\r\n");
        }
        let mut third = Http::connect(server.local_addr());
        let refused = third.answer().unwrap();
        assert_eq!(refused.status, 503);
        assert!(refused.json()["detail"].is_string());
        assert!(third.answer().is_none() && !third.has_rest(), "bytes behind the answer");
        let mut hasty = Http::connect(server.local_addr());
        hasty.send("GET", "/sessions", "");
        assert_eq!(hasty.answer().unwrap().status, 503, "whoever asks at once hears it as well");
        drop(held);
        crate::support::poll(
            || {
                let mut http = Http::connect(server.local_addr());
                http.send("GET", "/sessions", "");
                http.answer().is_some_and(|answer| answer.status == 200)
            },
            || "no place becomes free".to_owned(),
        );
    }
}

isolated! {
    /// Every client keeps a second connection for its statuses; those must not keep out who comes
    /// to kill.
    fn idle_connections_make_room_for_a_new_one() {
        let builder = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").max_connections(4);
        let server = builder.start().unwrap();
        let mut held: Vec<Http> = (0..4).map(|_| Http::connect(server.local_addr())).collect();
        let id = held[0].register("a");
        let beat = format!("/sessions/{id}/heartbeat?wait=60");
        for http in &mut held {
            http.list();
        }
        held[0].send("POST", &beat, "");
        for _ in 0..8 {
            let mut operator = Http::connect(server.local_addr());
            operator.ok("POST", &format!("/sessions/{id}/kill"), &Value::Null);
        }
        assert_eq!(held[0].answer().unwrap().json()["kill_requested"], true);
    }
}

isolated! {
    fn many_connections_cost_no_thread() {
        let server = server();
        let mut operator = Http::connect(server.local_addr());
        let id = operator.register("a");
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        let held: Vec<Http> = (0..300)
            .map(|_| {
                let mut http = Http::connect(server.local_addr());
                http.ok("POST", &format!("/sessions/{id}/heartbeat"), &Value::Null);
                http
            })
            .collect();
        assert_eq!(threads(), before);
        drop(held);
        assert_eq!(call(server.local_addr(), "GET", "/sessions", "").status, 200);
    }
}
