//! Who may ask a tracker for what.

use serde::{Deserialize, Serialize};

use crate::named::show_by_name;

/// What an access token is for.
///
/// A token travels as `Authorization: Bearer TOKEN`. Without tokens, on loopback, whoever reaches the
/// tracker may ask for everything.
///
/// | role | may |
/// |---|---|
/// | *app* | register, and beat for, report and end what was registered with a token of the same name |
/// | *viewer* | read: lists, receipts, the history |
/// | *operator* | everything: what a viewer may, and kill, order, clean up and read the audit, and what an app may for every session |
///
/// Everybody may fetch the page's files, the description, `/livez` and `/readyz`. What asks without a
/// token that the tracker knows is 401 `unauthorized`; with one whose role is too low it is 403
/// `forbidden`. For an app, sessions of others are like sessions that do not exist: 404. One that
/// registers with the id of such a session gets another id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// A program that is tracked.
    App,
    /// Who looks.
    Viewer,
    /// Who looks, kills and orders.
    Operator,
}

impl Role {
    /// The word that stands for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::App => "app",
            Role::Viewer => "viewer",
            Role::Operator => "operator",
        }
    }

    /// The role that this word stands for.
    pub fn named(word: &str) -> Option<Role> {
        [Role::App, Role::Viewer, Role::Operator].into_iter().find(|role| role.as_str() == word)
    }
}

show_by_name!(Role);
