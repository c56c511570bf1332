//! Frames from the host. Whatever is wrong with one, the worker neither hangs nor acts on a part.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::PollFlags;
use rustix::io::{Errno, read};

use super::channels::{either, wait_for};
use crate::protocol::{Frame, HEADER, Header};

/// Bytes that are read at first; most requests fit.
const FIRST_READ: usize = 4 << 10;
/// A buffer larger than this is given back after its request.
const KEPT_BUFFER: usize = 64 << 10;

/// Reads the requests and takes them apart.
pub(super) struct Inbox {
    fd: OwnedFd,
    buffer: Vec<u8>,
    cap: usize,
}

/// What comes next.
pub(super) enum Incoming {
    Frame(Received),
    /// Bytes that are no frame for us.
    Bad {
        request: u64,
        reason: String,
        /// Where the next frame begins cannot be known.
        lost: bool,
    },
    /// The host has closed its end.
    End,
    /// The descriptor to wait for besides is readable.
    Woken,
}

/// A whole frame in a buffer of its own.
pub(super) struct Received {
    pub(super) header: Header,
    bytes: Vec<u8>,
    second: usize,
}

impl Received {
    pub(super) fn first(&self) -> &[u8] {
        &self.bytes[HEADER + 4..self.second]
    }

    pub(super) fn second(&self) -> &[u8] {
        &self.bytes[self.second..]
    }
}

impl Inbox {
    pub(super) fn new(fd: OwnedFd, cap: usize) -> Inbox {
        Inbox { fd, buffer: Vec::new(), cap }
    }

    /// Waits for the next frame.
    pub(super) fn next(&mut self) -> Incoming {
        self.next_or(None)
    }

    /// Waits for the next frame, or until `wake` is readable.
    pub(super) fn next_or(&mut self, wake: Option<BorrowedFd<'_>>) -> Incoming {
        loop {
            let missing = match self.look() {
                Ok(incoming) => return incoming,
                Err(missing) => missing,
            };
            if let Some(wake) = wake {
                match either(self.fd.as_fd(), wake) {
                    Ok((_, true)) => return Incoming::Woken,
                    Ok(_) => {}
                    Err(_) => return Incoming::End,
                }
            }
            // Memory follows what has arrived, not what a header announces.
            self.buffer.reserve(missing.clamp(FIRST_READ, 1 << 20));
            match read(&self.fd, spare_capacity(&mut self.buffer)) {
                Ok(0) => return Incoming::End,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if wait_for(self.fd.as_fd(), PollFlags::IN).is_ok() => {}
                Err(_) => return Incoming::End,
            }
        }
    }

    /// What the buffer holds, or how much is missing.
    fn look(&mut self) -> Result<Incoming, usize> {
        let Some((head, _)) = self.buffer.split_first_chunk::<HEADER>() else {
            return Err(HEADER - self.buffer.len());
        };
        let [l0, l1, l2, l3, _, _, _, _, request @ ..] = *head;
        let (length, request) = (u32::from_le_bytes([l0, l1, l2, l3]) as usize, u64::from_le_bytes(request));
        if length > self.cap {
            let reason = format!("a frame of {length} bytes is over the cap of {}", self.cap);
            return Ok(Incoming::Bad { request, reason, lost: true });
        }
        let end = HEADER + length;
        if self.buffer.len() < end {
            return Err(end - self.buffer.len());
        }
        let parts = match Frame::decode(&self.buffer, self.cap) {
            Ok(Some((frame, _))) => Ok((frame.header, HEADER + 4 + frame.first.len())),
            Ok(None) => Err("an incomplete frame".to_owned()),
            Err(malformed) => Err(malformed.to_string()),
        };
        match parts {
            Ok((header, second)) => {
                let rest = self.buffer.split_off(end);
                let bytes = std::mem::replace(&mut self.buffer, rest);
                Ok(Incoming::Frame(Received { header, bytes, second }))
            }
            Err(reason) => {
                self.buffer.drain(..end);
                Ok(Incoming::Bad { request, reason, lost: false })
            }
        }
    }

    /// Takes back a frame's buffer: most requests need none of their own.
    pub(super) fn recycle(&mut self, received: Received) {
        let mut bytes = received.bytes;
        if self.buffer.is_empty() && bytes.capacity() <= KEPT_BUFFER {
            bytes.clear();
            self.buffer = bytes;
        }
    }

    /// Puts a frame back that is not for who has read it.
    pub(super) fn put_back(&mut self, received: Received) {
        let mut bytes = received.bytes;
        bytes.append(&mut self.buffer);
        self.buffer = bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Kind, encode};
    use rustix::pipe::pipe;

    const CAP: usize = 4 << 10;

    fn inbox(parts: &[&[u8]]) -> Inbox {
        let (read_end, write_end) = pipe().expect("pipe");
        for part in parts {
            assert_eq!(rustix::io::write(&write_end, part), Ok(part.len()));
        }
        Inbox::new(read_end, CAP)
    }

    #[test]
    fn frames_that_arrive_together_are_taken_apart() {
        let one = encode(Kind::Ping, 1, b"a", b"bc", CAP).expect("fits");
        let two = encode(Kind::Ping, 2, b"", b"", CAP).expect("fits");
        let mut inbox = inbox(&[&one, &two]);
        let Incoming::Frame(first) = inbox.next() else { panic!("a frame") };
        assert_eq!((first.header.request, first.first(), first.second()), (1, &b"a"[..], &b"bc"[..]));
        inbox.recycle(first);
        let Incoming::Frame(second) = inbox.next() else { panic!("a frame") };
        assert_eq!((second.header.request, second.second()), (2, &b""[..]));
        inbox.put_back(second);
        let Incoming::Frame(again) = inbox.next() else { panic!("a frame") };
        assert_eq!(again.header.request, 2);
        assert!(matches!(inbox.next(), Incoming::End));
    }

    #[test]
    fn a_bad_frame_is_skipped_and_the_next_one_is_read() {
        let mut unknown = encode(Kind::Ping, 3, b"", b"xyz", CAP).expect("fits");
        unknown[4] = 200;
        let mut parts = encode(Kind::Ping, 4, b"", b"", CAP).expect("fits");
        parts[HEADER] = 9;
        let mut reserved = encode(Kind::Ping, 5, b"", b"", CAP).expect("fits");
        reserved[6] = 1;
        let good = encode(Kind::Ping, 6, b"", b"", CAP).expect("fits");
        let mut inbox = inbox(&[&unknown, &parts, &reserved, &good]);
        for number in 3..6 {
            let Incoming::Bad { request, lost, .. } = inbox.next() else { panic!("{number} is bad") };
            assert_eq!((request, lost), (number, false));
        }
        assert!(matches!(inbox.next(), Incoming::Frame(frame) if frame.header.request == 6));
    }

    #[test]
    fn a_frame_over_the_cap_is_told_before_its_body_comes() {
        let mut large = encode(Kind::Ping, 7, b"", b"", CAP).expect("fits");
        large[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut inbox = inbox(&[&large]);
        assert!(matches!(inbox.next(), Incoming::Bad { request: 7, lost: true, .. }));
    }
}
