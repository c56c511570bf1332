//! When the next attempt is due: back-off and jitter. No clock, no thread.

use std::time::Duration;

use super::link::Trouble;

/// The first wait after a failure is at most this long.
const FIRST: Duration = Duration::from_millis(500);
/// No wait after a failure is longer, but where nothing is to be expected of the next attempt.
const LONGEST: Duration = Duration::from_secs(15);

/// A server that does not let the client in is asked again within this time.
const DENIED: Duration = Duration::from_secs(60);

/// Exponential back-off with full jitter: a thousand clients that lost the same server come back
/// spread over the whole wait instead of all at once.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait: anything up to 0.5 s, 1 s, 2 s … 15 s, but never less than a tenth of that,
    /// so that a server that refuses at once is not hammered.
    pub(super) fn next(&mut self, random: u64) -> Duration {
        let limit = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        between(limit / 10, limit, random)
    }

    /// The next wait after this: where the server does not let the client in, half a minute to one.
    pub(super) fn after(&mut self, trouble: &Trouble, random: u64) -> Duration {
        if trouble.is_denial() { between(DENIED / 2, DENIED, random) } else { self.next(random) }
    }

    /// Something went well: the next failure starts from the beginning.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// How soon a beat follows one that was held and came back before its time.
///
/// With news it follows at once, to say that they were heard; without, the server stops or cannot hold
/// more. A server that answers at once again and again, whatever it says, is not flooded.
#[derive(Debug, Default)]
pub(super) struct Haste {
    /// Answers that came at once without news, in a row, and those with news.
    early: u32,
    news: u32,
}

impl Haste {
    /// The first rest after an answer without news; each further one takes twice as long.
    const REST: Duration = Duration::from_secs(2);
    /// A beat that was held for this long was not answered at once.
    const HELD: Duration = Duration::from_secs(1);
    /// More news in a row than this are no reason to beat at once.
    const MOST_NEWS: u32 = 20;

    /// There are news, after `held`: whether the next beat follows at once.
    pub(super) fn is_due_after_news(&mut self, held: Duration) -> bool {
        self.note(held);
        self.news += u32::from(self.news < Haste::MOST_NEWS + 1);
        self.news <= Haste::MOST_NEWS
    }

    /// There are none, after `held`: how long to rest, at most an interval.
    pub(super) fn rest(&mut self, held: Duration, interval: Duration) -> Duration {
        self.note(held);
        let rest = Haste::REST.saturating_mul(1 << self.early.min(16)).min(interval);
        self.early += 1;
        rest
    }

    /// The beat was held for as long as it wanted.
    pub(super) fn end(&mut self) {
        *self = Haste::default();
    }

    fn note(&mut self, held: Duration) {
        if held >= Haste::HELD {
            self.end();
        }
    }
}

/// An interval up to a tenth shorter or longer, so that clients which started together part.
pub(super) fn jittered(interval: Duration, random: u64) -> Duration {
    between(interval.mul_f64(0.9), interval.mul_f64(1.1), random)
}

/// Any duration from `low` to `high`.
pub(super) fn between(low: Duration, high: Duration, random: u64) -> Duration {
    let span = u64::try_from(high.saturating_sub(low).as_micros()).unwrap_or(u64::MAX - 1);
    low + Duration::from_micros(random % (span + 1))
}

/// A number to jitter with: spread matters here, secrecy does not.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    // It cannot fail for eight bytes; if it did, waits would be their shortest.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_limit_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::default();
        let longest: Vec<_> = (0..8).map(|_| backoff.next(u64::MAX / 2)).collect();
        assert!(longest[0] <= FIRST);
        assert!(longest.iter().all(|wait| *wait <= LONGEST && *wait >= FIRST / 10));
        for _ in 0..100 {
            assert!(backoff.next(random()) >= LONGEST / 10);
        }
        backoff.reset();
        assert!(backoff.next(random()) <= FIRST);
    }

    #[test]
    fn whoever_is_not_let_in_asks_seldom() {
        let refused = |status| Trouble::Refused { status, detail: String::new() };
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            for status in [401, 403] {
                let wait = backoff.after(&refused(status), random());
                assert!(wait >= DENIED / 2 && wait <= DENIED, "{wait:?}");
            }
        }
        assert!(backoff.after(&refused(503), random()) <= FIRST, "that is another matter");
    }

    #[test]
    fn news_are_answered_at_once_unless_the_server_has_nothing_else() {
        let mut haste = Haste::default();
        let at_once = |haste: &mut Haste| haste.is_due_after_news(Duration::from_millis(1));
        assert!((0..20).all(|_| at_once(&mut haste)) && !at_once(&mut haste) && !at_once(&mut haste));
        // An operator who pauses and resumes it every few seconds is none of that.
        assert!((0..50).all(|_| haste.is_due_after_news(Duration::from_secs(3))));
        assert!((0..19).all(|_| at_once(&mut haste)) && !at_once(&mut haste));
        haste.end();
        assert!(at_once(&mut haste));
    }

    #[test]
    fn a_server_that_holds_no_beats_is_left_alone_for_longer_and_longer() {
        let mut haste = Haste::default();
        let interval = Duration::from_secs(30);
        let rests: Vec<_> = (0..6).map(|_| haste.rest(Duration::ZERO, interval).as_secs()).collect();
        assert_eq!(rests, [2, 4, 8, 16, 30, 30]);
        assert_eq!(haste.rest(Duration::from_secs(5), interval), Duration::from_secs(2), "it held one");
    }

    #[test]
    fn an_interval_is_changed_by_a_tenth_at_most() {
        let interval = Duration::from_secs(30);
        for _ in 0..1_000 {
            let wait = jittered(interval, random());
            assert!(wait >= Duration::from_secs(27) && wait <= Duration::from_secs(33), "{wait:?}");
        }
    }
}
