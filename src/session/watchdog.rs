//! The watchdog: a tiny shell that kills every worker's process group when the host is gone.
//!
//! It reads the numbers of live groups from a pipe. Only the host holds the other end, so the end
//! of input means that the host has ended, however: whatever is still listed is killed, and its
//! scratch directory removed. It needs no cooperation of the worker and works for any program.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::io::{Errno, ioctl_fionbio, write};
use rustix::pipe::{PipeFlags, pipe_with};

use super::scratch;
use crate::sync::Mutex;

/// `+ GROUP DIRECTORY` and `- GROUP` on its input; kills what is left at the end of input: the group,
/// and its leader apart, because a process can leave its group. Signals
/// for the host's terminal do not concern it.
const SCRIPT: &str = r#"trap '' HUP INT TERM
groups=' '
while read -r sign group directory; do
  case $sign in
    +) groups="$groups$group "; eval "directory_$group=\$directory" ;;
    -) groups="${groups%% $group *} ${groups#* $group }"; unset "directory_$group" ;;
  esac
done
for group in $groups; do kill -9 "-$group" 2>/dev/null; kill -9 "$group" 2>/dev/null; done
for group in $groups; do
  eval "directory=\${directory_$group-}"
  case $directory in */remuda-*) rm -rf -- "$directory" ;; esac
done
"#;

/// Lists the process groups that must not outlive this process.
pub(crate) struct Watchdog {
    state: Mutex<State>,
}

struct State {
    shell: Shell,
    groups: HashMap<i32, Option<PathBuf>>,
}

struct Shell {
    child: Child,
    input: Option<OwnedFd>,
}

impl Watchdog {
    pub(crate) fn start() -> io::Result<Watchdog> {
        Ok(Watchdog { state: Mutex::new(State { shell: Shell::start()?, groups: HashMap::new() }) })
    }

    /// From now on the group, and the directory if it is a scratch one, ends with this process.
    pub(crate) fn add(&self, group: i32, directory: Option<&Path>) -> io::Result<()> {
        let mut state = self.state.lock();
        state.groups.insert(group, directory.map(Path::to_owned));
        let line = added(group, directory);
        state.tell(&line)
    }

    /// The group is empty or about to be reaped; its number may be used again.
    pub(crate) fn remove(&self, group: i32) {
        let mut state = self.state.lock();
        if state.groups.remove(&group).is_none() {
            return;
        }
        if let Err(error) = state.tell(&format!("- {group}\n")) {
            log::error!("the watchdog is gone and cannot be replaced: {error}");
        }
    }
}

impl State {
    /// Writes a line; replaces the shell if it is gone or does not read. The pipe holds thousands of
    /// lines and is written without blocking, so the lock is held for microseconds.
    fn tell(&mut self, line: &str) -> io::Result<()> {
        if self.shell.write(line).is_ok() {
            return Ok(());
        }
        log::warn!("the watchdog does not read any more; it is replaced");
        self.shell = Shell::start()?;
        let all: String =
            self.groups.iter().map(|(group, directory)| added(*group, directory.as_deref())).collect();
        self.shell.write(&all)
    }
}

/// The line that adds a group. A directory that a line cannot hold is left to the session.
fn added(group: i32, directory: Option<&Path>) -> String {
    let directory = directory
        .and_then(Path::to_str)
        .filter(|path| !path.contains('\n') && path.contains(scratch::PREFIX))
        .unwrap_or_default();
    format!("+ {group} {directory}\n")
}

impl Shell {
    fn start() -> io::Result<Shell> {
        let (output, input) = pipe_with(PipeFlags::CLOEXEC)?;
        ioctl_fionbio(&input, true)?;
        let child = Command::new("/bin/sh")
            .args(["-c", SCRIPT])
            .process_group(0)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .current_dir("/")
            .stdin(output)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Shell { child, input: Some(input) })
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let Some(input) = &self.input else { return Err(Errno::PIPE.into()) };
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match write(input, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Drop for Shell {
    /// A shell that is replaced or no longer needed is killed rather than told: it must not act on
    /// its list.
    fn drop(&mut self) {
        let _ = self.child.kill();
        self.input = None;
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn sleeper() -> (Child, i32) {
        let child = Command::new("sleep").arg("600").process_group(0).spawn().expect("sleep");
        let group = i32::try_from(child.id()).expect("a pid");
        (child, group)
    }

    /// Ends the shell's input as the end of the host would, and waits for it.
    fn host_ends(watchdog: &Watchdog) {
        let mut state = watchdog.state.lock();
        state.shell.input = None;
        state.shell.child.wait().expect("the shell ends at the end of its input");
    }

    #[test]
    fn listed_groups_are_killed_and_their_directories_removed() {
        let watchdog = Watchdog::start().expect("sh");
        let (mut listed, listed_group) = sleeper();
        let (mut removed, removed_group) = sleeper();
        let directory = scratch::Scratch::create().expect("scratch");
        watchdog.add(listed_group, Some(directory.path())).expect("add");
        watchdog.add(removed_group, None).expect("add");
        watchdog.remove(removed_group);
        host_ends(&watchdog);
        assert_eq!(listed.wait().expect("wait").signal(), Some(9));
        assert!(!directory.path().exists());
        assert!(removed.try_wait().expect("try_wait").is_none(), "a removed group is left alone");
        removed.kill().expect("kill");
        removed.wait().expect("wait");
    }

    #[test]
    fn a_killed_watchdog_is_replaced_and_knows_the_groups() {
        let watchdog = Watchdog::start().expect("sh");
        let (mut first, first_group) = sleeper();
        let (mut second, second_group) = sleeper();
        watchdog.add(first_group, None).expect("add");
        {
            let mut state = watchdog.state.lock();
            state.shell.child.kill().expect("kill");
            state.shell.child.wait().expect("wait");
        }
        watchdog.add(second_group, None).expect("add starts a new shell");
        host_ends(&watchdog);
        assert_eq!(first.wait().expect("wait").signal(), Some(9));
        assert_eq!(second.wait().expect("wait").signal(), Some(9));
    }

    #[test]
    fn dropping_the_watchdog_kills_nobody() {
        let (mut child, group) = sleeper();
        let watchdog = Watchdog::start().expect("sh");
        watchdog.add(group, None).expect("add");
        drop(watchdog);
        assert!(child.try_wait().expect("try_wait").is_none());
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
}
