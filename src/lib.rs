//! remuda (contract)
mod error;
mod cancel;
mod clock;
mod background;
mod sync;
mod session;
mod pool;

pub use cancel::CancelToken;
pub use error::{Error, Result};
pub use session::{
    Call, Cause, Execution, ExecutionError, Exit, Limits, Memory, Omitted, Outcome, OutputCallback, PostMortem,
    Request, Runtime, Session, SessionConfig, SessionId, SessionInfo, SessionState, Stream, WorkDir,
};
