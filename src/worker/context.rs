//! What a handler can ask of its session while it works.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::answer::{Failure, Result, cut};
use super::control::die;
use super::inbox::{Incoming, Received};
use super::link::Link;
use crate::protocol::{Kind, flag};

/// A message or prompt is cut at this many bytes: it fits into the smallest frame.
const TEXT_CAP: usize = 8 << 10;

/// Bytes that came before their request.
pub(super) struct Attached {
    name: String,
    frame: Received,
}

impl Attached {
    pub(super) fn new(frame: Received) -> std::result::Result<Attached, String> {
        #[derive(serde::Deserialize)]
        struct Named {
            name: String,
        }
        match serde_json::from_slice(frame.first()) {
            Ok(Named { name }) => Ok(Attached { name, frame }),
            Err(error) => Err(format!("an attachment without a name: {error}")),
        }
    }

    pub(super) fn request(&self) -> u64 {
        self.frame.header.request
    }
}

/// What the running request can do besides computing. May be used by several threads at once, such
/// as scoped ones.
pub struct Context<'a> {
    link: &'a Link,
    request: u64,
    answers_input: bool,
    attachments: Vec<Attached>,
    /// The handler has seen that it is cancelled.
    noticed: AtomicBool,
}

impl<'a> Context<'a> {
    pub(super) fn new(link: &'a Link, request: u64, flags: u8, attachments: Vec<Attached>) -> Context<'a> {
        let answers_input = flags & flag::ANSWERS_INPUT != 0;
        Context { link, request, answers_input, attachments, noticed: AtomicBool::new(false) }
    }

    pub(super) fn has_noticed(&self) -> bool {
        self.noticed.load(Ordering::Acquire)
    }

    /// Number of the session in the host.
    pub fn session(&self) -> u64 {
        self.link.session
    }

    /// Whether the host wants this request to stop: end soon, in good order. One atomic load; a loop
    /// can afford it in every round. A handler that never looks is killed after the grace.
    pub fn is_cancelled(&self) -> bool {
        self.note(self.link.cancel.is_cancelled(self.request))
    }

    /// As [`is_cancelled`](Context::is_cancelled), for use with `?`.
    ///
    /// # Errors
    /// A failure of kind `Cancelled` once the request is cancelled.
    pub fn check_cancelled(&self) -> Result<()> {
        if self.is_cancelled() { Err(Failure::cancelled()) } else { Ok(()) }
    }

    /// Waits until the request is cancelled, at most `limit`: a sleep that can be stopped. Returns
    /// whether it is cancelled.
    pub fn cancelled_within(&self, limit: Duration) -> bool {
        self.note(self.link.cancel.wait(self.request, limit))
    }

    fn note(&self, cancelled: bool) -> bool {
        if cancelled {
            self.noticed.store(true, Ordering::Release);
        }
        cancelled
    }

    /// Tells the host how far the work is: a part of 1, or `None` where nobody knows, and what it is
    /// at.
    pub fn progress(&self, fraction: impl Into<Option<f64>>, message: &str) {
        let message = Some(cut(message, TEXT_CAP)).filter(|message| !message.is_empty());
        let body = json!({ "fraction": fraction.into(), "message": message });
        self.send(Kind::Progress, 0, body.to_string().as_bytes(), b"");
    }

    /// Shows something to the host's user, in one or more forms of the same thing, the richest
    /// first: `[("text/html", html), ("text/plain", text)]`. Text is UTF-8.
    ///
    /// # Errors
    /// `InvalidInput` if the forms together are larger than a frame may be.
    pub fn display<B: AsRef<[u8]>>(&self, forms: &[(&str, B)]) -> io::Result<()> {
        let types: Vec<_> = forms.iter().map(|(kind, bytes)| (kind, bytes.as_ref().len())).collect();
        let body = json!({ "types": types });
        let bytes: Vec<&[u8]> = forms.iter().map(|(_, bytes)| bytes.as_ref()).collect();
        self.send_large(Kind::Display, body.to_string().as_bytes(), &bytes.concat())
    }

    /// Sends bytes under a name, besides the answer.
    ///
    /// # Errors
    /// `InvalidInput` if they are larger than a frame may be.
    pub fn attach(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let body = json!({ "name": name });
        self.send_large(Kind::Attachment, body.to_string().as_bytes(), bytes)
    }

    /// The bytes that the host sent along under this name.
    pub fn attachment(&self, name: &str) -> Option<&[u8]> {
        self.attachments().find_map(|(other, bytes)| (other == name).then_some(bytes))
    }

    /// All that the host sent along: names and bytes, in its order.
    pub fn attachments(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.attachments.iter().map(|attached| (attached.name.as_str(), attached.frame.second()))
    }

    /// Asks the host's user for a line and waits for it. `None` if there is none: the host answers
    /// no questions, the input has ended, nobody answered in time, or the request was cancelled.
    pub fn input(&self, prompt: &str) -> Option<String> {
        self.ask(prompt, false)
    }

    /// As [`input`](Context::input), for a line that shall not be shown while it is typed.
    pub fn secret(&self, prompt: &str) -> Option<String> {
        self.ask(prompt, true)
    }

    fn ask(&self, prompt: &str, secret: bool) -> Option<String> {
        if !self.answers_input || self.is_cancelled() {
            return None;
        }
        // One question at a time: whoever else asks waits here.
        let mut inbox = self.link.inbox.lock();
        self.link.cancel.ask(self.request);
        let body = json!({ "prompt": cut(prompt, TEXT_CAP), "secret": secret });
        self.link.stdout_so_far(self.request);
        self.send(Kind::Input, 0, body.to_string().as_bytes(), b"");
        loop {
            match inbox.next_or(Some(self.link.cancel.event())) {
                Incoming::Frame(frame) if frame.header.kind == Kind::InputReply => {
                    if frame.header.request == self.request {
                        let line = String::from_utf8_lossy(frame.second()).into_owned();
                        return (frame.header.flags == 0).then_some(line);
                    }
                }
                // The host waits for us and sends something else: the loop of requests answers it.
                Incoming::Frame(frame) => {
                    inbox.put_back(frame);
                    return None;
                }
                Incoming::Woken => {
                    self.link.cancel.ask(0);
                    if self.is_cancelled() {
                        return None;
                    }
                }
                Incoming::Bad { .. } => return None,
                Incoming::End => die(),
            }
        }
    }

    fn send(&self, kind: Kind, flags: u8, first: &[u8], second: &[u8]) {
        self.link.outbox.send(kind, flags, self.request, first, second);
    }

    fn send_large(&self, kind: Kind, first: &[u8], second: &[u8]) -> io::Result<()> {
        if self.link.outbox.send(kind, 0, self.request, first, second) {
            return Ok(());
        }
        let (size, cap) = (first.len() + second.len(), self.link.outbox.cap);
        let text = format!("{size} bytes do not fit into a frame of at most {cap}");
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }
}
