//! `GET /sessions` in pages, over the wire.

use std::collections::BTreeSet;

use remuda::testing::ManualClock;
use remuda::{TrackerServer, tracker::api::MAX_BODY};
use serde_json::{Value, json};

use crate::support::isolated;
use crate::tracker_support::{Http, server};

/// Text as a parameter's value.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |encoded, byte| encoded + &format!("%{byte:02X}"))
}

fn page(http: &mut Http, parameters: &str) -> Value {
    http.ok("GET", &format!("/sessions?{parameters}"), &Value::Null)
}

/// The ids on all pages of a list.
fn all_pages(http: &mut Http, parameters: &str) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = page(http, &format!("{parameters}{cursor}"));
        let rows = page["sessions"].as_array().expect("rows");
        ids.extend(rows.iter().map(|row| row["session_id"].as_str().expect("an id").to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return ids,
        }
    }
}

/// Registers a session that says all this of itself.
fn register(http: &mut Http, session: &Value) -> String {
    http.ok("POST", "/sessions", session)["session_id"].as_str().expect("an id").to_owned()
}

isolated! {
    fn without_a_parameter_everybody_is_listed_and_with_a_limit_a_page() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let mut ids: Vec<String> = (0..250).map(|_| http.register("a")).collect();
        ids.reverse();
        let whole = http.ok("GET", "/sessions?unknown=1", &Value::Null);
        assert_eq!(whole["sessions"].as_array().unwrap().len(), 250);
        assert!(whole.get("next_cursor").is_none() && whole.get("total").is_none());
        let first = page(&mut http, "limit=100");
        assert_eq!((first["sessions"].as_array().unwrap().len(), &first["total"]), (100, &json!(250)));
        assert_eq!(all_pages(&mut http, "limit=100"), ids);
        assert_eq!(page(&mut http, "sort=app")["sessions"].as_array().unwrap().len(), 100, "the usual limit");
        let last = page(&mut http, "limit=1000");
        assert!(last["next_cursor"].is_null() && last.as_object().unwrap().contains_key("next_cursor"));
        let empty = page(&mut http, "app=nobody");
        assert_eq!(empty, json!({"sessions": [], "next_cursor": null, "total": 0}));
    }
}

isolated! {
    fn each_filter_finds_its_own_whatever_the_names_are() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let mut of = |session: &Value| register(&mut http, session);
        let plain = of(&json!({"app_name": "plain", "status": "running", "current_task": "100 reports"}));
        let odd = of(&json!({
            "app_name": "a/b & 100%_\u{e9}", "user_id": "\u{141}ukasz", "host": "h'--", "current_task": "x\u{1f40e}y",
            "labels": {"team": "a:b", "k:e:y": ""},
        }));
        let other = of(&json!({"app_name": "plain", "user_id": "ann", "labels": {"team": "a"}}));
        for (name, value, found) in [
            ("app", "plain", vec![&other, &plain]),
            ("app", "pla", vec![]),
            ("app", "a/b & 100%_\u{e9}", vec![&odd]),
            ("user", "\u{141}ukasz", vec![&odd]),
            ("status", "running", vec![&plain]),
            ("status", "idle", vec![&other, &odd]),
            ("state", "idle", vec![&other, &odd]),
            ("state", "stale", vec![]),
            ("label", "team:a", vec![&other]),
            ("label", "team:a:b", vec![&odd]),
            ("label", "k:e:y:", vec![&odd]),
            ("label", "team:", vec![]),
            ("q", "100%", vec![&odd]),
            ("q", "%", vec![&odd]),
            ("q", "_", vec![&odd]),
            ("q", "100", vec![&odd, &plain]),
            ("q", "PLAIN", vec![&other, &plain]),
            ("q", "\u{c9}", vec![&odd]),
            ("q", "\u{142}ukasz", vec![&odd]),
            ("q", "\u{1f40e}", vec![&odd]),
            ("q", "h'--", vec![&odd]),
            ("q", &plain[2..30], vec![&plain]),
            ("id", &plain[..30], vec![&plain]),
            ("id", &plain[1..30], vec![]),
        ] {
            let found: Vec<String> = found.into_iter().cloned().collect();
            let parameters = format!("limit=2&{name}={}", encoded(value));
            assert_eq!(all_pages(&mut http, &parameters), found, "{name} {value}");
        }
        let both = format!("limit=1&app=plain&user=ann&q={}", &other[..8]);
        assert_eq!(all_pages(&mut http, &both), std::slice::from_ref(&other));
        assert_eq!(all_pages(&mut http, "limit=1&app=&q=&user=&sort=").len(), 3, "an empty one counts as absent");
    }
}

isolated! {
    fn a_parameter_that_makes_no_sense_is_named() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        for _ in 0..3 {
            http.register("a");
        }
        let cursor = page(&mut http, "limit=1")["next_cursor"].as_str().unwrap().to_owned();
        let long = "x".repeat(257);
        for (parameters, named) in [
            ("limit=0".to_owned(), "limit"),
            ("limit=".to_owned(), "limit"),
            ("limit=ten".to_owned(), "limit"),
            ("limit=-1".to_owned(), "limit"),
            ("limit=99999999999999999999".to_owned(), "limit"),
            ("sort=newest".to_owned(), "sort"),
            ("sort=--app".to_owned(), "sort"),
            ("state=lost".to_owned(), "state"),
            ("state=Running".to_owned(), "state"),
            ("label=team".to_owned(), "label"),
            (format!("q={long}"), "q"),
            ("id=0&sort=app".to_owned(), "sort"),
            ("cursor=0".to_owned(), "cursor"),
            ("cursor=zz".to_owned(), "cursor"),
            (format!("cursor={cursor}00"), "cursor"),
            (format!("cursor={}", &cursor[2..]), "cursor"),
            (format!("cursor={cursor}&sort=start_time"), "cursor"),
            (format!("cursor={cursor}&sort=id"), "cursor"),
            (format!("cursor={cursor}&sort=-last_heartbeat"), "cursor"),
        ] {
            let answer = http.call("GET", &format!("/sessions?{parameters}"), "");
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert!(answer.status == 422 && detail.starts_with(named), "{parameters}: {detail}");
        }
        for parameters in [format!("cursor={cursor}"), format!("limit=1001&cursor={cursor}")] {
            assert_eq!(page(&mut http, &parameters)["sessions"].as_array().unwrap().len(), 2, "{parameters}");
        }
    }
}

isolated! {
    fn the_silent_are_found_and_the_list_can_begin_with_them() {
        let clock = ManualClock::new();
        let builder = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:");
        let server = builder.clock(&clock).start().unwrap();
        let mut http = Http::connect(server.local_addr());
        let (stale, late) = (http.register("a"), http.register("b"));
        clock.advance(std::time::Duration::from_secs(75));
        http.ok("POST", &format!("/sessions/{late}/heartbeat"), &Value::Null);
        clock.advance(std::time::Duration::from_secs(50));
        let lively = http.register("a");
        for (parameters, found) in [
            ("state=stale", vec![&stale]),
            ("status=stale", vec![&stale]),
            ("state=stale&app=a", vec![&stale]),
            ("state=stale&app=b", vec![]),
            ("state=stale&sort=app", vec![&stale]),
            ("state=late", vec![&late]),
            ("state=late&sort=id", vec![&late]),
            ("state=late&status=stale", vec![]),
            ("state=idle", vec![&lively]),
            ("sort=last_heartbeat", vec![&stale, &late, &lively]),
            ("sort=-last_heartbeat", vec![&lively, &late, &stale]),
            ("sort=-last_heartbeat&app=a", vec![&lively, &stale]),
        ] {
            let found: Vec<String> = found.into_iter().cloned().collect();
            assert_eq!(all_pages(&mut http, &format!("limit=1&{parameters}")), found, "{parameters}");
        }
        assert_eq!(page(&mut http, "state=stale")["total"], 1);
        assert!(page(&mut http, "state=stale&app=a&limit=1&q=a")["total"].is_u64(), "it is the whole list");
    }
}

isolated! {
    fn sessions_that_come_and_go_between_two_pages_hide_nobody() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        for order in ["-start_time", "start_time", "app", "-app", "user", "id", "-id"] {
            let ids: Vec<String> = (0..20).map(|number| http.register(&format!("app {}", number % 3))).collect();
            let mut seen = BTreeSet::new();
            let mut cursor = String::new();
            let mut doomed = ids[5..10].iter();
            loop {
                let page = page(&mut http, &format!("limit=3&sort={order}{cursor}"));
                for row in page["sessions"].as_array().unwrap() {
                    assert!(seen.insert(row["session_id"].as_str().unwrap().to_owned()), "{order}: twice");
                }
                let Some(next) = page["next_cursor"].as_str() else { break };
                cursor = format!("&cursor={next}");
                if let Some(gone) = doomed.next() {
                    http.ok("DELETE", &format!("/sessions/{gone}"), &Value::Null);
                    http.register("app 1");
                }
            }
            for stays in ids[..5].iter().chain(&ids[10..]) {
                assert!(seen.contains(stays), "{order}: {stays} was missed");
            }
        }
    }
}

isolated! {
    fn whatever_an_app_says_of_itself_its_page_is_found_again() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let long = "\u{1f40e}".repeat(256);
        let user = "u".repeat(MAX_BODY / 2);
        for _ in 0..3 {
            register(&mut http, &json!({"app_name": long, "user_id": user}));
        }
        for user in ["a\0b", "a\0c", "a"] {
            register(&mut http, &json!({"app_name": "x", "user_id": user}));
        }
        for sort in ["app", "user", "start_time", "id", "-user"] {
            assert_eq!(all_pages(&mut http, &format!("limit=1&sort={sort}")).len(), 6, "{sort}");
        }
    }
}
