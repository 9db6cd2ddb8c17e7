//! What the server counts of itself, as `/metrics` shows it (Prometheus' text format). Counting takes no lock that two
//! requests could meet at for long: counters are atomic, and only the first request of a series writes the table of them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

/// Upper ends of the histogram's buckets, in seconds.
const BUCKETS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];
/// Series at most: labels come from fixed sets, so this is only a stop.
const SERIES_MAX: usize = 4096;

/// Labels of a series: verb, resource, code.
type Labels = (&'static str, &'static str, u16);

#[derive(Default)]
struct Histogram {
    /// Of the first bucket that takes it; the page adds them up.
    counts: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    sum_micros: AtomicU64,
}

/// Counters of requests.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: RwLock<BTreeMap<Labels, AtomicU64>>,
    durations: RwLock<BTreeMap<&'static str, Arc<Histogram>>>,
}

impl Metrics {
    /// Counts an answer.
    pub fn observe(&self, verb: &'static str, resource: &'static str, code: u16, took: Duration) {
        let labels = (verb, resource, code);
        let known = self.requests.read().get(&labels).map(|count| count.fetch_add(1, Ordering::Relaxed)).is_some();
        if !known {
            let mut requests = self.requests.write();
            if requests.len() < SERIES_MAX || requests.contains_key(&labels) {
                requests.entry(labels).or_default().fetch_add(1, Ordering::Relaxed);
            }
        }
        let known = self.durations.read().get(verb).cloned();
        let histogram = known.unwrap_or_else(|| self.durations.write().entry(verb).or_default().clone());
        let seconds = took.as_secs_f64();
        if let Some(bucket) = BUCKETS.iter().position(|end| seconds <= *end) {
            histogram.counts[bucket].fetch_add(1, Ordering::Relaxed);
        }
        histogram.count.fetch_add(1, Ordering::Relaxed);
        histogram.sum_micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The page, with what others know of the present: name, help, value.
    pub fn render(&self, gauges: &[(&str, &str, u64)]) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ =
            writeln!(out, "# HELP apiserver_request_total Requests answered.\n# TYPE apiserver_request_total counter");
        for ((verb, resource, code), count) in &*self.requests.read() {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "apiserver_request_total{{verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"}} {count}"
            );
        }
        let name = "apiserver_request_duration_seconds";
        let _ = writeln!(out, "# HELP {name} Time until the answer began.\n# TYPE {name} histogram");
        for (verb, histogram) in &*self.durations.read() {
            let mut sum = 0;
            for (count, end) in histogram.counts.iter().zip(BUCKETS) {
                sum += count.load(Ordering::Relaxed);
                let _ = writeln!(out, "{name}_bucket{{verb=\"{verb}\",le=\"{end}\"}} {sum}");
            }
            let count = histogram.count.load(Ordering::Relaxed);
            let seconds = histogram.sum_micros.load(Ordering::Relaxed) as f64 / 1e6;
            let _ = writeln!(out, "{name}_bucket{{verb=\"{verb}\",le=\"+Inf\"}} {count}");
            let _ = writeln!(out, "{name}_sum{{verb=\"{verb}\"}} {seconds}");
            let _ = writeln!(out, "{name}_count{{verb=\"{verb}\"}} {count}");
        }
        for (name, help, value) in gauges {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let metrics = Metrics::default();
        for millis in [1, 3, 20_000] {
            metrics.observe("get", "pods", 200, Duration::from_millis(millis));
        }
        let page = metrics.render(&[("x", "X.", 7)]);
        for line in [
            "apiserver_request_total{verb=\"get\",resource=\"pods\",code=\"200\"} 3",
            "apiserver_request_duration_seconds_bucket{verb=\"get\",le=\"0.001\"} 1",
            "apiserver_request_duration_seconds_bucket{verb=\"get\",le=\"10\"} 2",
            "apiserver_request_duration_seconds_bucket{verb=\"get\",le=\"+Inf\"} 3",
            "apiserver_request_duration_seconds_sum{verb=\"get\"} 20.004",
            "x 7",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
    }
}
