//! What a tenant of a shared pool may have.

use serde::Serialize;

use crate::error::{Error, Result};

/// The longest name of a tenant, in bytes. Names come from users.
pub(crate) const MAX_TENANT_NAME: usize = 256;

/// What one tenant may have of a pool, and its part when others want sessions as well. Each field
/// has a setter of the same name.
///
/// ```
/// use remuda::{PoolConfig, Quota, Runtime};
///
/// let config = PoolConfig::new(Runtime::python("python3"))
///     .quota(Quota::new().max_leases(2).max_queued(50))
///     .tenant_quota("nightly", Quota::new().max_leases(1))
///     .tenant_quota("gold", Quota::new().weight(3));
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Quota {
    /// Sessions that it may hold at the same time; who asks for more waits until it gives one back,
    /// even while sessions are idle. Default: no limit.
    pub max_leases: Option<usize>,
    /// Callers and jobs of it that may wait for a session at the same time; the next one gets
    /// [`Error::QuotaExceeded`]. Zero: it never waits. Default: no limit.
    pub max_queued: Option<usize>,
    /// Its part: of the tenants that wait, the one with the fewest sessions in use for its weight is
    /// served next. Default: 1.
    pub weight: u32,
}

impl Default for Quota {
    fn default() -> Quota {
        Quota { max_leases: None, max_queued: None, weight: 1 }
    }
}

impl Quota {
    /// No limits, weight 1.
    pub fn new() -> Quota {
        Quota::default()
    }

    /// Sets [`max_leases`](Quota::max_leases).
    pub fn max_leases(mut self, leases: impl Into<Option<usize>>) -> Quota {
        self.max_leases = leases.into();
        self
    }

    /// Sets [`max_queued`](Quota::max_queued).
    pub fn max_queued(mut self, queued: impl Into<Option<usize>>) -> Quota {
        self.max_queued = queued.into();
        self
    }

    /// Sets [`weight`](Quota::weight).
    pub fn weight(mut self, weight: u32) -> Quota {
        self.weight = weight;
        self
    }

    pub(super) fn validate(&self, option: &'static str) -> Result<()> {
        if self.max_leases == Some(0) {
            return Err(Error::config(option, "max_leases is zero, so the tenant would wait for ever"));
        }
        if self.weight == 0 {
            return Err(Error::config(option, "the weight is zero; the least is 1"));
        }
        Ok(())
    }
}

/// Refuses the names of tenants that are too long to be kept.
pub(crate) fn check_name(name: &str) -> Result<()> {
    match name.len() {
        0 => Err(Error::TenantName { bytes: 0, cap: MAX_TENANT_NAME }),
        bytes if bytes > MAX_TENANT_NAME => Err(Error::TenantName { bytes, cap: MAX_TENANT_NAME }),
        _ => Ok(()),
    }
}
