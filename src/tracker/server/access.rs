//! Who asks, and whether he may: the table's [`Access`] held against the token of a request.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use super::replies::{FORBIDDEN, UNAUTHORIZED};
use super::routing::{Access, Endpoint};
use super::tokens::{Token, Tokens};
use crate::clock::Moment;
use crate::sync::Mutex;
use crate::tracker::api::Role;
use crate::tracker::http::{Method, Request, Response};

/// A source of refused requests is told of once in this time.
const QUIET: Duration = Duration::from_secs(60);
/// More sources than this at a time are told of as one.
const MOST_SOURCES: usize = 1_000;

/// Lets requests through, or not.
pub(super) struct Door {
    /// Without tokens everybody may ask for everything: the server is on loopback then.
    tokens: Option<Tokens>,
    refused: Mutex<Refused>,
}

/// Who asks, as far as it is known.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// Nothing if there are no tokens, or none is needed.
    pub(super) role: Option<Role>,
    pub(super) name: Option<Arc<str>>,
    pub(super) address: IpAddr,
}

/// A request that is refused.
pub(super) struct Denied {
    pub(super) response: Response,
    /// Who asked, if he is known and this is to be told: once in a while for each.
    pub(super) to_tell: Option<Caller>,
}

impl Caller {
    /// To whom belongs what it registers, and what it may touch nothing else than. Nobody, and
    /// everything, for those who are no apps.
    pub(super) fn owner(&self) -> Option<&str> {
        self.name.as_deref().filter(|_| self.role == Some(Role::App))
    }
}

impl Access {
    /// Whether this role is enough.
    fn admits(self, role: Role) -> bool {
        match self {
            Access::Everybody => true,
            Access::App => matches!(role, Role::App | Role::Operator),
            Access::Viewer => matches!(role, Role::Viewer | Role::Operator),
            Access::Operator => role == Role::Operator,
        }
    }
}

impl Door {
    pub(super) fn new(tokens: Option<Tokens>) -> Door {
        Door { tokens, refused: Mutex::default() }
    }

    /// Who asks, if he may ask for this. Does not block; costs a comparison with each token.
    pub(super) fn admit(&self, endpoint: &Endpoint, request: &Request) -> Result<Caller, Denied> {
        let stranger = Caller { role: None, name: None, address: request.peer };
        let Some(tokens) = self.tokens.as_ref().filter(|_| endpoint.access != Access::Everybody) else {
            return Ok(stranger);
        };
        let given = request.token.as_ref();
        let Some(Token { role, name, .. }) = given.and_then(|given| tokens.find(given.bytes())) else {
            let came_with = if given.is_some() { "an unknown access token" } else { "no access token" };
            self.tell(&stranger, endpoint, came_with);
            return Err(Denied { response: UNAUTHORIZED, to_tell: None });
        };
        let caller = Caller { role: Some(*role), name: name.clone(), ..stranger };
        if endpoint.access.admits(*role) {
            return Ok(caller);
        }
        let is_told = self.tell(&caller, endpoint, "an access token that is not for this");
        Err(Denied { response: FORBIDDEN, to_tell: is_told.then_some(caller) })
    }

    /// Whether it comes with a token, if there are any.
    pub(super) fn knows(&self, request: &Request) -> bool {
        let Some(tokens) = &self.tokens else { return true };
        request.token.as_ref().is_some_and(|given| tokens.find(given.bytes()).is_some())
    }

    /// Tells of a refused request, unless one of the same caller was told of a short time ago.
    fn tell(&self, caller: &Caller, endpoint: &Endpoint, came_with: &str) -> bool {
        let address = caller.address;
        let source = Source {
            address,
            role: caller.role,
            name: caller.name.clone(),
            changes: endpoint.access == Access::Operator && endpoint.method != Method::Get,
        };
        let untold = self.refused.lock().note(source, Moment::now());
        let Some(untold) = untold else { return false };
        let before = match untold {
            0 => String::new(),
            _ => format!(", after {untold} that were not told of"),
        };
        let name = caller.name.as_deref().unwrap_or("-");
        log::warn!(
            address = address.to_string().as_str(), token = name;
            "a request from {address} is refused: it came with {came_with} (name: {name}){before}"
        );
        true
    }
}

/// Refused requests: for each source when it was told of, and how many came since.
#[derive(Default)]
struct Refused {
    sources: HashMap<Source, (Moment, u64)>,
}

/// From where a refused request came, and of which kind it was.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Source {
    address: IpAddr,
    /// Those of the token, if it is known.
    role: Option<Role>,
    name: Option<Arc<str>>,
    /// It would have changed something that is an operator's: what is harmless must not keep that from
    /// being told.
    changes: bool,
}

impl Source {
    /// Stands for all sources of this kind, once there are too many.
    fn others(self) -> Source {
        Source { address: Ipv4Addr::UNSPECIFIED.into(), name: None, ..self }
    }
}

impl Refused {
    /// Notes one; if it is to be told, returns how many before it were not.
    fn note(&mut self, source: Source, now: Moment) -> Option<u64> {
        let source = if self.has_room(&source, now) { source } else { source.others() };
        let (told, since) = self.sources.entry(source).or_insert((Moment::LONG_AGO, 0));
        if *told != Moment::LONG_AGO && now.saturating_since(*told) < QUIET {
            *since += 1;
            return None;
        }
        *told = now;
        Some(std::mem::take(since))
    }

    fn has_room(&mut self, source: &Source, now: Moment) -> bool {
        if self.sources.len() >= MOST_SOURCES && !self.sources.contains_key(source) {
            self.sources.retain(|_, (told, _)| now.saturating_since(*told) < QUIET);
        }
        self.sources.len() < MOST_SOURCES || self.sources.contains_key(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::LONG_AGO + Duration::from_secs(10_000 + seconds)
    }

    fn source(number: u16) -> Source {
        let [high, low] = number.to_be_bytes();
        Source { address: IpAddr::from([10, 0, high, low]), role: None, name: None, changes: false }
    }

    #[test]
    fn a_source_is_told_of_once_a_minute() {
        let mut refused = Refused::default();
        assert_eq!(refused.note(source(1), at(0)), Some(0));
        assert_eq!(refused.note(source(1), at(1)), None);
        assert_eq!(refused.note(source(1), at(59)), None);
        assert_eq!(refused.note(source(2), at(59)), Some(0));
        for apart in [
            Source { name: Some("a".into()), ..source(1) },
            Source { role: Some(Role::Viewer), ..source(1) },
            Source { changes: true, ..source(1) },
        ] {
            assert_eq!(refused.note(apart.clone(), at(59)), Some(0), "{apart:?}");
            assert_eq!(refused.note(apart.clone(), at(60)), None, "{apart:?}");
        }
        assert_eq!(refused.note(source(1), at(60)), Some(2));
        assert_eq!(refused.note(source(1), at(61)), None);
    }

    #[test]
    fn many_sources_take_little_room() {
        let mut refused = Refused::default();
        let told = (0..10_000).filter(|number| refused.note(source(*number), at(0)).is_some()).count();
        assert_eq!((told, refused.sources.len()), (MOST_SOURCES + 1, MOST_SOURCES + 1));
        let of_a_kind = Source { role: Some(Role::App), changes: true, ..source(1) };
        assert_eq!(refused.note(of_a_kind, at(0)), Some(0), "strangers do not hide those who are known");
        assert_eq!(refused.note(source(9_999), at(60)), Some(0), "the old ones are forgotten");
        assert_eq!(refused.sources.len(), 1);
    }

    #[test]
    fn an_operator_may_do_everything_and_a_viewer_nothing_of_an_app() {
        let may = |role: Role| {
            [Access::Everybody, Access::App, Access::Viewer, Access::Operator]
                .map(|access| access.admits(role))
        };
        assert_eq!(may(Role::App), [true, true, false, false]);
        assert_eq!(may(Role::Viewer), [true, false, true, false]);
        assert_eq!(may(Role::Operator), [true; 4]);
    }
}
