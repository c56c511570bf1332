//! The store without a server.

use std::fs;

use super::*;
use crate::tracker::TrackedStatus;
use crate::tracker::api::{EventKind, KillAcknowledgement, KillState, KillStep};
use crate::tracker::events::{At, Filter, Told};

/// A directory that is removed with all it holds.
pub(super) struct Directory(pub(super) PathBuf);

impl Directory {
    pub(super) fn new() -> Directory {
        let path = std::env::temp_dir().join(format!("remuda-store-{}", TrackedId::random()));
        fs::create_dir(&path).unwrap();
        Directory(path)
    }

    pub(super) fn database(&self) -> PathBuf {
        self.0.join("tracker.db")
    }

    pub(super) fn open(&self) -> SessionStore {
        SessionStore::open(self.database()).unwrap()
    }

    /// What an SQLite shell would see.
    pub(super) fn raw(&self) -> Connection {
        Connection::open(self.database()).unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn row(store: &SessionStore, id: &TrackedId) -> Option<TrackedSession> {
    store.get_all_sessions().unwrap().into_iter().find(|row| row.session_id == *id)
}

fn outcomes(connection: &Connection) -> Vec<(String, String)> {
    let mut statement = connection.prepare("SELECT session_id, outcome FROM history ORDER BY entry").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

#[test]
fn many_register_at_once_and_have_the_ids_that_are_told() {
    let directory = Directory::new();
    let store = directory.open();
    let named =
        |number: usize| SessionCreate { app_name: format!("app {number}"), ..SessionCreate::default() };
    let mut sessions: Vec<SessionCreate> = (0..700).map(named).collect();
    let own = TrackedId::random();
    sessions[5].session_id = Some(own.clone());
    let ids = store.register_all(sessions).unwrap();
    assert_eq!((ids.len(), &ids[5]), (700, &own));
    drop(store);
    let store = directory.open();
    for number in [0, 5, 699] {
        assert_eq!(row(&store, &ids[number]).unwrap().app_name, format!("app {number}"));
    }
    assert_eq!(store.register_all(Vec::new()).unwrap(), []);
}

#[test]
fn the_operations_of_the_ancestor_in_a_file_and_in_memory() {
    let directory = Directory::new();
    for path in [directory.database(), PathBuf::from(":memory:")] {
        let store = SessionStore::open(&path).unwrap();
        let one = store.create_session("a", Some("ann")).unwrap();
        let two = store.create_session("a", None).unwrap();
        let other = store.create_session("b", None).unwrap();
        let unknown = TrackedId::random();
        assert_eq!(store.update_heartbeat(&one), Some(false));
        assert_eq!(store.update_heartbeat(&unknown), None);
        assert!(store.update_status(&one, "running", Some("task")).unwrap());
        assert!(!store.update_status(&unknown, "running", None).unwrap());
        assert!(store.request_kill(&one).unwrap() && store.request_kill(&one).unwrap());
        assert!(!store.request_kill(&unknown).unwrap());
        assert_eq!(store.update_heartbeat(&one), Some(true));
        assert_eq!(store.kill_requested(&two), Some(false));
        assert_eq!(store.request_kill_by_app("a").unwrap(), 2);
        assert_eq!(store.request_kill_by_app("nobody").unwrap(), 0);
        assert_eq!(store.update_heartbeat(&two), Some(true));
        assert_eq!(store.update_heartbeat(&other), Some(false));
        let first = row(&store, &one).unwrap();
        assert_eq!((first.app_name.as_str(), first.user_id.as_deref()), ("a", Some("ann")));
        assert_eq!((first.status, first.current_task.as_deref()), (TrackedStatus::Running, Some("task")));
        assert!(first.kill_requested && !first.is_stale);
        assert!(store.delete_session(&one).unwrap() && !store.delete_session(&one).unwrap());
        assert_eq!(store.update_heartbeat(&one), None);
        assert_eq!(store.cleanup_stale_sessions(Duration::from_secs(60)).unwrap(), 0);
        assert_eq!(store.cleanup_stale_sessions(Duration::ZERO).unwrap(), 2);
        assert_eq!(store.get_all_sessions().unwrap(), []);
    }
}

#[test]
fn everything_is_there_after_it_was_closed_and_opened_again() {
    let directory = Directory::new();
    let store = directory.open();
    let id = store
        .register(SessionCreate {
            app_name: "größe\0x".to_owned(),
            labels: [("k".to_owned(), "v".to_owned())].into(),
            pid: Some(u32::MAX),
            ..SessionCreate::default()
        })
        .unwrap();
    store.update_status(&id, "on a break", Some("tea")).unwrap();
    store.request_kill(&id).unwrap();
    store.update_heartbeat(&id);
    let before = row(&store, &id).unwrap();
    drop(store);
    let store = directory.open();
    let after = row(&store, &id).unwrap();
    assert_eq!(after.last_heartbeat, before.last_heartbeat, "the last beat was written at the end");
    assert_eq!((&after.start_time, &after.status), (&before.start_time, &before.status));
    assert_eq!((&after.app_name, &after.labels, after.pid), (&before.app_name, &before.labels, before.pid));
    assert_eq!(store.update_heartbeat(&id), Some(true));
}

#[test]
fn nobody_is_stale_before_one_threshold_after_the_start() {
    let directory = Directory::new();
    let id = directory.open().create_session("a", None).unwrap();
    directory.raw().execute("UPDATE beats SET last_heartbeat = 0", []).unwrap();
    let store = directory.open();
    let found = row(&store, &id).unwrap();
    assert!(!found.is_stale && found.status == TrackedStatus::Idle);
    assert!(found.last_heartbeat.starts_with("1970-"), "{}", found.last_heartbeat);
    assert!(found.beat_age_seconds.unwrap() > 1e9, "the true age is shown");
    assert_eq!(store.cleanup_stale_sessions(STALE_AFTER).unwrap(), 0);
}

#[test]
fn the_dead_lie_in_the_history_with_the_cause() {
    let directory = Directory::new();
    let store = directory.open();
    let ids = [store.create_session("a", None).unwrap(), store.create_session("a", None).unwrap()];
    store.delete_session(&ids[0]).unwrap();
    store.cleanup_stale_sessions(Duration::ZERO).unwrap();
    let expected = [(ids[0].to_string(), "ended".to_owned()), (ids[1].to_string(), "lost".to_owned())];
    assert_eq!(outcomes(&directory.raw()), expected);
    store.trim_history(Duration::from_secs(60), 10).unwrap();
    assert_eq!(outcomes(&directory.raw()).len(), 2);
    directory.raw().execute("UPDATE history SET end_time = 0", []).unwrap();
    store.trim_history(Duration::from_secs(60), 10).unwrap();
    assert_eq!(outcomes(&directory.raw()), []);
}

#[test]
fn a_beat_just_before_the_end_stands_in_the_history() {
    let directory = Directory::new();
    let store = directory.open();
    let id = store.create_session("a", None).unwrap();
    // The registration was long ago; the beats are written by nobody but the end.
    directory.raw().execute("UPDATE beats SET last_heartbeat = 0", []).unwrap();
    directory.raw().execute("UPDATE sessions SET start_time = 0", []).unwrap();
    let raw = directory.raw();
    store.update_heartbeat(&id);
    let last = store.memory.lock().unwritten_beat(1);
    store.delete_session(&id).unwrap();
    let kept: i64 = raw.query_row("SELECT last_heartbeat FROM history", [], |row| row.get(0)).unwrap();
    assert!(kept > 0 && last.is_none_or(|last| last == kept), "{kept} {last:?}");
}

#[test]
fn beats_reach_the_disk_by_themselves_in_one_batch() {
    let directory = Directory::new();
    let store = directory.open();
    let ids: Vec<TrackedId> = (0..50).map(|_| store.create_session("a", None).unwrap()).collect();
    let raw = directory.raw();
    raw.execute("UPDATE beats SET last_heartbeat = 0", []).unwrap();
    // Nothing is written before the gate opens.
    let (go, gate) = crossbeam_channel::bounded::<()>(0);
    store.writer.send(Command::Read(Box::new(move |_| gate.recv().unwrap())));
    for id in ids.iter().cycle().take(500) {
        store.update_heartbeat(id);
    }
    let written = || -> i64 {
        raw.query_row("SELECT count(*) FROM beats WHERE last_heartbeat > 0", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(written(), 0, "a beat does not wait for the disk");
    go.send(()).unwrap();
    let deadline = Moment::after(Duration::from_secs(60));
    loop {
        match written() {
            0 => assert!(Moment::now() < deadline, "the beats are never written"),
            50 => break,
            some => panic!("{some} beats were written alone"),
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

#[test]
fn one_broken_change_does_not_fail_its_neighbours() {
    let directory = Directory::new();
    let store = directory.open();
    directory
        .raw()
        .execute_batch(
            "CREATE TRIGGER refuse BEFORE INSERT ON sessions WHEN new.app_name = 'bad'
             BEGIN SELECT raise(ABORT, 'on purpose'); END",
        )
        .unwrap();
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for _ in 0..20 {
                    let name = if worker % 2 == 0 { "bad" } else { "good" };
                    assert_eq!(store.create_session(name, None).is_ok(), name == "good");
                }
            });
        }
    });
    let rows = store.get_all_sessions().unwrap();
    assert_eq!(rows.len(), 80);
    assert!(rows.iter().all(|row| store.update_heartbeat(&row.session_id) == Some(false)));
}

#[test]
fn a_database_of_the_ancestor_is_taken_over_with_its_rows() {
    let directory = Directory::new();
    directory
        .raw()
        .execute_batch(
            "CREATE TABLE sessions (
                session_id TEXT PRIMARY KEY, app_name TEXT NOT NULL, user_id TEXT, start_time TEXT NOT NULL,
                last_heartbeat TEXT NOT NULL, status TEXT DEFAULT 'idle', current_task TEXT,
                kill_requested INTEGER DEFAULT 0);
             CREATE INDEX idx_sessions_app_name ON sessions (app_name);
             INSERT INTO sessions VALUES
                ('0f8fad5b-d9cb-469f-a165-70867728950e', 'my app', 'ann', '2026-01-02T03:04:05.678901',
                 '2026-01-02 03:05:05', 'running', 'a task', 1),
                ('old-style id', 'other', NULL, 1767323045.5, 1767323046, 'idle', NULL, 0),
                ('odd', 'odd', NULL, 'once', '', NULL, NULL, NULL);",
        )
        .unwrap();
    let store = directory.open();
    let uuid = TrackedId::from("0f8fad5b-d9cb-469f-a165-70867728950e");
    let first = row(&store, &uuid).unwrap();
    assert_eq!((first.app_name.as_str(), first.user_id.as_deref()), ("my app", Some("ann")));
    assert_eq!(first.start_time, "2026-01-02T03:04:05.678+00:00");
    assert_eq!(first.last_heartbeat, "2026-01-02T03:05:05.000+00:00");
    assert_eq!((first.status, first.current_task.as_deref()), (TrackedStatus::Running, Some("a task")));
    assert_eq!(store.update_heartbeat(&uuid), Some(true), "its pending kill arrives");
    let second = row(&store, &"old-style id".into()).unwrap();
    assert_eq!(second.start_time, "2026-01-02T03:04:05.500+00:00");
    assert_eq!(row(&store, &"odd".into()).unwrap().status, TrackedStatus::Idle);
    drop(store);
    let kept: i64 =
        directory.raw().query_row("SELECT count(*) FROM ancestor_sessions", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, 3, "nothing of it is thrown away");
    assert_eq!(directory.open().get_all_sessions().unwrap().len(), 3, "it is taken over once");
}

#[test]
fn a_database_of_another_program_is_refused_and_left_as_it_is() {
    for table in
        ["CREATE TABLE sessions (id INTEGER PRIMARY KEY, data BLOB)", "CREATE TABLE notes (text TEXT)"]
    {
        let directory = Directory::new();
        directory.raw().execute_batch(table).unwrap();
        let error = SessionStore::open(directory.database()).unwrap_err();
        assert!(error.to_string().contains("another program"), "{error}");
        let kept: String =
            directory.raw().query_row("SELECT sql FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        assert_eq!(kept, table);
    }
}

#[test]
fn a_lost_session_gets_its_pending_kill_back_and_one_that_left_does_not() {
    let store = SessionStore::open(":memory:").unwrap();
    let me = SessionCreate {
        app_name: "a".to_owned(),
        session_id: Some(TrackedId::random()),
        ..SessionCreate::default()
    };
    let id = store.register(me.clone()).unwrap();
    store.request_kill(&id).unwrap();
    store.cleanup_stale_sessions(Duration::ZERO).unwrap();
    store.register(me.clone()).unwrap();
    assert_eq!(store.update_heartbeat(&id), Some(true));
    store.delete_session(&id).unwrap();
    store.register(me).unwrap();
    assert_eq!(store.update_heartbeat(&id), Some(false));
}

#[test]
fn readers_and_writers_do_not_disturb_each_other() {
    let directory = Directory::new();
    let store = directory.open();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let id = store.create_session("a", None).unwrap();
                    assert!(row(&store, &id).is_some(), "what was registered is listed");
                    store.delete_session(&id).unwrap();
                    assert!(row(&store, &id).is_none(), "what was deleted is not");
                }
            });
        }
    });
}

#[test]
fn who_registers_in_the_same_transaction_as_an_embargo_does_not_slip_through() {
    let store = SessionStore::open(":memory:").unwrap();
    let order = |lasts| KillOrder { embargo: Some(lasts), ..KillOrder::default() };
    let whom = Whom::App("a".to_owned());
    // An older one that is over hides the new one from nobody.
    store.kill(whom.clone(), order(Duration::ZERO)).unwrap().unwrap();
    let kill = Write::Kill { whom, order: Box::new(order(Duration::from_secs(60))) };
    let session = SessionCreate { app_name: "a".to_owned(), ..SessionCreate::default() };
    let id = TrackedId::random();
    let register = Write::Register { id: id.clone(), owner: None, session: Box::new(session) };
    in_one_transaction(&store, [kill, register]);
    assert_eq!(store.update_heartbeat(&id), Some(true));
}

/// Whatever is queued while the writer is busy is one transaction.
fn in_one_transaction<const N: usize>(store: &SessionStore, writes: [Write; N]) {
    let (go, gate) = crossbeam_channel::bounded::<()>(0);
    store.writer.send(Command::Read(Box::new(move |_| gate.recv().unwrap())));
    let replies = writes.map(|write| {
        let (reply, answer) = crossbeam_channel::bounded(1);
        store.writer.send(Command::Write { write, reply });
        answer
    });
    go.send(()).unwrap();
    for reply in replies {
        reply.recv().unwrap().unwrap();
    }
}

#[test]
fn a_receipt_goes_through_its_steps_within_one_transaction() {
    let store = SessionStore::open(":memory:").unwrap();
    let id = store.create_session("a", None).unwrap();
    let whom = Whom::Session(id.clone());
    let killed = store.kill(whom.clone(), KillOrder::default()).unwrap().unwrap();
    let kill_id = killed.receipts[0].kill_id;
    let word = |step| Write::Acknowledge { id: id.clone(), word: KillAcknowledgement { kill_id, step } };
    let again = Write::Kill { whom, order: Box::default() };
    let writes = [
        word(KillStep::Delivered),
        word(KillStep::Stopping),
        again,
        Write::Delete { id: id.clone(), asked_by: None },
    ];
    in_one_transaction(&store, writes);
    let receipt = store.receipt(kill_id).unwrap().unwrap();
    assert_eq!(receipt.state, KillState::Confirmed);
    assert!(receipt.delivered_seconds.is_some() && receipt.stopping_seconds.is_some());
    let stats = store.kill_stats();
    assert_eq!((stats.requested, stats.open, stats.confirmed.count), (1, 0, 1));
    assert_eq!(store.receipt(kill_id + 1).unwrap(), None);
}

#[test]
fn the_history_and_the_receipts_are_kept_up_to_a_number() {
    let directory = Directory::new();
    let store = directory.open();
    let ids: Vec<TrackedId> = (0..5).map(|_| store.create_session("a", None).unwrap()).collect();
    store.request_kill_by_app("a").unwrap();
    for id in &ids[..4] {
        store.delete_session(id).unwrap();
    }
    store.trim_history(Duration::from_secs(60), 2).unwrap();
    let gone: Vec<String> = outcomes(&directory.raw()).into_iter().map(|(id, _)| id).collect();
    assert_eq!(gone, ids[2..4].iter().map(TrackedId::to_string).collect::<Vec<_>>());
    let kills = |query: &str| directory.raw().query_row(query, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(kills("SELECT count(*) FROM kills"), 2);
    assert_eq!(
        kills("SELECT count(*) FROM kills WHERE outcome IS NULL"),
        1,
        "an open one is never forgotten"
    );
}

/// Somebody leaves just when his silence is noticed.
#[test]
fn nothing_is_told_of_a_session_after_its_end() {
    let directory = Directory::new();
    for path in [directory.database(), PathBuf::from(":memory:")] {
        let store = SessionStore::open(&path).unwrap();
        let id = store.create_session("a", None).unwrap();
        let (come, coming) = crossbeam_channel::bounded(1);
        let at = At { millis: 0 };
        std::thread::scope(|threads| {
            threads.spawn(|| {
                coming.recv().unwrap();
                assert!(store.delete_session(&id).unwrap());
            });
            store
                .tell_of(vec![1, 2], move |names| {
                    assert_eq!((names.len(), std::thread::current().name()), (1, Some("remuda-store")));
                    come.send(()).unwrap();
                    let (id, app_name) = &names[&1];
                    at.of_session(EventKind::Stale, id, app_name).into()
                })
                .unwrap();
        });
        store
            .tell_of(vec![1], move |names| {
                assert!(names.is_empty());
                Told::default()
            })
            .unwrap();
        let mut kinds = Vec::new();
        store
            .feed()
            .read(1, &Filter::default(), |_, event| {
                kinds.push(event.kind);
                true
            })
            .unwrap();
        assert_eq!(kinds, [EventKind::Registered, EventKind::Stale, EventKind::Ended]);
    }
}
