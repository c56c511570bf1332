//! Files in and out of a session's working directory, with workers that play tricks.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use remuda::{Error, FileProblem, Files, Outcome, Request, Runtime, Session, SessionConfig, WorkDir};

use crate::support::{ScratchDir, isolated, python, session};

fn run(session: &mut Session, code: &str) {
    let run = session.execute(code).unwrap();
    assert_eq!(run.error, None, "{code}");
}

fn problem(error: Error) -> FileProblem {
    let Error::File { problem, .. } = error else { panic!("{error}") };
    problem
}

fn names(files: &Files<'_>) -> Vec<String> {
    let listed = files.list().unwrap();
    assert!(listed.complete);
    listed.files.iter().map(|file| file.path.display().to_string()).collect()
}

isolated! {
    fn files_go_in_and_come_out() {
        let mut session = session();
        session.files().unwrap().write("in/data.csv", "a,b\n1,2\n").unwrap();
        run(&mut session, "text = open('in/data.csv').read()\nopen('out.txt', 'w').write(text.upper())");
        let files = session.files().unwrap();
        assert_eq!(files.read("out.txt").unwrap(), b"A,B\n1,2\n");
        let mut text = String::new();
        files.open("in/data.csv").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "a,b\n1,2\n");
        assert_eq!(names(&files), ["in/data.csv", "out.txt"]);
        assert_eq!(files.list().unwrap().files[1].size, 8);
        files.write("out.txt", "").unwrap();
        files.remove("in/data.csv").unwrap();
        assert_eq!((names(&files), files.read("out.txt").unwrap()), (vec!["out.txt".to_owned()], Vec::new()));
        assert!(matches!(problem(files.remove("in/data.csv").unwrap_err()), FileProblem::NotFound));
        assert!(matches!(problem(files.read("in/data.csv").unwrap_err()), FileProblem::NotFound));
    }
}

isolated! {
    fn a_name_that_leads_outside_is_refused() {
        let session = session();
        let files = session.files().unwrap();
        for name in ["", ".", "..", "/etc/passwd", "../x", "a/../../x", "a/..", "a/./..", "./x", "a/", "/", "a\0b"] {
            for error in [
                files.read(name).map(drop),
                files.open(name).map(drop),
                files.write(name, "x"),
                files.remove(name),
            ] {
                assert!(matches!(problem(error.unwrap_err()), FileProblem::BadName), "{name:?}");
            }
        }
        assert!(names(&files).is_empty());
    }
}

isolated! {
    fn no_link_leads_outside() {
        let outside = ScratchDir::new();
        let secret = outside.write("secret", "secret");
        let mut session = session();
        let outside = outside.path().display().to_string();
        run(&mut session, &format!("import os\nos.symlink('{outside}/secret', 'file')\nos.symlink('{outside}', 'dir')\n\
            os.symlink('nowhere', 'dangling')\nos.mkdir('real')\nos.symlink('/proc/self/root', 'real/root')"));
        let files = session.files().unwrap();
        for name in ["file", "dir/secret", "dangling", "real/root/etc/passwd"] {
            assert!(matches!(problem(files.read(name).unwrap_err()), FileProblem::Link), "{name}");
        }
        for name in ["dir/secret", "dir/new", "real/root/tmp/new"] {
            assert!(matches!(problem(files.write(name, "x").unwrap_err()), FileProblem::Link), "{name}");
            assert!(matches!(problem(files.remove(name).unwrap_err()), FileProblem::Link), "{name}");
        }
        assert!(names(&files).is_empty(), "links are not listed, and not followed");
        // What is written takes the place of a link; the link itself can be removed.
        files.write("file", "ours").unwrap();
        files.remove("dangling").unwrap();
        assert_eq!((names(&files), fs::read(secret).unwrap()), (vec!["file".to_owned()], b"secret".to_vec()));
    }
}

isolated! {
    fn a_hard_link_is_replaced_and_not_written_through() {
        let outside = ScratchDir::new();
        let secret = outside.write("secret", "secret");
        let mut session = session();
        run(&mut session, &format!("import os\nos.link('{}', 'linked')", secret.display()));
        session.files().unwrap().write("linked", "ours").unwrap();
        assert_eq!(fs::read(secret).unwrap(), b"secret");
        assert_eq!(session.files().unwrap().read("linked").unwrap(), b"ours");
    }
}

isolated! {
    fn pipes_sockets_directories_and_devices_are_refused_at_once() {
        let mut session = session();
        run(&mut session, "import os, socket\nos.mkfifo('pipe')\nos.mkdir('dir')\n\
            s = socket.socket(socket.AF_UNIX)\ns.bind('socket')\n\
            try: os.mknod('tty', 0o600 | 0o020000, os.makedev(5, 0))\n\
            except PermissionError: os.mkfifo('tty')");
        let files = session.files().unwrap();
        for name in ["pipe", "dir", "socket", "tty", "pipe/below"] {
            assert!(matches!(problem(files.read(name).unwrap_err()), FileProblem::NotRegular), "{name}");
        }
        assert!(matches!(problem(files.write("dir", "x").unwrap_err()), FileProblem::NotRegular));
        assert!(matches!(problem(files.write("pipe/below", "x").unwrap_err()), FileProblem::NotRegular));
        assert!(matches!(problem(files.remove("dir").unwrap_err()), FileProblem::NotRegular));
        assert!(names(&files).is_empty(), "nothing is left of what failed");
        files.write("pipe", "a file now").unwrap();
        assert_eq!(files.read("pipe").unwrap(), b"a file now");
    }
}

isolated! {
    fn a_huge_file_is_not_read_into_memory() {
        let mut session = session();
        run(&mut session, "with open('huge', 'wb') as f: f.truncate(1 << 40)\nopen('small', 'w').write('12345')");
        let files = session.files().unwrap();
        let FileProblem::TooLarge { size, cap } = problem(files.read("huge").unwrap_err()) else { panic!("too large") };
        assert_eq!((size, cap), (1 << 40, 64 << 20));
        let FileProblem::TooLarge { size, cap } = problem(session.files().unwrap().read_cap(4).read("small").unwrap_err()) else { panic!("too large") };
        assert_eq!((size, cap), (5, 4));
        assert_eq!(session.files().unwrap().read_cap(5).read("small").unwrap(), b"12345");
    }
}

isolated! {
    fn a_list_has_bounds() {
        let mut session = session();
        run(&mut session, "import os\nos.makedirs('/'.join('d' * 30))\nopen('d/f', 'w').close()");
        let listed = session.files().unwrap().list().unwrap();
        assert!(!listed.complete, "30 directories deep");
        assert_eq!(listed.files.len(), 1);
        run(&mut session, "for i in range(10100): os.mknod(f'{i}')");
        let listed = session.files().unwrap().list().unwrap();
        assert!(!listed.complete && listed.files.len() <= 10_000);
    }
}

isolated! {
    fn names_that_are_no_text_and_times_before_1970_are_reported() {
        use std::os::unix::ffi::OsStrExt as _;
        let mut session = session();
        run(&mut session, "import os\nopen(b'\\xff\\n', 'w').write('odd')\nos.utime(b'\\xff\\n', (-10**9, -10**9))");
        let files = session.files().unwrap();
        let listed = files.list().unwrap().files;
        assert_eq!(listed[0].path.as_os_str().as_bytes(), b"\xff\n");
        assert_eq!(files.read(&listed[0].path).unwrap(), b"odd");
        serde_json::to_string(&listed).unwrap();
    }
}

isolated! {
    fn a_directory_that_was_swapped_is_not_entered() {
        let outside = ScratchDir::new();
        outside.write("secret", "secret");
        let mut session = session();
        run(&mut session, &format!("import os\nhere = os.getcwd()\nos.chdir('/')\nos.rmdir(here)\nos.symlink('{}', here)", outside.path().display()));
        assert!(matches!(session.files().unwrap_err(), Error::Io { .. }));
        run(&mut session, "os.unlink(here)\nos.mkdir(here)");
        // The number of the old directory may have been given to the new one; then it is as good.
        if let Ok(files) = session.files() {
            assert!(names(&files).is_empty());
        }
    }
}

isolated! {
    fn a_directory_that_the_user_named_has_files_too() {
        let directory = ScratchDir::new();
        directory.write("given", "given");
        let config = python().work_dir(WorkDir::Path(directory.path().to_owned()));
        let session = config.start().unwrap();
        assert_eq!(session.files().unwrap().read("given").unwrap(), b"given");
    }
}

isolated! {
    fn files_outlive_neither_a_restart_nor_the_session() {
        let mut session = session();
        session.files().unwrap().write("old", "old").unwrap();
        session.restart().unwrap();
        assert!(names(&session.files().unwrap()).is_empty());
    }
}

isolated! {
    fn what_lies_elsewhere_is_not_looked_for_here() {
        // READY for request 0, then the worker waits.
        let ready = r#"{"protocol":1,"pid":1,"language":"sh","version":"0","features":["execute"]}"#;
        let (total, first) = (ready.len() + 4, ready.len());
        let script = format!(
            r"printf '\{total:03o}\0\0\0\2\0\0\0\0\0\0\0\0\0\0\0\{first:03o}\0\0\0%s' '{ready}'; cat >/dev/null"
        );
        let runtime = Runtime::command("/bin/sh", ["-c", &script]).remote(["env"]);
        let mut session = SessionConfig::new(runtime).start().unwrap();
        let wanted = session.execute(Request::code("").artefacts(true)).unwrap_err();
        assert!(matches!(wanted, Error::FilesElsewhere { .. }), "{wanted}");
        assert!(matches!(session.files().unwrap_err(), Error::FilesElsewhere { session: named } if named == session.id()));
        assert!(session.memory().is_none());
        assert!(Path::new("/proc").join(session.pid().to_string()).exists());
    }
}

/// The files that the code made or changed.
fn artefacts(session: &mut Session, code: &str) -> Vec<String> {
    let run = session.execute(Request::code(code).artefacts(true)).unwrap();
    let artefacts = run.artefacts.unwrap();
    assert!(artefacts.complete, "{code}");
    artefacts.files.iter().map(|file| file.path.display().to_string()).collect()
}

isolated! {
    fn an_execution_tells_which_files_it_made_or_changed() {
        let mut session = session();
        session.files().unwrap().write("given", "given").unwrap();
        let code = "import os\nopen('new', 'w').write('x')\nos.makedirs('a/b')\nopen('a/b/deep', 'w').write('y')\nopen('given').read()\nos.symlink('new', 'link')";
        assert_eq!(artefacts(&mut session, code), ["a/b/deep", "new"]);
        assert!(artefacts(&mut session, "1 + 1").is_empty());
        assert!(artefacts(&mut session, "os.unlink('new')").is_empty());
        assert_eq!(artefacts(&mut session, "open('given', 'a').write('!')\nos.rename('a/b/deep', 'a/moved')"), ["a/moved", "given"]);
        // Code that fails has made its files all the same.
        assert_eq!(artefacts(&mut session, "open('half', 'w').write('x')\n1 / 0"), ["half"]);
        assert_eq!(artefacts(&mut session, "open('given', 'w').write('xxxxxx')\nt = os.stat('half')\nos.utime('half', ns=(t.st_atime_ns, t.st_mtime_ns))"), ["given", "half"]);
        assert_eq!(artefacts(&mut session, "open('last', 'w').write('x')\nos._exit(1)"), ["last"]);
        assert_eq!(session.files().unwrap().read("last").unwrap(), b"x");
    }
}

isolated! {
    fn a_change_within_one_tick_of_the_clock_is_told() {
        let mut session = session();
        session.execute("f = open('state', 'w')").unwrap();
        // Same size, same file, no time for the clock of files to move on.
        for round in 0..300 {
            let code = format!("f.seek(0)\nf.write('{round:05}')\nf.flush()");
            assert_eq!(artefacts(&mut session, &code), ["state"], "round {round}");
        }
    }
}

isolated! {
    fn code_that_removes_its_directory_has_no_artefacts_and_an_outcome() {
        let mut session = session();
        let run = session.execute(Request::code("import os\nos.rmdir(os.getcwd())\n7").artefacts(true)).unwrap();
        assert_eq!((run.outcome, run.value), (Outcome::Completed, 7.into()));
        let artefacts = run.artefacts.unwrap();
        assert!(artefacts.files.is_empty() && !artefacts.complete);
        assert!(session.execute("7").unwrap().artefacts.is_none());
    }
}
