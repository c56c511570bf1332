//! The page of the tracker in a real browser.

use remuda::{SessionClient, TrackerServer};
use serde_json::json;

use crate::browser::{Page, installed};
use crate::support::isolated;

fn server() -> (TrackerServer, String) {
    let server = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").start().unwrap();
    let url = format!("http://{}", server.local_addr());
    (server, url)
}

fn client(url: &str, app: &str) -> SessionClient {
    SessionClient::builder(app).server_url(url).start().unwrap()
}

/// The row of a session.
fn row(client: &SessionClient) -> String {
    format!(
        "[...document.querySelectorAll('#sessions tr')].find((row) => row.querySelector('th').title === '{}')",
        client.id()
    )
}

isolated! {
    fn the_page_shows_every_session_as_text_and_keeps_selection_and_focus_over_refreshes() {
        let Some(browser) = installed() else { return };
        let (server, url) = server();
        let one = client(&url, "<img src=x onerror=alert(1)>");
        let two = client(&url, "büro/etl");
        let _task = one.task("<b>bold</b> & more");
        two.attach("pool", || json!({"idle": 1}));
        let mut page = Page::open(browser, &url);
        page.until("document.querySelectorAll('#sessions tr').length === 2");
        let text = page.text(&format!("{}.innerText", row(&one)));
        for part in ["<img src=x onerror=alert(1)>", "<b>bold</b> & more", "running", &one.id().as_str()[..8], " s ago"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(page.value("document.querySelectorAll('img, #sessions b').length"), 0);
        // Newest first.
        assert_eq!(page.text("document.querySelector('#sessions th').title"), two.id().as_str());

        page.value(&format!("{}.querySelector('input').click()", row(&one)));
        page.value(&format!("{}.querySelector('input').focus(); window.kept = document.activeElement; 0", row(&one)));
        assert_eq!(page.text("document.querySelector('#kill-selected').textContent"), "Kill selected (1)");
        let three = client(&url, "late");
        page.value("refresh()");
        page.until("document.querySelectorAll('#sessions tr').length === 3");
        assert_eq!(page.value(&format!("{}.querySelector('input').checked", row(&one))), true);
        assert_eq!(page.value("window.kept === document.activeElement"), true);
        // A session that leaves takes its selection along.
        drop(one);
        page.value("refresh()");
        page.until("document.querySelectorAll('#sessions tr').length === 2");
        assert_eq!(page.value("document.querySelector('#kill-selected').disabled"), true);
        assert_eq!(page.complaints(), [""; 0]);
        drop((page, two, three));
        server.shutdown();
    }
}

isolated! {
    fn a_selected_session_is_killed_by_keyboard_and_its_neighbour_lives() {
        let Some(browser) = installed() else { return };
        let (server, url) = server();
        let (victim, other) = (client(&url, "app"), client(&url, "app"));
        let mut page = Page::open(browser, &url);
        page.until("document.querySelectorAll('#sessions tr').length === 2");
        page.tab_to(&format!("input[aria-label*='{}']", &victim.id().as_str()[..8]));
        page.press(" ");
        page.value("document.activeElement.blur()");
        page.tab_to("#kill-selected");
        page.press("Enter");
        page.until("document.querySelector('#report').textContent.startsWith('1 of 1 selected asked')");
        assert!(victim.cancel_token().wait_timeout(crate::support::GENEROUS));
        page.until(&format!("{}.innerText.includes('kill requested')", row(&victim)));
        assert!(!other.is_killed());
        assert_eq!(page.complaints(), [""; 0]);
        drop((page, victim, other));
        server.shutdown();
    }
}

isolated! {
    fn kill_all_of_an_app_asks_first() {
        let Some(browser) = installed() else { return };
        let (server, url) = server();
        let app = "my app/ü";
        let (one, two, other) = (client(&url, app), client(&url, app), client(&url, "other"));
        let mut page = Page::open(browser, &url);
        page.until("document.querySelectorAll('#sessions tr').length === 3");
        page.value(&format!("document.querySelector('#app').value = {app:?}"));
        page.tab_to("#kill-app");
        page.press("Enter");
        page.until("document.querySelector('#confirm').open");
        assert!(page.text("document.querySelector('#confirm-text').textContent").starts_with("2 of “my app/ü”"));
        // The way back has the focus, and Escape is another.
        assert_eq!(page.text("document.activeElement.id"), "confirm-no");
        page.press("Escape");
        page.until("!document.querySelector('#confirm').open");
        assert!(!one.is_killed() && !two.is_killed());
        page.tab_to("#kill-app");
        page.press("Enter");
        page.until("document.querySelector('#confirm').open");
        page.tab_to("#confirm-yes");
        page.press("Enter");
        page.until("document.querySelector('#report').textContent.startsWith('2 of “my app/ü” asked')");
        for client in [&one, &two] {
            assert!(client.cancel_token().wait_timeout(crate::support::GENEROUS));
        }
        assert!(!other.is_killed());
        assert_eq!(page.complaints(), [""; 0]);
        drop((page, one, two, other));
        server.shutdown();
    }
}

isolated! {
    fn the_page_refreshes_itself_at_the_chosen_pace_and_says_when_the_tracker_is_gone() {
        let Some(browser) = installed() else { return };
        let (server, url) = server();
        let mut page = Page::open(browser, &url);
        page.until("!document.querySelector('#none').hidden");
        assert_eq!(page.text("document.querySelector('#interval').value"), "10");
        page.value("{ const list = document.querySelector('#interval'); list.value = '2'; list.dispatchEvent(new Event('change')); }");
        let client = client(&url, "app");
        page.until("document.querySelectorAll('#sessions tr').length === 1");
        server.shutdown();
        page.until("!document.querySelector('#trouble').hidden");
        assert_eq!(page.value("document.querySelectorAll('#sessions tr').length"), 1);
        assert!(page.text("document.querySelector('#trouble').textContent").contains("What you see is from"));
        // The choice is kept for the next visit.
        assert_eq!(page.text("localStorage.getItem('remuda-refresh-seconds')"), "2");
        drop((page, client));
    }
}

isolated! {
    fn many_selected_sessions_are_killed_together_whatever_their_apps_are_called() {
        let Some(browser) = installed() else { return };
        let (server, url) = server();
        let names = ["..", ".", "a/b?c#d%2F", "\u{202e}x", "kill-all", "stale"];
        for number in 0..300 {
            server.store().create_session(names[number % names.len()], None).unwrap();
        }
        let mut page = Page::open(browser, &url);
        page.until("document.querySelectorAll('#sessions tr').length === 300");
        page.value("document.querySelector('#select-all').click()");
        assert_eq!(page.text("document.querySelector('#kill-selected').textContent"), "Kill selected (300)");
        page.value("document.querySelector('#kill-selected').click()");
        page.until("document.querySelector('#report').textContent.startsWith('300 of 300 selected asked')");
        page.until("document.querySelector('#kill-selected').disabled");
        assert!(server.store().get_all_sessions().unwrap().iter().all(|row| row.kill_requested));
        for name in names {
            page.value("document.querySelector('#report').textContent = ''");
            page.value(&format!("document.querySelector('#app').value = {}", json!(name)));
            page.value("document.querySelector('#kill-app').click()");
            page.value("document.querySelector('#confirm-yes').click()");
            page.until("document.querySelector('#report').textContent !== ''");
            let said = page.text("document.querySelector('#report').textContent");
            assert!(said.starts_with("50 of"), "{name}: {said}");
        }
        assert_eq!(page.complaints(), [""; 0]);
        drop(page);
        server.shutdown();
    }
}

isolated! {
    fn the_page_is_dark_where_the_reader_wants_it_dark() {
        let Some(browser) = installed() else { return };
        let (server, url) = server();
        let mut page = Page::open(browser, &url);
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
