//! Whether the database can be used at present: what readiness stands on.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sync::Mutex;
use crate::{Error, Result, StoreFault};

/// The last failure of the database as a whole, until a write succeeds. That it is damaged stays said until the process ends: a write elsewhere in the file proves nothing.
pub(super) struct Trouble {
    last: Mutex<Option<(StoreFault, String)>>,
    /// The database's file and what it was when it was opened; none in memory.
    file: Option<(PathBuf, Identity)>,
    /// It was told that the file is gone.
    is_loss_told: AtomicBool,
}

/// Device and inode.
type Identity = (u64, u64);

impl Trouble {
    /// None yet, with this file.
    pub(super) fn none(file: Option<&Path>) -> Trouble {
        let file = file.and_then(|path| Some((path.to_owned(), identity(path)?)));
        Trouble { last: Mutex::new(None), file, is_loss_told: AtomicBool::new(false) }
    }

    /// Notes a failure; true if it is the first one in a row.
    pub(super) fn note(&self, fault: StoreFault, reason: String) -> bool {
        let mut last = self.last.lock();
        if last.as_ref().is_some_and(|(fault, _)| *fault == StoreFault::Damaged) {
            return false;
        }
        last.replace((fault, reason)).is_none()
    }

    /// A write succeeded; true if none did before.
    pub(super) fn clear(&self) -> bool {
        let mut last = self.last.lock();
        match &*last {
            None | Some((StoreFault::Damaged, _)) => false,
            Some(_) => last.take().is_some(),
        }
    }

    /// Whether writing should be tried, to learn that it works again.
    pub(super) fn is_any(&self) -> bool {
        self.last.lock().is_some()
    }

    /// Whether the database can be used. The first time that its file is gone, a warning says so.
    pub(super) fn check(&self) -> Result<()> {
        const DOING: &str = "taking changes";
        if let Some((fault, reason)) = &*self.last.lock() {
            return Err(Error::store_fault(*fault, DOING, reason.clone()));
        }
        if let Some((path, opened)) = &self.file
            && identity(path) != Some(*opened)
        {
            let reason = format!(
                "its file {} is gone or another one has taken its place: what is stored now ends with the process",
                path.display()
            );
            if !self.is_loss_told.swap(true, Ordering::Relaxed) {
                log::warn!("the tracker's database: {reason}");
            }
            return Err(Error::store_fault(StoreFault::Io, DOING, reason));
        }
        Ok(())
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let found = rustix::fs::stat(path).ok()?;
    Some((found.st_dev, found.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_lasts_until_a_write_succeeds_and_damage_lasts_for_ever() {
        let trouble = Trouble::none(None);
        let note = |fault| trouble.note(fault, "it failed".to_owned());
        assert!(trouble.check().is_ok() && !trouble.clear());
        assert!(note(StoreFault::Full) && !note(StoreFault::Io));
        assert!(matches!(trouble.check(), Err(Error::Store { fault: StoreFault::Io, .. })));
        assert!(trouble.clear() && !trouble.clear() && trouble.check().is_ok());
        assert!(note(StoreFault::Damaged) && !note(StoreFault::Full));
        assert!(!trouble.clear() && trouble.is_any());
        assert!(matches!(trouble.check(), Err(Error::Store { fault: StoreFault::Damaged, .. })));
    }
}
