//! Python interpreters: what is found out about one before its first start, and the worker's code.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::{absolute, pid, spawn_advice};
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::session::transport::timespec;
use crate::sync::Mutex;

macro_rules! worker_files {
    ($($name:literal),* $(,)?) => {
        concat!($(include_str!(concat!("../workers/python/", $name))),*)
    };
}

/// The Python worker, as source: what a start and a plain request need.
const CORE: &str =
    worker_files!["frames.py", "cancel.py", "values.py", "running.py", "start.py", "serving.py"];

/// What it loads when it is idle, or needs it.
const LATE: &str = worker_files![
    "errors.py",
    "events.py",
    "display.py",
    "input.py",
    "awaiting.py",
    "warming.py",
    "resetting.py",
    "inspecting.py",
    "forking.py",
    "stdio.py",
];

/// Starts it.
const MAIN: &str = worker_files!["main.py"];

/// What `python -c` is given: reads the worker's two code objects from fd 0 and runs the first. It has
/// builtins of its own: user code may put others in their place.
const PYTHON_STUB: &str = "\
import posix,marshal
def r(n):
    b=b''
    while len(b)<n:
        c=posix.read(0,n-len(b))
        if not c:posix._exit(0)
        b+=c
    return b
c,l=marshal.loads(r(int.from_bytes(r(4),'little')))
exec(c,{'__name__':'remuda_worker','__builtins__':dict(__builtins__.__dict__),'LATE':l})
";

/// As [`PYTHON_STUB`], for an interpreter whose version nobody knows: it gets the source.
const PYTHON_REMOTE_STUB: &str = "\
import posix,sys
if sys.version_info<(3,9):sys.exit('remuda needs Python 3.9 or later')
def r(n):
    b=b''
    while len(b)<n:
        c=posix.read(0,n-len(b))
        if not c:posix._exit(0)
        b+=c
    return b
exec(compile(r(int.from_bytes(r(4),'little')),'<remuda worker>','exec',0,True),{'__name__':'remuda_worker','__builtins__':dict(__builtins__.__dict__)})
";

/// Run once per interpreter: prints its version, its path and the worker as code objects. The
/// first line also works in versions that are too old for the rest.
const PYTHON_PROBE: &str = "\
import sys
out=getattr(sys.stdout,'buffer',sys.stdout)
out.write(('remuda %d %d\\n'%sys.version_info[:2]).encode())
if sys.version_info>=(3,9):
    import marshal
    path=(sys.executable or '').encode('utf-8','surrogateescape')
    out.write(len(path).to_bytes(4,'little')+path)
    core,late=(compile(part,'<remuda worker>','exec',0,True) for part in sys.stdin.buffer.read().split(b'\\0'))
    out.write(marshal.dumps((core,marshal.dumps(late))))
out.flush()
";

/// Oldest Python that the worker supports.
const OLDEST_PYTHON: (u32, u32) = (3, 9);

/// What a probe found out about a Python interpreter.
pub(super) struct Interpreter {
    pub(super) path: PathBuf,
    pub(super) boot: Arc<[u8]>,
}

/// What a command line of a worker on this machine holds after the interpreter.
pub(super) fn local_args(isolated: bool) -> Vec<OsString> {
    args(isolated, PYTHON_STUB)
}

/// What a command line of a worker somewhere else holds after the interpreter.
pub(super) fn remote_args(isolated: bool) -> Vec<OsString> {
    args(isolated, PYTHON_REMOTE_STUB)
}

fn args(isolated: bool, stub: &str) -> Vec<OsString> {
    let isolated = isolated.then_some("-I");
    isolated.into_iter().chain(["-X", "utf8", "-c", stub]).map(OsString::from).collect()
}

/// The worker for an interpreter that nobody has asked: as source.
pub(super) fn remote_boot() -> Arc<[u8]> {
    let source = [CORE, LATE, MAIN].concat();
    let size = u32::try_from(source.len()).unwrap_or(u32::MAX);
    [&size.to_le_bytes(), source.as_bytes()].concat().into()
}

/// What is known of interpreters, each by what stands in front of it and its name.
type Known = HashMap<(Vec<OsString>, PathBuf), Arc<Interpreter>>;

fn interpreters() -> &'static Mutex<Known> {
    static KNOWN: std::sync::LazyLock<Mutex<Known>> = std::sync::LazyLock::new(Mutex::default);
    &KNOWN
}

/// Forgets what is known of an interpreter: it may have been replaced on disk.
pub(super) fn forget(prefix: &[OsString], program: &Path) {
    interpreters().lock().remove(&(prefix.to_vec(), program.to_owned()));
}

/// What is known of an interpreter, which is asked, through its prefix, if need be.
pub(super) fn interpreter(prefix: &[OsString], program: &Path, limit: Duration) -> Result<Arc<Interpreter>> {
    let key = (prefix.to_vec(), program.to_owned());
    if let Some(known) = interpreters().lock().get(&key) {
        return Ok(Arc::clone(known));
    }
    // Several threads may probe at once; all find the same, and nobody waits under the lock.
    let found = Arc::new(probe(prefix, program, limit)?);
    interpreters().lock().insert(key, Arc::clone(&found));
    Ok(found)
}

/// Runs the interpreter once. Its input and output are memory files, so that only its end must be
/// waited for.
fn probe(prefix: &[OsString], program: &Path, limit: Duration) -> Result<Interpreter> {
    // A missing wrapper is named as such; what it makes of the interpreter shows in what it says.
    let first = prefix.first().map_or(program, Path::new);
    let fail = |reason: String, source: Option<io::Error>| Error::Runtime {
        program: program.to_owned(),
        reason,
        source,
    };
    let file = |name: &str| -> Result<File> {
        memfd_create(name, MemfdFlags::CLOEXEC)
            .map(File::from)
            .map_err(|error| Error::io("creating a memory file", error))
    };
    let (mut source, mut output, mut complaints) = (file("worker")?, file("stdout")?, file("stderr")?);
    let worker = [CORE, MAIN, "\0", LATE].concat();
    let prepared = source.write_all(worker.as_bytes()).and_then(|()| source.rewind());
    prepared.map_err(|error| Error::io("writing a memory file", error))?;
    let share = |file: &File| {
        file.try_clone().map(Stdio::from).map_err(|error| Error::io("duplicating a descriptor", error))
    };

    let mut command = Command::new(absolute(first));
    if let Some((_, rest)) = prefix.split_first() {
        command.args(rest).arg(absolute(program));
    }
    let mut child = command
        .args(["-I", "-X", "utf8", "-c", PYTHON_PROBE])
        .process_group(0)
        .stdin(share(&source)?)
        .stdout(share(&output)?)
        .stderr(share(&complaints)?)
        .spawn()
        .map_err(|error| Error::Runtime {
            program: first.to_owned(),
            reason: spawn_advice(&error).to_owned(),
            source: Some(error),
        })?;
    let in_time = wait_for_exit(child.id(), limit);
    if !in_time {
        // The group is ours and its leader is not reaped yet: no other process can have this number.
        if let Some(pid) = pid(child.id()) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
    // A host that ignores SIGCHLD has its children reaped by the kernel: no status, but an answer.
    let status = child.wait().map_or_else(|_| "its exit is unknown".to_owned(), |status| status.to_string());
    if !in_time {
        return Err(fail(format!("it did not answer within {limit:?}"), None));
    }

    let mut answer = Vec::new();
    let mut stderr = String::new();
    let _ = output.rewind().and_then(|()| output.read_to_end(&mut answer));
    let _ = complaints.rewind().and_then(|()| complaints.read_to_string(&mut stderr));
    parse_probe(&answer).map_err(|reason| {
        let said = stderr.trim_end().lines().last().unwrap_or_default();
        let said = if said.is_empty() { String::new() } else { format!("; it said: {said}") };
        fail(format!("{reason} ({status}){said}; name a Python 3.9 or later"), None)
    })
}

/// Reads what [`PYTHON_PROBE`] prints.
fn parse_probe(answer: &[u8]) -> Result<Interpreter, String> {
    let not_python = || "it did not answer as a Python interpreter does".to_owned();
    let line_end = answer.iter().position(|byte| *byte == b'\n').ok_or_else(not_python)?;
    let line = std::str::from_utf8(&answer[..line_end]).map_err(|_| not_python())?;
    let mut words = line.split(' ');
    let (name, major, minor) = (words.next(), words.next(), words.next());
    let (Some("remuda"), Some(major), Some(minor)) = (name, major, minor) else { return Err(not_python()) };
    let (Ok(major), Ok(minor)) = (major.parse::<u32>(), minor.parse::<u32>()) else {
        return Err(not_python());
    };
    if (major, minor) < OLDEST_PYTHON {
        return Err(format!("it is Python {major}.{minor}, which is too old"));
    }
    let rest = &answer[line_end + 1..];
    let (size, rest) = rest.split_first_chunk::<4>().ok_or_else(not_python)?;
    let (path, code) = rest.split_at_checked(u32::from_le_bytes(*size) as usize).ok_or_else(not_python)?;
    if path.is_empty() || code.is_empty() {
        return Err("it does not know its own path".to_owned());
    }
    let size = u32::try_from(code.len()).map_err(|_| not_python())?;
    let boot = [&size.to_le_bytes(), code].concat();
    Ok(Interpreter { path: PathBuf::from(OsStr::from_bytes(path)), boot: boot.into() })
}

/// Waits until the process has ended; false if that took longer than `limit`. A process that
/// cannot be watched counts as ended: the caller waits for it anyway.
fn wait_for_exit(id: u32, limit: Duration) -> bool {
    let Some(Ok(pidfd)) = pid(id).map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { return true };
    let deadline = Moment::after(limit);
    loop {
        let left = deadline.saturating_since(Moment::now());
        let timeout = timespec(left);
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return false,
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(program: &str) -> String {
        match interpreter(&[], Path::new(program), Duration::from_secs(30)) {
            Err(error @ Error::Runtime { .. }) => error.to_string(),
            Err(other) => panic!("another error: {other}"),
            Ok(_) => panic!("{program} passed for an interpreter"),
        }
    }

    #[test]
    fn a_missing_interpreter_says_what_to_do() {
        assert!(reason("/nowhere/python3").contains("no such program"));
    }

    #[test]
    fn a_program_that_is_no_interpreter_is_told_apart() {
        assert!(reason("/bin/true").contains("did not answer as a Python interpreter"));
    }

    #[test]
    fn an_old_interpreter_is_named_as_such() {
        let error = parse_probe(b"remuda 3 6\n").err().expect("3.6 is too old");
        assert!(error.contains("3.6, which is too old"));
    }

    #[test]
    fn python3_is_probed_once_and_known_by_its_own_path() {
        let first =
            interpreter(&[], Path::new("python3"), Duration::from_secs(30)).expect("python3 is installed");
        let second =
            interpreter(&[], Path::new("python3"), Duration::from_secs(30)).expect("python3 is installed");
        assert!(Arc::ptr_eq(&first, &second));
        assert!(first.path.is_absolute());
    }
}
