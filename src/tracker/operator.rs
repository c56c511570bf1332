//! The other side of a tracker: who looks at what runs and asks it to stop.

mod events;
mod list;
mod pages;
mod past;

use std::fmt;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::{Agent, AsSendBody, http};

pub use self::events::EventFollower;
pub use self::pages::TrackerPages;
use super::api::{
    CleanupResponse, ErrorBody, HTTP_TIMEOUT, KillAllResponse, KillPreview, KillReceipt, KillRequest,
    KillResponse, OrderReply, SessionList, TrackerState, Verb, Whom,
};
use super::client::{authorization, parse_server_url};
use super::{AccessToken, TrackedId, TrackedSession};
use crate::background::shielded;
use crate::cancel::CancelToken;
use crate::clock::Moment;
use crate::{Error, Result};

/// A million sessions fit.
const LONGEST_ANSWER: u64 = 1 << 30;
/// What is read of the reason of a refusal, in characters.
const LONGEST_DETAIL: usize = 1_000;
/// Between two looks at a receipt.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Lists and kills the tracked sessions of a tracker: what `remuda ps` and `remuda kill` stand on.
///
/// Unless they say otherwise, methods are one request and block until the tracker has answered, at
/// most 10 s.
///
/// ```
/// use remuda::{TrackerOperator, TrackerServer};
///
/// let server = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:").start()?;
/// let operator = TrackerOperator::new(format!("http://{}", server.local_addr()))?;
/// let id = server.store().create_session("reports", None)?;
/// assert_eq!(operator.sessions()?.len(), 1);
/// assert!(operator.kill(&id)?);
/// assert_eq!(operator.kill_app("reports")?, 1);
/// # Ok::<(), remuda::Error>(())
/// ```
pub struct TrackerOperator {
    agent: Agent,
    base: String,
    authorization: Option<http::HeaderValue>,
}

impl TrackerOperator {
    /// An operator of the tracker at `server_url`, such as
    /// [`DEFAULT_URL`](super::api::DEFAULT_URL). Connects to nothing yet.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if that is no address of a tracker.
    pub fn new(server_url: impl AsRef<str>) -> Result<TrackerOperator> {
        let base = parse_server_url(server_url.as_ref())?;
        Ok(TrackerOperator { agent: agent(HTTP_TIMEOUT), base, authorization: None })
    }

    /// The same, showing this access token: that of an operator, or of a viewer who only looks. Never
    /// logged.
    pub fn with_token(mut self, token: &AccessToken) -> TrackerOperator {
        self.authorization = authorization(token);
        self
    }

    /// All tracked sessions at once, newest first. Where there may be many,
    /// [`session_pages`](TrackerOperator::session_pages) takes less memory on both sides.
    ///
    /// # Errors
    /// [`Error::Tracker`].
    pub fn sessions(&self) -> Result<Vec<TrackedSession>> {
        let list = self.call::<SessionList>(http::Method::GET, "/sessions")?;
        list.map(|list| list.sessions).ok_or_else(|| self.no_tracker())
    }

    /// Asks a tracked session to stop. False if the tracker does not know it.
    ///
    /// # Errors
    /// [`Error::Tracker`], also if the session is protected.
    pub fn kill(&self, id: &TrackedId) -> Result<bool> {
        let whom = Whom::Session(id.clone());
        Ok(self.kill_with(&whom, &KillRequest::default())?.is_some())
    }

    /// Asks all tracked sessions of an app to stop and returns how many there are.
    ///
    /// # Errors
    /// [`Error::Tracker`].
    pub fn kill_app(&self, app_name: &str) -> Result<u64> {
        let killed = self.kill_with(&Whom::App(app_name.to_owned()), &KillRequest::default())?;
        killed.map(|killed| killed.killed_count).ok_or_else(|| self.no_tracker())
    }

    /// Asks whoever is meant to stop, with all that a [`KillRequest`] can say; its `dry_run` is ignored.
    /// `None` if it is one session and the tracker does not know it. A tracker of another kind gives no
    /// receipts.
    ///
    /// # Errors
    /// [`Error::Tracker`], also if the session is protected and there is no `force`, or the
    /// `generation` is not that of the sessions any more: then nobody is killed.
    pub fn kill_with(&self, whom: &Whom, request: &KillRequest) -> Result<Option<KillAllResponse>> {
        let body = KillRequest { dry_run: false, ..request.clone() };
        let Whom::Session(id) = whom else {
            return self.post::<KillAllResponse>(&ordered(whom, "kill"), Some(&body));
        };
        let killed = self.post::<KillResponse>(&ordered(whom, "kill"), Some(&body))?;
        Ok(killed.map(|killed| KillAllResponse {
            killed_count: 1,
            session_ids: vec![id.clone()],
            receipts: killed.receipt.into_iter().collect(),
            protected: Vec::new(),
        }))
    }

    /// What a kill would hit; nothing is done. `None` if it is one session and the tracker does not
    /// know it.
    ///
    /// # Errors
    /// [`Error::Tracker`]. A tracker of another kind would kill at once: it is asked for its state
    /// first, and this is the error if it has none.
    pub fn preview_kill(&self, whom: &Whom) -> Result<Option<KillPreview>> {
        if self.state()?.is_none() {
            return Err(self.trouble("it knows no previews"));
        }
        let body = KillRequest { dry_run: true, ..KillRequest::default() };
        self.post(&ordered(whom, "kill"), Some(&body))
    }

    /// Has whoever is meant pause, drain, resume, or out of reach of `kill-all`; returns who that is.
    /// `None` if it is one session and the tracker does not know it.
    ///
    /// # Errors
    /// [`Error::Tracker`].
    pub fn order(&self, whom: &Whom, verb: Verb) -> Result<Option<Vec<TrackedId>>> {
        let reply = self.post::<OrderReply>(&ordered(whom, verb.as_str()), None::<&()>)?;
        Ok(reply.map(|reply| reply.session_ids))
    }

    /// The receipt of this number, as far as it is now.
    ///
    /// # Errors
    /// [`Error::Tracker`].
    pub fn receipt(&self, kill_id: u64) -> Result<Option<KillReceipt>> {
        self.call(http::Method::GET, &format!("/kills/{kill_id}"))
    }

    /// Waits until each of these kills is confirmed or expired, at most `timeout` in all, and returns
    /// their receipts as they are then. Asks a few times a second, also while the tracker does not answer:
    /// the kills are on its disk, and it may come back. Blocks.
    ///
    /// # Errors
    /// [`Error::Tracker`], also if it does not answer when `timeout` is over.
    pub fn wait_for_kills(&self, kill_ids: &[u64], timeout: Duration) -> Result<Vec<KillReceipt>> {
        let deadline = Moment::after(timeout);
        let never = CancelToken::new();
        let mut pause = SHORTEST_PAUSE;
        let mut receipts = Vec::new();
        for kill_id in kill_ids {
            loop {
                let receipt = self.receipt(*kill_id);
                let left = deadline.saturating_since(Moment::now());
                match receipt {
                    Err(Error::Tracker { reason, .. }) if is_away(&reason) && !left.is_zero() => {}
                    receipt => {
                        let receipt = receipt?.ok_or_else(|| self.trouble("it has lost a receipt"))?;
                        if receipt.state.is_final() || left.is_zero() {
                            receipts.push(receipt);
                            break;
                        }
                    }
                }
                never.wait_timeout(pause.min(left));
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        Ok(receipts)
    }

    /// How the tracker itself is. `None` if it is one of another kind.
    ///
    /// # Errors
    /// [`Error::Tracker`].
    pub fn state(&self) -> Result<Option<TrackerState>> {
        self.call(http::Method::GET, "/tracker")
    }

    /// Has the tracker move sessions that were silent for `older_than` to its history; returns how
    /// many. The tracker does so by itself after 10 minutes.
    ///
    /// # Errors
    /// [`Error::Tracker`].
    pub fn cleanup_stale(&self, older_than: Duration) -> Result<u64> {
        let path = format!("/sessions/stale?older_than_minutes={}", older_than.as_secs_f64() / 60.0);
        let reply = self.call::<CleanupResponse>(http::Method::DELETE, &path)?;
        reply.map(|reply| reply.deleted_count).ok_or_else(|| self.no_tracker())
    }

    /// `None` stands for 404.
    fn call<T: DeserializeOwned>(&self, method: http::Method, path: &str) -> Result<Option<T>> {
        self.request(method, path, None, HTTP_TIMEOUT)
    }

    /// A POST. Without a body its length is announced all the same, as the HTTP client does not do by
    /// itself.
    fn post<T: DeserializeOwned>(&self, path: &str, body: Option<&impl Serialize>) -> Result<Option<T>> {
        let bytes = body.map_or_else(|| Ok(Vec::new()), serde_json::to_vec);
        let bytes = bytes.map_err(|error| self.trouble(format!("the request cannot be written: {error}")))?;
        self.request(http::Method::POST, path, Some(bytes), HTTP_TIMEOUT)
    }

    fn request<T: DeserializeOwned>(
        &self,
        method: http::Method,
        path: &str,
        body: Option<Vec<u8>>,
        timeout: Duration,
    ) -> Result<Option<T>> {
        // The HTTP client starts a thread to look a name up and panics when it cannot.
        let answer = shielded("a request to the tracker", || self.exchange(method, path, body, timeout));
        let (status, bytes) = match answer {
            Some(Ok(answer)) => answer,
            Some(Err(error)) => return Err(self.trouble(format!("it does not answer: {error}"))),
            None => return Err(self.trouble("the request panicked")),
        };
        match status {
            200 => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| self.trouble(format!("what it answers makes no sense: {error}"))),
            404 => Ok(None),
            _ => {
                let detail = serde_json::from_slice::<ErrorBody>(&bytes).map(|body| body.detail);
                let detail: String = detail.unwrap_or_default().chars().take(LONGEST_DETAIL).collect();
                Err(self.trouble(format!("it answers {status}: {detail}")))
            }
        }
    }

    fn exchange(
        &self,
        method: http::Method,
        path: &str,
        body: Option<Vec<u8>>,
        timeout: Duration,
    ) -> std::result::Result<(u16, Vec<u8>), ureq::Error> {
        let mut request = http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header(http::header::AUTHORIZATION, authorization);
        }
        let mut response = match body {
            Some(body) => self.agent.run(limited(
                &self.agent,
                request.header("content-type", "application/json").body(body)?,
                timeout,
            ))?,
            None => self.agent.run(limited(&self.agent, request.body(())?, timeout))?,
        };
        let bytes = response.body_mut().with_config().limit(LONGEST_ANSWER).read_to_vec()?;
        Ok((response.status().as_u16(), bytes))
    }

    fn no_tracker(&self) -> Error {
        self.trouble("there is a server, but it is no tracker")
    }

    fn trouble(&self, reason: impl Into<String>) -> Error {
        Error::Tracker { url: self.base.clone(), reason: reason.into() }
    }
}

impl fmt::Debug for TrackerOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackerOperator").field("url", &self.base).finish_non_exhaustive()
    }
}

fn agent(connect: Duration) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        // The tracker is near; a proxy from the environment is meant for the web.
        .proxy(None)
        .user_agent(concat!("remuda/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(connect))
        .build()
        .new_agent()
}

/// A request that brings its answer, or fails, within `timeout`.
fn limited<S: AsSendBody>(agent: &Agent, request: http::Request<S>, timeout: Duration) -> http::Request<S> {
    agent.configure_request(request).timeout_global(Some(timeout)).build()
}

/// Whether the tracker ends, begins or cannot be reached.
fn is_away(reason: &str) -> bool {
    ["it does not answer", "it answers 503"].iter().any(|beginning| reason.starts_with(beginning))
}

/// The path that asks this of whoever is meant.
fn ordered(whom: &Whom, verb: &str) -> String {
    match whom {
        Whom::Session(id) => format!("/sessions/{}/{verb}", encoded(id.as_str())),
        Whom::App(name) => format!("/apps/{}/{verb}-all", encoded(name)),
        Whom::Label { key, value } => format!("/labels/{}/{}/{verb}-all", encoded(key), encoded(value)),
    }
}

/// A name as one part of a path, or the value of a parameter.
fn encoded(name: &str) -> String {
    let mut part = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            part.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(part, "%{byte:02X}");
        }
    }
    part
}

/// The parameters of a list, without those that say nothing.
fn parameters<const N: usize>(limit: usize, named: [(&str, Option<String>); N]) -> String {
    let named = named.into_iter().filter_map(|(name, value)| Some(format!("&{name}={}", encoded(&value?))));
    format!("limit={limit}{}", named.collect::<String>())
}
