//! The heartbeat thread: registers, beats, hears kills, and comes back when the server does.

use std::sync::Arc;
use std::time::Duration;

use super::link::Trouble;
use super::pace::{Backoff, Haste, between, jittered, random};
use super::pulse::{Pulse, memory_bytes};
use super::shared::{Contact, Shared, Standing};
use crate::clock::Moment;
use crate::tracker::api::{HTTP_TIMEOUT, HeartbeatResponse, MAX_ATTACHED};

/// A server that has just closed a connection that was in use gets a second chance within this
/// time, before the client calls itself offline.
const SECOND_CHANCE: Duration = Duration::from_millis(250);
/// The first parked beat after a registration takes no longer.
const FIRST_WAIT: Duration = Duration::from_secs(2);

/// How long to rest before a connection that broke is tried again, if that was the first time: so much is
/// nothing to tell of. `left` says whether there is a second chance, and is used up.
pub(super) fn second_chance(left: &mut bool, trouble: &Trouble) -> Option<Duration> {
    let Trouble::Unreachable(reason) = trouble else { return None };
    std::mem::take(left).then(|| {
        log::debug!("the connection to the tracker broke: {reason}");
        between(Duration::ZERO, SECOND_CHANCE, random())
    })
}

/// The beat thread.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut beater = Beater {
        shared,
        backoff: Backoff::default(),
        longest_wait: 0,
        haste: Haste::default(),
        proven: true,
        parked: 0,
        second_chance: true,
        pulse: Pulse::default(),
    };
    let mut rest = beater.register();
    while shared.rest(rest, beater.pulse.said()) {
        rest = if shared.lock().standing == Standing::Known { beater.beat() } else { beater.register() };
    }
}

struct Beater<'a> {
    shared: &'a Arc<Shared>,
    backoff: Backoff,
    /// The longest wait that the server offers, in seconds; 0: it parks no beats.
    longest_wait: u64,
    haste: Haste,
    /// A beat went well since the last registration.
    proven: bool,
    /// Parked beats that went well since the last registration.
    parked: u32,
    /// The next broken connection is not yet a reason to be offline.
    second_chance: bool,
    pulse: Pulse,
}

impl Beater<'_> {
    /// Registers; returns how long to rest before the next step.
    fn register(&mut self) -> Duration {
        let Some((body, number)) = self.shared.begin_registration() else { return Duration::ZERO };
        let result = self.shared.beats.register(&body, HTTP_TIMEOUT);
        self.shared.end_registration(&result, number);
        let created = match result {
            Ok(created) => created,
            Err(trouble) => return self.backoff.after(&trouble, random()),
        };
        self.longest_wait = created.max_wait_seconds.unwrap_or(0);
        self.parked = 0;
        if !std::mem::replace(&mut self.proven, false) {
            // The server takes the registration and does not know it: do not turn in circles.
            return self.backoff.next(random());
        }
        self.second_chance = true;
        if self.longest_wait > 0 {
            return Duration::ZERO;
        }
        // Clients that were started together, or lost the same server, part here.
        between(Duration::ZERO, self.shared.interval(), random())
    }

    /// Beats once; returns how long to rest before the next step.
    fn beat(&mut self) -> Duration {
        let wait = self.wait();
        let id = self.shared.lock().id.clone();
        let body = self.pulse.beat(self.shared, memory_bytes(), MAX_ATTACHED);
        let sent = Moment::now();
        let result = self.shared.beats.beat(&id, &body, wait, HTTP_TIMEOUT + Duration::from_secs(wait));
        let took = Moment::now().saturating_since(sent);
        match result {
            Ok(reply) => self.heard(&reply, wait, took),
            Err(Trouble::Unknown) => {
                log::info!("the tracker does not know tracked session {id}, registering it again");
                self.shared.forgotten();
                Duration::ZERO
            }
            Err(trouble) => {
                if let Some(pause) = second_chance(&mut self.second_chance, &trouble) {
                    return pause;
                }
                self.shared.troubled(&trouble);
                self.backoff.after(&trouble, random())
            }
        }
    }

    /// How many seconds the server shall hold the next beat.
    fn wait(&self) -> u64 {
        // After trouble, and after a kill (which the server would answer at once), nothing is parked.
        if self.shared.is_killed() || !self.second_chance || self.shared.lock().contact != Contact::Connected
        {
            return 0;
        }
        let interval = self.shared.interval();
        let wait = match self.parked {
            // What the app attaches right after its start shall not wait for half a minute.
            0 => interval.min(FIRST_WAIT),
            // Clients that were started together part here.
            1 => between(interval / 10, interval, random()),
            _ => jittered(interval, random()),
        };
        wait.as_secs().min(self.longest_wait)
    }

    fn heard(&mut self, reply: &HeartbeatResponse, wait: u64, took: Duration) -> Duration {
        let was_troubled = !self.second_chance || self.shared.lock().contact != Contact::Connected;
        self.proven = true;
        self.second_chance = true;
        self.backoff.reset();
        self.shared.heard();
        if self.pulse.heard(self.shared, reply) && self.haste.is_due_after_news(took) {
            return Duration::ZERO;
        }
        let interval = self.shared.interval();
        if reply.kill_requested || self.shared.is_killed() || self.longest_wait == 0 {
            return jittered(interval, random());
        }
        if wait == 0 {
            // Back after trouble: park the next beat at once. Too short an interval to park: beat.
            return if was_troubled { Duration::ZERO } else { jittered(interval, random()) };
        }
        if took + Duration::from_millis(500) >= Duration::from_secs(wait) {
            self.haste.end();
            self.parked = self.parked.saturating_add(1);
            return Duration::ZERO;
        }
        jittered(self.haste.rest(took, interval), random())
    }
}
