//! The scripted worker as a test sees it: its script, and what it was asked.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, open};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Serialize;

use super::faults::{Fault, FaultPlan, Occasion, When};
use super::hold::Hold;
use super::link::Unlinked;
use super::part;
use super::reply::{FakeKind, FakeReply, FakeRequest};
use crate::background::Background;
use crate::session::stand_in::{Body, Entrance, Player, StandIn};
use crate::session::{ChildEnds, Runtime, SessionId};
use crate::sync::Mutex;

/// Holds a worker's place: a process that ends with its stdin, or as a line there says.
const HOLDER: [&str; 2] = [
    "-c",
    "read -r how number || exit 0
case $how in signal) kill -\"$number\" $$ ;; esac
exit \"$number\"",
];

/// A scripted worker that needs no interpreter, for tests.
///
/// Its [`runtime`](FakeWorker::runtime) goes where any other does. Each session that starts gets a
/// process of its own (a `/bin/sh` that waits) and a thread in this program that plays its worker:
/// it speaks the real protocol over the real channels. A kill of the process closes the channels, as
/// with a real worker, and the end of the session ends both.
///
/// A request is answered by, in this order: the first unused [`expect`](FakeWorker::expect) that has
/// its text, the first [`reply`](FakeWorker::reply) (or [`answer`](FakeWorker::answer),
/// [`fail`](FakeWorker::fail)) that has it, the [`otherwise`](FakeWorker::otherwise) handler. Without
/// one it fails with an error of kind `Unscripted`. The text of code is the code, that of a call the
/// name of the function. Warm-ups, resets and pings go well by themselves: see [`FaultPlan`] for others.
///
/// ```
/// use remuda::testing::{FakeReply, FakeWorker};
/// use remuda::{Outcome, Session};
///
/// let fake = FakeWorker::new()
///     .answer("1 + 1", 2)
///     .fail("boom", "ValueError", "no")
///     .expect("once", FakeReply::value("only").stdout("hello\n"));
/// let mut session = Session::builder(fake.runtime()).start()?;
/// assert_eq!(session.execute("1 + 1")?.value, 2);
/// assert_eq!(session.execute("boom")?.outcome, Outcome::Failed);
/// assert_eq!(session.execute("once")?.stdout, "hello\n");
/// assert_eq!(fake.asked(), ["1 + 1", "boom", "once"]);
/// fake.assert_used_up();
/// # Ok::<(), remuda::Error>(())
/// ```
///
/// Clones are the same worker: what is added to one is there for all, for sessions that run too.
#[derive(Clone, Default)]
pub struct FakeWorker {
    stage: Arc<Stage>,
}

type Handler = Arc<dyn Fn(&FakeRequest) -> FakeReply + Send + Sync>;

/// What the threads that play share with the test.
#[derive(Default)]
pub(super) struct Script {
    lines: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    expected: VecDeque<(String, FakeReply)>,
    standing: Vec<(String, FakeReply)>,
    otherwise: Option<Handler>,
    plan: FaultPlan,
    before_ready: Option<Hold>,
    asked: Vec<FakeRequest>,
    starts: u64,
    counts: [u64; 4],
}

/// The script and the threads that play it.
#[derive(Default)]
struct Stage {
    script: Arc<Script>,
    threads: Arc<Mutex<Vec<Background>>>,
}

impl FakeWorker {
    /// One without a script.
    pub fn new() -> FakeWorker {
        FakeWorker::default()
    }

    /// The runtime whose sessions it plays. It cannot have a wrapper.
    pub fn runtime(&self) -> Runtime {
        let stage: Arc<dyn StandIn> = Arc::<Stage>::clone(&self.stage);
        Runtime::played("/bin/sh", &HOLDER, Player(stage))
    }

    /// Requests with this text have this value.
    pub fn answer(self, text: impl Into<String>, value: impl Serialize) -> FakeWorker {
        self.reply(text, FakeReply::value(value))
    }

    /// Requests with this text raise this.
    pub fn fail(
        self,
        text: impl Into<String>,
        kind: impl Into<String>,
        message: impl Into<String>,
    ) -> FakeWorker {
        self.reply(text, FakeReply::error(kind, message))
    }

    /// Requests with this text are replied to like this, however many come.
    pub fn reply(self, text: impl Into<String>, reply: FakeReply) -> FakeWorker {
        self.stage.script.lines.lock().standing.push((text.into(), reply));
        self
    }

    /// The next request with this text is replied to like this, once.
    /// [`assert_used_up`](FakeWorker::assert_used_up) tells of those that never came.
    pub fn expect(self, text: impl Into<String>, reply: FakeReply) -> FakeWorker {
        self.stage.script.lines.lock().expected.push_back((text.into(), reply));
        self
    }

    /// Everything else is replied to like this. Called on the thread that plays the worker; while it
    /// runs, that thread sees neither cancels nor kills: use a [`Hold`] to wait. If it panics, its
    /// worker ends.
    pub fn otherwise(
        self,
        handler: impl Fn(&FakeRequest) -> FakeReply + Send + Sync + 'static,
    ) -> FakeWorker {
        self.stage.script.lines.lock().otherwise = Some(Arc::new(handler));
        self
    }

    /// What goes wrong, from now on.
    pub fn faults(self, plan: FaultPlan) -> FakeWorker {
        self.stage.script.lines.lock().plan = plan;
        self
    }

    /// Stops each start from now on at `hold`, before the worker says that it is ready.
    pub fn hold_starts(self, hold: &Hold) -> FakeWorker {
        self.stage.script.lines.lock().before_ready = Some(hold.clone());
        self
    }

    /// Processes that were started so far.
    pub fn starts(&self) -> u64 {
        self.stage.script.lines.lock().starts
    }

    /// Everything that it was asked so far, in the order of arrival.
    pub fn requests(&self) -> Vec<FakeRequest> {
        self.stage.script.lines.lock().asked.clone()
    }

    /// The texts of all code and calls so far, in the order of arrival.
    pub fn asked(&self) -> Vec<String> {
        self.texts(|_| true)
    }

    /// As [`asked`](FakeWorker::asked), of one session.
    pub fn asked_of(&self, session: SessionId) -> Vec<String> {
        self.texts(|request| request.session == session)
    }

    fn texts(&self, wanted: impl Fn(&FakeRequest) -> bool) -> Vec<String> {
        let lines = self.stage.script.lines.lock();
        let work = |request: &&FakeRequest| matches!(request.kind, FakeKind::Code | FakeKind::Call);
        let asked = lines.asked.iter().filter(work).filter(|request| wanted(request));
        asked.map(|request| request.text.clone()).collect()
    }

    /// Fails unless each [`expect`](FakeWorker::expect) has been met.
    ///
    /// # Panics
    /// With the texts that never came.
    #[track_caller]
    pub fn assert_used_up(&self) {
        let left: Vec<String> =
            self.stage.script.lines.lock().expected.iter().map(|(text, _)| text.clone()).collect();
        assert!(left.is_empty(), "the script was not used up: {left:?}");
    }
}

impl Script {
    /// A start begins: its number, what goes wrong with it, and where it stops.
    pub(super) fn begin_start(&self) -> (u64, Option<Fault>, Option<Hold>) {
        let mut lines = self.lines.lock();
        lines.starts += 1;
        let start = lines.starts;
        (start, lines.fault(When::Start, start, 0), lines.before_ready.clone())
    }

    /// Something goes wrong with this request, or not.
    pub(super) fn fault(&self, when: When, request: &FakeRequest) -> Option<Fault> {
        self.lines.lock().fault(when, request.start, request.number)
    }

    pub(super) fn plan(&self) -> FaultPlan {
        self.lines.lock().plan.clone()
    }

    pub(super) fn record(&self, request: &FakeRequest) {
        self.lines.lock().asked.push(request.clone());
    }

    /// What to do about a request.
    pub(super) fn reply(&self, request: &FakeRequest) -> FakeReply {
        let handler = {
            let mut lines = self.lines.lock();
            if let Some(at) = lines.expected.iter().position(|(text, _)| *text == request.text)
                && let Some((_, reply)) = lines.expected.remove(at)
            {
                return reply;
            }
            if let Some((_, reply)) = lines.standing.iter().find(|(text, _)| *text == request.text) {
                return reply.clone();
            }
            lines.otherwise.clone()
        };
        match handler {
            Some(handler) => handler(request),
            None if request.kind == FakeKind::WarmUp => FakeReply::none(),
            None => FakeReply::error("Unscripted", format!("the script has nothing for {:?}", request.text)),
        }
    }
}

impl Lines {
    fn fault(&mut self, when: When, start: u64, number: u64) -> Option<Fault> {
        let count = &mut self.counts[when as usize];
        *count += 1;
        self.plan.fault(when, Occasion { nth: *count, start, number })
    }
}

impl StandIn for Stage {
    fn take(&self, session: SessionId, ends: ChildEnds) -> io::Result<(ChildEnds, Entrance)> {
        let (stdin, life) = pipe_with(PipeFlags::CLOEXEC)?;
        let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let of_holder = ChildEnds { stdin, stdout: null.try_clone()?, stderr: null };
        let (script, threads) = (Arc::clone(&self.script), Arc::clone(&self.threads));
        let enter = move |body: Body| {
            let unlinked = Unlinked::new(ends, life, body)?;
            let thread = Background::spawn("remuda-fake", move || part::play(session, script, unlinked))?;
            let mut threads = threads.lock();
            threads.push(thread);
            let ended: Vec<Background> = threads.extract_if(.., |thread| thread.is_finished()).collect();
            drop(threads);
            drop(ended);
            Ok(())
        };
        Ok((of_holder, Box::new(enter)))
    }
}

impl Drop for Stage {
    /// A thread ends with its session; one whose handler is busy is not waited for, because this may
    /// be the reaper.
    fn drop(&mut self) {
        for thread in self.threads.lock().drain(..) {
            thread.leave();
        }
    }
}

impl fmt::Debug for FakeWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeWorker").field("starts", &self.starts()).finish_non_exhaustive()
    }
}
