//! The description of the tracker's API for programs.
//!
//! It is written by hand; the tests here hold it against the table of endpoints and the bodies of
//! requests, and `tests/it/tracker_openapi.rs` against real answers.

use crate::tracker::http::Response;

/// The document, as `/openapi.json` answers it.
pub(super) const DESCRIPTION: Response = Response::fixed_json(include_str!("openapi.json"));

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::Serialize;
    use serde_json::{Value, json};

    use super::super::routing::{Access, endpoints};
    use super::DESCRIPTION;
    use crate::tracker::TrackedId;
    use crate::tracker::api::{
        BatchBeat, Heartbeat, HeartbeatBatch, KillAcknowledgement, KillRequest, KillStep, SessionCreate,
        SessionStatus,
    };

    fn document() -> Value {
        serde_json::from_slice(&DESCRIPTION.body).expect("it is JSON")
    }

    fn keys(object: &Value) -> BTreeSet<&str> {
        object.as_object().expect("an object").keys().map(String::as_str).collect()
    }

    fn roles(access: Access) -> Value {
        match access {
            Access::Everybody => json!([]),
            Access::App => json!([{"token": ["app"]}]),
            Access::Viewer => json!([{"token": ["viewer"]}]),
            Access::Operator => json!([{"token": ["operator"]}]),
        }
    }

    #[test]
    fn it_has_exactly_the_endpoints_of_the_table_with_their_roles() {
        let served: BTreeMap<String, Value> = endpoints()
            .map(|endpoint| {
                let method = format!("{:?}", endpoint.method).to_lowercase();
                (format!("{method} {}", endpoint.path), roles(endpoint.access))
            })
            .collect();
        let document = document();
        let mut described = BTreeMap::new();
        for (path, methods) in document["paths"].as_object().expect("paths") {
            for method in keys(methods).into_iter().filter(|key| *key != "parameters") {
                described.insert(format!("{method} {path}"), methods[method]["security"].clone());
            }
        }
        assert_eq!(described, served);
    }

    #[test]
    fn each_path_has_the_parameters_that_it_names_and_each_operation_a_name_of_its_own() {
        let document = document();
        let mut operations = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().expect("paths") {
            let free = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
            let expected: Vec<_> =
                free.map(|name| json!({"$ref": format!("#/components/parameters/{name}")})).collect();
            let given = methods.get("parameters").unwrap_or(&Value::Null);
            assert_eq!(given.as_array().cloned().unwrap_or_default(), expected, "{path}");
            for method in keys(methods).into_iter().filter(|key| *key != "parameters") {
                let name = methods[method]["operationId"].as_str().expect("a name");
                assert!(operations.insert(name.to_owned()), "{name} is there twice");
            }
        }
    }

    #[test]
    fn it_names_the_version_that_serves_it() {
        assert_eq!(document()["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    /// A body with all of its members set; whoever adds a member must write it here as well.
    #[test]
    fn bodies_of_requests_are_described_with_all_of_their_members() {
        let (id, text) = (TrackedId::from("x"), || Some("x".to_owned()));
        let registration = SessionCreate {
            app_name: "x".to_owned(),
            user_id: text(),
            session_id: Some(id.clone()),
            host: text(),
            pid: Some(1),
            labels: BTreeMap::from([("x".to_owned(), "y".to_owned())]),
            uptime_seconds: Some(1.0),
            status: text(),
            current_task: text(),
            version: text(),
            interval_seconds: Some(1.0),
            beat_number: Some(1),
            protected: true,
        };
        let kill = KillAcknowledgement { kill_id: 1, step: KillStep::Delivered };
        let beat = Heartbeat {
            status: text(),
            current_task: text(),
            status_number: Some(1),
            attached: Some(BTreeMap::new()),
            beat_number: Some(1),
            kill: Some(kill),
            verbs_number: Some(1),
            progress: Some(0.5),
            memory_bytes: Some(1),
        };
        let one = BatchBeat { session_id: id, heard_kill: true, beat: beat.clone() };
        let status = SessionStatus { status: "x".to_owned(), current_task: text(), status_number: Some(1) };
        let order = KillRequest {
            requested_by: text(),
            reason: text(),
            dry_run: true,
            force: true,
            generation: text(),
            embargo_seconds: Some(1.0),
        };
        is_described("SessionCreate", &registration);
        is_described("KillAcknowledgement", &kill);
        is_described("Heartbeat", &beat);
        is_described("BatchBeat", &one);
        is_described("HeartbeatBatch", &HeartbeatBatch { beats: vec![one] });
        is_described("SessionStatus", &status);
        is_described("KillRequest", &order);
        is_described("AppKillRequest", &order);
    }

    fn is_described(schema: &str, body: &impl Serialize) {
        let body = serde_json::to_value(body).expect("a body is JSON");
        let document = document();
        assert_eq!(keys(&document["components"]["schemas"][schema]["properties"]), keys(&body), "{schema}");
    }
}
