//! Answers and how they look on the wire.

use std::borrow::Cow;

use serde::Serialize;

use super::stream::Framing;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    /// Further header fields.
    pub(crate) fields: &'static [(&'static str, &'static str)],
    pub(crate) body: Cow<'static, [u8]>,
}

const JSON: &str = "application/json";

impl Response {
    /// 200 with a JSON body.
    pub(crate) fn json(body: &impl Serialize) -> Response {
        match serde_json::to_vec(body) {
            Ok(body) => Response::new(200, JSON, body),
            Err(error) => {
                log::error!("an answer cannot be written as JSON: {error}");
                Response::detail(500, "Internal Server Error")
            }
        }
    }

    /// 200 with a JSON body that is written already.
    pub(crate) fn json_text(body: Vec<u8>) -> Response {
        Response::new(200, JSON, body)
    }

    /// 200 with a JSON body that is known in advance.
    pub(crate) const fn fixed_json(body: &'static str) -> Response {
        Response::fixed_refusal(200, &[], body)
    }

    /// A refusal whose JSON body is known in advance.
    pub(crate) const fn fixed_refusal(
        status: u16,
        fields: &'static [(&'static str, &'static str)],
        body: &'static str,
    ) -> Response {
        Response { status, content_type: JSON, fields, body: Cow::Borrowed(body.as_bytes()) }
    }

    /// A refusal: `{"detail": …}`.
    pub(crate) fn detail(status: u16, detail: &str) -> Response {
        let body = serde_json::json!({ "detail": detail }).to_string();
        Response::new(status, JSON, body.into_bytes())
    }

    pub(crate) fn new(
        status: u16,
        content_type: &'static str,
        body: impl Into<Cow<'static, [u8]>>,
    ) -> Response {
        Response { status, content_type, fields: &[], body: body.into() }
    }

    pub(crate) fn with_fields(mut self, fields: &'static [(&'static str, &'static str)]) -> Response {
        self.fields = fields;
        self
    }

    /// Appends the answer to a connection's output.
    pub(super) fn write(&self, output: &mut Vec<u8>, date: &str, how: Rendering) {
        self.write_head(output, date, how, Length::Known(self.body.len()));
        if !how.head_only {
            output.extend_from_slice(&self.body);
        }
    }

    /// Appends the head of an answer whose body has this length.
    pub(super) fn write_head(&self, output: &mut Vec<u8>, date: &str, how: Rendering, length: Length) {
        let mut number = [0; 20];
        output.extend_from_slice(b"HTTP/1.1 ");
        output.extend_from_slice(decimal(&mut number, usize::from(self.status)));
        output.push(b' ');
        output.extend_from_slice(reason(self.status).as_bytes());
        let mut field = |name: &str, value: &[u8]| {
            for part in [b"\r\n", name.as_bytes(), b": ", value] {
                output.extend_from_slice(part);
            }
        };
        field("Content-Type", self.content_type.as_bytes());
        match length {
            Length::Known(length) => field("Content-Length", decimal(&mut number, length)),
            Length::Framed(Framing::Chunked) => field("Transfer-Encoding", b"chunked"),
            Length::Framed(Framing::UntilClose) => {}
        }
        field("Date", date.as_bytes());
        field("Cache-Control", b"no-store");
        // What is no page needs no more than these: nobody takes it for one, keeps it, or loads it into
        // a page of another site.
        field("X-Content-Type-Options", b"nosniff");
        field("Cross-Origin-Resource-Policy", b"same-origin");
        for (name, value) in self.fields {
            field(name, value.as_bytes());
        }
        field("Connection", if how.keep_alive { b"keep-alive" } else { b"close" });
        output.extend_from_slice(b"\r\n\r\n");
    }
}

/// How a head tells where the body ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Length {
    Known(usize),
    Framed(Framing),
}

/// How an answer is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rendering {
    /// The connection stays open.
    pub(super) keep_alive: bool,
    /// The request was a HEAD: the body is left out.
    pub(super) head_only: bool,
    /// How a body is sent whose length is not known.
    pub(super) framing: Framing,
}

/// A number's digits, at the end of `buffer`.
fn decimal(buffer: &mut [u8; 20], mut number: usize) -> &[u8] {
    let mut start = buffer.len();
    loop {
        start -= 1;
        buffer[start] = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
        if number == 0 {
            return &buffer[start..];
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(response: &Response, head_only: bool) -> String {
        let mut output = Vec::new();
        response.write(
            &mut output,
            "today",
            Rendering { keep_alive: true, head_only, framing: Framing::Chunked },
        );
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn an_answer_states_its_length_and_a_head_leaves_the_body_out() {
        let response = Response::detail(404, "a \"name\"");
        let whole = written(&response, false);
        assert!(whole.starts_with("HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n"), "{whole}");
        assert!(whole.contains("\r\nContent-Length: 23\r\n"), "{whole}");
        assert!(whole.ends_with("\r\n\r\n{\"detail\":\"a \\\"name\\\"\"}"), "{whole}");
        assert!(written(&response, true).ends_with("\r\n\r\n"));
    }
}
