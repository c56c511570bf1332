//! Which requests a server on loopback refuses because of where they come from.
//!
//! A page of another origin can make a browser send requests to this machine, and with DNS
//! rebinding even read the answers. So the `Host` must name this machine, and an `Origin`, which
//! browsers send with everything that changes something, must be the server's own. Programs send
//! no `Origin` and are let through.

use std::net::{IpAddr, Ipv6Addr};

use super::parse::Refusal;

/// The header fields that tell where a request comes from.
pub(super) struct Guard<'a> {
    pub(super) host: Option<&'a [u8]>,
    pub(super) origin: Option<&'a [u8]>,
}

impl Guard<'_> {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let host = self.host.map(text).transpose()?;
        if let Some(host) = host
            && !names_this_machine(host)
        {
            return Err(Refusal::new(
                403,
                "this tracker answers on loopback names only: the Host is foreign",
            ));
        }
        let Some(origin) = self.origin.map(text).transpose()? else { return Ok(()) };
        let own = origin.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"))
            && host.is_some_and(|host| same_authority(&origin[7..], host));
        if own { Ok(()) } else { Err(Refusal::new(403, "requests of a page of another origin are refused")) }
    }
}

fn text(value: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(value).map_err(|_| Refusal::new(400, "Host or Origin is not text"))
}

/// Name and port, the port left out counting as 80.
fn split(authority: &str) -> Option<(&str, u16)> {
    let (name, port) = match authority.rfind(':') {
        Some(at) if !authority[at..].contains(']') => (&authority[..at], &authority[at + 1..]),
        _ => (authority, "80"),
    };
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| port.parse().ok()).flatten().map(|port| (name, port))
}

fn same_authority(one: &str, other: &str) -> bool {
    match (split(one), split(other)) {
        (Some((name, port)), Some((other, other_port))) => {
            name.eq_ignore_ascii_case(other) && port == other_port
        }
        _ => false,
    }
}

/// `localhost`, a name below it, or a loopback address. Any port, because tunnels change it.
fn names_this_machine(host: &str) -> bool {
    let Some((name, _)) = split(host) else { return false };
    if let Some(literal) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return literal.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback());
    }
    let name = name.to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4() && address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(host: &str, origin: Option<&str>) -> bool {
        Guard { host: Some(host.as_bytes()), origin: origin.map(str::as_bytes) }.check().is_ok()
    }

    #[test]
    fn names_of_this_machine_are_allowed_with_any_port() {
        for host in
            ["localhost", "LocalHost:8000", "127.0.0.1:9", "127.1.2.3", "[::1]", "[::1]:8000", "a.localhost"]
        {
            assert!(allowed(host, None), "{host}");
        }
    }

    #[test]
    fn foreign_hosts_are_refused() {
        for host in [
            "",
            "example.org",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "10.0.0.1:8000",
            "localhost:",
            "localhost:x",
            "evil@localhost",
            "localhost:99999",
            "[::2]",
            "::1",
            "0.0.0.0",
            "notlocalhost",
        ] {
            assert!(!allowed(host, None), "{host}");
        }
    }

    #[test]
    fn only_the_own_origin_is_let_through() {
        assert!(allowed("localhost:8000", Some("http://localhost:8000")));
        assert!(allowed("localhost", Some("http://LOCALHOST:80")));
        assert!(allowed("[::1]:8000", Some("http://[::1]:8000")));
        for origin in [
            "null",
            "",
            "http://localhost:3000",
            "https://localhost:8000",
            "http://127.0.0.1:8000",
            "http://evil",
            "é",
        ] {
            assert!(!allowed("localhost:8000", Some(origin)), "{origin}");
        }
    }

    #[test]
    fn an_origin_without_a_host_is_refused() {
        assert!(Guard { host: None, origin: Some(b"http://localhost") }.check().is_err());
        assert!(Guard { host: None, origin: None }.check().is_ok());
    }
}
