//! The page of the tracker in a real browser: events as they happen, and access tokens.

use remuda::{Tokens, TrackerServer};
use serde_json::{Value, json};

use crate::browser::{Page, installed};
use crate::dashboard::{ROWS, row, until_rows, url};
use crate::support::isolated;
use crate::tracker_support::{Http, server};

const OPERATOR: &str = "operator-0123456789";
const VIEWER: &str = "viewer-0123456789abc";

fn until_live(page: &mut Page) {
    page.until("document.querySelector('#live').textContent.includes('live')");
}

isolated! {
    fn what_happens_is_shown_at_once_and_after_a_restart_of_the_tracker_too() {
        let Some(browser) = installed() else { return };
        let server = server();
        let address = server.local_addr();
        let mut page = Page::open(browser, &url(&server));
        // Longer than a test may take: only an event can bring what is new.
        page.choose("#interval", "60");
        until_live(&mut page);
        let mut http = Http::connect(address);
        let id = http.register("<b>app</b>");
        until_rows(&mut page, 1);
        http.ok("PUT", &format!("/sessions/{id}/status"), &json!({"status": "running", "current_task": "Q3"}));
        page.until(&format!("{}.innerText.includes('Q3')", row(&id)));
        let why = json!({"requested_by": "ann", "reason": "it leaks"});
        let killed = http.ok("POST", &format!("/sessions/{id}/kill"), &why);
        page.until(&format!("{}.innerText.includes('kill requested')", row(&id)));
        let word = json!({"kill": {"kill_id": killed["receipt"]["kill_id"], "step": "stopping"}});
        http.ok("POST", &format!("/sessions/{id}/heartbeat"), &word);
        page.until(&format!("{}.innerText.includes('kill stopping')", row(&id)));

        page.value("location.hash = 'events'");
        page.until("document.querySelectorAll('#log-rows tr').length >= 4");
        let text = page.shown("#log-rows");
        for part in ["<b>app</b>", "registered", "kill requested", "it leaks", "kill stopping"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        drop(http);
        server.shutdown();
        page.until("document.querySelector('#live').textContent.includes('offline since')");
        let again = TrackerServer::builder().listen(address.to_string()).database(":memory:").start().unwrap();
        until_live(&mut page);
        page.value("location.hash = 'sessions'");
        until_rows(&mut page, 0);
        Http::connect(address).register("app");
        until_rows(&mut page, 1);
        drop(page);
        again.shutdown();
    }
}

isolated! {
    fn a_hidden_page_rests_and_catches_up_when_it_is_looked_at() {
        let Some(browser) = installed() else { return };
        let server = server();
        let mut page = Page::open(browser, &url(&server));
        // Whoever waits for a time is noted from now on.
        page.value(
            "{ window.waiting = new Set(); const [set, clear] = [window.setTimeout, window.clearTimeout]; \
               window.setTimeout = (action, delay) => { \
                 const timer = set(() => { window.waiting.delete(timer); action(); }, delay); \
                 window.waiting.add(timer); return timer; }; \
               window.clearTimeout = (timer) => { window.waiting.delete(timer); clear(timer); }; }",
        );
        page.choose("#interval", "2");
        until_live(&mut page);
        // While it asks, it waits for no time.
        page.until("window.waiting.size !== 0");
        let hide = |page: &mut Page, hidden: bool| {
            page.value(&format!("Object.defineProperty(document, 'hidden', {{value: {hidden}, configurable: true}})"));
            page.value("document.dispatchEvent(new Event('visibilitychange'))");
        };
        hide(&mut page, true);
        page.until("!document.querySelector('#live').textContent.includes('live')");
        page.until("window.waiting.size === 0");
        Http::connect(server.local_addr()).register("app");
        hide(&mut page, false);
        until_rows(&mut page, 1);
        until_live(&mut page);
        assert_eq!(page.complaints(), [""; 0]);
        drop(page);
        server.shutdown();
    }
}

isolated! {
    fn a_token_is_asked_for_kept_for_the_tab_and_says_what_it_may() {
        let Some(browser) = installed() else { return };
        let tokens = Tokens::parse(&format!("operator ops {OPERATOR}\nviewer {VIEWER}")).unwrap();
        let builder = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").tokens(tokens);
        let server = builder.start().unwrap();
        let id = Http::connect(server.local_addr()).with_token(OPERATOR).register("app");
        let mut page = Page::open(browser, &url(&server));
        let give = |page: &mut Page, token: &str| {
            page.until("document.querySelector('#token').open && document.activeElement.id === 'token-text'");
            page.write(token);
            page.press("Enter");
        };
        // Without one there is nothing to see, and the question can be put again.
        page.until("document.querySelector('#token').open");
        page.press("Escape");
        page.until("!document.querySelector('#trouble').hidden && !document.querySelector('#give').hidden");
        until_rows(&mut page, 0);
        page.click("#give");
        give(&mut page, "wrong-0123456789abcdef");
        page.until("document.querySelector('#token-refused').textContent !== ''");
        give(&mut page, VIEWER);
        until_rows(&mut page, 1);
        until_live(&mut page);
        // A viewer may look, and reads why he can do nothing else.
        page.until("!document.querySelector('#read-only').hidden");
        page.value(&format!("{}.click()", row(&id)));
        assert_eq!(page.value("document.querySelector('#kill-selected').disabled"), true);
        assert_ne!(page.text("document.querySelector('#kill-selected').title"), "");
        page.press("Delete");
        page.value(&format!("{}.querySelector('.id').click()", row(&id)));
        assert_eq!(page.value("[...document.querySelectorAll('.detail .bar button')].every((one) => one.disabled)"), true);
        // It survives a reload of the tab and is kept nowhere else.
        page.command("Page.reload", &json!({}));
        page.until(&format!("document.querySelectorAll({ROWS:?}).length === 1"));
        assert_eq!(page.value("JSON.stringify(localStorage).includes('viewer') || document.cookie !== ''"), false);

        page.click("#forget");
        give(&mut page, OPERATOR);
        page.until("document.querySelector('#read-only').hidden");
        until_rows(&mut page, 1);
        page.value(&format!("{}.click()", row(&id)));
        page.click("#kill-selected");
        page.until("!document.querySelector('#confirm-yes').disabled");
        page.click("#confirm-yes");
        page.until("document.querySelector('#report').textContent.startsWith('1 of 1 asked')");
        let row = Http::connect(server.local_addr()).with_token(OPERATOR).row(&id).unwrap();
        assert_eq!(row["kill_requested"], Value::Bool(true));
        assert_eq!(page.complaints_but(&[401, 403]), [""; 0]);
        drop(page);
        server.shutdown();
    }
}
