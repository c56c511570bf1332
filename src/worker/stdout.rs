//! What is written to fd 1 where fd 1 of this process is no pipe of the host: the standard library,
//! C libraries and child processes write into a pipe, and this sends it on as *output*.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, ioctl_fionread, read, write};
use rustix::stdio::{dup2_stdout, stderr};

use super::channels::either;
use super::outbox::Outbox;
use crate::background::Background;
use crate::protocol::Kind;
use crate::sync::Mutex;

/// Bytes of one *output* frame; far below the smallest frame cap.
const CHUNK: usize = 32 << 10;

/// The pipe behind fd 1 and the thread that empties it.
pub(super) struct Stdout {
    shared: Arc<Shared>,
    thread: Background,
}

struct Shared {
    pipe: OwnedFd,
    quit: OwnedFd,
    outbox: Arc<Outbox>,
    /// Whose output it is; 0: nobody's, which is dropped. Locked from reading until sending, so that
    /// whoever has the lock knows that all that was read before has been sent.
    request: Mutex<u64>,
}

impl Stdout {
    /// Starts the thread on the reading end of the pipe, which does not block.
    pub(super) fn start(pipe: OwnedFd, outbox: Arc<Outbox>) -> std::io::Result<Stdout> {
        let quit = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { pipe, quit, outbox, request: Mutex::new(0) });
        let thread = Background::spawn("remuda-stdout", {
            let shared = Arc::clone(&shared);
            move || shared.run()
        })?;
        Ok(Stdout { shared, thread })
    }

    /// What is written from here on is output of this request.
    pub(super) fn begin(&self, request: u64) {
        self.change(request);
    }

    /// Sends what was written so far; what comes later is nobody's.
    pub(super) fn finish(&self) {
        self.change(0);
    }

    fn change(&self, request: u64) {
        let mut current = self.shared.request.lock();
        // What the pipe holds now: a flood from a background thread cannot hold the answer.
        let mut left = ioctl_fionread(&self.shared.pipe).unwrap_or(0);
        let mut buffer = Vec::new();
        while left > 0 {
            buffer.resize(CHUNK, 0);
            match self.shared.move_on(*current, &mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => left = left.saturating_sub(count as u64),
            }
        }
        *current = request;
    }

    /// Ends the thread. What the program prints afterwards goes to stderr: there is nobody else.
    pub(super) fn end(mut self) {
        let _ = dup2_stdout(stderr());
        let _ = write(&self.shared.quit, &1_u64.to_ne_bytes());
        self.thread.join();
    }
}

impl Shared {
    fn run(&self) {
        let mut buffer = vec![0; CHUNK];
        loop {
            match either(self.pipe.as_fd(), self.quit.as_fd()) {
                Ok((true, false)) => {}
                _ => return,
            }
            let request = self.request.lock();
            match self.move_on(*request, &mut buffer) {
                // Every writer has closed it.
                Ok(0) => return,
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Reads once and sends what came; returns how much that was. The caller holds the lock.
    fn move_on(&self, request: u64, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        let count = read(&self.pipe, &mut *buffer)?;
        if request != 0 && count > 0 {
            self.outbox.send(Kind::Output, 0, request, b"", &buffer[..count]);
        }
        Ok(count)
    }
}
