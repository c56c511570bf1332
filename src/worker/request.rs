//! What a handler is asked for.

use std::borrow::Cow;

use serde::Deserialize;

use super::answer::{Failure, Result};

/// A request of the host: code or a call.
#[derive(Debug)]
#[non_exhaustive]
pub enum Request<'a> {
    /// Code, in whatever language the worker understands.
    Code(Code<'a>),
    /// A call of a function by its name.
    Call(Call<'a>),
}

/// Code to run.
#[derive(Debug)]
#[non_exhaustive]
pub struct Code<'a> {
    /// The code.
    pub source: &'a str,
    /// The file that it came from, if it is to run as a program of its own.
    pub script: Option<Script>,
}

/// What a program of its own is told.
#[derive(Debug, Deserialize)]
#[non_exhaustive]
pub struct Script {
    /// Its file.
    pub file: String,
    /// Its arguments.
    pub args: Vec<String>,
}

impl<'a> Code<'a> {
    pub(super) fn decode(first: &'a [u8], second: &'a [u8]) -> Result<Code<'a>> {
        let source = std::str::from_utf8(second)?;
        let script = if first.is_empty() { None } else { Some(serde_json::from_slice(first)?) };
        Ok(Code { source, script })
    }
}

/// A call of a function. The arguments stay JSON until they are asked for as something.
#[derive(Debug)]
pub struct Call<'a> {
    function: Cow<'a, str>,
    body: &'a [u8],
}

#[derive(Deserialize)]
struct Function<'a> {
    #[serde(borrow)]
    function: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Args<T> {
    args: T,
}

#[derive(Deserialize)]
struct Kwargs<T> {
    kwargs: T,
}

impl<'a> Call<'a> {
    pub(super) fn decode(body: &'a [u8]) -> Result<Call<'a>> {
        let Function { function } = serde_json::from_slice(body).map_err(argument_error)?;
        Ok(Call { function, body })
    }

    /// The function's name.
    pub fn function(&self) -> &str {
        &self.function
    }

    /// The positional arguments, as a tuple or a list: `let (path, depth): (String, u32) = call.args()?;`.
    /// One argument alone is a tuple too: `(String,)`.
    ///
    /// # Errors
    /// A failure of kind `ArgumentError` if there are others.
    pub fn args<T: Deserialize<'a>>(&self) -> Result<T> {
        serde_json::from_slice(self.body).map(|Args { args }| args).map_err(argument_error)
    }

    /// The named arguments, as a struct or a map.
    ///
    /// # Errors
    /// A failure of kind `ArgumentError` if there are others.
    pub fn kwargs<T: Deserialize<'a>>(&self) -> Result<T> {
        serde_json::from_slice(self.body).map(|Kwargs { kwargs }| kwargs).map_err(argument_error)
    }

    /// The failure for a function that there is not.
    pub fn unknown(&self) -> Failure {
        Failure::new("UnknownFunction", format!("there is no function {:?}", self.function))
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is what `map_err` takes")]
fn argument_error(error: serde_json::Error) -> Failure {
    // Where it was found in the frame says nothing to who called.
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = error.to_string();
    let message = match text.strip_suffix(&place).unwrap_or(&text) {
        "trailing characters" => "too many arguments, or an array among them is too long",
        other => other,
    };
    Failure::new("ArgumentError", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const BODY: &[u8] = br#"{"args":["a",2],"function":"f\u0041","kwargs":{"deep":true}}"#;

    #[derive(Deserialize)]
    struct Named {
        deep: bool,
    }

    #[test]
    fn arguments_are_read_as_what_the_function_wants() {
        let call = Call::decode(BODY).expect("a call");
        assert_eq!(call.function(), "fA");
        let (text, number): (&str, u8) = call.args().expect("two");
        assert_eq!((text, number), ("a", 2));
        assert_eq!(call.args::<Vec<Value>>().expect("a list").len(), 2);
        assert!(call.kwargs::<Named>().expect("one").deep);
    }

    #[test]
    fn other_arguments_are_an_error_that_says_so() {
        let call = Call::decode(BODY).expect("a call");
        let error = call.args::<(String,)>().expect_err("two are not one");
        assert!(error.to_string().starts_with("ArgumentError: too many arguments"), "{error}");
        let error = call.args::<(String, String)>().expect_err("a number is no text");
        assert_eq!(error.to_string(), "ArgumentError: invalid type: integer `2`, expected a string");
        assert!(Call::decode(b"{}").is_err());
        assert!(Code::decode(b"", b"\xff").is_err());
        assert!(Code::decode(b"{}", b"").is_err());
    }
}
