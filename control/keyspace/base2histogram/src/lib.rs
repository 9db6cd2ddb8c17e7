//! Histograms for openraft's statistics of itself, in little memory.
//!
//! openraft counts batch sizes and latencies with the crate `base2histogram`, whose 0.2.3 builds a table of 26 MB at its
//! first use and keeps it: a third of what an idle Coracle takes. This package has the same name and version and takes
//! its place through `[patch.crates-io]`. It was written anew and offers only what openraft 0.10.0-alpha.37 calls.
//! Replace it (remove the patch and this folder) when upstream's table is lazy or small, and look at it again whenever
//! openraft is raised: a release of openraft that asks for a later `base2histogram` does not get this one, and cargo
//! then warns that the patch is unused. Whoever builds our packages without the patch gets the original, which works.
//!
//! A bucket is a quarter of a power of two: values below 8 are exact, others are told within an eighth. Computing the
//! bucket takes a few instructions, so there is no table at all.

#![forbid(unsafe_code)]

mod chart;

use std::fmt;
use std::marker::PhantomData;

pub use chart::AsciiChart;

/// Each power of two is cut into `1 << SUB_BITS` buckets of equal width.
const SUB_BITS: u32 = 2;

/// How often values were seen, by size.
///
/// A histogram holds counts up to the bucket of its largest value only, 252 of them (2 KB) at most. `T` holds nothing;
/// openraft names the type as `Histogram::<()>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    /// Never ends in a zero, so equal contents are equal vectors.
    counts: Vec<u64>,
    _slot: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self { counts: Vec::new(), _slot: PhantomData }
    }
}

impl<T> Histogram<T> {
    /// An empty histogram; it allocates at the first value.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a value once.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value `n` times.
    pub fn record_n(&mut self, value: u64, n: u64) {
        if n == 0 {
            return;
        }
        let bucket = bucket_of(value);
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] = self.counts[bucket].saturating_add(n);
    }

    /// How many values were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |total, count| total.saturating_add(*count))
    }

    /// The value that a share of all values (0.99 for the 99th percentile) does not exceed, within an eighth; 0 if
    /// there is none.
    pub fn percentile(&self, share: f64) -> u64 {
        self.percentile_of(self.total(), share)
    }

    /// The percentiles that are usually looked at.
    pub fn percentile_stats(&self) -> PercentileStats {
        let samples = self.total();
        let at = |share| self.percentile_of(samples, share);
        PercentileStats {
            samples,
            p0_1: at(0.001),
            p1: at(0.01),
            p5: at(0.05),
            p10: at(0.10),
            p50: at(0.50),
            p90: at(0.90),
            p99: at(0.99),
            p99_9: at(0.999),
        }
    }

    fn percentile_of(&self, total: u64, share: f64) -> u64 {
        // The nearest rank: the smallest value with enough values at or below it. `as` saturates, and makes NaN 0.
        let rank = ((total as f64 * share).ceil() as u64).clamp(1, total.max(1));
        let mut seen = 0u64;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen = seen.saturating_add(*count);
            if seen >= rank {
                return middle_of(bucket);
            }
        }
        0
    }

    /// Counts by power of two, the smallest that occurs first, without a gap: (first value, last value, count).
    fn by_power(&self) -> Vec<(u64, u64, u64)> {
        let mut rows: Vec<(u64, u64, u64)> = Vec::new();
        for (bucket, count) in self.counts.iter().enumerate() {
            let (first, last) = power_of(lowest_of(bucket));
            match rows.last_mut() {
                Some(row) if row.0 == first => row.2 = row.2.saturating_add(*count),
                _ => rows.push((first, last, *count)),
            }
        }
        let empty = rows.iter().take_while(|row| row.2 == 0).count();
        rows.split_off(empty)
    }
}

/// Percentiles of a [`Histogram`]; all 0 if it is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many values were counted.
    pub samples: u64,
    /// One in a thousand values is at or below this.
    pub p0_1: u64,
    /// The 1st percentile.
    pub p1: u64,
    /// The 5th percentile.
    pub p5: u64,
    /// The 10th percentile.
    pub p10: u64,
    /// The median.
    pub p50: u64,
    /// The 90th percentile.
    pub p90: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// One in a thousand values is above this.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p0_1, p1, p5, p10, p50, p90, p99, p99_9 } = self;
        write!(f, "{{n={samples} p0.1={p0_1} p1={p1} p5={p5} p10={p10} p50={p50} p90={p90} p99={p99} p99.9={p99_9}}}")
    }
}

fn bucket_of(value: u64) -> usize {
    match value.checked_ilog2() {
        // The bits that follow the leading one choose the bucket within its power.
        Some(power) if power >= SUB_BITS => {
            let shift = power - SUB_BITS;
            ((u64::from(shift) << SUB_BITS) + (value >> shift)) as usize
        }
        // Too small to be cut: a bucket of its own.
        _ => value as usize,
    }
}

/// The smallest value of a bucket, as [`bucket_of`] counts them.
fn lowest_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = shift_of(bucket);
    (bucket - (shift << SUB_BITS)) << shift
}

/// The value that stands for all of a bucket.
fn middle_of(bucket: usize) -> u64 {
    let width = 1u64 << shift_of(bucket as u64);
    lowest_of(bucket) + width / 2
}

/// How many low bits a bucket does not tell apart.
fn shift_of(bucket: u64) -> u64 {
    (bucket >> SUB_BITS).saturating_sub(1)
}

/// The first and last value that share a value's power of two; 0 and 1 are alone.
fn power_of(value: u64) -> (u64, u64) {
    match value.checked_ilog2() {
        Some(power) => (1 << power, u64::MAX >> (63 - power)),
        None => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::new();
        values.into_iter().for_each(|value| histogram.record(value));
        histogram
    }

    /// Around every power of two and every quarter of one.
    fn edges() -> Vec<u64> {
        let mut edges: Vec<u64> = (0..64)
            .flat_map(|power| {
                let first = 1u64 << power;
                (0..4).flat_map(move |quarter| {
                    let edge = first + (first / 4) * quarter;
                    [edge - 1, edge, edge.saturating_add(1)]
                })
            })
            .chain([u64::MAX])
            .collect();
        edges.sort_unstable();
        edges
    }

    #[test]
    fn buckets_follow_the_order_of_values_without_a_gap() {
        let buckets: Vec<usize> = edges().into_iter().map(bucket_of).collect();
        assert!(buckets.windows(2).all(|pair| pair[1] == pair[0] || pair[1] == pair[0] + 1), "{buckets:?}");
        assert_eq!((buckets[0], *buckets.last().unwrap()), (0, 251));
        for bucket in 0..252 {
            assert_eq!(bucket_of(lowest_of(bucket)), bucket);
            assert_eq!(bucket_of(middle_of(bucket)), bucket);
        }
    }

    #[test]
    fn a_value_is_told_within_an_eighth_and_exactly_below_eight() {
        for value in edges() {
            let told = histogram([value]).percentile(0.5);
            assert!(told.abs_diff(value) <= value / 8, "{value} is told as {told}");
            assert!(value >= 8 || told == value, "{value} is told as {told}");
        }
    }

    #[test]
    fn percentiles_are_near_the_true_ones() {
        let stats = histogram(1..=10_000).percentile_stats();
        assert_eq!(stats.samples, 10_000);
        for (told, truth) in [
            (stats.p0_1, 10),
            (stats.p1, 100),
            (stats.p5, 500),
            (stats.p10, 1_000),
            (stats.p50, 5_000),
            (stats.p90, 9_000),
            (stats.p99, 9_900),
            (stats.p99_9, 9_990),
        ] {
            assert!(told.abs_diff(truth) <= truth / 8, "{truth} is told as {told}");
        }
    }

    #[test]
    fn the_nearest_rank_is_taken_and_a_share_out_of_range_is_an_end() {
        let few = histogram([1, 2, 3, 4]);
        for (share, value) in
            [(0.0, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (1.0, 4), (-1.0, 1), (7.0, 4), (f64::NAN, 1)]
        {
            assert_eq!(few.percentile(share), value, "{share}");
        }
    }

    #[test]
    fn an_empty_histogram_has_zeros_and_takes_no_memory() {
        let mut empty = Histogram::<()>::new();
        empty.record_n(1_000_000, 0);
        assert_eq!(empty.percentile_stats(), PercentileStats::default());
        assert_eq!((empty.total(), empty.counts.capacity()), (0, 0));
        assert_eq!(empty, Histogram::default());
    }

    #[test]
    fn counts_stop_at_the_largest_number() {
        let mut many = Histogram::<()>::new();
        many.record_n(3, u64::MAX);
        many.record_n(3, 1);
        many.record_n(5, u64::MAX);
        assert_eq!((many.total(), many.percentile(0.5)), (u64::MAX, 3));
    }

    #[test]
    fn equality_is_of_contents_and_not_of_history() {
        let mut counted = Histogram::<()>::new();
        counted.record_n(900, 2);
        counted.record(3);
        assert_eq!(counted, histogram([3, 900, 900]));
        assert_ne!(counted, histogram([3, 900]));
    }

    #[test]
    fn percentiles_print_on_one_line() {
        let printed = histogram([5]).percentile_stats().to_string();
        assert_eq!(printed, "{n=1 p0.1=5 p1=5 p5=5 p10=5 p50=5 p90=5 p99=5 p99.9=5}");
    }
}
