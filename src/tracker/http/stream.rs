//! Answers that go on: a body that is made piece by piece, as the client takes it.
//!
//! A [`Source`] is asked for its next piece when it may have one (its time has come, or a [`Doorbell`]
//! rings) and the client has taken nearly all that came before. So a connection holds a bounded part of
//! a body, whoever reads slowly keeps nobody waiting, and no stream has a thread.

use std::fmt;
use std::io::Write;
use std::sync::Arc;

use super::mailbox::Mailbox;
use super::response::Response;
use crate::clock::Moment;

/// An answer that goes on.
pub(crate) struct Stream {
    /// Status, type and fields. If the first piece is the last one, this is an ordinary answer with it
    /// as its body; else it goes out together with the first piece.
    pub(crate) head: Response,
    pub(crate) source: Box<dyn Source>,
    /// The answer when there are too many streams.
    pub(crate) otherwise: Response,
}

/// Where the body of a stream comes from. It is asked on the thread that owns all connections: it must
/// not block, and a piece should have a few KiB.
pub(crate) trait Source: Send {
    /// What comes next. With `last` it is not asked again, because the client has finished or the
    /// server stops: what it returns then is the end.
    fn next(&mut self, now: Moment, last: bool) -> Piece;
}

/// What comes next of a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// This; and it is asked again as soon as there is room.
    Some(Vec<u8>),
    /// Nothing; it is asked again at this moment, or when a [`Doorbell`] rings.
    Later(Moment),
    /// This, and that was all.
    End(Vec<u8>),
    /// The client has been too slow: the connection ends without an end of the body.
    TooSlow,
}

/// Has all sources asked again.
#[derive(Clone)]
pub(crate) struct Doorbell(pub(super) Arc<Mailbox>);

impl Doorbell {
    /// From any thread; does not block. Rings that nobody has answered yet are one.
    pub(crate) fn ring(&self) {
        self.0.ring();
    }
}

/// A stream under way.
#[derive(Debug)]
pub(super) struct Streaming {
    pub(super) stream: Stream,
    /// Head and first piece are written.
    pub(super) has_begun: bool,
    /// The source may have something.
    pub(super) is_due: bool,
    /// When it shall be asked again in any case.
    pub(super) until: Moment,
}

impl Streaming {
    pub(super) fn new(stream: Stream, now: Moment) -> Streaming {
        Streaming { stream, has_begun: false, is_due: true, until: now }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("head", &self.head).finish_non_exhaustive()
    }
}

/// How a client sees where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// In chunks, the last of which is empty: HTTP/1.1.
    Chunked,
    /// The connection ends: HTTP/1.0.
    UntilClose,
}

impl Framing {
    /// Appends a piece to a connection's output.
    pub(super) fn piece(self, output: &mut Vec<u8>, bytes: &[u8]) {
        // An empty chunk would be the end.
        if bytes.is_empty() {
            return;
        }
        match self {
            Framing::Chunked => {
                // Writing to memory does not fail.
                let _ = write!(output, "{:x}\r\n", bytes.len());
                output.extend_from_slice(bytes);
                output.extend_from_slice(b"\r\n");
            }
            Framing::UntilClose => output.extend_from_slice(bytes),
        }
    }

    /// Appends the end.
    pub(super) fn end(self, output: &mut Vec<u8>) {
        if self == Framing::Chunked {
            output.extend_from_slice(b"0\r\n\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_says_its_length_in_hexadecimal_and_the_last_one_is_empty() {
        let mut output = Vec::new();
        for piece in [&b"abc"[..], b"", &[b'x'; 26]] {
            Framing::Chunked.piece(&mut output, piece);
        }
        Framing::Chunked.end(&mut output);
        let expected = format!("3\r\nabc\r\n1a\r\n{}\r\n0\r\n\r\n", "x".repeat(26));
        assert_eq!(String::from_utf8(output).unwrap(), expected);
    }

    #[test]
    fn without_chunks_there_are_the_bytes_alone() {
        let mut output = Vec::new();
        Framing::UntilClose.piece(&mut output, b"abc");
        Framing::UntilClose.end(&mut output);
        assert_eq!(output, b"abc");
    }
}
