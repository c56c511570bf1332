//! What has been: sessions that are no more, kills, who has asked for what. And what apps attach to their beats,
//! which comes in pages of the same kind.

use ureq::http;

use super::{TrackerOperator, TrackerPages, parameters};
use crate::Result;
use crate::tracker::api::{
    AuditPage, AuditQuery, HistoryPage, HistoryQuery, PoolPage, PoolQuery, ReceiptList, ReceiptQuery,
};

impl TrackerOperator {
    /// A page of the sessions that are no more. `None` if the tracker is one of another kind: it keeps no
    /// history.
    ///
    /// # Errors
    /// [`Error::Tracker`](crate::Error::Tracker), also if the query makes no sense.
    pub fn history_page(&self, query: &HistoryQuery) -> Result<Option<HistoryPage>> {
        let HistoryQuery { limit, before, app, session } = query;
        let named =
            [("before", text(before.as_ref())), ("app", app.clone()), ("session", text(session.as_ref()))];
        self.call(http::Method::GET, &format!("/history?{}", parameters(*limit, named)))
    }

    /// The sessions that are no more, newest first, page by page. A tracker of another kind is an error.
    ///
    /// ```
    /// # use remuda::{TrackerOperator, TrackerServer};
    /// use remuda::tracker::api::HistoryQuery;
    ///
    /// # let server = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").start()?;
    /// # let operator = TrackerOperator::new(format!("http://{}", server.local_addr()))?;
    /// # for _ in 0..5 {
    /// #     let id = server.store().create_session("reports", None)?;
    /// #     server.store().delete_session(&id)?;
    /// # }
    /// let mut count = 0;
    /// for page in operator.history_pages(HistoryQuery::new().app("reports").limit(2)) {
    ///     count += page?.history.len();
    /// }
    /// assert_eq!(count, 5);
    /// # Ok::<(), remuda::Error>(())
    /// ```
    pub fn history_pages(&self, query: HistoryQuery) -> TrackerPages<'_, HistoryQuery, HistoryPage> {
        let ask = |operator: &TrackerOperator, query: &HistoryQuery| {
            operator.history_page(query)?.ok_or_else(|| operator.trouble("it keeps no history"))
        };
        TrackerPages::new(self, query, ask, |query, page| back(&mut query.before, page.next_before))
    }

    /// A page of the receipts of kills. `None` if the tracker is one of another kind: it gives none.
    ///
    /// # Errors
    /// [`Error::Tracker`](crate::Error::Tracker), also if the query makes no sense.
    pub fn receipts_page(&self, query: &ReceiptQuery) -> Result<Option<ReceiptList>> {
        let ReceiptQuery { limit, before, app, session, open } = query;
        let open = open.then(|| "1".to_owned());
        let named = [
            ("before", text(before.as_ref())),
            ("app", app.clone()),
            ("session", text(session.as_ref())),
            ("open", open),
        ];
        self.call(http::Method::GET, &format!("/kills?{}", parameters(*limit, named)))
    }

    /// The receipts of kills, newest first, page by page. A tracker of another kind is an error.
    pub fn receipt_pages(&self, query: ReceiptQuery) -> TrackerPages<'_, ReceiptQuery, ReceiptList> {
        let ask = |operator: &TrackerOperator, query: &ReceiptQuery| {
            operator.receipts_page(query)?.ok_or_else(|| operator.trouble("it gives no receipts"))
        };
        TrackerPages::new(self, query, ask, |query, page| back(&mut query.before, page.next_before))
    }

    /// A page of what operators have asked for. `None` if the tracker is one of another kind: it keeps no
    /// audit. Where there are access tokens, it takes one of an operator.
    ///
    /// # Errors
    /// [`Error::Tracker`](crate::Error::Tracker), also if the query makes no sense.
    pub fn audit_page(&self, query: &AuditQuery) -> Result<Option<AuditPage>> {
        let AuditQuery { limit, before, action, token } = query;
        let named =
            [("before", text(before.as_ref())), ("action", text(action.as_ref())), ("token", token.clone())];
        self.call(http::Method::GET, &format!("/audit?{}", parameters(*limit, named)))
    }

    /// What operators have asked for, newest first, page by page. A tracker of another kind is an error.
    pub fn audit_pages(&self, query: AuditQuery) -> TrackerPages<'_, AuditQuery, AuditPage> {
        let ask = |operator: &TrackerOperator, query: &AuditQuery| {
            operator.audit_page(query)?.ok_or_else(|| operator.trouble("it keeps no audit"))
        };
        TrackerPages::new(self, query, ask, |query, page| back(&mut query.before, page.next_before))
    }

    /// A page of what apps attach to their beats, such as the state of their pools. `None` if the tracker is
    /// one of another kind: it keeps nothing of that.
    ///
    /// # Errors
    /// [`Error::Tracker`](crate::Error::Tracker), also if the query makes no sense.
    pub fn pools_page(&self, query: &PoolQuery) -> Result<Option<PoolPage>> {
        let PoolQuery { limit, after, app, session, name } = query;
        let named = [
            ("after", text(after.as_ref())),
            ("app", app.clone()),
            ("session", text(session.as_ref())),
            ("name", name.clone()),
        ];
        self.call(http::Method::GET, &format!("/pools?{}", parameters(*limit, named)))
    }

    /// What apps attach to their beats, page by page. A tracker of another kind is an error.
    pub fn pool_pages(&self, query: PoolQuery) -> TrackerPages<'_, PoolQuery, PoolPage> {
        let ask = |operator: &TrackerOperator, query: &PoolQuery| {
            operator.pools_page(query)?.ok_or_else(|| operator.trouble("it keeps no snapshots"))
        };
        TrackerPages::new(self, query, ask, |query, page| {
            let next = page.next_after?;
            let goes_on = query.after.is_none_or(|after| next > after);
            query.after = Some(next);
            Some(goes_on)
        })
    }
}

/// Moves a query whose numbers count down to the next page.
fn back(before: &mut Option<u64>, next: Option<u64>) -> Option<bool> {
    let next = next?;
    let goes_on = before.is_none_or(|before| next < before);
    *before = Some(next);
    Some(goes_on)
}

fn text(value: Option<&impl ToString>) -> Option<String> {
    value.map(ToString::to_string)
}
