//! A session's own temporary directory.

use std::fs::{DirBuilder, DirEntry, File, Metadata, read_dir, remove_dir_all, symlink_metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};

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
        match remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove the session directory {}: {error}", self.path.display());
            }
            _ => {}
        }
    }
}
