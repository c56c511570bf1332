//! Node: how its worker is started.

use std::ffi::OsString;
use std::sync::Arc;

/// What `node` is given on its command line: a stub that reads the worker from fd 0.
pub(super) fn launch_args() -> Vec<OsString> {
    Vec::new()
}

/// The worker, as it is sent to the stub: `u32` length and source.
pub(super) fn boot() -> Arc<[u8]> {
    Arc::from([])
}
