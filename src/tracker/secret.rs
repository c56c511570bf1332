//! Access tokens as text: read from where nobody else can read them, and never shown.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::{Error, Result};

/// The variable that [`AccessToken::from_env`] reads.
const VARIABLE: &str = "REMUDA_TOKEN";
/// A shorter one could be guessed.
const SHORTEST: usize = 16;
/// So that what is compared with it has one size.
pub(super) const LONGEST: usize = 128;
/// No file of tokens is larger.
const LARGEST_FILE: u64 = 1024 * 1024;

/// What a client or an operator shows a tracker that asks for it.
///
/// 16 to 128 bytes of visible ASCII. `Debug` does not show it, and nothing of remuda logs it.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(Box<str>);

impl AccessToken {
    /// This text as a token.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if it cannot be one; the reason does not repeat it.
    pub fn new(text: impl Into<String>) -> Result<AccessToken> {
        let text = text.into();
        check(&text).map_err(|reason| Error::config("token", reason))?;
        Ok(AccessToken(text.into_boxed_str()))
    }

    /// The token in a file that holds nothing else; white space around it does not count. Blocks on the
    /// file.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if the file cannot be read, may be read by others than its owner (its
    /// mode shall be 600 or less), or holds no token.
    pub fn from_file(path: impl AsRef<Path>) -> Result<AccessToken> {
        let path = path.as_ref();
        let text = read_private(path, "token")?;
        let text = text.trim();
        check(text).map_err(|reason| {
            let is_list = text.contains(char::is_whitespace);
            let hint = if is_list { "; a file of lines ROLE NAME TOKEN is for a tracker" } else { "" };
            Error::config("token", format!("{}: {reason}{hint}", path.display()))
        })?;
        AccessToken::new(text)
    }

    /// The token in the variable `REMUDA_TOKEN`; `None` if it is not set or empty.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if it holds no token.
    pub fn from_env() -> Result<Option<AccessToken>> {
        let text = variable(VARIABLE, "token")?.filter(|text| !text.is_empty());
        text.map(|text| AccessToken::new(text.trim())).transpose()
    }

    /// A new random token: 32 random bytes as 64 hexadecimal digits.
    ///
    /// # Panics
    /// If the kernel has no random numbers, which Linux excludes once it has booted.
    pub fn random() -> AccessToken {
        let mut bytes = [0_u8; 32];
        let filled = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
        assert_eq!(filled, Ok(bytes.len()), "the kernel gives random numbers");
        let digits = bytes.as_chunks().0.iter().map(|half| format!("{:032x}", u128::from_be_bytes(*half)));
        AccessToken(digits.collect::<Vec<_>>().concat().into_boxed_str())
    }

    /// The token itself, to hand it on. Take care where it goes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(..)")
    }
}

/// Whether this can be a token; the reason never repeats it.
pub(super) fn check(text: &str) -> std::result::Result<(), String> {
    let bytes = text.len();
    if bytes < SHORTEST {
        return Err(format!("the token has {bytes} bytes; {SHORTEST} are the least"));
    }
    if bytes > LONGEST {
        return Err(format!("the token has {bytes} bytes; {LONGEST} are the most"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a token is visible ASCII, without spaces".to_owned());
    }
    Ok(())
}

/// The text of a file that only its owner may read.
pub(super) fn read_private(path: &Path, option: &'static str) -> Result<String> {
    let refused = |reason: String| Error::config(option, format!("{}: {reason}", path.display()));
    let mut file = File::open(path).map_err(|error| refused(error.to_string()))?;
    // Of the open file, not of its name: what is checked is what is read.
    let metadata = file.metadata().map_err(|error| refused(error.to_string()))?;
    let mode = metadata.mode() & 0o777;
    if metadata.is_file() && mode & 0o077 != 0 {
        return Err(refused(format!("others than its owner may read it (mode {mode:o}); chmod 600 helps")));
    }
    let mut text = String::new();
    let read = file.by_ref().take(LARGEST_FILE + 1).read_to_string(&mut text);
    match read {
        Ok(_) if text.len() as u64 > LARGEST_FILE => Err(refused("it is larger than 1 MiB".to_owned())),
        Ok(_) => Ok(text),
        // Not its words: they could quote what the file holds.
        Err(error) => Err(refused(format!("it cannot be read as text ({})", error.kind()))),
    }
}

/// The text of a variable, if it is set.
pub(super) fn variable(name: &str, option: &'static str) -> Result<Option<String>> {
    match std::env::var_os(name) {
        None => Ok(None),
        Some(value) => {
            value.into_string().map(Some).map_err(|_| Error::config(option, format!("{name} is not text")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_no_token_is_refused_without_repeating_it() {
        for text in
            ["", "123456789012345", "1234567890 123456", "1234567890\u{fc}123456", "1234567890\t123456"]
        {
            let refused = AccessToken::new(text).expect_err(text).to_string();
            assert!(text.is_empty() || !refused.contains(text), "{refused}");
        }
        assert!(AccessToken::new("x".repeat(LONGEST)).is_ok());
        assert!(AccessToken::new("x".repeat(LONGEST + 1)).is_err());
    }

    #[test]
    fn a_token_is_not_shown() {
        let token = AccessToken::random();
        assert_eq!(token.as_str().len(), 64);
        assert_ne!(token, AccessToken::random());
        assert_eq!(format!("{token:?}"), "AccessToken(..)");
    }
}
