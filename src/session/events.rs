//! What running code says besides its output: displays, progress, attachments, questions.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::request::Stream;
use super::transport::WakeFd;
use crate::cancel::Wake;
use crate::protocol::Frame;
use crate::sync::Mutex;

/// Forms that one display may have.
const MOST_FORMS: usize = 64;

/// One thing that code shows, in one or more forms (a MIME bundle), the richest first.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Display {
    /// MIME type and bytes of each form; those of text types are UTF-8.
    pub forms: Vec<(String, Vec<u8>)>,
    /// Whether this is the value of the trailing expression.
    pub is_result: bool,
}

/// How far running code says it is, by `remuda.progress(fraction, message)`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Progress {
    /// From 0 to 1 by convention; nobody checks.
    #[serde(default)]
    pub fraction: Option<f64>,
    /// What it is doing.
    #[serde(default)]
    pub message: Option<String>,
}

/// Bytes with a name that code attached to its result, by `remuda.attach(name, data)`.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Attachment {
    /// Its name, as the code gave it: not to be used as a file name unseen.
    pub name: String,
    /// The bytes.
    pub data: Vec<u8>,
}

/// What happens while code runs, from [`Running`](crate::Running).
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// It wrote to one of its streams. Characters are whole: one that came in two parts is held back
    /// until it is complete; invalid UTF-8 is replaced.
    Output(Stream, String),
    /// It shows something.
    Display(Display),
    /// It says how far it is.
    Progress(Progress),
    /// It attached bytes to its result.
    Attachment(Attachment),
    /// It waits for a line of input.
    Input(Prompt),
}

/// Code waits for a line of input: answer with [`answer`](Prompt::answer) or [`end`](Prompt::end),
/// from any thread, now or later. Dropping it means the end of input.
#[must_use = "dropping a prompt tells the code that there is no more input"]
pub struct Prompt {
    text: String,
    secret: bool,
    slot: Arc<Mutex<Option<Reply>>>,
    waker: Arc<WakeFd>,
}

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Line(String),
    End,
}

/// The asker's side of a [`Prompt`].
#[derive(Debug)]
pub(crate) struct Question(Arc<Mutex<Option<Reply>>>);

impl Display {
    /// The bytes of the form with this MIME type.
    pub fn get(&self, mime: &str) -> Option<&[u8]> {
        self.forms.iter().find(|(name, _)| name == mime).map(|(_, bytes)| &bytes[..])
    }

    /// The form with this MIME type as text; `None` too if it is not UTF-8.
    pub fn text(&self, mime: &str) -> Option<&str> {
        self.get(mime).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    pub(crate) fn decode(frame: &Frame<'_>) -> Result<Display, String> {
        #[derive(Deserialize)]
        struct Head {
            types: Vec<(String, usize)>,
            #[serde(default)]
            result: bool,
        }
        let head: Head = decode("a display", frame.first)?;
        if head.types.len() > MOST_FORMS {
            return Err(format!("a display of {} forms", head.types.len()));
        }
        let mut rest = frame.second;
        let mut forms = Vec::with_capacity(head.types.len());
        for (mime, size) in head.types {
            let Some((bytes, others)) = rest.split_at_checked(size) else {
                return Err("a display whose forms are longer than the frame".to_owned());
            };
            forms.push((mime, bytes.to_vec()));
            rest = others;
        }
        if !rest.is_empty() {
            return Err("a display whose forms are shorter than the frame".to_owned());
        }
        Ok(Display { forms, is_result: head.result })
    }

    /// What it takes of memory, about: an empty form costs something too.
    pub(crate) fn size(&self) -> usize {
        let form =
            |(mime, bytes): &(String, Vec<u8>)| size_of::<(String, Vec<u8>)>() + mime.len() + bytes.len();
        self.forms.iter().map(form).sum()
    }
}

impl Progress {
    pub(crate) fn decode(frame: &Frame<'_>) -> Result<Progress, String> {
        decode("progress", frame.first)
    }
}

impl Attachment {
    pub(crate) fn decode(frame: &Frame<'_>) -> Result<Attachment, String> {
        #[derive(Deserialize)]
        struct Head {
            name: String,
        }
        let head: Head = decode("an attachment", frame.first)?;
        Ok(Attachment { name: head.name, data: frame.second.to_vec() })
    }

    pub(crate) fn size(&self) -> usize {
        self.name.len() + self.data.len()
    }
}

impl Prompt {
    /// Decodes an *input* frame; `waker` wakes the thread that executes.
    pub(crate) fn decode(frame: &Frame<'_>, waker: &Arc<WakeFd>) -> Result<(Prompt, Question), String> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(default)]
            prompt: String,
            #[serde(default)]
            secret: bool,
        }
        let head: Head = decode("a question", frame.first)?;
        let slot = Arc::new(Mutex::new(None));
        let question = Question(Arc::clone(&slot));
        Ok((Prompt { text: head.prompt, secret: head.secret, slot, waker: Arc::clone(waker) }, question))
    }

    /// What the code asks, as it would stand before the cursor; may be empty.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether what is typed should not be seen (`getpass`).
    pub fn is_secret(&self) -> bool {
        self.secret
    }

    /// Gives the code this line. If it has ended or was stopped meanwhile, nothing happens.
    pub fn answer(self, line: impl Into<String>) {
        self.settle(Reply::Line(line.into()));
    }

    /// Tells the code that there is no more input: Python raises `EOFError`.
    pub fn end(self) {}

    fn settle(&self, reply: Reply) {
        let first = {
            let mut slot = self.slot.lock();
            let first = slot.is_none();
            if first {
                *slot = Some(reply);
            }
            first
        };
        if first {
            self.waker.wake();
        }
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        self.settle(Reply::End);
    }
}

impl Question {
    /// The answer, once there is one.
    pub(crate) fn take(&self) -> Option<Reply> {
        self.0.lock().take()
    }
}

fn decode<'a, T: Deserialize<'a>>(what: &str, json: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|error| format!("{what} that cannot be read: {error}"))
}

impl fmt::Debug for Display {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let forms: Vec<_> = self.forms.iter().map(|(mime, bytes)| (mime, bytes.len())).collect();
        f.debug_struct("Display").field("forms", &forms).field("is_result", &self.is_result).finish()
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment").field("name", &self.name).field("bytes", &self.data.len()).finish()
    }
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prompt").field("secret", &self.secret).finish_non_exhaustive()
    }
}
