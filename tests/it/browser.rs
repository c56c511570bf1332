//! A real browser for the dashboard's tests: headless chromium, driven over its debugging pipe.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{ScratchDir, poll};

/// The browser's name in `PATH`, or `None` with a word to whoever runs the tests. With
/// `REMUDA_REQUIRE=chromium` it must be there.
pub(crate) fn installed() -> Option<&'static str> {
    let found = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&paths).any(|directory| directory.join(name).is_file())
    });
    if found.is_none() {
        let required = std::env::var("REMUDA_REQUIRE").unwrap_or_default();
        assert!(
            !required.split(',').any(|name| name == "chromium"),
            "chromium is required but not installed"
        );
        eprintln!("SKIPPED: it needs chromium");
    }
    found
}

/// One page of a browser of its own; both are gone when this is dropped.
pub(crate) struct Page {
    process: Child,
    commands: ChildStdin,
    events: BufReader<ChildStdout>,
    session: Value,
    last: u64,
    /// Where the page may load from.
    origin: String,
    /// What the page said on its console, what the browser complained about, and requests elsewhere.
    complaints: Vec<String>,
    _profile: ScratchDir,
}

impl Page {
    pub(crate) fn open(browser: &str, url: &str) -> Page {
        let profile = ScratchDir::new();
        // The shell gives the pipe the numbers 3 and 4, where the browser looks for it.
        let mut process = Command::new("/bin/sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null", "sh", browser])
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--disable-background-networking", "--disable-breakpad", "--no-first-run"])
            .args(["--remote-debugging-pipe", "--window-size=1300,700"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .env("TMPDIR", profile.path())
            .env("HOME", profile.path())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let (commands, events) =
            (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let mut page = Page {
            process,
            commands,
            events,
            session: Value::Null,
            last: 0,
            origin: url.trim_end_matches('/').to_owned() + "/",
            complaints: Vec::new(),
            _profile: profile,
        };
        let target = page.command("Target.createTarget", &json!({"url": "about:blank"}))["targetId"].clone();
        let attached = page.command("Target.attachToTarget", &json!({"targetId": target, "flatten": true}));
        page.session = attached["sessionId"].clone();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.command(&format!("{domain}.enable"), &json!({}));
        }
        page.command("Page.navigate", &json!({"url": url}));
        page.until("document.readyState === 'complete' && document.querySelector('#summary') !== null");
        page
    }

    /// Sends a command and returns its result.
    pub(crate) fn command(&mut self, method: &str, parameters: &Value) -> Value {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": parameters});
        if !self.session.is_null() {
            message["sessionId"] = self.session.clone();
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).expect("the browser listens");
        loop {
            let mut answer = Vec::new();
            self.events.read_until(0, &mut answer).expect("the browser answers");
            assert_eq!(answer.pop(), Some(0), "the browser has ended");
            let mut answer: Value = serde_json::from_slice(&answer).expect("JSON");
            if answer["id"] == self.last {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].take();
            }
            self.note(&answer);
        }
    }

    fn note(&mut self, event: &Value) {
        let complaint = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => &event["params"]["exceptionDetails"],
            Some("Log.entryAdded") => &event["params"]["entry"],
            Some("Runtime.consoleAPICalled") => &event["params"]["args"],
            Some("Network.requestWillBeSent") => {
                let asked = &event["params"]["request"]["url"];
                if asked.as_str().is_some_and(|asked| asked.starts_with(&self.origin)) {
                    return;
                }
                asked
            }
            _ => return,
        };
        self.complaints.push(complaint.to_string());
    }

    /// The value of an expression in the page, a promise's value included.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true});
        let mut result = self.command("Runtime.evaluate", &parameters);
        assert!(result.get("exceptionDetails").is_none(), "{expression}: {result}");
        result["result"]["value"].take()
    }

    pub(crate) fn text(&mut self, expression: &str) -> String {
        self.value(expression).as_str().unwrap_or_else(|| panic!("{expression} is no text")).to_owned()
    }

    /// Waits until an expression in the page is true.
    pub(crate) fn until(&mut self, condition: &str) {
        let page = std::cell::RefCell::new(self);
        poll(
            || page.borrow_mut().value(condition) == true,
            || format!("never {condition} in\n{}", page.borrow_mut().text("document.body.innerText")),
        );
    }

    /// Presses and releases a key, as a person does.
    pub(crate) fn press(&mut self, key: &str) {
        let (code, number, text) = match key {
            "Tab" => ("Tab", 9, ""),
            "Enter" => ("Enter", 13, "\r"),
            " " => ("Space", 32, " "),
            "Escape" => ("Escape", 27, ""),
            "Delete" => ("Delete", 46, ""),
            "ArrowDown" => ("ArrowDown", 40, ""),
            other => panic!("what is {other}?"),
        };
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            self.command(
                "Input.dispatchKeyEvent",
                &json!({"type": kind, "key": key, "code": code, "windowsVirtualKeyCode": number, "text": text}),
            );
        }
    }

    /// Types a text into what has the focus.
    pub(crate) fn write(&mut self, text: &str) {
        self.command("Input.insertText", &json!({ "text": text }));
    }

    pub(crate) fn click(&mut self, selector: &str) {
        self.value(&format!("document.querySelector({}).click()", json!(selector)));
    }

    /// The text that an element shows.
    pub(crate) fn shown(&mut self, selector: &str) -> String {
        self.text(&format!("document.querySelector({}).innerText", json!(selector)))
    }

    /// Chooses an entry of a list, or fills a field, as a person does.
    pub(crate) fn choose(&mut self, selector: &str, value: &str) {
        let (selector, value) = (json!(selector), json!(value));
        self.value(&format!(
            "{{ const field = document.querySelector({selector}); field.value = {value}; \
             for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {{bubbles: true}})); }}"
        ));
    }

    /// Presses Tab until an element has the focus.
    pub(crate) fn tab_to(&mut self, selector: &str) {
        for _ in 0..60 {
            if self.value(&format!("document.activeElement?.matches({selector:?}) ?? false")) == true {
                return;
            }
            self.press("Tab");
        }
        panic!("no way to {selector} by keyboard");
    }

    /// What went wrong in the page so far, but for refusals with one of these statuses: the browser
    /// complains about each.
    pub(crate) fn complaints_but(&mut self, statuses: &[u16]) -> Vec<String> {
        let mut all = self.complaints();
        all.retain(|one| !statuses.iter().any(|status| one.contains(&format!("a status of {status} "))));
        all
    }

    /// What went wrong in the page so far.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        // Events that were sent before the answer to this come before it.
        self.value("0");
        self.complaints.clone()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.session = Value::Null;
        let _ = self.commands.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        // Ends when the last process of the browser has closed the pipe.
        let _ = std::io::copy(&mut self.events, &mut std::io::sink());
        let _ = self.process.wait();
    }
}
