//! Pause, drain and resume: what the app is told of them, on a thread of their own.
//!
//! What is wanted is a state, not a list of events: the tracker says with each answer whether the
//! session shall pause or drain, and the dead-man policy may want a pause as well. Each callback is
//! told what differs between what it was told last and what is wanted now.
//!
//! Invariants:
//! 1. A callback hears of each change once and in order, also when it was added after the change.
//! 2. There is at most one runner, so callbacks run one after the other, in the order of registration.
//! 3. A runner exists whenever some callback was not told what is wanted (it is started under the
//!    lock that made this true, and ends under the lock that finds nothing to tell).

use std::sync::Arc;
use std::thread::{self, ThreadId};

use crate::background::{Background, shielded};
use crate::clock::Moment;
use crate::sync::{Condvar, Mutex, wait_until};
use crate::tracker::api::Verb;

type Callback = Arc<dyn Fn(Verb) + Send + Sync>;

/// What is wanted of one client, and whom it tells.
#[derive(Default)]
pub(super) struct Orders {
    state: Mutex<State>,
    /// The runner has ended.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    callbacks: Vec<(Callback, Wanted)>,
    /// What the tracker wants.
    heard: Wanted,
    /// The dead-man policy wants a pause.
    is_lost: bool,
    runner: Option<ThreadId>,
    thread: Option<Background>,
    closed: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    pause: bool,
    drain: bool,
}

impl Wanted {
    /// What to say to somebody who was told `before`.
    fn news(self, before: Wanted) -> Vec<Verb> {
        let taken_back = (before.pause && !self.pause) || (before.drain && !self.drain);
        let before = if taken_back { Wanted::default() } else { before };
        let mut verbs = Vec::new();
        if taken_back {
            verbs.push(Verb::Resume);
        }
        if self.pause && !before.pause {
            verbs.push(Verb::Pause);
        }
        if self.drain && !before.drain {
            verbs.push(Verb::Drain);
        }
        verbs
    }
}

impl State {
    fn wanted(&self) -> Wanted {
        Wanted { pause: self.heard.pause || self.is_lost, ..self.heard }
    }

    /// The next callback to be called, and with what.
    fn next(&mut self) -> Option<(Callback, Vec<Verb>)> {
        let wanted = self.wanted();
        let (callback, told) = self.callbacks.iter_mut().find(|(_, told)| *told != wanted)?;
        let verbs = wanted.news(*told);
        *told = wanted;
        Some((Arc::clone(callback), verbs))
    }
}

impl Orders {
    /// Adds a callback; it is called at once if something is wanted.
    pub(super) fn add(self: &Arc<Self>, callback: Callback) {
        let mut refused = None;
        self.change(|state| {
            if state.closed {
                refused = Some(callback);
            } else {
                state.callbacks.push((callback, Wanted::default()));
            }
        });
        drop(refused);
    }

    /// What the tracker wants now.
    pub(super) fn hear(self: &Arc<Self>, pause: bool, drain: bool) {
        self.change(|state| state.heard = Wanted { pause, drain });
    }

    /// Whether the dead-man policy wants a pause.
    pub(super) fn set_lost(self: &Arc<Self>, is_lost: bool) {
        self.change(|state| state.is_lost = is_lost);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.state.lock().wanted().pause
    }

    pub(super) fn is_draining(&self) -> bool {
        self.state.lock().heard.drain
    }

    /// No further callback is called. Waits for the one that runs, at most until `deadline`, and not
    /// on its own thread.
    pub(super) fn close(&self, deadline: Moment) {
        let mut state = self.state.lock();
        state.closed = true;
        let callbacks = std::mem::take(&mut state.callbacks);
        let is_own = state.runner == Some(thread::current().id());
        while state.runner.is_some() && !is_own && !wait_until(&self.idle, &mut state, Some(deadline)) {}
        let (thread, runs) = (state.thread.take(), state.runner.is_some());
        drop(state);
        drop(callbacks);
        match thread {
            Some(thread) if runs => thread.leave(),
            // Joined outside the lock: it may be on its last instructions.
            ended => drop(ended),
        }
    }

    /// Changes the state and restores invariant 3.
    fn change(self: &Arc<Self>, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        let wanted = state.wanted();
        let has_news = state.callbacks.iter().any(|(_, told)| *told != wanted);
        if !has_news || state.runner.is_some() {
            return;
        }
        let orders = Arc::clone(self);
        // The new thread waits for the lock that is held here, so it finds itself registered.
        let ended = match Background::spawn("remuda-orders", move || orders.run()) {
            Ok(thread) => {
                state.runner = Some(thread.id());
                state.thread.replace(thread)
            }
            Err(error) => {
                // The next answer of the tracker tries again.
                log::error!("no thread to pass the tracker's orders on: {error}");
                None
            }
        };
        drop(state);
        // It gave up its place under the lock and is on its last instructions.
        drop(ended);
    }

    fn run(&self) {
        loop {
            let next = {
                let mut state = self.state.lock();
                let next = state.next();
                if next.is_none() {
                    state.runner = None;
                    self.idle.notify_all();
                }
                next
            };
            let Some((callback, verbs)) = next else { return };
            for verb in verbs {
                shielded("a callback for the tracker's orders", || callback(verb));
            }
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
    fn each_change_is_told_once_and_in_order() {
        let orders = Arc::new(Orders::default());
        let (tell, told) = unbounded();
        let add = |name: &'static str| {
            let tell = tell.clone();
            orders.add(Arc::new(move |verb| {
                tell.send((name, verb)).expect("the test listens");
                assert_ne!(name, "one", "on purpose: it keeps nobody else from being told");
            }));
        };
        let next = || told.recv_timeout(GENEROUS).expect("a callback runs");
        add("one");
        add("two");
        for _ in 0..3 {
            orders.hear(true, false);
        }
        assert_eq!([next(), next()], [("one", Verb::Pause), ("two", Verb::Pause)]);
        // One that is added late is told what is wanted, and nobody else again.
        add("late");
        assert_eq!(next(), ("late", Verb::Pause));
        // The dead-man policy wants what is wanted already: nothing to say, until both are over.
        orders.set_lost(true);
        orders.hear(false, false);
        assert!(orders.is_paused());
        orders.set_lost(false);
        assert_eq!([next().1, next().1, next().1], [Verb::Resume; 3]);
        orders.hear(false, true);
        assert_eq!([next().1, next().1, next().1], [Verb::Drain; 3]);
        assert!(orders.is_draining() && !orders.is_paused());
        orders.close(Moment::after(GENEROUS));
        orders.hear(true, true);
        add("after the end");
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn what_was_taken_back_is_followed_by_what_still_holds() {
        let (none, pause) = (Wanted::default(), Wanted { pause: true, drain: false });
        let (drain, both) = (Wanted { pause: false, drain: true }, Wanted { pause: true, drain: true });
        assert_eq!(both.news(none), [Verb::Pause, Verb::Drain]);
        assert_eq!(both.news(pause), [Verb::Drain]);
        assert_eq!(drain.news(both), [Verb::Resume, Verb::Drain]);
        assert_eq!(none.news(both), [Verb::Resume]);
        assert_eq!(none.news(none), []);
    }

    #[test]
    fn a_callback_may_close_its_own_orders() {
        let orders = Arc::new(Orders::default());
        let (tell, told) = unbounded();
        let inside = Arc::downgrade(&orders);
        orders.add(Arc::new(move |_| {
            inside.upgrade().expect("it lives").close(Moment::after(GENEROUS));
            tell.send(()).expect("the test listens");
        }));
        orders.hear(true, false);
        assert_eq!(told.recv_timeout(GENEROUS), Ok(()));
        orders.close(Moment::after(GENEROUS));
    }
}
