//! What an operator asks a tracker beside its list: the history, receipts, the audit, snapshots and events.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use remuda::tracker::api::{
    AuditAction, AuditQuery, EventKind, EventList, EventPosition, EventQuery, HistoryQuery, PoolQuery,
    ReceiptQuery, Verb, Whom,
};
use remuda::{AccessToken, CancelToken, Error, Tokens, TrackedId, TrackerOperator, TrackerServer};
use serde_json::{Value, json};

use crate::scripted_server::{Reply, ScriptedServer, fine};
use crate::support::{GENEROUS, isolated};
use crate::tracker_support::{Http, server};

const OPERATOR: &str = "operator-0123456789";
const VIEWER: &str = "viewer-0123456789";
const APP: &str = "app-one-0123456789";

fn operator(server: &TrackerServer) -> TrackerOperator {
    TrackerOperator::new(format!("http://{}", server.local_addr())).unwrap()
}

/// Why it was refused.
fn trouble<T>(answer: Result<T, Error>) -> String {
    match answer {
        Err(Error::Tracker { reason, .. }) => reason,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was not refused"),
    }
}

/// Registers a session of this app that leaves at once.
fn gone(server: &TrackerServer, app: &str) -> TrackedId {
    let id = server.store().create_session(app, None).unwrap();
    assert!(server.store().delete_session(&id).unwrap());
    id
}

fn kinds(list: &EventList) -> Vec<EventKind> {
    list.events.iter().map(|event| event.kind).collect()
}

isolated! {
    fn pages_of_the_past_have_no_gaps_while_it_becomes_more() {
        let server = server();
        let operator = operator(&server);
        let mut left: Vec<TrackedId> = (0..9).map(|_| gone(&server, "a & b")).collect();
        left.reverse();
        let mut found = Vec::new();
        for page in operator.history_pages(HistoryQuery::new().limit(2).app("a & b")) {
            found.extend(page.unwrap().history.into_iter().map(|entry| entry.session_id));
            gone(&server, "a & b");
        }
        assert_eq!(found, left);
        let of_one = operator.history_page(&HistoryQuery::new().session(left[3].clone())).unwrap().unwrap();
        assert_eq!((of_one.history.len(), &of_one.history[0].session_id), (1, &left[3]));
        assert_eq!(of_one.next_before, None);

        let mut ids: Vec<TrackedId> = (0..5).map(|_| server.store().create_session("a", None).unwrap()).collect();
        for id in &ids {
            assert!(operator.kill(id).unwrap());
        }
        ids.reverse();
        let mut found = Vec::new();
        for page in operator.receipt_pages(ReceiptQuery::new().limit(2).app("a").open(true)) {
            found.extend(page.unwrap().kills.into_iter().map(|receipt| receipt.session_id));
            let more = server.store().create_session("a", None).unwrap();
            assert!(operator.kill(&more).unwrap());
        }
        assert_eq!(found, ids);
        let of_one = operator.receipts_page(&ReceiptQuery::new().session(ids[0].clone())).unwrap().unwrap();
        assert_eq!(of_one.kills.len(), 1);

        operator.order(&Whom::App("a".to_owned()), Verb::Pause).unwrap();
        let (mut found, mut last) = (Vec::new(), u64::MAX);
        for page in operator.audit_pages(AuditQuery::new().limit(3)) {
            for entry in page.unwrap().audit {
                assert!(entry.entry < last, "newest first");
                last = entry.entry;
                found.push(entry.action);
            }
            operator.order(&Whom::App("a".to_owned()), Verb::Resume).unwrap();
        }
        let mut asked = vec![AuditAction::Pause];
        asked.extend([AuditAction::Kill; 8]);
        assert_eq!(found, asked);
        let pauses = operator.audit_page(&AuditQuery::new().action(AuditAction::Pause)).unwrap().unwrap();
        assert_eq!((pauses.audit.len(), pauses.audit[0].sessions), (1, 8));
        let of_nobody = operator.audit_page(&AuditQuery::new().token("x")).unwrap().unwrap();
        assert!(of_nobody.audit.is_empty());
        assert!(trouble(operator.history_page(&HistoryQuery::new().limit(0))).contains("422: limit"));
    }
}

isolated! {
    fn snapshots_come_in_pages_in_the_order_of_their_sessions() {
        let server = server();
        let operator = operator(&server);
        let mut http = Http::connect(server.local_addr());
        let ids: Vec<String> = (0..5).map(|number| http.register(&format!("app {}", number % 2))).collect();
        for id in &ids {
            let attached = json!({"attached": {"pool": {"busy": 1}, "other": [id]}});
            http.ok("POST", &format!("/sessions/{id}/heartbeat"), &attached);
        }
        let found = |query: PoolQuery| {
            let pages = operator.pool_pages(query).map(|page| page.unwrap().pools);
            pages.flatten().map(|pool| pool.session_id.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found(PoolQuery::new().limit(2).name("pool")), ids);
        assert_eq!(found(PoolQuery::new().limit(1).app("app 1").name("other")), [ids[1].clone(), ids[3].clone()]);
        let of_one = operator.pools_page(&PoolQuery::new().session(ids[2].as_str())).unwrap().unwrap();
        assert_eq!(of_one.pools.len(), 2);
        assert_eq!((&of_one.pools[1].snapshot, of_one.next_after), (&json!({"busy": 1}), None));
    }
}

isolated! {
    fn who_looks_may_read_all_but_the_audit_and_an_app_nothing() {
        let text = format!("operator ops {OPERATOR}\nviewer {VIEWER}\napp one {APP}");
        let tokens = Tokens::parse(&text).unwrap();
        let server = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").tokens(tokens);
        let server = server.start().unwrap();
        let asked = |token: Option<&str>| {
            let operator = operator(&server);
            let operator = match token {
                Some(token) => operator.with_token(&AccessToken::new(token).unwrap()),
                None => operator,
            };
            let stop = CancelToken::new();
            let answers = [
                operator.history_page(&HistoryQuery::new()).map(|page| page.is_some()),
                operator.receipts_page(&ReceiptQuery::new()).map(|page| page.is_some()),
                operator.pools_page(&PoolQuery::new()).map(|page| page.is_some()),
                operator
                    .events_after(&EventPosition::Now, &EventQuery::new(), Duration::ZERO)
                    .map(|list| list.is_some()),
                operator
                    .follow_events(&EventPosition::Now, EventQuery::new(), &stop)
                    .map(|lists| lists.is_some()),
                operator.audit_page(&AuditQuery::new()).map(|page| page.is_some()),
            ];
            answers.map(|answer| match answer {
                Ok(is_there) => is_there.to_string(),
                Err(error) => trouble::<()>(Err(error))["it answers ".len()..][..3].to_owned(),
            })
        };
        assert_eq!(asked(Some(OPERATOR)), ["true"; 6]);
        assert_eq!(asked(Some(VIEWER)), ["true", "true", "true", "true", "true", "403"]);
        assert_eq!(asked(Some(APP)), ["403"; 6]);
        assert_eq!(asked(None), ["401"; 6]);
    }
}

isolated! {
    fn a_tracker_of_another_kind_has_none_of_it() {
        let ancestor = ScriptedServer::start(|_| Reply::Json(404, json!({"detail": "Not Found"})));
        let operator = TrackerOperator::new(ancestor.url()).unwrap();
        assert!(operator.history_page(&HistoryQuery::new()).unwrap().is_none());
        assert!(operator.receipts_page(&ReceiptQuery::new()).unwrap().is_none());
        assert!(operator.audit_page(&AuditQuery::new()).unwrap().is_none());
        assert!(operator.pools_page(&PoolQuery::new()).unwrap().is_none());
        let (now, query, stop) = (EventPosition::Now, EventQuery::new(), CancelToken::new());
        assert!(operator.events_after(&now, &query, GENEROUS).unwrap().is_none());
        assert!(operator.follow_events(&now, query, &stop).unwrap().is_none());
        let mut pages = operator.history_pages(HistoryQuery::new());
        assert_eq!(trouble(pages.next().unwrap()), "it keeps no history");
        assert!(pages.next().is_none(), "an error is the end");
        assert_eq!(trouble(operator.receipt_pages(ReceiptQuery::new()).next().unwrap()), "it gives no receipts");
        assert_eq!(trouble(operator.audit_pages(AuditQuery::new()).next().unwrap()), "it keeps no audit");
        assert_eq!(trouble(operator.pool_pages(PoolQuery::new()).next().unwrap()), "it keeps no snapshots");
    }
}

/// What each step has brought.
fn told<P>(pages: impl Iterator<Item = Result<P, Error>>) -> Vec<String> {
    pages.map(|page| page.map_or_else(|error| trouble::<()>(Err(error)), |_| "a page".to_owned())).collect()
}

isolated! {
    fn pages_that_do_not_go_on_and_answers_without_sense_are_errors() {
        let circle = ScriptedServer::start(|asked| {
            fine(match asked.path.split('?').next().unwrap() {
                "/history" => json!({"history": [], "next_before": 7}),
                "/kills" => json!({"kills": [], "next_before": if asked.path.contains("before") { 8 } else { 7 }}),
                "/audit" => json!({"audit": [], "next_before": "7"}),
                "/pools" => json!({"pools": [], "next_after": 7}),
                _ => json!(["no object"]),
            })
        });
        let operator = TrackerOperator::new(circle.url()).unwrap();
        let circles = ["a page", "its list does not go on"];
        assert_eq!(told(operator.history_pages(HistoryQuery::new())), circles);
        assert_eq!(told(operator.receipt_pages(ReceiptQuery::new())), circles);
        assert_eq!(told(operator.pool_pages(PoolQuery::new())), circles);
        assert_eq!(told(operator.pool_pages(PoolQuery::new().after(9))), circles[1..]);
        let audit = told(operator.audit_pages(AuditQuery::new()));
        assert!(audit.len() == 1 && audit[0].starts_with("what it answers makes no sense"), "{audit:?}");
        let events = operator.events_after(&EventPosition::Oldest, &EventQuery::new(), Duration::ZERO);
        assert!(trouble(events).starts_with("what it answers makes no sense"));
    }
}

fn event(id: &str, kind: &str) -> Value {
    json!({"id": id, "time": "2026-01-01T00:00:00+00:00", "kind": kind})
}

isolated! {
    fn events_that_do_not_go_on_are_an_error() {
        let answers = [
            json!({"events": [event("x-1", "ended")], "last": "", "reset": false}),
            json!({"events": [], "last": "x".repeat(300), "reset": false}),
            json!({"events": [event("x-1", "ended")], "last": "x-0", "reset": false}),
        ];
        for answer in answers {
            let circle = ScriptedServer::start(move |_| fine(answer.clone()));
            let operator = TrackerOperator::new(circle.url()).unwrap();
            let after = EventPosition::After("x-0".to_owned());
            let list = operator.events_after(&after, &EventQuery::new(), Duration::ZERO);
            assert_eq!(trouble(list), "its events do not go on");
        }
    }
}

isolated! {
    fn a_list_of_events_waits_for_the_first_and_no_longer_than_a_minute() {
        let server = server();
        let operator = operator(&server);
        let query = EventQuery::new().app("a").kinds([EventKind::Registered, EventKind::Ended]);
        let begin = operator.events_after(&EventPosition::Now, &query, Duration::ZERO).unwrap().unwrap();
        assert!(begin.events.is_empty() && !begin.reset);
        let found = std::thread::scope(|scope| {
            let after = EventPosition::After(begin.last.clone());
            let waiting = scope.spawn(|| operator.events_after(&{ after }, &query, GENEROUS));
            gone(&server, "b");
            server.store().create_session("a", None).unwrap();
            waiting.join().unwrap().unwrap().unwrap()
        });
        assert_eq!(kinds(&found), [EventKind::Registered]);
        let id = gone(&server, "a");
        let all = operator.events_after(&EventPosition::Oldest, &query, Duration::ZERO).unwrap().unwrap();
        assert_eq!(kinds(&all), [EventKind::Registered, EventKind::Registered, EventKind::Ended]);
        let of_one = EventQuery::new().session(id).limit(1);
        let first = operator.events_after(&EventPosition::Oldest, &of_one, Duration::ZERO).unwrap().unwrap();
        assert_eq!(kinds(&first), [EventKind::Registered]);
        let after = EventPosition::After(first.last);
        let second = operator.events_after(&after, &of_one, Duration::ZERO).unwrap().unwrap();
        assert_eq!(kinds(&second), [EventKind::Ended]);
        let foreign = EventPosition::After("00000000-7".to_owned());
        assert!(operator.events_after(&foreign, &query, GENEROUS).unwrap().unwrap().reset);

        let listens = ScriptedServer::start(|_| fine(json!({"events": [], "last": "x-1", "reset": false})));
        let operator = TrackerOperator::new(listens.url()).unwrap();
        operator.events_after(&EventPosition::Now, &query, Duration::from_secs(3_600)).unwrap().unwrap();
        let asked = listens.asked()[0].path.clone();
        assert_eq!(asked, "/events?limit=100&app=a&kind=registered%2Cended&wait=60");
    }
}

isolated! {
    fn who_follows_misses_nothing_and_stops_when_told_to() {
        let server = server();
        let operator = operator(&server);
        let stop = CancelToken::new();
        let query = EventQuery::new().limit(3).app("a");
        let mut lists = operator.follow_events(&EventPosition::Now, query.clone(), &stop).unwrap().unwrap();
        for _ in 0..4 {
            gone(&server, "b");
            gone(&server, "a");
        }
        let mut found = Vec::new();
        while found.len() < 8 {
            let list = lists.next().unwrap().unwrap();
            assert!(!list.reset && (1..=3).contains(&list.events.len()));
            found.extend(list.events);
            if found.len() == 6 {
                // Another one goes on where this one is.
                lists = operator.follow_events(lists.position(), query.clone(), &stop).unwrap().unwrap();
            }
        }
        let both = [EventKind::Registered, EventKind::Ended];
        assert_eq!(found.iter().map(|event| event.kind).collect::<Vec<_>>(), both.repeat(4));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lists.next().is_none());
            stop.cancel();
            assert!(waiting.join().unwrap());
        });
        let cancelled = operator.follow_events(&EventPosition::Now, query, &stop);
        assert!(matches!(cancelled, Err(Error::Cancelled)), "{cancelled:?}");
    }
}

isolated! {
    fn who_follows_a_tracker_that_holds_the_request_stops_at_once() {
        let holds = ScriptedServer::start(|asked| {
            if asked.path.contains("wait=") {
                return Reply::Hang;
            }
            fine(json!({"events": [event("x-1", "ended")], "last": "x-1", "reset": false}))
        });
        let operator = TrackerOperator::new(holds.url()).unwrap();
        let stop = CancelToken::new();
        let mut lists = operator.follow_events(&EventPosition::Oldest, EventQuery::new(), &stop).unwrap().unwrap();
        assert_eq!(lists.position(), &EventPosition::Oldest);
        assert_eq!(kinds(&lists.next().unwrap().unwrap()), [EventKind::Ended], "what was there");
        assert_eq!(lists.position(), &EventPosition::After("x-1".to_owned()));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| lists.next().is_none());
            holds.await_count(2, "GET", "/events");
            stop.cancel();
            assert!(waiting.join().unwrap());
        });
        assert_eq!(holds.given_up(), 1, "its connection is closed");
    }
}

isolated! {
    fn who_follows_goes_on_when_the_tracker_is_back_and_hears_what_is_not_known_any_more() {
        let asked = AtomicUsize::new(0);
        let flaky = ScriptedServer::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => fine(json!({"events": [], "last": "x-1", "reset": false})),
            1 => Reply::Json(503, json!({"detail": "the disk is full"})),
            2 => Reply::Close,
            3 => fine(json!({"events": [], "last": "y-0", "reset": true})),
            4 => fine(json!({"events": [event("y-1", "something_new")], "last": "y-1", "reset": false})),
            _ => Reply::Json(403, json!({"detail": "this access token is not for that"})),
        });
        let operator = TrackerOperator::new(flaky.url()).unwrap();
        let stop = CancelToken::new();
        let mut lists = operator.follow_events(&EventPosition::Now, EventQuery::new(), &stop).unwrap().unwrap();
        assert!(trouble(lists.next().unwrap()).contains("the disk is full"));
        assert!(trouble(lists.next().unwrap()).starts_with("it does not answer"));
        assert_eq!(lists.position(), &EventPosition::After("x-1".to_owned()));
        let list = lists.next().unwrap().unwrap();
        assert!(list.reset && list.events.is_empty());
        assert_eq!(kinds(&lists.next().unwrap().unwrap()), [EventKind::Unknown]);
        assert!(trouble(lists.next().unwrap()).starts_with("it answers 403"));
        assert!(lists.next().is_none(), "that is the end");
        assert_eq!(flaky.count("GET", "/events"), 6);
        assert!(flaky.asked()[4].path.contains("after=y-0"));
    }
}

isolated! {
    fn who_follows_hears_of_a_tracker_that_was_started_again() {
        let first = server();
        let (address, operator) = (first.local_addr(), operator(&first));
        let stop = CancelToken::new();
        let mut lists = operator.follow_events(&EventPosition::Now, EventQuery::new(), &stop).unwrap().unwrap();
        gone(&first, "a");
        assert_eq!(kinds(&lists.next().unwrap().unwrap())[0], EventKind::Registered);
        first.shutdown();
        let second =
            TrackerServer::builder().listen(address.to_string()).database(":memory:").start().unwrap();
        // The end of the first one may show as an error, or not at all.
        let list = lists.find_map(|list| list.ok().filter(|list| list.reset)).unwrap();
        assert!(list.events.is_empty());
        gone(&second, "b");
        let list = lists.find_map(Result::ok).unwrap();
        assert_eq!(list.events[0].app_name.as_deref(), Some("b"));
    }
}
