//! What goes wrong with scripted workers, and when. Pure: drawn from a seed and counters.

use std::time::Duration;

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The process ends with this exit code, without an answer.
    Exit(u8),
    /// A signal with this number ends the process, without an answer.
    Signal(i32),
    /// No answer, ever; only a cancel or a kill ends it.
    Hang,
    /// The answer's bytes are no frame.
    Garble,
    /// Half of the answer, then the process ends.
    Cut,
    /// A refusal: a reset reports that it is not clean, code and calls fail with an error of kind
    /// `Refused`, a start ends with exit code 1, a ping stays without an answer.
    Refuse,
}

/// A plan of what goes wrong with the workers of a [`FakeWorker`](crate::testing::FakeWorker), and when.
///
/// What comes at a *number* is counted over all its workers, from 1. What comes with a
/// *probability* is drawn from the seed, the number of the worker's start and that of the request in
/// it, so that the same worker has the same faults however the threads run. Where several faults
/// fall together, the one that was planned first happens.
///
/// ```
/// use remuda::testing::{Fault, FaultPlan};
///
/// let plan = FaultPlan::seeded(7)
///     .at_start(1, Fault::Exit(3)) // the first process does not get ready
///     .at_request(5, Fault::Signal(9)) // the fifth request kills its worker
///     .requests(0.01, Fault::Garble) // one answer in a hundred is garbage
///     .resets(0.1, Fault::Refuse); // one worker in ten is not clean
/// # drop(plan);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a plan does nothing until a fake worker has it"]
pub struct FaultPlan {
    seed: u64,
    planned: Vec<(When, Often, Fault)>,
    pub(super) deaf: bool,
    pub(super) link: Option<Link>,
}

/// What a fault comes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Start,
    Request,
    Reset,
    Ping,
}

#[derive(Clone, Copy, Debug)]
enum Often {
    /// The one with this number.
    Once(u64),
    /// This one and all later ones.
    From(u64),
    Sometimes(f64),
}

/// A link that carries few bytes at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) bytes: usize,
    pub(super) pause: Duration,
}

/// Which occasion it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Occasion {
    /// Its number among all of its sort.
    pub(super) nth: u64,
    /// The start of its worker, and its number in that.
    pub(super) start: u64,
    pub(super) number: u64,
}

impl FaultPlan {
    /// Nothing goes wrong.
    pub fn none() -> FaultPlan {
        FaultPlan::default()
    }

    /// Nothing goes wrong yet; what comes with a probability is drawn from `seed`.
    pub fn seeded(seed: u64) -> FaultPlan {
        FaultPlan { seed, ..FaultPlan::default() }
    }

    /// The `nth` start goes wrong. A start that is cut or garbled breaks its *ready* frame.
    pub fn at_start(self, nth: u64, fault: Fault) -> FaultPlan {
        self.plan(When::Start, Often::Once(nth), fault)
    }

    /// All starts from the `nth` on go wrong.
    pub fn from_start(self, nth: u64, fault: Fault) -> FaultPlan {
        self.plan(When::Start, Often::From(nth), fault)
    }

    /// Starts go wrong with this probability.
    pub fn starts(self, probability: f64, fault: Fault) -> FaultPlan {
        self.plan(When::Start, Often::Sometimes(probability), fault)
    }

    /// The `nth` code or call goes wrong, where its answer is due: its output has been written, its
    /// holds are passed.
    pub fn at_request(self, nth: u64, fault: Fault) -> FaultPlan {
        self.plan(When::Request, Often::Once(nth), fault)
    }

    /// Code and calls go wrong with this probability.
    pub fn requests(self, probability: f64, fault: Fault) -> FaultPlan {
        self.plan(When::Request, Often::Sometimes(probability), fault)
    }

    /// The `nth` reset goes wrong.
    pub fn at_reset(self, nth: u64, fault: Fault) -> FaultPlan {
        self.plan(When::Reset, Often::Once(nth), fault)
    }

    /// Resets go wrong with this probability.
    pub fn resets(self, probability: f64, fault: Fault) -> FaultPlan {
        self.plan(When::Reset, Often::Sometimes(probability), fault)
    }

    /// The `nth` ping goes wrong.
    pub fn at_ping(self, nth: u64, fault: Fault) -> FaultPlan {
        self.plan(When::Ping, Often::Once(nth), fault)
    }

    /// All pings from the `nth` on go wrong: with [`Fault::Hang`] they stay without an answer.
    pub fn from_ping(self, nth: u64, fault: Fault) -> FaultPlan {
        self.plan(When::Ping, Often::From(nth), fault)
    }

    /// No worker listens to a cancel: only a kill stops one that is held or hangs.
    pub fn ignore_cancels(mut self) -> FaultPlan {
        self.deaf = true;
        self
    }

    /// A slow link: frames come `bytes` at a time, with a `pause` by the system's clock after each part.
    ///
    /// # Panics
    /// If `bytes` is zero.
    pub fn slow_link(mut self, bytes: usize, pause: Duration) -> FaultPlan {
        assert!(bytes > 0, "a link that carries nothing is not slow, it is none");
        self.link = Some(Link { bytes, pause });
        self
    }

    fn plan(mut self, when: When, often: Often, fault: Fault) -> FaultPlan {
        self.planned.push((when, often, fault));
        self
    }

    /// What goes wrong on this occasion, if anything.
    pub(super) fn fault(&self, when: When, occasion: Occasion) -> Option<Fault> {
        self.planned.iter().enumerate().find_map(|(index, (planned, often, fault))| {
            let comes = *planned == when
                && match *often {
                    Often::Once(nth) => occasion.nth == nth,
                    Often::From(nth) => occasion.nth >= nth,
                    Often::Sometimes(probability) => self.draw(index as u64, occasion) < probability,
                };
            comes.then_some(*fault)
        })
    }

    /// A number from 0 to 1, the same for the same occasion.
    #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn draw(&self, index: u64, occasion: Occasion) -> f64 {
        let parts = [index, occasion.start, occasion.number];
        let mixed = parts.iter().fold(self.seed, |mixed, part| mix(mixed ^ mix(*part)));
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Spreads the bits of a number (the finaliser of splitmix64).
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(plan: &FaultPlan, when: When) -> Vec<u64> {
        let occasion = |nth| Occasion { nth, start: nth / 10, number: nth % 10 };
        (1..=1_000).filter(|nth| plan.fault(when, occasion(*nth)).is_some()).collect()
    }

    #[test]
    fn the_same_seed_has_the_same_faults_and_another_one_others() {
        let plan = |seed| FaultPlan::seeded(seed).requests(0.1, Fault::Garble);
        let drawn = faults(&plan(1), When::Request);
        assert_eq!(drawn, faults(&plan(1), When::Request));
        assert_ne!(drawn, faults(&plan(2), When::Request));
        assert!((60..140).contains(&drawn.len()), "{}", drawn.len());
        assert!(faults(&plan(1), When::Reset).is_empty());
    }

    #[test]
    fn two_probabilities_are_drawn_apart() {
        let plan = FaultPlan::seeded(1).resets(0.5, Fault::Refuse).resets(0.5, Fault::Hang);
        let got = faults(&plan, When::Reset).len();
        assert!((650..850).contains(&got), "{got}: three in four");
    }

    #[test]
    fn numbers_are_met_exactly_and_what_was_planned_first_goes_first() {
        let plan = FaultPlan::none()
            .at_start(3, Fault::Hang)
            .from_start(3, Fault::Exit(1))
            .from_ping(999, Fault::Hang);
        let at = |nth| plan.fault(When::Start, Occasion { nth, start: nth, number: 0 });
        assert_eq!((at(2), at(3), at(4)), (None, Some(Fault::Hang), Some(Fault::Exit(1))));
        assert_eq!(faults(&plan, When::Ping), [999, 1_000]);
    }
}
