//! The host's side of a worker's channels: opening them, waiting on all of them at once, frames in
//! and out. No thread: whoever wants an answer waits here, with one absolute deadline.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{Errno, ioctl_fionbio, pread, pwrite, read, write};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, send,
    sendmsg, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};

use super::output::Pipe;
use super::process::{ChildEnds, Process};
use super::runtime::Channels;
use crate::cancel::Wake;
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::protocol::{self, Frame, HEADER, Header, Kind, Malformed};

/// Bytes of a reply that are read at first; most replies fit.
const FIRST_READ: usize = 4 << 10;
/// A reply buffer larger than this is given back after use: idle sessions stay small.
const KEPT_BUFFER: usize = 8 << 10;

/// Which channels an epoll event names; bits of [`Ready`].
const REPLIES: u64 = 1;
const STDOUT: u64 = 2;
const STDERR: u64 = 4;
const EXIT: u64 = 8;
const WAKE: u64 = 16;
const REQUESTS: u64 = 32;

/// What a wait found ready; empty after the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ready(u64);

impl Ready {
    pub(crate) fn replies(self) -> bool {
        self.0 & REPLIES != 0
    }
    pub(crate) fn stdout(self) -> bool {
        self.0 & STDOUT != 0
    }
    pub(crate) fn stderr(self) -> bool {
        self.0 & STDERR != 0
    }
    pub(crate) fn exit(self) -> bool {
        self.0 & EXIT != 0
    }
    pub(crate) fn wake(self) -> bool {
        self.0 & WAKE != 0
    }
    pub(crate) fn requests(self) -> bool {
        self.0 & REQUESTS != 0
    }
    pub(crate) fn nothing(self) -> bool {
        self.0 == 0
    }
}

/// Wakes a thread that waits for a worker: an eventfd in its epoll.
#[derive(Debug)]
pub(crate) struct WakeFd(OwnedFd);

impl Wake for WakeFd {
    fn wake(&self) {
        // Fails only when the counter is full, that is, when the waiter has a wake-up pending.
        let _ = write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl WakeFd {
    pub(crate) fn new() -> rustix::io::Result<WakeFd> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(WakeFd)
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(crate) fn clear(&self) {
        let _ = read(&self.0, &mut [0_u8; 8]);
    }
}

/// The worker's ends of the data channels.
struct DataEnds {
    requests: OwnedFd,
    replies: OwnedFd,
}

/// Channels that exist before the process does.
pub(crate) struct Unstarted {
    control: OwnedFd,
    data: Option<(OwnedFd, OwnedFd)>,
    /// On their way with the *go* frame, or with *fork*.
    data_ends: Option<DataEnds>,
    flag: OwnedFd,
    stdout: Option<OwnedFd>,
    stderr: OwnedFd,
}

/// All channels of one worker.
#[derive(Debug)]
pub(crate) struct Transport {
    control: OwnedFd,
    /// Requests and replies; with [`Channels::Stdio`] both are the control socket.
    data: Option<(OwnedFd, OwnedFd)>,
    pub(crate) stdout: Option<Pipe>,
    pub(crate) stderr: Option<Pipe>,
    epoll: OwnedFd,
    wake: Arc<WakeFd>,
    /// Two numbers: of the request that shall stop, which the worker maps; of the last reset that the worker
    /// has done without an answer so far.
    flag: OwnedFd,
    inbox: Vec<u8>,
    /// Bytes at the start of the inbox that are done with.
    consumed: usize,
    /// Whether the reply pipe may hold more, or have been closed, without another event: after each
    /// read, until one finds nothing, or an answer was complete.
    more: bool,
    frame_cap: usize,
}

impl Unstarted {
    /// Opens the channels; returns ours and those of the child.
    pub(crate) fn open(channels: Channels) -> rustix::io::Result<(Unstarted, ChildEnds)> {
        let (control, stdin) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        ioctl_fionbio(&control, true)?;
        let (stderr, child_stderr) = reading_pipe()?;
        let flag = memfd_create("remuda-cancel", MemfdFlags::CLOEXEC)?;
        ftruncate(&flag, 16)?;
        if channels == Channels::Stdio {
            let child_stdout = rustix::io::fcntl_dupfd_cloexec(&stdin, 3)?;
            let ends = ChildEnds { stdin, stdout: child_stdout, stderr: child_stderr };
            let unstarted = Unstarted { control, data: None, data_ends: None, flag, stdout: None, stderr };
            return Ok((unstarted, ends));
        }
        let (stdout, child_stdout) = reading_pipe()?;
        let (replies, worker_replies) = reading_pipe()?;
        let (worker_requests, requests) = pipe_with(PipeFlags::CLOEXEC)?;
        ioctl_fionbio(&requests, true)?;
        let ends = ChildEnds { stdin, stdout: child_stdout, stderr: child_stderr };
        let data_ends = Some(DataEnds { requests: worker_requests, replies: worker_replies });
        let data = Some((requests, replies));
        Ok((Unstarted { control, data, data_ends, flag, stdout: Some(stdout), stderr }, ends))
    }

    /// Tells the worker to go: its boot code, the *go* frame with the data channels.
    pub(crate) fn go(
        mut self,
        process: &Process,
        boot: &[u8],
        (frame_cap, history): (usize, u32),
        deadline: Moment,
    ) -> rustix::io::Result<Transport> {
        let control = self.control.as_fd();
        unless_closed(write_all(control, boot, deadline))?;
        let numbers = protocol::go_numbers(process.session().0, frame_cap, history);
        let go = protocol::encode(Kind::Go, 0, &numbers, b"", frame_cap).ok_or(Errno::TOOBIG)?;
        match self.data_ends.take() {
            None => unless_closed(write_all(control, &go, deadline))?,
            Some(ends) => {
                let fds = [ends.requests.as_fd(), ends.replies.as_fd(), self.flag.as_fd()];
                unless_closed(send_with_fds(control, &go, &fds, deadline))?;
            }
        }
        self.watched(process, frame_cap)
    }

    /// Has a template give all of the worker's ends to a child, by one frame on this socket.
    pub(crate) fn send_ends(
        &mut self,
        template: BorrowedFd<'_>,
        frame: &[u8],
        ends: &ChildEnds,
    ) -> rustix::io::Result<()> {
        let Some(data) = self.data_ends.take() else { return Err(Errno::INVAL) };
        let fds = [&ends.stdin, &ends.stdout, &ends.stderr, &data.requests, &data.replies, &self.flag];
        // A template that does not take a small frame at once is stuck.
        send_with_fds(template, frame, &fds.map(AsFd::as_fd), Moment::now())
    }

    /// What the session waits on.
    pub(crate) fn watched(self, process: &Process, frame_cap: usize) -> rustix::io::Result<Transport> {
        let transport = Transport {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            control: self.control,
            data: self.data,
            stdout: self.stdout.map(Pipe::new),
            stderr: Some(Pipe::new(self.stderr)),
            wake: Arc::new(WakeFd::new()?),
            flag: self.flag,
            inbox: Vec::new(),
            consumed: 0,
            more: false,
            frame_cap,
        };
        transport.watch(transport.replies_fd(), REPLIES)?;
        if let Some(stdout) = &transport.stdout {
            transport.watch(stdout.as_fd(), STDOUT)?;
        }
        if let Some(stderr) = &transport.stderr {
            transport.watch(stderr.as_fd(), STDERR)?;
        }
        transport.watch(process.pidfd(), EXIT)?;
        transport.watch(transport.wake.0.as_fd(), WAKE)?;
        Ok(transport)
    }
}

impl Transport {
    fn watch(&self, fd: BorrowedFd<'_>, bit: u64) -> rustix::io::Result<()> {
        let flags = match bit {
            REQUESTS => EventFlags::OUT,
            // Edges are cheaper: a level is looked at again by the next wait, when nothing is there any
            // more. See `more`.
            REPLIES if self.data.is_some() => EventFlags::IN | EventFlags::ET,
            _ => EventFlags::IN,
        };
        epoll::add(&self.epoll, fd, EventData::new_u64(bit), flags)
    }

    /// Where a template is told to fork.
    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    fn requests_fd(&self) -> BorrowedFd<'_> {
        self.data.as_ref().map_or(self.control.as_fd(), |(requests, _)| requests.as_fd())
    }

    fn replies_fd(&self) -> BorrowedFd<'_> {
        self.data.as_ref().map_or(self.control.as_fd(), |(_, replies)| replies.as_fd())
    }

    /// Whether cancels travel among the requests, on the same socket.
    pub(crate) fn is_inline(&self) -> bool {
        self.data.is_none()
    }

    /// Readable whenever the worker sent anything or ended.
    pub(crate) fn events_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Wakes a thread that waits here.
    pub(crate) fn waker(&self) -> &Arc<WakeFd> {
        &self.wake
    }

    /// Waits until something is ready or the deadline has passed (`None`: no deadline).
    pub(crate) fn wait(&self, deadline: Option<Moment>) -> rustix::io::Result<Ready> {
        let mut events = [MaybeUninit::<Event>::uninit(); 8];
        loop {
            let timeout = match deadline {
                _ if self.more => Some(Timespec { tv_sec: 0, tv_nsec: 0 }),
                deadline => deadline.map(|deadline| timespec(deadline.saturating_since(Moment::now()))),
            };
            match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
                Ok((ready, _)) => {
                    let first = if self.more { REPLIES } else { 0 };
                    return Ok(Ready(ready.iter().fold(first, |bits, event| bits | event.data.u64())));
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for a reply, the end of the process or a wake-up, but not for output: that stays where it is.
    pub(crate) fn wait_for_reply(&self, pidfd: BorrowedFd<'_>, limit: Duration) -> rustix::io::Result<()> {
        let fds = [self.replies_fd(), pidfd, self.wake.0.as_fd()];
        let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut fds, Some(&timespec(limit))) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Has the next wait report the replies: an edge may have been seen without reading to its end.
    pub(crate) fn look_again(&mut self) {
        self.more = self.data.is_some();
    }

    /// What is ready now, without waiting.
    pub(crate) fn look(&self) -> rustix::io::Result<Ready> {
        let mut events = [MaybeUninit::<Event>::uninit(); 8];
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, &mut events, Some(&zero)) {
            Ok((ready, _)) => Ok(Ready(ready.iter().fold(0, |bits, event| bits | event.data.u64()))),
            Err(Errno::INTR) => Ok(Ready(0)),
            Err(error) => Err(error),
        }
    }

    /// Writes as much of `bytes` as the worker takes now; returns how much that was.
    pub(crate) fn write_some(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        match write(self.requests_fd(), bytes) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            other => other,
        }
    }

    /// Whether [`wait`](Transport::wait) reports that the worker takes more of a request.
    pub(crate) fn watch_requests(&self, on: bool) -> rustix::io::Result<()> {
        match (on, self.data.is_some()) {
            (true, true) => self.watch(self.requests_fd(), REQUESTS),
            (false, true) => epoll::delete(&self.epoll, self.requests_fd()),
            // One socket for both directions: its one registration covers both.
            (on, false) => {
                let flags = if on { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
                let bits = if on { REPLIES | REQUESTS } else { REPLIES };
                epoll::modify(&self.epoll, self.control.as_fd(), EventData::new_u64(bits), flags)
            }
        }
    }

    /// Asks the worker to stop this request: sets the flag, then sends the frame that interrupts.
    pub(crate) fn cancel(&self, request: u64, attempt: u8) {
        let _ = pwrite(&self.flag, &request.to_ne_bytes(), 0);
        let frame = protocol::encode_with_flags(Kind::Cancel, attempt, request, b"", b"", self.frame_cap);
        if let Some(frame) = frame {
            // A worker that does not read its control socket is killed after its grace.
            let _ = send(&self.control, &frame, SendFlags::NOSIGNAL);
        }
    }

    /// Whether the worker has done this reset, and runs the request behind it.
    pub(crate) fn has_marked(&self, reset: u64) -> bool {
        let mut mark = [0; 8];
        pread(&self.flag, &mut mark, 8) == Ok(8) && u64::from_ne_bytes(mark) == reset
    }

    /// Reads once from the reply channel. `Ok(false)` when the worker has closed it.
    pub(crate) fn read_replies(&mut self) -> rustix::io::Result<bool> {
        // What is left of the last read moves to the front: at most a part of one frame.
        self.inbox.drain(..self.consumed);
        self.consumed = 0;
        let missing = match Header::decode(&self.inbox, self.frame_cap) {
            Ok(Some(header)) => (HEADER + header.length).saturating_sub(self.inbox.len()),
            // Too short, or malformed: `next_frame` tells.
            Ok(None) | Err(_) => 0,
        };
        // Memory follows what has arrived, not what a header announces.
        self.inbox.reserve(missing.clamp(FIRST_READ, 1 << 20));
        let fd = self.data.as_ref().map_or(&self.control, |(_, replies)| replies);
        match read(fd, spare_capacity(&mut self.inbox)) {
            Ok(0) | Err(Errno::CONNRESET) => Ok(false),
            Ok(_) | Err(Errno::INTR) => {
                self.more = self.data.is_some();
                Ok(true)
            }
            Err(Errno::AGAIN) => {
                self.more = false;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// The answer that was waited for is there: nobody reads on. What else the pipe may hold is met by
    /// the first read of the next request, and belongs to none.
    pub(crate) fn answered(&mut self) {
        self.more = false;
    }

    /// The first frame in the inbox, if it is complete; [`consume`](Transport::consume) removes it.
    pub(crate) fn next_frame(&self) -> Result<Option<(Frame<'_>, usize)>, Malformed> {
        Frame::decode(&self.inbox[self.consumed..], self.frame_cap)
    }

    /// Whether bytes wait that belong to no request.
    pub(crate) fn has_unread(&self) -> bool {
        self.consumed < self.inbox.len()
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        self.consumed += bytes;
        if self.consumed < self.inbox.len() {
            return;
        }
        self.inbox.clear();
        self.consumed = 0;
        if self.inbox.capacity() > KEPT_BUFFER {
            self.inbox.shrink_to(KEPT_BUFFER);
        }
    }

    /// A stream that every writer has closed would be ready for ever.
    pub(crate) fn close_stdout(&mut self) {
        if let Some(pipe) = self.stdout.take() {
            let _ = epoll::delete(&self.epoll, pipe.fd());
        }
    }

    /// See [`close_stdout`](Transport::close_stdout).
    pub(crate) fn close_stderr(&mut self) {
        if let Some(pipe) = self.stderr.take() {
            let _ = epoll::delete(&self.epoll, pipe.fd());
        }
    }
}

/// A pipe whose reading end, ours, does not block.
fn reading_pipe() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let (output, input) = pipe_with(PipeFlags::CLOEXEC)?;
    ioctl_fionbio(&output, true)?;
    Ok((output, input))
}

/// A worker that does not take its first words has ended, most likely: waiting for *ready* tells how,
/// and with which last words.
fn unless_closed(sent: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match sent {
        Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
        other => other,
    }
}

/// Writes everything to the control socket before the deadline.
fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8], deadline: Moment) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match send(fd, bytes, SendFlags::NOSIGNAL) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::AGAIN) => wait_writable(fd, deadline)?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends a small frame with file descriptors on its first byte.
fn send_with_fds(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    deadline: Moment,
) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(6))];
    loop {
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
        match sendmsg(fd, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(sent) => return write_all(fd, &bytes[sent..], deadline),
            Err(Errno::AGAIN) => wait_writable(fd, deadline)?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn wait_writable(fd: BorrowedFd<'_>, deadline: Moment) -> rustix::io::Result<()> {
    let left = deadline.saturating_since(Moment::now());
    match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], Some(&timespec(left))) {
        Ok(0) => Err(Errno::TIMEDOUT),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A duration as the kernel takes it; longer than the kernel can count is for ever.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// An error of a channel, in words.
pub(crate) fn channel_error(error: Errno) -> Error {
    Error::io("talking to a worker", error)
}
