//! What a pool does as OpenTelemetry spans: remuda tells, and you choose how it is written down.
//!
//! Two sources are enough. The pool's `listener` hears of starts, ends, refusals and time-outs, with how
//! long each took; around an execution the program puts a span of its own, with what it knows and the
//! pool does not: for whom, as a part of what. Everything is sent as OTLP over HTTP in JSON, which every
//! collector takes, by a thread of its own: neither the pool nor a caller ever waits for the collector.
//! (With the crates of OpenTelemetry, `Exporter` is what you leave out. Metrics need no code: let the collector
//! scrape `PoolInfo::open_metrics`.)
//!
//! ```sh
//! OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 cargo run --example opentelemetry
//! cargo run --example opentelemetry     # without a collector: prints what it would send
//! ```

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use remuda::{Execution, Outcome, PoolEvent, Request, Runtime, SessionPool};
use serde_json::{Value, json};

/// Spans that wait for the collector; more are dropped and counted.
const QUEUE: usize = 4096;
/// Spans in one request.
const BATCH: usize = 512;
const PATIENCE: Duration = Duration::from_secs(10);

/// A piece of work, as OTLP knows it.
struct Span {
    trace: String,
    id: String,
    parent: Option<String>,
    name: &'static str,
    began: SystemTime,
    ended: SystemTime,
    attributes: Vec<(&'static str, Value)>,
    error: Option<String>,
}

impl Span {
    /// A span that begins now: a part of `parent`, or the first of a trace.
    fn begin(name: &'static str, parent: Option<&Span>) -> Span {
        let now = SystemTime::now();
        Span {
            trace: parent
                .map_or_else(|| format!("{:016x}{:016x}", random(), random()), |span| span.trace.clone()),
            id: format!("{:016x}", random()),
            parent: parent.map(|span| span.id.clone()),
            name,
            began: now,
            ended: now,
            attributes: Vec::new(),
            error: None,
        }
    }

    /// A span that is over and took so long.
    fn over(name: &'static str, took: Duration, attributes: Vec<(&'static str, Value)>) -> Span {
        let span = Span::begin(name, None);
        Span { began: span.ended.checked_sub(took).unwrap_or(span.ended), attributes, ..span }
    }

    fn json(&self) -> Value {
        let attributes: Vec<Value> =
            self.attributes.iter().map(|(key, value)| attribute(key, value)).collect();
        let status = match &self.error {
            Some(message) => json!({"code": 2, "message": message}),
            None => json!({}),
        };
        json!({
            "traceId": self.trace, "spanId": self.id, "parentSpanId": self.parent.as_deref().unwrap_or(""),
            "name": self.name, "kind": 1, "attributes": attributes, "status": status,
            "startTimeUnixNano": nanoseconds(self.began), "endTimeUnixNano": nanoseconds(self.ended),
        })
    }
}

fn attribute(key: &str, value: &Value) -> Value {
    let value = match value {
        // 64 bits are a text in JSON's form of Protocol Buffers.
        Value::Number(number) if number.is_f64() => json!({"doubleValue": number}),
        Value::Number(number) => json!({"intValue": number.to_string()}),
        Value::Bool(is) => json!({"boolValue": is}),
        Value::String(text) => json!({"stringValue": text}),
        other => json!({"stringValue": other.to_string()}),
    };
    json!({"key": key, "value": value})
}

fn nanoseconds(time: SystemTime) -> String {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Sends spans on a thread of its own.
struct Exporter {
    spans: Sender<Span>,
    dropped: Arc<AtomicU64>,
    thread: std::io::Result<JoinHandle<()>>,
}

impl Exporter {
    /// To this collector; to standard output without one.
    fn start(collector: Option<String>) -> Exporter {
        let (spans, queue) = bounded(QUEUE);
        let thread = thread::Builder::new()
            .name("otlp".to_owned())
            .spawn(move || export(&queue, collector.as_deref()));
        Exporter { spans, dropped: Arc::default(), thread }
    }

    /// A handle for those who have something to tell. Telling never waits.
    fn teller(&self) -> impl Fn(Span) + Clone + Send + Sync + 'static {
        let (spans, dropped) = (self.spans.clone(), Arc::clone(&self.dropped));
        move |span| {
            if let Err(TrySendError::Full(_)) = spans.try_send(span) {
                dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Sends what is queued. All tellers must be gone.
    fn finish(self) {
        let Exporter { spans, dropped, thread } = self;
        drop(spans);
        if let Ok(thread) = thread {
            let _ = thread.join();
        }
        let dropped = dropped.load(Ordering::Relaxed);
        if dropped > 0 {
            eprintln!("{dropped} spans were dropped: the collector is slow");
        }
    }
}

fn export(queue: &Receiver<Span>, collector: Option<&str>) {
    let agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().new_agent();
    while let Ok(first) = queue.recv() {
        let spans: Vec<Value> =
            std::iter::once(first).chain(queue.try_iter().take(BATCH - 1)).map(|span| span.json()).collect();
        let service = attribute("service.name", &json!("reports"));
        let scope = json!({"name": "remuda", "version": env!("CARGO_PKG_VERSION")});
        let body = json!({"resourceSpans": [{
            "resource": {"attributes": [service]},
            "scopeSpans": [{"scope": scope, "spans": spans}],
        }]});
        match collector {
            None => println!("{body}"),
            Some(collector) => {
                let request = agent.post(format!("{}/v1/traces", collector.trim_end_matches('/')));
                if let Err(error) = request.content_type("application/json").send(body.to_string()) {
                    eprintln!("the collector did not take {} spans: {error}", spans.len());
                }
            }
        }
    }
}

/// What the pool says of itself.
fn span_of(event: &PoolEvent) -> Option<Span> {
    let session = |id: remuda::SessionId, pid: u32| {
        vec![("remuda.session", json!(id.number())), ("process.pid", json!(pid))]
    };
    let span = match event {
        PoolEvent::Created { session: id, pid, time, way, cause, .. } => {
            let mut attributes = session(*id, *pid);
            attributes.extend([("remuda.way", json!(way)), ("remuda.cause", json!(cause))]);
            Span::over("remuda.session.start", *time, attributes)
        }
        PoolEvent::StartFailed { cause, time, .. } => {
            Span { error: Some(cause.clone()), ..Span::over("remuda.session.start", *time, Vec::new()) }
        }
        PoolEvent::Removed { session: id, pid, reason, time, post_mortem, .. } => {
            let mut attributes = session(*id, *pid);
            attributes.extend([
                ("remuda.reason", json!(reason)),
                ("remuda.exit", json!(post_mortem.exit.to_string())),
            ]);
            Span::over("remuda.session.end", *time, attributes)
        }
        PoolEvent::AcquireTimedOut { waited, ahead, .. } => {
            let span = Span::over("remuda.acquire", *waited, vec![("remuda.ahead", json!(ahead))]);
            Span { error: Some("timed out".to_owned()), ..span }
        }
        _ => return None,
    };
    Some(span)
}

/// Runs code for somebody, told as three spans: the task, and in it the wait for a session and the execution.
fn traced(pool: &SessionPool, tell: &impl Fn(Span), user: &str, code: &str) -> remuda::Result<Execution> {
    let mut task = Span::begin("task", None);
    task.attributes.push(("enduser.id", json!(user)));
    let result = (|| {
        let mut wait = Span::begin("remuda.acquire", Some(&task));
        let lease = pool.acquire();
        wait.ended = SystemTime::now();
        wait.error = lease.as_ref().err().map(ToString::to_string);
        tell(wait);
        let mut lease = lease?;
        let mut work = Span::begin("remuda.execute", Some(&task));
        let run = lease.execute(Request::code(code).measure(true));
        work.ended = SystemTime::now();
        work.attributes =
            vec![("remuda.session", json!(lease.id().number())), ("process.pid", json!(lease.pid()))];
        match &run {
            Ok(run) => {
                work.attributes.push(("remuda.outcome", json!(run.outcome.as_str())));
                work.attributes
                    .extend(run.usage.map(|usage| ("process.cpu.time", json!(usage.cpu_time.as_secs_f64()))));
                // The message may hold what the user works on: the kind is enough for a trace.
                work.error = run.error.as_ref().map(|error| error.kind.clone());
            }
            Err(error) => work.error = Some(error.to_string()),
        }
        tell(work);
        run
    })();
    task.ended = SystemTime::now();
    task.error = match &result {
        Ok(run) => (run.outcome != Outcome::Completed).then(|| run.outcome.to_string()),
        Err(error) => Some(error.to_string()),
    };
    tell(task);
    result
}

fn main() -> remuda::Result<()> {
    let exporter = Exporter::start(std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok());
    let (tell, tell_event) = (exporter.teller(), exporter.teller());
    let pool = SessionPool::builder(Runtime::python("python3"))
        .min_idle(1)
        .max_sessions(2)
        .listener(move |event| span_of(event).into_iter().for_each(&tell_event))
        .start()?;
    for (user, code) in [("ada", "sum(range(10**6))"), ("ben", "1 / 0"), ("ada", "'done'")] {
        let run = traced(&pool, &tell, user, code)?;
        eprintln!("{user}: {}", run.outcome);
    }
    // The listener has heard of every end when this returns.
    pool.shutdown(Duration::from_secs(10));
    drop((pool, tell));
    exporter.finish();
    Ok(())
}
