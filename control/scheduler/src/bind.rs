//! Bindings: hundreds of pods in one request (`POST /coracle/v1/bindings`, one proposal), with an answer for each; one by
//! one against an API server that has no such door.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::Request;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::report::{Subject, send};

/// Pods per request.
pub(crate) const BATCH_MAX: usize = 512;
/// Requests at a time where there is no batch.
const SINGLE_IN_FLIGHT: usize = 64;

/// A pod and its node.
#[derive(Debug, Clone)]
pub(crate) struct Binding {
    pub subject: Subject,
    pub node: Arc<str>,
    /// How often it was asked for before without an answer.
    pub attempts: u32,
}

/// What became of a binding, or of another write that it needs.
#[derive(Debug)]
pub(crate) enum Outcome {
    Bound,
    /// It was refused: by this code, for this reason. 404 and 409: the pod is gone, or has a node.
    Refused(u16, String),
    /// There was no answer.
    Unknown(String),
}

#[derive(Serialize)]
struct Body<'a> {
    bindings: Vec<Item<'a>>,
}

#[derive(Serialize)]
struct Item<'a> {
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
    node: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    results: Vec<AnswerItem>,
}

#[derive(Deserialize)]
struct AnswerItem {
    code: u16,
    #[serde(default)]
    message: String,
}

/// Binds all; the outcomes are in the same order.
pub(crate) async fn bind(client: kube::Client, batch: Vec<Binding>) -> Vec<(Binding, Outcome)> {
    match bind_batch(&client, &batch).await {
        Ok(outcomes) if outcomes.len() == batch.len() => batch.into_iter().zip(outcomes).collect(),
        Ok(_) => unknown(batch, "the answer has another length"),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => one_by_one(client, batch).await,
        Err(error) => {
            tracing::warn!(%error, "bindings failed");
            unknown(batch, &error.to_string())
        }
    }
}

/// Nobody knows what became of them.
pub(crate) fn unknown(batch: Vec<Binding>, why: &str) -> Vec<(Binding, Outcome)> {
    batch.into_iter().map(|binding| (binding, Outcome::Unknown(why.to_owned()))).collect()
}

async fn bind_batch(client: &kube::Client, batch: &[Binding]) -> Result<Vec<Outcome>, kube::Error> {
    let bindings = batch.iter().map(|binding| Item {
        namespace: &binding.subject.namespace,
        name: &binding.subject.name,
        uid: &binding.subject.uid,
        node: &binding.node,
    });
    let body = serde_json::to_vec(&Body { bindings: bindings.collect() }).map_err(kube::Error::SerdeError)?;
    let request =
        Request::post("/coracle/v1/bindings").header(http::header::CONTENT_TYPE, "application/json").body(body);
    let answer: Answer = client.request(request.map_err(kube::Error::HttpError)?).await?;
    let outcome = |item: AnswerItem| match item.code {
        200..300 => Outcome::Bound,
        504 => Outcome::Unknown(item.message),
        code => Outcome::Refused(code, item.message),
    };
    Ok(answer.results.into_iter().map(outcome).collect())
}

async fn one_by_one(client: kube::Client, batch: Vec<Binding>) -> Vec<(Binding, Outcome)> {
    let mut left = batch.into_iter();
    let mut running = FuturesUnordered::new();
    let mut outcomes = Vec::new();
    loop {
        while running.len() < SINGLE_IN_FLIGHT
            && let Some(binding) = left.next()
        {
            running.push(bind_one(client.clone(), binding));
        }
        match running.next().await {
            Some(outcome) => outcomes.push(outcome),
            None => return outcomes,
        }
    }
}

async fn bind_one(client: kube::Client, binding: Binding) -> (Binding, Outcome) {
    let Subject { namespace, name, uid, .. } = &binding.subject;
    let body = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": &**name, "namespace": &**namespace, "uid": &**uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": &*binding.node},
    });
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/binding");
    let outcome = Outcome::of(send(&client, "POST", &path, "application/json", &body).await);
    (binding, outcome)
}

impl Outcome {
    /// That of a request of its own.
    pub(crate) fn of(answer: Result<(), kube::Error>) -> Self {
        match answer {
            Ok(()) => Self::Bound,
            Err(kube::Error::Api(status)) if status.code != 504 && status.code != 500 => {
                Self::Refused(status.code, status.message)
            }
            Err(error) => Self::Unknown(error.to_string()),
        }
    }
}
