//! Stopping `remuda run` and `remuda exec`: signals, a closed pipe, a terminal.
//!
//! The scripts run in a directory of the test; the support fails the test if a process that works
//! there, or a file in the temporary directory, is left.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::cli_run::{outcome, remuda};
use crate::support::{ScratchDir, isolated};

/// Refuses to be interrupted and has a child.
const STUBBORN: &str = "
import subprocess, time
child, ready = subprocess.Popen(['sleep', '600']), False
while True:
    try:
        if not ready:
            ready = True
            print('ready', flush=True)
        time.sleep(600)
    except BaseException:
        pass
";
/// Ends in good order when it is asked to.
const POLITE: &str = "
import remuda, time
try:
    print('ready', flush=True)
    while not remuda.cancelled():
        time.sleep(0.01)
except KeyboardInterrupt:
    pass
print('bye')
";

fn start(command: &mut Command) -> (Child, BufReader<ChildStdout>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    (child, stdout)
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Reads until `count` scripts have said that they are ready.
fn await_ready(stdout: &mut impl BufRead, count: usize) {
    for _ in 0..count {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(line.contains("ready"), "{line:?}");
    }
}

fn finish(child: Child, mut stdout: impl Read) -> (Option<i32>, String, String) {
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let (code, _, stderr) = outcome(child.wait_with_output().unwrap());
    (code, rest, stderr)
}

isolated! {
    fn a_signal_stops_what_runs_and_starts_nothing_more() {
        for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            let dir = ScratchDir::new();
            dir.write("stubborn.py", STUBBORN);
            dir.write("polite.py", POLITE);
            dir.write("later.py", "open('ran', 'w')");
            let (child, mut stdout) =
                start(&mut remuda(dir.path(), &["run", "-j2", "stubborn.py", "polite.py", "later.py"]));
            await_ready(&mut stdout, 2);
            send(&child, signal);
            let (code, rest, stderr) = finish(child, stdout);
            assert_eq!(code, Some(status), "{rest}{stderr}");
            assert!(rest.contains("polite.py   | bye\n"), "{rest}");
            for row in ["stubborn.py  cancelled (killed)", "polite.py    cancelled ", "later.py     not started"] {
                assert!(rest.contains(row), "{row} in {rest}");
            }
            assert!(!dir.path().join("ran").exists());
        }
    }
}

isolated! {
    fn a_stopped_run_tells_of_every_script_in_json() {
        let dir = ScratchDir::new();
        dir.write("polite.py", POLITE.replace("print('ready', flush=True)", "open('ready', 'w').close()"));
        dir.write("later.py", "");
        let (child, stdout) = start(&mut remuda(dir.path(), &["run", "--json", "-j1", "polite.py", "later.py", "later.py"]));
        crate::support::poll(|| dir.path().join("ready").exists(), || "the script does not start".to_owned());
        send(&child, Signal::INT);
        let (code, stdout, _) = finish(child, stdout);
        assert_eq!(code, Some(130));
        let mut outcomes: Vec<String> = stdout
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|row| format!("{} {}", row["script"], row["outcome"]).replace('"', ""))
            .collect();
        outcomes.sort();
        assert_eq!(outcomes, ["later.py not_started", "later.py not_started", "polite.py cancelled"]);
    }
}

isolated! {
    fn a_second_signal_ends_it_whatever_the_scripts_do() {
        let dir = ScratchDir::new();
        dir.write("stubborn.py", STUBBORN);
        let (child, mut stdout) = start(&mut remuda(dir.path(), &["run", "stubborn.py"]));
        await_ready(&mut stdout, 1);
        send(&child, Signal::INT);
        send(&child, Signal::TERM);
        let (code, rest, _) = finish(child, stdout);
        assert!(matches!(code, Some(130 | 143)), "{code:?} {rest}");
        assert!(rest.contains("1 script in"), "{rest}");
    }
}

isolated! {
    fn a_reader_that_goes_away_stops_the_run() {
        let dir = ScratchDir::new();
        dir.write("talks.py", "print('ready', flush=True)\nwhile True:\n    print('x' * 1000)\n");
        for args in [&["run", "--no-tracker", "talks.py"][..], &["exec", "exec(open('talks.py').read())"][..]] {
            let (child, mut stdout) = start(&mut remuda(dir.path(), args));
            await_ready(&mut stdout, 1);
            drop(stdout);
            let (code, _, stderr) = outcome(child.wait_with_output().unwrap());
            assert_eq!((code, stderr.as_str()), (Some(141), ""));
        }
        let (child, stdout) = start(&mut remuda(dir.path(), &["--help"]));
        drop(stdout);
        let (code, _, stderr) = outcome(child.wait_with_output().unwrap());
        assert!(matches!(code, Some(0 | 141)) && stderr.is_empty(), "{code:?} {stderr}");
    }
}

isolated! {
    fn a_signal_stops_a_snippet() {
        let dir = ScratchDir::new();
        let (child, mut stdout) = start(&mut remuda(dir.path(), &["exec", STUBBORN]));
        await_ready(&mut stdout, 1);
        send(&child, Signal::INT);
        assert_eq!(finish(child, stdout).0, Some(130));
    }
}

isolated! {
    fn progress_is_drawn_on_a_terminal_and_removed() {
        let dir = ScratchDir::new();
        dir.write("waits.py", "import os, time\nwhile not os.path.exists('seen'): time.sleep(0.01)\nprint('through')");
        let on_terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
        let mut command = Command::new("python3");
        command.args(["-c", on_terminal, env!("CARGO_BIN_EXE_remuda"), "run", "waits.py"]);
        command.current_dir(dir.path()).env("TERM", "xterm").stdin(Stdio::null());
        let (child, mut stdout) = start(&mut command);
        let mut shown = Vec::new();
        while !String::from_utf8_lossy(&shown).contains("0/1 done, 1 running: waits.py") {
            let mut chunk = [0; 256];
            let count = stdout.read(&mut chunk).unwrap();
            assert!(count > 0, "no progress: {}", String::from_utf8_lossy(&shown));
            shown.extend_from_slice(&chunk[..count]);
        }
        dir.write("seen", "");
        let (code, rest, _) = finish(child, stdout);
        assert_eq!(code, Some(0), "{rest}");
        assert!(rest.contains("\r\x1b[Kwaits.py | through"), "{rest:?}");
        assert!(!rest.rsplit("\x1b[K").next().unwrap().contains("running"), "{rest:?}");
    }
}
