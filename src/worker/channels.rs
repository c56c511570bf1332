//! The worker's ends of its channels: taken away from fds 0 to 2, where user code is at home.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec, ioctl_fionbio, read, write};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::stdio::{dup2_stdin, dup2_stdout};

use crate::protocol::{Frame, HEADER, Header, Kind, VERSION};

/// A *go* frame is smaller than this.
const GO_CAP: usize = 4 << 10;

/// What *go* brought, ready for use. Whichever way the frames travel, requests are read from one
/// pipe and replies are written to one descriptor.
pub(super) struct Channels {
    /// What fd 0 was: cancels and the host's end come here.
    pub(super) control: OwnedFd,
    pub(super) requests: OwnedFd,
    pub(super) replies: OwnedFd,
    /// `None` if the host reads fd 1 itself and requests have a pipe of their own.
    pub(super) inline: Option<Inline>,
    pub(super) session: u64,
    pub(super) frame_cap: usize,
}

/// What there is besides when all frames come on fd 0 and leave on fd 1.
pub(super) struct Inline {
    /// Where the control thread puts the frames that it does not act upon itself.
    pub(super) requests: OwnedFd,
    /// What is written to fd 1 now; does not block.
    pub(super) stdout: OwnedFd,
}

/// Waits for *go* and sets up the channels that it asks for.
///
/// # Errors
/// Why this process cannot be a worker, in words.
pub(super) fn take() -> Result<Channels, String> {
    let system = |error: Errno| format!("setting up the channels failed: {error}");
    let control = fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(system)?;
    let (go, fds) = receive_go(&control)?;
    let [version, session, frame_cap] = go;
    if version != VERSION {
        return Err(format!("this host speaks version {version} of the protocol, not {VERSION}"));
    }
    let frame_cap = usize::try_from(frame_cap).map_err(|_| "the frame cap is too large".to_owned())?;
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(system)?;
    dup2_stdin(&null).map_err(system)?;
    if !fds.is_empty() {
        // The third is the memory file of the cancel flag: the control thread keeps a flag of its own.
        let Ok([requests, replies, _]) = <[OwnedFd; 3]>::try_from(fds) else {
            return Err("a go frame without all of its channels".to_owned());
        };
        return Ok(Channels { control, requests, replies, inline: None, session, frame_cap });
    }
    let replies = fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3).map_err(system)?;
    let (stdout, written) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
    ioctl_fionbio(&stdout, true).map_err(system)?;
    dup2_stdout(&written).map_err(system)?;
    let (requests, forwarded) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
    let inline = Some(Inline { requests: forwarded, stdout });
    Ok(Channels { control, requests, replies, inline, session, frame_cap })
}

/// The numbers of *go* and the descriptors that came with it.
pub(crate) fn receive_go(control: &OwnedFd) -> Result<([u64; 3], Vec<OwnedFd>), String> {
    let no_go = |what: &str| format!("{what}; it is for a remuda host to start this program");
    let mut bytes = vec![0; HEADER];
    let (mut have, fds) =
        first_bytes(control, &mut bytes).map_err(|error| no_go(&format!("reading fd 0 failed: {error}")))?;
    let mut wanted = HEADER;
    loop {
        if have == wanted {
            let header = Header::decode(&bytes, GO_CAP).map_err(|malformed| no_go(&malformed.to_string()))?;
            let Some(header) = header.filter(|header| header.kind == Kind::Go) else {
                return Err(no_go("the first frame is no go frame"));
            };
            wanted = HEADER + header.length;
            if have == wanted {
                break;
            }
            bytes.resize(wanted, 0);
        }
        match read_some(control.as_fd(), &mut bytes[have..wanted]) {
            Ok(0) => return Err(no_go("fd 0 ended before a go frame")),
            Ok(count) => have += count,
            Err(error) => return Err(no_go(&format!("reading fd 0 failed: {error}"))),
        }
    }
    let frame = Frame::decode(&bytes, GO_CAP).map_err(|malformed| no_go(&malformed.to_string()))?;
    let numbers = frame.map_or(&[][..], |(frame, _)| frame.first);
    let number = |at: usize| Some(u64::from_le_bytes(*numbers.get(at..)?.first_chunk()?));
    match (number(0), number(8), number(16)) {
        (Some(version), Some(session), Some(cap)) => Ok(([version, session, cap], fds)),
        _ => Err(no_go("a go frame without its numbers")),
    }
}

/// The first bytes on fd 0; descriptors come with the very first, if fd 0 is a socket at all.
fn first_bytes(control: &OwnedFd, bytes: &mut [u8]) -> rustix::io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    loop {
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(bytes)];
        match recvmsg(control, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => {
                let fds = ancillary.drain().filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                    _ => None,
                });
                return Ok((message.bytes, fds.flatten().collect()));
            }
            Err(Errno::NOTSOCK) => return Ok((read_some(control.as_fd(), bytes)?, Vec::new())),
            Err(Errno::AGAIN) => wait_for(control.as_fd(), PollFlags::IN)?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads at least one byte, or zero at the end. A relay may have made the descriptor non-blocking.
pub(super) fn read_some(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    loop {
        match read(fd, &mut *buffer) {
            Err(Errno::AGAIN) => wait_for(fd, PollFlags::IN)?,
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

pub(super) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match write(fd, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::AGAIN) => wait_for(fd, PollFlags::OUT)?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) fn wait_for(fd: BorrowedFd<'_>, what: PollFlags) -> rustix::io::Result<()> {
    match poll(&mut [PollFd::from_borrowed_fd(fd, what)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Waits until one of the two is readable; whether each is.
pub(super) fn either(fd: BorrowedFd<'_>, other: BorrowedFd<'_>) -> rustix::io::Result<(bool, bool)> {
    let mut fds = [fd, other].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    loop {
        match poll(&mut fds, None) {
            Ok(_) => {
                let [first, second] = fds.map(|fd| !fd.revents().is_empty());
                return Ok((first, second));
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
