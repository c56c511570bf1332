//! Numbers for the threads that acquire, so that a lease can say who took it for the price of one
//! thread-local word. Unlike `ThreadId` a number is a plain integer, and never used twice.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sync::Mutex;

/// Names of the threads that have one and still run.
static NAMES: Mutex<BTreeMap<u64, String>> = Mutex::new(BTreeMap::new());

thread_local! {
    static NUMBER: Cell<u64> = const { Cell::new(0) };
    static NAMED: RefCell<Option<Named>> = const { RefCell::new(None) };
}

/// Takes the name of a thread back when it ends.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        NAMES.lock().remove(&self.0);
    }
}

/// The number of this thread, from 1.
#[inline]
pub(super) fn number() -> u64 {
    match NUMBER.get() {
        0 => first_time(),
        number => number,
    }
}

#[cold]
fn first_time() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    NUMBER.set(number);
    let thread = std::thread::current();
    if let Some(name) = thread.name() {
        // A thread that is about to end already cannot take its name back: it stays without.
        let _ = NAMED.try_with(|named| {
            NAMES.lock().insert(number, name.to_owned());
            named.replace(Some(Named(number)))
        });
    }
    number
}

/// The name of a thread, if it has one and still runs.
pub(super) fn name(number: u64) -> Option<String> {
    NAMES.lock().get(&number).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_number_and_loses_its_name_when_it_ends() {
        let work = || (number(), number(), name(number()));
        let thread = std::thread::Builder::new().name("somebody".into());
        let (first, second, its_name) = thread.spawn(work).unwrap().join().unwrap();
        assert_eq!((first, its_name.as_deref()), (second, Some("somebody")));
        assert_ne!(first, number());
        assert_eq!(name(first), None, "nothing is kept of a thread that has ended");
    }
}
