//! `remuda run` from outside: output, table, JSON, exit statuses, refusals.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::{ScratchDir, isolated};

/// The program, in `dir`: sessions inherit that, so the support can find what is left of them.
pub(crate) fn remuda(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remuda"));
    command.args(args).current_dir(dir).stdin(Stdio::null());
    command
}

/// Exit status, stdout, stderr.
pub(crate) fn outcome(output: Output) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = output;
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn run(dir: &ScratchDir, args: &[&str]) -> (Option<i32>, String, String) {
    outcome(remuda(dir.path(), &[&["run", "--no-tracker"], args].concat()).output().unwrap())
}

/// The objects that `--json` printed: each line of stdout is one.
fn rows(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn row<'a>(rows: &'a [Value], script: &str) -> &'a Value {
    rows.iter().find(|row| row["script"] == script).unwrap()
}

/// The whole path of a file in `dir`, as a program that runs there sees it.
fn path_in(dir: &ScratchDir, name: &str) -> String {
    dir.path().canonicalize().unwrap().join(name).to_str().unwrap().to_owned()
}

isolated! {
    fn output_comes_behind_names_and_a_table_ends_it() {
        let dir = ScratchDir::new();
        dir.write("good.py", "import sys\nprint('one')\nprint('err', file=sys.stderr)\nprint('no end', end='')");
        dir.write("longer.py", "def f():\n    raise ValueError('on purpose')\nprint('two')\nf()\n");
        let (code, stdout, stderr) = run(&dir, &["good.py", "longer.py"]);
        assert_eq!(code, Some(1), "{stderr}");
        for line in ["good.py   | one\n", "good.py   | no end\n", "longer.py | two\n"] {
            assert!(stdout.contains(line), "{line:?} in {stdout}");
        }
        assert!(stderr.contains("good.py   | err\n"), "{stderr}");
        assert!(stderr.contains("longer.py | ValueError: on purpose\n"), "{stderr}");
        // The whole path, as Python shows it.
        let place = format!("longer.py |   File \"{}\", line 2, in f\n", path_in(&dir, "longer.py"));
        assert!(stderr.contains(&place), "{stderr}");
        let table: Vec<&str> = stdout.lines().rev().take(4).collect();
        assert!(table[3].starts_with("script     outcome"), "{stdout}");
        assert!(table[2].starts_with("good.py    completed") && table[2].ends_with(" MiB"), "{stdout}");
        assert!(table[1].starts_with("longer.py  failed: ValueError"), "{stdout}");
        assert!(table[0].ends_with("1 completed, 1 failed"), "{stdout}");
        assert!(!stdout.contains('\x1b') && !stderr.contains('\x1b'), "no progress without a terminal");
    }
}

isolated! {
    fn json_prints_an_object_per_script_and_nothing_else() {
        let dir = ScratchDir::new();
        dir.write("good.py", "import sys\nprint('äö')\nprint('err', file=sys.stderr)");
        dir.write("bad.py", "{}['missing']");
        let (code, stdout, stderr) = run(&dir, &["--json", "good.py", "bad.py"]);
        assert_eq!((code, stderr.as_str()), (Some(1), ""));
        let rows = rows(&stdout);
        assert_eq!(rows.len(), 2);
        let (good, bad) = (row(&rows, "good.py"), row(&rows, "bad.py"));
        assert_eq!((&good["outcome"], &good["ok"]), (&"completed".into(), &true.into()));
        assert_eq!((&good["stdout"], &good["stderr"]), (&"äö\n".into(), &"err\n".into()));
        assert_eq!(good["error"], Value::Null);
        assert!(good["seconds"].as_f64() > Some(0.0) && good["peak_memory"].as_u64() > Some(1 << 20));
        assert_eq!((&bad["outcome"], &bad["ok"]), (&"failed".into(), &false.into()));
        assert_eq!((&bad["error"]["type"], &bad["error"]["message"]), (&"KeyError".into(), &"'missing'".into()));
    }
}

isolated! {
    fn a_script_sees_what_python_would_show_it() {
        let dir = ScratchDir::new();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        dir.write("sub/neighbour.py", "word = 'found'");
        let source = "import json, os, sys, neighbour\nprint(json.dumps([__name__, __file__, sys.argv, os.getcwd(), \
                      os.environ['OURS'], os.environ['GIVEN'], neighbour.word, sys.stdin.read()]))";
        dir.write("sub/looks.py", source);
        let args = ["run", "--json", "--env", "GIVEN=x=y", "sub/looks.py", "--", "-a", "b c"];
        let (code, stdout, stderr) = outcome(remuda(dir.path(), &args).env("OURS", "1").output().unwrap());
        assert_eq!(code, Some(0), "{stdout}{stderr}");
        let seen: Value = serde_json::from_str(rows(&stdout)[0]["stdout"].as_str().unwrap()).unwrap();
        let cwd = dir.path().canonicalize().unwrap();
        let arguments = serde_json::json!(["sub/looks.py", "-a", "b c"]);
        let file = path_in(&dir, "sub/looks.py");
        let expected = serde_json::json!(["__main__", file, arguments, cwd, "1", "x=y", "found", ""]);
        assert_eq!(seen, expected);
    }
}

isolated! {
    fn scripts_in_different_directories_keep_their_own_modules() {
        let dir = ScratchDir::new();
        for part in ["a", "b"] {
            std::fs::create_dir(dir.path().join(part)).unwrap();
            dir.write(&format!("{part}/helper.py"), format!("word = 'helper of {part}'"));
            dir.write(&format!("{part}/main.py"), "import helper\nprint(helper.word)");
        }
        let (code, stdout, _) = run(&dir, &["-j1", "a/main.py", "b/main.py"]);
        assert_eq!(code, Some(0), "{stdout}");
        assert!(stdout.contains("a/main.py | helper of a\n"), "{stdout}");
        assert!(stdout.contains("b/main.py | helper of b\n"), "{stdout}");
    }
}

isolated! {
    fn sessions_are_used_again_only_if_asked() {
        let dir = ScratchDir::new();
        dir.write("first.py", "import os\nleft = 1\nos.chdir('/')\nprint(os.getpid())");
        dir.write("second.py", "import os\nprint(os.getpid())\nassert 'left' not in globals()\nassert os.getcwd() != '/'");
        for (options, same) in [(&["--json", "-j1"][..], false), (&["--json", "-j1", "--reuse"][..], true)] {
            let (code, stdout, _) = run(&dir, &[options, &["first.py", "second.py"]].concat());
            assert_eq!(code, Some(0), "{stdout}");
            let rows = rows(&stdout);
            assert_eq!(row(&rows, "first.py")["stdout"] == row(&rows, "second.py")["stdout"], same, "{stdout}");
        }
    }
}

isolated! {
    fn how_a_script_ends_is_told_apart() {
        let dir = ScratchDir::new();
        for (name, source) in [
            ("zero.py", "import sys; sys.exit(0)"),
            ("bare.py", "raise SystemExit"),
            ("three.py", "import sys; sys.exit(3)"),
            ("told.py", "import sys; sys.exit('no input')"),
            ("left.py", "import os; os._exit(7)"),
            ("killed.py", "import os; os.kill(os.getpid(), 9)"),
            ("endless.py", "while True: pass"),
            ("syntax.py", "def f(:\n"),
        ] {
            dir.write(name, source);
        }
        let (code, stdout, _) = run(&dir, &["zero.py", "bare.py"]);
        assert_eq!(code, Some(0), "{stdout}");
        let names = ["three.py", "told.py", "left.py", "killed.py", "endless.py", "syntax.py", "zero.py"];
        let (code, stdout, stderr) = run(&dir, &[&["--time-limit", "1"], &names[..]].concat());
        assert_eq!(code, Some(1));
        for (name, words) in [
            ("three.py", "failed: exit status 3"),
            ("told.py", "failed: exit status 1"),
            ("left.py", "died: exit code 7"),
            ("killed.py", "died: signal 9"),
            ("endless.py", "timed out"),
            ("syntax.py", "failed: SyntaxError"),
            ("zero.py", "completed"),
        ] {
            let found = stdout.lines().any(|line| line.starts_with(&format!("{name:<10}  {words}")));
            assert!(found, "{name} {words} in {stdout}");
        }
        assert!(stderr.contains("told.py    | no input\n"), "{stderr}");
        assert!(!stderr.contains("three.py"), "{stderr}");
    }
}

isolated! {
    fn what_cannot_be_used_is_refused_before_anything_starts() {
        let dir = ScratchDir::new();
        dir.write("good.py", "open('ran', 'w')");
        dir.write("latin.py", b"x = 1\ny = '\xff'\n");
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for (args, said) in [
            (&["good.py", "missing.py"][..], "missing.py: there is no such script"),
            (&["good.py", "sub"][..], "name the scripts in it, such as sub/*.py"),
            (&["good.py", "latin.py"][..], "latin.py: line 2 is not UTF-8; save the script in UTF-8"),
            (&["good.py", "--python", "./no-python"][..], "./no-python: there is no such program"),
            (&["good.py", "--python", "/bin/false"][..], "/bin/false"),
            (&["good.py", "--import", "no_such_module"][..], "no_such_module"),
            (&["good.py", "--jobs", "0"][..], "--jobs 0: nothing could ever run"),
            (&["good.py", "--unknown"][..], "'--unknown'\nTry 'remuda help run'."),
            (&[][..], "which scripts?"),
        ] {
            let (code, stdout, stderr) = run(&dir, args);
            assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}: {stderr}");
            assert!(stderr.starts_with("remuda: ") && stderr.contains(said), "{args:?}: {stderr}");
        }
        let (_, _, stderr) = run(&dir, &["missing.py", "sub"]);
        assert!(stderr.contains("missing.py") && stderr.contains("sub"), "all problems at once: {stderr}");
        assert!(!dir.path().join("ran").exists(), "nothing has started");
    }
}

isolated! {
    fn help_and_version_need_nothing() {
        let dir = ScratchDir::new();
        for (args, said) in [
            (&["--help"][..], "Usage:"),
            (&["help", "run"][..], "--time-limit"),
            (&["run", "--help"][..], "--time-limit"),
            (&["help", "exec"][..], "standard input"),
            (&["--version"][..], concat!("remuda ", env!("CARGO_PKG_VERSION"), "\n")),
        ] {
            let (code, stdout, stderr) = outcome(remuda(dir.path(), args).output().unwrap());
            assert_eq!((code, stderr.as_str()), (Some(0), ""));
            assert!(stdout.contains(said), "{stdout}");
        }
    }
}
