//! The channels of one worker, on our side: opened, written and read without ever blocking.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use remuda::Channels;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, ftruncate, memfd_create};
use rustix::io::{Errno, ioctl_fionbio, pwrite, read, write};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
    socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};

use super::child::timespec;

/// A stream that we read, and what it has brought.
#[derive(Default)]
pub(super) struct Incoming {
    fd: Option<OwnedFd>,
    pub(super) bytes: Vec<u8>,
}

/// A stream that we write, and what it has not taken yet.
#[derive(Default)]
pub(super) struct Outgoing {
    fd: Option<OwnedFd>,
    unsent: Vec<u8>,
}

/// Our ends.
pub(super) struct Ends {
    /// Requests; with stdio also *go* and *cancel*.
    pub(super) requests: Outgoing,
    /// Only with pipes.
    pub(super) control: Outgoing,
    pub(super) replies: Incoming,
    /// Only with pipes.
    pub(super) stdout: Incoming,
    pub(super) stderr: Incoming,
    /// The number of the request that shall stop; only with pipes.
    flag: Option<OwnedFd>,
    /// What *go* hands over, until it has.
    handed: Vec<OwnedFd>,
}

impl Ends {
    /// Opens the channels; the second value is the worker's fds 0, 1 and 2.
    ///
    /// With stdio they are pipes, which is what wrappers give; or, as [`remuda::Session`] does it,
    /// fds 0 and 1 are one socket.
    pub(super) fn open(channels: Channels, one_socket: bool) -> rustix::io::Result<(Ends, [OwnedFd; 3])> {
        let (stderr, worker_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let stderr = Incoming::new(stderr)?;
        let none = Incoming::default;
        if channels == Channels::Stdio {
            let (requests, worker_stdin, replies, worker_stdout) = if one_socket {
                let (ours, theirs) = socket()?;
                let (ours_too, theirs_too) = (duplicate(&ours)?, duplicate(&theirs)?);
                (ours, theirs, ours_too, theirs_too)
            } else {
                let (worker_stdin, requests) = pipe_with(PipeFlags::CLOEXEC)?;
                let (replies, worker_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
                (requests, worker_stdin, replies, worker_stdout)
            };
            let ends = Ends {
                requests: Outgoing::new(requests)?,
                control: Outgoing::default(),
                replies: Incoming::new(replies)?,
                stdout: none(),
                stderr,
                flag: None,
                handed: Vec::new(),
            };
            return Ok((ends, [worker_stdin, worker_stdout, worker_stderr]));
        }
        let (control, worker_control) = socket()?;
        let (stdout, worker_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (worker_requests, requests) = pipe_with(PipeFlags::CLOEXEC)?;
        let (replies, worker_replies) = pipe_with(PipeFlags::CLOEXEC)?;
        let flag = memfd_create("remuda-cancel", MemfdFlags::CLOEXEC)?;
        ftruncate(&flag, 16)?;
        let handed = vec![worker_requests, worker_replies, duplicate(&flag)?];
        let ends = Ends {
            requests: Outgoing::new(requests)?,
            control: Outgoing::new(control)?,
            replies: Incoming::new(replies)?,
            stdout: Incoming::new(stdout)?,
            stderr,
            flag: Some(flag),
            handed,
        };
        Ok((ends, [worker_control, worker_stdout, worker_stderr]))
    }

    /// Sends *go* behind what was written before, with what it hands over on its first byte.
    pub(super) fn go(&mut self, frame: &[u8]) {
        if self.handed.is_empty() {
            self.requests.send(frame);
        } else {
            self.control.send_with(frame, &std::mem::take(&mut self.handed));
        }
    }

    /// Gives a template what a new worker needs of its channels: its fds 0, 1 and 2, and what *go* would
    /// hand over.
    pub(super) fn fork(&mut self, frame: &[u8], child: &mut Ends, standard: [OwnedFd; 3]) {
        let fds: Vec<OwnedFd> = standard.into_iter().chain(std::mem::take(&mut child.handed)).collect();
        self.control.send_with(frame, &fds);
    }

    /// What carries boot code, *go* and *cancel*.
    pub(super) fn control(&mut self) -> &mut Outgoing {
        if self.control.is_open() { &mut self.control } else { &mut self.requests }
    }

    /// Asks code that polls to stop.
    pub(super) fn raise_flag(&self, request: u64) {
        if let Some(flag) = &self.flag {
            let _ = pwrite(flag, &request.to_ne_bytes(), 0);
        }
    }

    /// Waits until something can be read or written, at most for `limit`, and does it.
    pub(super) fn pump(&mut self, limit: Duration) {
        let (mut incoming, mut outgoing) = (
            [&mut self.replies, &mut self.stdout, &mut self.stderr],
            [&mut self.requests, &mut self.control],
        );
        let mut polled = Vec::new();
        for fd in incoming.iter().filter_map(|stream| stream.fd.as_ref()) {
            polled.push(PollFd::new(fd, PollFlags::IN));
        }
        for stream in outgoing.iter().filter(|stream| !stream.unsent.is_empty()) {
            if let Some(fd) = &stream.fd {
                polled.push(PollFd::new(fd, PollFlags::OUT));
            }
        }
        // Whatever it finds, reading and writing below find out for themselves.
        let _ = poll(&mut polled, Some(&timespec(limit)));
        for stream in &mut incoming {
            stream.read_all();
        }
        for stream in &mut outgoing {
            stream.flush();
        }
    }
}

impl Incoming {
    fn new(fd: OwnedFd) -> rustix::io::Result<Incoming> {
        ioctl_fionbio(&fd, true)?;
        Ok(Incoming { fd: Some(fd), bytes: Vec::new() })
    }

    pub(super) fn is_open(&self) -> bool {
        self.fd.is_some()
    }

    /// Reads what is there, up to a MiB: nobody floods this program.
    pub(super) fn read_all(&mut self) {
        let Some(fd) = &self.fd else { return };
        let enough = self.bytes.len() + (1 << 20);
        while self.bytes.len() < enough {
            self.bytes.reserve(64 << 10);
            match read(fd, spare_capacity(&mut self.bytes)) {
                Ok(1..) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Ok(_) | Err(_) => {
                    self.fd = None;
                    return;
                }
            }
        }
    }
}

impl Outgoing {
    fn new(fd: OwnedFd) -> rustix::io::Result<Outgoing> {
        ioctl_fionbio(&fd, true)?;
        Ok(Outgoing { fd: Some(fd), unsent: Vec::new() })
    }

    fn is_open(&self) -> bool {
        self.fd.is_some()
    }

    pub(super) fn close(&mut self) {
        *self = Outgoing::default();
    }

    /// Sends as much as fits now; [`Ends::pump`] sends the rest.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        let _ = self.unsent.write_all(bytes);
        self.flush();
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.unsent.is_empty()
    }

    fn flush(&mut self) {
        let Some(fd) = &self.fd else { return self.unsent.clear() };
        let mut sent = 0;
        while sent < self.unsent.len() {
            match write(fd, &self.unsent[sent..]) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // It reads no more: what it says, or its end, tells the rest.
                Err(_) => return self.close(),
            }
        }
        self.unsent.drain(..sent);
    }

    /// Sends a few bytes with file descriptors on the first. What stands before them must have gone.
    fn send_with(&mut self, bytes: &[u8], fds: &[OwnedFd]) {
        let Some(fd) = &self.fd else { return };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(6))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let sent = sendmsg(fd, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).unwrap_or(0);
        self.send(&bytes[sent..]);
    }

    /// From now on a read at the other end brings one write, not more: for pipes.
    pub(super) fn in_packets(&mut self, on: bool) -> rustix::io::Result<()> {
        let Some(fd) = &self.fd else { return Ok(()) };
        let mut flags = fcntl_getfl(fd)?;
        flags.set(OFlags::DIRECT, on);
        fcntl_setfl(fd, flags)
    }
}

fn socket() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

fn duplicate(fd: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3)
}
