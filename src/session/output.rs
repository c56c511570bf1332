//! What a worker writes to stdout and stderr: read piece by piece, kept up to a cap.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::io::{Errno, ioctl_fionread, read};
use rustix::pipe::fcntl_setpipe_size;

const FIRST_PIECE: usize = 4 << 10;
/// Bytes asked for at once; a default pipe holds as many.
const PIECE: usize = 64 << 10;
/// A pipe that has carried this much in one execution is widened.
const BUSY: usize = 256 << 10;
const WIDE_PIPE: usize = 1 << 20;

/// The first and the last bytes of a stream; what lies between is counted and dropped.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    /// Checked piece by piece, while it is in the processor's cache.
    head: String,
    decoder: TextDecoder,
    /// Bytes that the head still takes.
    room: usize,
    tail: VecDeque<u8>,
    tail_cap: usize,
    dropped: u64,
    /// What the last read brought; kept for the next one.
    piece: Vec<u8>,
}

/// What one read of a pipe came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// This many bytes.
    Bytes(usize),
    /// Nothing is there now.
    Empty,
    /// Every writer has closed it.
    Closed,
}

impl Capture {
    /// Keeps `cap` bytes: half from the start, half from the end.
    pub(crate) fn new(cap: usize) -> Capture {
        Capture { room: cap - cap / 2, tail_cap: cap / 2, ..Capture::default() }
    }

    /// Reads once from `pipe` and shows what came to `observe`.
    pub(crate) fn read_from(&mut self, pipe: &Pipe, observe: &mut dyn FnMut(&[u8])) -> Read {
        let mut piece = std::mem::take(&mut self.piece);
        // Most executions print little: begin small.
        let size = match piece.capacity() {
            0 => FIRST_PIECE,
            _ if pipe.wide => WIDE_PIPE,
            _ => PIECE,
        };
        piece.clear();
        piece.reserve(size);
        let read = read_into(pipe, &mut piece);
        observe(&piece);
        self.push(&piece);
        self.piece = piece;
        read
    }

    /// Takes bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let (head, tail) = bytes.split_at(self.room.min(bytes.len()));
        self.room -= head.len();
        self.decoder.decode_into(head, &mut self.head);
        self.push_tail(tail);
    }

    fn push_tail(&mut self, bytes: &[u8]) {
        let surplus = bytes.len().saturating_sub(self.tail_cap);
        let kept = &bytes[surplus..];
        let over = (self.tail.len() + kept.len()).saturating_sub(self.tail_cap);
        self.tail.drain(..over);
        self.tail.extend(kept);
        self.dropped += (surplus + over) as u64;
    }

    /// The last bytes that were kept, about `count` of them, as text.
    pub(crate) fn last(&self, count: usize) -> String {
        let (front, back) = self.tail.as_slices();
        let skipped = self.tail.len().saturating_sub(count);
        let tail =
            [&front[skipped.min(front.len())..], &back[skipped.saturating_sub(front.len())..]].concat();
        let from_head = count.saturating_sub(tail.len());
        let start = self.head.ceil_char_boundary(self.head.len().saturating_sub(from_head));
        [&self.head[start..], &String::from_utf8_lossy(&self.decoder.held), &String::from_utf8_lossy(&tail)]
            .concat()
    }

    /// The stream as text, with a marker where bytes were dropped, and their number. Characters that
    /// the caps cut in two are dropped whole.
    pub(crate) fn finish(mut self) -> (String, u64) {
        let tail = self.tail.make_contiguous();
        if self.dropped == 0 {
            self.decoder.decode_into(tail, &mut self.head);
            self.head.extend(self.decoder.finish());
            return (self.head, 0);
        }
        let start = cut_at_start(tail);
        let dropped = self.dropped + (self.decoder.held.len() + start) as u64;
        let tail = String::from_utf8_lossy(&tail[start..]);
        (format!("{}\n[… {dropped} bytes dropped …]\n{tail}", self.head), dropped)
    }
}

/// Bytes at the end that begin a character without completing it.
fn cut_at_end(bytes: &[u8]) -> usize {
    let last = &bytes[bytes.len().saturating_sub(3)..];
    let Some(start) = last.iter().rposition(|byte| *byte >= 0xC0) else { return 0 };
    match std::str::from_utf8(&last[start..]) {
        Err(error) if error.error_len().is_none() => last.len() - start,
        _ => 0,
    }
}

/// Bytes at the start that continue a character that began before.
fn cut_at_start(bytes: &[u8]) -> usize {
    bytes.iter().take(3).take_while(|byte| matches!(byte, 0x80..0xC0)).count()
}

/// Bytes to text, piece by piece: a character whose bytes come in two pieces is held back until it
/// is whole; what is no UTF-8 is replaced.
#[derive(Debug, Default)]
pub(crate) struct TextDecoder {
    held: Vec<u8>,
}

impl TextDecoder {
    pub(crate) fn decode(&mut self, bytes: &[u8]) -> String {
        let mut text = String::new();
        self.decode_into(bytes, &mut text);
        text
    }

    fn decode_into(&mut self, bytes: &[u8], text: &mut String) {
        let joined;
        let bytes = if self.held.is_empty() {
            bytes
        } else {
            joined = [&self.held[..], bytes].concat();
            &joined
        };
        let (whole, rest) = bytes.split_at(bytes.len() - cut_at_end(bytes));
        match std::str::from_utf8(whole) {
            Ok(valid) => text.push_str(valid),
            Err(_) => text.push_str(&String::from_utf8_lossy(whole)),
        }
        self.held.clear();
        self.held.extend_from_slice(rest);
    }

    /// What was held back, if anything.
    pub(crate) fn finish(&mut self) -> Option<String> {
        let held = std::mem::take(&mut self.held);
        (!held.is_empty()).then(|| String::from_utf8_lossy(&held).into_owned())
    }
}

/// The host's end of a worker's stdout or stderr.
#[derive(Debug)]
pub(crate) struct Pipe {
    fd: OwnedFd,
    carried: usize,
    wide: bool,
}

impl Pipe {
    pub(crate) fn new(fd: OwnedFd) -> Pipe {
        Pipe { fd, carried: 0, wide: false }
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// How many bytes wait in it now.
    pub(crate) fn waiting(&self) -> usize {
        ioctl_fionread(&self.fd).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// Counts what was read; widens a busy pipe once. The kernel may refuse that to a user with many
    /// pipes: then it stays as it is.
    pub(crate) fn carried(&mut self, bytes: usize) {
        self.carried = self.carried.saturating_add(bytes);
        if !self.wide && self.carried > BUSY {
            self.wide = true;
            let _ = fcntl_setpipe_size(&self.fd, WIDE_PIPE);
        }
    }

    /// Reads and forgets what waits in it now, however fast more comes; returns the last bytes of it,
    /// how many there were, and whether anybody can write more.
    pub(crate) fn discard(&mut self) -> (Vec<u8>, u64, bool) {
        let mut left = self.waiting();
        let (mut last, mut total) = (Vec::new(), 0);
        // One read at least: that a pipe is closed shows only there.
        loop {
            let mut buffer = Vec::with_capacity(left.clamp(1, PIECE));
            match read_into(self, &mut buffer) {
                Read::Bytes(count) => {
                    left -= count.min(left);
                    total += count as u64;
                    last = buffer;
                }
                Read::Empty => return (last, total, true),
                Read::Closed => return (last, total, false),
            }
            if left == 0 {
                return (last, total, true);
            }
        }
    }
}

impl AsFd for Pipe {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads once into the spare capacity of `buffer`.
fn read_into(pipe: &Pipe, buffer: &mut Vec<u8>) -> Read {
    loop {
        match read(&pipe.fd, spare_capacity(buffer)) {
            Ok(0) => return Read::Closed,
            Ok(count) => return Read::Bytes(count),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Read::Empty,
            // A pipe that cannot be read is as good as closed.
            Err(_) => return Read::Closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{ioctl_fionbio, write};
    use rustix::pipe::{PipeFlags, pipe_with};

    fn filled(text: &[u8]) -> (Pipe, OwnedFd) {
        let (output, input) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
        ioctl_fionbio(&output, true).expect("nonblocking");
        write(&input, text).expect("write");
        (Pipe::new(output), input)
    }

    fn drain(capture: &mut Capture, pipe: &Pipe, seen: &mut Vec<u8>) {
        while let Read::Bytes(_) = capture.read_from(pipe, &mut |bytes| seen.extend_from_slice(bytes)) {}
    }

    #[test]
    fn head_and_tail_are_kept_and_the_middle_is_counted() {
        let text: Vec<u8> = (0..100).map(|i| b'0' + i % 10).collect();
        let (pipe, _input) = filled(&text);
        let (mut capture, mut seen) = (Capture::new(10), Vec::new());
        drain(&mut capture, &pipe, &mut seen);
        assert_eq!(seen, text, "a callback sees every byte");
        assert_eq!(capture.last(3), "789");
        let (kept, dropped) = capture.finish();
        assert_eq!(dropped, 90);
        assert_eq!(kept, "01234\n[… 90 bytes dropped …]\n56789");
    }

    #[test]
    fn characters_that_a_cap_cuts_are_dropped_whole() {
        let mut capture = Capture::new(7);
        capture.push("aü€üb€c".as_bytes());
        let (kept, dropped) = capture.finish();
        assert_eq!(kept, "aü\n[… 9 bytes dropped …]\nc");
        assert_eq!(dropped, 9);
    }

    #[test]
    fn text_is_the_same_however_its_bytes_are_cut() {
        let text = "a→ü𝄞\u{10FFFF}z".as_bytes();
        let mixed = [text, b"\xff\xe2\x82", text, b"\xf0\x9f"].concat();
        for size in 1..mixed.len() {
            let mut decoder = TextDecoder::default();
            let mut whole: String = mixed.chunks(size).map(|piece| decoder.decode(piece)).collect();
            whole.extend(decoder.finish());
            assert_eq!(whole, String::from_utf8_lossy(&mixed), "pieces of {size} bytes");
        }
    }

    #[test]
    fn nothing_is_dropped_below_the_cap() {
        let (pipe, _input) = filled("grüße".as_bytes());
        let mut capture = Capture::new(100);
        drain(&mut capture, &pipe, &mut Vec::new());
        assert_eq!(capture.finish(), ("grüße".to_owned(), 0));
    }

    #[test]
    fn a_cap_of_zero_keeps_nothing_but_counts() {
        let (pipe, _input) = filled(b"abc");
        let mut capture = Capture::new(0);
        drain(&mut capture, &pipe, &mut Vec::new());
        assert_eq!(capture.finish().1, 3);
    }

    #[test]
    fn discarding_ends_with_what_was_there() {
        let (mut pipe, input) = filled(b"late");
        assert_eq!(pipe.discard(), (b"late".to_vec(), 4, true));
        assert_eq!(pipe.discard(), (Vec::new(), 0, true));
        drop(input);
        assert_eq!(pipe.discard(), (Vec::new(), 0, false));
    }
}
