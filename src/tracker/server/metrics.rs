//! `GET /metrics`: the tracker's numbers for Prometheus and its kin. What they mean stands in
//! `docs/guide/metrics.md`.
//!
//! Requests are counted where they are answered: a table of plain counters, no lock, no text. All
//! else is looked up when somebody asks.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};

use super::events::accepts;
use super::routing::endpoints;
use super::tracker::Tracker;
use crate::clock::wall;
use crate::histogram::Histogram;
use crate::openmetrics::{Form, Kind, Text};
use crate::tracker::api::KillScope;
use crate::tracker::civil;
use crate::tracker::http::{Answered, Method, Request, Response};
use crate::tracker::store::{BeatOutcome, Census};

const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The statuses that are counted on their own; all others are one.
const CODES: [u16; 21] =
    [200, 204, 304, 400, 401, 403, 404, 405, 408, 409, 411, 413, 414, 417, 421, 422, 429, 431, 500, 503, 505];
/// Requests that no endpoint stands for, by method.
const METHODS: [Method; 6] =
    [Method::Get, Method::Head, Method::Post, Method::Put, Method::Delete, Method::Other];
/// The label of what is not counted on its own.
const OTHER: &str = "other";

/// What this file counts.
pub(super) struct Numbers {
    /// A line for each endpoint, then one for each method; in each a number for each code.
    requests: Box<[[AtomicU64; CODES.len() + 1]]>,
    durations: Histogram,
    beats_rejected: AtomicU64,
    /// Unix time in milliseconds.
    started: i64,
}

impl Numbers {
    pub(super) fn new() -> Numbers {
        let lines = endpoints().count() + METHODS.len();
        Numbers {
            requests: (0..lines).map(|_| Default::default()).collect(),
            durations: Histogram::default(),
            beats_rejected: AtomicU64::new(0),
            started: civil::millis(wall()),
        }
    }

    pub(super) fn answered(&self, answered: Answered) {
        let line = answered.subject.map_or_else(
            || {
                let method = METHODS.iter().position(|method| *method == answered.method);
                self.requests.len() - METHODS.len() + method.unwrap_or(METHODS.len() - 1)
            },
            usize::from,
        );
        let code = CODES.iter().position(|code| *code == answered.status).unwrap_or(CODES.len());
        if let Some(line) = self.requests.get(line) {
            line[code].fetch_add(1, Ordering::Relaxed);
        }
        if let Some(took) = answered.took {
            self.durations.record(took);
        }
    }

    pub(super) fn beat_rejected(&self) {
        self.beats_rejected.fetch_add(1, Ordering::Relaxed);
    }
}

impl Tracker {
    pub(super) fn answer_metrics(&self, request: &Request) -> Response {
        let (form, media_type) = if accepts(request, OPEN_METRICS) {
            (Form::OpenMetrics, OPEN_METRICS_TYPE)
        } else {
            (Form::Prometheus, PROMETHEUS_TYPE)
        };
        Response::new(200, media_type, self.metrics(form).into_bytes())
    }

    fn metrics(&self, form: Form) -> String {
        let mut text = Text::new(form);
        self.write_sessions(&mut text);
        self.write_kills(&mut text);
        self.write_state(&mut text);
        self.write_http(&mut text);
        text.finish()
    }

    fn write_sessions(&self, text: &mut Text) {
        let census = self.store().census();
        if let Err(error) = &census {
            log::debug!("the sessions cannot be counted: {error}");
        }
        let help = "Tracked sessions by app and state; absent while the database cannot be read.";
        let mut family = text.family(Kind::Gauge, "remuda_tracker_sessions", help);
        for (app, counts) in census.as_ref().map(Census::apps).unwrap_or_default() {
            for (state, count) in counts {
                family.value(&[("app", app), ("state", state)], count);
            }
        }
        let help = "Heartbeats by what came of them.";
        let mut family = text.family(Kind::Counter, "remuda_tracker_heartbeats", help);
        let beats = self.store().beats();
        family.value(&[("outcome", "ok")], beats.count(BeatOutcome::Ok));
        family.value(&[("outcome", "unknown")], beats.count(BeatOutcome::Unknown));
        family.value(&[("outcome", "stale_seq")], beats.count(BeatOutcome::Late));
        let rejected = self.numbers.beats_rejected.load(Ordering::Relaxed);
        family.value(&[("outcome", "rejected")], rejected);
    }

    fn write_kills(&self, text: &mut Text) {
        let kills = self.store().kill_counts();
        let help = "Kills of one session each, by what was named and how far they came.";
        let mut family = text.family(Kind::Counter, "remuda_tracker_kills", help);
        for scope in KillScope::ALL {
            for (outcome, count) in kills.of(scope) {
                family.value(&[("scope", scope.as_str()), ("outcome", outcome)], count);
            }
        }
        let help = "Time from a kill's request to its steps.";
        let mut family = text.family(Kind::Histogram, "remuda_tracker_kill_duration_seconds", help);
        for (stage, durations) in kills.stages() {
            family.histogram(&[("stage", stage)], durations);
        }
        gauge(text, "remuda_tracker_kills_open", "Kills that are neither confirmed nor expired.", kills.open);
    }

    fn write_state(&self, text: &mut Text) {
        let (store, guard) = (self.store(), self.guard.lock().holds(self.store().clock().now()));
        let help = "Whether the database takes changes.";
        gauge(text, "remuda_tracker_store_ready", help, u8::from(store.check().is_ok()));
        let help = "Whether nearly all of many sessions are silent and nobody is removed.";
        gauge(text, "remuda_tracker_mass_silence", help, u8::from(guard));
        let help = "Apps whose new sessions are killed at once.";
        gauge(text, "remuda_tracker_embargoes", help, store.embargoes().len());
        let help = "Events that were recorded.";
        text.family(Kind::Counter, "remuda_tracker_events", help).value(&[], store.feed().recorded());
        text.family(Kind::Info, "remuda_build", "The version that runs.")
            .value(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        #[allow(clippy::cast_precision_loss, reason = "Unix time in milliseconds")]
        let started = self.numbers.started as f64 / 1e3;
        let help = "When the tracker was started, in Unix time.";
        gauge(text, "remuda_start_time_seconds", help, format!("{started:.3}"));
    }

    fn write_http(&self, text: &mut Text) {
        let help = "Requests by endpoint, method and status of the answer.";
        let mut family = text.family(Kind::Counter, "remuda_http_requests", help);
        let known = endpoints().map(|endpoint| (endpoint.path, endpoint.method));
        let subjects = known.chain(METHODS.map(|method| (OTHER, method)));
        for (line, (route, method)) in self.numbers.requests.iter().zip(subjects) {
            for (at, count) in line.iter().enumerate() {
                let code = CODES.get(at).map_or_else(|| OTHER.to_owned(), u16::to_string);
                let count = count.load(Ordering::Relaxed);
                // All of them would be some thousand lines of zero; of each endpoint there is one.
                if count > 0 || (route != OTHER && at == 0) {
                    family.value(&[("route", route), ("method", word(method)), ("code", &code)], count);
                }
            }
        }
        let help =
            "Time from a request's last byte to its answer, of requests that were not waiting for news.";
        text.family(Kind::Histogram, "remuda_http_request_duration_seconds", help)
            .histogram(&[], &self.numbers.durations.snapshot());
        let counts = &self.http;
        let now = |gauge: &std::sync::atomic::AtomicUsize| gauge.load(Ordering::Relaxed);
        gauge(text, "remuda_http_connections", "Open connections.", now(&counts.connections));
        gauge(text, "remuda_http_parked_requests", "Beats that wait for news.", now(&counts.parked));
        let help = "Answers that go on, and requests that wait for events.";
        gauge(text, "remuda_http_streams", help, now(&counts.streams));
        for (name, help, count) in [
            (
                "remuda_http_connections_refused",
                "Connections that were one too many.",
                &counts.connections_refused,
            ),
            ("remuda_http_streams_refused", "Streams that were one too many.", &counts.streams_refused),
            ("remuda_http_streams_cut", "Streams whose readers were too slow.", &counts.streams_cut),
        ] {
            text.family(Kind::Counter, name, help).value(&[], count.load(Ordering::Relaxed));
        }
    }
}

fn gauge(text: &mut Text, name: &'static str, help: &str, value: impl Display) {
    text.family(Kind::Gauge, name, help).value(&[], value);
}

fn word(method: Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
        Method::Other => OTHER,
    }
}
