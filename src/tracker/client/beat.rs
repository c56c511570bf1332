//! The heartbeat thread: registers, beats, hears kills, and comes back when the server does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::callbacks::Stage;
use super::link::Trouble;
use super::pace::{Backoff, between, jittered, random};
use super::shared::{Contact, Shared, Standing};
use crate::background::shielded;
use crate::clock::Moment;
use crate::tracker::api::{
    HTTP_TIMEOUT, Heartbeat, HeartbeatResponse, KillAcknowledgement, KillStep, MAX_ATTACHED,
};

/// A server that has just closed a connection that was in use gets a second chance within this
/// time, before the client calls itself offline.
const SECOND_CHANCE: Duration = Duration::from_millis(250);
/// The first rest after a parked beat that came back early: the server stops, or cannot park more.
const EARLY_REST: Duration = Duration::from_secs(2);
/// The first parked beat after a registration takes no longer.
const FIRST_WAIT: Duration = Duration::from_secs(2);

/// What is said of a kill at this stage. The client has heard of it, whatever the callbacks do.
fn step(stage: Stage) -> KillStep {
    match stage {
        Stage::Waiting => KillStep::Delivered,
        Stage::Running => KillStep::Stopping,
        Stage::Over => KillStep::Confirmed,
    }
}

/// The beat thread.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut beater = Beater {
        shared,
        backoff: Backoff::default(),
        longest_wait: 0,
        early: 0,
        proven: true,
        parked: 0,
        second_chance: true,
        heavy: false,
        kill: None,
    };
    let mut rest = beater.register();
    while shared.rest(rest, beater.said()) {
        rest = if shared.lock().standing == Standing::Known { beater.beat() } else { beater.register() };
    }
}

struct Beater<'a> {
    shared: &'a Arc<Shared>,
    backoff: Backoff,
    /// The longest wait that the server offers, in seconds; 0: it parks no beats.
    longest_wait: u64,
    /// Parked beats that came back early, in a row.
    early: u32,
    /// A beat went well since the last registration.
    proven: bool,
    /// Parked beats that went well since the last registration.
    parked: u32,
    /// The next broken connection is not yet a reason to be offline.
    second_chance: bool,
    /// The log was told that attachments are too heavy.
    heavy: bool,
    /// The kill to acknowledge, and how far the last beat said that the client is with it. Each beat
    /// says it again until the server names the kill no more.
    kill: Option<(u64, Stage)>,
}

impl Beater<'_> {
    /// Registers; returns how long to rest before the next step.
    fn register(&mut self) -> Duration {
        let Some((body, number)) = self.shared.begin_registration() else { return Duration::ZERO };
        let result = self.shared.beats.register(&body, HTTP_TIMEOUT);
        self.shared.end_registration(&result, number);
        let Ok(created) = result else { return self.backoff.next(random()) };
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
        between(Duration::ZERO, self.shared.config.heartbeat_interval, random())
    }

    /// Beats once; returns how long to rest before the next step.
    fn beat(&mut self) -> Duration {
        let wait = self.wait();
        let id = self.shared.lock().id.clone();
        let stage = self.shared.callbacks.stage();
        let kill = self.kill.as_mut().map(|(kill_id, said)| {
            *said = stage;
            KillAcknowledgement { kill_id: *kill_id, step: step(stage) }
        });
        let body = Heartbeat { attached: self.attached(), kill, ..Heartbeat::default() };
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
            Err(Trouble::Unreachable(reason)) if self.second_chance => {
                self.second_chance = false;
                log::debug!("the connection to the tracker broke: {reason}");
                between(Duration::ZERO, SECOND_CHANCE, random())
            }
            Err(trouble) => {
                self.shared.troubled(&trouble);
                self.backoff.next(random())
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
        let interval = self.shared.config.heartbeat_interval;
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
        let is_new = self.note_kill(reply);
        if reply.kill_requested {
            self.shared.kill();
        }
        if is_new {
            return Duration::ZERO;
        }
        let interval = self.shared.config.heartbeat_interval;
        if reply.kill_requested || self.shared.is_killed() || self.longest_wait == 0 {
            return jittered(interval, random());
        }
        if wait == 0 {
            // Back after trouble: park the next beat at once. Too short an interval to park: beat.
            return if was_troubled { Duration::ZERO } else { jittered(interval, random()) };
        }
        if took + Duration::from_millis(500) >= Duration::from_secs(wait) {
            self.early = 0;
            self.parked = self.parked.saturating_add(1);
            return Duration::ZERO;
        }
        let rest = EARLY_REST.saturating_mul(1 << self.early.min(16)).min(interval);
        self.early += 1;
        jittered(rest, random())
    }

    /// Notes which kill is to be acknowledged; true if that is another one than before. A tracker of
    /// another kind names none.
    fn note_kill(&mut self, reply: &HeartbeatResponse) -> bool {
        let before = self.kill.map(|(kill_id, _)| kill_id);
        if reply.kill_id != before {
            self.kill = reply.kill_id.map(|kill_id| (kill_id, Stage::Waiting));
        }
        reply.kill_id.is_some() && reply.kill_id != before
    }

    /// When the callbacks go on from this stage, the next beat shall say so. Without a kill to
    /// acknowledge there is nothing to say.
    fn said(&self) -> Option<Stage> {
        self.kill.map(|(_, said)| said)
    }

    /// What the app wants to travel with the beat, as far as it fits.
    fn attached(&mut self) -> Option<BTreeMap<String, Value>> {
        let snapshots = self.shared.attached();
        if snapshots.is_empty() {
            return None;
        }
        let (mut values, mut left) = (BTreeMap::new(), MAX_ATTACHED);
        for (name, snapshot) in snapshots {
            let Some(value) = shielded("an attached snapshot", || snapshot()) else { continue };
            let weight = name.len() + value.to_string().len() + 8;
            if weight <= left {
                left -= weight;
                values.insert(name, value);
            } else if !std::mem::replace(&mut self.heavy, true) {
                log::warn!(
                    "what is attached as {name} ({weight} bytes) does not fit into a beat and stays at home"
                );
            }
        }
        Some(values)
    }
}
