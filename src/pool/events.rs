//! What happens in a pool, told twice: in the log with key-values, and to a listener of the user's.
//!
//! Both come from one place, [`Core::emit`], which is called without the pool's lock. The listener
//! runs on a thread of its own (`remuda-events`) behind a bounded queue: however slow it is, and
//! whatever it does, the pool does not wait for it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};
use serde::Serialize;

use super::core::Core;
use super::state::Removal;
use crate::background::shielded;
use crate::histogram::seconds;
use crate::named::show_by_name;
use crate::session::{PostMortem, SessionId};

/// The name of the listener's thread.
pub(super) const NAME: &str = "remuda-events";
/// The target of all log lines of a pool.
pub(super) const TARGET: &str = "remuda::pool";
/// Events that may wait for the listener; more are dropped and counted.
const QUEUE: usize = 1024;

/// Something that happened in a pool, for its [`listener`](crate::PoolConfig::listener). In JSON it
/// is an object with its name in `event`; times are seconds.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PoolEvent {
    /// A session became ready. Comes before anything else about this session.
    #[non_exhaustive]
    Created {
        /// Its number.
        session: SessionId,
        /// Its process.
        pid: u32,
        /// How long the start took, warm-up included.
        #[serde(serialize_with = "seconds")]
        time: Duration,
        /// How it was started.
        way: StartWay,
        /// What for.
        cause: StartCause,
    },
    /// A session begins to leave because it is old enough; a new one is on order.
    #[non_exhaustive]
    Recycled {
        /// Its number.
        session: SessionId,
        /// Its process.
        pid: u32,
        /// Executions, age, memory, or `recycle_all`.
        reason: Removal,
    },
    /// A session begins to leave because it is dead or unusable; a new one is on order.
    #[non_exhaustive]
    Restarted {
        /// Its number.
        session: SessionId,
        /// Its process.
        pid: u32,
        /// What was wrong.
        reason: Removal,
    },
    /// Its user had a session go back to a checkpoint: it has a new process.
    #[non_exhaustive]
    Restored {
        /// Its number.
        session: SessionId,
        /// Its new process.
        pid: u32,
    },
    /// The process of a session that left is gone and reaped. Comes after anything else about this
    /// session.
    #[non_exhaustive]
    Removed {
        /// Its number.
        session: SessionId,
        /// Its process.
        pid: u32,
        /// Why it left.
        reason: Removal,
        /// From the decision to the end of the process.
        #[serde(serialize_with = "seconds")]
        time: Duration,
        /// How it ended.
        post_mortem: Box<PostMortem>,
    },
    /// A session could not be started.
    #[non_exhaustive]
    StartFailed {
        /// The error.
        cause: String,
        /// How long it took to fail.
        #[serde(serialize_with = "seconds")]
        time: Duration,
    },
    /// A batch of starts failed whole, or what starts bring is no good: no start before the back-off has
    /// passed.
    #[non_exhaustive]
    BreakerOpened {
        /// Such batches one after the other.
        failures: u32,
        /// The back-off.
        #[serde(serialize_with = "seconds")]
        retry_in: Duration,
        /// The error of the last start.
        cause: String,
    },
    /// The back-off has passed: one start is tried, alone.
    BreakerHalfOpen,
    /// A start brought a session again.
    BreakerClosed,
    /// A caller got no session in its time. Not told of callers that try once.
    #[non_exhaustive]
    AcquireTimedOut {
        /// How long it waited.
        #[serde(serialize_with = "seconds")]
        waited: Duration,
        /// How many stood in front of it in the end.
        ahead: usize,
    },
    /// A caller was refused.
    #[non_exhaustive]
    Refused {
        /// Why.
        reason: RefusalReason,
    },
    /// A session has been held for longer than [`leak_after`](crate::PoolConfig::leak_after).
    /// Told once for each lease.
    #[non_exhaustive]
    LeakSuspected {
        /// Its number.
        session: SessionId,
        /// Its process.
        pid: u32,
        /// For how long.
        #[serde(serialize_with = "seconds")]
        held: Duration,
        /// Who holds it: thread, place in the source, tenant and label, as far as known.
        holder: String,
    },
    /// The pool hands out nothing until it is resumed.
    Paused,
    /// The pool hands out sessions again.
    Resumed,
    /// The pool has new bounds.
    #[non_exhaustive]
    Resized {
        /// The new watermark.
        min_idle: usize,
        /// The new limit.
        max_sessions: usize,
    },
    /// All sessions are to be replaced, one after the other: see
    /// [`recycle_all`](crate::SessionPool::recycle_all).
    #[non_exhaustive]
    Outdated {
        /// How many.
        sessions: usize,
    },
    /// Nobody holds a session any more, as [`drain`](crate::SessionPool::drain) asked for.
    Drained,
    /// The pool is closed: nobody gets a session any more.
    Closed,
    /// A health pass sent sessions away.
    #[non_exhaustive]
    HealthPass {
        /// How many.
        removed: usize,
    },
    /// A session could not be started at one of the [`placements`](crate::PoolConfig::placements), where the last one
    /// could: others take its part.
    #[non_exhaustive]
    PlacementFailed {
        /// Its name.
        placement: String,
        /// Why.
        cause: String,
    },
    /// Sessions start again at a placement.
    #[non_exhaustive]
    PlacementRecovered {
        /// Its name.
        placement: String,
    },
    /// A template process is ready: sessions are forked from it.
    #[non_exhaustive]
    TemplateStarted {
        /// The process.
        pid: u32,
    },
    /// A session was started cold although a template was asked for. Told once for each cause.
    #[non_exhaustive]
    TemplateFellBack {
        /// Why.
        cause: String,
    },
}

/// How a session was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StartWay {
    /// As a process of its own.
    Cold,
    /// Forked from a template.
    Template,
}

impl StartWay {
    /// Its name in JSON and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            StartWay::Cold => "cold",
            StartWay::Template => "template",
        }
    }
}

/// What a session was started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StartCause {
    /// Somebody waited for it when it became ready.
    Demand,
    /// Nobody did: for the watermark.
    Warmup,
}

impl StartCause {
    /// Its name in JSON and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            StartCause::Demand => "demand",
            StartCause::Warmup => "warmup",
        }
    }
}

/// Why a caller was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RefusalReason {
    /// The pool was closed while it waited.
    Closed,
    /// As many callers as allowed wait already.
    TooManyWaiters,
    /// No session is alive and none can be started.
    StartFailing,
    /// The quota of its tenant is used up.
    Quota,
    /// Its thread already holds a session of this pool.
    Nested,
}

impl RefusalReason {
    /// Each reason, at the place of its number.
    pub(crate) const ALL: [RefusalReason; 5] = [
        RefusalReason::Closed,
        RefusalReason::TooManyWaiters,
        RefusalReason::StartFailing,
        RefusalReason::Quota,
        RefusalReason::Nested,
    ];

    /// Its name in JSON, in metrics and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            RefusalReason::Closed => "closed",
            RefusalReason::TooManyWaiters => "too_many_waiters",
            RefusalReason::StartFailing => "start_failing",
            RefusalReason::Quota => "quota",
            RefusalReason::Nested => "nested",
        }
    }
}

show_by_name!(StartWay, StartCause, RefusalReason);

impl PoolEvent {
    /// One log line: a constant message, everything else in key-values. `warn` is for what an
    /// operator should look at, once for each change of state.
    fn log(&self, pool: &str) {
        match self {
            PoolEvent::Created { session, pid, time, way, cause } => {
                let (elapsed_ms, way, cause) = (milliseconds(*time), way.as_str(), cause.as_str());
                log::info!(
                    target: TARGET,
                    pool, session = session.number(), pid, elapsed_ms, way, cause;
                    "session created"
                );
            }
            PoolEvent::Recycled { session, pid, reason } => {
                let (session, reason) = (session.number(), reason.as_str());
                log::info!(target: TARGET, pool, session, pid, reason; "session recycled");
            }
            PoolEvent::Restarted { session, pid, reason } => {
                let (session, reason) = (session.number(), reason.as_str());
                log::info!(target: TARGET, pool, session, pid, reason; "session restarted");
            }
            PoolEvent::Restored { session, pid } => {
                log::info!(target: TARGET, pool, session = session.number(), pid; "session restored");
            }
            PoolEvent::Removed { session, pid, reason, time, post_mortem } => {
                let (session, reason, exit) =
                    (session.number(), reason.as_str(), post_mortem.exit.to_string());
                let elapsed_ms = milliseconds(*time);
                log::info!(
                    target: TARGET, pool, session, pid, reason, elapsed_ms, exit = exit.as_str();
                    "session removed"
                );
            }
            PoolEvent::StartFailed { cause, time } => {
                let elapsed_ms = milliseconds(*time);
                log::info!(
                    target: TARGET, pool, elapsed_ms, reason = cause.as_str();
                    "a session could not be started"
                );
            }
            PoolEvent::BreakerOpened { failures, retry_in, cause } => {
                // The first says all; the following attempts fail as expected.
                let level = if *failures == 1 { log::Level::Warn } else { log::Level::Debug };
                let retry_ms = milliseconds(*retry_in);
                log::log!(
                    target: TARGET, level, pool, failures, retry_ms, reason = cause.as_str();
                    "sessions cannot be started"
                );
            }
            PoolEvent::BreakerHalfOpen => {
                log::debug!(target: TARGET, pool; "trying to start a session again");
            }
            PoolEvent::BreakerClosed => log::info!(target: TARGET, pool; "sessions can be started again"),
            PoolEvent::AcquireTimedOut { waited, ahead } => {
                let elapsed_ms = milliseconds(*waited);
                log::debug!(target: TARGET, pool, elapsed_ms, ahead; "acquire timed out");
            }
            PoolEvent::Refused { reason } => {
                log::debug!(target: TARGET, pool, reason = reason.as_str(); "acquire refused");
            }
            PoolEvent::LeakSuspected { session, pid, held, holder } => {
                let (session, elapsed_ms) = (session.number(), milliseconds(*held));
                log::warn!(
                    target: TARGET, pool, session, pid, elapsed_ms, holder = holder.as_str();
                    "session held for too long"
                );
            }
            PoolEvent::Paused => log::info!(target: TARGET, pool; "pool paused"),
            PoolEvent::Resumed => log::info!(target: TARGET, pool; "pool resumed"),
            PoolEvent::Resized { min_idle, max_sessions } => {
                log::info!(target: TARGET, pool, min_idle, max_sessions; "pool resized");
            }
            PoolEvent::Outdated { sessions } => {
                log::info!(target: TARGET, pool, sessions; "all sessions are to be replaced");
            }
            PoolEvent::Drained => log::info!(target: TARGET, pool; "pool drained"),
            PoolEvent::Closed => log::info!(target: TARGET, pool; "pool closed"),
            PoolEvent::HealthPass { removed } => {
                log::info!(target: TARGET, pool, removed; "health pass removed sessions");
            }
            PoolEvent::PlacementFailed { placement, cause } => {
                let (placement, reason) = (placement.as_str(), cause.as_str());
                log::warn!(target: TARGET, pool, placement, reason; "no sessions start at a placement");
            }
            PoolEvent::PlacementRecovered { placement } => {
                let placement = placement.as_str();
                log::info!(target: TARGET, pool, placement; "sessions start again at a placement");
            }
            // The template itself has said so, louder, but does not know the pool.
            PoolEvent::TemplateStarted { pid } => log::debug!(target: TARGET, pool, pid; "template started"),
            PoolEvent::TemplateFellBack { cause } => {
                log::debug!(target: TARGET, pool, reason = cause.as_str(); "a session started without the template");
            }
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// A function that hears of each [`PoolEvent`]: see [`PoolConfig::listener`](crate::PoolConfig::listener).
#[derive(Clone)]
pub struct Listener(Arc<dyn Fn(&PoolEvent) + Send + Sync>);

impl Listener {
    /// Wraps a function.
    pub fn new(hear: impl Fn(&PoolEvent) + Send + Sync + 'static) -> Listener {
        Listener(Arc::new(hear))
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

/// The way of a pool's events to its listener.
pub(super) struct Outlet {
    queue: Option<Queue>,
    /// Events that the listener never heard of.
    dropped: AtomicU64,
}

struct Queue {
    listener: Listener,
    sender: Sender<PoolEvent>,
    receiver: Receiver<PoolEvent>,
    /// Holds one message once the thread is to hear what is queued and end. The message stays, so
    /// it is never missed.
    stop: Sender<()>,
    stopped: Receiver<()>,
    ended: AtomicBool,
    /// Whether the last event was dropped: that is logged once, until one gets through.
    losing: AtomicBool,
}

impl Outlet {
    pub(super) fn new(listener: Option<&Listener>) -> Outlet {
        let queue = listener.map(|listener| {
            let ((sender, receiver), (stop, stopped)) = (bounded(QUEUE), bounded(1));
            let (ended, losing) = (AtomicBool::new(false), AtomicBool::new(false));
            Queue { listener: listener.clone(), sender, receiver, stop, stopped, ended, losing }
        });
        Outlet { queue, dropped: AtomicU64::new(0) }
    }

    pub(super) fn has_listener(&self) -> bool {
        self.queue.is_some()
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Queues an event; neither waits nor logs. Whether the log is to say now that events are dropped.
    pub(super) fn put(&self, event: PoolEvent) -> bool {
        let Some(queue) = &self.queue else { return false };
        let ended = queue.ended.load(Ordering::SeqCst);
        if !ended {
            match queue.sender.try_send(event) {
                Ok(()) => {
                    queue.losing.store(false, Ordering::Relaxed);
                    return false;
                }
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
        }
        self.dropped.fetch_add(1, Ordering::Relaxed);
        !ended && !queue.losing.swap(true, Ordering::Relaxed)
    }

    /// Has the thread end once it has told the listener what is queued. What comes later is dropped.
    pub(super) fn finish(&self) {
        if let Some(queue) = &self.queue {
            queue.ended.store(true, Ordering::SeqCst);
            let _ = queue.stop.try_send(());
        }
    }
}

impl Core {
    /// Logs an event and tells the listener. Not under the pool's lock.
    pub(super) fn emit(&self, event: PoolEvent) {
        let pool = &self.config.name;
        event.log(pool);
        let losing = self.outlet.put(event);
        complain(losing, pool);
    }

    /// Logs that the pool is closed, which is queued for the listener already.
    pub(super) fn log_closed(&self, losing: bool) {
        let pool = &self.config.name;
        PoolEvent::Closed.log(pool);
        complain(losing, pool);
    }
}

fn complain(losing: bool, pool: &str) {
    if losing {
        log::warn!(target: TARGET, pool; "the listener is too slow: events are dropped");
    }
}

/// The listener's thread.
pub(super) fn run(core: &Arc<Core>) {
    let Some(queue) = &core.outlet.queue else { return };
    let hear = |event: &PoolEvent| {
        shielded("the listener of a pool", || (queue.listener.0)(event));
    };
    loop {
        select! {
            recv(queue.receiver) -> event => match event {
                Ok(event) => hear(&event),
                Err(_) => return,
            },
            recv(queue.stopped) -> _ => {
                queue.receiver.try_iter().for_each(|event| hear(&event));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_an_object_with_its_name_in_json() {
        let event = PoolEvent::Created {
            session: SessionId(7),
            pid: 11,
            time: Duration::from_millis(1_500),
            way: StartWay::Cold,
            cause: StartCause::Warmup,
        };
        let json = serde_json::json!({
            "event": "created", "session": 7, "pid": 11, "time": 1.5, "way": "cold", "cause": "warmup",
        });
        assert_eq!(serde_json::to_value(event).expect("fit for JSON"), json);
        assert_eq!(
            serde_json::json!(PoolEvent::BreakerHalfOpen),
            serde_json::json!({"event": "breaker_half_open"})
        );
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let outlet = Outlet::new(Some(&Listener::new(|_| ())));
        for _ in 0..QUEUE + 3 {
            outlet.put(PoolEvent::Paused);
        }
        assert_eq!(outlet.dropped(), 3);
        outlet.finish();
        outlet.finish();
        outlet.put(PoolEvent::Paused);
        assert_eq!(outlet.dropped(), 4, "nobody listens after the end");
    }

    #[test]
    fn a_reason_stands_at_its_number_and_is_called_in_json_as_in_metrics() {
        for (index, reason) in RefusalReason::ALL.into_iter().enumerate() {
            assert_eq!((serde_json::json!(reason), reason as usize), (reason.as_str().into(), index));
        }
        for way in [StartWay::Cold, StartWay::Template] {
            assert_eq!(serde_json::json!(way), way.as_str());
        }
        for cause in [StartCause::Demand, StartCause::Warmup] {
            assert_eq!(serde_json::json!(cause), cause.as_str());
        }
        for (index, reason) in Removal::ALL.into_iter().enumerate() {
            assert_eq!((serde_json::json!(reason), reason as usize), (reason.as_str().into(), index));
        }
    }
}
