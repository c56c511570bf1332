//! remuda (contract)
mod background;
mod cancel;
mod clock;
mod error;
mod pool;
mod session;
mod sync;
#[cfg(any(feature = "client", feature = "server"))]
pub mod tracker;

pub use cancel::CancelToken;
pub use error::{Error, Result};
pub use session::{
    Call, Cause, Execution, ExecutionError, Exit, Limits, Memory, Omitted, Outcome, OutputCallback,
    PostMortem, Request, Runtime, Session, SessionConfig, SessionId, SessionInfo, SessionState, Stream,
    WorkDir,
};
#[cfg(feature = "server")]
pub use tracker::{SessionStore, TrackerServer, TrackerServerBuilder};
#[cfg(any(feature = "client", feature = "server"))]
pub use tracker::{TrackedId, TrackedSession, TrackedStatus};
