//! A small HTTP/1.1 server: requests in, responses out, parked replies. It knows nothing of the
//! tracker.
//!
//! One thread owns all connections through a readiness loop, so an idle connection or a parked
//! reply costs no thread. It reads and parses strictly (see [`parse`]), offers each complete
//! request to [`Service::quick`], and hands what needs waiting to a few handler threads. A reply
//! comes back through the [`Mailbox`](event_loop::Mailbox) and one wake-up.
//!
//! Strictness: a head ends lines with CR LF; no `Transfer-Encoding` (411); at most one
//! `Content-Length` of digits; exactly one `Host` in HTTP/1.1; head, body, connections and parked
//! replies are capped; every phase of an exchange has a deadline.

mod connection;
mod deadlines;
mod event_loop;
mod guard;
mod parse;
mod response;
mod server;

use std::time::Duration;

pub(crate) use event_loop::Ticket;
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
}

impl Request {
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
    pub(crate) body_bytes: usize,
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
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head_bytes: 16 * 1024,
            body_bytes: 64 * 1024,
            connections: 10_000,
            parked: 9_000,
            head_time: Duration::from_secs(10),
            body_time: Duration::from_secs(30),
            idle_time: Duration::from_secs(75),
            write_time: Duration::from_secs(20),
            linger_time: Duration::from_secs(2),
            handlers: 4,
        }
    }
}

/// Parses bytes as the head of a request, and forgets them.
#[cfg(fuzzing)]
pub(crate) fn parse_any(input: &[u8]) {
    let _ = parse::parse(input, &Limits::default());
}

#[cfg(test)]
mod tests;
