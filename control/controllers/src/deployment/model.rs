//! What the plan works on: the Deployment's numbers and its ReplicaSets, with what was already decided about them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::template;
use crate::informer::Object as _;

pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Characters of the revision history (the reference's limit).
const HISTORY_MAX: usize = 2000;
/// Annotations that are the Deployment's own and not copied to its ReplicaSets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

/// How pods are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    Rolling { surge: i32, unavailable: i32 },
    Recreate,
}

/// The numbers of a Deployment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub replicas: i32,
    pub strategy: Strategy,
    pub min_ready_seconds: i32,
}

impl Wanted {
    pub(crate) fn of(deployment: &Deployment) -> Self {
        let spec = &deployment.spec;
        let replicas = spec.replicas.unwrap_or(1);
        let strategy = match spec.strategy.as_ref() {
            Some(strategy) if strategy.type_.as_deref() == Some("Recreate") => Strategy::Recreate,
            strategy => {
                let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
                let quarter = IntOrString::String("25%".to_owned());
                let surge = rolling.map_or(Some(&quarter), |rolling| rolling.max_surge.as_ref());
                let unavailable = rolling.map_or(Some(&quarter), |rolling| rolling.max_unavailable.as_ref());
                let surge = scaled(surge, replicas, Round::Up);
                let unavailable = match scaled(unavailable, replicas, Round::Down) {
                    0 if surge == 0 => 1,
                    unavailable => unavailable.min(replicas),
                };
                Strategy::Rolling { surge, unavailable }
            }
        };
        Self { replicas, strategy, min_ready_seconds: spec.min_ready_seconds.unwrap_or(0) }
    }

    pub(crate) fn surge(&self) -> i32 {
        match self.strategy {
            Strategy::Rolling { surge, .. } => surge,
            Strategy::Recreate => 0,
        }
    }

    pub(crate) fn unavailable(&self) -> i32 {
        match self.strategy {
            Strategy::Rolling { unavailable, .. } if self.replicas != 0 => unavailable,
            _ => 0,
        }
    }

    pub(crate) fn max(&self) -> i32 {
        self.replicas.saturating_add(self.surge())
    }
}

pub(crate) enum Round {
    Up,
    Down,
}

pub(crate) fn scaled(value: Option<&IntOrString>, of: i32, round: Round) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(count)) => (*count).max(0),
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.strip_suffix('%').and_then(|text| text.parse().ok()).unwrap_or(0);
            let product = percent.max(0).saturating_mul(i64::from(of));
            let whole = match round {
                Round::Up => product.saturating_add(99) / 100,
                Round::Down => product / 100,
            };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

/// A ReplicaSet of the Deployment and what was decided about it.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub object: Arc<ReplicaSet>,
    /// `spec.replicas` as it will be.
    pub replicas: i32,
    /// Annotations to set.
    pub annotations: BTreeMap<String, String>,
    /// `spec.minReadySeconds` to set.
    pub min_ready_seconds: Option<i32>,
}

impl Set {
    pub(crate) fn new(object: Arc<ReplicaSet>) -> Self {
        let replicas = object.spec.replicas.unwrap_or(1);
        Self { object, replicas, annotations: BTreeMap::new(), min_ready_seconds: None }
    }

    pub(crate) fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    /// `spec.replicas` as it is.
    pub(crate) fn replicas_before(&self) -> i32 {
        self.object.spec.replicas.unwrap_or(1)
    }

    pub(crate) fn actual(&self) -> i32 {
        self.object.status.as_ref().map_or(0, |status| status.replicas)
    }

    pub(crate) fn ready(&self) -> i32 {
        self.object.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
    }

    pub(crate) fn available(&self) -> i32 {
        self.object.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
    }

    pub(crate) fn terminating(&self) -> i32 {
        self.object.status.as_ref().and_then(|status| status.terminating_replicas).unwrap_or(0)
    }

    /// Whether its status tells about its present specification.
    pub(crate) fn is_observed(&self) -> bool {
        let observed = self.object.status.as_ref().and_then(|status| status.observed_generation);
        observed.unwrap_or(0) >= self.object.metadata.generation.unwrap_or(0)
    }

    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        let before = || self.object.metadata.annotations.as_ref()?.get(name);
        self.annotations.get(name).or_else(before).map(String::as_str)
    }

    pub(crate) fn revision(&self) -> i64 {
        self.annotation(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn desired(&self) -> Option<i32> {
        self.annotation(DESIRED_REPLICAS)?.parse().ok()
    }

    pub(crate) fn max_before(&self) -> Option<i32> {
        self.annotation(MAX_REPLICAS)?.parse().ok().filter(|max| *max > 0)
    }

    fn annotate(&mut self, name: &str, value: String) {
        if self.annotation(name) != Some(value.as_str()) {
            self.annotations.insert(name.to_owned(), value);
        }
    }

    /// Scales; returns whether that changes anything.
    pub(crate) fn scale(&mut self, replicas: i32, wanted: &Wanted) -> bool {
        if self.replicas == replicas {
            return false;
        }
        self.replicas = replicas;
        self.note_size(wanted);
        true
    }

    /// Notes for which size of the Deployment it was scaled.
    pub(crate) fn note_size(&mut self, wanted: &Wanted) {
        self.annotate(DESIRED_REPLICAS, wanted.replicas.to_string());
        self.annotate(MAX_REPLICAS, wanted.max().to_string());
    }

    /// As the Deployment's current one: its annotations, its revision (keeping former ones as history).
    pub(crate) fn make_current(&mut self, deployment: &Deployment, revision: i64, wanted: &Wanted) {
        for (name, value) in annotations_to_copy(deployment) {
            self.annotate(name, value.clone());
        }
        let before = self.annotation(REVISION).map(str::to_owned);
        if self.revision() < revision {
            self.annotate(REVISION, revision.to_string());
            if let Some(before) = before {
                let history = self.annotation(REVISION_HISTORY).unwrap_or_default().to_owned();
                self.annotate(REVISION_HISTORY, appended(&history, &before));
            }
        }
        let min_ready = self.object.spec.min_ready_seconds.unwrap_or(0);
        if min_ready != wanted.min_ready_seconds {
            self.min_ready_seconds = Some(wanted.min_ready_seconds);
        }
    }

    /// Whether something was decided.
    pub(crate) fn is_changed(&self) -> bool {
        self.replicas != self.replicas_before() || !self.annotations.is_empty() || self.min_ready_seconds.is_some()
    }
}

fn appended(history: &str, revision: &str) -> String {
    let mut revisions: Vec<&str> = history.split(',').filter(|revision| !revision.is_empty()).collect();
    revisions.push(revision);
    let mut length: usize = revisions.iter().map(|revision| revision.len() + 1).sum();
    let mut first = 0;
    while length > HISTORY_MAX && first < revisions.len() {
        length -= revisions[first].len() + 1;
        first += 1;
    }
    revisions[first..].join(",")
}

/// Annotations of a Deployment that its ReplicaSets carry as well.
fn annotations_to_copy(deployment: &Deployment) -> impl Iterator<Item = (&String, &String)> {
    let annotations = deployment.metadata.annotations.iter().flatten();
    annotations.filter(|(name, _)| !NOT_COPIED.contains(&name.as_str()))
}

/// Annotations of a new ReplicaSet.
pub(crate) fn first_annotations(deployment: &Deployment, revision: i64, wanted: &Wanted) -> BTreeMap<String, String> {
    let mut annotations: BTreeMap<String, String> =
        annotations_to_copy(deployment).map(|(name, value)| (name.clone(), value.clone())).collect();
    annotations.insert(REVISION.to_owned(), revision.to_string());
    annotations.insert(DESIRED_REPLICAS.to_owned(), wanted.replicas.to_string());
    annotations.insert(MAX_REPLICAS.to_owned(), wanted.max().to_string());
    annotations
}

/// The index of the ReplicaSet with the Deployment's template; the oldest if there are several.
pub(crate) fn find_current(template: &PodTemplateSpec, sets: &[Set]) -> Option<usize> {
    let wanted = template::normal(template);
    sets.iter().position(|set| {
        let template = set.object.spec.template.as_ref();
        template.is_some_and(|template| template::normal(template) == wanted)
    })
}

/// Oldest first.
pub(crate) fn sort_by_age(sets: &mut [Set]) {
    sets.sort_by(|a, b| {
        let age = |set: &Set| set.object.metadata.creation_timestamp.as_ref().map(|time| time.0);
        age(a).cmp(&age(b)).then_with(|| a.object.key().name.cmp(&b.object.key().name))
    });
}
