//! Files in and out of a session's working directory (document 002, row X10 of the list of features).
//!
//! The directory belongs to code that nobody trusts. Every name is resolved by the kernel beneath the
//! directory, without following any link (`openat2`); what is to be read is looked at before it is
//! opened, so that no pipe and no device ever is; what is written is a new file that then takes the
//! name. Whatever a worker does meanwhile, the host neither leaves the directory nor waits.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, mkdirat, openat2, renameat, statat,
    unlinkat,
};
use rustix::io::Errno;
use serde::{Serialize, Serializer};

use crate::clock;
use crate::error::{Error, FileProblem, Result};

/// So many entries of a directory tree are looked at.
const MOST_ENTRIES: usize = 10_000;
/// So many directories deep.
const DEEPEST: usize = 16;
/// What a read gives at most, unless told.
const READ_CAP: u64 = 64 << 20;
/// The kernel's clock of files moves in steps of at most 10 ms: a file younger than this may change
/// again and keep its time.
const SAME_TIME: Duration = Duration::from_millis(20);
/// Of a file that young, so many bytes are compared instead.
const COMPARED: u64 = 1 << 20;

/// A session's working directory, seen from the host: see [`Session::files`](crate::Session::files).
///
/// Names are relative to the directory, with `/` between their parts; absolute ones and those with
/// `..` are refused. No link is followed, and nothing but regular files is read: of anything else
/// comes a typed [`Error::File`], at once.
///
/// Nothing here waits for the worker. Each call costs a few system calls (10 µs) and the bytes.
#[derive(Debug)]
pub struct Files<'a> {
    directory: OwnedFd,
    read_cap: u64,
    /// The directory goes with its session.
    session: PhantomData<&'a ()>,
}

/// A file in a session's working directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Artefact {
    /// Its name, relative to the directory.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// When its content was last changed, by its own account: code can set it.
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

impl Files<'_> {
    /// Of a directory that is open already.
    pub(crate) fn of(directory: OwnedFd) -> Self {
        Files { directory, read_cap: READ_CAP, session: PhantomData }
    }

    /// Bytes that [`read`](Files::read) gives at most. Default: 64 MiB.
    pub fn read_cap(mut self, bytes: u64) -> Self {
        self.read_cap = bytes;
        self
    }

    /// Writes a file, all of it or nothing, over whatever has its name. Directories that the name
    /// needs are made.
    ///
    /// # Errors
    /// [`Error::File`]: a bad name, a link or a file where a directory should be, a directory of that
    /// name, no space.
    pub fn write(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = name.as_ref();
        let fail = |problem| failed(name, problem);
        let (parent, last) = split(name)?;
        let parent = self.directories(parent).map_err(|error| fail(problem(error)))?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let passing = format!(".remuda-{}-{number}", std::process::id());
        // A new file, so that no link, pipe or device that lies there is ever written to.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let new = beneath(parent.as_fd(), Path::new(&passing), flags, Mode::from_raw_mode(0o666))
            .map_err(|error| fail(problem(error)))?;
        let written = File::from(new)
            .write_all(bytes.as_ref())
            .map_err(FileProblem::Io)
            .and_then(|()| renameat(&parent, passing.as_str(), &parent, last).map_err(problem));
        written.map_err(|problem| {
            let _ = unlinkat(&parent, passing.as_str(), AtFlags::empty());
            fail(problem)
        })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::File`]: a bad name, no such file, a link on the way, no regular file, more than
    /// [`read_cap`](Files::read_cap).
    pub fn read(&self, name: impl AsRef<Path>) -> Result<Vec<u8>> {
        let name = name.as_ref();
        let file = self.open(name)?;
        let size = fstat(&file).map_or(0, |stat| size(&stat));
        let mut bytes = Vec::new();
        // One byte more than allowed tells of a file that grows meanwhile.
        let read = file.take(self.read_cap.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|error| failed(name, FileProblem::Io(error)))?;
        let size = size.max(bytes.len() as u64);
        if size > self.read_cap {
            return Err(failed(name, FileProblem::TooLarge { size, cap: self.read_cap }));
        }
        Ok(bytes)
    }

    /// Opens a file to read it piece by piece. A worker that runs may change it meanwhile.
    ///
    /// # Errors
    /// [`Error::File`], as [`read`](Files::read).
    pub fn open(&self, name: impl AsRef<Path>) -> Result<File> {
        let name = name.as_ref();
        split(name)?;
        open_regular(self.directory.as_fd(), name).map_err(|problem| failed(name, problem))
    }

    /// The regular files in the directory and those below, by name. It reads every directory: 1 ms
    /// for a thousand files.
    ///
    /// # Errors
    /// [`Error::File`] if the directory cannot be read.
    pub fn list(&self) -> Result<Artefacts> {
        let seen = self.look()?;
        let files = seen.files.into_iter().map(|(path, stat)| artefact(path, &stat));
        Ok(Artefacts::new(files, seen.complete))
    }

    /// Removes a file, or whatever else has this name but a directory.
    ///
    /// # Errors
    /// [`Error::File`]: a bad name, no such file, a link on the way, a directory.
    pub fn remove(&self, name: impl AsRef<Path>) -> Result<()> {
        let name = name.as_ref();
        let (parent, last) = split(name)?;
        let removed = match parent {
            None => unlinkat(&self.directory, last, AtFlags::empty()),
            Some(parent) => open_beneath(self.directory.as_fd(), parent)
                .and_then(|parent| unlinkat(&parent, last, AtFlags::empty())),
        };
        removed.map_err(|error| failed(name, problem(error)))
    }

    fn look(&self) -> Result<Seen> {
        look(self.directory.as_fd()).map_err(|error| failed(Path::new("."), problem(error)))
    }

    /// The directory of this name, made if need be; `None`: the session's own.
    fn directories(&self, name: Option<&Path>) -> rustix::io::Result<OwnedFd> {
        let mut directory = open_beneath(self.directory.as_fd(), Path::new("."))?;
        for part in name.into_iter().flat_map(Path::components) {
            let part = Path::new(part.as_os_str());
            directory = match open_beneath(directory.as_fd(), part) {
                Err(Errno::NOENT) => {
                    match mkdirat(&directory, part, Mode::from_raw_mode(0o777)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error),
                    }
                    open_beneath(directory.as_fd(), part)?
                }
                opened => opened?,
            };
        }
        Ok(directory)
    }
}

impl Artefacts {
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
            let digest = is_young.then(|| digest(files.directory.as_fd(), &path));
            (path, Mark::of(&stat, digest))
        };
        Ok(Snapshot { files: seen.files.into_iter().map(mark).collect(), complete: seen.complete })
    }

    /// The files that are new or have changed since. Removed ones are not told.
    pub(crate) fn changed(&self, files: &Files<'_>) -> Result<Artefacts> {
        let seen = files.look()?;
        let is_same = |(path, stat): &(PathBuf, Stat)| {
            self.files.get(path).is_some_and(|before| {
                let digest = before.digest.map(|_| digest(files.directory.as_fd(), path));
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

struct Seen {
    files: Vec<(PathBuf, Stat)>,
    complete: bool,
}

/// Every regular file below a directory, within bounds; links are not followed.
fn look(directory: BorrowedFd<'_>) -> rustix::io::Result<Seen> {
    let mut seen = Seen { files: Vec::new(), complete: true };
    let mut entries = 0;
    let mut pending = vec![(PathBuf::new(), 0)];
    while let Some((path, depth)) = pending.pop() {
        let name = if depth == 0 { Path::new(".") } else { path.as_path() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = match beneath(directory, name, flags, Mode::empty()) {
            Ok(opened) => opened,
            Err(error) if depth == 0 => return Err(error),
            // Removed, replaced or closed to us meanwhile.
            Err(_) => continue,
        };
        for entry in Dir::read_from(&opened)? {
            let Ok(entry) = entry else { break };
            let name = Path::new(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
            if name == Path::new(".") || name == Path::new("..") {
                continue;
            }
            entries += 1;
            if entries > MOST_ENTRIES {
                seen.complete = false;
                return Ok(seen);
            }
            let Ok(stat) = statat(&opened, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
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

/// A directory that its user named.
pub(crate) fn open_directory(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, Mode::empty())?)
}

fn open_beneath(directory: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<OwnedFd> {
    beneath(directory, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Looks at what has this name before it is opened: opening a pipe or a device can wait or act.
fn open_regular(directory: BorrowedFd<'_>, name: &Path) -> Result<File, FileProblem> {
    let found = beneath(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(problem)?;
    let stat = fstat(&found).map_err(problem)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Symlink => return Err(FileProblem::Link),
        _ => return Err(FileProblem::NotRegular),
    }
    // The very file that was looked at, whatever has its name by now.
    let itself = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(itself, flags, Mode::empty()).map(File::from).map_err(problem)
}

fn beneath(directory: BorrowedFd<'_>, name: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(directory, name, flags, mode, resolve)
}

/// The directory part and the last part of a name that stays inside.
fn split(name: &Path) -> Result<(Option<&Path>, &Path)> {
    let plain = !name.as_os_str().as_bytes().contains(&0)
        && name.components().all(|part| matches!(part, Component::Normal(_)));
    let ends_in_file = !name.as_os_str().as_bytes().ends_with(b"/");
    match name.file_name() {
        Some(last) if plain && ends_in_file => {
            let parent = name.parent().filter(|parent| !parent.as_os_str().is_empty());
            Ok((parent, Path::new(last)))
        }
        _ => Err(failed(name, FileProblem::BadName)),
    }
}

fn artefact(path: PathBuf, stat: &Stat) -> Artefact {
    Artefact { path, size: size(stat), modified: time(stat.st_mtime, stat.st_mtime_nsec) }
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or_default()
}

/// A file's time; code can set any, also one before 1970 or beyond what a clock can hold.
fn time(seconds: i64, nanoseconds: impl TryInto<u32>) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let part = Duration::from_nanos(nanoseconds.try_into().unwrap_or_default().into());
    let epoch = SystemTime::UNIX_EPOCH;
    let time = if seconds < 0 { epoch.checked_sub(whole) } else { epoch.checked_add(whole) };
    time.and_then(|time| time.checked_add(part)).unwrap_or(epoch)
}

fn failed(name: &Path, problem: FileProblem) -> Error {
    Error::File { name: name.to_owned(), problem }
}

fn problem(error: Errno) -> FileProblem {
    match error {
        Errno::NOENT => FileProblem::NotFound,
        Errno::LOOP | Errno::XDEV => FileProblem::Link,
        Errno::ISDIR | Errno::NOTDIR | Errno::NXIO => FileProblem::NotRegular,
        error => FileProblem::Io(io::Error::from(error)),
    }
}

fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}
