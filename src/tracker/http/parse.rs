//! The strict reading of a request's head. Pure: bytes in, a head or a refusal out.
//!
//! `httparse` splits the lines; what it lets pass and we do not is decided here: bare line feeds,
//! more than one `Content-Length` or `Host`, a length that is not plain digits, any
//! `Transfer-Encoding`, absolute targets, broken percent escapes. After a refusal the connection
//! is closed, because nobody knows where the next request would begin.

use super::guard::Guard;
use super::{Headers, Hosts, Limits, Method, Request, Secret};

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
    /// The client speaks HTTP/1.0, and so knows no chunks.
    pub(super) is_http_10: bool,
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
    let fields = Fields::read(raw.headers, raw.version == Some(1), &limits.hosts)?;
    let (path, query) = target(raw.path.unwrap_or_default())?;
    let method = method(raw.method.unwrap_or_default());
    let Fields { headers, token, .. } = fields;
    let request = Request { query, headers, token, ..Request::new(method, path) };
    if fields.content_length > (limits.body_bytes.0)(&request) {
        return Err(Refusal::new(413, "the body is too large"));
    }
    Ok(Some(Head {
        request,
        length,
        body_length: fields.content_length,
        expects_continue: fields.expects_continue,
        keep_alive: fields.keep_alive,
        is_http_10: raw.version == Some(0),
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

/// The header fields that the connection itself acts on, and those that the service reads.
struct Fields {
    headers: Option<Box<Headers>>,
    content_length: usize,
    expects_continue: bool,
    keep_alive: bool,
    token: Option<Secret>,
}

impl Fields {
    fn read(headers: &[httparse::Header<'_>], http11: bool, hosts: &Hosts) -> Result<Fields, Refusal> {
        let (mut host, mut origin, mut length, mut authorization) = (None, None, None, None);
        let (mut expects_continue, mut close, mut keep) = (false, false, false);
        let mut read = None;
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
            } else if is("authorization") {
                once(&mut authorization, header.value, "more than one Authorization")?;
            } else if is("expect") {
                if !header.value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal::new(417, "the only expectation met is 100-continue"));
                }
                expects_continue = http11;
            } else if is("accept") {
                append(&mut read, header.value, |headers| &mut headers.accept);
            } else if is("last-event-id") {
                append(&mut read, header.value, |headers| &mut headers.last_event_id);
            } else if is("connection") {
                close |= has_token(header.value, b"close");
                keep |= has_token(header.value, b"keep-alive");
            }
        }
        if http11 && host.is_none() {
            return Err(bad("the Host header field is missing"));
        }
        Guard { host, origin }.check(hosts)?;
        let content_length = length.map_or(Ok(0), digits)?;
        let token = authorization.and_then(bearer);
        let keep_alive = !close && (http11 || keep);
        Ok(Fields { headers: read, content_length, expects_continue, keep_alive, token })
    }
}

fn once<'a>(slot: &mut Option<&'a [u8]>, value: &'a [u8], twice: &'static str) -> Result<(), Refusal> {
    if slot.replace(value).is_some() { Err(bad(twice)) } else { Ok(()) }
}

/// A list may stand in several fields. What everybody sends says nothing and is left out; what is no
/// text is nothing that a service could know.
fn append(
    headers: &mut Option<Box<Headers>>,
    value: &[u8],
    of: impl Fn(&mut Headers) -> &mut Option<String>,
) {
    let Ok(value) = std::str::from_utf8(value) else { return };
    if value == "*/*" {
        return;
    }
    match of(headers.get_or_insert_default()) {
        Some(list) => list.extend([",", value]),
        none => *none = Some(value.to_owned()),
    }
}

/// The token behind `Bearer`; nothing for other schemes.
fn bearer(value: &[u8]) -> Option<Secret> {
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii().into())
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
        _ => Err(bad("a percent escape is NUL or not UTF-8 text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: impl AsRef<[u8]>) -> Result<Option<Head>, Refusal> {
        parse(text.as_ref(), &Limits::default())
    }

    #[test]
    fn what_the_client_wants_is_read_unless_it_is_what_everybody_sends() {
        let read = |fields: &str| head(&format!("GET / HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")).request;
        let request = read("Accept: a/b\r\nLAST-EVENT-ID: x-7\r\naccept: c/d;q=1\r\n");
        assert_eq!((request.accept(), request.last_event_id()), (Some("a/b,c/d;q=1"), Some("x-7")));
        for fields in ["", "Accept: */*\r\n"] {
            assert_eq!(read(fields).headers, None, "{fields}");
        }
    }

    fn head(text: &str) -> Head {
        parsed(text).unwrap_or_else(|refusal| panic!("{refusal:?}: {text}")).expect("a complete head")
    }

    fn status(text: impl AsRef<[u8]>) -> u16 {
        parsed(text).expect_err("it is refused").status
    }

    #[test]
    fn a_plain_request_is_understood() {
        let text = "POST /sessions/a%2Fb%20%C3%A4/heartbeat?wait=25&x=1+2%2B&flag HTTP/1.1\r\nHost: localhost\r\n\
                    Content-Length: 2\r\n\r\n";
        let head = head(&format!("{text}{{}}"));
        assert_eq!(head.request.method, Method::Post);
        assert_eq!(head.request.path, ["sessions", "a/b ä", "heartbeat"]);
        assert_eq!(head.request.parameter("wait"), Some("25"));
        assert_eq!(head.request.parameter("x"), Some("1 2+"));
        assert_eq!((head.request.parameter("flag"), head.request.parameter("no")), (Some(""), None));
        assert_eq!((head.length, head.body_length), (text.len(), 2));
        assert!(head.keep_alive && !head.expects_continue);
    }

    #[test]
    fn a_token_is_what_stands_behind_bearer_and_is_not_shown() {
        let token = |fields: &str| {
            let head = head(&format!("GET / HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"));
            assert!(!format!("{head:?}").contains("s3cret"), "{head:?}");
            head.request.token.map(|token| String::from_utf8(token.bytes().to_vec()).unwrap())
        };
        assert_eq!(token("Authorization: Bearer s3cret\r\n").as_deref(), Some("s3cret"));
        assert_eq!(token("AUTHORIZATION: bearer   s3cret \r\n").as_deref(), Some("s3cret"));
        assert_eq!(token("Authorization: Bearer \r\n"), None, "the space at the end is none");
        for fields in
            ["", "Authorization: Basic s3cret\r\n", "Authorization: Bearers3cret\r\n", "Authorization: B\r\n"]
        {
            assert_eq!(token(fields), None, "{fields}");
        }
    }

    #[test]
    fn every_beginning_of_a_head_is_incomplete_and_not_refused() {
        let text = "PUT /a HTTP/1.1\r\nHost: localhost\r\nX-Y: z\r\nContent-Length: 0\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(parsed(&text[..end]), Ok(None), "{end}");
        }
        assert!(parsed(text).unwrap().is_some());
    }

    #[test]
    fn the_version_and_the_connection_field_decide_whether_it_stays_open() {
        for (version, fields, keep_alive) in [
            ("1.1", "Host: localhost\r\n", true),
            ("1.1", "Host: localhost\r\nConnection: close\r\n", false),
            ("1.1", "Host: localhost\r\nConnection: keep-alive, CLOSE\r\n", false),
            ("1.1", "Host: localhost\r\nConnection: closed\r\n", true),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
        ] {
            let text = format!("GET / HTTP/{version}\r\n{fields}\r\n");
            assert_eq!(head(&text).keep_alive, keep_alive, "{text}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (expected, fields) in [
            (411, "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
            (411, "Transfer-Encoding: gzip, chunked\r\nContent-Length: 5\r\n"),
            (411, "TRANSFER-ENCODING: identity\r\n"),
            (400, "Content-Length: 5\r\nContent-Length: 6\r\n"),
            (400, "Content-Length: 5\r\ncontent-length: 5\r\n"),
            (400, "Content-Length: 5, 5\r\n"),
            (400, "Content-Length: -1\r\n"),
            (400, "Content-Length: +1\r\n"),
            (400, "Content-Length: 1 1\r\n"),
            (400, "Content-Length: 0x1\r\n"),
            (400, "Content-Length: \r\n"),
            (400, "Content-Length : 1\r\n"),
            (400, "Host: localhost\r\n"),
            (400, "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"),
            (400, " X: folded\r\n"),
            (400, "X: a\nY: b\r\n"),
            (400, "X: a\r\r\n"),
            (400, "X\r\n"),
            (413, "Content-Length: 65537\r\n"),
            (413, "Content-Length: 340282366920938463463374607431768211456\r\n"),
            (417, "Expect: 200-ok\r\n"),
            (403, "Origin: http://evil.example\r\n"),
        ] {
            let text = format!("POST /sessions HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
            assert_eq!(status(&text), expected, "{fields:?}");
        }
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), 400, "no Host");
        assert_eq!(status("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"), 403);
        assert_eq!(
            head("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65536\r\n\r\n").body_length,
            65536
        );
    }

    #[test]
    fn what_can_never_become_a_request_is_refused_before_its_end() {
        assert_eq!(status("GET / HTTP/1.1\n"), 400);
        assert_eq!(status(b"\x16\x03\x01"), 400);
        assert_eq!(status("\r\n\r\n"), 400);
        assert_eq!(status(format!("GET /{}", "x".repeat(MAX_TARGET))), 414);
        assert_eq!(status(format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(16 * 1024))), 431);
        assert_eq!(status(format!("GET / HTTP/1.1\r\n{}", "X: y\r\n".repeat(4_000))), 431);
        let many = "X: y\r\n".repeat(MAX_HEADERS);
        assert_eq!(status(format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n")), 431);
    }

    #[test]
    fn targets_are_paths_in_valid_escapes() {
        for target in [
            "http://localhost/",
            "*",
            "localhost:80",
            "/%",
            "/%4",
            "/%gg",
            "/%ff",
            "/%00",
            "/a#b",
            "/?q=%zz",
            "/ü",
        ] {
            assert_eq!(status(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")), 400, "{target}");
        }
        let path =
            |target: &str| head(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")).request.path;
        assert_eq!(path("/"), [""]);
        assert_eq!(path("/sessions/"), ["sessions", ""]);
        assert_eq!(path("/%2e%2E/+"), ["..", "+"]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = parsed(&bytes);
        }

        /// A head and its beginnings are judged alike: where the packets end must not matter.
        #[test]
        fn what_is_accepted_was_never_refused_before(
            lines in proptest::collection::vec("[A-Za-z-]{1,12}: [ -~]{0,20}", 0..6),
        ) {
            let text = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", lines.iter().map(|line| line.clone() + "\r\n").collect::<String>());
            if let Ok(Some(_)) = parsed(&text) {
                for end in 0..text.len() {
                    proptest::prop_assert_eq!(parsed(&text[..end]), Ok(None));
                }
            }
        }

        #[test]
        fn names_survive_their_encoding(name in "[^\u{0}]{0,20}") {
            let escapes: Vec<String> = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let encoded = escapes.concat();
            proptest::prop_assert_eq!(decode(&encoded, false).map_err(|refusal| refusal.detail), Ok(name));
        }
    }
}
