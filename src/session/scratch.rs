//! A session's own temporary directory.

use std::fs::{DirBuilder, DirEntry, File, Metadata, read_dir, remove_dir, remove_dir_all, symlink_metadata};
use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};

use crate::sync::Mutex;

/// First part of the name of every scratch directory; the watchdog removes nothing else.
pub(crate) const PREFIX: &str = "remuda-";

/// So many files are removed in less than a millisecond.
const FEW: usize = 32;

/// An empty directory that only its user can enter; removed with all it holds when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    /// Device and number of the directory that was created.
    identity: (u64, u64),
}

impl Scratch {
    pub(crate) fn create() -> io::Result<Scratch> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let parent = std::env::temp_dir();
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
            // Creation fails if the name exists, whoever made it: nobody can lay a trap there.
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    let identity = identity(&symlink_metadata(&path)?);
                    return Ok(Scratch { path, identity });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the directory that was created: code that runs as the host's user can have put another in
    /// its place, or a link.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = File::from(rustix::fs::open(&self.path, flags, Mode::empty())?);
        if identity(&opened.metadata()?) != self.identity {
            return Err(io::Error::new(io::ErrorKind::NotFound, "something else lies in its place"));
        }
        Ok(opened.into())
    }

    /// Whether removing it takes longer than anybody else should wait: many files, or directories
    /// that may hold many.
    pub(crate) fn is_large(&self) -> bool {
        let Ok(entries) = read_dir(&self.path) else { return false };
        let is_directory = |entry: &DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        entries.flatten().enumerate().any(|(index, entry)| index >= FEW || is_directory(&entry))
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_or_keep(mem::take(&mut self.path));
        let kept = mem::take(&mut *KEPT.lock());
        kept.into_iter().for_each(remove_or_keep);
    }
}

/// Directories that could not be removed for want of descriptors or memory: tried again with the next.
static KEPT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn remove_or_keep(path: PathBuf) {
    use rustix::io::Errno;
    // An empty one, as after a start that failed, goes without a descriptor.
    let removed = remove_dir(&path).or_else(|_| remove_dir_all(&path));
    let Err(error) = removed else { return };
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => {}
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => KEPT.lock().push(path),
        _ => log::warn!("cannot remove the session directory {}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_was_kept_goes_with_the_next() {
        let kept = Scratch::create().expect("a directory");
        let path = kept.path().to_owned();
        std::fs::write(path.join("file"), "x").expect("a file");
        mem::forget(kept);
        KEPT.lock().push(path.clone());
        drop(Scratch::create().expect("another"));
        assert!(!path.exists());
    }
}
