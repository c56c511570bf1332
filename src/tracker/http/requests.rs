//! Where one request ends and the next begins. Pure: bytes in, requests or one refusal out.
//!
//! Invariants:
//! 1. How the bytes were cut into pieces never changes which requests come out.
//! 2. After a refusal nothing comes out any more: nobody knows where the next request would begin.
//! 3. With an incomplete request at most [`wanted`](Requests::wanted) bytes and one piece are held.

use super::parse::{Head, Refusal, parse};
use super::{Limits, Request};

/// What a client has sent and nobody has taken up yet.
#[derive(Default)]
pub(super) struct Requests {
    input: Vec<u8>,
    /// A head whose body is incomplete.
    head: Option<Head>,
    /// The empty line in front of the request has been left out; there is no second one.
    skipped: bool,
    refused: bool,
}

/// What the input has come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// No byte of a further request.
    Nothing,
    /// The beginning of a request.
    Incomplete,
    /// The same, and its client may wait for `100 Continue` before it goes on. Said once.
    Asks,
    /// A request, whether the connection stays open after its answer, and whether it is HTTP/1.0.
    Request { request: Request, keep_alive: bool, is_http_10: bool },
}

impl Requests {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// How many bytes are worth holding.
    pub(super) fn wanted(&self, limits: &Limits) -> usize {
        // The empty line that may stand in front belongs to no request.
        limits.head_bytes + 2 + self.head.as_ref().map_or(0, |head| head.body_length)
    }

    pub(super) fn held(&self) -> usize {
        self.input.len()
    }

    /// Whether a request has begun whose head is incomplete.
    pub(super) fn is_in_a_head(&self) -> bool {
        self.head.is_none() && !self.input.is_empty()
    }

    /// Takes the next complete request out of the input.
    pub(super) fn next(&mut self, limits: &Limits) -> Result<Next, Refusal> {
        if self.refused {
            return Ok(Next::Nothing);
        }
        self.step(limits).inspect_err(|_| *self = Requests { refused: true, ..Requests::default() })
    }

    fn step(&mut self, limits: &Limits) -> Result<Next, Refusal> {
        let mut asks = false;
        let head = if let Some(head) = self.head.take() {
            head
        } else {
            self.skip_empty_line();
            match self.input.as_slice() {
                b"" => return Ok(Next::Nothing),
                b"\r" if !self.skipped => return Ok(Next::Incomplete),
                _ => {}
            }
            let Some(head) = parse(&self.input, limits)? else { return Ok(Next::Incomplete) };
            self.input.drain(..head.length);
            self.skipped = false;
            asks = head.expects_continue;
            head
        };
        if self.input.len() < head.body_length {
            self.head = Some(head);
            return Ok(if asks { Next::Asks } else { Next::Incomplete });
        }
        let Head { mut request, body_length, keep_alive, is_http_10, .. } = head;
        request.body = self.input.drain(..body_length).collect();
        Ok(Next::Request { request, keep_alive, is_http_10 })
    }

    /// Some clients send an empty line after a body.
    fn skip_empty_line(&mut self) {
        if !self.skipped && self.input.starts_with(b"\r\n") {
            self.input.drain(..2);
            self.skipped = true;
        }
    }

    /// Gives an empty buffer back that is larger than `keep`.
    pub(super) fn release(&mut self, keep: usize) {
        if self.input.is_empty() && self.input.capacity() > keep {
            self.input = Vec::new();
        }
    }
}

/// Takes up everything that can be, after each piece; `None` stands for a refusal.
#[cfg(any(test, fuzzing))]
pub(super) fn read_all(pieces: &[&[u8]], limits: &Limits) -> Vec<Option<Request>> {
    let (mut requests, mut found, mut asked) = (Requests::default(), Vec::new(), false);
    for piece in pieces {
        requests.push(piece);
        loop {
            match requests.next(limits) {
                Ok(Next::Request { request, .. }) => {
                    assert!(request.body.len() <= (limits.body_bytes.0)(&request), "the cap holds");
                    found.push(Some(request));
                    asked = false;
                }
                Ok(Next::Asks) => {
                    assert!(!asked, "a request asks once");
                    asked = true;
                }
                Ok(Next::Nothing | Next::Incomplete) => break,
                Err(_) => found.push(None),
            }
        }
        if found.last() == Some(&None) {
            assert_eq!(requests.next(limits), Ok(Next::Nothing), "nothing comes after a refusal");
        } else {
            assert!(requests.held() < requests.wanted(limits), "what is complete was taken up");
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::Method;
    use super::*;

    /// All requests in `bytes`, cut into pieces of `size`, as method and body; whether one was refused.
    fn read(bytes: &[u8], size: usize) -> (Vec<(Method, Vec<u8>)>, bool) {
        let found = read_all(&bytes.chunks(size).collect::<Vec<_>>(), &Limits::default());
        let refused = found.last() == Some(&None);
        (found.into_iter().flatten().map(|request| (request.method, request.body)).collect(), refused)
    }

    #[test]
    fn requests_come_out_alike_however_they_were_cut() {
        let text = b"POST /a HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc\r\n\
                     PUT /b HTTP/1.0\r\nContent-Length: 2\r\n\r\n\r\n\
                     GET / HTTP/1.1\r\nHost: localhost\r\n\r\n\
                     \x16";
        let expected =
            vec![(Method::Post, b"abc".to_vec()), (Method::Put, b"\r\n".to_vec()), (Method::Get, Vec::new())];
        for size in 1..=text.len() {
            assert_eq!(read(text, size), (expected.clone(), true), "pieces of {size}");
        }
    }

    #[test]
    fn one_empty_line_may_stand_in_front_of_a_request_and_no_two() {
        let get = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        for (front, refused) in [("\r\n", false), ("\r\n\r\n", true), ("\n", true), ("\rG", true)] {
            let text = format!("{front}{get}");
            for size in 1..=text.len() {
                let (found, refusal) = read(text.as_bytes(), size);
                assert_eq!((found.len(), refusal), (usize::from(!refused), refused), "{front:?} {size}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_cut_changes_what_comes_out(
            parts in proptest::collection::vec(proptest::sample::select(vec![
                "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "POST /x HTTP/1.1\r\nHost: localhost\r\n",
                "Content-Length: 4\r\n", "Expect: 100-continue\r\n", "\r\n", "\r", "\n", "abcd", "X: y\r\n", "\0",
                "Connection: close\r\n", "Transfer-Encoding: chunked\r\n", "HEAD /a?b=%20 HTTP/1.0\r\n",
            ]), 0..12),
            size in 1_usize..20,
        ) {
            let text = parts.concat();
            proptest::prop_assert_eq!(read(text.as_bytes(), text.len().max(1)), read(text.as_bytes(), size));
        }
    }
}
