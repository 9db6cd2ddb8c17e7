//! Bindings: hundreds of pods in one request (`POST /coracle/v1/bindings`, one proposal), with an answer for each; one by
//! one against an API server that has no such door.

use std::sync::Arc;

use futures::StreamExt as _;
use http::Request;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::report::{Subject, live, send};

/// Pods per request.
pub(crate) const BATCH_MAX: usize = 512;
/// How often a binding is asked for whose answer is that the server failed (500), while the pod has no node: what failed may be done
/// later, but a webhook that is down answers so for long.
const FAILURES_MAX: u32 = 4;
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
    /// The pod is gone, or has another node: its event is to come.
    Overtaken,
    /// It was refused: by this code, for this reason.
    Refused(u16, String),
    /// Nobody knows.
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

/// Binds all, and finds out what refusals mean.
pub(crate) async fn bind(client: kube::Client, batch: Vec<Binding>) -> Vec<(Binding, Outcome)> {
    let outcomes: Vec<(Binding, Outcome)> = match bind_batch(&client, &batch).await {
        Ok(outcomes) if outcomes.len() == batch.len() => batch.into_iter().zip(outcomes).collect(),
        Ok(_) => unknown(batch, "the answer has another length"),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => one_by_one(&client, batch).await,
        Err(error) => {
            tracing::warn!(%error, "bindings failed");
            unknown(batch, &error.to_string())
        }
    };
    let client = &client;
    let looked = outcomes.into_iter().map(|(binding, outcome)| async move {
        let outcome = look(client, &binding, outcome).await;
        (binding, outcome)
    });
    futures::stream::iter(looked).buffered(SINGLE_IN_FLIGHT).collect().await
}

/// Whether the pod is gone or has a node, when a refusal may mean that: a webhook may refuse by these codes as well, and then no
/// event comes. An earlier attempt may have bound it.
async fn look(client: &kube::Client, binding: &Binding, outcome: Outcome) -> Outcome {
    let Outcome::Refused(code @ (404 | 409 | 500), why) = outcome else { return outcome };
    match live(client, &binding.subject).await {
        Ok(None) => Outcome::Overtaken,
        Ok(Some(pod)) => match pod.spec.node_name.as_deref().filter(|node| !node.is_empty()) {
            Some(node) if *node == *binding.node => Outcome::Bound,
            Some(_) => Outcome::Overtaken,
            None if code == 500 && binding.attempts + 1 < FAILURES_MAX => Outcome::Unknown(why),
            None => Outcome::Refused(code, why),
        },
        Err(error) => Outcome::Unknown(error.to_string()),
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
    Ok(answer.results.into_iter().map(|item| Outcome::of_code(item.code, item.message)).collect())
}

async fn one_by_one(client: &kube::Client, batch: Vec<Binding>) -> Vec<(Binding, Outcome)> {
    let bindings = batch.into_iter().map(|binding| bind_one(client, binding));
    futures::stream::iter(bindings).buffered(SINGLE_IN_FLIGHT).collect().await
}

async fn bind_one(client: &kube::Client, binding: Binding) -> (Binding, Outcome) {
    let Subject { namespace, name, uid, .. } = &binding.subject;
    let body = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": &**name, "namespace": &**namespace, "uid": &**uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": &*binding.node},
    });
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/binding");
    let outcome = Outcome::of_answer(send(client, "POST", &path, "application/json", &body).await);
    (binding, outcome)
}

impl Outcome {
    /// That of a request of its own: what fails inside the server may have been done.
    pub(crate) fn of(answer: Result<(), kube::Error>) -> Self {
        match Self::of_answer(answer) {
            Self::Refused(500, why) => Self::Unknown(why),
            other => other,
        }
    }

    fn of_answer(answer: Result<(), kube::Error>) -> Self {
        match answer {
            Ok(()) => Self::Bound,
            Err(kube::Error::Api(status)) => Self::of_code(status.code, status.message),
            Err(error) => Self::Unknown(error.to_string()),
        }
    }

    /// What a 500 means is for who asked to find out.
    fn of_code(code: u16, message: String) -> Self {
        match code {
            200..300 => Self::Bound,
            504 => Self::Unknown(message),
            code => Self::Refused(code, message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_code_means_one_thing() {
        for (code, expected) in [(200, "Bound"), (201, "Bound"), (500, "Refused"), (504, "Unknown"), (409, "Refused")] {
            let outcome = format!("{:?}", Outcome::of_code(code, String::new()));
            assert!(outcome.starts_with(expected), "{code}: {outcome}");
        }
    }
}
