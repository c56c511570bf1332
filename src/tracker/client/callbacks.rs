//! What runs when a tracked session is killed or ends: each callback once, in order, on a thread of
//! their own.
//!
//! Invariants:
//! 1. A callback is in the queue exactly from its registration until the runner takes it: it runs once.
//! 2. There is at most one runner, so callbacks run one after the other, in the order of registration.
//! 3. A runner exists whenever `fired` holds and the queue is not empty (it is started under the
//!    lock that made this true, and ends under the lock that finds the queue empty).

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};

use crate::background::{Background, shielded};
use crate::cancel::CancelToken;
use crate::sync::{Condvar, Mutex};

type Callback = Box<dyn FnOnce() + Send>;

/// The callbacks of one client, and its token.
#[derive(Default)]
pub(super) struct Callbacks {
    /// Cancelled when the callbacks are due, before the first of them runs.
    pub(super) token: CancelToken,
    state: Mutex<State>,
    /// The runner has ended.
    idle: Condvar,
    /// Called without the lock when the stage has changed.
    watcher: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// How far a client is on its way out, as its callbacks show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// The callbacks are not due.
    #[default]
    Waiting,
    /// The token is cancelled, the callbacks begin or run. It stays so if there are none: then nothing
    /// shows when the work has stopped, but the session's end.
    Running,
    /// The callbacks have ended.
    Over,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Callback>,
    fired: bool,
    stage: Stage,
    /// The thread that runs callbacks now.
    runner: Option<ThreadId>,
    thread: Option<Background>,
    /// To be done once the queue is empty, by the runner: what `stop` inside a callback leaves behind.
    afterwards: Option<Callback>,
}

/// Who runs the callbacks, as far as the caller must do something about it.
enum Runner {
    Present,
    Replaced(Background),
    Caller,
}

impl Callbacks {
    /// Has `watcher` called whenever the stage has changed; the first one stays.
    pub(super) fn on_change(&self, watcher: impl Fn() + Send + Sync + 'static) {
        let _ = self.watcher.set(Box::new(watcher));
    }

    pub(super) fn stage(&self) -> Stage {
        self.state.lock().stage
    }

    fn tell_watcher(&self) {
        if let Some(watcher) = self.watcher.get() {
            watcher();
        }
    }

    /// Adds a callback; once the callbacks were fired, it runs at once.
    pub(super) fn add(self: &Arc<Self>, callback: Callback) {
        let mut state = self.state.lock();
        state.queue.push_back(callback);
        let runner = self.ensure_runner(&mut state);
        drop(state);
        self.follow(runner);
    }

    /// Cancels the token and has the callbacks run; later calls do nothing. Does not wait.
    pub(super) fn fire(self: &Arc<Self>) {
        // First, and outside the lock: whoever is woken by it may add a callback.
        self.token.cancel();
        let mut state = self.state.lock();
        if state.fired {
            return;
        }
        state.fired = true;
        state.stage = Stage::Running;
        let runner = self.ensure_runner(&mut state);
        drop(state);
        self.tell_watcher();
        self.follow(runner);
    }

    /// Waits until every callback has ended and returns true; on the thread that runs them it
    /// returns false at once, and `afterwards` is done when they have ended.
    pub(super) fn wait_or(&self, afterwards: impl FnOnce() + Send + 'static) -> bool {
        let thread = {
            let mut state = self.state.lock();
            if state.runner == Some(thread::current().id()) {
                state.afterwards.get_or_insert_with(|| Box::new(afterwards));
                return false;
            }
            while state.runner.is_some() {
                self.idle.wait(&mut state);
            }
            state.thread.take()
        };
        // Joined outside the lock: the thread may still be on its last instructions.
        drop(thread);
        true
    }

    /// Restores invariant 3.
    fn ensure_runner(self: &Arc<Self>, state: &mut State) -> Runner {
        if !state.fired || state.queue.is_empty() || state.runner.is_some() {
            return Runner::Present;
        }
        let callbacks = Arc::clone(self);
        // The new thread waits for the lock that is held here, so it finds itself registered.
        match Background::spawn("remuda-kill", move || callbacks.run()) {
            Ok(thread) => {
                state.runner = Some(thread.id());
                state.thread.replace(thread).map_or(Runner::Present, Runner::Replaced)
            }
            Err(error) => {
                log::error!("no thread for kill callbacks, they run on another one: {error}");
                state.runner = Some(thread::current().id());
                Runner::Caller
            }
        }
    }

    /// What is left to do about the runner once the lock is released.
    fn follow(&self, runner: Runner) {
        match runner {
            Runner::Present => {}
            // It gave up its place under the lock and is on its last instructions.
            Runner::Replaced(ended) => drop(ended),
            Runner::Caller => self.run(),
        }
    }

    /// The runner: takes callback after callback until none is left.
    fn run(&self) {
        loop {
            let next = {
                let mut state = self.state.lock();
                let next = state.queue.pop_front();
                if next.is_none() && std::mem::replace(&mut state.stage, Stage::Over) != Stage::Over {
                    drop(state);
                    // Before anybody hears that the runner has ended: its end is the client's.
                    self.tell_watcher();
                    continue;
                }
                let next = next.or_else(|| state.afterwards.take());
                if next.is_none() {
                    state.runner = None;
                    self.idle.notify_all();
                }
                next
            };
            let Some(callback) = next else { return };
            shielded("a kill callback", callback);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::unbounded;
    use std::time::Duration;

    const GENEROUS: Duration = Duration::from_secs(60);

    #[test]
    fn callbacks_run_once_in_order_and_survive_a_panic() {
        let callbacks = Arc::new(Callbacks::default());
        let (ran, order) = unbounded();
        for number in 0..3 {
            let ran = ran.clone();
            callbacks.add(Box::new(move || {
                ran.send(number).expect("the test listens");
                assert_ne!(number, 1, "on purpose");
            }));
        }
        callbacks.fire();
        callbacks.fire();
        assert!(callbacks.wait_or(|| panic!("not inside a callback")));
        callbacks.add(Box::new(move || ran.send(3).expect("the test listens")));
        assert!(callbacks.wait_or(|| panic!("not inside a callback")));
        assert_eq!(order.iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn the_stage_tells_whether_the_callbacks_are_due_running_or_over() {
        let callbacks = Arc::new(Callbacks::default());
        let (watcher, changes) = unbounded();
        callbacks.on_change(move || watcher.send(()).expect("the test listens"));
        let (inside, (let_go, gate)) = (Arc::clone(&callbacks), unbounded());
        let (seen, stages) = unbounded();
        callbacks.add(Box::new(move || {
            seen.send(inside.stage()).expect("the test listens");
            gate.recv_timeout(GENEROUS).expect("the test lets go");
        }));
        assert_eq!(callbacks.stage(), Stage::Waiting);
        callbacks.fire();
        assert_eq!(stages.recv_timeout(GENEROUS), Ok(Stage::Running));
        assert_eq!(changes.recv_timeout(GENEROUS), Ok(()));
        let_go.send(()).expect("the callback waits");
        assert_eq!(changes.recv_timeout(GENEROUS), Ok(()));
        assert_eq!(callbacks.stage(), Stage::Over);
        assert!(callbacks.wait_or(|| ()));
    }

    #[test]
    fn without_callbacks_nothing_shows_that_the_work_has_stopped() {
        let callbacks = Arc::new(Callbacks::default());
        callbacks.fire();
        assert_eq!(callbacks.stage(), Stage::Running);
    }

    #[test]
    fn the_token_is_cancelled_before_the_first_callback_runs() {
        let callbacks = Arc::new(Callbacks::default());
        let token = callbacks.token.clone();
        let (seen, was_cancelled) = unbounded();
        callbacks.add(Box::new(move || seen.send(token.is_cancelled()).expect("the test listens")));
        callbacks.fire();
        assert_eq!(was_cancelled.recv_timeout(GENEROUS), Ok(true));
        assert!(callbacks.wait_or(|| ()));
    }

    #[test]
    fn whoever_waits_inside_a_callback_gets_the_rest_done_afterwards() {
        let callbacks = Arc::new(Callbacks::default());
        let (ran, order) = unbounded();
        let (inside, afterwards, last) = (Arc::clone(&callbacks), ran.clone(), ran);
        callbacks.add(Box::new(move || {
            assert!(!inside.wait_or(move || afterwards.send("afterwards").expect("the test listens")));
        }));
        callbacks.add(Box::new(move || last.send("last callback").expect("the test listens")));
        callbacks.fire();
        assert!(callbacks.wait_or(|| ()));
        assert_eq!(order.iter().collect::<Vec<_>>(), ["last callback", "afterwards"]);
    }
}
