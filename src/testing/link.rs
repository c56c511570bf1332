//! A scripted worker's end of its channels, and the process that holds its place.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::net::{RecvFlags, recv};

use crate::protocol::{self, Frame, Kind};
use crate::session::stand_in::Body;
use crate::session::{ChildEnds, Stream};
use crate::worker::receive_go;

/// Bytes that are read at once.
const READ: usize = 32 << 10;

/// Dropping it closes the channels and ends the process.
pub(super) struct Link {
    pub(super) pid: u32,
    pidfd: OwnedFd,
    /// The process's stdin.
    life: OwnedFd,
    control: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    requests: OwnedFd,
    replies: OwnedFd,
    pub(super) frame_cap: usize,
    unread: Vec<u8>,
    unheard: Vec<u8>,
}

/// It is over: the process has ended, the host has gone or wants the worker to leave.
pub(super) struct Over;

impl From<Errno> for Over {
    fn from(_: Errno) -> Over {
        Over
    }
}

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Came {
    /// There may be something to [`hear`](Link::hear).
    Word,
    /// What was waited for.
    It,
    /// The limit.
    Nothing,
}

/// A link that waits for *go*.
pub(super) struct Unlinked {
    pub(super) ends: ChildEnds,
    pub(super) life: OwnedFd,
    pub(super) body: Body,
}

impl Unlinked {
    /// A flood that nobody reads must not keep the thread from seeing the end.
    pub(super) fn new(ends: ChildEnds, life: OwnedFd, body: Body) -> io::Result<Unlinked> {
        ioctl_fionbio(&ends.stdout, true)?;
        ioctl_fionbio(&ends.stderr, true)?;
        Ok(Unlinked { ends, life, body })
    }

    pub(super) fn go(self) -> Result<Link, Over> {
        let Unlinked { ends, life, body } = self;
        loop {
            let [ended, word] = ready([body.pidfd.as_fd(), ends.stdin.as_fd()].map(readable), None)?;
            if ended {
                return Err(Over);
            }
            if word {
                break;
            }
        }
        let ([_, _, frame_cap], fds) = receive_go(&ends.stdin).map_err(|_| Over)?;
        // The third is the memory file of the cancel flag; the frame is enough here.
        let [requests, replies, _] = <[OwnedFd; 3]>::try_from(fds).map_err(|_| Over)?;
        ioctl_fionbio(&replies, true)?;
        Ok(Link {
            pid: body.pid,
            pidfd: body.pidfd,
            life,
            control: ends.stdin,
            stdout: ends.stdout,
            stderr: ends.stderr,
            requests,
            replies,
            frame_cap: usize::try_from(frame_cap).map_err(|_| Over)?,
            unread: Vec::new(),
            unheard: Vec::new(),
        })
    }
}

impl Link {
    /// The next frame from the host, given to `take`; `None` if a word came instead.
    pub(super) fn next_frame<T>(&mut self, take: impl FnOnce(&Frame<'_>) -> T) -> Result<Option<T>, Over> {
        loop {
            if let Some((frame, used)) = Frame::decode(&self.unread, self.frame_cap).map_err(|_| Over)? {
                let taken = take(&frame);
                self.unread.drain(..used);
                return Ok(Some(taken));
            }
            if self.wait(Some(self.requests.as_fd()), None)? != Came::It {
                return Ok(None);
            }
            if !read_into(&mut self.unread, |buffer| read(&self.requests, buffer))? {
                return Err(Over);
            }
        }
    }

    /// The cancels that have come: number of the request, attempt. The end of the host is an error.
    pub(super) fn hear(&mut self) -> Result<Vec<(u64, u8)>, Over> {
        let receive =
            |buffer: &mut [u8]| recv(&self.control, buffer, RecvFlags::DONTWAIT).map(|(count, _)| count);
        match read_into(&mut self.unheard, receive) {
            Ok(true) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Vec::new()),
            Ok(false) | Err(_) => return Err(Over),
        }
        let mut cancels = Vec::new();
        while let Some((frame, used)) = Frame::decode(&self.unheard, self.frame_cap).map_err(|_| Over)? {
            if frame.header.kind == Kind::Cancel {
                cancels.push((frame.header.request, frame.header.flags));
            }
            self.unheard.drain(..used);
        }
        Ok(cancels)
    }

    /// Waits for a word from the host, for the end, and for something else to become readable.
    pub(super) fn wait(&self, other: Option<BorrowedFd<'_>>, limit: Option<Duration>) -> Result<Came, Over> {
        let fds = [self.pidfd.as_fd(), self.control.as_fd(), other.unwrap_or(self.control.as_fd())];
        let [ended, word, it] = ready(fds.map(readable), limit)?;
        match (ended, word, it) {
            (true, ..) => Err(Over),
            // Cancels first: one that was sent before a request is known when that is served.
            (_, true, _) => Ok(Came::Word),
            (.., true) => Ok(Came::It),
            _ if limit.is_some() => Ok(Came::Nothing),
            _ => Ok(Came::Word),
        }
    }

    pub(super) fn reply(&self, bytes: &[u8]) -> Result<(), Over> {
        self.write_all(self.replies.as_fd(), bytes)
    }

    pub(super) fn print(&self, stream: Stream, bytes: &[u8]) -> Result<(), Over> {
        let fd = if stream == Stream::Stdout { &self.stdout } else { &self.stderr };
        self.write_all(fd.as_fd(), bytes)
    }

    fn write_all(&self, fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Over> {
        while !bytes.is_empty() {
            match write(fd, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let [ended, _] = ready([readable(self.pidfd.as_fd()), (fd, PollFlags::OUT)], None)?;
                    if ended {
                        return Err(Over);
                    }
                }
                Err(_) => return Err(Over),
            }
        }
        Ok(())
    }

    /// The process ends by itself, in this way; then the channels close.
    pub(super) fn die(&self, how: &str, number: i32) -> Over {
        if write(&self.life, format!("{how} {number}\n").as_bytes()).is_ok() {
            while matches!(ready([readable(self.pidfd.as_fd())], None), Ok([false])) {}
        }
        Over
    }
}

/// Half of this frame, as a worker leaves it that is killed while it writes.
pub(super) fn half(frame: &[u8]) -> &[u8] {
    &frame[..(frame.len() / 2).max(protocol::HEADER / 2)]
}

/// Appends what there is; false at the end.
fn read_into(
    bytes: &mut Vec<u8>,
    read: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<bool> {
    let before = bytes.len();
    bytes.resize(before + READ, 0);
    let count = read(&mut bytes[before..]);
    bytes.truncate(before + *count.as_ref().unwrap_or(&0));
    Ok(count? > 0)
}

fn readable(fd: BorrowedFd<'_>) -> (BorrowedFd<'_>, PollFlags) {
    (fd, PollFlags::IN)
}

/// Waits until one of these is ready, or has been closed by the other side.
fn ready<const N: usize>(
    fds: [(BorrowedFd<'_>, PollFlags); N],
    limit: Option<Duration>,
) -> rustix::io::Result<[bool; N]> {
    let mut fds = fds.map(|(fd, what)| PollFd::from_borrowed_fd(fd, what));
    // Longer than the kernel can count is for ever.
    let limit = limit.and_then(|limit| limit.try_into().ok());
    match poll(&mut fds, limit.as_ref()) {
        Ok(_) => Ok(fds.map(|fd| !fd.revents().is_empty())),
        // Whoever waits looks again.
        Err(Errno::INTR) => Ok([false; N]),
        Err(error) => Err(error),
    }
}
