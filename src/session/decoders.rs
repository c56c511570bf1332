//! Every decoder of what a worker sends, in one place, for tests and fuzzing.

use std::sync::Arc;

use super::answer::{Answer, ImportReport, ReadyReport, decode_error};
use super::ask::{Fingerprint, Name};
use super::collector::{Collector, Reaction};
use super::request::Observers;
use super::transport::WakeFd;
use crate::protocol::{Frame, Header, Kind};

/// Events wake somebody; opened once.
pub(crate) struct Decoders {
    waker: Arc<WakeFd>,
}

/// How a body was understood; `None`: it breaks the protocol.
#[derive(Debug)]
#[cfg_attr(fuzzing, expect(dead_code, reason = "a fuzz target asks for no more than an end"))]
pub(crate) struct Decoded {
    pub(crate) answer: Option<Answer>,
    /// The number of displays and attachments in it.
    pub(crate) event: Option<usize>,
}

impl Decoders {
    pub(crate) fn new() -> Decoders {
        Decoders { waker: Arc::new(WakeFd::new().expect("a file descriptor")) }
    }

    /// Decodes the body as that of every kind.
    pub(crate) fn decode_as_everything(&self, flags: u8, first: &[u8], second: &[u8]) {
        for kind in (0..=u8::MAX).filter_map(Kind::from_byte) {
            self.decode(&frame(kind, flags, first, second));
        }
        let _ = serde_json::from_slice::<ReadyReport>(first);
        let _ = serde_json::from_slice::<Vec<ImportReport>>(first);
        let _ = serde_json::from_slice::<Vec<String>>(first);
        let _ = serde_json::from_slice::<Vec<Name>>(first);
        let _ = serde_json::from_slice::<Fingerprint>(first);
        let _ = decode_error(first);
    }

    pub(crate) fn decode(&self, frame: &Frame<'_>) -> Decoded {
        let mut collector = Collector::new(1 << 20, 1 << 20, Observers::default());
        let event = collector.take(frame, &self.waker).ok().map(|reaction| {
            assert!(!matches!(reaction, Reaction::Await(_)), "nobody answers");
            collector.displays.len() + collector.attachments.len()
        });
        Decoded { answer: Answer::decode(frame).ok(), event }
    }
}

pub(crate) fn frame<'a>(kind: Kind, flags: u8, first: &'a [u8], second: &'a [u8]) -> Frame<'a> {
    let header = Header { length: 4 + first.len() + second.len(), kind, flags, request: 1 };
    Frame { header, first, second }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{encode_with_flags, flag};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const CAP: usize = 1 << 16;

    /// Texts that are nearly what a worker sends: the right words in any order.
    fn nearly_json() -> impl Strategy<Value = Vec<u8>> {
        let words = [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "1",
            "-1",
            "0.5",
            "1e400",
            "null",
            "true",
            "NaN",
            "\\ud800",
            "\"types\"",
            "\"a/b\"",
            "\"fraction\"",
            "\"message\"",
            "\"prompt\"",
            "\"secret\"",
            "\"name\"",
            "\"cpu_seconds\"",
            "\"type\"",
            "\"traceback\"",
            "\"exit_code\"",
            "\"limit\"",
            "18446744073709551616",
        ];
        vec(proptest::sample::select(words.to_vec()), 0..20).prop_map(|words| words.concat().into_bytes())
    }

    fn any_kind() -> impl Strategy<Value = Kind> {
        (1_u8..=23).prop_map(|byte| Kind::from_byte(byte).expect("all of them are kinds"))
    }

    fn any_frame() -> impl Strategy<Value = (Kind, u8, u64, Vec<u8>, Vec<u8>)> {
        (any_kind(), any::<u8>(), any::<u64>(), vec(any::<u8>(), 0..50), vec(any::<u8>(), 0..50))
    }

    proptest! {
        #[test]
        fn decoding_any_body_is_total(flags: u8, first in vec(any::<u8>(), 0..100), second in vec(any::<u8>(), 0..100)) {
            Decoders::new().decode_as_everything(flags, &first, &second);
        }

        #[test]
        fn decoding_what_is_nearly_right_is_total(flags: u8, first in nearly_json(), second in vec(any::<u8>(), 0..10)) {
            Decoders::new().decode_as_everything(flags, &first, &second);
        }

        #[test]
        fn a_value_comes_back_as_it_was(number: i64, text: String, list in vec(any::<u64>(), 0..10), noticed: bool) {
            let value = json!({ "number": number, "text": text, "list": list, "nothing": Value::Null });
            let (first, stopped) = (value.to_string(), if noticed { flag::STOPPED } else { 0 });
            let flags = flag::HAS_VALUE | flag::IS_JSON | stopped;
            let decoded = Decoders::new().decode(&frame(Kind::Result, flags, first.as_bytes(), text.as_bytes()));
            let answer = decoded.answer.expect("well formed");
            prop_assert_eq!(answer.value, value);
            prop_assert_eq!(answer.repr, Some(text));
            prop_assert_eq!(answer.stopped, noticed);
        }

        #[test]
        fn a_byte_string_comes_back_as_it_was(bytes in vec(any::<u8>(), 0..200)) {
            let flags = flag::HAS_VALUE | flag::IS_BYTES;
            let decoded = Decoders::new().decode(&frame(Kind::Result, flags, &bytes, b""));
            prop_assert_eq!(decoded.answer.expect("well formed").bytes, Some(bytes));
        }

        #[test]
        fn a_display_is_taken_only_if_its_sizes_add_up(sizes in vec(0_usize..40, 0..6), spare in -3_i64..3) {
            let types: Vec<_> = sizes.iter().map(|size| json!(["text/plain", size])).collect();
            let first = json!({ "types": types }).to_string();
            let total = i64::try_from(sizes.iter().sum::<usize>()).expect("small") + spare;
            let second = vec![b'x'; usize::try_from(total.max(0)).expect("small")];
            let fits = second.len() == sizes.iter().sum::<usize>();
            let decoded = Decoders::new().decode(&frame(Kind::Display, 0, first.as_bytes(), &second));
            prop_assert_eq!(decoded.event.is_some(), fits);
        }

        #[test]
        fn a_stream_of_frames_is_decoded_alike_however_it_is_cut(
            frames in vec(any_frame(), 0..8), cuts in vec(1_usize..60, 0..60),
        ) {
            let mut stream = Vec::new();
            for (kind, flags, request, first, second) in &frames {
                stream.extend(encode_with_flags(*kind, *flags, *request, first, second, CAP).expect("small"));
            }
            let (mut inbox, mut found, mut at) = (Vec::new(), Vec::new(), 0);
            for size in cuts.into_iter().chain([stream.len()]) {
                let end = (at + size).min(stream.len());
                inbox.extend_from_slice(&stream[at..end]);
                at = end;
                while let Some((frame, used)) = Frame::decode(&inbox, CAP).expect("well formed") {
                    let Header { kind, flags, request, .. } = frame.header;
                    found.push((kind, flags, request, frame.first.to_vec(), frame.second.to_vec()));
                    inbox.drain(..used);
                }
            }
            prop_assert!(inbox.is_empty());
            prop_assert_eq!(found, frames);
        }
    }
}
