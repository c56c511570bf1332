//! Lists that come page by page.

use std::fmt;

use super::TrackerOperator;
use crate::Result;

/// Pages of what a query asks for: each step is one request. It ends behind the last page, and after an error.
///
/// What comes or goes on the tracker between two steps neither hides other rows nor shows them twice.
#[must_use = "nothing is asked before the first step"]
pub struct TrackerPages<'a, Q, P> {
    operator: &'a TrackerOperator,
    /// Nothing behind the end.
    query: Option<Q>,
    ask: fn(&TrackerOperator, &Q) -> Result<P>,
    turn: fn(&mut Q, &P) -> Option<bool>,
}

impl<'a, Q, P> TrackerPages<'a, Q, P> {
    /// `turn` makes a query that of the page behind this one and says whether that is further on; nothing if
    /// there is no further page.
    pub(super) fn new(
        operator: &'a TrackerOperator,
        query: Q,
        ask: fn(&TrackerOperator, &Q) -> Result<P>,
        turn: fn(&mut Q, &P) -> Option<bool>,
    ) -> TrackerPages<'a, Q, P> {
        TrackerPages { operator, query: Some(query), ask, turn }
    }
}

impl<Q, P> Iterator for TrackerPages<'_, Q, P> {
    type Item = Result<P>;

    fn next(&mut self) -> Option<Result<P>> {
        let mut query = self.query.take()?;
        let page = (self.ask)(self.operator, &query);
        match page.as_ref().ok().and_then(|page| (self.turn)(&mut query, page)) {
            None => {}
            Some(true) => self.query = Some(query),
            Some(false) => return Some(Err(self.operator.trouble("its list does not go on"))),
        }
        Some(page)
    }
}

impl<Q: fmt::Debug, P> fmt::Debug for TrackerPages<'_, Q, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackerPages").field("query", &self.query).finish_non_exhaustive()
    }
}
