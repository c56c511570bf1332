//! The cancel ladder: everything that may stop a request, and what is done about it.
//!
//! Flag, cancel frame and SIGINT to the group at once; the frame and the signal again after half of
//! the grace (for code that polls its flag and was left alone at first); SIGKILL to the group after
//! the grace. On a channel that a wrapper may copy, the frame goes again every 10 ms.

use std::sync::Arc;
use std::time::Duration;

use super::exchange::{End, Exchange};
use super::execution::Cause;
use super::interrupt::{Ask, Asks};
use super::process::Process;
use super::transport::Transport;
use crate::cancel::CancelToken;
use crate::clock::Moment;

/// How often a cancel goes again where it may have got lost.
const RESEND: Duration = Duration::from_millis(10);

/// Everything that may stop a request.
#[derive(Default)]
pub(crate) struct Stops {
    /// When the ladder begins by itself.
    pub(crate) soft: Option<Moment>,
    /// When the group is killed, ladder or not.
    pub(crate) hard: Option<Moment>,
    pub(crate) grace: Duration,
    pub(crate) tokens: [Option<CancelToken>; 2],
    /// Wishes of interrupt handles, and the number of this execution among them.
    pub(crate) asks: Option<(Arc<Asks>, u64)>,
    /// Whether SIGINT to the group is understood by the worker.
    pub(crate) sigint: bool,
}

/// A ladder on its way up.
pub(super) struct Ladder {
    pub(super) why: Stop,
    /// When the worker is asked again, until it was.
    again_at: Option<Moment>,
    /// When the same frame goes again over a channel that may lose it.
    resend_at: Option<Moment>,
    /// `None`: the code is only asked.
    kill_at: Option<Moment>,
}

/// Why the ladder was climbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    SoftLimit,
    HardLimit,
    Cancelled,
}

impl Stops {
    fn cancelled(&self) -> bool {
        self.tokens.iter().flatten().any(CancelToken::is_cancelled)
    }

    fn asked(&self) -> Option<Ask> {
        self.asks.as_ref().and_then(|(asks, number)| asks.asked(*number))
    }
}

impl Exchange<'_> {
    /// One look at everything that may stop the request: returns until when to wait, or the end.
    pub(super) fn climb(
        &mut self,
        transport: &mut Transport,
        process: &Process,
    ) -> Result<Option<Moment>, End> {
        let asked = self.stops.asked();
        let mut deadline = self.stops.hard;
        if asked == Some(Ask::Kill) {
            return Err(self.kill(process, Stop::Cancelled));
        }
        if self.stops.hard.is_some_and(|hard| Moment::now() >= hard) {
            return Err(self.kill(process, Stop::HardLimit));
        }
        if self.question.is_some() {
            sooner(&mut deadline, self.settle_question(transport, process)?);
        }
        let kills = self.ladder.as_ref().is_some_and(|ladder| ladder.kill_at.is_some());
        if !kills {
            let why = if asked == Some(Ask::Cancel) || self.stops.cancelled() {
                Some(Stop::Cancelled)
            } else if self.stops.soft.is_some_and(|soft| Moment::now() >= soft) {
                Some(Stop::SoftLimit)
            } else {
                sooner(&mut deadline, self.stops.soft);
                None
            };
            if why.is_some() || (asked.is_some() && self.ladder.is_none()) {
                self.mount(transport, process, why);
            }
        }
        if self.ladder.is_some() {
            sooner(&mut deadline, self.climb_on(transport, process)?);
        }
        Ok(deadline)
    }

    /// The first rung. Without a reason, the code is only asked, and never killed.
    fn mount(&mut self, transport: &Transport, process: &Process, why: Option<Stop>) {
        let now = Moment::now();
        self.send_cancel(transport, 0);
        self.signal(process);
        // A start that nobody wants any more is not worth a grace.
        let given_up = why == Some(Stop::Cancelled) && self.stops.asks.is_none();
        let grace = if given_up { Duration::ZERO } else { self.stops.grace };
        self.ladder = Some(Ladder {
            why: why.unwrap_or(Stop::Cancelled),
            again_at: Some(now + grace / 2),
            resend_at: transport.is_inline().then(|| now + RESEND),
            kill_at: why.map(|_| now + grace),
        });
    }

    /// The other rungs.
    fn climb_on(&mut self, transport: &Transport, process: &Process) -> Result<Option<Moment>, End> {
        let Some(ladder) = &mut self.ladder else { return Ok(None) };
        let now = Moment::now();
        let why = ladder.why;
        if ladder.kill_at.is_some_and(|kill_at| now >= kill_at) {
            return Err(self.kill(process, why));
        }
        let again = ladder.again_at.is_some_and(|again_at| now >= again_at);
        let resend = ladder.resend_at.is_some_and(|resend_at| now >= resend_at);
        if again {
            ladder.again_at = None;
        }
        if resend {
            ladder.resend_at = Some(now + RESEND);
        }
        let attempt = u8::from(ladder.again_at.is_none());
        let mut deadline = ladder.kill_at;
        sooner(&mut deadline, ladder.again_at);
        sooner(&mut deadline, ladder.resend_at);
        if again || resend {
            self.send_cancel(transport, attempt);
        }
        if again {
            self.signal(process);
        }
        Ok(deadline)
    }

    fn send_cancel(&self, transport: &Transport, attempt: u8) {
        // In line it would land in the middle of the request; the worker has not begun anyway.
        if !(self.is_sending() && transport.is_inline()) {
            transport.cancel(self.request, attempt);
        }
    }

    /// SIGINT for the children of the code, and the code itself. It does not get lost, and what
    /// interrupted code does to clean up shall not be hit again and again.
    fn signal(&self, process: &Process) {
        if self.stops.sigint {
            process.interrupt_group();
        }
    }

    fn kill(&mut self, process: &Process, why: Stop) -> End {
        process.kill_group(match why {
            Stop::SoftLimit | Stop::HardLimit => Cause::TimeLimit,
            Stop::Cancelled => Cause::Cancelled,
        });
        self.ladder = Some(Ladder { why, again_at: None, resend_at: None, kill_at: None });
        End::Killed
    }
}

fn sooner(deadline: &mut Option<Moment>, other: Option<Moment>) {
    if let Some(other) = other {
        *deadline = Some(deadline.map_or(other, |deadline| deadline.min(other)));
    }
}
