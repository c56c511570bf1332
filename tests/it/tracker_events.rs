//! What the tracker tells as it happens: streamed and polled, with resume.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use remuda::TrackerServer;
use remuda::testing::ManualClock;
use serde_json::{Value, json};

use crate::support::{isolated, poll};
use crate::tracker_support::{Http, call, server};

/// A stream of server-sent events.
struct Stream {
    http: Http,
    /// Lines that belong to no whole event yet.
    text: String,
    last_id: String,
    /// The last chunk has come.
    has_ended: bool,
}

impl Stream {
    fn open(address: SocketAddr, query: &str) -> Stream {
        Stream::resume(address, query, None)
    }

    fn resume(address: SocketAddr, query: &str, last_id: Option<&str>) -> Stream {
        let mut http = Http::connect(address);
        let last_id_field = last_id.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        http.raw(format!(
            "GET /events{query} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{last_id_field}\r\n"
        ));
        let head = http.head_of_stream();
        assert_eq!(head.status, 200, "{head:?}");
        assert_eq!(head.field("content-type"), Some("text/event-stream"));
        assert_eq!(head.field("transfer-encoding"), Some("chunked"));
        assert_eq!(head.field("cache-control"), Some("no-store"));
        Stream { http, text: String::new(), last_id: String::new(), has_ended: false }
    }

    /// The lines up to the next empty one; `None` at the end.
    fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(block);
            }
            let chunk = self.http.chunk()?;
            if chunk.is_empty() {
                self.has_ended = true;
                return None;
            }
            self.text += std::str::from_utf8(&chunk).unwrap();
        }
    }

    /// The next event; `None` at the end.
    fn event(&mut self) -> Option<Value> {
        // Comments come all the time: they are no reason to wait for ever.
        for _ in 0..5 {
            let block = self.block()?;
            let field = |name: &str| {
                block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
            };
            if let Some(id) = field("id") {
                self.last_id = id;
            }
            if let Some(data) = field("data") {
                let event: Value = serde_json::from_str(&data).unwrap();
                assert_eq!(field("event").as_deref(), event["kind"].as_str());
                assert_eq!(event["id"], self.last_id);
                return Some(event);
            }
        }
        panic!("nothing happens");
    }

    fn events(&mut self, count: usize) -> Vec<Value> {
        (0..count).map(|_| self.event().expect("the stream goes on")).collect()
    }
}

/// One list of events.
fn list(http: &mut Http, query: &str) -> Value {
    http.ok("GET", &format!("/events{query}"), &Value::Null)
}

/// All events so far that fit.
fn all(http: &mut Http, filter: &str) -> Vec<Value> {
    let (mut events, mut after) = (Vec::new(), "oldest".to_owned());
    loop {
        let page = list(http, &format!("?after={after}&limit=7{filter}"));
        assert_eq!(page["reset"], false);
        page["last"].as_str().unwrap().clone_into(&mut after);
        let page = page["events"].as_array().unwrap();
        if page.is_empty() {
            return events;
        }
        events.extend_from_slice(page);
    }
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["kind"].as_str().unwrap()).collect()
}

isolated! {
    fn each_change_is_told_once_in_its_order_with_what_belongs_to_it() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let mut stream = Stream::open(server.local_addr(), "");
        let id = http.register("a");
        let beat = |http: &mut Http, body: &Value| {
            http.ok("POST", &format!("/sessions/{id}/heartbeat"), body)
        };
        beat(&mut http, &json!({"progress": 0.5}));
        let task = json!({"status": "running", "current_task": "t"});
        http.ok("PUT", &format!("/sessions/{id}/status"), &task);
        http.ok("POST", &format!("/sessions/{id}/protect"), &Value::Null);
        http.ok("POST", &format!("/sessions/{id}/protect"), &Value::Null);
        http.ok("POST", "/apps/a/pause-all", &Value::Null);
        http.ok("POST", &format!("/sessions/{id}/unprotect"), &Value::Null);
        let order = json!({"requested_by": "ann", "reason": "why", "embargo_seconds": 60});
        let killed = http.ok("POST", "/apps/a/kill-all", &order);
        http.ok("POST", "/apps/a/kill-all", &Value::Null);
        let kill_id = killed["receipts"][0]["kill_id"].clone();
        beat(&mut http, &json!({"kill": {"kill_id": kill_id, "step": "stopping"}}));
        http.ok("DELETE", &format!("/sessions/{id}"), &Value::Null);
        let newcomer = http.register("a");
        let told = stream.events(13);
        let expected = [
            "registered", "status", "ordered", "ordered", "ordered", "kill_requested", "embargo",
            "kill_delivered", "kill_stopping", "kill_confirmed", "ended", "registered", "kill_requested",
        ];
        assert_eq!(kinds(&told), expected);
        let of_session = |event: &Value| (event["session_id"].clone(), event["app_name"].clone());
        for event in told[..11].iter().filter(|event| event["kind"] != "embargo") {
            assert_eq!(of_session(event), (json!(id), json!("a")));
        }
        assert_eq!((&told[1]["status"], &told[1]["current_task"]), (&json!("running"), &json!("t")));
        let verbs: Vec<&Value> = told[2..5].iter().map(|event| &event["verb"]).collect();
        assert_eq!(verbs, ["protect", "pause", "unprotect"]);
        let asked = |event: &Value| ["requested_by", "reason", "scope"].map(|name| event[name].clone());
        assert_eq!(asked(&told[5]), ["ann", "why", "app"]);
        assert_eq!((told[5]["kill_id"].clone(), &told[6]["seconds"]), (kill_id, &json!(60.0)));
        assert!(told[8]["seconds"].as_f64().unwrap() <= told[9]["seconds"].as_f64().unwrap());
        assert_eq!((&told[10]["ended"], of_session(&told[11]).0), (&json!("killed"), json!(newcomer)));
        assert_eq!(asked(&told[12]), ["ann", "why", "embargo"]);
        // What is told by a stream and what is told on request is the same, word for word.
        assert_eq!(all(&mut http, ""), told);
        assert_eq!(all(&mut http, &format!("&session={newcomer}")), told[11..]);
        assert_eq!(kinds(&all(&mut http, "&app=a&kind=ended,embargo")), ["embargo", "ended"]);
        assert!(all(&mut http, "&app=b").is_empty());
        let mut filtered = Stream::open(server.local_addr(), "?after=oldest&app=a&kind=ended,embargo");
        assert_eq!(kinds(&filtered.events(2)), ["embargo", "ended"]);
    }
}

isolated! {
    fn a_list_waits_for_the_next_event_that_fits() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let start = list(&mut http, "");
        assert_eq!((&start["events"], &start["reset"]), (&json!([]), &json!(false)));
        let last = start["last"].as_str().unwrap();
        assert_eq!(list(&mut http, &format!("?after={last}&wait=0.05")), start, "nothing has happened");
        let mut waiting = Http::connect(server.local_addr());
        waiting.send("GET", &format!("/events?after={last}&app=b&wait=60"), "");
        http.register("a");
        http.register("b");
        let answer = waiting.answer().unwrap();
        assert!(answer.field("content-length").is_some() && answer.field("transfer-encoding").is_none());
        let page = answer.json();
        assert_eq!(kinds(page["events"].as_array().unwrap()), ["registered"]);
        assert_eq!(page["events"][0]["app_name"], "b");
        let last = page["last"].as_str().unwrap();
        let next = list(&mut waiting, &format!("?after={last}"));
        assert_eq!((&next["events"], &next["last"]), (&json!([]), &json!(last)));
    }
}

isolated! {
    /// A reader that hangs up again and again, in the middle of what comes, sees each event once.
    fn a_reader_goes_on_after_a_hang_up_without_a_gap_and_without_a_double() {
        let server = server();
        let address = server.local_addr();
        let first = list(&mut Http::connect(address), "")["last"].as_str().unwrap().to_owned();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut http = Http::connect(address);
                for number in 0..400 {
                    http.register(&format!("app-{number}"));
                }
                done.store(true, Ordering::Relaxed);
            });
            let (mut seen, mut last_id) = (Vec::new(), first);
            for round in 0.. {
                let mut stream = Stream::resume(address, "?after=nonsense", Some(&last_id));
                for _ in 0..=(round % 17) {
                    let Some(event) = (seen.len() < 400).then(|| stream.event().unwrap()) else { break };
                    seen.push(event["app_name"].as_str().unwrap().to_owned());
                    last_id = stream.last_id.clone();
                }
                if seen.len() == 400 {
                    break;
                }
            }
            let expected: Vec<String> = (0..400).map(|number| format!("app-{number}")).collect();
            assert_eq!(seen, expected);
        });
        assert!(done.load(Ordering::Relaxed));
    }
}

isolated! {
    fn an_id_of_another_time_begins_with_a_reset() {
        let before = server();
        let old = {
            let mut http = Http::connect(before.local_addr());
            http.register("a");
            list(&mut http, "")["last"].as_str().unwrap().to_owned()
        };
        before.shutdown();
        let server = server();
        let mut http = Http::connect(server.local_addr());
        http.register("a");
        for id in [old.as_str(), "nonsense", "%20"] {
            let now = list(&mut http, "")["last"].as_str().unwrap().to_owned();
            assert_ne!(old, now);
            let page = list(&mut http, &format!("?after={id}&wait=60"));
            assert_eq!(page, json!({"events": [], "last": now, "reset": true}));
            let mut stream = Stream::open(server.local_addr(), &format!("?after={id}"));
            let reset = stream.event().unwrap();
            assert_eq!((&reset["kind"], &reset["id"]), (&json!("reset"), &json!(now)));
            let another = http.register("b");
            assert_eq!(stream.event().unwrap()["session_id"], *another, "it goes on from now");
            http.ok("DELETE", &format!("/sessions/{another}"), &Value::Null);
        }
    }
}

isolated! {
    /// The reader stops reading until more has happened than anybody remembers. Others hear of it all.
    fn who_falls_behind_is_cut_off_while_others_are_served_and_begins_with_a_reset() {
        let server = server();
        let address = server.local_addr();
        let mut slow = Stream::open(address, "");
        let mut good = Stream::open(address, "?kind=registered");
        let mut http = Http::connect(address);
        // Some 2 KiB an event.
        let app = "a".repeat(1_024);
        let ids: Vec<String> = (0..300).map(|_| http.register(&app)).collect();
        assert_eq!(good.events(300).len(), 300);
        let task = "t".repeat(1_000);
        for _ in 0..70 {
            let beats: Vec<Value> = ids
                .iter()
                .map(|id| json!({"session_id": id, "status": "running", "current_task": task}))
                .collect();
            http.ok("POST", "/heartbeats", &json!({ "beats": beats }));
        }
        http.register("b");
        assert_eq!(good.event().unwrap()["app_name"], "b");
        let mut seen = 0;
        while let Some(event) = slow.event() {
            seen += 1;
            assert_ne!(event["app_name"], "b", "nothing is left out unawares");
        }
        assert!(!slow.has_ended, "a stream that is cut off has no end");
        assert!((300..21_301).contains(&seen), "{seen}");
        let mut again = Stream::resume(address, "", Some(&slow.last_id));
        assert_eq!(again.event().unwrap()["kind"], "reset");
    }
}

isolated! {
    fn a_hundred_streams_hear_the_same_without_a_thread_each() {
        let server = server();
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        let mut streams: Vec<Stream> = (0..100).map(|_| Stream::open(server.local_addr(), "")).collect();
        assert_eq!(threads(), before);
        let mut http = Http::connect(server.local_addr());
        for _ in 0..50 {
            http.register("a");
        }
        http.ok("POST", "/apps/a/kill-all", &Value::Null);
        let expected = all(&mut http, "");
        assert_eq!(expected.len(), 100);
        for stream in &mut streams {
            assert_eq!(stream.events(100), expected);
        }
    }
}

isolated! {
    fn a_stop_ends_streams_and_answers_who_waits() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let mut stream = Stream::open(server.local_addr(), "");
        http.register("a");
        let last = list(&mut http, "")["last"].as_str().unwrap().to_owned();
        http.send("GET", &format!("/events?after={last}&wait=60"), "");
        assert_eq!(stream.event().unwrap()["kind"], "registered");
        server.shutdown();
        assert_eq!(stream.event(), None);
        assert!(stream.has_ended, "with a last chunk");
        let answer = http.answer().unwrap();
        assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
        assert_eq!(answer.json(), json!({"events": [], "last": last, "reset": false}));
    }
}

isolated! {
    fn streams_have_a_limit_and_those_that_are_gone_make_room() {
        let builder = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:");
        let server = builder.max_connections(20).start().unwrap();
        let address = server.local_addr();
        let open: Vec<Stream> = (0..2).map(|_| Stream::open(address, "")).collect();
        let refused = || {
            let mut http = Http::connect(address);
            http.raw("GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
            let answer = http.head_of_stream();
            assert!(answer.status == 200 || answer.field("retry-after").is_some(), "{answer:?}");
            answer.status == 503
        };
        assert!(refused());
        let last = list(&mut Http::connect(address), "")["last"].as_str().unwrap().to_owned();
        let page = list(&mut Http::connect(address), &format!("?after={last}&wait=60"));
        assert_eq!(page["last"], last, "a list does not wait then");
        drop(open);
        poll(|| !refused(), || "nobody makes room".to_owned());
    }
}

isolated! {
    fn what_is_asked_wrongly_is_refused_and_a_head_has_no_body() {
        let server = server();
        let address = server.local_addr();
        for query in ["kind=nothing", "kind=ended,", "limit=0", "limit=x", "wait=-1"] {
            let status = if query == "kind=ended," { 200 } else { 422 };
            assert_eq!(call(address, "GET", &format!("/events?{query}"), "").status, status, "{query}");
        }
        assert_eq!(call(address, "POST", "/events", "").status, 405);
        let mut http = Http::connect(address);
        http.raw("HEAD /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
        assert_eq!(http.head_of_stream().field("content-type"), Some("text/event-stream"));
        http.register("a");
    }
}

isolated! {
    fn silence_and_its_end_are_told() {
        let clock = ManualClock::new();
        let builder = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:");
        let server = builder.clock(&clock).start().unwrap();
        let mut http = Http::connect(server.local_addr());
        let ids: Vec<String> = (0..20).map(|_| http.register("a")).collect();
        let mut stream = Stream::open(server.local_addr(), "");
        clock.advance(Duration::from_secs(121));
        let told = stream.events(21);
        assert_eq!((&told[0]["kind"], &told[0]["stale"], &told[0]["sessions"]), (&json!("mass_silence"), &json!(20), &json!(20)));
        let mut stale: Vec<&str> = told[1..].iter().map(|event| event["session_id"].as_str().unwrap()).collect();
        stale.sort_unstable();
        let mut expected: Vec<&str> = ids.iter().map(String::as_str).collect();
        expected.sort_unstable();
        assert_eq!(stale, expected);
        assert!(told[1..].iter().all(|event| event["kind"] == "stale" && event["app_name"] == "a"));
        assert!(told[1..].iter().all(|event| event["seconds"].as_f64() >= Some(120.0)));
        for id in &ids[..10] {
            http.ok("POST", &format!("/sessions/{id}/heartbeat"), &Value::Null);
        }
        clock.advance(Duration::from_secs(10));
        let told = stream.events(11);
        assert_eq!(told[0]["kind"], "mass_silence_over");
        assert!(told[1..].iter().all(|event| event["kind"] == "back"));
        for _ in 0..4 {
            clock.advance(Duration::from_secs(100));
            for id in &ids[..10] {
                http.ok("POST", &format!("/sessions/{id}/heartbeat"), &Value::Null);
            }
        }
        clock.advance(Duration::from_secs(90));
        let told = stream.events(10);
        assert!(told.iter().all(|event| event["kind"] == "ended" && event["ended"] == "silent"));
        assert!(told.iter().all(|event| ids[10..].iter().any(|id| event["session_id"] == **id)));
    }
}
