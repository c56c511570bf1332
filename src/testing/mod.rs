//! A test kit for programs that use remuda (feature `testing`).
//!
//! With a [`ManualClock`] nothing in a pool moves by itself: a test of an idle time-out of an hour
//! takes a millisecond and gives the same result each time.
//!
//! ```toml
//! [dev-dependencies]
//! remuda = { version = "0.1", features = ["testing"] }
//! ```

use std::time::Duration;

pub use crate::clock::ManualClock;
use crate::clock::Moment;

/// Far beyond what a program under test takes on a loaded machine.
const GENEROUS: Duration = Duration::from_secs(60);
/// Time between two looks.
const BETWEEN: Duration = Duration::from_millis(1);

/// Waits until `done`: for what another thread brings about soon and nothing tells of.
///
/// # Panics
/// After a minute by the system's clock, with what `otherwise` says.
#[track_caller]
pub fn eventually(mut done: impl FnMut() -> bool, otherwise: impl FnOnce() -> String) {
    let deadline = Moment::after(GENEROUS);
    while !done() {
        assert!(Moment::now() < deadline, "{}", otherwise());
        std::thread::park_timeout(BETWEEN);
    }
}
