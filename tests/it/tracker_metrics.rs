//! The tracker's numbers at `/metrics`, read by a strict parser, and the pages that define them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use remuda::TrackerServer;
use remuda::testing::ManualClock;
use serde_json::{Value, json};

use crate::metrics_text::{Family, names_only_what_there_is, parse};
use crate::support::{isolated, poll};
use crate::tracker_support::{Answer, Http, server};

fn scrape(address: SocketAddr, accept: &str) -> Answer {
    let mut http = Http::connect(address);
    http.raw(format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"));
    http.answer().expect("an answer")
}

/// What a Prometheus server sends.
const BOTH: &str =
    "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";

fn families(address: SocketAddr) -> BTreeMap<String, Family> {
    let answer = scrape(address, BOTH);
    assert_eq!(answer.status, 200);
    let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.field("content-type"), Some(media_type));
    parse(std::str::from_utf8(&answer.body).unwrap())
}

/// The one value of a series.
fn value(families: &BTreeMap<String, Family>, sample: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let labels: BTreeMap<String, String> =
        labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let samples = families.values().flat_map(|family| &family.samples);
    let mut found = samples.filter(|(name, found, _)| name == sample && *found == labels);
    found.next().map(|(_, _, value)| *value)
}

isolated! {
    fn what_happens_is_counted() {
        let clock = ManualClock::new();
        let builder = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:");
        let server = builder.clock(&clock).start().unwrap();
        let address = server.local_addr();
        let mut http = Http::connect(address);
        let odd = "a \"name\"\\ of\nthree";
        let [idle, running, killed, silent] = ["a", "a", "a", odd].map(|app| http.register(app));
        let silent_beat = format!("/sessions/{silent}/heartbeat");
        http.ok("POST", &silent_beat, &json!({"beat_number": 7}));
        assert_eq!(http.call("POST", &silent_beat, "{\"beat_number\": 3}").status, 409);
        assert_eq!(http.call("POST", &silent_beat, "{\"progress\": 3}").status, 422);
        assert_eq!(http.call("POST", &silent_beat, "{\"status\": \"\"}").status, 422);
        assert_eq!(http.call("POST", "/sessions/nobody/heartbeat", "").status, 404);
        assert_eq!(http.call("GET", "/nothing", "").status, 404);
        let families_now = families(address);
        let count = |sample: &str, labels: &[(&str, &str)]| value(&families_now, sample, labels);
        assert_eq!(count("remuda_tracker_sessions", &[("app", odd), ("state", "idle")]), Some(1.0));
        for (outcome, expected) in [("ok", 1.0), ("stale_seq", 1.0), ("unknown", 1.0), ("rejected", 2.0)] {
            assert_eq!(count("remuda_tracker_heartbeats_total", &[("outcome", outcome)]), Some(expected), "{outcome}");
        }
        let requests = |route: &str, method: &str, code: &str| {
            count("remuda_http_requests_total", &[("route", route), ("method", method), ("code", code)])
        };
        let beat = "/sessions/{session_id}/heartbeat";
        assert_eq!(["200", "409", "422", "404"].map(|code| requests(beat, "POST", code)), [1.0, 1.0, 2.0, 1.0].map(Some));
        assert_eq!(requests("/sessions", "POST", "200"), Some(4.0));
        assert_eq!(requests("other", "GET", "404"), Some(1.0));
        assert_eq!(requests("/kills", "GET", "200"), Some(0.0), "from the start, with zero");
        assert_eq!(count("remuda_http_request_duration_seconds_count", &[]), Some(10.0));
        assert_eq!(count("remuda_http_connections", &[]), Some(2.0));
        assert_eq!(count("remuda_tracker_store_ready", &[]), Some(1.0));
        assert_eq!(count("remuda_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));
        assert!(count("remuda_start_time_seconds", &[]) > Some(1.7e9));

        clock.advance(Duration::from_secs(125));
        http.ok("PUT", &format!("/sessions/{running}/status"), &json!({"status": "busy"}));
        http.ok("POST", &format!("/sessions/{idle}/heartbeat"), &Value::Null);
        http.ok("POST", &format!("/sessions/{killed}/heartbeat"), &Value::Null);
        let receipt = http.ok("POST", &format!("/sessions/{killed}/kill"), &Value::Null)["receipt"]["kill_id"].clone();
        clock.advance(Duration::from_secs(3));
        let stopping = json!({"kill": {"kill_id": receipt, "step": "stopping"}});
        http.ok("POST", &format!("/sessions/{killed}/heartbeat"), &stopping);
        let families_now = families(address);
        let count = |sample: &str, labels: &[(&str, &str)]| value(&families_now, sample, labels);
        let sessions = |app: &str| {
            ["running", "idle", "late", "stale", "killing"]
                .map(|state| count("remuda_tracker_sessions", &[("app", app), ("state", state)]))
        };
        assert_eq!(sessions("a"), [1.0, 1.0, 0.0, 0.0, 1.0].map(Some));
        assert_eq!(sessions(odd), [0.0, 0.0, 0.0, 1.0, 0.0].map(Some));
        let kills = |scope: &str, outcome: &str| {
            count("remuda_tracker_kills_total", &[("scope", scope), ("outcome", outcome)])
        };
        assert_eq!(["requested", "confirmed", "expired"].map(|outcome| kills("session", outcome)), [1.0, 0.0, 0.0].map(Some));
        assert_eq!((kills("app", "requested"), count("remuda_tracker_kills_open", &[])), (Some(0.0), Some(1.0)));
        let stage = |stage: &str, suffix: &str| {
            count(&format!("remuda_tracker_kill_duration_seconds{suffix}"), &[("stage", stage)])
        };
        assert_eq!((stage("stopping", "_count"), stage("stopping", "_sum")), (Some(1.0), Some(3.0)));
        assert_eq!(stage("confirmed", "_count"), Some(0.0));
        http.ok("DELETE", &format!("/sessions/{killed}"), &Value::Null);
        let families_now = families(address);
        let confirmed = [("scope", "session"), ("outcome", "confirmed")];
        assert_eq!(value(&families_now, "remuda_tracker_kills_total", &confirmed), Some(1.0));
        assert_eq!(value(&families_now, "remuda_tracker_kills_open", &[]), Some(0.0));
    }
}

isolated! {
    fn both_forms_are_whole_and_the_classic_one_is_what_is_not_asked_for_otherwise() {
        let server = server();
        let address = server.local_addr();
        Http::connect(address).register("a");
        for (name, family) in &families(address) {
            family.is_complete(name);
            assert!(!family.samples.is_empty(), "{name} is there from the start");
        }
        for accept in ["*/*", "text/plain", "application/json"] {
            let answer = scrape(address, accept);
            assert_eq!(answer.field("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
            let text = String::from_utf8(answer.body).unwrap();
            assert!(text.contains("\n# TYPE remuda_tracker_heartbeats_total counter\n"), "{text}");
            assert!(text.contains("\n# TYPE remuda_build_info gauge\n"), "{text}");
            assert!(!text.contains("# EOF") && !text.contains("# UNIT") && !text.contains(" info\n"), "{text}");
        }
    }
}

isolated! {
    /// Beats that wait, streams and lists that wait are seen, and not counted as slow answers.
    fn who_waits_is_a_gauge() {
        let server = server();
        let address = server.local_addr();
        let mut http = Http::connect(address);
        let id = http.register("a");
        let mut parked = Http::connect(address);
        parked.send("POST", &format!("/sessions/{id}/heartbeat?wait=60"), "");
        let mut stream = Http::connect(address);
        stream.raw("GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
        stream.head_of_stream();
        let gauge = |name: &str| value(&families(address), name, &[]);
        poll(|| gauge("remuda_http_parked_requests") == Some(1.0), || "no beat is parked".to_owned());
        assert_eq!(gauge("remuda_http_streams"), Some(1.0));
        http.ok("POST", &format!("/sessions/{id}/kill"), &Value::Null);
        parked.answer().unwrap();
        drop(stream);
        poll(|| gauge("remuda_http_streams") == Some(0.0), || "the stream is never gone".to_owned());
        assert_eq!(gauge("remuda_http_parked_requests"), Some(0.0));
        let families = families(address);
        let answered: f64 = families["remuda_http_requests"].samples.iter().map(|(_, _, count)| count).sum();
        let timed = value(&families, "remuda_http_request_duration_seconds_count", &[]).unwrap();
        assert!((answered - timed - 2.0).abs() < 1e-9, "{answered} {timed}");
    }
}

isolated! {
    fn the_guide_and_the_alerts_name_what_the_tracker_has() {
        let server = server();
        Http::connect(server.local_addr()).register("a");
        let families = families(server.local_addr());
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let guide = std::fs::read_to_string(docs.join("guide/metrics.md")).unwrap();
        for (name, family) in &families {
            let full = format!("`{}`", family.sampled(name));
            assert!(guide.contains(&full), "docs/guide/metrics.md does not define {full}");
        }
        let beginnings = ["remuda_tracker_", "remuda_http_", "remuda_build", "remuda_start"];
        for page in ["guide/metrics.md", "alerts/remuda-tracker.rules.yml"] {
            names_only_what_there_is(&docs.join(page), &beginnings, &families);
        }
    }
}
