//! The pager against a list that is sorted and searched in full.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;

use super::super::tests::Directory;
use super::*;
use crate::clock::{Clock, ManualClock};
use crate::tracker::TrackedId;
use crate::tracker::api::{STALE_AFTER, SessionCreate, SessionSort};

/// A session, as far as the list looks at it.
#[derive(Clone, Debug)]
struct Made {
    app: &'static str,
    user: Option<&'static str>,
    status: &'static str,
    task: Option<&'static str>,
    label: Option<(&'static str, &'static str)>,
    uptime: u32,
    /// 0 is stale, 1 is late, and all else has just registered.
    silence: u8,
}

fn made() -> impl Strategy<Value = Made> {
    let apps = select(vec!["a", "b", "Ärger", "100%", "x_y"]);
    let users = select(vec![None, Some("ann"), Some("Bob"), Some("")]);
    let statuses = select(vec!["idle", "idle", "running", "on a break"]);
    let tasks = select(vec![None, Some("task 100%"), Some("a_b"), Some("ÜBER")]);
    let labels =
        select(vec![None, Some(("k", "v")), Some(("k", "v:w")), Some(("k:v", "w")), Some(("k", ""))]);
    (apps, users, statuses, tasks, labels, 0_u32..4, 0_u8..6).prop_map(
        |(app, user, status, task, label, uptime, silence)| Made {
            app,
            user,
            status,
            task,
            label,
            uptime,
            silence,
        },
    )
}

/// What is asked for, without a limit.
fn asked() -> impl Strategy<Value = SessionQuery> {
    let sorts = ["start_time", "app", "user", "id", "last_heartbeat"];
    let sorts: Vec<SessionSort> =
        sorts.iter().flat_map(|word| [word.parse().unwrap(), format!("-{word}").parse().unwrap()]).collect();
    let status = |words: &[&str]| {
        let words: Vec<_> = words.iter().map(|word| Some(TrackedStatus::from((*word).to_owned()))).collect();
        prop_oneof![3 => Just(None), 2 => select(words)]
    };
    let text = |texts: &'static [&'static str]| prop_oneof![4 => Just(None), 1 => select(texts).prop_map(|text| Some(text.to_owned()))];
    (
        select(sorts),
        text(&["a", "Ärger", "100%", "nobody"]),
        text(&["ann", "Bob"]),
        status(&["idle", "running", "on a break", "stale"]),
        status(&["running", "idle", "late", "stale"]),
        text(&["k:v", "k:v:w", "k:", ":"]),
        text(&["%", "_", "100%", "über", "ÄRGER", "task", "nothing"]),
        prop_oneof![4 => Just(None), 1 => select(vec![Some("0"), Some("a"), Some("f")])],
    )
        .prop_map(|(sort, app, user, status, state, label, search, id)| {
            let mut query =
                SessionQuery { app, user, status, state, label, search, sort, ..SessionQuery::new() };
            if let Some(beginning) = id {
                query.id = Some(beginning.to_owned());
                query.sort.key = SortKey::Id;
            }
            query
        })
}

/// The same decided from a whole row, in other words.
fn is_meant(query: &SessionQuery, row: &TrackedSession) -> bool {
    let texts = [Some(row.app_name.clone()), row.user_id.clone(), row.current_task.clone(), row.host.clone()];
    let found = |wanted: &String| {
        let mut texts = texts
            .iter()
            .flatten()
            .chain([&row.session_id.to_string()])
            .map(|text| text.to_lowercase())
            .collect::<Vec<_>>();
        texts.retain(|text| text.contains(&wanted.to_lowercase()));
        !texts.is_empty()
    };
    let labels: Vec<String> = row.labels.iter().map(|(key, value)| format!("{key}:{value}")).collect();
    query.app.as_ref().is_none_or(|app| *app == row.app_name)
        && query.user.as_ref().is_none_or(|user| Some(user) == row.user_id.as_ref())
        && query.status.as_ref().is_none_or(|status| *status == row.status)
        && query.state.as_ref().is_none_or(|state| Some(state) == row.state.as_ref())
        && query.label.as_ref().is_none_or(|label| labels.contains(label))
        && query.id.as_ref().is_none_or(|id| row.session_id.as_str().starts_with(id.as_str()))
        && query.search.as_ref().is_none_or(found)
}

/// By what a row is sorted.
fn key(sort: SessionSort, row: &TrackedSession) -> (String, String) {
    let start = row.start_time.clone();
    match sort.key {
        SortKey::StartTime => (start, String::new()),
        SortKey::App => (row.app_name.clone(), start),
        SortKey::User => (row.user_id.clone().unwrap_or_default(), start),
        SortKey::Id => (row.session_id.to_string(), String::new()),
        SortKey::LastHeartbeat => (row.last_heartbeat.clone(), String::new()),
    }
}

fn register(store: &SessionStore, made: &Made) -> TrackedId {
    let labels: BTreeMap<String, String> =
        made.label.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let session = SessionCreate {
        app_name: made.app.to_owned(),
        user_id: made.user.map(str::to_owned),
        status: Some(made.status.to_owned()),
        current_task: made.task.map(str::to_owned),
        uptime_seconds: Some(f64::from(made.uptime)),
        labels,
        ..SessionCreate::default()
    };
    store.register(session).unwrap()
}

/// All sessions in memory whose silence is theirs.
fn filled(first: &[Made]) -> SessionStore {
    let clock = ManualClock::new();
    let store =
        SessionStore::open_with(Path::new(":memory:"), STALE_AFTER, Clock::manual(clock.clone())).unwrap();
    for (silence, then) in [(0, 80), (1, 46), (2, 0)] {
        for made in first.iter().filter(|made| made.silence.min(2) == silence) {
            register(&store, made);
        }
        clock.advance(Duration::from_secs(then));
    }
    store
}

fn ids(rows: &[TrackedSession]) -> BTreeSet<TrackedId> {
    rows.iter().map(|row| row.session_id.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn whoever_stays_is_shown_once_and_in_order_whoever_else_comes_and_goes(
        first in prop::collection::vec(made(), 0..40),
        mut later in prop::collection::vec((any::<bool>(), made(), any::<prop::sample::Index>()), 0..30),
        query in asked(),
        limit in 1_usize..8,
    ) {
        let store = filled(&first);
        let before = store.get_all_sessions().unwrap();
        let mut staying = before.clone();
        let mut query = query.limit(limit);
        let (mut shown, mut pages) = (Vec::new(), 0);
        loop {
            let page = store.sessions_page(&query).unwrap();
            prop_assert!(page.sessions.len() <= limit);
            let now = store.get_all_sessions().unwrap();
            let fitting = now.iter().filter(|row| is_meant(&query, row)).count() as u64;
            prop_assert!(page.total.is_none_or(|total| total == fitting), "{:?} of {}", page.total, fitting);
            shown.extend(page.sessions);
            pages += 1;
            prop_assert!(pages < 200, "it ends");
            let Some(cursor) = page.next_cursor else { break };
            query.cursor = Some(cursor);
            for (comes, made, which) in later.drain(..later.len().min(2)) {
                if comes {
                    register(&store, &made);
                } else if !staying.is_empty() {
                    let gone = staying.remove(which.index(staying.len()));
                    store.delete_session(&gone.session_id).unwrap();
                }
            }
        }
        prop_assert_eq!(ids(&shown).len(), shown.len(), "nobody is shown twice");
        for row in &shown {
            prop_assert!(is_meant(&query, row), "{:?}", row);
        }
        staying.retain(|row| is_meant(&query, row));
        prop_assert!(ids(&staying).is_subset(&ids(&shown)), "nobody is missed");
        for pair in shown.windows(2) {
            let (one, other) = (key(query.sort, &pair[0]), key(query.sort, &pair[1]));
            prop_assert!(if query.sort.descending { one >= other } else { one <= other }, "{one:?} {other:?}");
        }
    }
}

#[test]
fn the_list_that_everybody_gets_is_the_pages_one_behind_the_other() {
    let made = Made { app: "a", user: None, status: "idle", task: None, label: None, uptime: 0, silence: 2 };
    let store = filled(&vec![made; 25]);
    let (mut query, mut paged) = (SessionQuery::new().limit(7), Vec::new());
    loop {
        let page = store.sessions_page(&query).unwrap();
        assert_eq!(page.total, Some(25));
        paged.extend(page.sessions.into_iter().map(|row| row.session_id));
        let Some(cursor) = page.next_cursor else { break };
        query.cursor = Some(cursor);
    }
    let all = store.get_all_sessions().unwrap();
    assert_eq!(paged, all.into_iter().map(|row| row.session_id).collect::<Vec<_>>());
}

#[test]
fn a_query_that_makes_no_sense_is_told_which_part_does_not() {
    let store = filled(&[]);
    let all = SessionQuery::new;
    let by_app = all().sort("app".parse().unwrap());
    let app_cursor = Place { text: "a".to_owned(), millis: 0, row: 0 }.written(by_app.sort);
    assert!(store.sessions_page(&by_app.clone().cursor(app_cursor.clone())).is_ok());
    for (query, wrong) in [
        (all().limit(0), "limit"),
        (all().limit(LONGEST_PAGE + 1), "limit"),
        (all().cursor("garbled"), "cursor"),
        (all().cursor(""), "cursor"),
        (all().cursor(app_cursor), "cursor"),
        (all().state(TrackedStatus::Lost), "state"),
        (SessionQuery { label: Some("key".to_owned()), ..all() }, "label"),
        (all().search("a".repeat(LONGEST_SEARCH + 1)), "q"),
        (all().id("a").sort(by_app.sort), "sort"),
    ] {
        let error = store.sessions_page(&query).unwrap_err();
        assert!(
            matches!(error, Error::InvalidConfig { option, .. } if option == wrong),
            "{query:?}: {error}"
        );
    }
}

/// The name of SQLite's own index does not depend on where the table came from.
#[test]
fn a_database_of_the_ancestor_is_paged_like_any_other() {
    let directory = Directory::new();
    let table =
        "CREATE TABLE sessions (session_id TEXT PRIMARY KEY, app_name TEXT, user_id TEXT, start_time TEXT,
                 last_heartbeat TEXT, status TEXT, current_task TEXT, kill_requested INTEGER)";
    directory.raw().execute_batch(table).unwrap();
    for number in 0..30 {
        let (id, start) = (format!("old {number}"), format!("2026-01-01T00:00:{number:02}"));
        let insert = "INSERT INTO sessions VALUES (?1, 'a', NULL, ?2, ?2, 'running', NULL, 0)";
        directory.raw().execute(insert, [id, start]).unwrap();
    }
    let store = directory.open();
    for word in ["start_time", "-app", "user", "id", "last_heartbeat"] {
        let mut query = SessionQuery::new().limit(7).sort(word.parse().unwrap());
        let mut found = BTreeSet::new();
        loop {
            let page = store.sessions_page(&query).unwrap();
            found.append(&mut ids(&page.sessions));
            let Some(cursor) = page.next_cursor else { break };
            query.cursor = Some(cursor);
        }
        assert_eq!(found.len(), 30, "{word}");
    }
}
