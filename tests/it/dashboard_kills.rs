//! The page of the tracker in a real browser: kills, their receipts, and orders.

use remuda::SessionClient;
use serde_json::{Value, json};

use crate::browser::{Page, installed};
use crate::dashboard::{client, row, until_rows, url};
use crate::scripted_server::connected;
use crate::support::{GENEROUS, isolated};
use crate::tracker_support::{Http, server};

/// Waits until the dialog has looked at what a kill would hit.
fn until_previewed(page: &mut Page) {
    page.until("document.querySelector('#confirm').open && !document.querySelector('#confirm-yes').disabled");
}

fn until_report(page: &mut Page, beginning: &str) {
    page.until(&format!("document.querySelector('#report').textContent.startsWith({})", json!(beginning)));
}

fn protected(app: &str, url: &str) -> SessionClient {
    connected(SessionClient::builder(app).server_url(url).protected(true))
}

isolated! {
    fn a_selected_session_is_killed_by_keyboard_and_its_neighbour_lives() {
        let Some(browser) = installed() else { return };
        let server = server();
        let (victim, other) = (client(&server, "app"), client(&server, "app"));
        let mut page = Page::open(browser, &url(&server));
        until_rows(&mut page, 2);
        page.tab_to(&format!("input[aria-label*='{}']", &victim.id().as_str()[..8]));
        page.press(" ");
        page.press("Delete");
        until_previewed(&mut page);
        assert!(page.shown("#confirm").contains(&victim.id().as_str()[..8]));
        // The way back has the focus, and Escape is another.
        assert_eq!(page.text("document.activeElement.id"), "confirm-no");
        page.press("Escape");
        page.until("!document.querySelector('#confirm').open");
        page.press("Delete");
        until_previewed(&mut page);
        page.tab_to("#reason");
        page.write("it leaks");
        page.press("Enter");
        until_report(&mut page, "1 of 1 asked to stop.");
        assert!(victim.cancel_token().wait_timeout(GENEROUS));
        page.until(&format!("{}.innerText.includes('✕ kill')", row(victim.id().as_str())));
        assert!(!other.is_killed());

        page.value("location.hash = 'kills'");
        page.until("document.querySelectorAll('#kills-rows tr').length === 1");
        assert!(page.shown("#kills-rows").contains("dashboard: it leaks"));
        drop(victim);
        page.choose("#interval", "2");
        page.until("document.querySelector('#kills-rows').innerText.includes('confirmed +')");
        page.value("location.hash = 'history'");
        page.until("document.querySelector('#history-rows').innerText.includes('killed')");
        assert!(page.shown("#history-rows").contains("kill 1 confirmed: it leaks"));
        page.value("location.hash = 'tracker'");
        page.until("document.querySelector('#tracker-facts').innerText.includes('1 requested, 0 open')");
        page.until("document.querySelector('#ready').innerText === 'It takes changes.'");
        assert_eq!(page.complaints(), [""; 0]);
        drop((page, other));
        server.shutdown();
    }
}

isolated! {
    fn kill_all_of_an_app_shows_whom_it_would_hit_and_lays_an_embargo() {
        let Some(browser) = installed() else { return };
        let server = server();
        let url = url(&server);
        let app = "my app/ü";
        let (one, two, other) = (client(&server, app), client(&server, app), client(&server, "other"));
        let guarded = protected(app, &url);
        let mut page = Page::open(browser, &url);
        until_rows(&mut page, 4);
        assert_eq!(page.value("document.querySelector('#kill-group').disabled"), true);
        page.choose("#app", app);
        until_rows(&mut page, 3);
        page.tab_to("#kill-group");
        page.press("Enter");
        until_previewed(&mut page);
        let text = page.shown("#confirm");
        for part in ["2 sessions would be asked to stop. 1 protected would go on.", "generation", &one.id().as_str()[..8]] {
            assert!(text.contains(part), "{part} in {text}");
        }
        page.press("Enter");
        page.until("!document.querySelector('#confirm').open");
        assert!(!one.is_killed() && !two.is_killed());
        page.tab_to("#kill-group");
        page.press("Enter");
        until_previewed(&mut page);
        page.choose("#embargo", "600");
        page.tab_to("#confirm-yes");
        page.press("Enter");
        until_report(&mut page, "2 of ");
        assert!(page.shown("#report").contains("1 protected goes on. Whoever comes within 600 s is killed at once."));
        for client in [&one, &two] {
            assert!(client.cancel_token().wait_timeout(GENEROUS));
        }
        assert!(!other.is_killed() && !guarded.is_killed());
        page.until("!document.querySelector('#notice').hidden");
        let late = client(&server, app);
        assert!(late.cancel_token().wait_timeout(GENEROUS));
        assert_eq!(page.complaints(), [""; 0]);
        drop((page, one, two, other, guarded, late));
        server.shutdown();
    }
}

isolated! {
    fn all_with_a_label_are_killed_also_if_its_name_is_odd() {
        let Some(browser) = installed() else { return };
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let mut register = |labels: Value| {
            let created = http.ok("POST", "/sessions", &json!({"app_name": "app", "labels": labels}));
            created["session_id"].as_str().unwrap().to_owned()
        };
        let ids = [register(json!({"a:b/c": "<i>ü"})), register(json!({"team": "."})), register(json!({"team": ".."}))];
        let mut page = Page::open(browser, &url(&server));
        until_rows(&mut page, 3);
        for (id, name) in ids.iter().zip(["a:b/c", "team", "team"]) {
            page.value(&format!("{}.querySelector('.id').click()", row(id)));
            page.click(".detail .label");
            until_rows(&mut page, 1);
            page.value(&format!("{}.querySelector('.id').click()", row(id)));
            page.value("document.querySelector('#report').textContent = ''");
            page.click("#kill-group");
            until_previewed(&mut page);
            assert!(page.shown("#confirm-title").contains(name));
            assert_eq!(page.value("document.querySelector('#embargo-row').hidden"), true);
            page.click("#confirm-yes");
            until_report(&mut page, "1 ");
            assert_eq!(http.row(id).unwrap()["kill_requested"], true);
            page.choose("#label", "");
            until_rows(&mut page, 3);
        }
        assert_eq!(page.complaints(), [""; 0]);
        drop(page);
        server.shutdown();
    }
}

isolated! {
    fn nobody_is_killed_when_others_have_come_since_the_preview() {
        let Some(browser) = installed() else { return };
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let first = http.register("app");
        let mut page = Page::open(browser, &url(&server));
        until_rows(&mut page, 1);
        page.choose("#app", "app");
        page.click("#kill-group");
        until_previewed(&mut page);
        let second = http.register("app");
        page.click("#confirm-yes");
        page.until("document.querySelector('#confirm-trouble').textContent.startsWith('Nobody was killed')");
        until_previewed(&mut page);
        assert!(page.shown("#confirm-text").starts_with("2 sessions"), "it has looked again");
        assert!(http.list().iter().all(|row| row["kill_requested"] == false));
        page.click("#confirm-yes");
        until_report(&mut page, "2 of ");
        for id in [first, second] {
            assert_eq!(http.row(&id).unwrap()["kill_requested"], true);
        }
        assert_eq!(page.complaints_but(&[409]), [""; 0]);
        drop(page);
        server.shutdown();
    }
}

isolated! {
    fn a_protected_session_takes_force_and_a_gone_one_is_told() {
        let Some(browser) = installed() else { return };
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let (guarded, gone) = (http.register("app"), http.register("app"));
        http.ok("POST", &format!("/sessions/{guarded}/protect"), &Value::Null);
        let mut page = Page::open(browser, &url(&server));
        page.choose("#interval", "0");
        until_rows(&mut page, 2);
        assert!(page.text(&format!("{}.innerText", row(&guarded))).contains("protected"));
        page.click("#select-all");
        page.click("#kill-selected");
        until_previewed(&mut page);
        assert!(page.shown("#confirm-text").contains("1 of them protected"));
        http.ok("DELETE", &format!("/sessions/{gone}"), &Value::Null);
        page.click("#confirm-yes");
        until_report(&mut page, "0 of 2 asked to stop.");
        let said = page.shown("#report");
        assert!(said.contains("1 not: gone already.") && said.contains("1 not: the session is protected"), "{said}");

        // Who was refused is selected still.
        until_rows(&mut page, 1);
        page.click("#kill-selected");
        until_previewed(&mut page);
        page.click("#force");
        page.click("#confirm-yes");
        until_report(&mut page, "1 of 1 asked to stop.");
        assert_eq!(http.row(&guarded).unwrap()["kill_requested"], true);
        assert_eq!(page.complaints_but(&[404, 409]), [""; 0]);
        drop(page);
        server.shutdown();
    }
}

isolated! {
    fn many_selected_sessions_are_killed_together_whatever_their_apps_are_called() {
        let Some(browser) = installed() else { return };
        let server = server();
        let names = ["..", ".", "a/b?c#d%2F", "\u{202e}x", "kill-all", "stale"];
        for number in 0..300 {
            server.store().create_session(names[number % names.len()], None).unwrap();
        }
        let mut page = Page::open(browser, &url(&server));
        until_rows(&mut page, 100);
        page.choose("#size", "500");
        until_rows(&mut page, 300);
        page.click("#select-all");
        page.click("#kill-selected");
        until_previewed(&mut page);
        assert!(page.shown("#confirm").contains("and 280 more"));
        page.click("#confirm-yes");
        until_report(&mut page, "300 of 300 asked to stop.");
        page.until("document.querySelector('#kill-selected').disabled");
        assert!(server.store().get_all_sessions().unwrap().iter().all(|row| row.kill_requested));
        for name in names {
            page.value("document.querySelector('#report').textContent = ''");
            page.choose("#app", name);
            until_rows(&mut page, 50);
            page.click("#kill-group");
            until_previewed(&mut page);
            page.click("#confirm-yes");
            until_report(&mut page, "50 of ");
        }
        assert_eq!(page.complaints(), [""; 0]);
        drop(page);
        server.shutdown();
    }
}

isolated! {
    fn orders_reach_a_session_a_selection_and_an_app() {
        let Some(browser) = installed() else { return };
        let server = server();
        let mut http = Http::connect(server.local_addr());
        let ids = [http.register("app"), http.register("app"), http.register("other")];
        let mut page = Page::open(browser, &url(&server));
        until_rows(&mut page, 3);
        let row_of = |http: &mut Http, at: usize| http.row(&ids[at]).unwrap();

        page.value(&format!("{}.querySelector('.id').click()", row(&ids[0])));
        page.value("[...document.querySelectorAll('.detail button')].find((one) => one.innerText === 'Pause').click()");
        until_report(&mut page, "1 of 1 told to pause.");
        page.until(&format!("{}.innerText.includes('pause')", row(&ids[0])));
        assert_eq!(row_of(&mut http, 0)["verbs"], json!(["pause"]));

        for at in [1, 2] {
            page.value(&format!("{}.click()", row(&ids[at])));
        }
        page.choose("#verb-selected", "protect");
        page.click("#order-selected");
        until_report(&mut page, "2 of 2 protected now.");
        assert_eq!(row_of(&mut http, 2)["protected"], true);

        page.choose("#app", "app");
        until_rows(&mut page, 2);
        page.value("document.querySelector('#report').textContent = ''");
        page.choose("#verb-group", "drain");
        page.click("#order-group");
        page.until("document.querySelector('#confirm').open");
        page.press("Escape");
        assert_eq!(row_of(&mut http, 1)["verbs"], Value::Null, "nothing is done before it is confirmed");
        page.click("#order-group");
        page.until("document.querySelector('#confirm').open");
        page.tab_to("#confirm-yes");
        page.press("Enter");
        until_report(&mut page, "2 of ");
        assert_eq!(row_of(&mut http, 1)["verbs"], json!(["drain"]));
        assert_eq!(row_of(&mut http, 2)["verbs"], Value::Null);

        // No path can name this app: its sessions are asked one by one.
        let odd = http.register("..");
        http.ok("POST", &format!("/sessions/{odd}/protect"), &Value::Null);
        page.choose("#app", "");
        page.until("[...document.querySelector('#app').options].some((option) => option.value === '..')");
        page.choose("#app", "..");
        until_rows(&mut page, 1);
        page.choose("#verb-group", "unprotect");
        page.click("#order-group");
        page.until("document.querySelector('#confirm').open");
        page.click("#confirm-yes");
        until_report(&mut page, "1 of 1 protected no more.");
        assert_eq!(http.row(&odd).unwrap()["protected"], Value::Null);
        assert_eq!(page.complaints(), [""; 0]);
        drop(page);
        server.shutdown();
    }
}
