//! Admission webhooks (kubernetes-api §22.3): who is asked, in which order, and what becomes of the answers.
//!
//! ```text
//! mutating:    one after the other; each sees what those before it made. Who asks for it is asked once more when others,
//!              webhooks or plugins, changed the object behind it.
//! validating:  all at once; the first that refuses, in their order, is what the client hears.
//! ```
//! While somebody outside is waited for nothing is held that others need: no transaction, no turn at an object, no lane. What is
//! held is the request's own place, among those of its caller.

mod answer;
mod call;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use coracle_api::cel::admission::Inputs;
use coracle_api::patch;
use coracle_api::status::Status;
use futures::future::join_all;
use serde_json::Value;

use super::matching::Versioned;
use super::review::Review;
use crate::hooks::{Called, Hook};
use answer::Consent;
use call::Failure;

/// Which of the mutating webhooks were asked, and which are to be asked again.
#[derive(Default)]
pub(super) struct Rounds {
    is_second: bool,
    /// Those that want to be asked again, should anybody change the object.
    invoked: HashSet<String>,
    again: HashSet<String>,
}

impl Rounds {
    /// Begins the second round; `changed` says that plugins changed the object since the last webhook.
    pub fn second(&mut self, changed: bool) {
        self.is_second = true;
        if changed {
            self.changed();
        }
    }

    fn changed(&mut self) {
        self.again.extend(self.invoked.drain());
    }
}

/// Versions of an object that were made for somebody.
#[derive(Default)]
struct Shown(Vec<(Versioned, Option<Value>)>);

impl Shown {
    async fn of(
        &mut self,
        review: &Review<'_>,
        object: Option<&Value>,
        version: &Versioned,
    ) -> Result<Option<&Value>, Status> {
        let at = match self.0.iter().position(|(known, _)| known == version) {
            Some(at) => at,
            None => {
                let shown = match object {
                    Some(object) => Some(review.shown(object, version).await?),
                    None => None,
                };
                self.0.push((version.clone(), shown));
                self.0.len() - 1
            }
        };
        Ok(self.0.get(at).and_then(|(_, shown)| shown.as_ref()))
    }

    fn known(&self, version: &Versioned) -> Option<&Value> {
        self.0.iter().find(|(known, _)| known == version).and_then(|(_, shown)| shown.as_ref())
    }
}

/// Asks the mutating webhooks; says whether one of them changed the object.
pub(super) async fn mutate(
    review: &Review<'_>,
    hooks: &[Arc<Hook>],
    mut object: Option<&mut Value>,
    old: Option<&Value>,
    rounds: &mut Rounds,
) -> Result<bool, Status> {
    if hooks.is_empty() {
        return Ok(false);
    }
    let labels = review.labels().await;
    let (mut olds, mut any) = (Shown::default(), false);
    for hook in hooks {
        if rounds.is_second && !rounds.again.contains(&hook.id) {
            continue;
        }
        let subject = review.subject(object.as_deref(), old);
        let Some(version) = hook.matching.matches(&subject, |_| labels.clone())?.cloned() else { continue };
        let shown = match object.as_deref() {
            Some(object) => Some(review.shown(object, &version).await?),
            None => None,
        };
        let shown_old = olds.of(review, old, &version).await?;
        if !holds(review, hook, &version, (shown.as_ref(), shown_old)).await? {
            continue;
        }
        let asked = ask(review, hook, &version, (shown.as_ref(), shown_old), "admit").await?;
        let patch = asked.and_then(|consent| consent.patch);
        let changed = match (patch, shown, object.as_deref_mut()) {
            (None, ..) => false,
            (Some(patch), Some(mut shown), Some(object)) => {
                let apply = patch::json(&mut shown, &patch);
                apply.map_err(|status| {
                    Status::internal_error(format_args!("the patch of admission webhook {:?}: {status}", hook.name))
                })?;
                let before = object.clone();
                review.take(shown, &version, object).await?;
                before != *object
            }
            (Some(_), ..) => {
                return Err(Status::internal_error(format_args!(
                    "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                    hook.name
                )));
            }
        };
        if changed {
            any = true;
            rounds.changed();
        }
        if hook.reinvoked {
            rounds.invoked.insert(hook.id.clone());
        }
    }
    Ok(any)
}

/// Asks the validating webhooks.
pub(super) async fn validate(
    review: &Review<'_>,
    hooks: &[Arc<Hook>],
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Status> {
    if hooks.is_empty() {
        return Ok(());
    }
    let labels = review.labels().await;
    let (mut objects, mut olds, mut asked) = (Shown::default(), Shown::default(), Vec::new());
    for hook in hooks {
        let subject = review.subject(object, old);
        let Some(version) = hook.matching.matches(&subject, |_| labels.clone())?.cloned() else { continue };
        let shown = objects.of(review, object, &version).await?;
        let shown_old = olds.of(review, old, &version).await?;
        if holds(review, hook, &version, (shown, shown_old)).await? {
            asked.push((hook, version));
        }
    }
    let calls = asked
        .iter()
        .map(|(hook, version)| ask(review, hook, version, (objects.known(version), olds.known(version)), "validating"));
    join_all(calls).await.into_iter().try_for_each(|outcome| outcome.map(drop))
}

/// Whether the conditions of a webhook hold. One that has no value is what the failure of a call would be.
async fn holds(
    review: &Review<'_>,
    hook: &Hook,
    version: &Versioned,
    (object, old): (Option<&Value>, Option<&Value>),
) -> Result<bool, Status> {
    let conditions = match &hook.conditions {
        Ok(conditions) if conditions.is_empty() => return Ok(true),
        Ok(conditions) => conditions,
        Err(why) => return if hook.fails { Err(review.forbidden(why)) } else { Ok(false) },
    };
    let request = review.request(version);
    let inputs =
        Inputs { object, old_object: old, request: &request, params: None, namespace: None, authorizer: Some(review) };
    match review.at.spent.matches(conditions, &inputs).await {
        Ok(holds) => Ok(holds),
        Err(why) if hook.fails => Err(review.forbidden(why)),
        Err(why) => {
            tracing::debug!(webhook = hook.name, why, "match conditions have no value, which is ignored");
            Ok(false)
        }
    }
}

/// Asks one webhook. `None` where its failure is ignored.
async fn ask(
    review: &Review<'_>,
    hook: &Hook,
    version: &Versioned,
    objects: (Option<&Value>, Option<&Value>),
    kind: &'static str,
) -> Result<Option<Consent>, Status> {
    let begun = Instant::now();
    let outcome = call::call(review, hook, version, objects, kind == "admit").await;
    let (code, rejected, open) = match &outcome {
        Ok(_) => (200, false, false),
        Err(Failure::Calling { code, .. }) => (*code, hook.fails, !hook.fails),
        Err(Failure::Refused(status)) => (status.code(), true, false),
    };
    let called = Called { name: hook.name.clone(), kind, operation: review.operation.name(), code, rejected };
    review.at.cluster.calls.observe(called, begun.elapsed(), open);
    match outcome {
        Ok(consent) => Ok(Some(consent)),
        Err(Failure::Refused(status)) => Err(status),
        Err(Failure::Calling { why, .. }) if hook.fails => {
            Err(Status::internal_error(format_args!("failed calling webhook {:?}: {why}", hook.name)))
        }
        Err(Failure::Calling { why, .. }) => {
            tracing::warn!(webhook = hook.name, why, "an admission webhook cannot be asked, which is ignored");
            Ok(None)
        }
    }
}
