//! Workers that do nothing: processes that say *ready* and then read until their end. They make the
//! rows of the pool cheap to set up and independent of a language.

use remuda::{PoolConfig, Reuse, Runtime, SessionConfig, WorkDir};

/// A pool of exactly this many idle workers, handed out as they are.
pub(crate) fn pool(count: usize) -> PoolConfig {
    PoolConfig::of(SessionConfig::new(runtime()).work_dir(WorkDir::Inherit))
        .min_idle(count)
        .max_sessions(count)
        .reuse(Reuse::Keep)
}

/// `/bin/sh` writes one *ready* frame and becomes `cat`, which ends with its stdin.
fn runtime() -> Runtime {
    let ready = br#"{"protocol":1,"language":"none","version":"0"}"#;
    let first = u32::try_from(ready.len()).unwrap_or(0);
    let mut frame = Vec::new();
    frame.extend_from_slice(&(first + 4).to_le_bytes());
    // Kind 2, no flags, two zero bytes; request 0.
    frame.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(&first.to_le_bytes());
    frame.extend_from_slice(ready);
    let octal = frame.iter().fold(String::new(), |octal, byte| octal + &format!("\\{byte:03o}"));
    Runtime::command("/bin/sh", ["-c".to_owned(), format!("printf '{octal}'; exec cat >/dev/null")])
}
