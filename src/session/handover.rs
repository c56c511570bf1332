//! A session that goes from one user to the next before its worker was reset: the reset travels in front
//! of the first request, in one write. That saves a wake-up of the worker and the hop over the pool's
//! monitor, which together cost more than the reset.
//!
//! What keeps the users apart: the worker runs the request only if the reset undid everything
//! (`only_if_clean`); what the pipes hold before is dropped here; and the worker sees to it that the last
//! user's code writes nothing after that. If the reset fails, the request was not run: the pool then
//! takes another session for it.

use std::io;
use std::time::Duration;

use super::exchange::END_PATIENCE;
use super::execution::Cause;
use super::features::Feature;
use super::interrupt::Ask;
use super::transport::{Transport, channel_error};
use super::{Session, Worker};
use crate::cancel::CancelToken;
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::protocol::{self, Kind, flag};

/// A request up to this size goes in one write with the reset: a pipe takes that whole or not at all.
const ALONG: usize = 2 << 10;

/// While the worker is reset, output of the last user's may not be read: then it is looked for replies this
/// often.
const OUTPUT_PAUSE: Duration = Duration::from_millis(1);

/// How often it is looked whether a request has begun that is to be stopped some time: nothing else tells.
const BEGIN_PAUSE: Duration = Duration::from_millis(5);

/// What came of a reset in front of a request.
enum Ahead {
    /// The worker is clean, and its answer is read.
    Clean,
    /// The worker was clean and runs the request, as the memory file tells; its answer comes with the next.
    /// (Both also of one that was killed because the request is cancelled, and had got this far.)
    Begun,
    /// Not clean, for this reason: the request is not run.
    Failed(Error),
    /// Killed, but the request may have begun.
    Lost,
    /// Killed because nobody wants the request any more, which has not begun.
    Cancelled,
}

/// Why a reset has no answer.
enum Why {
    Late,
    /// The process ended, or closed the channel.
    Ended,
    /// The request is on its way and must not begin any more.
    Cancelled,
    Broken(String),
}

/// What is still to be done for a request after its reset.
pub(super) struct Rest {
    /// What is still to be sent.
    pub(super) unsent: Vec<u8>,
    /// Number of the reset, if its answer is still to come.
    pub(super) answer: Option<u64>,
    /// When the request was first seen to be able to run, if the reset took long.
    pub(super) began: Option<Moment>,
}

impl Session {
    /// Whether the next user's first request can bring the reset along.
    pub(crate) fn can_owe_reset(&self) -> bool {
        self.can(Feature::Reset) && self.can(Feature::OnlyIfClean)
    }

    /// The last user's state stays until the next request, which brings the reset along and gives it this
    /// much time. `None`: the reset is asked for in another way.
    pub(crate) fn owe_reset(&mut self, limit: Option<Duration>) {
        self.owed = limit;
    }

    /// Whether the last user's state is still there.
    pub(crate) fn owes_reset(&self) -> bool {
        self.owed.is_some()
    }

    /// Whether the reset that was owed has failed: the request that brought it along was not run. Until
    /// there is a new process each request brings another reset along.
    pub(crate) fn reset_has_failed(&self) -> bool {
        self.owed.is_some() && self.is_tainted()
    }

    /// Does a reset that is owed now. Blocks until the worker has answered, for the reset's limit at most.
    pub(crate) fn settle(&mut self) -> Result<()> {
        if self.owed.is_none() {
            return Ok(());
        }
        self.ensure_usable(Moment::now())?;
        let tokens = [self.bound.clone(), None];
        let _awake = self.register(self.bound.as_ref());
        let id = self.next_request();
        self.reset_ahead(id, Vec::new(), &tokens, false).map(drop)
    }

    /// Sends the reset that is owed, and the request with it unless that is large; waits until the worker
    /// is clean. Fails if it is not; see [`reset_has_failed`](Session::reset_has_failed). `watched`: the
    /// request's time is limited, from its begin on.
    pub(super) fn reset_ahead(
        &mut self,
        id: u64,
        request: Vec<u8>,
        tokens: &[Option<CancelToken>; 2],
        watched: bool,
    ) -> Result<Rest> {
        let Some(limit) = self.owed else {
            return Ok(Rest { unsent: request, answer: None, began: None });
        };
        let along = (1..=ALONG).contains(&request.len());
        let flags = flag::REQUEST_FOLLOWS | if along { flag::REQUEST_IS_HERE } else { 0 };
        let frame = protocol::encode_with_flags(Kind::Reset, flags, id, b"", b"", self.config.frame_cap);
        let (Some(mut bytes), Some(worker)) = (frame, &self.worker) else { return Err(self.dead()) };
        if along {
            bytes.extend_from_slice(&request);
        }
        // Until it is known to be clean.
        self.tainted = true;
        match worker.transport.write_some(&bytes) {
            Ok(written) if written == bytes.len() => {}
            // The request pipe of an idle worker is empty.
            Ok(_) => return Err(self.break_off("it does not take requests".to_owned())),
            Err(error) => return Err(channel_error(error)),
        }
        let next_look = Moment::after(BEGIN_PAUSE);
        let ahead = self.await_clean(id, (tokens, along), watched.then_some(next_look), limit);
        if !matches!(ahead, Ahead::Failed(_)) {
            self.owed = None;
        }
        match ahead {
            Ahead::Clean | Ahead::Begun => {
                self.tainted = false;
                let answer = matches!(ahead, Ahead::Begun).then_some(id);
                let began = watched.then(Moment::now).filter(|now| *now >= next_look);
                Ok(Rest { unsent: if along { Vec::new() } else { request }, answer, began })
            }
            // Asked to stop what has not begun.
            Ahead::Failed(_) if self.asks.asked_now().is_some() || cancelled(tokens) => Err(Error::Cancelled),
            Ahead::Failed(error) => Err(error),
            Ahead::Cancelled => Err(Error::Cancelled),
            Ahead::Lost => {
                self.bury(String::new(), None);
                Err(self.dead())
            }
        }
    }

    fn await_clean(
        &mut self,
        id: u64,
        (tokens, along): (&[Option<CancelToken>; 2], bool),
        mut look_at: Option<Moment>,
        limit: Duration,
    ) -> Ahead {
        let deadline = Moment::after(limit);
        let why = loop {
            let Some(Worker { transport, process, .. }) = &mut self.worker else {
                return Ahead::Failed(self.dead());
            };
            let ready = match transport.wait(Some(look_at.map_or(deadline, |at| at.min(deadline)))) {
                Ok(ready) => ready,
                Err(error) => break Why::Broken(format!("waiting for it failed: {error}")),
            };
            if ready.wake() {
                transport.waker().clear();
                // Whoever interrupts the request means it, once it runs.
                look_at.get_or_insert_with(|| Moment::after(BEGIN_PAUSE));
            }
            let read = if ready.replies() { read_clean(transport, id) } else { Ok(None) };
            if let Ok(Some(ahead)) = read {
                return ahead;
            }
            if transport.has_marked(id) {
                // Whatever it was that woke us, it is the request's.
                transport.look_again();
                return Ahead::Begun;
            }
            if cancelled(tokens) || self.asks.asked_now() >= Some(Ask::Cancel) {
                break Why::Cancelled;
            }
            let now = Moment::now();
            match read {
                Err(why) => break why,
                Ok(_) if ready.exit() && !ready.replies() => break Why::Ended,
                Ok(_) if now >= deadline => break Why::Late,
                Ok(_) => look_at = look_at.map(|at| if now < at { at } else { now + BEGIN_PAUSE }),
            }
            if ready.stdout() || ready.stderr() {
                // Fails as the next wait does.
                let _ = transport.wait_for_reply(process.pidfd(), OUTPUT_PAUSE);
            }
        };
        let cause = match &why {
            Why::Broken(reason) => Cause::Protocol(reason.clone()),
            Why::Late | Why::Ended => Cause::Retired,
            Why::Cancelled => Cause::Cancelled,
        };
        #[cfg(test)]
        tests::meanwhile(self);
        // Once the process has ended, its last words tell whether the request can have begun.
        self.process().kill_group(cause);
        self.process().ends_within(END_PATIENCE);
        let Some(Worker { transport, .. }) = &mut self.worker else { return Ahead::Lost };
        let begun = transport.has_marked(id);
        if begun || matches!(read_clean(transport, id), Ok(Some(Ahead::Clean))) {
            match why {
                // Whoever runs the request finds its token cancelled and its worker at the end.
                Why::Cancelled if along => {
                    transport.look_again();
                    return if begun { Ahead::Begun } else { Ahead::Clean };
                }
                Why::Cancelled => {}
                _ => return Ahead::Lost,
            }
        }
        self.bury(String::new(), None);
        Ahead::Failed(match why {
            Why::Cancelled => return Ahead::Cancelled,
            Why::Late => Error::Unresponsive { session: self.id, limit },
            Why::Ended => self.dead(),
            Why::Broken(reason) => Error::Protocol { session: self.id, reason },
        })
    }
}

fn cancelled(tokens: &[Option<CancelToken>; 2]) -> bool {
    tokens.iter().flatten().any(CancelToken::is_cancelled)
}

/// Reads the answer to a reset; `Ok(None)` while it is not complete.
fn read_clean(transport: &mut Transport, id: u64) -> Result<Option<Ahead>, Why> {
    let open = match transport.read_replies() {
        Ok(open) => open,
        Err(error) => return Err(Why::Broken(format!("reading its replies failed: {error}"))),
    };
    let (frame, used) = match transport.next_frame() {
        Ok(Some(frame)) => frame,
        Ok(None) if open => return Ok(None),
        Ok(None) => return Err(Why::Ended),
        Err(malformed) => return Err(Why::Broken(malformed.to_string())),
    };
    if (frame.header.kind, frame.header.request) != (Kind::Clean, id) {
        // The events of a request that runs overtake the answer.
        if frame.header.request == id + 1 && transport.has_marked(id) {
            return Ok(Some(Ahead::Begun));
        }
        return Err(Why::Broken(format!("it answered a reset with {:?}", frame.header.kind)));
    }
    let taint: Vec<String> = serde_json::from_slice(frame.first)
        .map_err(|error| Why::Broken(format!("a reset report that cannot be read: {error}")))?;
    transport.consume(used);
    Ok(Some(if taint.is_empty() {
        Ahead::Clean
    } else {
        Ahead::Failed(Error::io("resetting a worker", io::Error::other(taint.join(", "))))
    }))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::thread;

    use super::*;
    use crate::session::execution::Outcome;
    use crate::session::transport::Ready;
    use crate::session::{Request, Runtime, scratch};

    const GENEROUS: Duration = Duration::from_secs(60);

    type Between = Box<dyn FnOnce(&mut Session)>;

    thread_local! {
        /// Happens once, after a reset was given up and before its worker is killed.
        static MEANWHILE: RefCell<Option<Between>> = const { RefCell::new(None) };
    }

    pub(super) fn meanwhile(session: &mut Session) {
        if let Some(between) = MEANWHILE.take() {
            between(session);
        }
    }

    fn session() -> Session {
        Session::start(&Session::builder(Runtime::python("python3"))).expect("starts")
    }

    fn until(there: impl Fn() -> bool) {
        let deadline = Moment::after(GENEROUS);
        while !there() {
            assert!(Moment::now() < deadline, "it does not come");
            thread::yield_now();
        }
    }

    fn transport(session: &Session) -> &Transport {
        &session.worker.as_ref().expect("not given up yet").transport
    }

    /// Has `ask` bring along a reset. While that is under way the token is cancelled, and the reset is done
    /// as `has_come` tells after the last look for its answer.
    fn cancelled_too_late<T>(
        has_come: fn(&Session) -> bool,
        ask: impl FnOnce(&mut Session, &CancelToken) -> Result<T>,
    ) -> Result<T> {
        let directory = scratch::Scratch::create().expect("a directory");
        let [reached, gate] = ["reached", "gate"].map(|name| directory.path().join(name));
        let mut session = session();
        let code = format!(
            "import os\nclass Slow:\n    def __del__(self, os=os, open=open):\n        open({reached:?}, 'w')\n\
             \x20       while not os.path.exists({gate:?}): pass\nkept = Slow()"
        );
        session.execute(code).expect("runs");
        session.owe_reset(Some(GENEROUS));
        let token = CancelToken::new();
        MEANWHILE.set(Some(Box::new(move |session| {
            std::fs::write(gate, "").expect("opens");
            until(|| has_come(session));
        })));
        thread::scope(|threads| {
            threads.spawn(|| {
                until(|| reached.exists());
                token.cancel();
            });
            ask(&mut session, &token)
        })
    }

    fn has_answered(session: &Session) -> bool {
        transport(session).look().is_ok_and(Ready::replies)
    }

    #[test]
    fn a_request_that_began_when_it_was_cancelled_is_told_as_cancelled() {
        let has_begun = |session: &Session| transport(session).has_marked(session.requests - 1);
        let run = cancelled_too_late(has_begun, |session, token| {
            let run = session.execute(Request::code("while True: pass").cancel_token(token));
            let end = session.post_mortem();
            assert!(end.is_some_and(|end| end.cause == Cause::Cancelled), "{end:?}");
            run
        });
        assert_eq!(run.expect("it has run").outcome, Outcome::Cancelled { killed: true });
    }

    #[test]
    fn what_was_not_sent_when_it_was_cancelled_is_told_as_cancelled() {
        let large = format!("1 # {}", "x".repeat(ALONG));
        let sent_later = cancelled_too_late(has_answered, |session, token| {
            session.execute(Request::code(large).cancel_token(token))
        });
        assert!(matches!(sent_later, Err(Error::Cancelled)), "{sent_later:?}");
        let asked_later = cancelled_too_late(has_answered, |session, token| {
            session.bind(Some(token.clone()));
            session.names()
        });
        assert!(matches!(asked_later, Err(Error::Cancelled)), "{asked_later:?}");
    }

    #[test]
    fn a_reset_that_fails_when_its_request_is_cancelled_is_told_as_cancelled() {
        let mut session = session();
        let left = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()";
        session.execute(left).expect("runs");
        session.owe_reset(Some(GENEROUS));
        let token = CancelToken::new();
        token.cancel();
        // As if it had been cancelled at the same time: nobody is woken.
        let id = session.next_request();
        let ahead = session.reset_ahead(id, Vec::new(), &[Some(token), None], false);
        assert!(matches!(ahead, Err(Error::Cancelled)), "{:?}", ahead.err());
    }
}
