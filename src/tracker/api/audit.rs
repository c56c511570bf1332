//! What operators have asked for, whether it was done or not.
//!
//! | route | body → answer |
//! |---|---|
//! | `GET /audit?limit=100&before=ENTRY` | [`AuditQuery`] → [`AuditPage`], newest first; also `&action=`, `&token=` (its name) |

use serde::{Deserialize, Serialize};

use super::{DEFAULT_PAGE, Role, Verb};
use crate::named::show_by_name;
use crate::tracker::TrackedId;

/// Who asked for something, as the tracker itself knows it: unlike
/// [`KillRequest::requested_by`](super::KillRequest::requested_by) it cannot be made up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Asker {
    /// The name of the access token. Empty without tokens, and for one without a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The role of the access token. Empty without tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The address that the connection came from: that of the proxy, if there is one.
    pub address: String,
}

#[cfg(feature = "server")]
impl Asker {
    pub(in crate::tracker) fn new(token: Option<&str>, role: Option<Role>, address: String) -> Asker {
        Asker { token: token.map(str::to_owned), role, address }
    }
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AuditAction {
    /// A kill.
    Kill,
    /// [`Verb::Pause`].
    Pause,
    /// [`Verb::Drain`].
    Drain,
    /// [`Verb::Resume`].
    Resume,
    /// [`Verb::Protect`].
    Protect,
    /// [`Verb::Unprotect`].
    Unprotect,
    /// The removal of silent sessions.
    CleanUp,
    /// The end of a session that is not the caller's.
    Remove,
}

impl AuditAction {
    const ALL: [AuditAction; 8] = [
        AuditAction::Kill,
        AuditAction::Pause,
        AuditAction::Drain,
        AuditAction::Resume,
        AuditAction::Protect,
        AuditAction::Unprotect,
        AuditAction::CleanUp,
        AuditAction::Remove,
    ];

    /// The word that stands for it in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            AuditAction::Kill => "kill",
            AuditAction::Pause => "pause",
            AuditAction::Drain => "drain",
            AuditAction::Resume => "resume",
            AuditAction::Protect => "protect",
            AuditAction::Unprotect => "unprotect",
            AuditAction::CleanUp => "clean_up",
            AuditAction::Remove => "remove",
        }
    }

    /// The action of this name.
    pub fn named(word: &str) -> Option<AuditAction> {
        AuditAction::ALL.into_iter().find(|action| action.as_str() == word)
    }
}

impl From<Verb> for AuditAction {
    fn from(verb: Verb) -> AuditAction {
        match verb {
            Verb::Pause => AuditAction::Pause,
            Verb::Drain => AuditAction::Drain,
            Verb::Resume => AuditAction::Resume,
            Verb::Protect => AuditAction::Protect,
            Verb::Unprotect => AuditAction::Unprotect,
        }
    }
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AuditResult {
    /// It was done, to [`AuditEntry::sessions`].
    Done,
    /// There was no such session.
    Unknown,
    /// The session was protected.
    Protected,
    /// The sessions were not those of the preview any more.
    StaleGeneration,
    /// The access token was not for that.
    Forbidden,
}

impl AuditResult {
    const ALL: [AuditResult; 5] = [
        AuditResult::Done,
        AuditResult::Unknown,
        AuditResult::Protected,
        AuditResult::StaleGeneration,
        AuditResult::Forbidden,
    ];

    /// The word that stands for it in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            AuditResult::Done => "done",
            AuditResult::Unknown => "unknown",
            AuditResult::Protected => "protected",
            AuditResult::StaleGeneration => "stale_generation",
            AuditResult::Forbidden => "forbidden",
        }
    }

    /// The result of this name.
    pub fn named(word: &str) -> Option<AuditResult> {
        AuditResult::ALL.into_iter().find(|result| result.as_str() == word)
    }
}

show_by_name!(AuditAction, AuditResult);

/// Something that was asked for, and what became of it.
///
/// It is on the disk together with what it tells of, or neither is. There is one for each kill,
/// order and removal by an operator, for each clean-up by hand that hit somebody, for each of them
/// that was refused because of its session, and, once a minute for each caller, for what was refused
/// because the token is not for that. Previews change nothing and have none. Entries are kept for a
/// year, and at most 100 000 of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AuditEntry {
    /// Its number: they count up.
    pub entry: u64,
    /// When: RFC 3339, UTC.
    pub time: String,
    /// What.
    pub action: AuditAction,
    /// What became of it.
    pub result: AuditResult,
    /// The session that was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<TrackedId>,
    /// The app that was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_name: Option<String>,
    /// The label that was named, as `key=value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Who asked. Empty if it was the tracker's own program, and not a request to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<Asker>,
    /// Who asked, as he said himself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// Why, if it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many sessions it hit.
    pub sessions: u64,
    /// The first 100 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub session_ids: Vec<TrackedId>,
}

/// Which entries of the audit to list. The fields are the parameters of `GET /audit`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditQuery {
    /// Entries on a page at most, from 1 to [`LONGEST_PAGE`](super::LONGEST_PAGE); default [`DEFAULT_PAGE`].
    pub limit: usize,
    /// Only those with a smaller number: a page's [`next_before`](AuditPage::next_before).
    /// Default: from the newest on.
    pub before: Option<u64>,
    /// Of this action only.
    pub action: Option<AuditAction>,
    /// Only what was asked with the access token of this name.
    pub token: Option<String>,
}

impl Default for AuditQuery {
    fn default() -> AuditQuery {
        AuditQuery { limit: DEFAULT_PAGE, before: None, action: None, token: None }
    }
}

impl AuditQuery {
    /// All of them, newest first.
    pub fn new() -> AuditQuery {
        AuditQuery::default()
    }

    /// Sets [`limit`](AuditQuery::limit).
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Sets [`before`](AuditQuery::before).
    pub fn before(mut self, entry: u64) -> Self {
        self.before = Some(entry);
        self
    }

    /// Sets [`action`](AuditQuery::action).
    pub fn action(mut self, action: AuditAction) -> Self {
        self.action = Some(action);
        self
    }

    /// Sets [`token`](AuditQuery::token).
    pub fn token(mut self, name: impl Into<String>) -> Self {
        self.token = Some(name.into());
        self
    }
}

/// The answer to `GET /audit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPage {
    /// The entries, newest first.
    pub audit: Vec<AuditEntry>,
    /// What to give as `before` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_before: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_json_are_those_of_the_tables() {
        for action in AuditAction::ALL {
            assert_eq!(serde_json::to_value(action).unwrap(), action.as_str());
            assert_eq!(AuditAction::named(action.as_str()), Some(action));
        }
        for result in AuditResult::ALL {
            assert_eq!(serde_json::to_value(result).unwrap(), result.as_str());
            assert_eq!(AuditResult::named(result.as_str()), Some(result));
        }
    }
}
