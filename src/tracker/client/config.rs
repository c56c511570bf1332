//! Options of a client.

use std::collections::BTreeMap;
use std::time::Duration;

use super::SessionClient;
use super::dead_man::DeadMan;
use super::link::parse_server_url;
use crate::error::{Error, Result};
use crate::tracker::AccessToken;
use crate::tracker::api::{DEFAULT_URL, HEARTBEAT_INTERVAL, PURGE_AFTER, is_unspeakable};

/// Heartbeats closer than this would be a flood, and no gain where the tracker parks them.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);
/// The tracker shows a session as stale after two minutes.
const GREATEST_INTERVAL: Duration = Duration::from_secs(3600);
/// The tracker takes no longer names.
const LONGEST_NAME: usize = 1024;
/// A tracker that wants more frequent beats than this gets them no more often, unless the client is
/// quicker by itself.
const LEAST_OBEYED: Duration = Duration::from_secs(1);
/// The tracker takes no longer versions.
const LONGEST_VERSION: usize = 256;
/// A registration with heavier labels would not be taken.
const HEAVIEST_LABELS: usize = 16 * 1024;

/// Options of a [`SessionClient`]; each field has a setter of the same name.
///
/// ```
/// use remuda::ClientConfig;
/// use std::time::Duration;
///
/// let config = ClientConfig::new("my app").user_id("ada").heartbeat_interval(Duration::from_secs(10));
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientConfig {
    /// The app that this tracked session belongs to: what `kill-all` names. Any text that is not
    /// empty, at most 1 024 bytes; spaces, slashes and non-ASCII letters are welcome.
    pub app_name: String,
    /// Whose session it is, in at most 1 024 bytes. Default: not said.
    pub user_id: Option<String>,
    /// The tracker's address: `http://HOST:PORT`, with a path in front of the routes if it is
    /// served under one. No other scheme, no credentials. Default: `http://localhost:8000`.
    pub server_url: String,
    /// Time between two heartbeats (up to a tenth more or less, at random), unless the tracker asks
    /// for another one: it gets any between one second, or this if it is less, and an hour. A tracker that offers
    /// to hold a heartbeat until a kill comes is asked to hold it that long, so that a kill arrives
    /// at once. Keep it well below the tracker's stale threshold (120 s). Default: 30 s.
    pub heartbeat_interval: Duration,
    /// What the tracker shall show beside the session: names and values, together at
    /// most 16 KiB. Default: none.
    pub labels: BTreeMap<String, String>,
    /// The app's version, in at most 256 bytes. Default: not said.
    pub version: Option<String>,
    /// Out of reach of `kill-all`; a kill of this very session must be forced. Default: false.
    pub protected: bool,
    /// What to do when the tracker has been away for [`lost_after`](ClientConfig::lost_after).
    /// Default: [`DeadMan::Continue`].
    pub on_server_lost: DeadMan,
    /// How long the client must have been without an answer, and know itself offline, for
    /// [`on_server_lost`](ClientConfig::on_server_lost). A tracker that hangs is noticed 10 s after
    /// the wait of a parked heartbeat at the latest. Default: 600 s, after which a tracker that runs
    /// gives up a silent session. At least 1 ms.
    pub lost_after: Duration,
    /// What to show a tracker that asks for access tokens: one for an app. Never logged. A tracker that
    /// does not take it counts as away, and is asked again about once a minute. Default: none; the
    /// environment is not read.
    pub token: Option<AccessToken>,
}

impl ClientConfig {
    /// The defaults, for a session of this app.
    pub fn new(app_name: impl Into<String>) -> ClientConfig {
        ClientConfig {
            app_name: app_name.into(),
            user_id: None,
            server_url: DEFAULT_URL.to_owned(),
            heartbeat_interval: HEARTBEAT_INTERVAL,
            labels: BTreeMap::new(),
            version: None,
            protected: false,
            on_server_lost: DeadMan::default(),
            lost_after: PURGE_AFTER,
            token: None,
        }
    }

    /// Starts the client: see [`SessionClient::start`].
    ///
    /// # Errors
    /// As [`SessionClient::start`].
    pub fn start(self) -> Result<SessionClient> {
        SessionClient::start(self)
    }

    /// Sets [`app_name`](ClientConfig::app_name).
    pub fn app_name(mut self, name: impl Into<String>) -> ClientConfig {
        self.app_name = name.into();
        self
    }

    /// Sets [`user_id`](ClientConfig::user_id).
    pub fn user_id(mut self, user: impl Into<String>) -> ClientConfig {
        self.user_id = Some(user.into());
        self
    }

    /// Sets [`server_url`](ClientConfig::server_url).
    pub fn server_url(mut self, url: impl Into<String>) -> ClientConfig {
        self.server_url = url.into();
        self
    }

    /// Sets [`heartbeat_interval`](ClientConfig::heartbeat_interval).
    pub fn heartbeat_interval(mut self, interval: Duration) -> ClientConfig {
        self.heartbeat_interval = interval;
        self
    }

    /// Sets [`labels`](ClientConfig::labels), all of them.
    pub fn labels(mut self, labels: BTreeMap<String, String>) -> ClientConfig {
        self.labels = labels;
        self
    }

    /// Adds one of the [`labels`](ClientConfig::labels).
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> ClientConfig {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Sets [`version`](ClientConfig::version).
    pub fn version(mut self, version: impl Into<String>) -> ClientConfig {
        self.version = Some(version.into());
        self
    }

    /// Sets [`protected`](ClientConfig::protected).
    pub fn protected(mut self, protected: bool) -> ClientConfig {
        self.protected = protected;
        self
    }

    /// Sets [`on_server_lost`](ClientConfig::on_server_lost).
    pub fn on_server_lost(mut self, policy: DeadMan) -> ClientConfig {
        self.on_server_lost = policy;
        self
    }

    /// Sets [`lost_after`](ClientConfig::lost_after).
    pub fn lost_after(mut self, silence: Duration) -> ClientConfig {
        self.lost_after = silence;
        self
    }

    /// Sets [`token`](ClientConfig::token).
    ///
    /// ```
    /// use remuda::{AccessToken, ClientConfig};
    ///
    /// let token = AccessToken::new("7d3e0c1a5b9f4e82")?; // or from_file, or from_env
    /// let config = ClientConfig::new("reports").token(token);
    /// assert!(!format!("{config:?}").contains("7d3e"));
    /// # Ok::<(), remuda::Error>(())
    /// ```
    pub fn token(mut self, token: AccessToken) -> ClientConfig {
        self.token = Some(token);
        self
    }

    /// Whether the options make sense. [`start`](ClientConfig::start) asks, too.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] with the first option that does not.
    pub fn validate(&self) -> Result<()> {
        let too_long =
            |bytes: usize, limit: usize| format!("{bytes} bytes are more than the tracker takes ({limit})");
        if self.app_name.trim().is_empty() {
            return Err(Error::config("app_name", "it is empty; a name is what kill-all asks for"));
        }
        if is_unspeakable(&self.app_name) {
            return Err(Error::config("app_name", "kill-all cannot name it: it contains NUL"));
        }
        if self.app_name.len() > LONGEST_NAME {
            return Err(Error::config("app_name", too_long(self.app_name.len(), LONGEST_NAME)));
        }
        let user = self.user_id.as_ref().map_or(0, String::len);
        if user > LONGEST_NAME {
            return Err(Error::config("user_id", too_long(user, LONGEST_NAME)));
        }
        let labels = self.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        if labels > HEAVIEST_LABELS {
            return Err(Error::config("labels", too_long(labels, HEAVIEST_LABELS)));
        }
        let version = self.version.as_ref().map_or(0, String::len);
        if version > LONGEST_VERSION {
            return Err(Error::config("version", too_long(version, LONGEST_VERSION)));
        }
        if self.lost_after < Duration::from_millis(1) {
            return Err(Error::config(
                "lost_after",
                "no tracker answers before it was asked; 1 ms is the least",
            ));
        }
        if self.heartbeat_interval < LEAST_INTERVAL {
            return Err(Error::config(
                "heartbeat_interval",
                format!(
                    "{:?} would flood the tracker; the least is {LEAST_INTERVAL:?}",
                    self.heartbeat_interval
                ),
            ));
        }
        if self.heartbeat_interval > GREATEST_INTERVAL {
            return Err(Error::config(
                "heartbeat_interval",
                format!(
                    "{:?} is no sign of life; the most is {GREATEST_INTERVAL:?}",
                    self.heartbeat_interval
                ),
            ));
        }
        parse_server_url(&self.server_url).map(drop)
    }

    /// The names of the options in which `other` differs, for the log.
    pub(super) fn differences(&self, other: &ClientConfig) -> Vec<&'static str> {
        [
            ("app_name", self.app_name != other.app_name),
            ("user_id", self.user_id != other.user_id),
            ("server_url", self.server_url != other.server_url),
            ("heartbeat_interval", self.heartbeat_interval != other.heartbeat_interval),
            ("labels", self.labels != other.labels),
            ("version", self.version != other.version),
            ("protected", self.protected != other.protected),
            ("on_server_lost", self.on_server_lost != other.on_server_lost),
            ("lost_after", self.lost_after != other.lost_after),
            ("token", self.token != other.token),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }
}

/// The interval to keep to, when the tracker asks for `wanted` seconds.
pub(super) fn obeyed(wanted: Option<f64>, own: Duration) -> Duration {
    match wanted {
        Some(seconds) if seconds.is_finite() && seconds > 0.0 => Duration::try_from_secs_f64(seconds)
            .unwrap_or(GREATEST_INTERVAL)
            .clamp(own.min(LEAST_OBEYED), GREATEST_INTERVAL),
        _ => own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracker_may_ask_for_another_interval_within_reason() {
        let own = Duration::from_secs(30);
        for nonsense in [None, Some(f64::NAN), Some(f64::INFINITY), Some(-1.0), Some(0.0)] {
            assert_eq!(obeyed(nonsense, own), own);
        }
        assert_eq!(obeyed(Some(5.0), own), Duration::from_secs(5));
        assert_eq!(obeyed(Some(0.001), own), LEAST_OBEYED);
        assert_eq!(obeyed(Some(0.001), Duration::from_millis(20)), Duration::from_millis(20));
        assert_eq!(obeyed(Some(1e300), own), GREATEST_INTERVAL);
    }

    #[test]
    fn the_documented_defaults_are_those_in_effect() {
        let config = ClientConfig::new("app");
        assert_eq!(config.server_url, "http://localhost:8000");
        assert_eq!(config.heartbeat_interval, Duration::from_secs(30));
        assert_eq!((config.user_id, config.labels.len()), (None, 0));
        assert_eq!((config.version, config.protected), (None, false));
        assert_eq!((config.on_server_lost, config.lost_after), (DeadMan::Continue, Duration::from_secs(600)));
    }

    #[test]
    fn an_option_that_makes_no_sense_is_named() {
        let named = |config: ClientConfig| match config.validate() {
            Err(Error::InvalidConfig { option, .. }) => option,
            other => panic!("{other:?}"),
        };
        assert_eq!(named(ClientConfig::new(" ")), "app_name");
        assert_eq!(named(ClientConfig::new("a".repeat(1025))), "app_name");
        assert_eq!(named(ClientConfig::new("a\0b")), "app_name");
        assert_eq!(named(ClientConfig::new("a").user_id("u".repeat(1025))), "user_id");
        assert_eq!(named(ClientConfig::new("a").label("k", "v".repeat(16 * 1024))), "labels");
        assert_eq!(named(ClientConfig::new("a").heartbeat_interval(Duration::ZERO)), "heartbeat_interval");
        assert_eq!(named(ClientConfig::new("a").version("v".repeat(257))), "version");
        assert_eq!(named(ClientConfig::new("a").lost_after(Duration::ZERO)), "lost_after");
        let endless = ClientConfig::new("a").heartbeat_interval(Duration::MAX);
        assert_eq!(named(endless), "heartbeat_interval");
        for url in ["", "localhost:8000", "https://h", "ftp://h", "http://", "http://u:p@h", "http://h/?q"] {
            assert_eq!(named(ClientConfig::new("a").server_url(url)), "server_url", "{url}");
        }
    }

    #[test]
    fn options_that_differ_are_named() {
        let one = ClientConfig::new("a");
        assert!(one.differences(&one).is_empty());
        let other = one.clone().user_id("u").label("k", "v").token(AccessToken::random());
        assert_eq!(one.differences(&other), ["user_id", "labels", "token"]);
    }
}
