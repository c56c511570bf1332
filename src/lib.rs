//! remuda (contract)
mod background;
mod cancel;
mod clock;
mod error;
mod pool;
mod session;
mod sync;

pub use cancel::CancelToken;
pub use error::{Error, Result};
pub use pool::*;
pub use session::{
    Call, Cause, Execution, ExecutionError, Exit, Limits, Memory, Omitted, Outcome, OutputCallback,
    PostMortem, Request, Runtime, Session, SessionConfig, SessionId, SessionInfo, SessionState, Stream,
    WorkDir,
};
