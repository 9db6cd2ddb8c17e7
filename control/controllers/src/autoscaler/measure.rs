//! How much pods use, as `metrics.k8s.io` says it.

use std::collections::HashMap;
use std::time::Duration;

use coracle_api::meta::Quantity;
use coracle_tolerant::nullable;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;
use serde_json::Value;

/// What one pod uses of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measured {
    /// The end of the time that it was measured in.
    pub at: Timestamp,
    /// Its length.
    pub window: SignedDuration,
    /// In thousandths.
    pub milli: i64,
}

/// A list of PodMetrics. Whoever serves it may be written in Go, which writes null for none.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Measures {
    #[serde(default, deserialize_with = "nullable")]
    items: Vec<Item>,
}

#[derive(Debug, Clone, Deserialize)]
struct Item {
    metadata: Name,
    timestamp: Time,
    window: String,
    #[serde(default, deserialize_with = "nullable")]
    containers: Vec<Container>,
}

#[derive(Debug, Clone, Deserialize)]
struct Name {
    name: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Container {
    name: String,
    #[serde(default, deserialize_with = "nullable")]
    usage: HashMap<String, Value>,
}

impl Container {
    fn milli(&self, resource: &str) -> Option<i64> {
        Some(Quantity::from_json(self.usage.get(resource)?).ok()?.milli_value())
    }
}

impl Measures {
    /// Whether nothing is said of any pod.
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// What pods use of a resource: all of their containers, or the one of this name. A pod of which not all is known is not
    /// among them.
    pub(super) fn of(&self, resource: &str, container: Option<&str>) -> HashMap<&str, Measured> {
        let one = |item: &Item| match container {
            Some(name) => item.containers.iter().find(|container| container.name == name)?.milli(resource),
            None if item.containers.is_empty() => None,
            None => item
                .containers
                .iter()
                .try_fold(0_i64, |sum, container| Some(sum.saturating_add(container.milli(resource)?))),
        };
        let measured = self.items.iter().filter_map(|item| {
            let window = SignedDuration::try_from(go_duration(&item.window)?).ok()?;
            Some((item.metadata.name.as_str(), Measured { at: item.timestamp.0, window, milli: one(item)? }))
        });
        measured.collect()
    }
}

/// Reads a duration as Go writes it: `1m0.5s`.
pub(crate) fn go_duration(text: &str) -> Option<Duration> {
    let (mut all, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(rest.len());
        let seconds = match &rest[..end] {
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        all = all.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[end..];
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn null_is_nothing() {
        for list in [
            json!({"items": null}),
            json!({"items": [{"metadata": {"name": "a"}, "timestamp": "2020-01-01T00:00:00Z", "window": "15s", "containers": null}]}),
            json!({"items": [{"metadata": {"name": "a"}, "timestamp": "2020-01-01T00:00:00Z", "window": "15s",
                "containers": [{"name": "c", "usage": null}]}]}),
        ] {
            serde_json::from_value::<Measures>(list).unwrap();
        }
    }

    #[test]
    fn reads_durations() {
        for (text, expected) in [
            ("15.02s", Some(15_020)),
            ("1m0.5s", Some(60_500)),
            ("1h0m1s", Some(3_601_000)),
            ("950ms", Some(950)),
            ("0s", Some(0)),
            ("15", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
            ("1.1.1s", None),
        ] {
            assert_eq!(go_duration(text).map(|duration| duration.as_millis()), expected, "{text}");
        }
    }

    #[test]
    fn a_pod_is_measured_when_all_of_it_is() {
        let list = json!({"items": [
            {"metadata": {"name": "a"}, "timestamp": "2026-01-01T00:00:00Z", "window": "15s", "containers": [
                {"name": "x", "usage": {"cpu": "250m", "memory": "1Ki"}}, {"name": "y", "usage": {"cpu": "1"}}]},
            {"metadata": {"name": "b"}, "timestamp": "2026-01-01T00:00:00Z", "window": "15s", "containers": []},
            {"metadata": {"name": "c"}, "timestamp": "2026-01-01T00:00:00Z", "window": "?", "containers": [
                {"name": "x", "usage": {"cpu": "1"}}]},
        ]});
        let measures: Measures = serde_json::from_value(list).unwrap();
        for (resource, container, expected) in [
            ("cpu", None, Some(1_250)),
            ("cpu", Some("x"), Some(250)),
            ("memory", None, None),
            ("memory", Some("x"), Some(1_024_000)),
            ("cpu", Some("z"), None),
        ] {
            let found = measures.of(resource, container);
            assert_eq!(found.get("a").map(|measured| measured.milli), expected, "{resource} {container:?}");
            assert!(found.len() <= 1);
        }
    }
}
