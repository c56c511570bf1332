//! The example that tells OpenTelemetry what a pool does, against a collector that keeps what it gets.

use std::process::Command;

use serde_json::{Value, json};

use crate::native_support::{native, program};
use crate::scripted_server::{ScriptedServer, fine};

fn attribute<'a>(span: &'a Value, name: &str) -> &'a Value {
    let attributes = span["attributes"].as_array().unwrap();
    attributes.iter().find(|attribute| attribute["key"] == name).map_or(&Value::Null, |found| &found["value"])
}

native! {
    fn each_task_is_a_trace_and_the_pool_tells_of_its_sessions() {
        let collector = ScriptedServer::start(|_| fine(json!({})));
        let output = Command::new(program("opentelemetry")).env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let asked = collector.asked();
        assert!(asked.iter().all(|asked| asked.is("POST", "/v1/traces") && asked.headers["content-type"] == "application/json"));
        let bodies: Vec<&Value> = asked.iter().map(|asked| &asked.body).collect();
        let spans: Vec<&Value> = bodies
            .iter()
            .flat_map(|body| body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap())
            .collect();
        let named = |name: &str| spans.iter().filter(|span| span["name"] == name).copied().collect::<Vec<_>>();
        let (tasks, waits, works) = (named("task"), named("remuda.acquire"), named("remuda.execute"));
        assert_eq!((tasks.len(), waits.len(), works.len()), (3, 3, 3));
        for (task, outcome) in tasks.iter().zip(["completed", "failed", "completed"]) {
            let parts: Vec<&Value> = spans.iter().filter(|span| span["parentSpanId"] == task["spanId"]).copied().collect();
            assert_eq!(parts.len(), 2, "{parts:?}");
            assert!(parts.iter().all(|part| part["traceId"] == task["traceId"] && part["startTimeUnixNano"].as_str() >= task["startTimeUnixNano"].as_str()));
            assert_eq!(attribute(parts[1], "remuda.outcome")["stringValue"], outcome);
        }
        assert_eq!((&tasks[1]["status"]["code"], &works[1]["status"]["message"]), (&json!(2), &json!("ZeroDivisionError")));
        assert!(!named("remuda.session.start").is_empty());
        assert_eq!(named("remuda.session.start").len(), named("remuda.session.end").len(), "whoever has begun has ended");
        assert!(!bodies.iter().any(|body| body.to_string().contains("1 / 0")), "no code of users");
    }
}
