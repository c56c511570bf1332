//! Node: how its worker is started.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rustix::fs::{Access, access};
use rustix::io::Errno;

/// Starts Node, see [`launch_args`].
pub(super) const SHELL: &str = "/bin/sh";

/// Moves the protocol to fds 3 and 4, and gives user code an empty stdin and the host's stderr as
/// fd 1: Node has no `dup2`. The shell replaces itself; it costs half a millisecond.
const REDIRECT: &str = r#"exec "$0" "$@" 3<&0 4>&1 0</dev/null 1>&2"#;

/// What `node -e` is given: reads the worker from fd 3 and runs it.
const STUB: &str = "\
{if(parseInt(process.versions.node)<18){
console.error('remuda needs Node 18 or later, this is '+process.version)
process.exit(78)
}
const f=require('fs'),p=new Int32Array(new SharedArrayBuffer(4)),r=n=>{
const b=Buffer.alloc(n)
for(let i=0,c;i<n;i+=c){
try{c=f.readSync(3,b,i,n-i)}catch(e){if(e.code!=='EAGAIN')throw e;Atomics.wait(p,0,0,1);c=0;continue}
if(!c)process.reallyExit(0)
}
return b
}
new(require('vm').Script)(r(r(4).readUInt32LE()).toString(),{filename:'remuda-worker'})
.runInThisContext()(require,s=>import(s),r)}
";

/// The worker, as source: one function in several files.
const SOURCE: [&str; 7] = [
    include_str!("../workers/node/start.js"),
    include_str!("../workers/node/reader.js"),
    include_str!("../workers/node/values.js"),
    include_str!("../workers/node/context.js"),
    include_str!("../workers/node/requests.js"),
    include_str!("../workers/node/state.js"),
    include_str!("../workers/node/serve.js"),
];

/// What [`SHELL`] is given.
pub(super) fn launch_args(program: PathBuf) -> Vec<OsString> {
    let mut args: Vec<OsString> = ["-c", REDIRECT].map(OsString::from).to_vec();
    args.push(program.into_os_string());
    args.extend(["-e", STUB].map(OsString::from));
    args
}

/// The worker, as it is sent to the stub: `u32` length and source.
pub(super) fn boot() -> Arc<[u8]> {
    static BOOT: LazyLock<Arc<[u8]>> = LazyLock::new(|| {
        let source = SOURCE.concat();
        let Ok(size) = u32::try_from(source.len()) else { unreachable!("a source of some 40 KiB") };
        [&size.to_le_bytes(), source.as_bytes()].concat().into()
    });
    Arc::clone(&BOOT)
}

/// Whether there is such a program: as `exec` looks for it, a name without a slash in `PATH`.
pub(super) fn check(program: &Path) -> io::Result<()> {
    if program.as_os_str().as_bytes().contains(&b'/') {
        return executable(program);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut failure = io::Error::from(Errno::NOENT);
    for directory in std::env::split_paths(&path) {
        match executable(&directory.join(program)) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => failure = error,
            Err(_) => {}
        }
    }
    Err(failure)
}

fn executable(program: &Path) -> io::Result<()> {
    access(program, Access::EXEC_OK)?;
    if program.is_dir() { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        check(Path::new("sh")).expect("in PATH");
        check(Path::new("/bin/sh")).expect("by its path");
        for (program, kind) in [
            ("no-such-program", io::ErrorKind::NotFound),
            ("/nowhere/node", io::ErrorKind::NotFound),
            ("/etc/passwd", io::ErrorKind::PermissionDenied),
            ("/etc", io::ErrorKind::PermissionDenied),
        ] {
            // Root may execute whatever has one execute bit; none of these does.
            assert_eq!(check(Path::new(program)).map_err(|error| error.kind()), Err(kind), "{program}");
        }
    }

    #[test]
    fn the_boot_code_is_the_whole_function() {
        let boot = boot();
        let source = std::str::from_utf8(&boot[4..]).expect("text");
        assert_eq!(u32::from_le_bytes([boot[0], boot[1], boot[2], boot[3]]) as usize, source.len());
        assert!(source.trim_end().ends_with("})"));
    }
}
