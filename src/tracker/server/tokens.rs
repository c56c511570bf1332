//! The access tokens that a tracker takes, and whose they are.

use std::fmt;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use crate::tracker::api::Role;
use crate::tracker::secret::{LONGEST, check, read_private, variable};
use crate::{Error, Result};

/// The variable that [`Tokens::from_env`] reads.
const VARIABLE: &str = "REMUDA_TOKENS";
/// More tokens would make every request slow: each is compared with all of them, at 6 ns apiece.
const MOST: usize = 1_000;
/// Longest name of a token, in bytes.
const LONGEST_NAME: usize = 64;

/// Who may ask a tracker for what: access tokens with their roles and names.
///
/// As text there is one token on each line, with its [`Role`] in front and a name between them:
///
/// ```text
/// # who may kill
/// operator ops-desk 1b2c…
/// # apps, each with a name: it owns what was registered with it
/// app reports 7d3e…
/// # who only looks may go without a name
/// viewer 90af…
/// ```
///
/// Empty lines and lines that begin with `#` count for nothing. A token has 16 to 128 bytes of visible
/// ASCII (`remuda token` makes one); a name has at most 64 letters, digits and `-_.@`. Two tokens may
/// have the same role and name: to replace one, have both for a while. `Debug` shows roles and names only.
///
/// ```
/// use remuda::Tokens;
///
/// let tokens = Tokens::parse("operator ops 0123456789abcdef\nviewer fedcba9876543210")?;
/// assert_eq!(tokens.len(), 2);
/// assert!(!format!("{tokens:?}").contains("0123456789abcdef"));
/// # Ok::<(), remuda::Error>(())
/// ```
#[derive(Clone)]
pub struct Tokens {
    all: Arc<[Token]>,
}

/// A token's bytes with zeros behind them, and how many they are.
type Padded = [u64; LONGEST / 8 + 1];

/// One token.
pub(super) struct Token {
    padded: Padded,
    pub(super) role: Role,
    pub(super) name: Option<Arc<str>>,
}

impl Tokens {
    /// The tokens in a file that only its owner may read. Blocks on the file.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if the file cannot be read or may be read by others (its mode shall be
    /// 600 or less); else as [`parse`](Tokens::parse).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Tokens> {
        Tokens::parse(&read_private(path.as_ref(), "tokens")?)
    }

    /// The tokens in the variable `REMUDA_TOKENS`; `None` if it is not set.
    ///
    /// # Errors
    /// As [`parse`](Tokens::parse): also if it is set and holds no token, as when whoever should have
    /// filled it has failed.
    pub fn from_env() -> Result<Option<Tokens>> {
        let text = variable(VARIABLE, "tokens")?;
        if text.as_ref().is_some_and(|text| text.trim().is_empty()) {
            let reason = format!("{VARIABLE} is set and empty; unset it to ask nobody for a token");
            return Err(Error::config("tokens", reason));
        }
        text.map(|text| Tokens::parse(&text)).transpose()
    }

    /// The tokens in this text.
    ///
    /// # Errors
    /// [`Error::Tokens`] with the first line that makes no sense, never with the token on it;
    /// [`Error::InvalidConfig`] if there is no token in it, or more than 1 000.
    pub fn parse(text: &str) -> Result<Tokens> {
        let mut all: Vec<Token> = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let refused = |reason: String| Error::Tokens { line: at + 1, reason };
            let token = token(line).map_err(refused)?;
            if all.iter().any(|other| other.padded == token.padded) {
                return Err(refused("the same token stands on a line before".to_owned()));
            }
            all.push(token);
        }
        if all.is_empty() {
            return Err(Error::config("tokens", "there is no token: nobody could ask for anything"));
        }
        if all.len() > MOST {
            return Err(Error::config("tokens", format!("there are more than {MOST}")));
        }
        Ok(Tokens { all: all.into() })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Always false: without a token there would be no `Tokens`.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whose token this is.
    ///
    /// What it takes does not depend on how much of a token was guessed, nor on which it is: all of them
    /// are compared, each as the same number of words, and the differences of all words are gathered
    /// before anybody looks at them. [`black_box`] keeps the compiler from looking earlier. It does
    /// depend on how long the given text is, which whoever sent it knows, and on how many tokens there
    /// are.
    pub(super) fn find(&self, given: &[u8]) -> Option<&Token> {
        let given = padded(given)?;
        let mut found = usize::MAX;
        for (at, token) in self.all.iter().enumerate() {
            let pairs = token.padded.iter().zip(&given);
            let difference = black_box(pairs.fold(0, |all, (one, other)| all | (one ^ other)));
            // All ones if there is no difference, else zero: a choice without a branch.
            let same = usize::from(difference == 0).wrapping_neg();
            found = black_box((at & same) | (found & !same));
        }
        self.all.get(found)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all.iter().map(|token| (token.role, token.name.as_deref()))).finish()
    }
}

/// `None` for what is too long to be a token.
fn padded(text: &[u8]) -> Option<Padded> {
    let mut bytes = [0; LONGEST];
    bytes.get_mut(..text.len())?.copy_from_slice(text);
    let mut words = [0; LONGEST / 8 + 1];
    words[LONGEST / 8] = text.len() as u64;
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    Some(words)
}

/// The token on a line, which is not empty.
fn token(line: &str) -> std::result::Result<Token, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let role = words.first().and_then(|word| Role::named(word));
    let role = role.ok_or_else(|| "it does not begin with app, viewer or operator".to_owned())?;
    let (name, text) = match words[1..] {
        [text] if role == Role::App => {
            // Else nobody could tell whose its sessions are once the token is replaced.
            check(text)?;
            return Err("an app's token needs a name in front: what it registers belongs to that".to_owned());
        }
        [text] => (None, text),
        [name, text] => (Some(name), text),
        _ => return Err("ROLE NAME TOKEN is wanted".to_owned()),
    };
    check(text)?;
    let is_speakable = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    if name.is_some_and(|name| name.len() > LONGEST_NAME || !name.bytes().all(is_speakable)) {
        return Err(format!("a name has at most {LONGEST_NAME} letters, digits and -_.@"));
    }
    let padded = padded(text.as_bytes()).ok_or_else(|| "the token is too long".to_owned())?;
    Ok(Token { padded, role, name: name.map(Arc::from) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPS: &str = "0123456789abcdef";

    fn refused(text: &str) -> (usize, String) {
        match Tokens::parse(text) {
            Err(Error::Tokens { line, reason }) => (line, reason),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn lines_are_read_with_comments_and_names() {
        let text =
            format!("\r\n# {OPS}x\n  operator\tops-desk  {OPS}\r\n\nviewer {OPS}v\napp a@b_1.c {OPS}a\n");
        let tokens = Tokens::parse(&text).unwrap();
        assert_eq!((tokens.len(), tokens.is_empty()), (3, false));
        let found = |given: &str| {
            tokens.find(given.as_bytes()).map(|token| (token.role, token.name.as_deref().unwrap_or("-")))
        };
        assert_eq!(found(OPS), Some((Role::Operator, "ops-desk")));
        assert_eq!(found(&format!("{OPS}v")), Some((Role::Viewer, "-")));
        assert_eq!(found(&format!("{OPS}a")), Some((Role::App, "a@b_1.c")));
        assert_eq!(
            format!("{tokens:?}"),
            r#"[(Operator, Some("ops-desk")), (Viewer, None), (App, Some("a@b_1.c"))]"#
        );
    }

    #[test]
    fn only_the_whole_token_is_found() {
        let longest = "z".repeat(LONGEST);
        let tokens = Tokens::parse(&format!("viewer {OPS}\noperator {longest}")).unwrap();
        for wrong in [
            "",
            "0123456789abcde",
            "0123456789abcdef0",
            "0123456789abcdef\0",
            "1123456789abcdef",
            "0123456789abcdeF",
            "ZZZ",
            &longest[1..],
            &format!("{longest}z"),
            &format!("{longest}{OPS}"),
        ] {
            assert!(tokens.find(wrong.as_bytes()).is_none(), "{wrong}");
        }
        assert_eq!(tokens.find(longest.as_bytes()).map(|token| token.role), Some(Role::Operator));
        assert_eq!(tokens.find(OPS.as_bytes()).map(|token| token.role), Some(Role::Viewer));
    }

    #[test]
    fn a_line_that_makes_no_sense_is_named_by_its_number_and_not_repeated() {
        for (line, text) in [
            (1, "root x 0123456789abcdef"),
            (2, "viewer 0123456789abcdefx\noperator 0123456789abcde"),
            (1, "app 0123456789abcdef"),
            (1, "app reports"),
            (1, "operator"),
            (1, "operator a b 0123456789abcdef"),
            (1, "operator \u{e4} 0123456789abcdef"),
            (1, "operator a 0123456789abcd\u{e4}f"),
            (3, "viewer 0123456789abcdef\n\noperator a 0123456789abcdef"),
        ] {
            let (at, reason) = refused(text);
            assert_eq!(at, line, "{text}: {reason}");
            assert!(!reason.contains("0123"), "{reason}");
        }
        for text in ["", "# viewer 0123456789abcdef\n"] {
            assert!(matches!(Tokens::parse(text), Err(Error::InvalidConfig { option: "tokens", .. })));
        }
        let long = format!("operator {} {OPS}", "n".repeat(LONGEST_NAME + 1));
        assert_eq!(refused(&long).0, 1);
        let many: Vec<String> = (0..=MOST).map(|number| format!("viewer {OPS}{number}")).collect();
        assert!(matches!(
            Tokens::parse(&many.join("\n")),
            Err(Error::InvalidConfig { option: "tokens", .. })
        ));
    }
}
