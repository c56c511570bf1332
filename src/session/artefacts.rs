//! Which files lie in a session's working directory, and which of them an execution made or changed.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, statat};
use rustix::io::Errno;
use serde::{Serialize, Serializer};

use super::files::{Files, beneath, open_regular};
use crate::clock;
use crate::error::Result;

/// So many entries of a directory tree are looked at.
const MOST_ENTRIES: usize = 10_000;
/// So many directories deep.
const DEEPEST: usize = 16;
/// The kernel's clock of files moves in steps of at most 10 ms: a file younger than this may change
/// again and keep its time.
const SAME_TIME: Duration = Duration::from_millis(20);
/// Of a file that young, so many bytes are compared instead.
const COMPARED: u64 = 1 << 20;

/// A file in a session's working directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Artefact {
    /// Its name, relative to the directory.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// When its content was last changed, by its own account: code can set it. Not before 1970.
    pub modified: SystemTime,
}

/// Files in a session's working directory, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Artefacts {
    /// The files.
    pub files: Vec<Artefact>,
    /// Whether these are all: 10 000 entries in directories 16 deep are looked at.
    pub complete: bool,
}

impl Artefacts {
    pub(super) fn of(seen: Seen) -> Artefacts {
        let files = seen.files.into_iter().map(|(path, stat)| artefact(path, &stat));
        Artefacts::new(files, seen.complete)
    }

    fn new(files: impl Iterator<Item = Artefact>, complete: bool) -> Artefacts {
        let mut files: Vec<Artefact> = files.collect();
        files.sort_unstable();
        Artefacts { files, complete }
    }
}

/// What lay in a directory at a moment, to find out what an execution made or changed.
pub(crate) struct Snapshot {
    files: HashMap<PathBuf, Mark>,
    complete: bool,
}

/// What tells one state of a file from another: file and content by the kernel's account, which code
/// cannot set back (the time of the last change of any kind), and a digest where the clock is too
/// coarse to tell.
#[derive(PartialEq, Eq)]
struct Mark {
    file: (u64, u64),
    size: u64,
    changed: (i64, i64),
    modified: (i64, i64),
    digest: Option<u64>,
}

impl Snapshot {
    /// Looks at every file, as [`Files::list`] does.
    pub(crate) fn of(files: &Files<'_>) -> Result<Snapshot> {
        let seen = files.look()?;
        let young = clock::wall().checked_sub(SAME_TIME);
        let mark = |(path, stat): (PathBuf, Stat)| {
            let is_young = young.is_none_or(|young| time(stat.st_ctime, stat.st_ctime_nsec) >= young);
            let digest = is_young.then(|| digest(files.as_fd(), &path));
            (path, Mark::of(&stat, digest))
        };
        Ok(Snapshot { files: seen.files.into_iter().map(mark).collect(), complete: seen.complete })
    }

    /// The files that are new or have changed since. Removed ones are not told.
    pub(crate) fn changed(&self, files: &Files<'_>) -> Result<Artefacts> {
        let seen = files.look()?;
        let is_same = |(path, stat): &(PathBuf, Stat)| {
            self.files.get(path).is_some_and(|before| {
                let digest = before.digest.map(|_| digest(files.as_fd(), path));
                *before == Mark::of(stat, digest)
            })
        };
        let changed = seen.files.into_iter().filter(|file| !is_same(file));
        let complete = self.complete && seen.complete;
        Ok(Artefacts::new(changed.map(|(path, stat)| artefact(path, &stat)), complete))
    }
}

impl Mark {
    fn of(stat: &Stat, digest: Option<u64>) -> Mark {
        Mark {
            file: (stat.st_dev, stat.st_ino),
            size: size(stat),
            changed: (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or_default()),
            modified: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or_default()),
            digest,
        }
    }
}

/// A digest of the first part of a file; of one that cannot be read, that of nothing.
fn digest(directory: BorrowedFd<'_>, path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut bytes = Vec::new();
    if let Ok(file) = open_regular(directory, path) {
        let _ = file.take(COMPARED).read_to_end(&mut bytes);
    }
    hasher.write(&bytes);
    hasher.finish()
}

/// What a look found.
pub(super) struct Seen {
    files: Vec<(PathBuf, Stat)>,
    complete: bool,
}

/// Every regular file below a directory, within bounds; links are not followed.
pub(super) fn look(directory: BorrowedFd<'_>) -> rustix::io::Result<Seen> {
    let mut seen = Seen { files: Vec::new(), complete: true };
    let mut entries = 0;
    let mut pending = vec![(PathBuf::new(), 0)];
    while let Some((path, depth)) = pending.pop() {
        let name = if depth == 0 { Path::new(".") } else { path.as_path() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        // Read by this very descriptor: to open it once more needs leave to search it.
        let mut opened = match beneath(directory, name, flags, Mode::empty()).and_then(Dir::new) {
            Ok(opened) => opened,
            Err(error) if depth == 0 => return Err(error),
            // Removed or replaced meanwhile, or closed to us.
            Err(error) => {
                seen.complete &= error != Errno::ACCESS;
                continue;
            }
        };
        while let Some(Ok(entry)) = opened.read() {
            let name = Path::new(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
            if name == Path::new(".") || name == Path::new("..") {
                continue;
            }
            entries += 1;
            if entries > MOST_ENTRIES {
                seen.complete = false;
                return Ok(seen);
            }
            let Ok(stat) = statat(opened.fd()?, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => seen.files.push((path.join(name), stat)),
                FileType::Directory if depth < DEEPEST => pending.push((path.join(name), depth + 1)),
                FileType::Directory => seen.complete = false,
                _ => {}
            }
        }
    }
    Ok(seen)
}

fn artefact(path: PathBuf, stat: &Stat) -> Artefact {
    Artefact { path, size: size(stat), modified: time(stat.st_mtime, stat.st_mtime_nsec) }
}

pub(super) fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or_default()
}

/// A file's time. Code can set any: one before 1970 counts as 1970, which serde can write.
fn time(seconds: i64, nanoseconds: impl TryInto<u32>) -> SystemTime {
    let whole = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    let part = Duration::from_nanos(nanoseconds.try_into().unwrap_or_default().into());
    SystemTime::UNIX_EPOCH.checked_add(whole.saturating_add(part)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}
