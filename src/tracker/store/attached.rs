//! What came attached to beats, by session.

use rusqlite::OptionalExtension;

use super::{SessionStore, looks};
use crate::Result;
use crate::tracker::api::{AttachedPool, PoolPage, PoolQuery};
use crate::tracker::{TrackedId, civil};

/// About what a page may weigh; a session more may come on top.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// A session's row, as far as it is shown.
struct Row {
    number: i64,
    session_id: TrackedId,
    app_name: String,
    user_id: Option<String>,
    host: Option<String>,
    pid: Option<u32>,
}

impl SessionStore {
    /// What sessions attach to their beats, in the order of their rows.
    pub(in crate::tracker) fn attached(&self, query: &PoolQuery) -> Result<PoolPage> {
        let after = i64::try_from(query.after.unwrap_or(0)).unwrap_or(i64::MAX);
        let numbers = looks::attaching(&self.memory, after, query.name.as_deref());
        let mut page = PoolPage::default();
        let (mut sessions, mut bytes) = (0, 0);
        // As many at once as there may be on the page.
        for some in numbers.chunks(query.limit.max(1)) {
            for row in self.attaching(some.to_vec(), query)? {
                let number = u64::try_from(row.number).unwrap_or_default();
                let pools = self.attached_by(&row, query);
                if pools.is_empty() {
                    continue;
                }
                if sessions == query.limit || bytes > PAGE_BYTES {
                    return Ok(page);
                }
                sessions += 1;
                bytes += pools.iter().map(|pool| pool.snapshot.to_string().len()).sum::<usize>();
                page.pools.extend(pools);
                page.next_after = Some(number);
            }
        }
        page.next_after = None;
        Ok(page)
    }

    /// Those of these rows that are meant, in their order.
    fn attaching(&self, numbers: Vec<i64>, query: &PoolQuery) -> Result<Vec<Row>> {
        let (app_name, session) = (query.app.clone(), query.session.clone());
        self.read("reading who attaches what", move |tables| {
            let mut named = tables.prepare_cached(
                "SELECT session_id, app_name, user_id, host, pid FROM sessions
                 WHERE row = ?1 AND (?2 IS NULL OR app_name = ?2) AND (?3 IS NULL OR session_id = ?3)",
            )?;
            let mut rows = Vec::new();
            for number in numbers {
                let session = session.as_ref().map(TrackedId::as_str);
                let row = named.query_row(rusqlite::params![number, app_name, session], |row| {
                    Ok(Row {
                        number,
                        session_id: row.get::<_, String>(0)?.into(),
                        app_name: row.get(1)?,
                        user_id: row.get(2)?,
                        host: row.get(3)?,
                        pid: row.get(4)?,
                    })
                });
                rows.extend(row.optional()?);
            }
            Ok(rows)
        })
    }

    fn attached_by(&self, row: &Row, query: &PoolQuery) -> Vec<AttachedPool> {
        let (attached, seen_millis) = {
            let memory = self.memory.lock();
            let Some(live) = memory.get(&row.session_id) else { return Vec::new() };
            (live.said().map(|said| said.attached.clone()).unwrap_or_default(), live.seen_millis())
        };
        let meant =
            attached.into_iter().filter(|(name, _)| query.name.as_ref().is_none_or(|meant| meant == name));
        let shown = meant.map(|(attached_name, snapshot)| AttachedPool {
            session_id: row.session_id.clone(),
            app_name: row.app_name.clone(),
            user_id: row.user_id.clone(),
            host: row.host.clone(),
            pid: row.pid,
            attached_name,
            snapshot,
            last_heartbeat: civil::rfc3339(seen_millis),
        });
        shown.collect()
    }
}
