//! What a host says to a worker that forks, a template or a session of which a copy is made, and what it
//! hears. It travels on the control socket, because descriptors must come along.
//!
//! Children are let go of (`reap`) without an answer, from any thread; only one thread at a time has the
//! worker fork.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};

use super::answer::decode_error;
use super::process::{ChildEnds, Parent};
use super::transport::{Unstarted, WakeFd, timespec};
use super::{Cause, Process, SessionConfig, SessionId};
use crate::cancel::CancelToken;
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::protocol::{self, Frame, Kind};
use crate::sync::Mutex;

/// How long a worker has to fork: far beyond what the kernel needs, for one of many GiB too.
const FORK_LIMIT: Duration = Duration::from_secs(5);
/// Frames on the control socket are small.
const FRAME_CAP: usize = 64 << 10;
/// Flag of *fork*: the child has copies of the files in the working directory.
const WITH_FILES: u8 = 1;

/// What is said to one worker.
#[derive(Default)]
pub(crate) struct ForkLine {
    /// Held while it makes a process.
    talk: Mutex<Talk>,
    /// Frames that it has not taken yet.
    unsent: Mutex<Vec<u8>>,
}

/// The worker that forks.
#[derive(Clone, Copy)]
pub(crate) struct Peer<'a> {
    pub(crate) control: BorrowedFd<'a>,
    pub(crate) process: &'a Process,
}

/// What the new process is for.
pub(crate) struct Child<'a> {
    pub(crate) id: SessionId,
    pub(crate) config: &'a SessionConfig,
    pub(crate) directory: &'a Path,
    /// Whether the files of the worker's directory are to be copied there.
    pub(crate) with_files: bool,
    pub(crate) channels: (&'a mut Unstarted, ChildEnds),
}

/// The conversation so far.
#[derive(Default)]
struct Talk {
    /// The number of the last fork.
    last: u64,
    /// What it has said and nobody has looked at.
    bytes: Vec<u8>,
    /// That came along.
    descriptor: Option<OwnedFd>,
}

/// What it says to a fork.
#[derive(Debug)]
enum Answer {
    Forked(OwnedFd),
    Refused(String),
    Strange,
}

impl ForkLine {
    /// Has the worker make a process for a session; its limits are set.
    pub(crate) fn fork(
        &self,
        peer: Peer<'_>,
        child: Child<'_>,
        parent: Arc<dyn Parent>,
        stop: Option<&CancelToken>,
    ) -> Result<Process> {
        let Child { id, config, directory, with_files, channels: (unstarted, ends) } = child;
        let numbers = protocol::go_numbers(id.number(), config.frame_cap, config.history);
        let flags = if with_files { WITH_FILES } else { 0 };
        let (number, pidfd) = {
            let mut talk = self.talk.lock();
            talk.last += 1;
            let path = directory.as_os_str().as_bytes();
            let frame = protocol::encode_with_flags(Kind::Fork, flags, talk.last, &numbers, path, FRAME_CAP)
                .ok_or_else(|| failed(Errno::NAMETOOLONG))?;
            (talk.last, self.ask(peer, &mut talk, &frame, (unstarted, &ends), stop))
        };
        let worker = peer.process.worker_id();
        let process = pidfd.and_then(|pidfd| Process::forked(id, pidfd, (parent, number), worker, config));
        if process.is_err() {
            // Without its channels it ends by itself.
            self.reap(peer.control, number);
        }
        process
    }

    /// Has the worker wait for a child. Never blocks.
    pub(crate) fn reap(&self, control: BorrowedFd<'_>, child: u64) {
        let Some(frame) = protocol::encode(Kind::Reap, child, b"", b"", FRAME_CAP) else { return };
        let mut unsent = self.unsent.lock();
        unsent.extend_from_slice(&frame);
        // If it is gone, its children are waited for by `init`.
        flush(control, &mut unsent);
    }

    fn ask(
        &self,
        peer: Peer<'_>,
        talk: &mut Talk,
        frame: &[u8],
        channels: (&mut Unstarted, &ChildEnds),
        stop: Option<&CancelToken>,
    ) -> Result<OwnedFd> {
        let wake = Arc::new(WakeFd::new().map_err(failed)?);
        let _registration = stop.map(|stop| stop.register(Arc::<WakeFd>::clone(&wake)));
        let answer = self.send_fork(peer, frame, channels).and_then(|()| receive(peer, talk, &wake, stop));
        match answer {
            Ok(Answer::Forked(pidfd)) => Ok(pidfd),
            Ok(Answer::Refused(why)) => Err(failed(io::Error::other(why))),
            // Its answer will come, and the next who asks drops it.
            Err(Errno::CANCELED) => Err(Error::Cancelled),
            Ok(Answer::Strange) => {
                peer.process.kill_group(Cause::Protocol("a strange answer to fork".to_owned()));
                Err(failed(io::Error::new(io::ErrorKind::InvalidData, "its answer is none to a fork")))
            }
            Err(error) => {
                peer.process.kill_group(Cause::Retired);
                Err(failed(error))
            }
        }
    }

    fn send_fork(
        &self,
        peer: Peer<'_>,
        frame: &[u8],
        (unstarted, ends): (&mut Unstarted, &ChildEnds),
    ) -> rustix::io::Result<()> {
        let mut unsent = self.unsent.lock();
        flush(peer.control, &mut unsent);
        if !unsent.is_empty() {
            return Err(Errno::TIMEDOUT);
        }
        unstarted.send_ends(peer.control, frame, ends)
    }
}

/// Waits for the answer to the last fork.
fn receive(
    peer: Peer<'_>,
    talk: &mut Talk,
    wake: &WakeFd,
    stop: Option<&CancelToken>,
) -> rustix::io::Result<Answer> {
    let deadline = Moment::after(FORK_LIMIT);
    loop {
        let left = deadline.saturating_since(Moment::now());
        if left.is_zero() {
            return Err(Errno::TIMEDOUT);
        }
        let mut fds = [
            PollFd::from_borrowed_fd(peer.control, PollFlags::IN),
            PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(peer.process.pidfd(), PollFlags::IN),
        ];
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        if stop.is_some_and(CancelToken::is_cancelled) {
            return Err(Errno::CANCELED);
        }
        let ended = !fds[2].revents().is_empty();
        match receive_some(peer.control, talk) {
            Err(Errno::AGAIN) if ended => return Err(Errno::PIPE),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error),
            Ok(()) => {
                if let Some(answer) = talk.answer() {
                    return Ok(answer);
                }
            }
        }
    }
}

fn failed(error: impl Into<io::Error>) -> Error {
    Error::io("having a worker fork", error)
}

/// Sends what the socket takes now.
fn flush(control: BorrowedFd<'_>, unsent: &mut Vec<u8>) {
    while !unsent.is_empty() {
        match send(control, unsent, SendFlags::NOSIGNAL) {
            Ok(sent) => drop(unsent.drain(..sent)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return,
            Err(_) => unsent.clear(),
        }
    }
}

/// One read. The end of the stream is an error.
fn receive_some(control: BorrowedFd<'_>, talk: &mut Talk) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0_u8; 1024];
    let received =
        recvmsg(control, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            talk.descriptor = fds.next().or(talk.descriptor.take());
        }
    }
    if received.bytes == 0 {
        return Err(Errno::PIPE);
    }
    talk.bytes.extend_from_slice(&bytes[..received.bytes]);
    Ok(())
}

impl Talk {
    /// The answer to the last fork, once it is there. Those to earlier ones, which were given up, are
    /// dropped. (One read ends with the frame whose descriptor it brings: there is one at a time.)
    fn answer(&mut self) -> Option<Answer> {
        loop {
            let (header, why, used) = match Frame::decode(&self.bytes, FRAME_CAP) {
                Ok(None) => return None,
                Err(_) => return Some(Answer::Strange),
                Ok(Some((frame, used))) if frame.header.kind == Kind::Error => {
                    let why = decode_error(frame.first).map_or_else(|flaw| flaw, |error| error.to_string());
                    (frame.header, why, used)
                }
                Ok(Some((frame, used))) => (frame.header, String::new(), used),
            };
            self.bytes.drain(..used);
            let descriptor = if header.kind == Kind::Forked { self.descriptor.take() } else { None };
            if header.request < self.last {
                continue;
            }
            return Some(match (header.kind, descriptor) {
                _ if header.request > self.last => Answer::Strange,
                (Kind::Forked, Some(pidfd)) => Answer::Forked(pidfd),
                (Kind::Error, _) => Answer::Refused(why),
                _ => Answer::Strange,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn talk(frames: &[(Kind, u64)], descriptor: bool) -> Talk {
        let error = br#"{"type":"OSError","message":"no more","traceback":""}"#;
        let frame = |(kind, number): &(Kind, u64)| {
            let first: &[u8] = if *kind == Kind::Error { error } else { b"" };
            protocol::encode(*kind, *number, first, b"", FRAME_CAP).expect("small")
        };
        let file = || OwnedFd::from(File::open("/dev/null").expect("null"));
        Talk { last: 2, bytes: frames.iter().flat_map(frame).collect(), descriptor: descriptor.then(file) }
    }

    #[test]
    fn an_answer_to_a_fork_that_was_given_up_is_nobodys() {
        assert!(matches!(talk(&[(Kind::Forked, 2)], true).answer(), Some(Answer::Forked(_))));
        let mut late = talk(&[(Kind::Forked, 1)], true);
        assert!(late.answer().is_none() && late.descriptor.is_none());
        let refused = talk(&[(Kind::Error, 1), (Kind::Error, 2)], false).answer();
        assert!(matches!(refused, Some(Answer::Refused(why)) if why.contains("no more")));
        assert!(matches!(
            talk(&[(Kind::Error, 1), (Kind::Forked, 2)], true).answer(),
            Some(Answer::Forked(_))
        ));
    }

    #[test]
    fn what_is_no_answer_is_strange() {
        for frames in [[(Kind::Pong, 2)], [(Kind::Forked, 2)], [(Kind::Forked, 3)]] {
            assert!(matches!(talk(&frames, false).answer(), Some(Answer::Strange)), "{frames:?}");
        }
        let garbage = Talk { last: 1, bytes: vec![0xff; 64], descriptor: None }.answer();
        assert!(matches!(garbage, Some(Answer::Strange)));
        let mut cut = talk(&[(Kind::Forked, 2)], true);
        cut.bytes.truncate(10);
        assert!(cut.answer().is_none() && cut.descriptor.is_some());
    }
}
