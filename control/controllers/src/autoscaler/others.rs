//! What other API servers measure: of pods and other objects (`custom.metrics.k8s.io`), and of what is no object of the cluster
//! (`external.metrics.k8s.io`). An adapter serves them behind an APIService; where there is none, the reference's words say so.

use std::collections::HashMap;
use std::time::Duration;

use coracle_api::meta::Quantity;
use coracle_api::meta::selector::LabelSelector;
use coracle_tolerant::nullable;
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

const CUSTOM: &str = "custom.metrics.k8s.io";
const EXTERNAL: &str = "external.metrics.k8s.io/v1beta1";
/// Versions of custom metrics, the one that is liked best first.
const CUSTOM_VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];
/// Of one object so many are asked for at once.
const AT_ONCE: usize = 4;
/// An adapter has so long for one; a metric that nobody answers for is one that failed. What it holds up is one of the few workers.
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

impl Asked<'_> {
    /// Asks for all metrics of other servers.
    pub async fn ask(&self, metrics: &[MetricSpec]) -> Others {
        let is_custom = |spec: &MetricSpec| matches!(spec.type_.as_str(), "Pods" | "Object");
        let custom = match metrics.iter().any(is_custom) {
            true => self.custom().await,
            false => Err(String::new()),
        };
        let asked = metrics.iter().enumerate().filter_map(|(at, spec)| {
            let custom = custom.as_ref();
            let answer = match spec.type_.as_str() {
                "Pods" => {
                    let source = spec.pods.as_ref()?;
                    futures::future::Either::Left(self.of_pods(custom, &source.metric))
                }
                "Object" => {
                    let source = spec.object.as_ref()?;
                    futures::future::Either::Right(futures::future::Either::Left(self.of_object(custom, source)))
                }
                "External" => {
                    let source = spec.external.as_ref()?;
                    futures::future::Either::Right(futures::future::Either::Right(self.external(source)))
                }
                _ => return None,
            };
            let api = if is_custom(spec) { "custom" } else { "external" };
            Some(async move {
                let told = tokio::time::timeout(PATIENCE, answer).await;
                let told = told.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())));
                (at, told.map_err(|why| format!("unable to fetch metrics from {api} metrics API: {why}")))
            })
        });
        // Collected first: a stream of borrowed closures is no future that may be sent.
        let asked: Vec<_> = asked.collect();
        futures::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await
    }

    /// Where custom metrics are.
    async fn custom(&self) -> Result<String, String> {
        let none = || format!("no custom metrics API ({CUSTOM}) registered");
        let group = tokio::time::timeout(PATIENCE, self.client.get::<APIGroup>(&format!("/apis/{CUSTOM}"))).await;
        let group = match group {
            Ok(Ok(group)) => group,
            Ok(Err(error)) if client::is_not_found(&error) => return Err(none()),
            Ok(Err(error)) => return Err(chain(&error)),
            Err(_) => return Err(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        let is_served = |version: &&&str| group.versions.iter().any(|served| served.version == **version);
        let version = CUSTOM_VERSIONS.iter().find(is_served).ok_or_else(none)?;
        Ok(format!("/apis/{CUSTOM}/{version}/namespaces/{}", self.namespace))
    }

    async fn of_pods(&self, custom: Result<&String, &String>, metric: &MetricIdentifier) -> Result<Told, String> {
        let custom = custom.map_err(Clone::clone)?;
        let labels = escaped(self.selector);
        let path = format!("{custom}/pods/*/{}?labelSelector={labels}", escaped(&metric.name));
        let values = self.get(&path, '&', "metricLabelSelector", metric.selector.as_ref()).await?;
        if values.is_empty() {
            return Err("no metrics returned from custom metrics API".to_owned());
        }
        let one = |item: Item| {
            let milli = item.milli()?;
            let at = item.timestamp.map_or(Timestamp::UNIX_EPOCH, |time| time.0);
            let window = item.window_seconds.map_or(WINDOW, SignedDuration::from_secs);
            Ok((item.described_object.name, Measured { at, window, milli }))
        };
        values.into_iter().map(one).collect::<Result<_, String>>().map(Told::Pods)
    }

    async fn of_object(&self, custom: Result<&String, &String>, source: &ObjectMetricSource) -> Result<Told, String> {
        let custom = custom.map_err(Clone::clone)?;
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
        let values = self.get(&path, '?', "metricLabelSelector", metric.selector.as_ref()).await?;
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
        let values =
            self.get(&path, '?', "labelSelector", metric.selector.as_ref()).await.map_err(|why| match why {
                // As Go's client names what it finds nobody for.
                why if why.starts_with("404 page not found") || why.starts_with("no such path") => {
                    format!(
                        "the server could not find the requested resource (get {}.external.metrics.k8s.io)",
                        metric.name
                    )
                }
                why => why,
            })?;
        if values.is_empty() {
            return Err("no metrics returned from external metrics API".to_owned());
        }
        let sum = values.iter().try_fold(0_i64, |sum, item| Ok::<_, String>(sum.saturating_add(item.milli()?)));
        sum.map(Told::Value)
    }

    /// The values at a path, of the series that are selected.
    async fn get(&self, path: &str, mark: char, by: &str, selector: Option<&Selector>) -> Result<Vec<Item>, String> {
        let selector = selector.map(|selector| {
            let selector = serde_json::to_value(selector).unwrap_or_default();
            LabelSelector::from_object(&selector).map(|selector| selector.to_string())
        });
        let selector = selector.transpose().map_err(|error| error.to_string())?.filter(|text| !text.is_empty());
        let selected = selector.map(|text| format!("{mark}{by}={}", escaped(&text))).unwrap_or_default();
        let values: Values = self.client.get(&format!("{path}{selected}")).await.map_err(|error| chain(&error))?;
        Ok(values.items)
    }
}
