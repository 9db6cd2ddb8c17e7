//! What other API servers measure: of pods and other objects (`custom.metrics.k8s.io`), and of what is no object of the cluster
//! (`external.metrics.k8s.io`). An adapter serves them behind an APIService; where there is none, the reference's words say so.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use coracle_api::meta::Quantity;
use coracle_api::meta::selector::LabelSelector;
use coracle_tolerant::{cut, nullable};
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{ExternalMetricSource, MetricIdentifier, MetricSpec, ObjectMetricSource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, LabelSelector as Selector, Time};
use serde::Deserialize;
use serde_json::Value;

use super::escaped;
use super::measure::Measured;
use crate::client::{self, Client};
use crate::discovery::Discovery;
use crate::error::chain;
use crate::foreign::TURNS;

const CUSTOM: &str = "custom.metrics.k8s.io";
const EXTERNAL: &str = "external.metrics.k8s.io/v1beta1";
/// Versions of custom metrics, the one that is liked best first.
const CUSTOM_VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];
/// So long is waited for all metrics of one autoscaler together; one that nobody answered for by then has failed. What is held up
/// is one of the few workers.
const PATIENCE: Duration = if cfg!(test) { Duration::from_secs(1) } else { Duration::from_secs(10) };
/// What is measured in is a minute where nothing is said (the reference's `metricServerDefaultMetricWindow`).
const WINDOW: SignedDuration = SignedDuration::from_secs(60);

/// What was told of one metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// Of each pod, by name.
    Pods(HashMap<String, Measured>),
    /// In thousandths: of one object, or the sum of all that an external metric has.
    Value(i64),
}

/// What was told of metrics, by their places in the spec; or why nothing was, in the reference's words.
pub(super) type Others = HashMap<usize, Result<Told, String>>;

/// Whom to ask for what.
pub(super) struct Asked<'a> {
    pub client: &'a Client,
    pub discovery: &'a Discovery,
    pub namespace: &'a str,
    /// By what the target selects its pods.
    pub selector: &'a str,
    /// Those, by name: of no other pod anything is kept.
    pub pods: &'a HashSet<&'a str>,
}

#[derive(Deserialize)]
struct Values {
    #[serde(default, deserialize_with = "nullable")]
    items: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    #[serde(default)]
    described_object: Described,
    timestamp: Option<Time>,
    #[serde(alias = "window")]
    window_seconds: Option<i64>,
    value: Value,
}

#[derive(Default, Deserialize)]
struct Described {
    #[serde(default)]
    name: String,
}

impl Item {
    fn milli(&self) -> Result<i64, String> {
        let read = Quantity::from_json(&self.value).map_err(|error| format!("a value is no quantity: {error}"));
        Ok(read?.milli_value())
    }
}

/// Which API a metric is asked of.
fn api_of(spec: &MetricSpec) -> Option<&'static str> {
    match spec.type_.as_str() {
        "Pods" | "Object" => Some("custom"),
        "External" => Some("external"),
        _ => None,
    }
}

/// As the reference says it. What an adapter says of it is told in part: it goes into a condition and events.
fn unread(api: &str, why: &str) -> String {
    format!("unable to fetch metrics from {api} metrics API: {}", cut(why))
}

impl Asked<'_> {
    /// Asks for all metrics of other servers.
    pub async fn ask(&self, metrics: &[MetricSpec]) -> Others {
        let late = format!("no answer within {} s", PATIENCE.as_secs());
        let wanted = metrics.iter().enumerate().filter_map(|(at, spec)| Some((at, Err(unread(api_of(spec)?, &late)))));
        let mut others: Others = wanted.collect();
        // What is not answered by then keeps its words.
        let _ = tokio::time::timeout(PATIENCE, self.ask_each(metrics, &mut others)).await;
        others
    }

    async fn ask_each(&self, metrics: &[MetricSpec], others: &mut Others) {
        let custom = match metrics.iter().any(|spec| api_of(spec) == Some("custom")) {
            true => self.custom().await,
            false => Err(String::new()),
        };
        let asked = metrics.iter().enumerate().filter_map(|(at, spec)| {
            let (api, custom) = (api_of(spec)?, &custom);
            Some(async move { (at, self.one(spec, custom).await.map_err(|why| unread(api, &why))) })
        });
        // Collected first: a stream of borrowed closures is no future that may be sent.
        let asked: Vec<_> = asked.collect();
        let mut told = futures::stream::iter(asked).buffer_unordered(TURNS);
        while let Some((at, told)) = told.next().await {
            others.insert(at, told);
        }
    }

    async fn one(&self, spec: &MetricSpec, custom: &Result<String, String>) -> Result<Told, String> {
        match (spec.type_.as_str(), &spec.pods, &spec.object, &spec.external) {
            ("Pods", Some(source), ..) => self.of_pods(custom.as_ref().map_err(Clone::clone)?, &source.metric).await,
            ("Object", _, Some(source), _) => self.of_object(custom.as_ref().map_err(Clone::clone)?, source).await,
            ("External", .., Some(source)) => self.external(source).await,
            (other, ..) => Err(format!("unknown metric source type {other:?}")),
        }
    }

    /// Where custom metrics are.
    async fn custom(&self) -> Result<String, String> {
        let none = || format!("no custom metrics API ({CUSTOM}) registered");
        let group: APIGroup = match self.client.get(&format!("/apis/{CUSTOM}")).await {
            Ok(group) => group,
            Err(error) if client::is_not_found(&error) => return Err(none()),
            Err(error) => return Err(chain(&error)),
        };
        let is_served = |version: &&&str| group.versions.iter().any(|served| served.version == **version);
        let version = CUSTOM_VERSIONS.iter().find(is_served).ok_or_else(none)?;
        Ok(format!("/apis/{CUSTOM}/{version}/namespaces/{}", self.namespace))
    }

    async fn of_pods(&self, custom: &str, metric: &MetricIdentifier) -> Result<Told, String> {
        let labels = escaped(self.selector);
        let path = format!("{custom}/pods/*/{}?labelSelector={labels}", escaped(&metric.name));
        let selected = selected('&', "metricLabelSelector", metric.selector.as_ref())?;
        let values = self.get(&path, &selected).await.map_err(|error| chain(&error))?;
        if values.is_empty() {
            return Err("no metrics returned from custom metrics API".to_owned());
        }
        let one = |item: Item| {
            let milli = item.milli()?;
            let at = item.timestamp.map_or(Timestamp::UNIX_EPOCH, |time| time.0);
            let window = item.window_seconds.map_or(WINDOW, SignedDuration::from_secs);
            Ok((item.described_object.name, Measured { at, window, milli }))
        };
        let of_target = values.into_iter().filter(|item| self.pods.contains(item.described_object.name.as_str()));
        of_target.map(one).collect::<Result<_, String>>().map(Told::Pods)
    }

    async fn of_object(&self, custom: &str, source: &ObjectMetricSource) -> Result<Told, String> {
        let (object, metric) = (&source.described_object, &source.metric);
        let version = object.api_version.as_deref().unwrap_or_default();
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let metric_name = escaped(&metric.name);
        let path = match (group, object.kind.as_str()) {
            // An autoscaler sees its own namespace, whatever name it writes.
            ("", "Namespace") => format!("{custom}/metrics/{metric_name}"),
            (group, kind) => {
                let found = self.discovery.find(group, kind).await.map_err(|error| chain(&error))?;
                let found = found.ok_or_else(|| format!("no matches for kind {kind:?} in group {group:?}"))?;
                let dot = if group.is_empty() { "" } else { "." };
                format!("{custom}/{}{dot}{group}/{}/{metric_name}", found.plural, escaped(&object.name))
            }
        };
        let selected = selected('?', "metricLabelSelector", metric.selector.as_ref())?;
        let values = self.get(&path, &selected).await.map_err(|error| chain(&error))?;
        match values.as_slice() {
            [one] => one.milli().map(Told::Value),
            many => {
                let count = many.len();
                Err(format!("the custom metrics API server returned {count} results when we asked for exactly one"))
            }
        }
    }

    async fn external(&self, source: &ExternalMetricSource) -> Result<Told, String> {
        let metric = &source.metric;
        let path = format!("/apis/{EXTERNAL}/namespaces/{}/{}", self.namespace, escaped(&metric.name));
        let selected = selected('?', "labelSelector", metric.selector.as_ref())?;
        let values = self.get(&path, &selected).await.map_err(|error| match &error {
            // Nobody serves the path, and what says so is no Status of an adapter: as Go's client names that.
            kube::Error::Api(status) if client::is_not_found(&error) && status.reason != "NotFound" => {
                let name = &metric.name;
                format!("the server could not find the requested resource (get {name}.external.metrics.k8s.io)")
            }
            error => chain(error),
        })?;
        if values.is_empty() {
            return Err("no metrics returned from external metrics API".to_owned());
        }
        let sum = values.iter().try_fold(0_i64, |sum, item| Ok::<_, String>(sum.saturating_add(item.milli()?)));
        sum.map(Told::Value)
    }

    async fn get(&self, path: &str, selected: &str) -> Result<Vec<Item>, kube::Error> {
        let values: Values = self.client.get(&format!("{path}{selected}")).await?;
        Ok(values.items)
    }
}

/// The part of a query that selects series; none where all are meant.
fn selected(mark: char, by: &str, selector: Option<&Selector>) -> Result<String, String> {
    let selector = selector.map(|selector| {
        let selector = serde_json::to_value(selector).unwrap_or_default();
        LabelSelector::from_object(&selector).map(|selector| selector.to_string())
    });
    let selector = selector.transpose().map_err(|error| error.to_string())?.filter(|text| !text.is_empty());
    Ok(selector.map(|text| format!("{mark}{by}={}", escaped(&text))).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use coracle_scripted::{Answer, Scripted};
    use http::Method;
    use serde_json::json;

    use super::*;

    async fn ask(api: &Scripted, names: &[&str]) -> Others {
        let client = Client(crate::foreign::bounded(api.client()));
        let discovery = Discovery::new(client.clone());
        let external = |name: &&str| {
            let target = json!({"type": "AverageValue", "averageValue": "5"});
            let spec = json!({"type": "External", "external": {"metric": {"name": name}, "target": target}});
            serde_json::from_value(spec).unwrap()
        };
        let metrics: Vec<MetricSpec> = names.iter().map(external).collect();
        let pods = HashSet::new();
        Asked { client: &client, discovery: &discovery, namespace: "n", selector: "", pods: &pods }.ask(&metrics).await
    }

    #[tokio::test]
    async fn the_metrics_of_one_have_their_time_together() {
        let api = Scripted::new();
        let value = json!({"metricName": "good", "value": "3"});
        api.put("/apis/external.metrics.k8s.io/v1beta1/namespaces/n/good/a", value);
        let hang = ["hang"; 2 * TURNS];
        hang.iter().for_each(|_| api.next(Method::GET, "/hang", Answer::Silence));
        let names: Vec<&str> = std::iter::once("good").chain(hang).collect();
        let told = ask(&api, &names).await;
        assert_eq!(told[&0], Ok(Told::Value(3_000)));
        let late = "unable to fetch metrics from external metrics API: no answer within 1 s".to_owned();
        assert!((1..names.len()).all(|at| told[&at] == Err(late.clone())), "{told:?}");
        assert_eq!(api.requests(&Method::GET, "/hang").len(), TURNS, "the others do not begin anew");
    }

    #[tokio::test]
    async fn of_what_an_adapter_says_a_bounded_part_is_held_and_told() {
        let api = Scripted::new();
        let place = |name: &str| format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/n/{name}/a");
        api.put(&place("wrong"), json!({"value": "x".repeat(1 << 20)}));
        api.put(&place("long"), json!({"value": "1", "more": "x".repeat(17 << 20)}));
        let told = ask(&api, &["wrong", "long"]).await;
        let is_short = |why: &String| why.len() < 1024;
        assert!(told[&0].as_ref().is_err_and(|why| is_short(why) && why.contains("no quantity")), "{told:?}");
        assert!(
            told[&1].as_ref().is_err_and(|why| is_short(why) && why.contains("more than 16777216 bytes")),
            "{told:?}"
        );
    }

    #[tokio::test]
    async fn of_pods_that_are_not_the_targets_nothing_is_kept() {
        let api = Scripted::new();
        let item =
            |name: &str| json!({"describedObject": {"name": name}, "timestamp": "2026-01-01T00:00:00Z", "value": "1"});
        let path = "/apis/custom.metrics.k8s.io/v1beta1/namespaces/n/pods/*";
        api.put(path, json!({"items": [item("mine"), item("another")]}));
        let client = Client(crate::foreign::bounded(api.client()));
        let (discovery, pods) = (Discovery::new(client.clone()), HashSet::from(["mine"]));
        let asked = Asked { client: &client, discovery: &discovery, namespace: "n", selector: "a=b", pods: &pods };
        let target = json!({"type": "AverageValue", "averageValue": "5"});
        let spec = json!({"type": "Pods", "pods": {"metric": {"name": "requests"}, "target": target}});
        let told = asked.ask(&[serde_json::from_value(spec).unwrap()]).await;
        let Ok(Told::Pods(told)) = &told[&0] else { panic!("{told:?}") };
        assert_eq!(told.keys().collect::<Vec<_>>(), ["mine"]);
    }

    #[tokio::test]
    async fn a_path_that_nobody_serves_is_told_from_what_an_adapter_does_not_know() {
        let api = Scripted::new();
        api.next(Method::GET, "/unserved", Answer::Refused(404, "Failed to parse error data"));
        api.next(Method::GET, "/unknown", Answer::Refused(404, "NotFound"));
        let told = ask(&api, &["unserved", "unknown"]).await;
        let words = "unable to fetch metrics from external metrics API: the server could not find the requested resource \
                     (get unserved.external.metrics.k8s.io)";
        assert_eq!(told[&0], Err(words.to_owned()));
        assert!(told[&1].as_ref().is_err_and(|why| why.contains("told to refuse")), "{told:?}");
    }
}
