//! What a worker can do, by its own account.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// One thing that a worker can do beyond the least: see the table in `docs/worker-protocol.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[repr(u16)]
pub enum Feature {
    /// Runs code.
    Execute = 1,
    /// Calls functions by name.
    Call = 2,
    /// Imports modules and runs code before its first request.
    Warm = 4,
    /// Goes back to its warm state.
    Reset = 8,
    /// Tells what is in its namespace, and what a user left.
    Inspect = 16,
    /// Asks the host for input.
    Input = 32,
    /// Takes and sends attachments.
    Attachments = 64,
    /// Stops running code when it is cancelled, even in a busy loop.
    Interrupt = 128,
    /// Takes SIGINT for a hint to look for a cancel.
    Sigint = 256,
    /// Becomes a [`Template`](crate::Template) that makes sessions by copying itself.
    Fork = 512,
    /// Takes a request right behind a reset, and runs it only if that undid everything.
    OnlyIfClean = 1024,
    /// Makes a copy of itself and goes on: [`fork`](crate::Session::fork),
    /// [`checkpoint`](crate::Session::checkpoint).
    Branch = 2048,
}

/// A set of features.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Features(u16);

const NAMES: [(&str, Feature); 12] = [
    ("execute", Feature::Execute),
    ("call", Feature::Call),
    ("warm", Feature::Warm),
    ("reset", Feature::Reset),
    ("inspect", Feature::Inspect),
    ("input", Feature::Input),
    ("attachments", Feature::Attachments),
    ("interrupt", Feature::Interrupt),
    ("sigint", Feature::Sigint),
    ("fork", Feature::Fork),
    ("only_if_clean", Feature::OnlyIfClean),
    ("branch", Feature::Branch),
];

impl Features {
    pub(crate) fn has(self, feature: Feature) -> bool {
        self.0 & feature as u16 != 0
    }
}

impl Default for Features {
    /// A worker that does not say what it can do is taken to run code and calls.
    fn default() -> Features {
        Features(Feature::Execute as u16 | Feature::Call as u16)
    }
}

impl<'de> Deserialize<'de> for Features {
    /// From a list of names; unknown ones belong to a later host.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Features, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        let known = names.iter().filter_map(|name| NAMES.iter().find(|(known, _)| known == name));
        Ok(Features(known.fold(0, |set, (_, feature)| set | *feature as u16)))
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(NAMES.iter().filter(|(_, feature)| self.has(*feature)).map(|(name, _)| name))
            .finish()
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, feature)| feature == self).map_or("?", |(name, _)| name);
        f.write_str(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_features_are_ignored() {
        let features: Features = serde_json::from_str(r#"["call","teleport","reset"]"#).expect("a list");
        assert!(features.has(Feature::Call) && features.has(Feature::Reset));
        assert!(!features.has(Feature::Execute));
    }
}
