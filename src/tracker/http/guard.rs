//! Which requests a server refuses because of where they come from.
//!
//! A page of another origin can make a browser send requests to this machine, and with DNS
//! rebinding even read the answers. So the `Host` must be a name of this server, and an `Origin`, which
//! browsers send with everything that changes something, must be the server's own. Programs send
//! no `Origin` and are let through.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use super::parse::Refusal;

/// The names that a request may be addressed to: those of loopback, and these. Any port, because
/// tunnels and proxies change it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts {
    /// In lower case.
    pub(crate) names: Arc<[String]>,
    /// Any address as well. Whoever has a browser ask for an address needs no name that he could bind to
    /// another one.
    pub(crate) addresses: bool,
}

impl Hosts {
    fn have(&self, host: &str) -> bool {
        let Some((name, _)) = split(host, 80) else { return false };
        if let Some(address) = address(name) {
            return self.addresses || address.is_loopback() || self.names(name);
        }
        let local = name.len() >= 9 && name.as_bytes()[name.len() - 9..].eq_ignore_ascii_case(b"localhost");
        (local && (name.len() == 9 || name.as_bytes()[name.len() - 10] == b'.')) || self.names(name)
    }

    fn names(&self, name: &str) -> bool {
        self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// The address that stands for itself in a `Host`.
fn address(name: &str) -> Option<IpAddr> {
    match name.strip_prefix('[') {
        Some(rest) => Some(rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.to_canonical()),
        None => name.parse().ok().filter(IpAddr::is_ipv4),
    }
}

/// The header fields that tell where a request comes from.
pub(super) struct Guard<'a> {
    pub(super) host: Option<&'a [u8]>,
    pub(super) origin: Option<&'a [u8]>,
}

impl Guard<'_> {
    pub(super) fn check(&self, hosts: &Hosts) -> Result<(), Refusal> {
        let host = self.host.map(text).transpose()?;
        if let Some(host) = host
            && !hosts.have(host)
        {
            return Err(Refusal::new(
                403,
                "the Host is foreign: this tracker does not answer under that name",
            ));
        }
        let Some(origin) = self.origin.map(text).transpose()? else { return Ok(()) };
        if host.is_some_and(|host| is_own(origin, host, hosts)) {
            Ok(())
        } else {
            Err(Refusal::new(403, "requests of a page of another origin are refused"))
        }
    }
}

/// Whether a page of this origin came from this server: the same name and port. Under a name that was
/// allowed a proxy with TLS may stand in front, and then the port of none is 443.
fn is_own(origin: &str, host: &str, hosts: &Hosts) -> bool {
    let behind = |scheme: &str| {
        let found = origin.get(..scheme.len()).filter(|found| found.eq_ignore_ascii_case(scheme));
        found.map(|_| &origin[scheme.len()..])
    };
    if let Some(authority) = behind("http://") {
        return same_authority(authority, host, 80);
    }
    let allowed = split(host, 443).is_some_and(|(name, _)| hosts.names(name));
    allowed && behind("https://").is_some_and(|authority| same_authority(authority, host, 443))
}

fn text(value: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(value).map_err(|_| Refusal::new(400, "Host or Origin is not text"))
}

/// Name and port; `usual` is the port if none is named.
fn split(authority: &str, usual: u16) -> Option<(&str, u16)> {
    let (name, port) = match authority.rfind(':') {
        Some(at) if !authority[at..].contains(']') => (&authority[..at], &authority[at + 1..]),
        _ => return Some((authority, usual)),
    };
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| port.parse().ok()).flatten().map(|port| (name, port))
}

fn same_authority(one: &str, other: &str, usual: u16) -> bool {
    match (split(one, usual), split(other, usual)) {
        (Some((name, port)), Some((other, other_port))) => {
            name.eq_ignore_ascii_case(other) && port == other_port
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed_by(hosts: &Hosts, host: &str, origin: Option<&str>) -> bool {
        Guard { host: Some(host.as_bytes()), origin: origin.map(str::as_bytes) }.check(hosts).is_ok()
    }

    fn allowed(host: &str, origin: Option<&str>) -> bool {
        allowed_by(&Hosts::default(), host, origin)
    }

    fn public() -> Hosts {
        Hosts { names: ["tracker.example.org".to_owned(), "10.0.0.7".to_owned()].into(), addresses: false }
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
            "localhost.",
            "[::1",
            "[::1]x",
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
        let hosts = Hosts::default();
        assert!(Guard { host: None, origin: Some(b"http://localhost") }.check(&hosts).is_err());
        assert!(Guard { host: None, origin: None }.check(&hosts).is_ok());
    }

    #[test]
    fn names_that_were_allowed_are_allowed_beside_those_of_loopback() {
        let hosts = public();
        for host in ["tracker.example.org", "TRACKER.example.org:8443", "10.0.0.7:80", "localhost:1", "[::1]"]
        {
            assert!(allowed_by(&hosts, host, None), "{host}");
        }
        for host in ["example.org", "x.tracker.example.org", "tracker.example.org.evil", "10.0.0.8"] {
            assert!(!allowed_by(&hosts, host, None), "{host}");
        }
    }

    #[test]
    fn addresses_are_names_of_a_server_that_is_not_on_loopback_only() {
        let hosts = Hosts { addresses: true, ..Hosts::default() };
        for host in ["10.0.0.7:8000", "[2001:db8::1]:8000", "[::ffff:10.0.0.7]", "127.0.0.1"] {
            assert!(allowed_by(&hosts, host, None), "{host}");
        }
        for host in ["evil.example", "10.0.0.7.evil.example", "10.0.0.256", "2001:db8::1", "0x7f.1"] {
            assert!(!allowed_by(&hosts, host, None), "{host}");
        }
        assert!(allowed_by(&hosts, "10.0.0.7:8000", Some("http://10.0.0.7:8000")));
        assert!(!allowed_by(&hosts, "10.0.0.7:8000", Some("https://10.0.0.7:8000")));
    }

    #[test]
    fn a_proxy_with_tls_may_stand_in_front_of_a_name_that_was_allowed() {
        let hosts = public();
        for (host, origin, own) in [
            ("tracker.example.org", "https://tracker.example.org", true),
            ("tracker.example.org", "https://Tracker.Example.org:443", true),
            ("tracker.example.org:443", "https://tracker.example.org", true),
            ("tracker.example.org:8443", "https://tracker.example.org:8443", true),
            ("tracker.example.org", "http://tracker.example.org", true),
            ("tracker.example.org", "https://tracker.example.org:8443", false),
            ("tracker.example.org", "https://evil.example", false),
            ("tracker.example.org", "https://tracker.example.org.evil", false),
            ("tracker.example.org", "ftp://tracker.example.org", false),
            ("tracker.example.org", "https://localhost", false),
            ("localhost:8000", "https://localhost:8000", false),
            ("localhost:8000", "https://tracker.example.org", false),
        ] {
            assert_eq!(allowed_by(&hosts, host, Some(origin)), own, "{host} {origin}");
        }
    }
}
