//! What a kill would hit: worked out from the list of sessions, and nothing else.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

use super::api::{KillPreview, Neighbour, PreviewedLease, PreviewedSession, Whom};
use super::{TrackedId, TrackedSession};

fn means(whom: &Whom, session: &TrackedSession) -> bool {
    match whom {
        Whom::Session(id) => session.session_id == *id,
        Whom::App(name) => session.app_name == *name,
        Whom::Label { key, value } => session.labels.get(key) == Some(value),
    }
}

/// Stands for exactly these sessions, in any order.
pub(super) fn generation<'a>(ids: impl Iterator<Item = &'a TrackedId>) -> String {
    let mut sorted: Vec<&TrackedId> = ids.collect();
    sorted.sort_unstable();
    let mut hasher = DefaultHasher::new();
    sorted.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// What killing `whom` would hit. A single session is hit even if it is protected: that takes
/// `force`, and the answer to the kill says so.
pub(super) fn preview(sessions: &[TrackedSession], whom: &Whom) -> KillPreview {
    let single = matches!(whom, Whom::Session(_));
    let is_hit = |session: &TrackedSession| means(whom, session) && (single || !session.protected);
    let hit: Vec<&TrackedSession> = sessions.iter().filter(|session| is_hit(session)).collect();
    let shared: HashSet<Pool<'_>> =
        hit.iter().flat_map(|session| pools(session)).map(|(pool, _)| pool).collect();
    let mut neighbours = Vec::new();
    for session in sessions.iter().filter(|session| !is_hit(session)) {
        for (pool, name) in pools(session) {
            if shared.contains(&pool) {
                let (session_id, app_name) = (session.session_id.clone(), session.app_name.clone());
                neighbours.push(Neighbour { session_id, app_name, pool: name.to_owned() });
            }
        }
    }
    let protected = sessions.iter().filter(|session| means(whom, session) && session.protected);
    KillPreview {
        generation: generation(hit.iter().map(|session| &session.session_id)),
        protected: protected.map(|session| session.session_id.clone()).collect(),
        neighbours,
        sessions: hit.into_iter().map(shown).collect(),
    }
}

/// What makes two snapshots those of one pool.
#[derive(PartialEq, Eq, Hash)]
enum Pool<'a> {
    Named(&'a str),
    InProcess { host: &'a str, pid: u32, name: &'a str },
}

/// The pools of a session, and what it calls them.
fn pools(session: &TrackedSession) -> impl Iterator<Item = (Pool<'_>, &str)> {
    session.attached.iter().filter_map(|(name, snapshot)| {
        let pool = match (snapshot.get("pool_id").and_then(Value::as_str), &session.host, session.pid) {
            (Some(id), _, _) => Pool::Named(id),
            (None, Some(host), Some(pid)) => Pool::InProcess { host, pid, name },
            _ => return None,
        };
        Some((pool, name.as_str()))
    })
}

fn shown(session: &TrackedSession) -> PreviewedSession {
    PreviewedSession {
        session_id: session.session_id.clone(),
        app_name: session.app_name.clone(),
        user_id: session.user_id.clone(),
        current_task: session.current_task.clone(),
        host: session.host.clone(),
        pid: session.pid,
        kill_requested: session.kill_requested,
        leases: session.attached.iter().flat_map(|(name, snapshot)| leases(name, snapshot)).collect(),
    }
}

/// The rows of a snapshot that somebody holds.
fn leases<'a>(name: &'a str, snapshot: &'a Value) -> impl Iterator<Item = PreviewedLease> + 'a {
    let rows = snapshot.get("sessions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let holder = |row: &Value| row.get("holder").filter(|holder| !holder.is_null()).cloned();
    let is_held = move |row: &&Value| holder(row).is_some() || row.get("state").is_some_and(|s| s == "busy");
    rows.iter().filter(is_held).map(move |row| PreviewedLease {
        pool: name.to_owned(),
        pid: row.get("pid").and_then(Value::as_u64).and_then(|pid| u32::try_from(pid).ok()),
        holder: holder(row),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn session(id: &str, app_name: &str, pid: u32, more: &Value) -> TrackedSession {
        let mut row = json!({
            "session_id": id, "app_name": app_name, "user_id": null, "start_time": "", "host": "h",
            "pid": pid, "last_heartbeat": "", "duration_seconds": 1.0, "status": "running",
            "current_task": format!("task of {id}"), "is_stale": false, "kill_requested": false,
        });
        for (key, value) in more.as_object().unwrap() {
            row[key] = value.clone();
        }
        serde_json::from_value(row).unwrap()
    }

    fn ids(sessions: &[PreviewedSession]) -> Vec<&str> {
        sessions.iter().map(|session| session.session_id.as_str()).collect()
    }

    fn app(name: &str) -> Whom {
        Whom::App(name.to_owned())
    }

    #[test]
    fn who_is_hit_what_they_hold_and_who_shares_their_pools() {
        let pool = json!({"attached": {"pool": {"sessions": [
            {"pid": 11, "state": "busy", "holder": {"tenant": "ann"}},
            {"pid": 12, "state": "idle", "holder": null},
            {"pid": 13, "state": "busy"},
            "no row at all",
        ]}}});
        let shared = json!({"attached": {"gpu": {"pool_id": "node 3"}}});
        let sessions = [
            session("one", "a", 7, &pool),
            session("two", "a", 8, &shared),
            session("in the process", "b", 7, &json!({"attached": {"pool": {}}})),
            session("other pool of it", "b", 7, &json!({"attached": {"other": {}}})),
            session("elsewhere", "b", 9, &json!({"attached": {"pool": {}, "mine": {"pool_id": "node 3"}}})),
        ];
        let preview = preview(&sessions, &app("a"));
        assert_eq!(ids(&preview.sessions), ["one", "two"]);
        assert_eq!(preview.sessions[0].current_task.as_deref(), Some("task of one"));
        let leases = &preview.sessions[0].leases;
        assert_eq!(leases.iter().map(|lease| lease.pid).collect::<Vec<_>>(), [Some(11), Some(13)]);
        assert_eq!(leases[0].holder, Some(json!({"tenant": "ann"})));
        let neighbours: Vec<_> =
            preview.neighbours.iter().map(|one| (one.session_id.as_str(), one.pool.as_str())).collect();
        assert_eq!(neighbours, [("in the process", "pool"), ("elsewhere", "mine")]);
    }

    #[test]
    fn the_protected_are_named_and_not_hit_except_by_their_id() {
        let sessions = [
            session("one", "a", 1, &json!({"labels": {"team": "x"}})),
            session("two", "a", 2, &json!({"labels": {"team": "x"}, "protected": true})),
            session("three", "a", 3, &json!({"labels": {"team": "y"}})),
        ];
        let label = Whom::Label { key: "team".to_owned(), value: "x".to_owned() };
        let by_label = preview(&sessions, &label);
        assert_eq!(ids(&by_label.sessions), ["one"]);
        assert_eq!(by_label.protected, [TrackedId::from("two")]);
        let by_id = preview(&sessions, &Whom::Session("two".into()));
        assert_eq!((ids(&by_id.sessions), by_id.protected.len()), (vec!["two"], 1));
    }

    #[test]
    fn a_generation_stands_for_the_same_sessions_and_no_others() {
        let sessions: Vec<_> = ["one", "two", "three"].map(|id| session(id, "a", 1, &json!({}))).into();
        let all = preview(&sessions, &app("a")).generation;
        let reversed: Vec<_> = sessions.iter().rev().cloned().collect();
        assert_eq!(preview(&reversed, &app("a")).generation, all);
        assert_ne!(preview(&sessions[1..], &app("a")).generation, all);
        assert_ne!(preview(&sessions, &app("b")).generation, all);
    }
}
