//! What every integration test shares: isolation, the proof that nothing is left, polling.
//!
//! A test written with [`isolated!`] runs in a child process with a temporary directory of its own.
//! At its end no child process, no thread of remuda, no additional file descriptor, no file and no
//! orphan may be left. Order is forced or polled for; nothing sleeps and hopes.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use remuda::testing::FakeWorker;
use remuda::{CancelToken, Outcome, PoolConfig, Request, Runtime, Session, SessionConfig, SessionPool};

/// Far beyond what anything here takes on a loaded machine.
pub(crate) const GENEROUS: Duration = Duration::from_secs(60);

/// The names of a pool's numbers in the Python ancestor (document 002).
pub(crate) const ANCESTOR_METRICS: [&str; 23] = [
    "acquisition_attempts",
    "acquisition_success",
    "acquisition_timeouts",
    "total_acquisition_time",
    "avg_acquisition_time",
    "pool_hits",
    "pool_misses",
    "hit_rate",
    "sessions_created",
    "sessions_removed",
    "sessions_recycled",
    "sessions_restarted",
    "idle_sessions",
    "active_sessions",
    "total_sessions",
    "warmup_triggers",
    "warmup_loop_iterations",
    "sessions_created_from_warmup",
    "warmup_efficiency",
    "health_check_triggers",
    "health_check_runs",
    "sessions_removed_by_health",
    "health_check_efficiency",
];

const MARKER: &str = "REMUDA_TEST_IN_CHILD";

/// Defines a test whose body runs in a process of its own, checked for leaks.
macro_rules! isolated {
    ($(#[$attribute:meta])* fn $name:ident() $body:block) => {
        #[test]
        $(#[$attribute])*
        fn $name() {
            $crate::support::run_isolated(concat!(module_path!(), "::", stringify!($name)), || $body);
        }
    };
}
pub(crate) use isolated;

/// In the parent: runs the named test again in a child process. In the child: runs `body`.
pub(crate) fn run_isolated(name: &str, body: impl FnOnce()) {
    let name = name.split_once("::").map_or(name, |(_, test)| test);
    if isolated_child() {
        let before = Resources::now();
        body();
        before.await_return();
        return;
    }
    let directory = ScratchDir::new();
    let output = Command::new(std::env::current_exe().expect("the test binary"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(MARKER, "1")
        .env("TMPDIR", directory.path())
        .output()
        .expect("the test binary runs again");
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{name} failed in its own process:\n{text}");
    assert!(text.contains("1 passed"), "{name} did not run in its own process:\n{text}");
    for line in text.lines().filter(|line| line.starts_with("SKIPPED")) {
        // Past the harness, which shows nothing of a test that passes.
        let _ = writeln!(std::io::stderr(), "{name}: {line}");
    }
    poll(
        || processes_in(directory.path()).is_empty(),
        || format!("processes outlive the test: {:?}", processes_in(directory.path())),
    );
    poll(
        || entries(directory.path()).is_empty(),
        || format!("files outlive the test: {:?}", entries(directory.path())),
    );
}

/// Whether this is the child process of an isolated test.
pub(crate) fn isolated_child() -> bool {
    std::env::var_os(MARKER).is_some()
}

/// Waits until `done`, at most [`GENEROUS`]; then fails with what `otherwise` says.
pub(crate) fn poll(done: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < GENEROUS, "{}", otherwise());
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Whether a process with this number exists and is not a zombie.
pub(crate) fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X']))
    })
}

/// Whether `PATH` holds this program; without it a test says that it leaves something out. With the
/// name in `REMUDA_REQUIRE` (`bwrap,chromium`) it must be there.
pub(crate) fn installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).any(|directory| directory.join(program).is_file());
    if !found {
        let required = std::env::var("REMUDA_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == program), "{program} is required but not installed");
        eprintln!("SKIPPED: it needs {program}");
    }
    found
}

/// An address of loopback that only this process has (127.64.0.0 and up, by its number), with a port that
/// is free. A port there that is given back, and perhaps used again, is taken by no other test in between;
/// and no connection to nobody meets itself, as its own end is at 127.0.0.1.
pub(crate) fn own_loopback() -> String {
    let [zero, high, middle, low] = std::process::id().to_be_bytes();
    assert!(zero == 0 && high < 64, "Linux has no longer process numbers");
    format!("127.{}.{middle}.{low}:0", high + 64)
}

/// A default Python session's options.
pub(crate) fn python() -> SessionConfig {
    SessionConfig::new(Runtime::python("python3"))
}

/// The options of a default pool of Python sessions, whose resets may take long on a slow machine.
pub(crate) fn pool() -> PoolConfig {
    SessionPool::builder(Runtime::python("python3")).reset_timeout(GENEROUS)
}

/// The options of a pool whose workers are scripted: for what has nothing to do with a language.
pub(crate) fn scripted(fake: &FakeWorker) -> PoolConfig {
    SessionPool::builder(fake.runtime()).start_timeout(GENEROUS)
}

/// A default Python session.
pub(crate) fn session() -> Session {
    python().start().expect("a Python session starts")
}

/// The outcome of code that is cancelled once it has written something: it is busy by then.
pub(crate) fn cancelled_when_busy(session: &mut Session, code: &str) -> Outcome {
    let token = CancelToken::new();
    let request = Request::code(code).cancel_token(&token).on_output(|_, _| token.cancel());
    session.execute(request).expect("an outcome").outcome
}

/// A directory that is removed with all it holds.
pub(crate) struct ScratchDir(PathBuf);

impl ScratchDir {
    pub(crate) fn new() -> ScratchDir {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("remuda-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary directory");
        ScratchDir(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into the directory and returns its path.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("a temporary file");
        path
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a process must not have more of at the end of a test than at its start.
#[derive(Debug)]
struct Resources {
    fds: usize,
    threads: BTreeSet<String>,
    children: usize,
}

impl Resources {
    fn now() -> Resources {
        let threads = entries(Path::new("/proc/self/task"))
            .iter()
            .filter_map(|task| fs::read_to_string(task.join("comm")).ok())
            .filter(|name| name.starts_with("remuda-"))
            .collect();
        Resources { fds: entries(Path::new("/proc/self/fd")).len(), threads, children: children() }
    }

    fn await_return(&self) {
        poll(
            || {
                let now = Resources::now();
                now.fds <= self.fds && now.threads.is_empty() && now.children == 0
            },
            || format!("something is left: {:?}, at the start {self:?}", Resources::now()),
        );
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// Children of this process, zombies included.
fn children() -> usize {
    let me = std::process::id().to_string();
    entries(Path::new("/proc"))
        .iter()
        .filter_map(|process| fs::read_to_string(process.join("stat")).ok())
        .filter(|stat| {
            stat.rsplit(')').next().is_some_and(|rest| rest.split_whitespace().nth(1) == Some(&me))
        })
        .count()
}

/// Processes whose working directory lies under `directory`: workers and what they started.
fn processes_in(directory: &Path) -> Vec<String> {
    entries(Path::new("/proc"))
        .iter()
        .filter(|process| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory)))
        .filter_map(|process| fs::read_to_string(process.join("cmdline")).ok())
        .collect()
}

/// What a test that was started again as a host is asked to run; `None` in the test itself.
pub(crate) fn doomed() -> Option<String> {
    std::env::var("REMUDA_TEST_HOST").ok()
}

/// Runs `request` as a [`doomed`] host: what it prints goes on to the test.
pub(crate) fn run_until_killed(session: &mut Session, request: Request<'_>) -> ! {
    let print = |_, bytes: &[u8]| print!("{}", String::from_utf8_lossy(bytes));
    let _ = session.execute(request.on_output(print));
    unreachable!("the host is killed while its session is busy");
}

/// Starts the named test again as a host of a session whose code prints the numbers of two processes,
/// kills it with SIGKILL, and waits until both are gone.
pub(crate) fn nothing_outlives_a_killed_host(test: &str, way: &str) {
    let mut host = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("REMUDA_TEST_HOST", way)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pids = Vec::new();
    for line in BufReader::new(host.stdout.take().unwrap()).lines() {
        // The harness prints the test's name without a line end before it.
        pids = line.unwrap().split_whitespace().filter_map(|word| word.parse::<u32>().ok()).collect();
        if pids.len() == 2 {
            break;
        }
    }
    assert_eq!(pids.len(), 2, "the host says what it started");
    host.kill().unwrap();
    host.wait().unwrap();
    for pid in pids {
        poll(|| !is_running(pid), || format!("process {pid} outlives its killed host"));
    }
}
