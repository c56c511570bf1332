//! Floors of the session's rows: bare interpreters over bare pipes, no frames, no safety.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

/// Compiles, evaluates, JSON-encodes and reprs each source that it reads.
pub(super) const EVALUATE: &str = "\
import os, json
read, write, dumps, names = os.read, os.write, json.dumps, {}
while source := read(0, 65536):
    value = eval(compile(source, '<floor>', 'eval'), names)
    write(1, (dumps(value) + chr(10) + repr(value)).encode())
";

/// Sends back what it reads.
pub(super) const ECHO: &str = "\
import os
read, write = os.read, os.write
while data := read(0, 65536):
    write(1, data)
";

/// Says that it runs, nothing else.
pub(super) const FIRST_BYTE: &str = "import os; os.write(1, b'x')";

/// Writes 100 MiB for each byte that it reads.
pub(super) const FLOOD: &str = "\
import os, sys
block = b'x' * (1 << 20)
while os.read(0, 1):
    for _ in range(100):
        sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()
";

/// Says that it loops, loops until it is interrupted, and says that it was.
pub(super) const BUSY: &str = "\
import os
def busy():
    os.write(1, b'b')
    while True:
        pass
while True:
    try:
        busy()
    except KeyboardInterrupt:
        os.write(1, b'i')
        if not os.read(0, 1):
            break
";

/// A bare `python3 -I` with a pipe to it and a pipe from it; killed and reaped when dropped.
#[derive(Debug)]
pub(super) struct Bare {
    child: Child,
    to: ChildStdin,
    from: ChildStdout,
}

impl Bare {
    pub(super) fn start(python: &Path, program: &str) -> io::Result<Bare> {
        let mut child = Command::new(python)
            .args(["-I", "-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(to), Some(from)) => Ok(Bare { child, to, from }),
            _ => Err(io::Error::other("a child without its pipes")),
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// One write, one read: the answer is small and comes in one piece.
    pub(super) fn ask(&mut self, question: &[u8], answer: &mut [u8]) -> io::Result<usize> {
        self.to.write_all(question)?;
        self.read(answer)
    }

    pub(super) fn read(&mut self, answer: &mut [u8]) -> io::Result<usize> {
        match self.from.read(answer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }

    /// Asks for `bytes` bytes and keeps them all.
    pub(super) fn collect(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        self.to.write_all(b"g")?;
        let mut kept = Vec::new();
        let mut block = vec![0; 64 << 10];
        while kept.len() < bytes {
            let count = self.read(&mut block)?;
            kept.extend_from_slice(&block[..count]);
        }
        Ok(kept)
    }

    /// Lets [`BUSY`] loop again.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        self.to.write_all(b"g")
    }

    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(rustix::process::kill_process(pid(self.id())?, signal)?)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ctrl-C for this process alone.
pub(super) fn interrupt(id: u32) -> io::Result<()> {
    Ok(rustix::process::kill_process(pid(id)?, Signal::INT)?)
}

fn pid(id: u32) -> io::Result<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Watches the end of any process, a child or not.
#[derive(Debug)]
pub(super) struct Watched(OwnedFd);

impl Watched {
    pub(super) fn open(id: u32) -> io::Result<Watched> {
        Ok(Watched(pidfd_open(pid(id)?, PidfdFlags::empty())?))
    }

    /// Waits until it has ended; an error after five seconds.
    pub(super) fn wait(&self) -> io::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.0.as_fd(), PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.0, Signal::KILL);
    }
}
