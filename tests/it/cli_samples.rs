//! The sample scripts: in a session they print what they print under a plain interpreter.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::cli_run::{outcome, remuda};
use crate::support::isolated;

isolated! {
    fn every_sample_prints_in_a_session_what_it_prints_under_python() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut scripts: Vec<String> = std::fs::read_dir(root.join("examples/scripts"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "py"))
            .map(|path| format!("examples/scripts/{}", path.file_name().unwrap().to_string_lossy()))
            .filter(|name| !name.ends_with("patient.py"))
            .collect();
        scripts.sort();
        assert!(scripts.len() >= 8, "{scripts:?}");
        compare(root, &scripts, &[]);
        compare(root, &["examples/scripts/patient.py".to_owned()], &["0.1"]);
    }
}

/// Runs them both ways and compares output and success; only `raises.py` may fail, and must.
fn compare(root: &Path, scripts: &[String], args: &[&str]) {
    let names: Vec<&str> = scripts.iter().map(String::as_str).collect();
    let line = [&["run", "--no-tracker", "--json"], &names[..], &["--"], args].concat();
    let (_, stdout, stderr) = outcome(remuda(root, &line).output().unwrap());
    assert_eq!(stderr, "");
    let rows: BTreeMap<String, Value> = stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|row| (row["script"].as_str().unwrap().to_owned(), row))
        .collect();
    assert_eq!(rows.len(), scripts.len());
    for name in scripts {
        let mut python = Command::new("python3");
        python.arg(name).args(args).current_dir(root).stdin(Stdio::null());
        let (code, stdout, _) = outcome(python.output().unwrap());
        let row = &rows[name];
        assert_eq!(row["stdout"], stdout.as_str(), "{name}");
        assert_eq!(row["ok"], code == Some(0), "{name}: {row}");
        assert_eq!(row["ok"], !name.ends_with("raises.py"), "{name}: {row}");
    }
}
