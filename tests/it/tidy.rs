//! The tree keeps its shape: arrows between modules, file sizes, no sleeping, no leftovers.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(directory: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut pending: Vec<PathBuf> = vec![root.join(directory)];
    while let Some(path) = pending.pop() {
        if path.is_dir() && path.ends_with("target") {
            // What cargo builds for the fuzz targets.
        } else if path.is_dir() {
            pending.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            files.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    assert!(!files.is_empty(), "{directory} holds sources");
    files
}

/// The part of a file before its unit tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap()
}

#[test]
fn arrows_between_modules_point_one_way() {
    let leaves = [
        "src/error.rs",
        "src/cancel.rs",
        "src/clock.rs",
        "src/background.rs",
        "src/sync.rs",
        "src/histogram.rs",
        "src/openmetrics.rs",
    ];
    for (name, text) in sources("src") {
        let uses = |module: &str| code(&text).contains(&format!("crate::{module}"));
        let forbidden: &[&str] = if leaves.contains(&name.as_str()) || name.starts_with("src/session/") {
            &["pool", "tracker"]
        } else if name.starts_with("src/pool/") {
            &["tracker"]
        } else if name.starts_with("src/tracker/") {
            &["pool", "session"]
        } else {
            &[]
        };
        if name.starts_with("src/tracker/http/") {
            for foreign in ["api::", "Tracked", "store::"] {
                assert!(!code(&text).contains(foreign), "{name} knows HTTP only, but names {foreign}");
            }
        }
        for module in forbidden {
            assert!(!uses(module), "{name} must not know crate::{module}");
        }
        if name.starts_with("src/pool/state") && !name.ends_with("tests.rs") {
            for impure in
                ["crate::session", "crate::sync", "crate::background", "std::thread", "Moment::now", "Mutex"]
            {
                assert!(!code(&text).contains(impure), "{name} is pure, but names {impure}");
            }
        }
        let pure = [
            "src/tracker/events.rs",
            "src/tracker/life.rs",
            "src/tracker/preview.rs",
            "src/tracker/receipts.rs",
        ];
        if pure.contains(&name.as_str()) {
            for impure in
                ["crate::sync", "crate::background", "std::thread", "Moment::now", "Mutex", "rusqlite"]
            {
                assert!(!code(&text).contains(impure), "{name} is pure, but names {impure}");
            }
        }
        if name != "src/clock.rs" && !name.starts_with("src/bin") {
            for clock in ["Instant::now", "SystemTime::now", "clock_gettime"] {
                assert!(!code(&text).contains(clock), "{name}: only clock.rs reads clocks, not {clock}");
            }
        }
        if name != "src/background.rs" && !name.starts_with("src/bin") {
            assert!(!code(&text).contains("thread::spawn"), "{name}: threads are made by Background");
        }
    }
}

#[test]
fn files_have_one_subject() {
    for (name, text) in sources("src").into_iter().chain(sources("tests")).chain(sources("benches")) {
        let lines = code(&text).lines().count();
        assert!(lines <= 700, "{name} has {lines} lines before its tests: more than one subject?");
    }
}

#[test]
fn nothing_sleeps_and_nothing_is_left_undone() {
    for (name, text) in sources("src").into_iter().chain(sources("tests")).chain(sources("examples")) {
        if name == "tests/it/tidy.rs" {
            continue;
        }
        for word in ["todo!(", "unimplemented!(", "#[ignore", "TODO", "FIXME"] {
            assert!(!text.contains(word), "{name} contains {word}");
        }
        if !name.starts_with("src/bin/remuda/bench") {
            assert!(!text.contains("thread::sleep"), "{name} sleeps");
        }
    }
}

#[test]
fn the_changelog_has_an_unreleased_section() {
    let changelog = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("CHANGELOG.md")).unwrap();
    assert!(changelog.contains("## Unreleased") || changelog.contains("## [Unreleased]"));
}

/// The plots are what the script makes of the figures beside it.
#[test]
fn the_plots_are_drawn_from_the_figures() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/plots/draw.py");
    let output = std::process::Command::new("python3").arg(script).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
