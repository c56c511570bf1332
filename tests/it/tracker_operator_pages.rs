//! The list page by page for programs and people: `TrackerOperator`, `remuda ps`, ids that are shortened.

use std::fs;

use remuda::tracker::api::{SessionQuery, SessionSort};
use remuda::{Error, TrackedStatus, TrackerOperator};
use serde_json::{Value, json};

use crate::cli_run::{outcome, remuda};
use crate::scripted_server::{Reply, ScriptedServer, fine};
use crate::support::{ScratchDir, isolated};
use crate::tracker_support::{Http, Served, server};

fn ids(operator: &TrackerOperator, query: SessionQuery) -> Vec<String> {
    let pages = operator.session_pages(query).map(|page| page.expect("a page").sessions);
    pages.flatten().map(|session| session.session_id.to_string()).collect()
}

fn sort(word: &str) -> SessionSort {
    word.parse().unwrap()
}

isolated! {
    fn an_operator_goes_through_the_pages_of_what_it_asks_for() {
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let operator = TrackerOperator::new(format!("http://{}", server.local_addr())).unwrap();
        let mut all: Vec<String> = (0..25).map(|number| http.register(&format!("a & {}", number % 2))).collect();
        let odd: Vec<String> = all.iter().skip(1).step_by(2).cloned().collect();
        assert_eq!(ids(&operator, SessionQuery::new().limit(4).app("a & 1").sort(sort("start_time"))), odd);
        all.reverse();
        assert_eq!(ids(&operator, SessionQuery::new().limit(1_000)), all);
        let page = operator.sessions_page(&SessionQuery::new().limit(4)).unwrap();
        assert_eq!((page.sessions.len(), page.total, page.next_cursor.is_some()), (4, Some(25), true));
        assert_eq!(ids(&operator, SessionQuery::new().id(&all[3][..20])), [all[3].clone()]);
        assert_eq!(ids(&operator, SessionQuery::new().state(TrackedStatus::Stale)), [""; 0]);
        let mut pages = operator.session_pages(SessionQuery::new().limit(0));
        assert!(matches!(pages.next(), Some(Err(Error::Tracker { reason, .. })) if reason.contains("limit")));
        assert!(pages.next().is_none(), "an error is the end");
    }
}

isolated! {
    fn a_tracker_without_pages_gives_everybody_who_fits_at_once() {
        let row = |id: &str, app: &str, status: &str| json!({
            "session_id": id, "app_name": app, "user_id": null, "start_time": "2026-01-01T00:00:00",
            "last_heartbeat": "2026-01-01T00:00:00", "duration_seconds": 3, "status": status,
            "current_task": null, "is_stale": status == "stale", "kill_requested": false,
        });
        let rows = [row("1a", "x", "idle"), row("2b", "a", "stale"), row("2c", "x", "running")];
        let ancestor = ScriptedServer::start(move |asked| {
            if asked.is("GET", "/sessions") {
                fine(json!({ "sessions": rows }))
            } else {
                Reply::Json(404, json!({"detail": "Not Found"}))
            }
        });
        let operator = TrackerOperator::new(ancestor.url()).unwrap();
        let all = || SessionQuery::new().limit(1);
        for (query, found) in [
            (all(), vec!["1a", "2b", "2c"]),
            (all().sort(sort("start_time")), vec!["2c", "2b", "1a"]),
            (all().sort(sort("app")), vec!["2b", "1a", "2c"]),
            (all().sort(sort("-id")), vec!["2c", "2b", "1a"]),
            (all().app("x"), vec!["1a", "2c"]),
            (all().state(TrackedStatus::Stale), vec!["2b"]),
            (all().search("X"), vec!["1a", "2c"]),
            (all().id("2"), vec!["2b", "2c"]),
            (all().user("ann"), vec![]),
        ] {
            assert_eq!(ids(&operator, query.clone()), found, "{query:?}");
        }
    }
}

isolated! {
    fn a_tracker_that_goes_in_circles_is_an_error() {
        let circle =
            ScriptedServer::start(|_| fine(json!({"sessions": [], "next_cursor": "same", "total": null})));
        let operator = TrackerOperator::new(circle.url()).unwrap();
        let pages: Vec<bool> =
            operator.session_pages(SessionQuery::new()).map(|page| page.is_ok()).collect();
        assert_eq!(pages, [true, false]);
    }
}

isolated! {
    fn the_command_line_lists_what_is_asked_for_and_shortens_ids() {
        let directory = ScratchDir::new();
        let server = Served::start(directory.path(), ":memory:");
        let url = server.url();
        let run = |args: &[&str]| {
            outcome(remuda(directory.path(), &[args, &["--server", &url]].concat()).output().unwrap())
        };
        let mut http = Http::connect(server.address);
        for number in 0..1_005 {
            let session = json!({
                "app_name": if number % 200 == 0 { "rare" } else { "common" }, "user_id": format!("u{number}"),
                "status": if number == 7 { "running" } else { "idle" }, "labels": {"n": number.to_string()},
                "session_id": format!("{number:08}-0000-4000-8000-000000000000"),
            });
            http.ok("POST", "/sessions", &session);
        }
        let users = |args: &[&str]| {
            let (status, stdout, stderr) = run(args);
            assert_eq!(status, Some(0), "{stderr}");
            let rows = stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            rows.map(|row| row["user_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(users(&["ps", "--json"]).len(), 1_005, "two pages");
        assert_eq!(users(&["ps", "--json", "--limit", "1001"]).len(), 1_001);
        let rare = ["u1000", "u800", "u600", "u400", "u200", "u0"];
        assert_eq!(users(&["ps", "--json", "--app", "rare"]), rare);
        assert_eq!(users(&["ps", "--json", "--app", "rare", "--sort", "start_time", "--limit=2"]), ["u0", "u200"]);
        assert_eq!(users(&["ps", "--json", "--user", "u3"]), ["u3"]);
        assert_eq!(users(&["ps", "--json", "--label", "n=3"]), ["u3"]);
        assert_eq!(users(&["ps", "--json", "--state", "running"]), ["u7"]);
        assert_eq!(users(&["ps", "--json", "-q", "U999"]), ["u999"]);
        let (_, table, _) = run(&["ps"]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!((lines.len(), lines.iter().filter(|line| line.contains("LAST BEAT")).count()), (1_006, 1));
        assert_eq!(run(&["ps", "--app", "nobody"]).1.lines().count(), 1, "a table says that it is empty");

        let (status, _, stderr) = run(&["kill", "0000100"]);
        assert!(status == Some(1) && stderr.contains("several tracked sessions"), "{stderr}");
        let (status, _, stderr) = run(&["kill", "00000005-0000-4000-8000-000000000000", "0000100_"]);
        assert!(status == Some(1) && stderr.contains("no tracked session has the id 0000100_"), "{stderr}");
        let (status, stdout, _) = run(&["kill", "00000005"]);
        assert_eq!((status, stdout.contains("00000005-0000-4000-8000-000000000000")), (Some(0), true));
        let (_, killed, _) = run(&["ps", "--json", "--user", "u5"]);
        assert!(killed.contains(r#""kill_requested":true"#), "{killed}");
        drop(http);
        drop(server);
        assert!(fs::read_dir(directory.path()).unwrap().next().is_none(), "nothing is left in the directory");
    }
}
