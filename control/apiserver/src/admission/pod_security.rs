//! PodSecurity: pods keep to the standard that the labels of their namespace enforce; who makes what violates one is warned
//! (the reference's plugin of that name).

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_api::kinds::podsecurity::{self, Level, Mode, Policy, Standard, Subject};
use coracle_api::meta;
use coracle_api::status::Status;
use serde_json::Value;
use tokio::time::Instant;

use super::{Attributes, is};
use crate::store::{self, Seen};

/// Pods of a namespace that are looked at when its labels change, and for how long.
const PODS_MAX: usize = 3000;
const LOOKED_AT_FOR: Duration = Duration::from_secs(1);
/// Pods that are looked at between two turns of the others.
const PODS_AT_A_TIME: usize = 32;

pub(super) async fn validate(at: &Attributes<'_>, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    if is(at.resource, "", "namespaces") {
        return if at.subresource.is_empty() { namespace(at, object, old).await } else { Ok(()) };
    }
    let is_pod = is(at.resource, "", "pods");
    let is_looked_at = if is_pod {
        matches!(at.subresource, "" | "ephemeralcontainers" | "resize")
            && old.is_none_or(|old| podsecurity::is_significant(object, old))
    } else {
        at.subresource.is_empty()
    };
    if !is_looked_at {
        return Ok(());
    }
    let Some(subject) = Subject::of(at.resource.row.group(), at.resource.row.resource(), object) else { return Ok(()) };
    let Some(policy) = policy(at)? else { return Ok(()) };
    let told = |standard: Standard| {
        let violations = podsecurity::violations(standard, subject);
        (!violations.is_empty()).then(|| format!("\"{standard}\": {}", podsecurity::details(&violations)))
    };
    if is_pod {
        at.call.annotate("pod-security.kubernetes.io/enforce-policy", || policy.enforce.to_string());
    }
    if is_pod && let Some(why) = told(policy.enforce) {
        return Err(at.resource.forbidden(meta::name(object), format!("violates PodSecurity {why}")));
    }
    if let Some(why) = told(policy.audit) {
        let (namespace, resource, name) = (at.namespace, at.resource.row.resource(), meta::name(object));
        at.call.annotate("pod-security.kubernetes.io/audit-violations", || format!("would violate PodSecurity {why}"));
        tracing::info!(namespace, resource, name, user = at.caller.user, "would violate PodSecurity {why}");
    }
    if let Some(why) = told(policy.warn) {
        at.call.warn(format!("would violate PodSecurity {why}"));
    }
    Ok(())
}

/// What the namespace asks of its pods; nothing when it says nothing of it.
fn policy(at: &Attributes<'_>) -> Result<Option<Policy>, Status> {
    let Some((namespaces, namespace)) = at.cluster.catalog.named("", "namespaces").zip(at.namespace) else {
        return Ok(None);
    };
    let Some(record) = at.cluster.store.get(namespaces, namespace) else { return Ok(None) };
    let seen = Seen::new(namespaces, &record);
    let facts = seen.known_facts()?;
    Ok(Some(Policy::read(|label| facts.label(label)).0))
}

/// Labels that mean nothing are refused; of pods that are there already and violate what they say the client hears.
async fn namespace(at: &Attributes<'_>, namespace: &Value, old: Option<&Value>) -> Result<(), Status> {
    let (policy, errors) = Policy::read(|label| meta::label(namespace, label));
    let before = old.map(|old| Policy::read(|label| meta::label(old, label)));
    let is_known = before.as_ref().is_some_and(|(_, before)| *before == errors);
    if !errors.is_empty() && !is_known {
        return Err(Status::invalid("", at.resource.row.kind(), meta::name(namespace), errors));
    }
    let audited = |policy: &Policy| policy.audit.level > Level::Privileged;
    if audited(&policy)
        && !at.call.is_audited()
        && before.as_ref().is_none_or(|(before, _)| before.audit != policy.audit)
    {
        let [label, _] = Mode::Audit.labels();
        at.call.warn(format!(
            "metadata.labels[{label}]: this server keeps no audit log (--audit-policy-file); violations are told in its own log"
        ));
    }
    let Some((before, _)) = before else { return Ok(()) };
    let (now, then) = (policy.enforce, before.enforce);
    let is_relaxed = now.version == then.version && now.level <= then.level;
    if now == then || now.level == Level::Privileged || is_relaxed {
        return Ok(());
    }
    for warning in existing(at, meta::name(namespace), now).await? {
        at.call.warn(warning);
    }
    Ok(())
}

/// What is to be told of pods that violate a standard.
async fn existing(at: &Attributes<'_>, namespace: &str, standard: Standard) -> Result<Vec<String>, Status> {
    let Some(pods) = at.cluster.catalog.named("", "pods") else { return Ok(Vec::new()) };
    let records = at.cluster.store.keyspace.snapshot(pods.row.collection()).records;
    let until = Instant::now() + LOOKED_AT_FOR;
    let (mut total, mut checked) = (0, 0);
    let mut violated: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for (_, record) in store::range(&records, Some(namespace), None) {
        total += 1;
        if total % PODS_AT_A_TIME == 0 {
            tokio::task::yield_now().await;
        }
        if checked >= PODS_MAX || Instant::now() >= until {
            continue;
        }
        checked += 1;
        let pod = Seen::new(pods, record).stored()?;
        let subject = Subject { metadata: &pod["metadata"], spec: &pod["spec"] };
        let violations = podsecurity::violations(standard, subject);
        if !violations.is_empty() {
            // They come in the order of their names.
            let first = || (meta::name(&pod).to_owned(), 0);
            violated.entry(podsecurity::reasons(&violations)).or_insert_with(first).1 += 1;
        }
    }
    let mut warnings = Vec::new();
    if checked < total {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
        ));
    }
    if !violated.is_empty() {
        warnings.push(format!(
            "existing pods in namespace \"{namespace}\" violate the new PodSecurity enforce level \"{standard}\""
        ));
    }
    let mut told: Vec<String> = violated
        .into_iter()
        .map(|(reasons, (name, count))| match count {
            1 => format!("{name}: {reasons}"),
            2 => format!("{name} (and 1 other pod): {reasons}"),
            count => format!("{name} (and {} other pods): {reasons}", count - 1),
        })
        .collect();
    told.sort();
    warnings.extend(told);
    Ok(warnings)
}
