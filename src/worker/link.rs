//! The worker's side of the conversation, put together: channels, threads, and their end.

use std::io::Write as _;
use std::sync::Arc;

use super::channels::{self, Channels};
use super::control::{Cancel, Control};
use super::inbox::Inbox;
use super::outbox::Outbox;
use super::stdout::Stdout;
use crate::sync::Mutex;

/// What the loop of requests and the running handler share.
pub(super) struct Link {
    /// Locked by the loop between requests, by a handler that waits for input within one.
    pub(super) inbox: Mutex<Inbox>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) cancel: Arc<Cancel>,
    stdout: Option<Stdout>,
    control: Control,
    /// Number of the session in the host.
    pub(super) session: u64,
}

impl Link {
    /// Waits for the host's *go*.
    ///
    /// # Errors
    /// Why this process cannot be a worker, in words.
    pub(super) fn open() -> Result<Link, String> {
        let Channels { control, requests, replies, inline, session, frame_cap } = channels::take()?;
        let started = |error: std::io::Error| format!("starting a thread failed: {error}");
        let outbox = Arc::new(Outbox::new(replies, frame_cap));
        let cancel = Arc::new(Cancel::new().map_err(|error| format!("an eventfd failed: {error}"))?);
        let (forward, stdout) = match inline {
            Some(inline) => (
                Some(inline.requests),
                Some(Stdout::start(inline.stdout, Arc::clone(&outbox)).map_err(started)?),
            ),
            None => (None, None),
        };
        let control = Control::start(control, forward, Arc::clone(&cancel)).map_err(started)?;
        let inbox = Mutex::new(Inbox::new(requests, frame_cap));
        Ok(Link { inbox, outbox, cancel, stdout, control, session })
    }

    /// A request begins: cancels and output are its own from here on.
    pub(super) fn begin(&self, request: u64) {
        self.cancel.begin(request);
        if let Some(stdout) = &self.stdout {
            stdout.begin(request);
        }
    }

    /// Sees to it that the host has what was printed before it gets the answer.
    pub(super) fn finish(&self) {
        flush();
        if let Some(stdout) = &self.stdout {
            stdout.finish();
        }
    }

    /// Sends what was printed so far, in the middle of a request.
    pub(super) fn stdout_so_far(&self, request: u64) {
        flush();
        if let Some(stdout) = &self.stdout {
            stdout.begin(request);
        }
    }

    /// Ends the threads.
    pub(super) fn close(self) {
        flush();
        // The control thread may be about to forward something that nobody reads any more.
        drop(self.inbox);
        self.control.end();
        if let Some(stdout) = self.stdout {
            stdout.end();
        }
    }
}

/// A program that has closed its stdout has nothing to flush.
fn flush() {
    let _ = std::io::stdout().flush();
}
