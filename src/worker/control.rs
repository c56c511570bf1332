//! The control thread: the one reader of what fd 0 was. It hears cancels and the host's end while
//! user code is busy.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{read, write};
use rustix::process::{Signal, getpid, kill_process, kill_process_group};

use super::channels::{either, read_some, write_all};
use crate::background::Background;
use crate::clock::Moment;
use crate::protocol::{HEADER, Kind};
use crate::sync::Mutex;

/// Bytes of fd 0 that are read at once.
const READ: usize = 32 << 10;
/// A cancel frame is smaller than this.
const CANCEL_CAP: usize = 1 << 10;

/// Which request shall stop, for the code that runs it and for whoever waits on its behalf.
///
/// Numbers of requests only grow, so the largest one that was cancelled is all that matters: one
/// that has not begun yet is remembered, one that is over is never heard of again.
pub(super) struct Cancel {
    cancelled: AtomicU64,
    running: Mutex<Running>,
    /// Readable if and only if the running request is cancelled: written and emptied under the lock
    /// of `running`.
    event: OwnedFd,
    /// The request that waits for a line of input; 0 when none does.
    asking: AtomicU64,
}

#[derive(Default)]
struct Running {
    request: u64,
    signalled: bool,
}

impl Cancel {
    pub(super) fn new() -> rustix::io::Result<Cancel> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Cancel {
            cancelled: AtomicU64::new(0),
            running: Mutex::default(),
            event,
            asking: AtomicU64::new(0),
        })
    }

    /// A request begins; the last one is over.
    pub(super) fn begin(&self, request: u64) {
        let mut running = self.running.lock();
        if running.signalled {
            let _ = read(&self.event, &mut [0_u8; 8]);
        }
        *running = Running { request, signalled: false };
        if self.is_cancelled(request) {
            self.signal(&mut running);
        }
    }

    fn cancel(&self, request: u64) {
        let mut running = self.running.lock();
        self.cancelled.fetch_max(request, Ordering::SeqCst);
        if running.request == request && !running.signalled {
            self.signal(&mut running);
        }
    }

    fn signal(&self, running: &mut Running) {
        running.signalled = true;
        let _ = write(&self.event, &1_u64.to_ne_bytes());
    }

    pub(super) fn is_cancelled(&self, request: u64) -> bool {
        self.cancelled.load(Ordering::Acquire) == request
    }

    /// Readable once the running request is cancelled.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Waits until the running request is cancelled, at most `limit`.
    pub(super) fn wait(&self, request: u64, limit: Duration) -> bool {
        let deadline = Moment::after(limit);
        while !self.is_cancelled(request) {
            let left = deadline.saturating_since(Moment::now());
            if left.is_zero() {
                break;
            }
            // Longer than the kernel can count is for ever.
            let left = left.try_into().ok();
            let _ = poll(&mut [PollFd::new(&self.event, PollFlags::IN)], left.as_ref());
        }
        self.is_cancelled(request)
    }

    /// From here on a reply to this request's question is of use; 0: to none.
    pub(super) fn ask(&self, request: u64) {
        self.asking.store(request, Ordering::SeqCst);
    }

    /// Whether somebody waits for this reply.
    fn takes_reply(&self, request: u64) -> bool {
        request != 0 && self.asking.compare_exchange(request, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// The control thread and the way to end it.
pub(super) struct Control {
    quit: Arc<Quit>,
    thread: Background,
}

struct Quit {
    event: OwnedFd,
    /// The host has said that this process shall leave: the end of its input is no surprise then.
    leaving: AtomicBool,
}

impl Control {
    /// Starts the thread on what fd 0 was. `forward` is where frames that are not for the thread go;
    /// without it there should be none.
    pub(super) fn start(
        fd: OwnedFd,
        forward: Option<OwnedFd>,
        cancel: Arc<Cancel>,
    ) -> std::io::Result<Control> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let quit = Arc::new(Quit { event, leaving: AtomicBool::new(false) });
        let reader = Reader { fd, quit: Arc::clone(&quit), router: Router::new(forward, cancel) };
        let thread = Background::spawn("remuda-control", move || reader.run())?;
        Ok(Control { quit, thread })
    }

    /// Ends the thread. Whoever reads what it forwards must have closed that.
    pub(super) fn end(mut self) {
        self.quit.leaving.store(true, Ordering::SeqCst);
        let _ = write(&self.quit.event, &1_u64.to_ne_bytes());
        self.thread.join();
    }
}

struct Reader {
    fd: OwnedFd,
    quit: Arc<Quit>,
    router: Router,
}

impl Reader {
    fn run(mut self) {
        let mut buffer = vec![0; READ];
        loop {
            match either(self.fd.as_fd(), self.quit.event.as_fd()) {
                Ok((_, true)) => return,
                Ok(_) => {}
                Err(_) => die(),
            }
            match read_some(self.fd.as_fd(), &mut buffer) {
                // The host is gone, or has closed its end of a worker that leaves anyway.
                Ok(0) | Err(_) if self.router.leaving || self.quit.leaving.load(Ordering::SeqCst) => return,
                Ok(0) | Err(_) => die(),
                Ok(count) => {
                    if self.router.take(&buffer[..count]).is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// Sends each frame where it belongs, without holding more than a cancel of it.
struct Router {
    cancel: Arc<Cancel>,
    forward: Option<OwnedFd>,
    /// The beginning of a frame that cannot be told yet.
    held: Vec<u8>,
    /// Bytes of the present frame that are still to come, and whether they are wanted.
    left: usize,
    wanted: bool,
    leaving: bool,
}

impl Router {
    fn new(forward: Option<OwnedFd>, cancel: Arc<Cancel>) -> Router {
        Router { cancel, forward, held: Vec::new(), left: 0, wanted: false, leaving: false }
    }

    fn take(&mut self, mut bytes: &[u8]) -> rustix::io::Result<()> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let (now, rest) = bytes.split_at(self.left.min(bytes.len()));
                self.pass(now)?;
                self.left -= now.len();
                bytes = rest;
                continue;
            }
            let wanted = self.wanted_of_head();
            let (now, rest) = bytes.split_at((wanted - self.held.len()).min(bytes.len()));
            self.held.extend_from_slice(now);
            bytes = rest;
            if self.held.len() == self.wanted_of_head() {
                self.begin()?;
            }
        }
        Ok(())
    }

    /// A header, and a cancel's body.
    fn wanted_of_head(&self) -> usize {
        match head(&self.held) {
            Some((length, kind, _)) if kind == Kind::Cancel as u8 && length <= CANCEL_CAP => HEADER + length,
            _ => HEADER,
        }
    }

    /// A frame whose header is complete.
    fn begin(&mut self) -> rustix::io::Result<()> {
        let held = std::mem::take(&mut self.held);
        let Some((length, kind, request)) = head(&held) else { return Ok(()) };
        if held.len() == HEADER + length && kind == Kind::Cancel as u8 {
            self.cancel.cancel(request);
            return Ok(());
        }
        self.leaving |= kind == Kind::Shutdown as u8;
        // A line that nobody waits for any more would fill the pipe: nobody reads that either.
        self.wanted = kind != Kind::InputReply as u8 || self.cancel.takes_reply(request);
        self.left = length;
        self.pass(&held)
    }

    fn pass(&self, bytes: &[u8]) -> rustix::io::Result<()> {
        match &self.forward {
            Some(forward) if self.wanted => write_all(forward.as_fd(), bytes),
            _ => Ok(()),
        }
    }
}

/// Length, kind and request of a header.
fn head(bytes: &[u8]) -> Option<(usize, u8, u64)> {
    let [l0, l1, l2, l3, kind, _, _, _, request @ ..] = *bytes.first_chunk::<HEADER>()?;
    Some((u32::from_le_bytes([l0, l1, l2, l3]) as usize, kind, u64::from_le_bytes(request)))
}

/// The host is gone: what this process started goes too, then the process itself. Kills the group
/// only if this process leads it, as it does when a host has started it.
pub(super) fn die() -> ! {
    let _ = kill_process_group(getpid(), Signal::KILL);
    let _ = kill_process(getpid(), Signal::KILL);
    // The first process of a container does not die by its own signals.
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{DEFAULT_FRAME_CAP, encode};
    use rustix::io::Errno;

    fn frame(kind: Kind, request: u64, second: &[u8]) -> Vec<u8> {
        encode(kind, request, b"", second, DEFAULT_FRAME_CAP).expect("fits")
    }

    #[test]
    fn frames_are_routed_however_they_are_cut() {
        let sent = [
            frame(Kind::Execute, 1, b"code"),
            frame(Kind::Cancel, 1, b""),
            frame(Kind::InputReply, 1, b"not asked for"),
            frame(Kind::Ping, 2, b""),
        ]
        .concat();
        let passed = [frame(Kind::Execute, 1, b"code"), frame(Kind::Ping, 2, b"")].concat();
        for size in 1..sent.len() {
            let (read_end, write_end) = rustix::pipe::pipe().expect("pipe");
            let cancel = Arc::new(Cancel::new().expect("eventfd"));
            let mut router = Router::new(Some(write_end), Arc::clone(&cancel));
            for piece in sent.chunks(size) {
                router.take(piece).expect("the pipe has room");
            }
            let mut buffer = [0; 1 << 10];
            let count = read(&read_end, &mut buffer).expect("read");
            assert_eq!(&buffer[..count], passed, "in pieces of {size}");
            assert!(cancel.is_cancelled(1) && !cancel.is_cancelled(2));
        }
    }

    #[test]
    fn a_cancel_hits_its_own_request_and_no_other() {
        let cancel = Cancel::new().expect("eventfd");
        cancel.begin(1);
        cancel.cancel(3);
        assert!(!cancel.wait(1, Duration::ZERO));
        cancel.begin(3);
        assert!(cancel.wait(3, Duration::from_secs(600)), "it was cancelled before it began");
        cancel.begin(4);
        cancel.cancel(3);
        assert!(!cancel.wait(4, Duration::from_millis(1)));
        assert_eq!(read(&cancel.event, &mut [0_u8; 8]), Err(Errno::AGAIN));
        cancel.cancel(4);
        assert!(cancel.wait(4, Duration::from_secs(600)));
    }

    #[test]
    fn a_reply_is_taken_once_and_only_by_who_asked() {
        let cancel = Cancel::new().expect("eventfd");
        assert!(!cancel.takes_reply(0));
        cancel.ask(5);
        assert!(!cancel.takes_reply(4));
        assert!(cancel.takes_reply(5));
        assert!(!cancel.takes_reply(5));
    }
}
