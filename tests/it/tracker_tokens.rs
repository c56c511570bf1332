//! Access tokens in programs: `remuda serve`, `remuda token`, clients and operators.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use crate::cli_run::{outcome, remuda};
use crate::support::{ScratchDir, isolated};
use crate::tracker_support::{Http, Served};

const OPERATOR: &str = "operator-0123456789";

/// Writes a file that only its owner may read.
fn private(directory: &ScratchDir, name: &str, text: &str) {
    let path = directory.write(name, text);
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

isolated! {
    fn serve_asks_for_tokens_and_tells_of_refused_requests_without_showing_them() {
        let directory = ScratchDir::new();
        private(&directory, "tokens", &format!("operator ops {OPERATOR}\n"));
        let args = ["serve", "--listen", "127.0.0.1:0", "--db", ":memory:"];
        for from_file in [true, false] {
            let told = directory.path().join("stderr");
            let mut command = remuda(directory.path(), &args);
            command.stderr(File::create(&told).unwrap());
            if from_file {
                command.args(["--tokens", "tokens"]);
            } else {
                command.env("REMUDA_TOKENS", format!("# all\noperator {OPERATOR}"));
            }
            let server = Served::from(command);
            for _ in 0..5 {
                let mut stranger = Http::connect(server.address).with_token("wrong-0123456789abcdef");
                assert_eq!(stranger.call("GET", "/sessions", "").status, 401);
                assert_eq!(Http::connect(server.address).call("GET", "/sessions", "").status, 401);
            }
            assert_eq!(Http::connect(server.address).with_token(OPERATOR).list().len(), 0);
            assert_eq!(Http::connect(server.address).call("GET", "/livez", "").status, 200);
            drop(server);
            let told = fs::read_to_string(told).unwrap();
            let lines = told.lines().filter(|line| line.contains("a request from 127.0.0.1 is refused"));
            assert!((1..10).contains(&lines.count()), "{told}");
            assert!(!told.contains("0123456789"), "{told}");
        }
    }
}

isolated! {
    fn serve_refuses_tokens_that_make_no_sense_without_showing_them() {
        let directory = ScratchDir::new();
        private(&directory, "short", "\noperator ops 0123456789");
        private(&directory, "empty", "# nothing\n");
        directory.write("open", format!("operator ops {OPERATOR}\n"));
        fs::set_permissions(directory.path().join("open"), Permissions::from_mode(0o644)).unwrap();
        for (file, said) in [
            ("short", "line 2: the token has 10 bytes"),
            ("empty", "there is no token"),
            ("open", "mode 644"),
            ("missing", "missing"),
        ] {
            let args = ["serve", "--listen", "127.0.0.1:0", "--db", ":memory:", "--tokens", file];
            let (status, stdout, stderr) = outcome(remuda(directory.path(), &args).output().unwrap());
            assert_eq!((status, stdout.as_str()), (Some(2), ""), "{file}");
            assert!(stderr.contains(said) && !stderr.contains("0123456789"), "{file}: {stderr}");
        }
    }
}

isolated! {
    fn a_new_token_is_one_that_a_tracker_takes() {
        let directory = ScratchDir::new();
        let make = || outcome(remuda(directory.path(), &["token"]).output().unwrap());
        let ((status, one, _), (_, two, _)) = (make(), make());
        assert_eq!(status, Some(0));
        assert_ne!(one, two);
        assert!(one.trim_end().len() == 64 && one.ends_with('\n'), "{one}");
        assert_eq!(remuda::Tokens::parse(&format!("viewer {one}")).unwrap().len(), 1);
        assert_eq!(outcome(remuda(directory.path(), &["token", "x"]).output().unwrap()).0, Some(2));
    }
}
