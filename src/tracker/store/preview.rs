//! The sessions that a preview of a kill looks at: those that are meant and their neighbours, not the list.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params_from_iter};

use super::rows::{COLUMNS, complete, stored};
use super::{SessionStore, kills, looks};
use crate::Result;
use crate::tracker::api::{KillPreview, Whom};
use crate::tracker::preview::Preview;

impl SessionStore {
    /// What killing `whom` would hit.
    pub(in crate::tracker) fn preview(&self, whom: &Whom) -> Result<KillPreview> {
        let (memory, thresholds, now) = (Arc::clone(&self.memory), self.thresholds, self.now());
        let whom = whom.clone();
        self.read("previewing a kill", move |tables: &Connection| {
            let completed = |row| complete(row, &memory.lock(), thresholds, now);
            let (condition, parameters) = kills::meant(&whom);
            let query = format!(
                "SELECT {COLUMNS} FROM sessions WHERE {condition} ORDER BY start_time DESC, row DESC"
            );
            let mut statement = tables.prepare_cached(&query)?;
            let rows = statement.query_map(params_from_iter(parameters), stored)?;
            let mut meant = Vec::new();
            for row in rows {
                meant.extend(completed(row?));
            }
            let mut preview = Preview::of(&whom, &meant);
            if !preview.has_pools() {
                return Ok(preview.end());
            }
            let mut beside = Vec::new();
            looks::each(&memory, |live| {
                if live.said().is_some_and(|said| preview.may_be_beside(&said.attached)) {
                    beside.push(live.row());
                }
            });
            beside.sort_unstable();
            let query = format!("SELECT {COLUMNS} FROM sessions WHERE row = ?");
            let mut statement = tables.prepare_cached(&query)?;
            for row in beside {
                if let Some(session) = statement.query_row([row], stored).optional()?.and_then(completed) {
                    preview.look_at(&session);
                }
            }
            Ok(preview.end())
        })
    }
}
