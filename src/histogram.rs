//! Times in fixed buckets: a count in each, their sum and the largest.
//!
//! The bounds are the same everywhere (1, 2, 5, 10 … of a microsecond up to 100 s), so that
//! histograms of several pools can be added up. [`Tally`] is for counts that a lock protects anyway,
//! [`Histogram`] for those that no lock does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Serialize, Serializer};

/// Upper bounds of the buckets, inclusive, in nanoseconds; what is longer counts beyond the last.
const BOUNDS: [u64; 25] = bounds();
const BUCKETS: usize = BOUNDS.len() + 1;

const fn bounds() -> [u64; 25] {
    let mut bounds = [0; 25];
    let (mut decade, mut index) = (1_000, 0);
    while index < bounds.len() {
        bounds[index] = decade * [1, 2, 5][index % 3];
        if index % 3 == 2 {
            decade *= 10;
        }
        index += 1;
    }
    bounds
}

fn bucket_of(nanos: u64) -> usize {
    BOUNDS.partition_point(|bound| *bound < nanos)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A histogram behind somebody else's lock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    buckets: [u64; BUCKETS],
    sum: u64,
    max: u64,
}

impl Tally {
    pub(crate) fn record(&mut self, time: Duration) {
        let nanos = nanos(time);
        self.buckets[bucket_of(nanos)] += 1;
        self.sum = self.sum.saturating_add(nanos);
        self.max = self.max.max(nanos);
    }

    /// How many were recorded.
    #[cfg(feature = "server")]
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// What was recorded, and `instant` times that took no time worth a clock.
    pub(crate) fn snapshot(&self, instant: u64) -> HistogramSnapshot {
        let mut buckets = self.buckets;
        buckets[0] += instant;
        HistogramSnapshot::of(&buckets, self.sum, self.max)
    }
}

/// A histogram that any thread may add to, without a lock.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    max: AtomicU64,
}

impl Histogram {
    // Relaxed everywhere: these are numbers to look at, and nobody decides by them.
    pub(crate) fn record(&self, time: Duration) {
        let nanos = nanos(time);
        self.buckets[bucket_of(nanos)].fetch_add(1, Ordering::Relaxed);
        // Wraps after 584 years of recorded time.
        self.sum.fetch_add(nanos, Ordering::Relaxed);
        self.max.fetch_max(nanos, Ordering::Relaxed);
    }

    /// The mean of what was recorded so far, zero before the first.
    pub(crate) fn mean(&self) -> Duration {
        let count: u64 = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum();
        Duration::from_nanos(self.sum.load(Ordering::Relaxed).checked_div(count).unwrap_or(0))
    }

    /// What was recorded so far. The count is that of the buckets; sum and maximum may already hold
    /// a time that the buckets do not.
    pub(crate) fn snapshot(&self) -> HistogramSnapshot {
        let buckets = self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed));
        HistogramSnapshot::of(&buckets, self.sum.load(Ordering::Relaxed), self.max.load(Ordering::Relaxed))
    }
}

/// How many times were how long, at one moment. In JSON all times are seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HistogramSnapshot {
    /// How many were recorded.
    pub count: u64,
    /// All of them together.
    #[serde(serialize_with = "seconds")]
    pub sum: Duration,
    /// The longest.
    #[serde(serialize_with = "seconds")]
    pub max: Duration,
    /// [`quantile(0.5)`](HistogramSnapshot::quantile).
    #[serde(serialize_with = "seconds")]
    pub p50: Duration,
    /// [`quantile(0.99)`](HistogramSnapshot::quantile).
    #[serde(serialize_with = "seconds")]
    pub p99: Duration,
    /// The buckets, shortest first. Times beyond the last bound (100 s) are in `count` only.
    pub buckets: Vec<HistogramBucket>,
}

/// One bucket of a [`HistogramSnapshot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HistogramBucket {
    /// Its upper bound, inclusive.
    #[serde(serialize_with = "seconds")]
    pub at_most: Duration,
    /// Times up to this bound, those of shorter buckets included.
    pub count: u64,
}

impl HistogramSnapshot {
    fn of(counts: &[u64; BUCKETS], sum: u64, max: u64) -> HistogramSnapshot {
        let mut count = 0;
        let bounds = BOUNDS.iter().zip(counts).map(|(bound, in_bucket)| {
            count += in_bucket;
            HistogramBucket { at_most: Duration::from_nanos(*bound), count }
        });
        let buckets = bounds.collect();
        let mut snapshot = HistogramSnapshot {
            count: count + counts[BOUNDS.len()],
            sum: Duration::from_nanos(sum),
            max: Duration::from_nanos(max),
            p50: Duration::ZERO,
            p99: Duration::ZERO,
            buckets,
        };
        (snapshot.p50, snapshot.p99) = (snapshot.quantile(0.5), snapshot.quantile(0.99));
        snapshot
    }

    /// An estimate of the time that a share `q` (0 to 1) of the recorded ones did not exceed: exact
    /// to its bucket, evenly spread within it. Zero if nothing was recorded.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among counts far below 2^52"
    )]
    pub fn quantile(&self, q: f64) -> Duration {
        if self.count == 0 {
            return Duration::ZERO;
        }
        let rank = ((self.count as f64 * q.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let index = self.buckets.partition_point(|bucket| bucket.count < rank);
        let Some(bucket) = self.buckets.get(index) else { return self.max };
        let below = index.checked_sub(1).map(|index| self.buckets[index]);
        let (from, before) = below.map_or((Duration::ZERO, 0), |below| (below.at_most, below.count));
        // The longest time bounds what is known of its bucket.
        let to = bucket.at_most.min(self.max.max(from));
        let share = (rank - before) as f64 / (bucket.count - before) as f64;
        from + to.saturating_sub(from).mul_f64(share)
    }

    /// `sum / count`, zero if nothing was recorded.
    pub fn mean(&self) -> Duration {
        match u128::from(self.count) {
            0 => Duration::ZERO,
            count => Duration::from_nanos(u64::try_from(self.sum.as_nanos() / count).unwrap_or(u64::MAX)),
        }
    }
}

/// Durations in JSON are seconds.
pub(crate) fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);

    #[test]
    fn the_bounds_are_one_two_five_up_to_a_hundred_seconds() {
        assert_eq!(BOUNDS[..4], [1_000, 2_000, 5_000, 10_000]);
        assert_eq!(BOUNDS[24], 100_000_000_000);
        assert!(BOUNDS.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn a_time_counts_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for time in [Duration::ZERO, MICRO, 2 * MICRO, 3 * MICRO, Duration::from_secs(101)] {
            histogram.record(time);
        }
        let snapshot = histogram.snapshot();
        let counts: Vec<u64> = snapshot.buckets.iter().map(|bucket| bucket.count).collect();
        assert_eq!(counts[..3], [2, 3, 4], "a bound belongs to its bucket, and counts add up");
        assert_eq!((counts[24], snapshot.count), (4, 5), "what is beyond the last bound counts as well");
        assert_eq!(snapshot.max, Duration::from_secs(101));
        assert_eq!(snapshot.sum, Duration::from_secs(101) + 6 * MICRO);
        assert_eq!(snapshot.quantile(1.0), snapshot.max);
    }

    #[test]
    fn what_took_no_time_counts_in_the_shortest_bucket() {
        let mut tally = Tally::default();
        tally.record(Duration::from_millis(3));
        let snapshot = tally.snapshot(99);
        assert_eq!((snapshot.count, snapshot.buckets[0].count), (100, 99));
        assert_eq!(snapshot.mean(), Duration::from_micros(30));
        assert!(snapshot.p50 <= MICRO && snapshot.p99 <= MICRO);
        assert_eq!(snapshot.quantile(1.0), Duration::from_millis(3), "no estimate is above the longest");
    }

    #[test]
    fn an_empty_histogram_divides_by_nothing() {
        let snapshot = Histogram::default().snapshot();
        assert_eq!(
            (snapshot.count, snapshot.mean(), snapshot.quantile(0.9)),
            (0, Duration::ZERO, Duration::ZERO)
        );
    }

    proptest::proptest! {
        #[test]
        fn an_estimate_lies_in_the_bucket_of_the_true_quantile(
            mut micros in proptest::collection::vec(1_u64..5_000_000, 1..200),
            q in 0.0_f64..=1.0,
        ) {
            let histogram = Histogram::default();
            for micros in &micros {
                histogram.record(Duration::from_micros(*micros));
            }
            micros.sort_unstable();
            #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let rank = ((micros.len() as f64 * q).ceil() as usize).max(1);
            let exact = micros[rank - 1] * 1_000;
            let estimate = nanos(histogram.snapshot().quantile(q));
            let above = BOUNDS[bucket_of(exact)];
            let below = bucket_of(exact).checked_sub(1).map_or(0, |index| BOUNDS[index]);
            proptest::prop_assert!(estimate >= below && estimate <= above, "{} for {}", estimate, exact);
        }
    }
}
