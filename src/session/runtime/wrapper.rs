//! What stands in front of a program: wrappers on this machine, and ways to another one.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One wrapper; a runtime has any number of them, the innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wrapper {
    /// Runs its further arguments on this machine and lets them keep their file descriptors.
    Prefix(Vec<OsString>),
    /// Runs its further arguments somewhere, and carries nothing but the three standard streams.
    Remote(Vec<OsString>),
    /// As `Remote`, but hands its one further argument to a shell.
    RemoteShell(Vec<OsString>),
}

impl Wrapper {
    pub(super) fn is_remote(&self) -> bool {
        !matches!(self, Wrapper::Prefix(_))
    }

    pub(super) fn argv(&self) -> &[OsString] {
        match self {
            Wrapper::Prefix(argv) | Wrapper::Remote(argv) | Wrapper::RemoteShell(argv) => argv,
        }
    }

    /// The command that has this wrapper run `command`.
    pub(super) fn wrap(&self, command: Vec<OsString>) -> Vec<OsString> {
        let mut wrapped = self.argv().to_vec();
        match self {
            Wrapper::Prefix(_) | Wrapper::Remote(_) => wrapped.extend(command),
            Wrapper::RemoteShell(_) => wrapped.push(shell_line(&command)),
        }
        wrapped
    }
}

/// The command as one line for a POSIX shell, which it replaces: no shell is left to wait.
fn shell_line(command: &[OsString]) -> OsString {
    let mut line = b"exec".to_vec();
    for word in command {
        line.push(b' ');
        quote(word, &mut line);
    }
    OsString::from_vec(line)
}

/// Between single quotes a POSIX shell changes nothing, line ends included.
fn quote(word: &OsStr, line: &mut Vec<u8>) {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./,:@%+".contains(byte);
    let bytes = word.as_bytes();
    if !bytes.is_empty() && bytes.iter().all(plain) {
        line.extend_from_slice(bytes);
        return;
    }
    line.push(b'\'');
    for byte in bytes {
        match byte {
            b'\'' => line.extend_from_slice(br"'\''"),
            other => line.push(*other),
        }
    }
    line.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    fn through_a_shell(words: &[OsString]) -> Vec<u8> {
        let mut command = vec![OsString::from("printf"), "%s\\0".into()];
        command.extend_from_slice(words);
        let argv = Wrapper::RemoteShell(vec!["sh".into(), "-c".into()]).wrap(command);
        Command::new(&argv[0]).args(&argv[1..]).output().expect("sh runs").stdout
    }

    fn expected(words: &[OsString]) -> Vec<u8> {
        words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect()
    }

    #[test]
    fn a_shell_gives_back_every_argument_as_it_was() {
        let nasty = [
            "",
            " ",
            "two words",
            "it's",
            "\"",
            "$HOME",
            "$(id)",
            "`id`",
            "a\nb\n",
            "\\",
            "\\'",
            "*",
            "~",
            "A=b",
            "-n",
            "!",
            "#",
            "&",
            ";",
            "\t",
            "grüße 🐎",
            "'",
            "''",
            "a'b'c",
        ];
        let mut words: Vec<OsString> = nasty.map(OsString::from).to_vec();
        words.push(OsString::from_vec(vec![0xff, 0xfe, b'\'', 0x80]));
        assert_eq!(through_a_shell(&words), expected(&words));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_shell_gives_back_any_bytes(words in prop::collection::vec(prop::collection::vec(1_u8.., 0..40), 1..8)) {
            let words: Vec<OsString> = words.into_iter().map(OsString::from_vec).collect();
            prop_assert_eq!(through_a_shell(&words), expected(&words));
        }
    }

    #[test]
    fn a_word_that_a_shell_takes_for_an_assignment_is_run_as_a_program() {
        assert_eq!(shell_line(&["A=b".into(), "c".into()]), "exec 'A=b' c");
    }
}
