//! The session's side of a pool: reset between two users, looks at idle sessions, retirement.
//! Nothing here blocks.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use super::exchange::STDERR_TAIL;
use super::output::Pipe;
use super::transport::channel_error;
use super::{Cause, PostMortem, Process, Session, SessionConfig, Worker, start};
use crate::cancel::CancelToken;
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::protocol::{self, Kind};

/// What a worker says of the state that a user left, in its answer to a reset.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResetReport {
    /// Why only a new process is clean; empty when the worker is back in its warm state.
    pub(crate) taint: Vec<String>,
}

impl Session {
    /// [`start`](Session::start) that `stop` gives up ([`Error::Cancelled`]).
    pub(crate) fn start_unless(config: &Arc<SessionConfig>, stop: &CancelToken) -> Result<Session> {
        let mut session = start::start(Arc::clone(config), Some(stop.clone()))?;
        session.bind(None);
        Ok(session)
    }

    /// Whether these are its options, and not a copy of them.
    pub(crate) fn is_made_of(&self, config: &Arc<SessionConfig>) -> bool {
        Arc::ptr_eq(&self.config, config)
    }

    /// [`restart`](Session::restart) that `stop` gives up; `gone` hears of the old process's end.
    pub(crate) fn restart_unless(
        &mut self,
        stop: &CancelToken,
        gone: impl FnOnce(PostMortem) + Send + 'static,
    ) -> Result<()> {
        let bound = self.bound.take();
        let restarted = self.restart_bound(Some(stop.clone()), gone);
        self.bind(bound);
        restarted
    }

    /// Executions of this session are ended by `token` too; `None` takes that back.
    pub(crate) fn bind(&mut self, token: Option<CancelToken>) {
        self.bound = token;
    }

    /// Handles that the last user has kept concern nobody else's code.
    #[inline]
    pub(crate) fn forget_handles(&mut self) {
        if Arc::strong_count(&self.asks) > 1 {
            self.replace_asks();
        }
    }

    #[cold]
    fn replace_asks(&mut self) {
        let Some(worker) = &self.worker else { return };
        let waker = worker.transport.waker();
        self.asks.let_go(waker);
        self.asks = Arc::default();
        self.asks.set_waker(Arc::clone(waker));
    }

    /// Whether only a new process is clean: the session is dead, or its last user's code was stopped
    /// in the middle or may run yet.
    pub(crate) fn is_tainted(&self) -> bool {
        self.tainted || self.executing || !self.process().is_alive()
    }

    /// Asks the worker to go back to its warm state. Does not block (about 2 µs).
    pub(crate) fn begin_reset(&mut self) -> Result<()> {
        self.ensure_usable(Moment::now())?;
        let id = self.next_request();
        let frame = protocol::encode(Kind::Reset, id, b"", b"", self.config.frame_cap);
        let (Some(worker), Some(frame)) = (&mut self.worker, frame) else { return Err(self.dead()) };
        match worker.transport.write_some(&frame) {
            Ok(written) if written == frame.len() => Ok(()),
            // The request pipe of an idle worker is empty: it takes 20 bytes or has ended.
            Ok(_) => {
                Err(Error::Protocol { session: self.id, reason: "it does not take requests".to_owned() })
            }
            Err(error) => Err(channel_error(error)),
        }
    }

    /// Reads the answer to a reset, without blocking; `Ok(None)` while it is not complete.
    pub(crate) fn poll_reset(&mut self) -> Result<Option<ResetReport>> {
        self.discard_output();
        let id = self.requests;
        let Some(worker) = &mut self.worker else { return Err(self.dead()) };
        // A late wake-up, as of a question that is answered now. Left there, it would wake the monitor
        // again and again.
        worker.transport.waker().clear();
        let open = worker.transport.read_replies().map_err(channel_error)?;
        let report = match worker.transport.next_frame() {
            Ok(Some((frame, used))) if (frame.header.kind, frame.header.request) == (Kind::Clean, id) => {
                serde_json::from_slice(frame.first)
                    .map(|taint| (ResetReport { taint }, used))
                    .map_err(|e| e.to_string())
            }
            Ok(Some((frame, _))) => Err(format!("it answered a reset with {:?}", frame.header.kind)),
            Ok(None) if open => return Ok(None),
            Ok(None) => return Err(self.dead()),
            Err(malformed) => Err(malformed.0),
        };
        let report = report.and_then(|(report, used)| {
            worker.transport.consume(used);
            worker.transport.answered();
            if worker.transport.has_unread() {
                Err("it sent more than its answer".to_owned())
            } else {
                Ok(report)
            }
        });
        match report {
            Ok(report) => Ok(Some(report)),
            Err(reason) => {
                self.process().kill_group(Cause::Protocol(reason.clone()));
                Err(Error::Protocol { session: self.id, reason })
            }
        }
    }

    /// Looks at an idle session without blocking: drops stray output and returns its size; fails if
    /// the process has ended or has sent what nobody asked for.
    pub(crate) fn check_idle(&mut self) -> Result<u64> {
        let Some(worker) = &mut self.worker else { return Err(self.dead()) };
        let ready = worker.transport.look().map_err(channel_error)?;
        if ready.nothing() {
            return Ok(0);
        }
        if ready.wake() {
            worker.transport.waker().clear();
        }
        if ready.exit() {
            let tail = self.discard_output().1;
            self.bury(tail, None);
            return Err(self.dead());
        }
        if ready.replies() {
            let reason = "it sent what nobody asked for".to_owned();
            self.process().kill_group(Cause::Protocol(reason.clone()));
            let tail = self.discard_output().1;
            self.bury(tail, None);
            return Err(Error::Protocol { session: self.id, reason });
        }
        Ok(self.discard_output().0)
    }

    /// Drops what the pipes hold now; returns its size and the last of stderr.
    pub(super) fn discard_output(&mut self) -> (u64, String) {
        let Some(Worker { transport, .. }) = &mut self.worker else { return (0, String::new()) };
        let (_, stdout, stdout_open) = transport.stdout.as_mut().map(Pipe::discard).unwrap_or_default();
        let (last, stderr, stderr_open) = transport.stderr.as_mut().map(Pipe::discard).unwrap_or_default();
        if !stdout_open {
            transport.close_stdout();
        }
        if !stderr_open {
            transport.close_stderr();
        }
        let tail = &last[last.len().saturating_sub(STDERR_TAIL)..];
        (stdout + stderr, String::from_utf8_lossy(tail).into_owned())
    }

    /// Readable whenever the worker has sent anything or has ended: for a monitor's epoll.
    pub(crate) fn events_fd(&self) -> BorrowedFd<'_> {
        match &self.worker {
            Some(worker) => worker.transport.events_fd(),
            None => unreachable!("a session without a worker is only ever dropped"),
        }
    }

    /// The process, to be watched or killed while another thread uses the session.
    pub(crate) fn process(&self) -> &Arc<Process> {
        match &self.worker {
            Some(worker) => &worker.process,
            None => unreachable!("a session without a worker is only ever dropped"),
        }
    }

    /// Ends the session on the reaper's thread: the worker may leave by itself for `grace` (zero:
    /// it is killed at once), then its group is killed, it is reaped, its directory removed, and
    /// `gone` called there. Never blocks, as long as the caller holds a [`Keeper`](super::Keeper).
    pub(crate) fn retire(mut self, grace: Duration, gone: impl FnOnce(PostMortem) + Send + 'static) {
        self.hand_over(grace, gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Wake;
    use crate::session::{Runtime, transport::Transport};

    fn session() -> Session {
        Session::start(&Session::builder(Runtime::python("python3"))).expect("starts")
    }

    fn transport(session: &Session) -> &Transport {
        &session.worker.as_ref().expect("alive").transport
    }

    #[test]
    fn a_late_wake_up_does_not_wake_whoever_waits_for_a_reset_again_and_again() {
        let mut session = session();
        session.begin_reset().expect("asked");
        transport(&session).waker().wake();
        while session.poll_reset().expect("an answer").is_none() {
            transport(&session).wait(None).expect("a sign of life");
        }
        assert!(transport(&session).look().expect("a look").nothing(), "a monitor would wake at once");
    }
}
