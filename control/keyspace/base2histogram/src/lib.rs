//! Takes the place of the crate `base2histogram`, which openraft counts its batches and latencies with.
//!
//! The original builds a table of 26 MB at its first use. openraft shows these figures only under its feature
//! `runtime-stats`, which is off here, so nothing is counted at all. Same name and version, through `[patch.crates-io]`;
//! remove both when upstream's table is small or openraft counts under the feature only.

#![forbid(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;

/// A histogram that counts nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram<T = ()>(PhantomData<T>);

impl<T> Histogram<T> {
    /// An empty histogram.
    pub fn new() -> Self {
        Self(PhantomData)
    }

    /// Does nothing.
    pub fn record(&mut self, _value: u64) {}

    /// Does nothing.
    pub fn record_n(&mut self, _value: u64, _n: u64) {}

    /// Nothing was counted.
    pub fn total(&self) -> u64 {
        0
    }

    /// 0, of nothing.
    pub fn percentile(&self, _share: f64) -> u64 {
        0
    }

    /// All 0.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats::default()
    }
}

/// Percentiles of nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("-")
    }
}

/// A chart of nothing.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart;

impl AsciiChart {
    /// An empty chart.
    pub fn new() -> Self {
        Self
    }

    /// Stays empty.
    #[must_use]
    pub fn add(self, _name: impl Into<String>, _histogram: Histogram) -> Self {
        self
    }

    /// Nothing.
    pub fn detailed(&self) -> String {
        String::new()
    }
}
