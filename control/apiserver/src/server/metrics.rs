//! What the server counts of itself, as `/metrics` shows it (Prometheus' text format).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use parking_lot::Mutex;

use super::Shared;

/// Upper ends of the histogram's buckets, in seconds.
const BUCKETS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];
/// Series at most: labels come from fixed sets, so this is only a stop.
const SERIES_MAX: usize = 4096;

/// Labels of a series: verb, resource, code.
type Labels = (&'static str, String, u16);

#[derive(Default)]
struct Histogram {
    counts: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

/// Counters of requests.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<Labels, u64>>,
    durations: Mutex<BTreeMap<&'static str, Histogram>>,
}

impl Metrics {
    /// Counts an answer.
    pub fn observe(&self, verb: &'static str, resource: &str, code: u16, took: Duration) {
        let mut requests = self.requests.lock();
        let labels = (verb, resource.to_owned(), code);
        if let Some(count) = requests.get_mut(&labels) {
            *count += 1;
        } else if requests.len() < SERIES_MAX {
            requests.insert(labels, 1);
        }
        drop(requests);
        let seconds = took.as_secs_f64();
        let mut durations = self.durations.lock();
        let histogram = durations.entry(verb).or_default();
        histogram.count += 1;
        histogram.sum += seconds;
        for (count, end) in histogram.counts.iter_mut().zip(BUCKETS) {
            *count += u64::from(seconds <= end);
        }
    }

    /// The page.
    pub fn render(&self, server: &Shared) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ =
            writeln!(out, "# HELP apiserver_request_total Requests answered.\n# TYPE apiserver_request_total counter");
        for ((verb, resource, code), count) in &*self.requests.lock() {
            let _ = writeln!(
                out,
                "apiserver_request_total{{verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"}} {count}"
            );
        }
        let name = "apiserver_request_duration_seconds";
        let _ = writeln!(out, "# HELP {name} Time until the answer began.\n# TYPE {name} histogram");
        for (verb, histogram) in &*self.durations.lock() {
            for (count, end) in histogram.counts.iter().zip(BUCKETS) {
                let _ = writeln!(out, "{name}_bucket{{verb=\"{verb}\",le=\"{end}\"}} {count}");
            }
            let _ = writeln!(out, "{name}_bucket{{verb=\"{verb}\",le=\"+Inf\"}} {}", histogram.count);
            let _ = writeln!(out, "{name}_sum{{verb=\"{verb}\"}} {}", histogram.sum);
            let _ = writeln!(out, "{name}_count{{verb=\"{verb}\"}} {}", histogram.count);
        }
        for (name, help, value) in [
            ("apiserver_current_inflight_requests", "Requests at work now.", server.limits.requests_now() as u64),
            ("apiserver_longrunning_requests", "Watches and streams open now.", server.limits.streams_now() as u64),
            ("coracle_keyspace_revision", "Revision that is applied here.", server.store.keyspace.revision().get()),
            (
                "coracle_keyspace_compacted_revision",
                "Oldest revision that can be read is after this.",
                server.store.keyspace.compacted().get(),
            ),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        out
    }
}
