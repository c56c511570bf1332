//! What a client does that has been without its tracker for too long. A thread of its own, because
//! the others may hang in a request or in the system's name lookup just then.

use super::shared::{Contact, Phase, Shared};
use crate::clock::Moment;

/// What a client does once it has been without its tracker for
/// [`lost_after`](super::ClientConfig::lost_after). By then an operator can neither see nor stop it,
/// and a tracker that still runs has given it up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadMan {
    /// The work goes on.
    #[default]
    Continue,
    /// The app is told to pause, as an operator would; when the tracker is back, to resume.
    Pause,
    /// The app is told to stop, as by a kill: the token is cancelled and the callbacks run. Coming
    /// back does not undo it.
    Stop,
}

/// The thread.
pub(super) fn run(shared: &Shared) {
    let mut state = shared.lock();
    while state.phase == Phase::Open {
        // A parked beat is silent for long: only a client that knows itself offline is lost.
        let offline = state.contact != Contact::Connected && !state.lost;
        let due = offline.then(|| state.heard_at + shared.config.lost_after);
        if due.is_some_and(|due| due <= Moment::now()) {
            state.lost = true;
            drop(state);
            give_up(shared);
            state = shared.lock();
        } else {
            shared.wait(&mut state, due);
        }
    }
}

fn give_up(shared: &Shared) {
    let (app, after) = (&shared.config.app_name, shared.config.lost_after);
    match shared.config.on_server_lost {
        DeadMan::Continue => {}
        DeadMan::Pause => {
            log::warn!("{app} has been without its tracker for {after:?} and is told to pause");
            shared.orders.set_lost(true);
            // The tracker may have come back meanwhile.
            let back = !shared.lock().lost;
            if back {
                shared.orders.set_lost(false);
            }
        }
        DeadMan::Stop => {
            log::warn!("{app} has been without its tracker for {after:?} and is told to stop");
            shared.callbacks.fire();
        }
    }
}
