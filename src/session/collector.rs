//! What comes of an exchange besides its answer: kept up to its caps, shown to whoever looks on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::events::{Attachment, Display, Event, Progress, Prompt, Question};
use super::output::{Capture, Pipe, Read, TextDecoder};
use super::request::{Observers, Stream};
use super::transport::WakeFd;
use crate::protocol::{Frame, Kind, flag};

/// Collects one exchange's output and events.
pub(crate) struct Collector<'a> {
    pub(crate) stdout: Capture,
    pub(crate) stderr: Capture,
    pub(crate) displays: Vec<Display>,
    pub(crate) attachments: Vec<Attachment>,
    /// Displays and attachments beyond the cap: how many were dropped.
    pub(crate) dropped: u64,
    /// CPU time by the worker's own account.
    pub(crate) cpu_time: Option<Duration>,
    room: usize,
    observers: Observers<'a>,
    decoders: [TextDecoder; 2],
    /// Where events go that an iterator hands out; `None` without one.
    queue: Option<VecDeque<Event>>,
}

/// What the exchange has to do about an event.
pub(crate) enum Reaction {
    Nothing,
    /// The worker waits for the answer to this.
    Await(Question),
    /// Nobody answers: tell the worker at once.
    NoInput,
}

impl<'a> Collector<'a> {
    /// Keeps `output_cap` bytes of each stream and `event_cap` bytes of displays and attachments.
    pub(crate) fn new(output_cap: usize, event_cap: usize, observers: Observers<'a>) -> Collector<'a> {
        Collector {
            stdout: Capture::new(output_cap),
            stderr: Capture::new(output_cap),
            displays: Vec::new(),
            attachments: Vec::new(),
            dropped: 0,
            cpu_time: None,
            room: event_cap,
            observers,
            decoders: <[TextDecoder; 2]>::default(),
            queue: None,
        }
    }

    /// Collects output alone, for requests that no user code looks at.
    pub(crate) fn quiet(output_cap: usize) -> Collector<'a> {
        Collector::new(output_cap, 0, Observers::default())
    }

    /// Keeps events for [`pop`](Collector::pop).
    pub(crate) fn queue_events(&mut self) {
        self.queue = Some(VecDeque::new());
    }

    pub(crate) fn pop(&mut self) -> Option<Event> {
        self.queue.as_mut()?.pop_front()
    }

    /// Reads once from a pipe of the worker.
    pub(crate) fn read(&mut self, pipe: Option<&mut Pipe>, stream: Stream) -> Read {
        let Some(pipe) = pipe else { return Read::Empty };
        let capture = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let (observers, decoders, queue) = (&mut self.observers, &mut self.decoders, &mut self.queue);
        let read = capture.read_from(pipe, &mut |bytes| show(observers, decoders, queue, stream, bytes));
        if let Read::Bytes(count) = read {
            pipe.carried(count);
        }
        read
    }

    /// Reads what a pipe holds at this moment: a flood from a background thread or child cannot
    /// hold the caller.
    pub(crate) fn drain(&mut self, mut pipe: Option<&mut Pipe>, stream: Stream) {
        let mut left = pipe.as_deref().map_or(0, Pipe::waiting);
        while left > 0 {
            let Read::Bytes(count) = self.read(pipe.as_deref_mut(), stream) else { return };
            left = left.saturating_sub(count);
        }
    }

    /// Takes an event's frame; an error breaks the protocol.
    pub(crate) fn take(&mut self, frame: &Frame<'_>, waker: &Arc<WakeFd>) -> Result<Reaction, String> {
        match frame.header.kind {
            Kind::Output => {
                let (stream, capture) = if frame.header.flags & flag::STDERR == 0 {
                    (Stream::Stdout, &mut self.stdout)
                } else {
                    (Stream::Stderr, &mut self.stderr)
                };
                capture.push(frame.second);
                show(&mut self.observers, &mut self.decoders, &mut self.queue, stream, frame.second);
            }
            Kind::Display => self.take_display(Display::decode(frame)?),
            Kind::Attachment => self.take_attachment(Attachment::decode(frame)?),
            Kind::Progress => {
                let progress = Progress::decode(frame)?;
                if let Some(observer) = &mut self.observers.progress {
                    observer(&progress);
                }
                if let Some(queue) = &mut self.queue {
                    queue.push_back(Event::Progress(progress));
                }
            }
            Kind::Input => return self.ask(frame, waker),
            Kind::Usage => {
                #[derive(Deserialize)]
                struct Used {
                    cpu_seconds: f64,
                }
                let used: Used = serde_json::from_slice(frame.first)
                    .map_err(|error| format!("usage that cannot be read: {error}"))?;
                let time = Duration::try_from_secs_f64(used.cpu_seconds);
                self.cpu_time = Some(time.map_err(|error| format!("a CPU time that is none: {error}"))?);
            }
            other => return Err(format!("{other:?} is no event")),
        }
        Ok(Reaction::Nothing)
    }

    fn take_display(&mut self, display: Display) {
        if let Some(observer) = &mut self.observers.display {
            observer(&display);
        }
        if let Some(queue) = &mut self.queue {
            queue.push_back(Event::Display(display.clone()));
        }
        if self.has_room(display.size()) {
            self.displays.push(display);
        }
    }

    fn take_attachment(&mut self, attachment: Attachment) {
        if let Some(queue) = &mut self.queue {
            queue.push_back(Event::Attachment(attachment.clone()));
        }
        if self.has_room(attachment.size()) {
            self.attachments.push(attachment);
        }
    }

    /// Counts what is kept, and what is not. An empty thing costs a little too.
    fn has_room(&mut self, size: usize) -> bool {
        let size = size + size_of::<Display>();
        if size > self.room {
            self.dropped += 1;
            return false;
        }
        self.room -= size;
        true
    }

    fn ask(&mut self, frame: &Frame<'_>, waker: &Arc<WakeFd>) -> Result<Reaction, String> {
        let (prompt, question) = Prompt::decode(frame, waker)?;
        match (&mut self.observers.input, &mut self.queue) {
            (Some(observer), _) => observer(prompt),
            (None, Some(queue)) => queue.push_back(Event::Input(prompt)),
            (None, None) => return Ok(Reaction::NoInput),
        }
        Ok(Reaction::Await(question))
    }

    /// The exchange is over: characters that were never completed are shown as they are.
    pub(crate) fn finish(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let Some(text) = self.decoders[stream as usize].finish() else { continue };
            show_text(&mut self.observers, &mut self.queue, stream, text);
        }
    }
}

fn show(
    observers: &mut Observers<'_>,
    decoders: &mut [TextDecoder; 2],
    queue: &mut Option<VecDeque<Event>>,
    stream: Stream,
    bytes: &[u8],
) {
    if bytes.is_empty() {
        return;
    }
    if let Some(observer) = &mut observers.output {
        observer(stream, bytes);
    }
    if observers.text.is_some() || queue.is_some() {
        let text = decoders[stream as usize].decode(bytes);
        if !text.is_empty() {
            show_text(observers, queue, stream, text);
        }
    }
}

fn show_text(
    observers: &mut Observers<'_>,
    queue: &mut Option<VecDeque<Event>>,
    stream: Stream,
    text: String,
) {
    if let Some(observer) = &mut observers.text {
        observer(stream, &text);
    }
    if let Some(queue) = queue {
        queue.push_back(Event::Output(stream, text));
    }
}
