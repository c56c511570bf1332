//! A worker that does exactly what a test says, byte by byte: broken, lying, dying, flooding.

use remuda::{Error, Runtime, Session, SessionConfig};

use crate::support::{GENEROUS, poll};

/// What a script can use. It runs with everything on fds 0 and 1, after *go* was read.
pub(crate) const PRELUDE: &str = r#"
import os, signal, struct, sys, time

def read(size):
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more: os._exit(0)
        data += more
    return data

def request(wanted=None):
    """The next request; others than the wanted kind are read and forgotten."""
    while True:
        size, kind, flags, _, number, length = struct.unpack("<IBBHQI", read(20))
        request.body = read(size - 4)
        if wanted is None or kind == wanted: return number

def frame(kind, number, first=b"", second=b"", flags=0):
    return struct.pack("<IBBHQI", 4 + len(first) + len(second), kind, flags, 0, number, len(first)) + first + second

def raw(data):
    while data: data = data[os.write(1, data):]

def send(*args, **kwargs): raw(frame(*args, **kwargs))

def result(number, json=b"1"): send(7, number, json, b"repr", flags=3)

def ready(features="execute", protocol="1"):
    send(2, 0, ('{"protocol":%s,"pid":%d,"language":"hostile","version":"0","features":["%s"]}'
                % (protocol, os.getpid(), features.replace(" ", '","'))).encode())

def hang():
    while True: signal.pause()

def serve():
    while True: result(request(5))

signal.signal(signal.SIGINT, signal.SIG_IGN)
request(1)
CAP = struct.unpack_from("<Q", request.body, 16)[0]
"#;

/// A worker that reads *go* and then runs this script.
pub(crate) fn hostile(script: &str) -> SessionConfig {
    SessionConfig::new(runtime(script)).start_timeout(GENEROUS)
}

pub(crate) fn runtime(script: &str) -> Runtime {
    Runtime::command("python3", ["-I", "-S", "-c", &[PRELUDE, script].concat()])
}

/// A session whose worker gets ready and then runs this script.
pub(crate) fn session(script: &str) -> Session {
    hostile(&format!("ready()\n{script}")).start().unwrap()
}

/// Fails unless this is a broken protocol, told with `reason`.
pub(crate) fn assert_broken<T: std::fmt::Debug>(name: &str, result: Result<T, Error>, reason: &str) {
    match result {
        Err(Error::Protocol { reason: told, .. }) => assert!(told.contains(reason), "{name}: {told}"),
        other => panic!("{name}: {other:?}"),
    }
}

/// A retired session is dead, says so to the next caller, and can be started anew.
pub(crate) fn assert_retired(name: &str, session: &mut Session) {
    poll(|| !session.is_alive(), || format!("{name}: it is still taken for alive"));
    match session.execute("1") {
        Err(Error::SessionDead { .. }) => {}
        other => panic!("{name}: a dead session answers with {other:?}"),
    }
}
