//! A test kit for programs that use remuda (feature `testing`).
//!
//! - [`FakeWorker`]: a scripted worker without an interpreter. A thread of this process plays it
//!   over the real protocol and the real channels, so sessions and pools do with it all that they do
//!   with a real one: start, answer, print, be cancelled, be killed.
//! - [`Hold`]: stops a request, or a start, until the test lets it go. Order is forced, not slept for.
//! - [`FaultPlan`]: starts that fail or hang, workers that die, garbled and cut frames, slow links,
//!   dirty resets, deaf workers. Drawn from a seed: the same each time.
//! - [`ManualClock`]: nothing in a pool moves by itself; an hour passes in a microsecond.
//!
//! ```toml
//! [dev-dependencies]
//! remuda = { version = "0.1", features = ["testing"] }
//! ```
//!
//! Your own kill logic, tested without a sleep:
//!
//! ```
//! use remuda::testing::{FakeReply, FakeWorker, Hold};
//! use remuda::{CancelToken, Outcome, SessionPool};
//!
//! let busy = Hold::new();
//! let fake = FakeWorker::new()
//!     .answer("quick", 42)
//!     .reply("endless", FakeReply::none().hold(&busy));
//! let pool = SessionPool::builder(fake.runtime()).min_idle(0).start()?;
//!
//! let kill = CancelToken::new();
//! let scope = pool.scope(&kill);
//! let job = scope.submit("endless");
//! busy.await_held(1); // it runs now, for certain
//! kill.cancel();
//! assert_eq!(job.wait()?.outcome, Outcome::Cancelled { killed: false });
//! assert_eq!(pool.acquire()?.execute("quick")?.value, 42);
//! # Ok::<(), remuda::Error>(())
//! ```
//!
//! `docs/guide/testing.md` shows more.

mod fake;
mod faults;
mod hold;
mod link;
mod part;
mod reply;

use std::time::Duration;

pub use crate::clock::ManualClock;
use crate::clock::Moment;
pub use fake::FakeWorker;
pub use faults::{Fault, FaultPlan};
pub use hold::Hold;
pub use reply::{FakeKind, FakeReply, FakeRequest};

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
