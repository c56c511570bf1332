//! What one session says with its beats and hears with the answers, however they travel: alone or
//! with those of a group.

use std::collections::BTreeMap;

use serde_json::Value;

use super::callbacks::Stage;
use super::shared::Shared;
use crate::background::shielded;
use crate::tracker::api::{
    Heartbeat, HeartbeatResponse, KillAcknowledgement, KillStep, MAX_ATTACHED, MAX_ATTACHED_DEPTH, Verb,
    is_too_deep,
};

/// What the beats of one session have said and heard so far.
#[derive(Default)]
pub(super) struct Pulse {
    /// The kill to acknowledge, and how far the last beat said that the client is with it. Each beat
    /// says it again until the server names the kill no more.
    kill: Option<(u64, Stage)>,
    /// The last verbs that were read.
    verbs_number: u64,
    /// The log was told that attachments are too heavy.
    heavy: bool,
    /// And that they are nested too deep.
    deep: bool,
}

/// What is said of a kill at this stage. The client has heard of it, whatever the callbacks do.
fn step(stage: Stage) -> KillStep {
    match stage {
        Stage::Waiting => KillStep::Delivered,
        Stage::Running => KillStep::Stopping,
        Stage::Over => KillStep::Confirmed,
    }
}

impl Pulse {
    /// The next beat. `room` is what attachments may weigh.
    pub(super) fn beat(&mut self, shared: &Shared, memory_bytes: Option<u64>, room: usize) -> Heartbeat {
        let attached = self.attached(shared, room.min(MAX_ATTACHED));
        let stage = shared.callbacks.stage();
        let kill = self.kill.as_mut().map(|(kill_id, said)| {
            *said = stage;
            KillAcknowledgement { kill_id: *kill_id, step: step(stage) }
        });
        let (number, progress) = shared.count_beat();
        Heartbeat {
            attached,
            beat_number: Some(number),
            kill,
            verbs_number: Some(self.verbs_number),
            progress,
            memory_bytes,
            ..Heartbeat::default()
        }
    }

    /// Takes an answer in. True if it held something new: it did not come early, and the next beat
    /// shall say at once that it was heard.
    pub(super) fn heard(&mut self, shared: &Shared, reply: &HeartbeatResponse) -> bool {
        let is_new_kill = self.note_kill(reply);
        // Without a number there were none since the session was registered the last time.
        let number = reply.verbs_number.unwrap_or(0);
        let is_new_verb = std::mem::replace(&mut self.verbs_number, number) != number;
        let named = |verb: Verb| reply.verbs.iter().any(|word| word == verb.as_str());
        shared.orders.hear(named(Verb::Pause), named(Verb::Drain));
        if reply.kill_requested {
            shared.kill();
        }
        is_new_kill || is_new_verb
    }

    /// There was nothing to hear, in a batch where only news are told: what was said of a kill has
    /// arrived, and when that was the end, it need not be said again.
    pub(super) fn heard_nothing(&mut self) {
        self.kill.take_if(|(_, said)| *said == Stage::Over);
    }

    /// When the callbacks go on from this stage, the next beat shall say so. Without a kill to
    /// acknowledge there is nothing to say.
    pub(super) fn said(&self) -> Option<Stage> {
        self.kill.map(|(_, said)| said)
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

    /// What the app wants to travel with the beat, as far as it fits.
    fn attached(&mut self, shared: &Shared, room: usize) -> Option<BTreeMap<String, Value>> {
        let snapshots = shared.attached();
        if snapshots.is_empty() {
            return None;
        }
        let (mut values, mut left) = (BTreeMap::new(), room);
        for (name, snapshot) in snapshots {
            let Some(value) = shielded("an attached snapshot", || snapshot()) else { continue };
            if is_too_deep(&value) {
                if !std::mem::replace(&mut self.deep, true) {
                    log::warn!(
                        "what is attached as {name} is nested deeper than {MAX_ATTACHED_DEPTH} levels and stays at home"
                    );
                }
                continue;
            }
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

/// The memory that this process has in RAM.
pub(super) fn memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        assert!(memory_bytes().is_some_and(|bytes| bytes > 100_000));
    }
}
