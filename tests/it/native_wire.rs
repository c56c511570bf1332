//! Native workers, frame by frame: what a host of this crate never sends, and nobody's help at the end.

use std::fs::File;
use std::io::{IoSlice, Read as _, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use remuda::protocol::{
    DEFAULT_FRAME_CAP, Frame, Kind, MIN_FRAME_CAP, encode, encode_with_flags, flag, go_numbers,
};
use remuda::{Call, Exit, Runtime, SessionConfig};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use crate::native_support::{native, program};
use crate::support::{GENEROUS, is_running, poll};

const CAP: usize = MIN_FRAME_CAP;

/// A worker and its bare channels. No watchdog and nobody who kills it.
struct Raw {
    child: Child,
    /// Cancels and the end of input.
    control: Box<dyn Write>,
    /// `None` where requests go the same way.
    requests: Option<File>,
    replies: File,
    unread: Vec<u8>,
}

struct Reply {
    kind: Kind,
    flags: u8,
    request: u64,
    first: Vec<u8>,
    second: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.first).unwrap()
    }
}

fn command() -> Command {
    let mut command = Command::new(program("native_test_worker"));
    command.process_group(0).stderr(Stdio::null());
    command
}

fn go(version: u64) -> Vec<u8> {
    let mut numbers = go_numbers(9, CAP, 0);
    numbers[..8].copy_from_slice(&version.to_le_bytes());
    // A later host may add numbers.
    numbers.extend_from_slice(&[1; 8]);
    encode(Kind::Go, 0, &numbers, b"", CAP).unwrap()
}

impl Raw {
    fn stdio() -> Raw {
        let mut child = command().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let control: Box<dyn Write> = Box::new(child.stdin.take().unwrap());
        let replies = File::from(OwnedFd::from(child.stdout.take().unwrap()));
        let mut raw = Raw { child, control, requests: None, replies, unread: Vec::new() };
        raw.control.write_all(&go(1)).unwrap();
        raw.ready()
    }

    fn pipes() -> Raw {
        let (control, stdin) = UnixStream::pair().unwrap();
        let child = command().stdin(OwnedFd::from(stdin)).stdout(Stdio::null()).spawn().unwrap();
        let (worker_requests, requests) = std::io::pipe().unwrap();
        let (replies, worker_replies) = std::io::pipe().unwrap();
        let flag = File::open("/dev/null").unwrap();
        let fds = [worker_requests.as_fd(), worker_replies.as_fd(), flag.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        // The descriptors come with the first byte, the rest when it likes.
        let go = go(1);
        sendmsg(&control, &[IoSlice::new(&go[..1])], &mut ancillary, SendFlags::empty()).unwrap();
        let (requests, replies) = (OwnedFd::from(requests).into(), OwnedFd::from(replies).into());
        let control = Box::new(control);
        let mut raw = Raw { child, control, requests: Some(requests), replies, unread: Vec::new() };
        raw.control.write_all(&go[1..]).unwrap();
        raw.ready()
    }

    fn both() -> [Raw; 2] {
        [Raw::stdio(), Raw::pipes()]
    }

    fn ready(mut self) -> Raw {
        let ready = self.reply();
        assert_eq!((ready.kind, ready.request), (Kind::Ready, 0));
        assert_eq!(
            ready.json(),
            json!({"protocol": 1, "pid": self.child.id(), "language": "test", "version": "1.2",
                   "features": ["execute", "call", "warm", "reset", "input", "attachments"]})
        );
        self
    }

    fn send(&mut self, bytes: &[u8]) {
        match &mut self.requests {
            Some(requests) => requests.write_all(bytes).unwrap(),
            None => self.control.write_all(bytes).unwrap(),
        }
    }

    fn call(&mut self, request: u64, function: &str) {
        let body = json!({"function": function, "args": [], "kwargs": {}}).to_string();
        self.send(&encode(Kind::Call, request, b"", body.as_bytes(), DEFAULT_FRAME_CAP).unwrap());
    }

    fn ping(&mut self, request: u64) {
        self.send(&encode(Kind::Ping, request, b"", b"", CAP).unwrap());
        let pong = self.reply();
        assert_eq!((pong.kind, pong.request), (Kind::Pong, request));
    }

    fn cancel(&mut self, request: u64, attempt: u8) {
        let frame = encode_with_flags(Kind::Cancel, attempt, request, b"", b"", CAP).unwrap();
        self.control.write_all(&frame).unwrap();
    }

    /// The next frame that is no output.
    fn reply(&mut self) -> Reply {
        loop {
            let reply = self.frame().expect("the worker answers");
            if reply.kind != Kind::Output {
                return reply;
            }
        }
    }

    /// The next frame, or the end.
    fn frame(&mut self) -> Option<Reply> {
        loop {
            if let Some((frame, used)) = Frame::decode(&self.unread, CAP).unwrap() {
                let (first, second) = (frame.first.to_vec(), frame.second.to_vec());
                let (kind, flags, request) = (frame.header.kind, frame.header.flags, frame.header.request);
                self.unread.drain(..used);
                return Some(Reply { kind, flags, request, first, second });
            }
            let mut buffer = [0; 4 << 10];
            match self.replies.read(&mut buffer).unwrap() {
                0 => return None,
                count => self.unread.extend_from_slice(&buffer[..count]),
            }
        }
    }

    fn exit_code(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

native! {
    fn a_cancel_stops_its_own_request_only_whenever_it_comes() {
        for mut raw in Raw::both() {
            raw.ping(1);
            // Before its request begins. The ping says that it was read, where it came the same way.
            raw.cancel(3, 0);
            raw.ping(2);
            raw.call(3, "wait");
            let reply = raw.reply();
            assert_eq!((reply.kind, reply.flags, reply.request), (Kind::Error, flag::STOPPED, 3));
            // After its request has ended, and twice.
            raw.cancel(3, 1);
            raw.cancel(3, 1);
            raw.call(4, "nothing");
            let reply = raw.reply();
            assert_eq!((reply.kind, reply.flags, reply.request), (Kind::Result, 0, 4));
            raw.call(5, "poll");
            raw.cancel(5, 0);
            // By pipes the cancel may come before the call: then the handler does not run.
            let reply = raw.reply();
            assert_eq!((reply.request, reply.flags & flag::STOPPED), (5, flag::STOPPED));
            raw.child.kill().unwrap();
            raw.child.wait().unwrap();
        }
    }
}

native! {
    fn bad_frames_are_answered_with_errors_and_the_next_one_is_served() {
        for mut raw in Raw::both() {
            let mut unknown = encode(Kind::Ping, 11, b"first", b"second", CAP).unwrap();
            unknown[4] = 77;
            let mut reserved = encode(Kind::Ping, 12, b"", b"", CAP).unwrap();
            reserved[7] = 1;
            let mut parts = encode(Kind::Ping, 13, b"", b"", CAP).unwrap();
            parts[16] = 200;
            let short = [&[0, 0, 0, 0, Kind::Ping as u8, 0, 0, 0][..], &14_u64.to_le_bytes()].concat();
            let foreign = encode(Kind::Result, 15, b"", b"", CAP).unwrap();
            let absent = encode(Kind::Inspect, 16, br#"{"what":"names"}"#, b"", CAP).unwrap();
            let no_call = encode(Kind::Call, 17, b"", b"{", CAP).unwrap();
            for (number, frame) in (11..).zip([unknown, reserved, parts, short, foreign, absent, no_call]) {
                raw.send(&frame);
                let reply = raw.reply();
                assert_eq!((reply.kind, reply.request), (Kind::Error, number), "{}", reply.json());
                raw.ping(number + 100);
            }
            // Late replies, and attachments of a request that never came, are nobody's.
            raw.send(&encode(Kind::InputReply, 17, b"", b"late", CAP).unwrap());
            raw.send(&encode(Kind::Attachment, 18, br#"{"name":"lost"}"#, b"data", CAP).unwrap());
            raw.call(300, "show");
            let answer = loop {
                let reply = raw.reply();
                if reply.kind == Kind::Result {
                    break reply;
                }
            };
            assert_eq!((answer.request, answer.json(), answer.second), (300, json!([]), b"[]".to_vec()));
            raw.send(&encode(Kind::Shutdown, 301, b"", b"", CAP).unwrap());
            assert_eq!(raw.exit_code(), Some(0));
        }
    }
}

native! {
    fn a_frame_over_the_cap_is_answered_and_ends_the_worker() {
        for mut raw in Raw::both() {
            let mut large = encode(Kind::Ping, 5, b"", b"", CAP).unwrap();
            large[..4].copy_from_slice(&u32::MAX.to_le_bytes());
            raw.send(&large);
            let reply = raw.reply();
            assert_eq!((reply.kind, reply.request), (Kind::Error, 5));
            assert!(raw.frame().is_none());
            assert_eq!(raw.exit_code(), Some(70));
        }
        for mut raw in Raw::both() {
            // Of no request: there is nobody to answer.
            raw.send(&encode(Kind::Result, 0, b"", b"", CAP).unwrap());
            assert!(raw.frame().is_none());
            assert_eq!(raw.exit_code(), Some(70));
        }
    }
}

native! {
    fn the_end_of_the_input_kills_a_busy_worker_and_its_children() {
        for mut raw in Raw::both() {
            raw.call(1, "orphan");
            let children = format!("/proc/{0}/task/{0}/children", raw.child.id());
            let child = || std::fs::read_to_string(&children).unwrap().trim().parse::<u32>().ok();
            poll(|| child().is_some_and(is_running), || "the worker starts no child".to_owned());
            let child = child().unwrap();
            let Raw { child: mut worker, control, requests, replies, .. } = raw;
            drop(control);
            assert_eq!(worker.wait().unwrap().code(), None, "it ends by a signal");
            poll(|| !is_running(child), || "its child lives".to_owned());
            drop((requests, replies));
        }
    }
}

native! {
    fn the_end_of_the_input_ends_an_idle_worker_too() {
        for raw in Raw::both() {
            let Raw { mut child, control, .. } = raw;
            drop(control);
            child.wait().unwrap();
        }
    }
}

native! {
    fn a_program_that_no_host_has_started_says_so() {
        let attempt = |input: &[u8]| {
            let mut child = command().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            // It may have left before it has read everything.
            let _ = child.stdin.take().unwrap().write_all(input);
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(78));
            String::from_utf8(output.stderr).unwrap()
        };
        let short = go(1)[..20].to_vec();
        let ping = encode(Kind::Ping, 1, b"", b"", CAP).unwrap();
        let empty = encode(Kind::Go, 0, b"", b"", CAP).unwrap();
        for (input, expected) in [
            (&b""[..], "fd 0 ended before a go frame"),
            (b"hello, is this a calculator?\n", "a remuda host"),
            (&short, "fd 0 ended before a go frame"),
            (&ping, "the first frame is no go frame"),
            (&empty, "without its numbers"),
            (&go(2), "speaks version 2 of the protocol, not 1"),
        ] {
            let said = attempt(input);
            assert!(said.starts_with("remuda worker: ") && said.contains(expected), "{said}");
        }
    }
}

native! {
    fn the_small_worker_of_the_guide_is_a_session() {
        let page = include_str!("../../docs/guide/writing-a-worker.md");
        let code = page.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
        let mut session = SessionConfig::new(Runtime::command("python3", ["-c", code])).start().unwrap();
        assert_eq!(session.info().runtime, "tiny 1");
        assert_eq!(session.execute(Call::new("add").arg(40).arg(2)).unwrap().value, 42);
        let run = session.execute(Call::new("say").arg("hi").arg(5)).unwrap();
        assert_eq!((run.stdout.as_str(), run.value), ("hi 5\n", Value::Null));
        assert_eq!(session.execute(Call::new("nope")).unwrap().error.unwrap().kind, "KeyError");
        session.ping(GENEROUS).unwrap();
        assert_eq!(session.shutdown(GENEROUS).exit, Exit::Code(0));
    }
}
