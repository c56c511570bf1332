//! Rows of templates: sessions by fork, beside a bare `os.fork` that gets and gives descriptors alike.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use remuda::{Reuse, Runtime, Session, SessionConfig, SessionPool, Template};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::measure::{Samples, millis};
use super::report::Row;
use super::{Bench, Context, Failure, Measured};

/// The suite, in the order of the table.
pub(super) const BENCHES: &[Bench] = &[
    Bench { rows: &[("ready_bare", "ms")], run: |context| ready(context, "ready_bare", None) },
    Bench { rows: &[("ready_numpy", "ms")], run: |context| ready(context, "ready_numpy", Some("numpy")) },
    Bench { rows: &[("ready_pandas", "ms")], run: |context| ready(context, "ready_pandas", Some("pandas")) },
    Bench { rows: &[("cold_pandas_over_template", "ratio")], run: cold_over_template },
    Bench { rows: &[("fresh_cycles", "per s")], run: fresh_cycles },
    Bench { rows: &[("uss_bare_kib", "KiB")], run: |context| unique(context, "uss_bare_kib", None) },
    Bench {
        rows: &[("uss_pandas_kib", "KiB")],
        run: |context| unique(context, "uss_pandas_kib", Some("pandas")),
    },
    Bench { rows: &[("fork_live", "ms"), ("restore", "ms")], run: copies },
];

/// Forks for each byte that comes with a socket: the child says that it runs, the parent sends a
/// descriptor of it. A child ends with its socket.
const FORKS: &str = "\
import gc, os, socket, sys
for name in sys.argv[1:]:
    __import__(name)
control = socket.socket(fileno=0)
gc.collect()
gc.freeze()
control.send(b'r')
while True:
    data, ancillary, _, _ = control.recvmsg(16, socket.CMSG_SPACE(4))
    if not data:
        os._exit(0)
    fd = int.from_bytes(ancillary[0][2], sys.byteorder)
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.close(0)
        os.write(fd, b'x')
        os.read(fd, 1)
        os._exit(0)
    os.close(fd)
    pidfd = os.pidfd_open(pid)
    control.sendmsg([b'p'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, pidfd.to_bytes(4, sys.byteorder))])
    os.close(pidfd)
    control.recv(1)
    os.waitpid(pid, 0)
";

/// A bare interpreter that runs [`FORKS`].
struct Forks {
    child: Child,
    control: OwnedFd,
}

impl Forks {
    fn start(python: &Path, module: Option<&str>) -> Result<Forks, Failure> {
        let (control, theirs) = pair()?;
        let child = Command::new(python)
            .args(["-I", "-c", FORKS])
            .args(module)
            .env("OPENBLAS_NUM_THREADS", "1")
            .stdin(Stdio::from(theirs))
            .spawn()?;
        let forks = Forks { child, control };
        read_byte(&forks.control)?;
        Ok(forks)
    }

    /// From the request until the child's descriptor is here and the child has said that it runs.
    fn fork(&self) -> Result<Duration, Failure> {
        let started = Instant::now();
        let (ours, theirs) = pair()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [theirs.as_fd()];
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&self.control, &[IoSlice::new(b"f")], &mut ancillary, SendFlags::NOSIGNAL)?;
        drop(theirs);
        let pidfd = receive_descriptor(&self.control)?;
        read_byte(&ours)?;
        let time = started.elapsed();
        drop((ours, pidfd));
        rustix::io::write(&self.control, b"w")?;
        Ok(time)
    }
}

impl Drop for Forks {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

fn read_byte(fd: &OwnedFd) -> Result<(), Failure> {
    match rustix::io::read(fd, &mut [0_u8; 1])? {
        1 => Ok(()),
        _ => Err("the bare interpreter has ended".into()),
    }
}

fn receive_descriptor(control: &OwnedFd) -> Result<OwnedFd, Failure> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(control, &mut [IoSliceMut::new(&mut [0; 1])], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut found = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    found.next().ok_or_else(|| "no descriptor came along".into())
}

fn config(context: &Context, module: Option<&str>) -> SessionConfig {
    let config = Session::builder(Runtime::python(&context.python)).require_warm_imports(true);
    module.into_iter().fold(config, SessionConfig::warm_import)
}

/// A template that forks; or why there is none.
fn template(context: &Context, module: Option<&str>) -> Result<Template, Failure> {
    let template = Template::start(&config(context, module))?;
    match template.info().why_not {
        None => Ok(template),
        Some(why_not) => Err(why_not.into()),
    }
}

/// A row of nulls for a module that this interpreter does not have.
fn missing(context: &Context, module: Option<&str>, row: &'static str, unit: &'static str) -> Option<Row> {
    let module = module?;
    let output =
        Command::new(&context.python).args(["-I", "-c", &format!("import {module}")]).output().ok()?;
    (!output.status.success()).then(|| Row::empty(row, unit).note(format!("no {module} here")))
}

fn ready(context: &Context, row: &'static str, module: Option<&str>) -> Measured {
    if let Some(row) = missing(context, module, row, "ms") {
        return Ok(vec![row]);
    }
    let (template, bare) = (template(context, module)?, Forks::start(&context.python, module)?);
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..context.times(200) {
        let started = Instant::now();
        let session = template.session()?;
        ours.push(millis(started.elapsed()));
        session.terminate();
        floor.push(millis(bare.fork()?));
    }
    forked_all(&template)?;
    Ok(vec![Row::of(row, "ms", &ours, Some(&floor))])
}

/// A copy of a live session, and the way back to a checkpoint, from the call until the session answers.
fn copies(context: &Context) -> Measured {
    let bare = Forks::start(&context.python, None)?;
    let mut session = config(context, None).start()?;
    session.execute("state = {'seen': list(range(1_000))}")?;
    let checkpoint = session.checkpoint()?;
    let [mut forks, mut restores, mut floor] = <[Samples; 3]>::default();
    for _ in 0..context.times(200) {
        let started = Instant::now();
        let copy = session.fork()?;
        forks.push(millis(started.elapsed()));
        copy.terminate();
        floor.push(millis(bare.fork()?));
        let started = Instant::now();
        session.restore(&checkpoint)?;
        restores.push(millis(started.elapsed()));
    }
    let row = |name, samples| Row::of(name, "ms", samples, Some(&floor));
    Ok(vec![row("fork_live", &forks), row("restore", &restores)])
}

/// A cold start in between would be measured as a fork.
fn forked_all(template: &Template) -> Result<(), Failure> {
    let info = template.info();
    if info.cold_starts == 0 { Ok(()) } else { Err(format!("sessions started cold: {info:?}").into()) }
}

fn cold_over_template(context: &Context) -> Measured {
    let (row, pandas) = ("cold_pandas_over_template", Some("pandas"));
    if let Some(row) = missing(context, pandas, row, "ratio") {
        return Ok(vec![row]);
    }
    let template = template(context, pandas)?;
    let config = config(context, pandas);
    let (mut cold, mut forked) = (Samples::default(), Samples::default());
    for _ in 0..context.times(20) {
        let started = Instant::now();
        let session = config.start()?;
        cold.push(millis(started.elapsed()));
        session.terminate();
        for _ in 0..5 {
            let started = Instant::now();
            let session = template.session()?;
            forked.push(millis(started.elapsed()));
            session.terminate();
        }
    }
    forked_all(&template)?;
    let ratio = cold.median() / forked.median();
    let note = format!("{:.0} ms against {:.2} ms", cold.median(), forked.median());
    Ok(vec![Row::figure(row, "ratio", ratio, cold.len()).note(note)])
}

/// A new process for each user: acquire, execute, release, by one thread.
fn fresh_cycles(context: &Context) -> Measured {
    let pool = SessionPool::builder(Runtime::python(&context.python))
        .template(true)
        .reuse(Reuse::Fresh)
        .min_idle(4)
        .max_sessions(16)
        .start()?;
    let cycles = context.times(3000);
    let started = Instant::now();
    for _ in 0..cycles {
        let mut session = pool.acquire()?;
        session.execute("1+1")?;
    }
    let rate = cycles as f64 / started.elapsed().as_secs_f64();
    let template = pool.info().template.ok_or("a pool without its template")?;
    if template.cold_starts > 0 {
        return Err(format!("sessions started cold: {template:?}").into());
    }
    Ok(vec![Row::figure("fresh_cycles", "per s", rate, cycles)])
}

/// Memory that an idle session has for itself, after it has collected its garbage.
fn unique(context: &Context, row: &'static str, module: Option<&str>) -> Measured {
    const SIBLINGS: usize = 8;
    if let Some(row) = missing(context, module, row, "KiB") {
        return Ok(vec![row]);
    }
    let template = template(context, module)?;
    let mut sessions = (0..SIBLINGS).map(|_| template.session()).collect::<remuda::Result<Vec<Session>>>()?;
    for session in &mut sessions {
        session.execute("import gc\ngc.collect()")?;
    }
    let (mut ours, mut shared) = (Samples::default(), Samples::default());
    for session in &sessions {
        let memory = session.memory().ok_or("a session without memory")?;
        ours.push(memory.unique.ok_or("the kernel does not tell")? as f64 / 1024.0);
        shared.push(memory.proportional.ok_or("the kernel does not tell")? as f64 / 1024.0);
    }
    forked_all(&template)?;
    let note = format!("PSS {:.0} KiB with {SIBLINGS} siblings", shared.median());
    Ok(vec![Row::of(row, "KiB", &ours, None).note(note)])
}
