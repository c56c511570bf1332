//! One client per key: [`SessionClient::get_tracker`](super::SessionClient::get_tracker) and
//! [`SessionGroup::get_tracker`](super::SessionGroup::get_tracker), which share their keys.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use super::SessionClient;
use super::config::ClientConfig;
use super::group::Owner;
use crate::error::Result;
use crate::sync::Mutex;

/// The client of one key. Its lock is held while the client starts, so that only one does.
type Slot = Mutex<Weak<SessionClient>>;

/// Keys that were asked for. The registry keeps no client alive.
static SLOTS: Mutex<BTreeMap<String, Arc<Slot>>> = Mutex::new(BTreeMap::new());

/// `owner` is that of the group which a new client joins.
pub(super) fn get(key: &str, config: ClientConfig, owner: Option<&Arc<Owner>>) -> Result<Arc<SessionClient>> {
    let slot = {
        let mut slots = SLOTS.lock();
        // A slot that somebody uses has a second owner; one of an ended client has nothing.
        slots.retain(|_, slot| {
            Arc::strong_count(slot) > 1 || slot.try_lock().is_none_or(|client| client.strong_count() > 0)
        });
        Arc::clone(slots.entry(key.to_owned()).or_default())
    };
    // A client that ends with this owner may have callbacks that ask for the same key: it is dropped
    // after the lock.
    let old;
    let mut client = slot.lock();
    old = client.upgrade();
    if let Some(living) = old.as_ref().filter(|client| !client.is_stopped()) {
        let mut differences = living.config().differences(&config);
        if !living.is_in(owner) {
            differences.push("group");
        }
        if !differences.is_empty() {
            log::warn!(
                "the tracker client of {key} lives already and keeps its own {}",
                differences.join(", ")
            );
        }
        return Ok(Arc::clone(living));
    }
    let started = Arc::new(match owner {
        None => SessionClient::start(config)?,
        Some(owner) => SessionClient::start_in(config, owner)?,
    });
    *client = Arc::downgrade(&started);
    Ok(started)
}
