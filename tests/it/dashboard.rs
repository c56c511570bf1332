//! The page of the tracker in a real browser: what it lists, and how fresh it says that is.

use remuda::{SessionClient, TrackerServer};
use serde_json::{Value, json};

use crate::browser::{Page, installed};
use crate::scripted_server::connected;
use crate::support::isolated;
use crate::tracker_support::{Http, server};

pub(crate) const ROWS: &str = "#sessions-rows tr:not(.detail)";

pub(crate) fn url(server: &TrackerServer) -> String {
    format!("http://{}", server.local_addr())
}

pub(crate) fn client(server: &TrackerServer, app: &str) -> SessionClient {
    connected(SessionClient::builder(app).server_url(url(server)))
}

/// The row of a session.
pub(crate) fn row(id: &str) -> String {
    format!(
        "[...document.querySelectorAll({ROWS:?})].find((row) => row.querySelector('th').title === '{id}')"
    )
}

/// Waits until the table has that many rows.
pub(crate) fn until_rows(page: &mut Page, count: usize) {
    page.until(&format!("document.querySelectorAll({ROWS:?}).length === {count}"));
}

/// The short ids in the table, in its order.
fn listed(page: &mut Page) -> Vec<String> {
    let ids = page.value(&format!("[...document.querySelectorAll('{ROWS} th')].map((head) => head.title)"));
    ids.as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

isolated! {
    fn the_page_shows_every_session_and_keeps_selection_and_focus_over_refreshes() {
        let Some(browser) = installed() else { return };
        let server = server();
        let (one, two) = (client(&server, "reports"), client(&server, "büro/etl"));
        let _task = one.task("Q3");
        let mut page = Page::open(browser, &url(&server));
        until_rows(&mut page, 2);
        let text = page.text(&format!("{}.innerText", row(one.id().as_str())));
        for part in ["reports", "Q3", "running", &one.id().as_str()[..8], " s ago"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        // Newest first.
        assert_eq!(listed(&mut page), [two.id().as_str(), one.id().as_str()]);

        let one_row = row(one.id().as_str());
        page.value(&format!("{one_row}.querySelector('input').click()"));
        page.value(&format!("{one_row}.querySelector('input').focus(); window.kept = document.activeElement; 0"));
        assert_eq!(page.shown("#kill-selected"), "Kill selected (1) …");
        let three = client(&server, "late");
        page.click("#refresh");
        until_rows(&mut page, 3);
        assert_eq!(page.value(&format!("{one_row}.querySelector('input').checked")), true);
        assert_eq!(page.value("window.kept === document.activeElement"), true);
        // A session that leaves takes its selection along.
        drop(one);
        page.click("#refresh");
        until_rows(&mut page, 2);
        assert_eq!(page.value("document.querySelector('#kill-selected').disabled"), true);
        assert_eq!(page.complaints(), [""; 0]);
        drop((page, two, three));
        server.shutdown();
    }
}

isolated! {
    fn every_column_and_pane_shows_hostile_texts_as_texts() {
        let Some(browser) = installed() else { return };
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let evil = "<img src=x onerror=\"window.hacked = 1\"><b>\u{202e}x</b>";
        let create = json!({
            "app_name": evil, "user_id": evil, "host": evil, "pid": 7, "version": evil, "labels": {evil: evil},
        });
        let id = http.ok("POST", "/sessions", &create)["session_id"].as_str().unwrap().to_owned();
        let beat = json!({
            "status": "<i>", "current_task": evil, "progress": 0.42, "memory_bytes": 5_242_880,
            "attached": {evil: {"pool_id": evil, "sessions": [{"pid": 1, "state": "busy", "holder": {evil: evil}}]}},
        });
        http.ok("POST", &format!("/sessions/{id}/heartbeat"), &beat);
        let why = json!({"requested_by": evil, "reason": evil});
        http.ok("POST", &format!("/sessions/{id}/kill"), &why);
        let gone = http.ok("POST", "/sessions", &create)["session_id"].as_str().unwrap().to_owned();
        http.ok("POST", &format!("/sessions/{gone}/kill"), &why);
        http.ok("DELETE", &format!("/sessions/{gone}"), &Value::Null);
        let app = evil.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat();
        let embargo = json!({"requested_by": evil, "reason": evil, "embargo_seconds": 600});
        http.ok("POST", &format!("/apps/{app}/kill-all"), &embargo);

        let mut page = Page::open(browser, &url(&server));
        until_rows(&mut page, 1);
        let text = page.text(&format!("{}.innerText", row(&id)));
        let spelled = evil.replace('\u{202e}', "\\u{202e}");
        assert!(text.matches(&spelled).count() >= 4, "{text}");
        for part in ["42 %", "(<i>)", "✕ kill requested"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        page.click("#sessions-rows .id");
        page.until("document.querySelector('.detail') !== null");
        page.value("document.querySelector('.detail details').open = true");
        let text = page.shown(".detail");
        for part in [id.as_str(), "5.0 MiB", "pool_id", "Kill all of", "requested"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        page.value(&format!("{}.click()", row(&id)));
        page.click("#kill-selected");
        page.until("!document.querySelector('#confirm-yes').disabled");
        assert!(page.shown("#confirm").contains("worker 1 of pool"));
        page.press("Escape");
        for (pane, body) in [
            ("kills", "kills-rows"),
            ("history", "history-rows"),
            ("audit", "audit-rows"),
            ("tracker", "embargo-rows"),
        ] {
            page.value(&format!("location.hash = '{pane}'"));
            page.until(&format!("document.querySelectorAll('#{body} tr').length > 0"));
            assert!(page.shown(&format!("#pane-{pane}")).contains(&spelled), "{pane}");
        }
        assert_eq!(page.value("document.querySelectorAll('main img, main b, main i, dialog b').length"), 0);
        assert_eq!(page.value("window.hacked ?? null"), Value::Null);
        assert_eq!(page.complaints(), [""; 0]);
        drop(page);
        server.shutdown();
    }
}

isolated! {
    fn sessions_are_filtered_sorted_and_shown_in_pages() {
        let Some(browser) = installed() else { return };
        let server = server();
        let mut http = Http::connect(server.local_addr());
        for number in 0..120 {
            let (app, user) = (["a", "b"][number % 2], format!("user{number:03}"));
            http.ok("POST", "/sessions", &json!({"app_name": app, "user_id": user}));
        }
        let labelled = json!({"app_name": "c", "user_id": "zoe", "labels": {"team": "risk"}});
        let id = http.ok("POST", "/sessions", &labelled)["session_id"].as_str().unwrap().to_owned();
        http.ok("PUT", &format!("/sessions/{id}/status"), &json!({"status": "running", "current_task": "Q3 close"}));

        let mut page = Page::open(browser, &url(&server));
        until_rows(&mut page, 100);
        assert_eq!(page.shown("#place"), "1–100 of 121");
        page.click("#next");
        until_rows(&mut page, 21);
        assert_eq!(page.value("document.querySelector('#next').disabled"), true);
        page.click("#previous");
        until_rows(&mut page, 100);

        page.click("[data-sort=user]");
        page.until(&format!("document.querySelector({ROWS:?}).innerText.includes('user000')"));
        assert_eq!(page.value("document.querySelector('[aria-sort]').innerText.trim()"), "User");
        page.click("[data-sort=user]");
        page.until(&format!("document.querySelector({ROWS:?}).innerText.includes('zoe')"));
        assert_eq!(page.text("document.querySelector('[aria-sort]').getAttribute('aria-sort')"), "descending");

        for (field, value, count) in
            [("#q", "q3 CLOSE", 1), ("#q", "", 100), ("#app", "a", 60), ("#app", "", 100), ("#label", "team:risk", 1), ("#label", "", 100), ("#state", "running", 1)]
        {
            page.choose(field, value);
            until_rows(&mut page, count);
        }
        assert_eq!(listed(&mut page), [id]);
        assert_eq!(page.shown("#place"), "1–1 of 1 that match");
        page.choose("#q", "nobody has this");
        page.until("!document.querySelector('#no-match').hidden");
        // Keys go from row to row.
        page.choose("#state", "");
        page.choose("#q", "user00");
        until_rows(&mut page, 10);
        page.tab_to("#sessions-rows input");
        page.press("ArrowDown");
        page.press(" ");
        assert_eq!(page.value("document.querySelectorAll('#sessions-rows tr')[1].className"), "chosen");
        assert_eq!(page.complaints(), [""; 0]);
        drop(page);
        server.shutdown();
    }
}

isolated! {
    fn the_page_refreshes_itself_and_says_since_when_the_tracker_is_gone_until_it_is_back() {
        let Some(browser) = installed() else { return };
        let server = server();
        let address = server.local_addr();
        let mut page = Page::open(browser, &url(&server));
        page.until("!document.querySelector('#none').hidden");
        assert_eq!(page.text("document.querySelector('#interval').value"), "10");
        page.choose("#interval", "2");
        Http::connect(address).register("app");
        until_rows(&mut page, 1);
        assert_eq!(page.value("document.querySelector('main').className"), "");
        server.shutdown();
        page.until("!document.querySelector('#trouble').hidden");
        assert_eq!(page.value(&format!("document.querySelectorAll({ROWS:?}).length")), 1);
        assert!(page.shown("#trouble").contains("What you see is from"));
        assert!(page.shown("#live").contains("offline since"));
        assert_eq!(page.value("document.querySelector('main').className"), "old");
        // The choice is kept for the next visit.
        assert_eq!(page.text("localStorage.getItem('remuda-refresh-seconds')"), "2");

        let again = TrackerServer::builder().listen(address.to_string()).database(":memory:").start().unwrap();
        page.until("document.querySelector('#trouble').hidden");
        until_rows(&mut page, 0);
        assert!(!page.shown("#live").contains("offline"));
        drop(page);
        again.shutdown();
    }
}

isolated! {
    fn the_page_is_dark_where_the_reader_wants_it_dark() {
        let Some(browser) = installed() else { return };
        let server = server();
        let mut page = Page::open(browser, &url(&server));
        let colours = ["light", "dark"].map(|scheme| {
            let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
            page.command("Emulation.setEmulatedMedia", &features);
            page.text("getComputedStyle(document.body).backgroundColor")
        });
        assert_eq!(colours, ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]);
        drop(page);
        server.shutdown();
    }
}
