//! `remuda bench`: measures this machine.

use std::process::ExitCode;

/// Runs the benchmarks that `args` ask for.
pub(crate) fn main(args: lexopt::Parser) -> ExitCode {
    drop(args);
    crate::unusable("this build has no benchmarks")
}
