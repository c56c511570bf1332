//! Frames to the host: each whole, from whichever thread, without being copied together.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::{Errno, writev};

use super::channels::{wait_for, write_all};
use super::control::die;
use crate::protocol::{HEADER, Kind};
use crate::sync::Mutex;

/// Bytes of a frame before its first part.
const HEAD: usize = HEADER + 4;

/// Writes replies.
pub(super) struct Outbox {
    /// Locked for as long as a frame is written: whoever comes meanwhile waits for the host too.
    fd: Mutex<OwnedFd>,
    pub(super) cap: usize,
}

impl Outbox {
    pub(super) fn new(fd: OwnedFd, cap: usize) -> Outbox {
        Outbox { fd: Mutex::new(fd), cap }
    }

    /// Whether a frame with these parts can be sent.
    pub(super) fn fits(&self, first: usize, second: usize) -> bool {
        4 + first + second <= self.cap
    }

    /// Sends a frame and returns true; false if it is over the cap. A host that does not take it is
    /// gone, and this process ends with it.
    pub(super) fn send(&self, kind: Kind, flags: u8, request: u64, first: &[u8], second: &[u8]) -> bool {
        if !self.fits(first.len(), second.len()) {
            return false;
        }
        let Some(head) = head(kind, flags, request, first.len(), second.len()) else { return false };
        let fd = self.fd.lock();
        let parts = [&head[..], first, second];
        let mut written = loop {
            match writev(&*fd, &parts.map(IoSlice::new)) {
                Ok(written) => break written,
                Err(Errno::AGAIN) if wait_for(fd.as_fd(), PollFlags::OUT).is_ok() => {}
                Err(Errno::INTR) => {}
                Err(_) => die(),
            }
        };
        for part in parts {
            let skipped = written.min(part.len());
            written -= skipped;
            if write_all(fd.as_fd(), &part[skipped..]).is_err() {
                die();
            }
        }
        true
    }
}

fn head(kind: Kind, flags: u8, request: u64, first: usize, second: usize) -> Option<[u8; HEAD]> {
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&u32::try_from(4 + first + second).ok()?.to_le_bytes());
    (head[4], head[5]) = (kind as u8, flags);
    head[8..HEADER].copy_from_slice(&request.to_le_bytes());
    head[HEADER..].copy_from_slice(&u32::try_from(first).ok()?.to_le_bytes());
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::encode_with_flags;
    use std::io::Read as _;

    #[test]
    fn a_frame_that_the_pipe_takes_in_pieces_arrives_as_the_codec_makes_it() {
        let (read_end, write_end) = rustix::pipe::pipe().expect("pipe");
        let cap = 8 << 20;
        let second: Vec<u8> = (0..=250).cycle().take(1_000_003).collect();
        let expected = encode_with_flags(Kind::Result, 3, 9, b"first", &second, cap).expect("fits");
        let reader = std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut all = Vec::new();
                std::fs::File::from(read_end).read_to_end(&mut all).expect("read");
                all
            });
            let outbox = Outbox::new(write_end, cap);
            assert!(outbox.send(Kind::Result, 3, 9, b"first", &second));
            assert!(!outbox.send(Kind::Result, 3, 9, b"", &vec![0; cap]));
            drop(outbox);
            reader.join().expect("the reader")
        });
        assert!(reader == expected);
    }
}
