//! The pool.
mod breaker;
mod config;
mod metrics;
mod state;

pub use breaker::BreakerState;
pub use config::{ConfigSummary, PoolConfig, Reuse};
pub use metrics::{BreakerInfo, PlaceName, PoolCounts, PoolInfo, PoolMetrics, SessionRow};

/// The pool
#[derive(Debug)]
pub struct SessionPool;
impl SessionPool {
    /// start
    pub fn start(config: PoolConfig) -> crate::Result<SessionPool> {
        drop(config);
        unimplemented!()
    }
}
