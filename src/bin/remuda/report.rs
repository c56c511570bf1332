//! What came of the scripts: a table for people, JSON for programs.

use std::time::Duration;

use remuda::{Error, Execution, ExecutionError, Outcome, PostMortem, SessionId};
use serde::Serialize;
use serde_json::Value;

/// How one script ended.
pub(crate) enum End {
    /// It ran, in whatever way it ended.
    Ran(Box<Execution>),
    /// No session could run it.
    Refused(Error),
    /// The run was stopped before its turn.
    NotStarted,
}

impl End {
    /// From what a session or the pool said.
    pub(crate) fn of(result: Result<Execution, Error>) -> End {
        match result {
            Ok(execution) => End::Ran(Box::new(execution)),
            Err(Error::Cancelled | Error::Closed) => End::NotStarted,
            Err(error) => End::Refused(error),
        }
    }

    pub(crate) fn succeeded(&self) -> bool {
        matches!(self, End::Ran(execution) if succeeded(execution))
    }

    /// One word, as in the JSON.
    fn word(&self) -> &'static str {
        match self {
            End::Ran(execution) if succeeded(execution) => "completed",
            End::Ran(execution) => execution.outcome.as_str(),
            End::Refused(_) => "refused",
            End::NotStarted => "not_started",
        }
    }

    /// A few words for the table.
    fn words(&self) -> String {
        match self {
            End::Ran(execution) if succeeded(execution) => "completed".to_owned(),
            End::Ran(execution) => match (execution.outcome, &execution.error, &execution.post_mortem) {
                (Outcome::Failed, Some(error), _) => match error.exit_code {
                    Some(code) => format!("failed: exit status {code}"),
                    None => format!("failed: {}", error.kind),
                },
                (Outcome::Died, _, Some(post_mortem)) => format!("died: {}", post_mortem.exit),
                (outcome, _, _) => outcome.to_string(),
            },
            End::Refused(error) => format!("refused: {error}"),
            End::NotStarted => "not started".to_owned(),
        }
    }
}

/// Whether the code ran to its end, or ended itself with status 0.
pub(crate) fn succeeded(execution: &Execution) -> bool {
    let left = execution.outcome == Outcome::Failed
        && execution.error.as_ref().is_some_and(|error| error.exit_code == Some(0));
    execution.is_completed() || left
}

/// What python would print on stderr at the end; nothing for code that was stopped as asked.
pub(crate) fn complaint(execution: &Execution) -> Option<String> {
    match execution.outcome {
        Outcome::Cancelled { .. } => None,
        _ => execution.error.as_ref().and_then(printed),
    }
}

/// Nothing for a bare exit, the message of `sys.exit("message")`, else the traceback.
fn printed(error: &ExecutionError) -> Option<String> {
    let text = match error.exit_code {
        Some(0) => return None,
        Some(_) if error.message.is_empty() || error.message.parse::<i64>().is_ok() => return None,
        Some(_) => &error.message,
        None => &error.traceback,
    };
    let end = if text.ends_with('\n') { "" } else { "\n" };
    Some(format!("{text}{end}"))
}

/// One line per script, and a line that sums up.
pub(crate) fn table<'a>(rows: impl Iterator<Item = (&'a str, &'a End)>, took: Duration) -> String {
    let header = ["script", "outcome", "seconds", "session", "peak memory"].map(str::to_owned);
    let (mut lines, mut ends) = (vec![header], Vec::new());
    for (label, end) in rows {
        let (mut seconds, mut session, mut memory) = ("-".to_owned(), "-".to_owned(), "-".to_owned());
        if let End::Ran(execution) = end {
            seconds = format!("{:.3}", execution.duration.as_secs_f64());
            session = execution.session.to_string();
            memory = peak_memory(execution).map_or(memory, mebibytes);
        }
        lines.push([label.to_owned(), end.words(), seconds, session, memory]);
        ends.push(end);
    }
    let widths: [usize; 5] = std::array::from_fn(|column| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for line in &lines {
        // Words begin at the left, numbers end at the right.
        let cells = line.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
            0 | 1 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        text.push_str(&cells.collect::<Vec<_>>().join("  "));
        text.push('\n');
    }
    text.push_str(&summary(&ends, took));
    text
}

/// `3 scripts in 0.2 s: 2 completed, 1 failed`.
fn summary(ends: &[&End], took: Duration) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for end in ends {
        match counts.iter_mut().find(|(word, _)| *word == end.word()) {
            Some((_, count)) => *count += 1,
            None => counts.push((end.word(), 1)),
        }
    }
    let counts: Vec<String> =
        counts.iter().map(|(word, count)| format!("{count} {}", word.replace('_', " "))).collect();
    let plural = if ends.len() == 1 { "" } else { "s" };
    format!("{} script{plural} in {:.1} s: {}\n", ends.len(), took.as_secs_f64(), counts.join(", "))
}

fn peak_memory(execution: &Execution) -> Option<u64> {
    let measured = execution.usage.and_then(|usage| usage.peak_memory);
    measured.or_else(|| execution.post_mortem.as_ref().and_then(|death| death.peak_memory))
}

fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) / (1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// The object that `--json` prints, on one line.
pub(crate) fn json(script: Option<&str>, end: &End) -> String {
    let execution = match end {
        End::Ran(execution) => Some(execution.as_ref()),
        _ => None,
    };
    let refused = match end {
        End::Refused(error) => Some(error.to_string()),
        _ => None,
    };
    let row = Row {
        script,
        outcome: end.word(),
        ok: end.succeeded(),
        killed: execution.is_some_and(|run| {
            matches!(
                run.outcome,
                Outcome::Cancelled { killed: true }
                    | Outcome::TimedOut { killed: true, .. }
                    | Outcome::LimitExceeded { killed: true, .. }
            )
        }),
        seconds: execution.map(|run| run.duration.as_secs_f64()),
        session: execution.map(|run| run.session),
        peak_memory: execution.and_then(peak_memory),
        value: execution.map(|run| &run.value),
        repr: execution.and_then(|run| run.repr.as_deref()),
        stdout: execution.map(|run| run.stdout.as_str()),
        stderr: execution.map(|run| run.stderr.as_str()),
        dropped: execution.map(|run| run.dropped),
        // `sys.exit(0)` is a way to succeed.
        error: execution.filter(|run| !succeeded(run)).and_then(|run| run.error.as_ref()),
        post_mortem: execution.and_then(|run| run.post_mortem.as_deref()),
        refused,
    };
    // Strings, numbers and values that came as JSON always have a form in JSON.
    serde_json::to_string(&row).unwrap_or_else(|error| format!("{{\"refused\":\"no JSON: {error}\"}}"))
}

#[derive(Serialize)]
struct Row<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    script: Option<&'a str>,
    outcome: &'static str,
    ok: bool,
    killed: bool,
    seconds: Option<f64>,
    session: Option<SessionId>,
    peak_memory: Option<u64>,
    value: Option<&'a Value>,
    repr: Option<&'a str>,
    stdout: Option<&'a str>,
    stderr: Option<&'a str>,
    dropped: Option<(u64, u64)>,
    error: Option<&'a ExecutionError>,
    post_mortem: Option<&'a PostMortem>,
    refused: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ran_is_in_the_table_and_in_the_json() {
        let ends =
            [("a.py", End::NotStarted), ("long name.py", End::Refused(Error::TooManyWaiters { limit: 3 }))];
        let text = table(ends.iter().map(|(label, end)| (*label, end)), Duration::from_millis(1_250));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[1].starts_with("a.py          not started"), "{text}");
        assert_eq!(lines[3], "2 scripts in 1.2 s: 1 not started, 1 refused");
        let row: Value = serde_json::from_str(&json(Some("a.py"), &ends[0].1)).expect("an object");
        assert_eq!(
            (&row["script"], &row["outcome"], &row["ok"]),
            (&"a.py".into(), &"not_started".into(), &false.into())
        );
    }

    #[test]
    fn only_errors_that_python_would_show_are_shown() {
        let exit: ExecutionError = serde_json::from_str(
            r#"{"type":"SystemExit","message":"3","traceback":"Traceback...","exit_code":3}"#,
        )
        .expect("an error");
        assert_eq!(printed(&exit), None);
        let mut told = exit.clone();
        told.message = "no input".to_owned();
        assert_eq!(printed(&told).as_deref(), Some("no input\n"));
        let mut raised = exit;
        raised.exit_code = None;
        assert_eq!(printed(&raised).as_deref(), Some("Traceback...\n"));
    }
}
