//! What the beats of many sessions bring for the disk, in one wait for it.

use super::SessionStore;
use super::write::Write;
use crate::tracker::TrackedId;
use crate::tracker::api::KillAcknowledgement;
use crate::{Error, Result};

/// What the beat of one session brings for the disk.
#[derive(Clone, Debug)]
pub(in crate::tracker) struct News {
    pub(in crate::tracker) id: TrackedId,
    pub(in crate::tracker) kill: Option<KillAcknowledgement>,
    /// A status and its task.
    pub(in crate::tracker) status: Option<(String, Option<String>)>,
    pub(in crate::tracker) status_number: Option<u64>,
}

impl SessionStore {
    /// Notes the news of many sessions. Durable when it returns; after an error some of it may be.
    pub(in crate::tracker) fn note_news(&self, news: Vec<News>) -> Result<()> {
        let mut writes = Vec::new();
        for News { id, kill, status, status_number } in news {
            if let Some(word) = kill {
                writes.push(Write::Acknowledge { id: id.clone(), word });
            }
            if let Some((status, current_task)) = status {
                let number = status_number.map(|number| i64::try_from(number).unwrap_or(i64::MAX));
                writes.push(Write::Status { id, status, current_task, number });
            }
        }
        let failed = |error| Error::store("noting what the beats of many sessions brought", error);
        self.writer.write_all(writes).map_err(failed)
    }
}
