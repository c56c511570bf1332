//! The rows, in the order of the document. Each is a function that starts what it needs.

mod cancel;
mod descriptors;
mod end;
mod events;
mod garbage;
mod requests;
mod start;
mod state;
mod stream;
mod template;

use super::driver::Subject;
use super::report::Checked;

pub(super) type Row = fn(&Subject) -> Checked;

/// Every row by name.
pub(super) fn all() -> impl Iterator<Item = (&'static str, Row)> {
    [
        start::ROWS,
        requests::ROWS,
        stream::ROWS,
        events::ROWS,
        cancel::ROWS,
        state::ROWS,
        descriptors::ROWS,
        template::ROWS,
        garbage::ROWS,
        end::ROWS,
    ]
    .concat()
    .into_iter()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_row_has_a_name_of_its_own() {
        let mut names: Vec<_> = super::all().map(|(name, _)| name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
