//! The worker of the tests `native_*`, and another program that tests run: examples of this package, built
//! before the first of them.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use remuda::{Runtime, SessionConfig};

use crate::support::isolated_child;

/// As `isolated!`, with the programs built before.
macro_rules! native {
    (fn $name:ident() $body:block) => {
        #[test]
        fn $name() {
            $crate::native_support::build();
            $crate::support::run_isolated(concat!(module_path!(), "::", stringify!($name)), || $body);
        }
    };
}
pub(crate) use native;

/// Options of a session of the test worker.
pub(crate) fn native_config() -> SessionConfig {
    SessionConfig::new(Runtime::native(program("native_test_worker"), [""; 0]))
}

/// Copies the standard streams of its arguments, and ends with them, as `ssh` does.
const RELAY: &str = "\
import os, subprocess, sys, threading
worker = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
def copy(source, target):
    while data := os.read(source, 1 << 16):
        while data: data = data[os.write(target, data):]
def requests():
    try: copy(0, worker.stdin.fileno())
    except OSError: pass
    worker.stdin.close()
threading.Thread(target=requests, daemon=True).start()
copy(worker.stdout.fileno(), 1)
os._exit(worker.wait() & 255)
";

/// The same worker behind a relay that keeps the standard streams only.
pub(crate) fn relayed_config() -> SessionConfig {
    let relay = ["python3", "-c", RELAY];
    SessionConfig::new(Runtime::native(program("native_test_worker"), [""; 0]).remote(relay))
}

/// Where cargo puts an example: beside the directory of the test binary.
pub(crate) fn program(name: &str) -> PathBuf {
    let program = profile_directory().join("examples").join(name);
    assert!(program.exists(), "{} was not built", program.display());
    program
}

fn profile_directory() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).expect("cargo's directory of the profile").to_owned()
}

/// Builds the programs, once per run of the tests: `cargo test --test it` alone does not.
pub(crate) fn build() {
    static BUILT: OnceLock<()> = OnceLock::new();
    if isolated_child() {
        return;
    }
    BUILT.get_or_init(|| {
        let directory = profile_directory();
        let profile = match directory.file_name().and_then(|name| name.to_str()) {
            Some("debug") => "dev",
            Some(profile) => profile,
            None => panic!("{} names no profile", directory.display()),
        };
        let output = Command::new(env!("CARGO"))
            .args(["build", "--offline", "--quiet", "--profile", profile])
            .args(
                ["native_test_worker", "native_worker", "opentelemetry"]
                    .map(|name| format!("--example={name}")),
            )
            .arg("--target-dir")
            .arg(directory.parent().unwrap())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    });
}
