//! What is counted of calls to webhooks, under the reference's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use parking_lot::Mutex;

/// Series at most: names of webhooks are what somebody configured, and what is no more is still counted.
const SERIES_MAX: usize = 1_024;
/// Upper ends of the histogram's buckets, in seconds (the reference's).
const BUCKETS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];

/// A call, as it is counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Called {
    /// The webhook's name.
    pub name: String,
    /// `admit` or `validating`.
    pub kind: &'static str,
    /// As `CREATE`.
    pub operation: &'static str,
    /// Of the answer; that of the error when there was none.
    pub code: u16,
    /// Whether the request failed by it.
    pub rejected: bool,
}

#[derive(Default)]
struct Counted {
    count: u64,
    buckets: [u64; BUCKETS.len()],
    seconds: f64,
    /// Calls that failed, and whose requests went on.
    open: u64,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Metrics(Mutex<BTreeMap<Called, Counted>>);

impl Metrics {
    /// Counts a call; `open` says that it failed and that this was ignored.
    pub fn observe(&self, called: Called, took: Duration, open: bool) {
        let mut all = self.0.lock();
        if all.len() >= SERIES_MAX && !all.contains_key(&called) {
            return;
        }
        let counted = all.entry(called).or_default();
        counted.count += 1;
        counted.open += u64::from(open);
        counted.seconds += took.as_secs_f64();
        if let Some(at) = BUCKETS.iter().position(|end| took.as_secs_f64() <= *end) {
            counted.buckets[at] += 1;
        }
    }

    /// Appends them to the metrics page.
    pub fn render(&self, out: &mut String) {
        let all = self.0.lock();
        if all.is_empty() {
            return;
        }
        // Writing to a string cannot fail.
        let name = "apiserver_admission_webhook_request_total";
        let _ = writeln!(out, "# HELP {name} Calls to admission webhooks.\n# TYPE {name} counter");
        for (Called { name: webhook, kind, operation, code, rejected }, counted) in &*all {
            let labels = format!("code=\"{code}\",name={webhook:?},operation=\"{operation}\",rejected=\"{rejected}\"");
            let _ = writeln!(out, "{name}{{{labels},type=\"{kind}\"}} {}", counted.count);
        }
        let name = "apiserver_admission_webhook_fail_open_count";
        let _ = writeln!(out, "# HELP {name} Calls that failed and were ignored.\n# TYPE {name} counter");
        let mut open: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for (called, counted) in &*all {
            *open.entry((&called.name, called.kind)).or_default() += counted.open;
        }
        for ((webhook, kind), count) in open.into_iter().filter(|(_, count)| *count > 0) {
            let _ = writeln!(out, "{name}{{name={webhook:?},type=\"{kind}\"}} {count}");
        }
        let name = "apiserver_admission_webhook_admission_duration_seconds";
        let _ = writeln!(out, "# HELP {name} Time until a webhook answered.\n# TYPE {name} histogram");
        for (called, counted) in &*all {
            let Called { name: webhook, kind, operation, code, rejected } = called;
            let labels = format!(
                "code=\"{code}\",name={webhook:?},operation=\"{operation}\",rejected=\"{rejected}\",type=\"{kind}\""
            );
            let mut sum = 0;
            for (count, end) in counted.buckets.iter().zip(BUCKETS) {
                sum += count;
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{end}\"}} {sum}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", counted.count);
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", counted.seconds);
            let _ = writeln!(out, "{name}_count{{{labels}}} {}", counted.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_under_the_reference_s_names_and_not_without_end() {
        let metrics = Metrics::default();
        let called = |name: usize| Called {
            name: format!("{name}.a.b"),
            kind: "admit",
            operation: "CREATE",
            code: 200,
            rejected: false,
        };
        for name in 0..2 * SERIES_MAX {
            metrics.observe(called(name), Duration::from_millis(20), name == 0);
        }
        let mut page = String::new();
        metrics.render(&mut page);
        for expected in [
            "apiserver_admission_webhook_request_total{code=\"200\",name=\"0.a.b\",operation=\"CREATE\",rejected=\"false\",type=\"admit\"} 1\n",
            "apiserver_admission_webhook_fail_open_count{name=\"0.a.b\",type=\"admit\"} 1\n",
            "rejected=\"false\",type=\"admit\",le=\"0.025\"} 1\n",
        ] {
            assert!(page.contains(expected), "{expected}");
        }
        assert_eq!(page.matches("request_total{").count(), SERIES_MAX);
        assert_eq!(page.matches("fail_open_count{").count(), 1);
    }
}
