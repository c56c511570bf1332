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
    fn an_interval_is_changed_by_a_tenth_at_most() {
        let interval = Duration::from_secs(30);
        for _ in 0..1_000 {
            let wait = jittered(interval, random());
            assert!(wait >= Duration::from_secs(27) && wait <= Duration::from_secs(33), "{wait:?}");
        }
    }
}
