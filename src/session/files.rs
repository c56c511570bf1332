//! Files in and out of a session's working directory.
//!
//! The directory belongs to code that nobody trusts. Every name is resolved by the kernel beneath the
//! directory, without following any link (`openat2`); what is to be read is looked at before it is
//! opened, so that no pipe and no device ever is; what is written is a new file that then takes the
//! name. Whatever a worker does meanwhile, the host neither leaves the directory nor waits.

use std::fs::File;
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2, renameat, unlinkat,
};
use rustix::io::Errno;

use super::artefacts::{Artefacts, Seen, look, size};
use crate::error::{Error, FileProblem, Result};

/// What a read gives at most, unless told.
const READ_CAP: u64 = 64 << 20;

/// A session's working directory, seen from the host: see [`Session::files`](crate::Session::files).
///
/// Names are relative to the directory, with `/` between their parts; absolute ones and those with
/// `..` are refused. No link is followed, and nothing but regular files is read: of anything else
/// comes a typed [`Error::File`], at once.
///
/// Nothing here waits for the worker. Each call costs a few system calls (10 µs) and the bytes.
///
/// ```no_run
/// use remuda::{Request, Runtime, Session};
///
/// let mut session = Session::builder(Runtime::python("python3")).start()?;
/// session.files()?.write("in.csv", "1,2")?;
/// let code = "open('out.csv', 'w').write(open('in.csv').read() * 2)";
/// let run = session.execute(Request::code(code).artefacts(true))?;
/// for file in run.artefacts.unwrap_or_default().files {
///     println!("{} has {} bytes", file.path.display(), file.size);
///     let bytes = session.files()?.read(&file.path)?;
/// #   drop(bytes);
/// }
/// # Ok::<(), remuda::Error>(())
/// ```
#[derive(Debug)]
pub struct Files<'a> {
    directory: OwnedFd,
    read_cap: u64,
    /// The directory goes with its session.
    session: PhantomData<&'a ()>,
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
        open_regular(self.as_fd(), name).map_err(|problem| failed(name, problem))
    }

    /// The regular files in the directory and those below, by name. It reads every directory: 1 ms
    /// for a thousand files.
    ///
    /// # Errors
    /// [`Error::File`] if the directory cannot be read.
    pub fn list(&self) -> Result<Artefacts> {
        self.look().map(Artefacts::of)
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
            Some(parent) => open_beneath(self.as_fd(), parent)
                .and_then(|parent| unlinkat(&parent, last, AtFlags::empty())),
        };
        removed.map_err(|error| failed(name, problem(error)))
    }

    pub(super) fn look(&self) -> Result<Seen> {
        look(self.as_fd()).map_err(|error| failed(Path::new("."), problem(error)))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The directory of this name, made if need be; `None`: the session's own.
    fn directories(&self, name: Option<&Path>) -> rustix::io::Result<OwnedFd> {
        let mut directory = open_beneath(self.as_fd(), Path::new("."))?;
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

/// A directory that its user named.
pub(crate) fn open_directory(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, Mode::empty())?)
}

fn open_beneath(directory: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<OwnedFd> {
    beneath(directory, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Looks at what has this name before it is opened: opening a pipe or a device can wait or act.
pub(super) fn open_regular(directory: BorrowedFd<'_>, name: &Path) -> Result<File, FileProblem> {
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

pub(super) fn beneath(
    directory: BorrowedFd<'_>,
    name: &Path,
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
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
