//! The way into the event loop from other threads: answers to requests, a ring for the streams, the end.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use mio::Waker;

use super::Action;
use super::response::Response;
use super::stream::Doorbell;
use crate::clock::Moment;
use crate::sync::Mutex;

/// The way from other threads into the loop.
pub(super) struct Mailbox {
    inbox: Mutex<Inbox>,
    waker: Waker,
}

/// What has arrived.
#[derive(Default)]
pub(super) struct Inbox {
    pub(super) posts: Vec<Post>,
    /// Streams may have something.
    pub(super) rung: bool,
    /// The loop is to end, at the latest then.
    pub(super) stop: Option<Moment>,
}

/// What to do about one request.
pub(super) struct Post {
    pub(super) slot: usize,
    pub(super) exchange: u64,
    pub(super) action: Action,
}

impl Mailbox {
    pub(super) fn new(waker: Waker) -> Mailbox {
        Mailbox { inbox: Mutex::new(Inbox::default()), waker }
    }

    fn post(&self, post: Post) {
        self.put(|inbox| inbox.posts.push(post));
    }

    /// Has all streams asked whether they have something.
    pub(super) fn ring(&self) {
        self.put(|inbox| inbox.rung = true);
    }

    fn put(&self, put: impl FnOnce(&mut Inbox)) {
        let first = {
            let mut inbox = self.inbox.lock();
            let first = inbox.posts.is_empty() && !inbox.rung;
            put(&mut inbox);
            first
        };
        // Who comes later finds the loop awake, or on its way to the inbox.
        if first {
            self.wake();
        }
    }

    /// Has the loop end: at the latest at `deadline`.
    pub(super) fn stop(&self, deadline: Moment) {
        self.inbox.lock().stop = Some(deadline);
        self.wake();
    }

    /// What has arrived since the last time. That the loop is to end stays.
    pub(super) fn take(&self) -> Inbox {
        let mut inbox = self.inbox.lock();
        let stop = inbox.stop;
        mem::replace(&mut *inbox, Inbox { posts: Vec::new(), rung: false, stop })
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            log::error!("the connection thread cannot be woken: {error}");
        }
    }
}

/// The right to answer one request, from any thread, once. Later calls do nothing.
pub(crate) struct Ticket {
    mailbox: Arc<Mailbox>,
    slot: usize,
    exchange: u64,
    /// For the loop, which looks when [`Service::quick`](super::Service::quick) has returned.
    subject: AtomicU16,
}

/// No subject.
const NOTHING: u16 = u16::MAX;

impl Clone for Ticket {
    fn clone(&self) -> Ticket {
        Ticket::new(&self.mailbox, self.slot, self.exchange)
    }
}

impl Ticket {
    /// For what the connection in this slot has asked.
    pub(super) fn new(mailbox: &Arc<Mailbox>, slot: usize, exchange: u64) -> Ticket {
        Ticket { mailbox: Arc::clone(mailbox), slot, exchange, subject: AtomicU16::new(NOTHING) }
    }

    /// Two requests of one server, the older first. Nobody reads their answers.
    #[cfg(test)]
    pub(crate) fn of_nobody() -> [Ticket; 2] {
        let poll = mio::Poll::new().expect("a poll");
        let waker = Waker::new(poll.registry(), mio::Token(0)).expect("a waker");
        let mailbox = Arc::new(Mailbox::new(waker));
        [1, 2].map(|exchange| Ticket::new(&mailbox, 0, exchange))
    }

    /// Answers the request if nobody has yet and its connection is still there. Does not block.
    pub(crate) fn send(&self, response: Response) {
        self.act(Action::Respond(response));
    }

    pub(super) fn act(&self, action: Action) {
        self.mailbox.post(Post { slot: self.slot, exchange: self.exchange, action });
    }

    /// Says what the request is about, for [`Service::answered`](super::Service::answered): to be called in
    /// [`Service::quick`](super::Service::quick), with the ticket given there.
    pub(crate) fn is_about(&self, subject: u16) {
        self.subject.store(subject, Ordering::Relaxed);
    }

    /// What [`is_about`](Ticket::is_about) was told.
    pub(super) fn subject(&self) -> Option<u16> {
        Some(self.subject.load(Ordering::Relaxed)).filter(|subject| *subject != NOTHING)
    }

    /// Has all streams asked again.
    pub(crate) fn doorbell(&self) -> Doorbell {
        Doorbell(Arc::clone(&self.mailbox))
    }

    /// Whether this request arrived after the other one, which is of the same server.
    pub(crate) fn is_newer_than(&self, other: &Ticket) -> bool {
        self.exchange > other.exchange
    }

    /// Whether both answer the same request.
    pub(crate) fn same(&self, other: &Ticket) -> bool {
        self.exchange == other.exchange && Arc::ptr_eq(&self.mailbox, &other.mailbox)
    }
}
