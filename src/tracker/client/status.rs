//! Tasks: what the app does now, as the tracker shall show it.
//!
//! A task's start and end only change the state here and wake the `remuda-status` thread, which
//! reports the newest state; the work waits for that at most [`PATIENCE`], and not at all while the
//! client is offline or the last report it waited for is still on its way.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::link::Trouble;
use super::pace::{Backoff, random};
use super::shared::{Contact, PATIENCE, Phase, Shared, Standing, State};
use crate::clock::Moment;
use crate::tracker::TrackedId;
use crate::tracker::api::{HTTP_TIMEOUT, SessionStatus};

/// A longer name of a task is cut.
const LONGEST_NAME: usize = 1024;

/// The tasks of one client and how much the server knows of them.
#[derive(Default)]
pub(super) struct Tasks {
    /// Those that run, in the order of their starts.
    running: Vec<Task>,
    /// Some task has told its progress: what is shown must be taken back when it ends.
    progressed: bool,
    /// Counts the changes of `running`.
    version: u64,
    /// The last version that the server has taken.
    delivered: u64,
    /// The last version that could not be delivered.
    failed: u64,
    /// Attempts to deliver rest until then, unless the server has answered something else meanwhile.
    retry: Option<(Moment, u64)>,
    backoff: Backoff,
    /// A wait for the server was in vain, and nothing was delivered since: do not wait again.
    in_vain: bool,
    /// The log was told that statuses do not get through.
    told: bool,
}

struct Task {
    number: u64,
    name: String,
    progress: Option<f64>,
}

impl Tasks {
    /// How far the task is that is shown; 0 if nobody knows, but others have said it before.
    pub(super) fn progress(&self) -> Option<f64> {
        let shown = self.running.last().and_then(|task| task.progress);
        shown.or(self.progressed.then_some(0.0))
    }

    /// The status to report, and its number. The newest of several tasks is the one shown.
    pub(super) fn report(&self) -> (SessionStatus, u64) {
        let task = self.running.last().map(|task| task.name.clone());
        let status = if task.is_some() { "running" } else { "idle" };
        let status = SessionStatus {
            status: status.to_owned(),
            current_task: task,
            status_number: Some(self.version),
        };
        (status, self.version)
    }

    /// The server has taken this version.
    pub(super) fn delivered(&mut self, version: u64) {
        self.delivered = self.delivered.max(version);
        self.retry = None;
        self.in_vain = false;
        self.told = false;
        self.backoff.reset();
    }

    /// Whether there is something to report now; if only later, when.
    fn due(&self, answers: u64, now: Moment) -> Due {
        if self.delivered == self.version {
            return Due::Nothing;
        }
        match self.retry {
            Some((at, heard)) if self.failed == self.version && heard == answers && now < at => Due::At(at),
            _ => Due::Now,
        }
    }
}

enum Due {
    Nothing,
    At(Moment),
    Now,
}

/// The app is shown as "running" while this lives; dropping it reports the end of the task.
///
/// Dropping waits for the tracker at most one second, and not at all while there is none. It keeps
/// neither the client alive nor the work from ending.
#[must_use = "the task ends when the guard is dropped"]
pub struct TaskGuard {
    shared: Arc<Shared>,
    number: u64,
}

impl TaskGuard {
    pub(super) fn begin(shared: &Arc<Shared>, name: &str) -> TaskGuard {
        let mut state = shared.lock();
        state.tasks.version += 1;
        let number = state.tasks.version;
        state.tasks.running.push(Task { number, name: cut(name).to_owned(), progress: None });
        shared.ensure_status_thread(&mut state);
        drop(state);
        shared.poke();
        report(shared, number);
        TaskGuard { shared: Arc::clone(shared), number }
    }

    /// How far the task is, from 0 to 1; the next heartbeat tells the tracker. Does not block. What
    /// lies outside is taken for the nearest of them, what is no number for nothing.
    pub fn set_progress(&self, progress: f64) {
        if progress.is_nan() {
            return;
        }
        let mut state = self.shared.lock();
        let tasks = &mut state.tasks;
        if let Some(task) = tasks.running.iter_mut().find(|task| task.number == self.number) {
            task.progress = Some(progress.clamp(0.0, 1.0));
            tasks.progressed = true;
        }
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.tasks.running.retain(|task| task.number != self.number);
        state.tasks.version += 1;
        let version = state.tasks.version;
        drop(state);
        self.shared.poke();
        report(&self.shared, version);
    }
}

impl fmt::Debug for TaskGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskGuard").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Wakes the status thread and waits until the server has taken this version, for as long as there
/// is hope.
fn report(shared: &Shared, version: u64) {
    shared.notify();
    let deadline = Moment::after(PATIENCE);
    let mut state = shared.lock();
    while state.contact == Contact::Connected
        && state.phase == Phase::Open
        && state.status.is_running()
        && state.tasks.delivered < version
        && state.tasks.failed < version
        && !state.tasks.in_vain
    {
        if shared.wait(&mut state, Some(deadline)) {
            state.tasks.in_vain = true;
        }
    }
}

/// What there is to do about the status.
pub(super) enum Look {
    Report { id: TrackedId, status: SessionStatus, version: u64 },
    At(Moment),
    Nothing,
}

/// Whether there is something that the server can be told.
pub(super) fn look(state: &State) -> Look {
    let reachable = state.standing == Standing::Known && state.contact == Contact::Connected;
    if !reachable || state.phase != Phase::Open {
        return Look::Nothing;
    }
    match state.tasks.due(state.answers, Moment::now()) {
        Due::Now => {
            let (status, version) = state.tasks.report();
            Look::Report { id: state.id.clone(), status, version }
        }
        Due::At(at) => Look::At(at),
        Due::Nothing => Look::Nothing,
    }
}

/// The status thread.
pub(super) fn run(shared: &Shared) {
    let mut state = shared.lock();
    while state.phase == Phase::Open {
        match look(&state) {
            Look::Report { id, status, version } => {
                drop(state);
                let result = shared.side.status(&id, &status, HTTP_TIMEOUT);
                note(shared, version, &result);
                state = shared.lock();
            }
            Look::At(at) => {
                shared.wait(&mut state, Some(at));
            }
            Look::Nothing => {
                shared.wait(&mut state, None);
            }
        }
    }
}

/// Notes what became of a report.
pub(super) fn note(shared: &Shared, version: u64, result: &Result<(), Trouble>) {
    let mut state = shared.lock();
    let Err(trouble) = result else {
        state.tasks.delivered(version);
        drop(state);
        return shared.notify();
    };
    let State { tasks, answers, phase, standing, .. } = &mut *state;
    tasks.failed = version;
    let rest: Duration = tasks.backoff.after(trouble, random());
    tasks.retry = Some((Moment::after(rest), *answers));
    if matches!(trouble, Trouble::Unknown) && *standing == Standing::Known {
        // The beat thread registers again, unless its beat is parked: then the server, which parks
        // it, is about to answer it.
        *standing = Standing::Unknown;
    }
    let first = *phase == Phase::Open && !std::mem::replace(&mut tasks.told, true);
    drop(state);
    shared.notify();
    if first && !matches!(trouble, Trouble::Unknown) {
        log::warn!("the tracker did not take a status, trying again: {trouble}");
    }
}

/// A name that is not too long for the server.
fn cut(name: &str) -> &str {
    if name.len() <= LONGEST_NAME {
        return name;
    }
    let end = (0..=LONGEST_NAME).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    &name[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_running_task_is_shown() {
        let mut tasks = Tasks::default();
        assert_eq!(tasks.report().0.status, "idle");
        let task = |number, name: &str, progress| Task { number, name: name.to_owned(), progress };
        assert_eq!(tasks.progress(), None);
        tasks.running = vec![task(1, "outer", Some(0.5)), task(2, "inner", None)];
        tasks.progressed = true;
        assert_eq!(tasks.progress(), Some(0.0), "not that of the task behind it");
        assert_eq!(tasks.report().0.current_task.as_deref(), Some("inner"));
        tasks.running.remove(0);
        assert_eq!(tasks.report().0.status, "running");
    }

    #[test]
    fn a_failed_report_rests_until_its_time_or_news() {
        let mut tasks = Tasks { version: 2, ..Tasks::default() };
        let now = Moment::now();
        assert!(matches!(tasks.due(5, now), Due::Now));
        tasks.failed = 2;
        tasks.retry = Some((now + Duration::from_secs(1), 5));
        assert!(matches!(tasks.due(5, now), Due::At(_)));
        assert!(matches!(tasks.due(6, now), Due::Now), "the server has answered a beat");
        assert!(matches!(tasks.due(5, now + Duration::from_secs(2)), Due::Now));
        tasks.version = 3;
        assert!(matches!(tasks.due(5, now), Due::Now), "a newer status");
        tasks.delivered(3);
        assert!(matches!(tasks.due(5, now), Due::Nothing));
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let name = "ü".repeat(LONGEST_NAME);
        assert_eq!(cut(&name).len(), LONGEST_NAME);
        assert_eq!(cut(&format!("x{name}")).len(), LONGEST_NAME - 1);
        assert_eq!(cut("short"), "short");
    }
}
