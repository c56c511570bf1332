//! The thread that beats for a group.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::super::beat::second_chance;
use super::super::link::Trouble;
use super::super::pace::{Backoff, Haste, jittered, random};
use super::super::pulse::memory_bytes;
use super::super::shared::{Shared, Standing};
use super::{Group, Member};
use crate::clock::Moment;
use crate::tracker::TrackedId;
use crate::tracker::api::{
    BatchAnswer, BatchBeat, HEARTBEAT_INTERVAL, HTTP_TIMEOUT, HeartbeatAnswers, HeartbeatBatch,
    MAX_BATCH_BODY,
};

/// What a beat weighs beside its attachments.
const BARE_BEAT: usize = 300;

pub(super) fn run(group: &Group) {
    let mut beater = Beater {
        group,
        backoff: Backoff::default(),
        second_chance: true,
        haste: Haste::default(),
        takes_batches: true,
    };
    while let Some(sent) = beater.collect() {
        let rest = beater.beat(sent);
        beater.rest(rest);
    }
}

struct Beater<'a> {
    group: &'a Group,
    backoff: Backoff,
    /// The next broken connection is not yet a reason to be offline.
    second_chance: bool,
    haste: Haste,
    takes_batches: bool,
}

/// A session whose beat is in the request.
struct Sent {
    member: Arc<Member>,
    shared: Weak<Shared>,
    beat: BatchBeat,
}

impl Beater<'_> {
    /// The beats of all sessions that the tracker knows; waits until there are any. `None` at the end.
    fn collect(&self) -> Option<Vec<Sent>> {
        loop {
            let pokes = {
                let mut state = self.group.state.lock();
                // Whoever asks for a renewal from now on is not in the beats that are collected next.
                state.renew = false;
                state.pokes
            };
            let sent = self.beats();
            let mut state = self.group.state.lock();
            if state.over {
                return None;
            }
            if !sent.is_empty() {
                return Some(sent);
            }
            while !state.over && state.pokes == pokes && !state.renew {
                self.group.wait(&mut state, None);
            }
        }
    }

    fn beats(&self) -> Vec<Sent> {
        let living = self.group.living();
        let room = (MAX_BATCH_BODY * 9 / 10 / living.len().max(1)).saturating_sub(BARE_BEAT);
        let memory = memory_bytes();
        let known = living.into_iter().filter_map(|member| {
            let shared = member.shared.upgrade()?;
            let id = shared.known_id()?;
            // Not under the lock: snapshots of the app are asked.
            let mut pulse = std::mem::take(&mut member.track.lock().pulse);
            let beat = pulse.beat(&shared, memory, room);
            member.track.lock().pulse = pulse;
            let beat = BatchBeat { session_id: id, heard_kill: shared.is_killed(), beat };
            Some(Sent { shared: Weak::clone(&member.shared), member, beat })
        });
        known.collect()
    }

    /// Sends the beats; returns how long to rest.
    fn beat(&mut self, sent: Vec<Sent>) -> Duration {
        if !self.takes_batches {
            return self.beat_singly(&sent);
        }
        let interval = interval(&sent);
        let wait = self.park(&sent, interval);
        let (mut members, mut beats) = (Vec::new(), Vec::new());
        for Sent { member, shared, beat } in sent {
            members.push((member, shared, beat.session_id.clone()));
            beats.push(beat);
        }
        let began = Moment::now();
        let timeout = HTTP_TIMEOUT + Duration::from_secs(wait);
        let result = self.group.beats.beats(&HeartbeatBatch { beats }, wait, timeout);
        self.group.state.lock().parked = None;
        let took = Moment::now().saturating_since(began);
        match result {
            Ok(answers) => self.heard(&members, answers, (wait, took), interval),
            Err(Trouble::Unknown) => {
                log::info!("the tracker at {} takes no batches of heartbeats", self.group.url);
                self.takes_batches = false;
                Duration::ZERO
            }
            Err(trouble) => {
                if let Some(pause) = second_chance(&mut self.second_chance, &trouble) {
                    return pause;
                }
                self.troubled(members.iter().map(|(_, shared, _)| shared), &trouble);
                self.backoff.after(&trouble, random())
            }
        }
    }

    /// How many seconds the tracker shall hold the request; it is noted as parked if that is any.
    fn park(&self, sent: &[Sent], interval: Duration) -> u64 {
        let mut state = self.group.state.lock();
        if state.renew || !self.second_chance || state.reachable != Some(true) {
            return 0;
        }
        let wait = jittered(interval, random()).as_secs().min(state.longest_wait);
        state.parked = sent.first().filter(|_| wait > 0).map(|sent| Weak::clone(&sent.shared));
        wait
    }

    fn heard(
        &mut self,
        members: &[(Arc<Member>, Weak<Shared>, TrackedId)],
        answers: HeartbeatAnswers,
        (wait, took): (u64, Duration),
        interval: Duration,
    ) -> Duration {
        let was_troubled = self.group.reached() || !self.second_chance;
        self.second_chance = true;
        self.backoff.reset();
        let mut answers: HashMap<TrackedId, BatchAnswer> =
            answers.answers.into_iter().map(|answer| (answer.session_id.clone(), answer)).collect();
        let mut is_news = false;
        for (member, shared, id) in members {
            let Some(shared) = shared.upgrade() else { continue };
            is_news |= hear(member, &shared, answers.remove(id));
        }
        // The dead-man thread looks at who was reached.
        self.group.poke();
        if is_news && self.haste.is_due_after_news(took) {
            return Duration::ZERO;
        }
        if wait == 0 {
            return if was_troubled { Duration::ZERO } else { jittered(interval, random()) };
        }
        if took + Duration::from_millis(500) >= Duration::from_secs(wait) {
            self.haste.end();
            return Duration::ZERO;
        }
        jittered(self.haste.rest(took, interval), random())
    }

    fn troubled<'a>(&self, sessions: impl Iterator<Item = &'a Weak<Shared>>, trouble: &Trouble) {
        self.group.troubled(trouble);
        for shared in sessions.filter_map(Weak::upgrade) {
            shared.troubled(trouble);
        }
        self.group.poke();
    }

    /// For a tracker that takes no batches.
    fn beat_singly(&mut self, sent: &[Sent]) -> Duration {
        let mut is_news = false;
        for one in sent {
            if self.group.is_over() {
                break;
            }
            let Some(shared) = one.shared.upgrade().filter(|shared| shared.is_open()) else { continue };
            match self.group.beats.beat(&one.beat.session_id, &one.beat.beat, 0, HTTP_TIMEOUT) {
                Ok(reply) => {
                    let answer = BatchAnswer { session_id: one.beat.session_id.clone(), missed: None, reply };
                    is_news |= hear(&one.member, &shared, Some(answer));
                }
                Err(Trouble::Unknown) => forgotten(&one.member, &shared),
                Err(trouble) => {
                    self.troubled(sent.iter().map(|sent| &sent.shared), &trouble);
                    return self.backoff.after(&trouble, random());
                }
            }
        }
        self.group.reached();
        self.backoff.reset();
        self.group.poke();
        if is_news && self.haste.is_due_after_news(Duration::ZERO) {
            return Duration::ZERO;
        }
        self.haste.end();
        jittered(interval(sent), random())
    }

    fn rest(&self, rest: Duration) {
        let deadline = Moment::after(rest);
        let mut state = self.group.state.lock();
        while !state.over && !state.renew && !self.group.wait(&mut state, Some(deadline)) {}
    }
}

/// The shortest interval among the sessions is that of all.
fn interval(sent: &[Sent]) -> Duration {
    let intervals = sent.iter().filter_map(|sent| sent.shared.upgrade()).map(|shared| shared.interval());
    intervals.min().unwrap_or(HEARTBEAT_INTERVAL)
}

/// What a session hears; nothing when it goes on. True if that was new.
fn hear(member: &Member, shared: &Arc<Shared>, answer: Option<BatchAnswer>) -> bool {
    match answer {
        Some(BatchAnswer { missed: Some(missed), .. }) => {
            // A late beat was overtaken by one that renews the wait.
            if missed != "late_beat" && shared.is_open() {
                forgotten(member, shared);
            }
            true
        }
        answer => {
            shared.heard();
            let mut track = member.track.lock();
            track.proven = true;
            track.backoff.reset();
            let Some(answer) = answer else {
                track.pulse.heard_nothing();
                return false;
            };
            // Not under the lock: callbacks may be started, and they look at the session.
            let mut pulse = std::mem::take(&mut track.pulse);
            drop(track);
            let is_news = pulse.heard(shared, &answer.reply);
            member.track.lock().pulse = pulse;
            is_news
        }
    }
}

/// The tracker does not know the session (any more): the side thread registers it again, at once unless
/// it was registered a moment ago.
fn forgotten(member: &Member, shared: &Shared) {
    if shared.standing() != Standing::Known {
        return;
    }
    let mut track = member.track.lock();
    track.not_before = if track.proven { None } else { Some(Moment::after(track.backoff.next(random()))) };
    drop(track);
    log::debug!("the tracker does not know a tracked session of {}", shared.config.app_name);
    shared.forgotten();
}
