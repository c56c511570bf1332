//! What became of each row, for people and for programs.

use std::time::Duration;

use serde_json::json;

/// Bytes of a broken frame that are shown.
const SHOWN: usize = 48;

/// Why a row did not pass.
#[derive(Debug)]
pub(super) enum Miss {
    /// There is nothing to check: why.
    Skipped(String),
    Failed(Box<Failure>),
    /// There is no process at all: why.
    NoProcess(String),
    /// The user has had enough.
    Stopped,
}

/// What was expected, and what came instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) expected: String,
    pub(super) found: String,
    /// The beginning of what came, where that is a broken frame.
    pub(super) bytes: Vec<u8>,
}

pub(super) type Checked<T = ()> = Result<T, Miss>;

impl Miss {
    pub(super) fn failed(expected: impl Into<String>, found: impl Into<String>) -> Miss {
        Miss::broken(expected, found, &[])
    }

    pub(super) fn broken(expected: impl Into<String>, found: impl Into<String>, bytes: &[u8]) -> Miss {
        let bytes = bytes[..bytes.len().min(SHOWN)].to_vec();
        Miss::Failed(Box::new(Failure { expected: expected.into(), found: found.into(), bytes }))
    }

    pub(super) fn skipped(why: impl Into<String>) -> Miss {
        Miss::Skipped(why.into())
    }
}

/// Fails with what was expected unless it is so.
pub(super) fn expect(is_so: bool, expected: &str, found: impl FnOnce() -> String) -> Checked {
    if is_so { Ok(()) } else { Err(Miss::failed(expected, found())) }
}

/// How many rows ended how.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
}

impl Tally {
    /// Counts a row and returns the lines about it.
    pub(super) fn add(&mut self, row: &str, checked: &Checked, took: Duration, as_json: bool) -> String {
        match checked {
            Ok(()) => self.passed += 1,
            Err(Miss::Failed(_) | Miss::NoProcess(_)) => self.failed += 1,
            Err(Miss::Skipped(_) | Miss::Stopped) => self.skipped += 1,
        }
        if as_json { object(row, checked, took) } else { lines(row, checked) }
    }

    /// Counts rows that would all fail for the reason of the one before, and says so in a line.
    pub(super) fn leave_out(&mut self, rows: usize, why: &str) -> String {
        self.skipped += rows;
        format!("skipped  {rows} more rows: {why}\n")
    }

    pub(super) fn summary(&self) -> String {
        format!("{} ok, {} failed, {} skipped\n", self.passed, self.failed, self.skipped)
    }
}

fn lines(row: &str, checked: &Checked) -> String {
    match checked {
        Ok(()) => format!("ok       {row}\n"),
        Err(Miss::Skipped(why)) => format!("skipped  {row}: {why}\n"),
        Err(Miss::Stopped) => format!("skipped  {row}: stopped\n"),
        Err(Miss::NoProcess(why)) => format!("FAILED   {row}\n           {why}\n"),
        Err(Miss::Failed(failure)) => {
            let Failure { expected, found, bytes } = &**failure;
            let mut lines =
                format!("FAILED   {row}\n           expected: {expected}\n           found:    {found}\n");
            if !bytes.is_empty() {
                lines.push_str("           bytes:    ");
                lines.push_str(&hex(bytes));
                lines.push('\n');
            }
            lines
        }
    }
}

fn object(row: &str, checked: &Checked, took: Duration) -> String {
    let mut object = json!({ "row": row, "milliseconds": took.as_millis() });
    let status = match checked {
        Ok(()) => "ok",
        Err(Miss::Skipped(why)) => {
            object["reason"] = why.as_str().into();
            "skipped"
        }
        Err(Miss::Stopped) => {
            object["reason"] = "stopped".into();
            "skipped"
        }
        Err(Miss::NoProcess(why)) => {
            object["reason"] = why.as_str().into();
            "failed"
        }
        Err(Miss::Failed(failure)) => {
            object["expected"] = failure.expected.as_str().into();
            object["found"] = failure.found.as_str().into();
            if !failure.bytes.is_empty() {
                object["hex"] = hex(&failure.bytes).into();
            }
            "failed"
        }
    };
    object["status"] = status.into();
    format!("{object}\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_row_shows_what_came_byte_by_byte() {
        let mut tally = Tally::default();
        let checked = Err(Miss::broken("a frame", "another thing", &[1, 0xff]));
        let text = tally.add("ping", &checked, Duration::ZERO, false);
        assert!(text.starts_with("FAILED   ping\n") && text.ends_with("bytes:    01 ff\n"), "{text}");
        let text = tally.add("ping", &checked, Duration::from_millis(3), true);
        let object: serde_json::Value = serde_json::from_str(&text).expect("one object");
        assert_eq!(object["status"], "failed");
        assert_eq!((&object["hex"], &object["milliseconds"]), (&"01 ff".into(), &3.into()));
        assert_eq!(tally, Tally { passed: 0, failed: 2, skipped: 0 });
    }

    #[test]
    fn only_the_beginning_of_a_broken_frame_is_kept() {
        let Miss::Failed(failure) = Miss::broken("", "", &[7; 1000]) else { unreachable!("just made") };
        assert_eq!(failure.bytes.len(), SHOWN);
    }
}
