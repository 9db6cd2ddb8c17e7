//! What a pod may ask of this node beyond what Kubernetes has words for.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use coracle_engine::HttpOptions;
use k8s_openapi::api::core::v1::Pod;

/// `"true"`: guests may reach addresses and names outside of the cluster. Without it they may not.
pub const EGRESS: &str = "coracle.dev/egress";
/// Requests that one instance of an HTTP component serves before it is thrown away; when absent, as many as are known
/// to be safe for its language and world: 1,000 (Rust, Go, Python), 500 (WASI 0.3), 1 (JavaScript, what is not known).
/// Memory persists from one request of an instance to the next, nothing else does.
pub const HTTP_REUSE: &str = "coracle.dev/http-reuse";
/// Instances of an HTTP component that may be at work at the same time.
pub const HTTP_CONCURRENCY: &str = "coracle.dev/http-concurrency";
/// Seconds that a request to an HTTP component may take to the end of its body.
pub const HTTP_TIMEOUT: &str = "coracle.dev/http-timeout-seconds";
/// Fuel that a guest may spend: a command to its end, an instance of an HTTP component for each request. Time costs fuel, too: a slice
/// that ends by the clock costs as much as one that ends by fuel, up to 1,000,000.
pub const FUEL: &str = "coracle.dev/fuel";

/// An annotation whose value is not what it must be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("annotation {name}: {value:?} is not {expected}")]
pub struct Invalid {
    /// The annotation.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// What it should be.
    pub expected: &'static str,
}

/// What a pod asks for.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// See [`EGRESS`].
    pub egress: bool,
    /// See [`FUEL`].
    pub fuel_max: Option<u64>,
    /// How HTTP components are run.
    pub http: HttpOptions,
}

impl Wishes {
    /// Reads a pod's annotations.
    pub fn of(pod: &Pod) -> Result<Self, Invalid> {
        let none = BTreeMap::new();
        let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
        let mut wishes = Self::default();
        match annotations.get(EGRESS).map(String::as_str) {
            None | Some("false") => {}
            Some("true") => wishes.egress = true,
            Some(value) => {
                return Err(Invalid { name: EGRESS, value: value.to_owned(), expected: "\"true\" or \"false\"" });
            }
        }
        wishes.fuel_max = number::<u64>(annotations, FUEL)?;
        if let Some(reuse) = number(annotations, HTTP_REUSE)? {
            wishes.http.reuse = Some(reuse);
        }
        if let Some(concurrency) = number(annotations, HTTP_CONCURRENCY)? {
            wishes.http.concurrency = concurrency;
        }
        if let Some(seconds) = number::<u32>(annotations, HTTP_TIMEOUT)? {
            wishes.http.request_timeout = Duration::from_secs(u64::from(seconds));
        }
        Ok(wishes)
    }
}

fn number<T: FromStr + PartialOrd + From<u8>>(
    annotations: &BTreeMap<String, String>,
    name: &'static str,
) -> Result<Option<T>, Invalid> {
    let Some(value) = annotations.get(name) else { return Ok(None) };
    match value.parse::<T>() {
        Ok(number) if number >= T::from(1) => Ok(Some(number)),
        _ => Err(Invalid { name, value: value.clone(), expected: "a whole number above 0" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_wishes_and_refuses_nonsense() {
        let of = |annotations| {
            let pod = serde_json::from_value(json!({"metadata": {"annotations": annotations}})).unwrap();
            Wishes::of(&pod)
        };
        let wishes =
            of(json!({"coracle.dev/egress": "true", "coracle.dev/http-reuse": "100", "coracle.dev/fuel": "7"}));
        let wishes = wishes.unwrap();
        assert_eq!((wishes.egress, wishes.http.reuse, wishes.fuel_max), (true, Some(100), Some(7)));
        assert!(!of(json!({})).unwrap().egress);
        for (name, value) in [(EGRESS, "yes"), (HTTP_REUSE, "0"), (FUEL, "-1"), (HTTP_TIMEOUT, "1m")] {
            assert_eq!(of(json!({name: value})).unwrap_err().name, name);
        }
    }
}
