//! A small HTTP/1.1 server: requests in, responses out, parked replies. It knows nothing of the
//! tracker.
//!
//! One thread owns all connections through a readiness loop, so an idle connection or a parked
//! reply costs no thread. It reads and parses strictly, offers each complete request to
//! [`Service::quick`], and hands what needs waiting to a few handler threads. A reply comes back
//! through the [`Mailbox`](event_loop::Mailbox) and one wake-up.
//!
//! | file | subject |
//! |---|---|
//! | `parse`, `guard` | one head: bytes to fields, and who may ask; pure |
//! | `requests` | where a request ends and the next begins; pure, and what is fuzzed |
//! | `connection`, `deadlines` | one socket's phase and its deadline |
//! | `event_loop`, `server` | all connections; the threads and their end |
//! | `response` | what goes out |
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
//! - **Deadlines.** Each phase has one, from its beginning, so that bytes which trickle do not move
//!   it: head, body, idle, writing, the end. Late requests are answered 408, idle connections
//!   closed without a word.
//! - **Caps.** Connections: whoever comes beyond that takes the place of the one that has been idle
//!   for longest, or is told 503. Parked replies: one more is answered at once.
//! - **End.** Nobody new is let in; what has arrived is answered with `Connection: close`, parked
//!   replies at once; handlers at work are waited for up to a deadline.

mod connection;
mod deadlines;
mod event_loop;
mod guard;
mod parse;
mod requests;
mod response;
mod server;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

pub(crate) use event_loop::Ticket;
pub(crate) use guard::Hosts;
pub(crate) use response::Response;
pub(crate) use server::HttpServer;

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

impl Request {
    /// A request without a body.
    pub(crate) fn new(method: Method, path: Vec<String>) -> Request {
        let peer = Ipv4Addr::UNSPECIFIED.into();
        Request { method, path, query: Vec::new(), body: Vec::new(), token: None, peer }
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
}

/// What stands behind the server.
pub(crate) trait Service: Send + Sync + 'static {
    /// Answers on the thread that owns all connections: must not block. `Err` passes the request
    /// on to [`handle`](Service::handle).
    fn quick(&self, request: Request, ticket: &Ticket) -> Result<Action, Request>;

    /// Whether [`handle`](Service::handle) may take long over this request. Such requests have half
    /// of the handler threads and never keep the others waiting. Must not block.
    fn takes_long(&self, request: &Request) -> bool;

    /// Answers on a handler thread, where it may block.
    fn handle(&self, request: Request, ticket: &Ticket) -> Action;
}

/// Caps and deadlines.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Request line and header lines together.
    pub(crate) head_bytes: usize,
    /// How long the body of this request may be: its head is there, its body is not.
    pub(crate) body_bytes: fn(&Request) -> usize,
    pub(crate) connections: usize,
    /// More parked replies than this are answered at once.
    pub(crate) parked: usize,
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
            body_bytes: |_| 64 * 1024,
            connections: 10_000,
            parked: 9_000,
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
