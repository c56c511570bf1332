//! A small HTTP/1.1 server: requests in, responses out, parked replies, streams. It knows nothing of
//! the tracker.
//!
//! One thread owns all connections through a readiness loop, so an idle connection or a parked
//! reply costs no thread. It reads and parses strictly, offers each complete request to
//! [`Service::quick`], and hands what needs waiting to a few handler threads. A reply comes back
//! through the [`Mailbox`](mailbox::Mailbox) and one wake-up.
//!
//! | file | subject |
//! |---|---|
//! | `parse`, `guard` | one head: bytes to fields, and who may ask; pure |
//! | `requests` | where a request ends and the next begins; pure, and what is fuzzed |
//! | `connection`, `deadlines` | one socket's phase and its deadline |
//! | `event_loop`, `mailbox`, `server` | all connections; the way in from other threads; the threads and their end |
//! | `response`, `stream`, `output` | what goes out: whole, piece by piece, and what was not taken yet |
//!
//! # The rules
//! - **Head.** At most [`Limits::head_bytes`] and 100 fields (431), its first line at most 8 KiB
//!   (414). Lines end with CR LF; one empty line may stand in front. The target is a path in valid
//!   percent escapes. HTTP/1.0 and 1.1 only (505). Whatever else is malformed: 400.
//! - **Host.** Exactly one in HTTP/1.1 (400), and one of those in [`Limits::hosts`]; a foreign `Origin`
//!   is refused as well (403).
//! - **Authorization.** At most one (400). What is not `Bearer` counts for nothing.
//! - **Body.** Its length comes from at most one `Content-Length` of digits alone (400); without one
//!   there is none. Any `Transfer-Encoding`: 411. Longer than [`Limits::body_bytes`]: 413, before it
//!   is sent if the client asks with `Expect: 100-continue`. Other expectations: 417.
//! - **After a refusal** nothing more is read as a request and the connection ends: nobody knows
//!   where the next request would begin. What the client still sends is thrown away for a while, so
//!   that it can read the answer.
//! - **Order.** Pipelined requests are answered one after the other.
//! - **Staying open.** HTTP/1.1 unless it says `close`, HTTP/1.0 if it says `keep-alive`. A HEAD is
//!   answered like a GET, without the body.
//! - **Streams.** A body of unknown length goes out in chunks, to HTTP/1.0 until the connection ends. It
//!   is asked for as the client takes it; to a client that hangs up or finishes, or when the server
//!   stops, its end is sent, and whoever asked with HEAD gets the head alone. Whoever takes nothing for
//!   [`Limits::write_time`] is cut off, without an end, and so is whoever its source calls too slow.
//! - **Deadlines.** Each phase has one, from its beginning, so that bytes which trickle do not move
//!   it: head, body, idle, writing, the end. Late requests are answered 408, idle connections
//!   closed without a word.
//! - **Caps.** Connections: whoever comes beyond that takes the place of the one that has been idle
//!   for longest, or is told 503. Parked replies: one more is answered at once. Streams: one more
//!   gets another answer.
//! - **End.** Nobody new is let in; what has arrived is answered with `Connection: close`, parked
//!   replies at once, streams come to their end; handlers at work are waited for up to a deadline.

mod connection;
mod deadlines;
mod event_loop;
mod guard;
mod mailbox;
mod output;
mod parse;
mod requests;
mod response;
mod server;
mod stream;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

pub(crate) use guard::Hosts;
pub(crate) use mailbox::Ticket;
pub(crate) use response::Response;
pub(crate) use server::HttpServer;
pub(crate) use stream::{Piece, Source, Stream};

/// What a request wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    /// Anything else.
    Other,
}

#[cfg(feature = "testing")]
impl Method {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Other => "",
        }
    }
}

/// A complete request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// The path between its slashes, each part percent-decoded: `/a/b%2Fc` is `["a", "b/c"]`,
    /// `/` is `[""]`.
    pub(crate) path: Vec<String>,
    /// The parameters after `?`, decoded, in order.
    pub(crate) query: Vec<(String, String)>,
    /// Header fields that few clients send.
    pub(crate) headers: Option<Box<Headers>>,
    pub(crate) body: Vec<u8>,
    /// What stands behind `Authorization: Bearer`.
    pub(crate) token: Option<Secret>,
    /// Where the connection comes from.
    pub(crate) peer: IpAddr,
}

/// What must not be shown.
#[derive(PartialEq, Eq)]
pub(crate) struct Secret(Box<[u8]>);

impl Secret {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Secret {
    fn from(bytes: &[u8]) -> Secret {
        Secret(bytes.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Header fields that a service may want to read; what is in several fields of one name is one list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers {
    accept: Option<String>,
    last_event_id: Option<String>,
}

impl Request {
    /// A request without a body.
    pub(crate) fn new(method: Method, path: Vec<String>) -> Request {
        let peer = Ipv4Addr::UNSPECIFIED.into();
        Request { method, path, query: Vec::new(), headers: None, body: Vec::new(), token: None, peer }
    }

    /// `Accept`, if it says more than `*/*`.
    pub(crate) fn accept(&self) -> Option<&str> {
        self.headers.as_ref()?.accept.as_deref()
    }

    /// `Last-Event-ID`.
    pub(crate) fn last_event_id(&self) -> Option<&str> {
        self.headers.as_ref()?.last_event_id.as_deref()
    }

    /// The first parameter with this name.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// How a request is answered.
#[derive(Debug)]
pub(crate) enum Action {
    /// Now.
    Respond(Response),
    /// When [`Ticket::send`] is called; with `otherwise` after `wait`, when the client hangs up,
    /// when the server stops, or at once when too many replies are parked.
    Park {
        /// How long.
        wait: Duration,
        /// The answer if nothing happens.
        otherwise: Response,
    },
    /// Piece by piece.
    Stream(Stream),
}

/// What the server counts: gauges, and counters from the start. Numbers to look at; nobody decides by
/// them.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) connections: AtomicUsize,
    pub(crate) parked: AtomicUsize,
    pub(crate) streams: AtomicUsize,
    /// Connections that were one too many.
    pub(crate) connections_refused: AtomicU64,
    /// Streams that were one too many.
    pub(crate) streams_refused: AtomicU64,
    /// Streams whose clients were too slow.
    pub(crate) streams_cut: AtomicU64,
}

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    /// What the service said with [`Ticket::is_about`].
    pub(crate) subject: Option<u16>,
    /// `Other` for what was no request.
    pub(crate) method: Method,
    pub(crate) status: u16,
    /// From its last byte to its answer; nothing if it waited, or was no request.
    pub(crate) took: Option<Duration>,
}

/// What stands behind the server.
pub(crate) trait Service: Send + Sync + 'static {
    /// Where the server counts.
    fn counts(&self) -> &Counts;

    /// Hears of each answer, a stream's when it begins, on the thread that owns all connections.
    fn answered(&self, answered: Answered);

    /// Answers on the thread that owns all connections: must not block. `Err` passes the request
    /// on to [`handle`](Service::handle).
    fn quick(&self, request: Request, ticket: &Ticket) -> Result<Action, Request>;

    /// Whether [`handle`](Service::handle) may take long over this request. Such requests have half
    /// of the handler threads and never keep the others waiting. Must not block.
    fn takes_long(&self, request: &Request) -> bool;

    /// Answers on a handler thread, where it may block.
    fn handle(&self, request: Request, ticket: &Ticket) -> Action;
}

/// How long the body of a request may be.
#[derive(Clone)]
pub(crate) struct BodyBytes(pub(crate) Arc<dyn Fn(&Request) -> usize + Send + Sync>);

impl fmt::Debug for BodyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BodyBytes")
    }
}

/// Caps and deadlines.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Request line and header lines together.
    pub(crate) head_bytes: usize,
    /// How long the body of this request may be: its head is there, its body is not.
    pub(crate) body_bytes: BodyBytes,
    pub(crate) connections: usize,
    /// Parked replies and streams together: one more gets its other answer at once.
    pub(crate) waiting: usize,
    /// Streams: one more gets its other answer.
    pub(crate) streams: usize,
    /// From a request's first byte to the end of its head.
    pub(crate) head_time: Duration,
    /// From a request's first byte to the end of its body.
    pub(crate) body_time: Duration,
    /// Without a request on an open connection.
    pub(crate) idle_time: Duration,
    /// Without progress of a client that reads its answer.
    pub(crate) write_time: Duration,
    /// After the last answer, for the client to close.
    pub(crate) linger_time: Duration,
    pub(crate) handlers: usize,
    /// The names that a request may be addressed to.
    pub(crate) hosts: Hosts,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head_bytes: 16 * 1024,
            body_bytes: BodyBytes(Arc::new(|_| 64 * 1024)),
            connections: 10_000,
            waiting: 9_000,
            streams: 1_000,
            head_time: Duration::from_secs(10),
            body_time: Duration::from_secs(30),
            idle_time: Duration::from_secs(75),
            write_time: Duration::from_secs(20),
            linger_time: Duration::from_secs(2),
            handlers: 4,
            hosts: Hosts::default(),
        }
    }
}

/// Reads bytes as a connection does; see [`requests`].
#[cfg(fuzzing)]
pub(crate) fn read_requests(pieces: &[&[u8]]) -> Vec<Option<Request>> {
    requests::read_all(pieces, &Limits::default())
}

#[cfg(test)]
mod tests;
