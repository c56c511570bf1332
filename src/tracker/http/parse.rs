//! The strict reading of a request's head. Pure: bytes in, a head or a refusal out.
//!
//! `httparse` splits the lines; what it lets pass and we do not is decided here: bare line feeds,
//! more than one `Content-Length` or `Host`, a length that is not plain digits, any
//! `Transfer-Encoding`, absolute targets, broken percent escapes. After a refusal the connection
//! is closed, because nobody knows where the next request would begin.

use super::guard::Guard;
use super::{Limits, Method, Request};

const MAX_HEADERS: usize = 100;
const MAX_TARGET: usize = 8 * 1024;

/// A request's head, parsed and checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The request, its body still empty.
    pub(super) request: Request,
    /// How many bytes the head takes in the input.
    pub(super) length: usize,
    /// How many bytes of body follow.
    pub(super) body_length: usize,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
    /// The connection stays open after the answer.
    pub(super) keep_alive: bool,
}

/// Why a request is not read any further: the status of the answer and its `detail`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) detail: &'static str,
}

impl Refusal {
    pub(super) const fn new(status: u16, detail: &'static str) -> Refusal {
        Refusal { status, detail }
    }
}

const fn bad(detail: &'static str) -> Refusal {
    Refusal::new(400, detail)
}

/// Reads the head at the start of `input`; `None` as long as it is incomplete.
///
/// The caller has skipped an empty line in front of the request line.
pub(super) fn parse(input: &[u8], limits: &Limits) -> Result<Option<Head>, Refusal> {
    let Some(end) = end_of_head(input, limits)? else { return Ok(None) };
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut raw = httparse::Request::new(&mut headers);
    let length = match raw.parse(&input[..end]) {
        Ok(httparse::Status::Complete(length)) => length,
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::new(431, "too many header fields")),
        Err(httparse::Error::Version) => {
            return Err(Refusal::new(505, "only HTTP/1.0 and HTTP/1.1 are spoken"));
        }
        Ok(httparse::Status::Partial) | Err(_) => return Err(bad("the request's head is malformed")),
    };
    let fields = Fields::read(raw.headers, raw.version == Some(1))?;
    if fields.content_length > limits.body_bytes {
        return Err(Refusal::new(413, "the body is too large"));
    }
    let (path, query) = target(raw.path.unwrap_or_default())?;
    Ok(Some(Head {
        request: Request { method: method(raw.method.unwrap_or_default()), path, query, body: Vec::new() },
        length,
        body_length: fields.content_length,
        expects_continue: fields.expects_continue,
        keep_alive: fields.keep_alive,
    }))
}

/// Where the empty line ends. Refuses at once what can never become a head.
fn end_of_head(input: &[u8], limits: &Limits) -> Result<Option<usize>, Refusal> {
    if input.first().is_some_and(|byte| !byte.is_ascii_alphabetic()) {
        return Err(bad("this is not an HTTP request"));
    }
    let mut line_start = 0;
    while let Some(length) = input[line_start..].iter().position(|&byte| byte == b'\n') {
        let line = &input[line_start..line_start + length];
        let Some(line) = line.strip_suffix(b"\r") else {
            return Err(bad("a line of the head ends without CR"));
        };
        if line_start == 0 && line.len() > MAX_TARGET {
            return Err(Refusal::new(414, "the request line is too long"));
        }
        line_start += length + 1;
        if line_start > limits.head_bytes {
            break;
        }
        if line.is_empty() {
            return Ok(Some(line_start));
        }
    }
    if line_start == 0 && input.len() > MAX_TARGET {
        return Err(Refusal::new(414, "the request line is too long"));
    }
    if line_start.max(input.len()) > limits.head_bytes {
        return Err(Refusal::new(431, "the request's head is too large"));
    }
    Ok(None)
}

/// The header fields that the connection itself acts on.
struct Fields {
    content_length: usize,
    expects_continue: bool,
    keep_alive: bool,
}

impl Fields {
    fn read(headers: &[httparse::Header<'_>], http11: bool) -> Result<Fields, Refusal> {
        let (mut host, mut origin, mut length) = (None, None, None);
        let (mut expects_continue, mut close, mut keep) = (false, false, false);
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("transfer-encoding") {
                return Err(Refusal::new(
                    411,
                    "send the body with Content-Length, without Transfer-Encoding",
                ));
            } else if is("content-length") {
                once(&mut length, header.value, "more than one Content-Length")?;
            } else if is("host") {
                once(&mut host, header.value, "more than one Host")?;
            } else if is("origin") {
                once(&mut origin, header.value, "more than one Origin")?;
            } else if is("expect") {
                if !header.value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal::new(417, "the only expectation met is 100-continue"));
                }
                expects_continue = http11;
            } else if is("connection") {
                close |= has_token(header.value, b"close");
                keep |= has_token(header.value, b"keep-alive");
            }
        }
        if http11 && host.is_none() {
            return Err(bad("the Host header field is missing"));
        }
        Guard { host, origin }.check()?;
        let content_length = length.map_or(Ok(0), digits)?;
        Ok(Fields { content_length, expects_continue, keep_alive: !close && (http11 || keep) })
    }
}

fn once<'a>(slot: &mut Option<&'a [u8]>, value: &'a [u8], twice: &'static str) -> Result<(), Refusal> {
    if slot.replace(value).is_some() { Err(bad(twice)) } else { Ok(()) }
}

fn digits(value: &[u8]) -> Result<usize, Refusal> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad("Content-Length is not a number"));
    }
    // Digits alone: what does not fit is more than any cap.
    Ok(std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(usize::MAX))
}

fn has_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|&byte| byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

fn method(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        _ => Method::Other,
    }
}

/// A request's path and parameters, decoded.
type Target = (Vec<String>, Vec<(String, String)>);

fn target(text: &str) -> Result<Target, Refusal> {
    let Some(text) = text.strip_prefix('/') else {
        return Err(bad("the request's target is not a path"));
    };
    if !text.is_ascii() || text.contains('#') {
        return Err(bad("the request's target is not percent-encoded"));
    }
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let path = path.split('/').map(|part| decode(part, false)).collect::<Result<_, _>>()?;
    let query = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(key, true)?, decode(value, true)?))
        })
        .collect::<Result<_, _>>()?;
    Ok((path, query))
}

/// Resolves percent escapes; in a query `+` stands for a space.
fn decode(text: &str, in_query: bool) -> Result<String, Refusal> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut nibble = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let (Some(high), Some(low)) = (nibble(), nibble()) else {
                    return Err(bad("a percent escape is broken"));
                };
                u8::try_from(high * 16 + low).unwrap_or_default()
            }
            b'+' if in_query => b' ',
            _ => byte,
        });
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(bad("a percent escape is not UTF-8 text")),
    }
}
