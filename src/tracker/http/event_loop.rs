//! The loop that owns the listener and all connections.
//!
//! Invariants:
//! 1. Only this thread touches connections. Others reach one through a [`Ticket`], which names the
//!    slot and the exchange; a reply to an exchange that is over is dropped.
//! 2. Readiness comes once (edge-triggered): whoever stops reading before the socket is empty
//!    remembers that, in the connection (`unread`) or here (`again`).
//! 3. After every step of a connection its alarm stands at its deadline.

use std::collections::HashSet;
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::Sender;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};

use super::connection::{Asked, Connection, Phase, Waiting};
use super::deadlines::Deadlines;
use super::mailbox::{Inbox, Mailbox, Post, Ticket};
use super::parse::Refusal;
use super::response::Response;
use super::stream::Stream;
use super::{Action, Answered, Limits, Request, Service};
use crate::background::shielded;
use crate::clock::{Moment, wall};
use crate::tracker::civil;

pub(super) const LISTENER: Token = Token(usize::MAX - 1);
pub(super) const WAKER: Token = Token(usize::MAX - 2);
/// After an error of `accept` (no file descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Requests that one connection may have answered in a row while others wait.
const TURN: usize = 32;
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n\
    Content-Length: 33\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
    Cross-Origin-Resource-Policy: same-origin\r\nConnection: close\r\n\r\n{\"detail\":\"too many connections\"}";

/// A request on its way to a handler thread.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) ticket: Ticket,
}

/// The ways to the handler threads: see [`Service::takes_long`].
pub(super) struct Jobs {
    pub(super) short: Sender<Job>,
    pub(super) long: Sender<Job>,
}

pub(super) struct EventLoop<S> {
    poll: Poll,
    listener: Option<TcpListener>,
    accept_again: Option<Moment>,
    mailbox: Arc<Mailbox>,
    service: Arc<S>,
    jobs: Jobs,
    limits: Limits,
    slots: Vec<Option<Connection>>,
    free: Vec<usize>,
    parked: usize,
    /// The slots with a stream.
    streams: HashSet<usize>,
    /// Grows with every connection and every request, so that no two share a number.
    counter: u64,
    deadlines: Deadlines,
    /// Connections that used up their turn.
    again: Vec<usize>,
    stop: Option<Moment>,
    scratch: Vec<u8>,
    now: Moment,
    date: (u64, String),
}

impl<S: Service> EventLoop<S> {
    pub(super) fn new(
        poll: Poll,
        listener: TcpListener,
        mailbox: Arc<Mailbox>,
        service: Arc<S>,
        jobs: Jobs,
        limits: Limits,
    ) -> EventLoop<S> {
        EventLoop {
            poll,
            listener: Some(listener),
            accept_again: None,
            mailbox,
            service,
            jobs,
            limits,
            slots: Vec::new(),
            free: Vec::new(),
            parked: 0,
            streams: HashSet::new(),
            counter: 0,
            deadlines: Deadlines::default(),
            again: Vec::new(),
            stop: None,
            scratch: vec![0; 16 * 1024],
            now: Moment::now(),
            date: (0, String::new()),
        }
    }

    /// Serves until stopped.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            match self.poll.poll(&mut events, self.timeout()) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::error!("waiting for connections failed, the server ends: {error}");
                    return;
                }
            }
            self.read_clocks();
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    WAKER => {}
                    Token(slot) => self.with(slot, |this, connection| {
                        if event.is_read_closed() {
                            connection.note_closing();
                        }
                        this.ready(slot, connection)
                    }),
                }
            }
            self.read_inbox();
            let mut again = std::mem::take(&mut self.again);
            // One that was ready as well is here twice: left so, its turns would add up.
            again.sort_unstable();
            again.dedup();
            for slot in again {
                self.with(slot, |this, connection| this.advance(slot, connection));
            }
            if self.accept_again.is_some_and(|moment| moment <= self.now) {
                self.accept();
            }
            self.expire();
            if self.is_over() {
                return;
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let next = [self.deadlines.next(), self.accept_again, self.stop].into_iter().flatten().min()?;
        Some(next.saturating_since(Moment::now()))
    }

    fn read_clocks(&mut self) {
        self.now = Moment::now();
        let seconds = civil::millis(wall()).div_euclid(1_000);
        if self.date.0 != seconds.unsigned_abs() {
            self.date = (seconds.unsigned_abs(), civil::http_date(seconds));
        }
    }

    /// Runs one step of a connection, then keeps it or, if the step failed, drops it.
    fn with(&mut self, slot: usize, step: impl FnOnce(&mut EventLoop<S>, &mut Connection) -> io::Result<()>) {
        let Some(mut connection) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        let before = connection.phase.waiting();
        let result = step(self, &mut connection);
        let after = if result.is_ok() { connection.phase.waiting() } else { None };
        self.recount(slot, before, after);
        match result {
            Ok(()) => {
                let deadline = connection.deadline(&self.limits);
                self.deadlines.set(&mut connection.alarm, deadline, slot, connection.serial);
                self.slots[slot] = Some(connection);
            }
            Err(error) => {
                let was_streaming = connection.phase.waiting() == Some(Waiting::Streaming);
                if was_streaming && error.kind() == ErrorKind::TimedOut {
                    self.service.counts().streams_cut.fetch_add(1, Ordering::Relaxed);
                    log::info!("a client takes what is streamed to it too slowly and is cut off");
                }
                self.free.push(slot);
                self.count_connections();
            }
        }
    }

    fn count_connections(&self) {
        let open = self.slots.len() - self.free.len();
        self.service.counts().connections.store(open, Ordering::Relaxed);
    }

    /// Keeps count of the connections that wait.
    fn recount(&mut self, slot: usize, before: Option<Waiting>, after: Option<Waiting>) {
        if before == after {
            return;
        }
        for (waiting, comes) in [(before, false), (after, true)] {
            match waiting {
                Some(Waiting::Parked) if comes => self.parked += 1,
                Some(Waiting::Parked) => self.parked -= 1,
                Some(Waiting::Streaming) if comes => _ = self.streams.insert(slot),
                Some(Waiting::Streaming) => _ = self.streams.remove(&slot),
                None => {}
            }
        }
        let counts = self.service.counts();
        counts.parked.store(self.parked, Ordering::Relaxed);
        counts.streams.store(self.streams.len(), Ordering::Relaxed);
    }

    fn accept(&mut self) {
        self.accept_again = None;
        while let Some(listener) = &self.listener {
            match listener.accept() {
                Ok((stream, peer)) => self.adopt(stream, peer.ip()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    log::warn!("connections cannot be accepted: {error}");
                    self.accept_again = Some(self.now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn adopt(&mut self, mut stream: mio::net::TcpStream, peer: IpAddr) {
        if self.slots.len() - self.free.len() >= self.limits.connections && !self.make_room() {
            // Fits into the empty socket buffer; whoever does not get it sees a closed connection.
            let _ = stream.write(FULL);
            self.service.counts().connections_refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let _ = stream.set_nodelay(true);
        self.counter += 1;
        let mut connection = Connection::new(stream, peer, self.counter, self.now);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let interest = Interest::READABLE | Interest::WRITABLE;
        match self.poll.registry().register(connection.stream(), Token(slot), interest) {
            Ok(()) => {
                self.slots[slot] = Some(connection);
                self.with(slot, |_, _| Ok(()));
                self.count_connections();
            }
            Err(error) => {
                log::warn!("a connection cannot be watched: {error}");
                self.free.push(slot);
            }
        }
    }

    /// Closes the connection that has been idle for the longest time, as its idle time would; false
    /// if all are in use. Without this, connections that clients keep for later would keep out who
    /// comes to kill.
    fn make_room(&mut self) -> bool {
        let idle = |connection: &Option<Connection>| connection.as_ref().and_then(Connection::idle_since);
        let slots = self.slots.iter().enumerate();
        let mut candidates: Vec<(Moment, usize)> =
            slots.filter_map(|(slot, connection)| Some((idle(connection)?, slot))).collect();
        candidates.sort_unstable();
        let unused = candidates.into_iter().map(|(_, slot)| slot).find(|&slot| {
            // What has arrived and is not read yet shall be answered.
            self.slots[slot].as_mut().is_some_and(|connection| !connection.has_unread_bytes())
        });
        let Some(slot) = unused else { return false };
        self.slots[slot] = None;
        self.free.push(slot);
        true
    }

    fn ready(&mut self, slot: usize, connection: &mut Connection) -> io::Result<()> {
        connection.fill(&mut self.scratch, &self.limits)?;
        self.advance(slot, connection)
    }

    /// Takes up requests and writes answers until something is missing.
    fn advance(&mut self, slot: usize, connection: &mut Connection) -> io::Result<()> {
        for _ in 0..TURN {
            if connection.is_full() {
                connection.flush(&self.limits, self.now)?;
                // The socket will say when it takes more.
                if connection.is_full() {
                    return Ok(());
                }
            }
            let mut taken = false;
            if matches!(connection.phase, Phase::Reading) {
                match connection.next_request(&self.limits, self.now) {
                    Ok(Some(request)) => {
                        self.dispatch(slot, connection, request);
                        taken = true;
                    }
                    Ok(None) => {}
                    Err(refusal) => self.refuse(connection, &refusal),
                }
            } else if connection.is_due() {
                self.pull(connection, false)?;
                taken = true;
            }
            if !taken {
                if connection.has_more() {
                    connection.fill(&mut self.scratch, &self.limits)?;
                    continue;
                }
                return self.settle(connection);
            }
        }
        self.again.push(slot);
        self.settle(connection)
    }

    /// Writes what is owed and decides what the client's end of the stream means now.
    fn settle(&mut self, connection: &mut Connection) -> io::Result<()> {
        if connection.closes_while_it_waits() {
            // There may be room by now, and the end within it.
            connection.fill(&mut self.scratch, &self.limits)?;
        }
        let hangs_up = connection.closes_while_it_waits();
        if hangs_up {
            connection.hang_up();
        }
        if hangs_up || connection.has_ended() {
            // Whoever hangs up while it waits wants no answer any more; whoever only finished sending
            // gets that of a wait that is over.
            self.end_wait(connection)?;
        }
        connection.flush(&self.limits, self.now)?;
        let stopping = self.stop.is_some();
        let over = match connection.phase {
            Phase::Reading => (connection.has_ended() || stopping) && !connection.has_output(),
            Phase::Lingering { .. } => connection.has_ended() || stopping,
            _ => false,
        };
        if over { Err(ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    fn dispatch(&mut self, slot: usize, connection: &mut Connection, request: Request) {
        self.counter += 1;
        connection.exchange = self.counter;
        connection.phase = Phase::Busy;
        let ticket = Ticket::new(&self.mailbox, slot, connection.exchange);
        let (method, at) = (request.method, Some(Moment::now()));
        let quick = shielded("answering a request", || self.service.quick(request, &ticket));
        connection.asked = Asked { subject: ticket.subject(), method, at };
        match quick {
            Some(Ok(action)) => self.act(connection, action),
            Some(Err(request)) => {
                let long = self.service.takes_long(&request);
                let jobs = if long { &self.jobs.long } else { &self.jobs.short };
                if jobs.send(Job { request, ticket }).is_err() {
                    let gone = Response::detail(503, "the server is stopping");
                    self.answer(connection, &gone, true);
                }
            }
            None => {
                let broken = Response::detail(500, "Internal Server Error");
                self.answer(connection, &broken, true);
            }
        }
    }

    fn act(&mut self, connection: &mut Connection, action: Action) {
        let stopping = self.stop.is_some();
        let has_room = self.parked + self.streams.len() < self.limits.waiting;
        match action {
            Action::Park { wait, otherwise } if !stopping && !wait.is_zero() && has_room => {
                connection.asked.at = None;
                connection.phase = Phase::Parked { until: self.now + wait, otherwise };
            }
            Action::Park { otherwise: response, .. } | Action::Respond(response) => {
                self.answer(connection, &response, stopping);
            }
            Action::Stream(stream) if has_room && self.streams.len() < self.limits.streams => {
                connection.asked.at = None;
                self.count(connection, stream.head.status);
                connection.begin_stream(stream, &self.date.1, stopping, self.now);
            }
            Action::Stream(Stream { otherwise, .. }) => {
                self.service.counts().streams_refused.fetch_add(1, Ordering::Relaxed);
                self.answer(connection, &otherwise, stopping);
            }
        }
    }

    /// Answers the current request; `close` makes it the last one.
    fn answer(&self, connection: &mut Connection, response: &Response, close: bool) {
        connection.answer(response, &self.date.1, close, self.now);
        self.count(connection, response.status);
    }

    /// Refuses the request that is being read.
    fn refuse(&self, connection: &mut Connection, refusal: &Refusal) {
        connection.asked = Asked::default();
        connection.refuse(refusal, &self.date.1, self.now);
        self.count(connection, refusal.status);
    }

    fn count(&self, connection: &Connection, status: u16) {
        let Asked { subject, method, at } = connection.asked;
        let took = at.map(|at| Moment::now().saturating_since(at));
        self.service.answered(Answered { subject, method, status, took });
    }

    /// Asks a stream's source for its next piece, or for its end.
    fn pull(&self, connection: &mut Connection, last: bool) -> io::Result<()> {
        connection.pull(last || self.stop.is_some(), &self.date.1, self.stop.is_some(), self.now)
    }

    /// Nothing is waited for any more: answers a parked reply with its other answer, and has a stream
    /// come to its end.
    fn end_wait(&self, connection: &mut Connection) -> io::Result<()> {
        match std::mem::replace(&mut connection.phase, Phase::Busy) {
            Phase::Parked { otherwise, .. } => {
                self.answer(connection, &otherwise, self.stop.is_some());
                Ok(())
            }
            other => {
                connection.phase = other;
                self.pull(connection, true)
            }
        }
    }

    fn read_inbox(&mut self) {
        let Inbox { posts, rung, stop } = self.mailbox.take();
        for Post { slot, exchange, action } in posts {
            self.with(slot, |this, connection| {
                // In any other phase or exchange the request has been answered already.
                let waiting = matches!(connection.phase, Phase::Busy | Phase::Parked { .. });
                if connection.exchange != exchange || !waiting {
                    return Ok(());
                }
                this.act(connection, action);
                this.advance(slot, connection)
            });
        }
        if rung {
            for slot in self.streams.iter().copied().collect::<Vec<_>>() {
                self.with(slot, |this, connection| {
                    connection.make_due();
                    this.advance(slot, connection)
                });
            }
        }
        if stop.is_some() && self.stop.is_none() {
            self.begin_stop(stop);
        }
    }

    /// No new connections, but for those that the kernel has let in already; requests that have
    /// arrived are answered, parked replies as well, streams come to their end; what is idle or half
    /// read is closed; what a handler has is waited for.
    fn begin_stop(&mut self, deadline: Option<Moment>) {
        self.accept();
        self.stop = deadline;
        self.listener = None;
        self.accept_again = None;
        for slot in 0..self.slots.len() {
            self.with(slot, |this, connection| {
                this.end_wait(connection)?;
                this.ready(slot, connection)
            });
        }
    }

    fn expire(&mut self) {
        while let Some((slot, serial)) = self.deadlines.pop(self.now) {
            if self.slots.get(slot).and_then(Option::as_ref).is_none_or(|found| found.serial != serial) {
                continue;
            }
            self.with(slot, |this, connection| {
                if !this.deadlines.is_due(&mut connection.alarm, this.now, slot, serial) {
                    return Ok(());
                }
                this.overdue(slot, connection)
            });
        }
    }

    fn overdue(&mut self, slot: usize, connection: &mut Connection) -> io::Result<()> {
        if let Some(waiting) = connection.phase.waiting().filter(|_| !connection.has_output()) {
            match waiting {
                Waiting::Parked => self.end_wait(connection)?,
                Waiting::Streaming => connection.make_due(),
            }
            return self.advance(slot, connection);
        }
        if !connection.has_output() && connection.is_in_a_request() {
            let late = Refusal::new(408, "the request took too long to arrive");
            self.refuse(connection, &late);
            return self.settle(connection);
        }
        Err(ErrorKind::TimedOut.into())
    }

    fn is_over(&self) -> bool {
        self.stop.is_some_and(|deadline| self.slots.len() == self.free.len() || deadline <= self.now)
    }
}
