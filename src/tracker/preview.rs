//! What a kill would hit: worked out from sessions, and nothing else.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

use super::api::{KillPreview, Neighbour, PreviewedLease, PreviewedSession, Whom};
use super::{TrackedId, TrackedSession};

/// Stands for exactly these sessions, in any order.
pub(super) fn generation<'a>(ids: impl Iterator<Item = &'a TrackedId>) -> String {
    let mut sorted: Vec<&TrackedId> = ids.collect();
    sorted.sort_unstable();
    let mut hasher = DefaultHasher::new();
    sorted.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// What a kill would hit, while it is worked out: first whoever is meant, then their neighbours one by one.
pub(super) struct Preview {
    shown: KillPreview,
    hit: HashSet<TrackedId>,
    shared: HashSet<Pool>,
    /// What the shared pools are called, or their ids.
    words: HashSet<String>,
}

impl Preview {
    /// Of a kill of `whom`, and all sessions that are meant by it. A single session is hit even if it is
    /// protected: that takes `force`, and the answer to the kill says so.
    pub(super) fn of(whom: &Whom, meant: &[TrackedSession]) -> Preview {
        let single = matches!(whom, Whom::Session(_));
        let hit: Vec<&TrackedSession> = meant.iter().filter(|session| single || !session.protected).collect();
        let protected = meant.iter().filter(|session| session.protected);
        let shown = KillPreview {
            generation: generation(hit.iter().map(|session| &session.session_id)),
            protected: protected.map(|session| session.session_id.clone()).collect(),
            neighbours: Vec::new(),
            sessions: hit.iter().map(|session| shown(session)).collect(),
        };
        let shared: HashSet<Pool> =
            hit.iter().flat_map(|session| pools(session)).map(|(pool, _)| pool).collect();
        let word = |pool: &Pool| match pool {
            Pool::Named(word) | Pool::InProcess { name: word, .. } => word.clone(),
        };
        let words = shared.iter().map(word).collect();
        let hit = hit.into_iter().map(|session| session.session_id.clone()).collect();
        Preview { shown, hit, shared, words }
    }

    /// Whether those who are hit share anything with anybody.
    pub(super) fn has_pools(&self) -> bool {
        !self.shared.is_empty()
    }

    /// Whether somebody with these snapshots may be a neighbour, wherever it runs.
    pub(super) fn may_be_beside(&self, attached: &BTreeMap<String, Value>) -> bool {
        attached.iter().any(|(name, snapshot)| match pool_id(snapshot) {
            Some(id) => self.words.contains(id),
            None => self.words.contains(name),
        })
    }

    /// Adds a session that is a neighbour, if it is one.
    pub(super) fn look_at(&mut self, session: &TrackedSession) {
        if self.hit.contains(&session.session_id) {
            return;
        }
        for (pool, name) in pools(session) {
            if self.shared.contains(&pool) {
                let (session_id, app_name) = (session.session_id.clone(), session.app_name.clone());
                self.shown.neighbours.push(Neighbour { session_id, app_name, pool: name.to_owned() });
            }
        }
    }

    pub(super) fn end(self) -> KillPreview {
        self.shown
    }
}

/// What makes two snapshots those of one pool.
#[derive(PartialEq, Eq, Hash)]
enum Pool {
    Named(String),
    InProcess { host: String, pid: u32, name: String },
}

fn pool_id(snapshot: &Value) -> Option<&str> {
    snapshot.get("pool_id").and_then(Value::as_str)
}

/// The pools of a session, and what it calls them.
fn pools(session: &TrackedSession) -> impl Iterator<Item = (Pool, &str)> {
    session.attached.iter().filter_map(|(name, snapshot)| {
        let pool = match (pool_id(snapshot), &session.host, session.pid) {
            (Some(id), _, _) => Pool::Named(id.to_owned()),
            (None, Some(host), Some(pid)) => Pool::InProcess { host: host.clone(), pid, name: name.clone() },
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

    fn means(whom: &Whom, session: &TrackedSession) -> bool {
        match whom {
            Whom::Session(id) => session.session_id == *id,
            Whom::App(name) => session.app_name == *name,
            Whom::Label { key, value } => session.labels.get(key) == Some(value),
        }
    }

    /// Of a tracker with these sessions.
    fn preview(sessions: &[TrackedSession], whom: &Whom) -> KillPreview {
        let meant: Vec<_> = sessions.iter().filter(|session| means(whom, session)).cloned().collect();
        let mut preview = Preview::of(whom, &meant);
        for session in
            sessions.iter().filter(|session| preview.may_be_beside(&session.attached)).collect::<Vec<_>>()
        {
            preview.look_at(session);
        }
        assert!(preview.has_pools() || preview.shown.neighbours.is_empty());
        preview.end()
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
