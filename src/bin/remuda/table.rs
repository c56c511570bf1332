//! Rows for people, as a table, and for programs, as lines of JSON.

use std::fmt::Write as _;
use std::process::ExitCode;

use remuda::Result;
use remuda::tracker::api::LONGEST_PAGE;
use serde::Serialize;

use crate::say;

/// How many rows to show, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    /// At most so many.
    pub(crate) limit: Option<usize>,
    pub(crate) json: bool,
}

impl Rows {
    /// How many to ask for at once.
    pub(crate) fn page_size(self) -> usize {
        self.limit.unwrap_or(usize::MAX).clamp(1, LONGEST_PAGE)
    }
}

/// Shows rows as their pages come: a million are never held at once.
pub(crate) fn show<T: Serialize, const N: usize>(
    pages: impl Iterator<Item = Result<Vec<T>>>,
    rows: Rows,
    mut table: Table<T, N>,
) -> Result<ExitCode> {
    let mut left = rows.limit.unwrap_or(usize::MAX);
    let mut code = ExitCode::SUCCESS;
    for page in pages {
        let mut page = page?;
        page.truncate(left);
        left -= page.len();
        code = say(&if rows.json { page.iter().map(line).collect() } else { table.lines(&page) });
        if left == 0 || code != ExitCode::SUCCESS {
            break;
        }
    }
    Ok(code)
}

/// A JSON object on a line of its own.
pub(crate) fn line(value: &impl Serialize) -> String {
    serde_json::to_string(value).map_or_else(|_| String::new(), |json| json + "\n")
}

/// A table that comes in pieces: a column is as wide as the widest text so far.
pub(crate) struct Table<T, const N: usize> {
    /// Until it is written.
    head: Option<[&'static str; N]>,
    cells: fn(&T) -> [String; N],
    widths: [usize; N],
}

impl<T, const N: usize> Table<T, N> {
    pub(crate) fn new(head: [&'static str; N], cells: fn(&T) -> [String; N]) -> Table<T, N> {
        Table { head: Some(head), cells, widths: [0; N] }
    }

    /// The next rows, below the head if they are the first.
    pub(crate) fn lines(&mut self, values: &[T]) -> String {
        let head = self.head.take().map(|head| head.map(str::to_owned));
        let rows: Vec<[String; N]> = head.into_iter().chain(values.iter().map(self.cells)).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut text = String::new();
        for row in rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(self.widths) {
                // Writing to a string cannot fail.
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Names come from anybody: what would move the cursor of a terminal is replaced.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The same of what may be missing.
pub(crate) fn plain_or_dash(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), plain)
}

/// A length of time in its largest unit.
pub(crate) fn span(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

/// A tracker's time, to the second: `2026-11-21 19:21:36`. Other text stays as it is.
pub(crate) fn time(text: &str) -> String {
    let is_known = text.is_ascii() && text.len() >= 19 && text.as_bytes()[10] == b'T';
    if is_known { plain(&text[..19].replacen('T', " ", 1)) } else { plain(text) }
}
