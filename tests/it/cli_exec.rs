//! `remuda exec` from outside.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::cli_run::{outcome, remuda};
use crate::support::{ScratchDir, isolated};

fn exec(dir: &ScratchDir, args: &[&str]) -> (Option<i32>, String, String) {
    outcome(remuda(dir.path(), &[&["exec"], args].concat()).output().unwrap())
}

isolated! {
    fn value_output_and_status_of_a_snippet() {
        let dir = ScratchDir::new();
        for (code, status, stdout, stderr) in [
            ("6 * 7", 0, "42\n", ""),
            ("import sys; print('hi'); print('err', file=sys.stderr); {1}", 0, "hi\n{1}\n", "err\n"),
            ("x = 1", 0, "", ""),
            ("import sys; sys.exit(3)", 3, "", ""),
            ("import sys; sys.exit('why')", 1, "", "why\n"),
            ("import sys; sys.exit()", 0, "", ""),
            ("import os; os.kill(os.getpid(), 9)", 1, "", "remuda: died: signal 9\n"),
        ] {
            let (got, out, err) = exec(&dir, &[code]);
            assert_eq!((got, out.as_str(), err.as_str()), (Some(status), stdout, stderr), "{code}");
        }
        let (status, stdout, stderr) = exec(&dir, &["1 / 0"]);
        assert_eq!((status, stdout.as_str()), (Some(1), ""));
        assert!(stderr.ends_with("ZeroDivisionError: division by zero\n"), "{stderr}");
        let (status, _, stderr) = exec(&dir, &["--time-limit", "0.1", "while True: pass"]);
        assert_eq!(status, Some(1));
        assert!(stderr.contains("KeyboardInterrupt") && stderr.contains("timed out"), "{stderr}");
    }
}

isolated! {
    fn code_comes_from_standard_input() {
        let dir = ScratchDir::new();
        for args in [&["exec"][..], &["exec", "-"][..]] {
            let mut child =
                remuda(dir.path(), args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(b"def f():\n    return 'x'\nf()\n").unwrap();
            let (status, stdout, stderr) = outcome(child.wait_with_output().unwrap());
            assert_eq!((status, stdout.as_str(), stderr.as_str()), (Some(0), "'x'\n", ""));
        }
    }
}

isolated! {
    fn json_holds_everything() {
        let dir = ScratchDir::new();
        let (status, stdout, stderr) = exec(&dir, &["--json", "print('hi'); {'a': [1, None]}"]);
        assert_eq!((status, stderr.as_str()), (Some(0), ""));
        let row: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(row["value"], serde_json::json!({"a": [1, null]}));
        assert_eq!((&row["stdout"], &row["repr"]), (&"hi\n".into(), &"{'a': [1, None]}".into()));
        let (status, stdout, _) = exec(&dir, &["--json", "1 / 0"]);
        let row: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((status, &row["error"]["type"]), (Some(1), &"ZeroDivisionError".into()));
    }
}

isolated! {
    fn what_cannot_be_used_is_refused() {
        let dir = ScratchDir::new();
        for (args, said) in [
            (&["--python", "./none", "1"][..], "./none"),
            (&["--import", "no_such_module", "1"][..], "no_such_module"),
            (&["1", "2"][..], "quotes"),
            (&["--wat"][..], "'--wat'\nTry 'remuda help exec'."),
        ] {
            let (status, stdout, stderr) = exec(&dir, args);
            assert_eq!((status, stdout.as_str()), (Some(2), ""));
            assert!(stderr.contains(said), "{stderr}");
        }
    }
}
