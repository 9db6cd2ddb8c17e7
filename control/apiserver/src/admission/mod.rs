//! Admission: what the cluster adds to objects, or refuses, beside what is valid in itself (kubernetes-api §19).
//!
//! ```text
//! mutating:    plugins ─► MutatingAdmissionPolicies ─► MutatingWebhooks ─► once more, where one of these changed the object
//! (the object is valid in itself)
//! validating:  plugins ─► ValidatingAdmissionPolicies ─► ValidatingWebhooks ─► quota, in the write's own transaction
//! ```

mod authorizer;
mod certificates;
pub(crate) mod ingress_class;
mod lifecycle;
mod limit_range;
mod mountable;
pub(crate) mod network;
mod node;
mod pod;
mod pod_certificates;
mod pod_range;
mod pod_security;
mod policy;
mod quota;
mod review;
pub(crate) mod scale;
pub(crate) mod topology;
mod trust_bundles;
pub(crate) mod volumes;
mod webhook;

use std::sync::Arc;

use coracle_api::meta;
use coracle_api::status::Status;
use coracle_keyspace::Op;
use serde_json::Value;

use crate::authz;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::conversion;
pub(crate) use crate::hooks::matching;
use crate::hooks::{self, Hook, Hooks};
use crate::identity::Identity;
use crate::policies::{self, Bound};
use crate::request::call::Call;
use crate::request::options::DeleteOptions;
use crate::request::spent::Spent;
use matching::Operation;
use review::Review;
use webhook::Rounds;

/// What is admitted: an object of a resource, at a place.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a> {
    pub cluster: &'a Cluster,
    pub resource: &'a Resource,
    /// Who writes.
    pub caller: &'a Identity,
    /// Hears warnings.
    pub call: &'a Call,
    /// What expressions have taken that were asked about it, in whichever phase and however often it is admitted.
    pub spent: &'a Spent,
    /// Whether that one is in this process.
    pub is_here: bool,
    /// Of the path.
    pub namespace: Option<&'a str>,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// Nobody outside is asked: it is the server's own hand, or a part of what was admitted.
    pub is_admitted: bool,
}

impl Attributes<'_> {
    fn is_reviewed(&self) -> bool {
        !self.is_admitted && review::is_reviewed(self.resource)
    }

    /// Who is asked beside the plugins; `None` when nobody is.
    ///
    /// # Errors
    /// Nobody can say who is to be asked.
    async fn others(&self) -> Result<Option<Others>, Status> {
        if !self.is_reviewed() {
            return Ok(None);
        }
        let policies = self.cluster.policies.now(&self.cluster.store.keyspace).await;
        let webhooks = self.cluster.webhooks().await;
        if let Some(why) = webhooks.as_ref().and_then(|webhooks| webhooks.unreadable.as_ref()) {
            return Err(Status::internal_error(why));
        }
        Ok((policies.is_some() || webhooks.is_some()).then_some(Others { policies, webhooks }))
    }

    /// Whether somebody outside may be asked, for whom nobody else shall wait: to admit it, or to convert it or what policies
    /// are asked with.
    pub fn asks(&self) -> bool {
        let cluster = self.cluster;
        self.is_reviewed() && (cluster.hooks.any() || cluster.policies.may_convert())
            || conversion::is_needed(self.resource)
    }

    /// Whether anybody may be asked beside the plugins.
    pub fn may_ask(&self) -> bool {
        self.is_reviewed() && (self.cluster.policies.any() || self.cluster.hooks.any())
    }

    /// That what configures admission is what it was: a part of each transaction that was admitted, taken before anybody is asked.
    /// What writes a configuration says so in its own.
    pub async fn guard(&self) -> Option<Op> {
        match mark(self.resource) {
            Some(mark) => Some(mark),
            None if self.is_admitted => None,
            None => self.cluster.hooks.guard(&self.cluster.store.keyspace).await,
        }
    }
}

/// Who is asked beside the plugins: policies, then webhooks.
struct Others {
    policies: Option<Arc<policies::Configured>>,
    webhooks: Option<Arc<hooks::Configured>>,
}

impl Others {
    /// Those that change objects.
    fn mutating(&self) -> (&[Bound], &[Arc<Hook>]) {
        let policies = self.policies.as_ref().map(|policies| policies.mutating.as_slice());
        let webhooks = self.webhooks.as_ref().map(|webhooks| webhooks.mutating.as_slice());
        (policies.unwrap_or_default(), webhooks.unwrap_or_default())
    }

    /// Those that say whether an object may be.
    async fn validate(&self, review: &Review<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        if let Some(policies) = &self.policies {
            policy::readable(review, policies)?;
            policy::validate(review, &policies.validating, object, old).await?;
        }
        match &self.webhooks {
            Some(webhooks) => webhook::validate(review, &webhooks.validating, object, old).await,
            None => Ok(()),
        }
    }
}

/// What goes into a transaction that changes what configures admission.
pub(crate) fn mark(resource: &Resource) -> Option<Op> {
    Hooks::mark(resource.row.group())
}

pub(crate) use lifecycle::delete;
pub(crate) use quota::Charge;

/// The mutating phase of a new object. One whose name was `generated` has none yet for policies and webhooks. Says whether these
/// changed it.
pub(crate) async fn mutate_new(
    at: &Attributes<'_>,
    object: &mut Value,
    generated: bool,
    dry_run: bool,
) -> Result<bool, Status> {
    if create(at, object).await? {
        at.resource.default(object)?;
    }
    let Some(others) = at.others().await? else { return Ok(false) };
    let hidden = if generated { meta::metadata_mut(object).remove("name") } else { None };
    let review = Box::pin(Review::of_write(at, Operation::Create, meta::name(object), dry_run)).await;
    // Nobody who asks nobody pays for its room.
    let changed = Box::pin(rounds(&review, &others, object, None)).await;
    if let Some(name) = hidden.filter(|_| meta::name(object).is_empty()) {
        meta::metadata_mut(object).insert("name".to_owned(), name);
    }
    changed
}

/// The same of a change.
pub(crate) async fn mutate_changed(
    at: &Attributes<'_>,
    object: &mut Value,
    old: &Value,
    dry_run: bool,
) -> Result<bool, Status> {
    update(at, object, old).await?;
    let Some(others) = at.others().await? else { return Ok(false) };
    let review = Box::pin(Review::of_write(at, Operation::Update, meta::name(old), dry_run)).await;
    Box::pin(rounds(&review, &others, object, Some(old))).await
}

/// Asks the policies and the webhooks that change objects. Where they do, plugins look at it again, and those of them that ask
/// for it; what these change then, plugins look at once more.
async fn rounds(review: &Review<'_>, others: &Others, object: &mut Value, old: Option<&Value>) -> Result<bool, Status> {
    let (policies, webhooks) = others.mutating();
    let (mut told, mut asked) = (policy::Rounds::default(), Rounds::default());
    let by_policies = policy::mutate(review, policies, object, old, &mut told).await?;
    let by_webhooks = webhook::mutate(review, webhooks, Some(&mut *object), old, &mut asked).await?;
    if !by_policies && !by_webhooks {
        return Ok(false);
    }
    let before = object.clone();
    plugins(review.at, object, old).await?;
    told.second(object);
    let by_policies = policy::mutate(review, policies, object, old, &mut told).await?;
    asked.second(before != *object);
    let by_webhooks = webhook::mutate(review, webhooks, Some(&mut *object), old, &mut asked).await?;
    // Nothing is stored that plugins have not seen.
    if by_policies || by_webhooks {
        plugins(review.at, object, old).await?;
    }
    Ok(true)
}

/// Plugins look at what others have made of an object.
async fn plugins(at: &Attributes<'_>, object: &mut Value, old: Option<&Value>) -> Result<(), Status> {
    match old {
        None => drop(create(at, object).await?),
        Some(old) => update(at, object, old).await?,
    }
    at.resource.default(object)
}

/// Both phases of something of a subresource's own, which is no object of the resource: a Binding, an Eviction, options of a
/// connection.
pub(crate) async fn admit(
    at: &Attributes<'_>,
    operation: Operation,
    name: &str,
    object: &mut Value,
    dry_run: bool,
) -> Result<bool, Status> {
    let Some(others) = at.others().await? else { return Ok(false) };
    let review = match operation {
        Operation::Connect => Review::of_connect(at, name).await,
        _ => Review::of_write(at, operation, name, dry_run).await,
    };
    let (policies, webhooks) = others.mutating();
    let (mut told, mut asked) = (policy::Rounds::default(), Rounds::default());
    let by_policies = Box::pin(policy::mutate(&review, policies, object, None, &mut told)).await?;
    let by_webhooks = Box::pin(webhook::mutate(&review, webhooks, Some(&mut *object), None, &mut asked)).await?;
    let changed = by_policies || by_webhooks;
    if changed {
        told.second(object);
        let again = Box::pin(policy::mutate(&review, policies, object, None, &mut told)).await?;
        asked.second(again);
        Box::pin(webhook::mutate(&review, webhooks, Some(&mut *object), None, &mut asked)).await?;
    }
    Box::pin(others.validate(&review, Some(object), None)).await?;
    Ok(changed)
}

/// Both phases of a deletion.
pub(crate) async fn remove(
    at: &Attributes<'_>,
    name: &str,
    options: &DeleteOptions,
    old: &Value,
) -> Result<(), Status> {
    let Some(others) = at.others().await? else { return Ok(()) };
    let review = Review::of_delete(at, name, options).await;
    // Policies have nothing to change here.
    let (_, webhooks) = others.mutating();
    Box::pin(webhook::mutate(&review, webhooks, None, Some(old), &mut Rounds::default())).await?;
    Box::pin(others.validate(&review, None, Some(old))).await
}

/// Admits a new object, and completes it. Says whether anything was added, which may need defaults of its own.
async fn create(at: &Attributes<'_>, object: &mut Value) -> Result<bool, Status> {
    authz::node::creates(at.caller, at.resource, object)?;
    authz::rbac::grants(at.cluster, at.caller, (at.resource, at.namespace), object, None)?;
    if is(at.resource, "", "nodes") {
        node::create(object);
    }
    if is(at.resource, "networking.k8s.io", "ingresses") && at.subresource.is_empty() {
        ingress_class::create(at, object)?;
    }
    if is(at.resource, "certificates.k8s.io", "certificatesigningrequests") {
        certificates::create(at, object)?;
    }
    if is(at.resource, "certificates.k8s.io", "podcertificaterequests") {
        pod_certificates::create(at, object)?;
    }
    if is(at.resource, "certificates.k8s.io", "clustertrustbundles") {
        trust_bundles::write(at, object, None)?;
    }
    if is(at.resource, "", "persistentvolumeclaims") {
        volumes::create_claim(at, object)?;
    }
    if is(at.resource, "", "persistentvolumes") {
        volumes::create_volume(object);
    }
    let is_pod = is(at.resource, "", "pods");
    if is_pod {
        limit_range::complete(at, object)?;
        pod::create(at, object).await?;
    }
    Ok(is_pod)
}

/// Checks that the namespace of a new object takes new content; the operation keeps it so until the object is stored.
pub(crate) async fn place(at: &Attributes<'_>, object: &Value) -> Result<Option<Op>, Status> {
    lifecycle::create(at, object).await
}

/// Admits a change, and completes it.
async fn update(at: &Attributes<'_>, object: &mut Value, old: &Value) -> Result<(), Status> {
    authz::node::changes(at.caller, at.resource, object, old)?;
    authz::rbac::grants(at.cluster, at.caller, (at.resource, at.namespace), object, Some(old))?;
    if is(at.resource, "certificates.k8s.io", "certificatesigningrequests") {
        certificates::update(at, object, old)?;
    }
    if is(at.resource, "certificates.k8s.io", "podcertificaterequests") {
        pod_certificates::update(at, object, old)?;
    }
    if is(at.resource, "certificates.k8s.io", "clustertrustbundles") {
        trust_bundles::write(at, object, Some(old))?;
    }
    if is(at.resource, "", "pods") && at.subresource.is_empty() {
        pod::update(object, old);
    }
    if is(at.resource, "", "pods") && at.subresource == "resize" && !meta::is_deleting(old) {
        limit_range::complete(at, object)?;
    }
    Ok(())
}

/// The validating phase: whether an object may be as it is now, which nobody changes any more, and which is valid in itself.
pub(crate) async fn validate(
    at: &Attributes<'_>,
    object: &Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<(), Status> {
    limit_range::validate(at, object, old)?;
    if let Some(old) = old.filter(|_| is(at.resource, "", "persistentvolumeclaims") && at.subresource.is_empty()) {
        volumes::resize(at, object, old)?;
    }
    mountable::validate(at, object, old).await?;
    pod_security::validate(at, object, old).await?;
    if at.resource.row.group() == hooks::GROUP {
        Box::pin(policy::grants::check(at, object, old)).await?;
    }
    let Some(others) = at.others().await? else { return Ok(()) };
    let operation = if old.is_some() { Operation::Update } else { Operation::Create };
    let review = Box::pin(Review::of_write(at, operation, meta::name(object), dry_run)).await;
    Box::pin(others.validate(&review, Some(object), old)).await
}

/// What it takes of the quotas of its namespace; the operations go into the transaction that stores it, which is then to be
/// settled. The last of all: only what may be is charged, and until that is done nobody outside is waited for, since others wait
/// for their turn.
pub(crate) async fn charge<'a>(
    at: &Attributes<'a>,
    object: &Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<Charge<'a>, Status> {
    quota::charge(at, object, old, dry_run).await
}

/// Whether objects of this resource hold something that is given out once in the cluster.
pub(crate) fn allocates(resource: &Resource) -> bool {
    is(resource, "", "services") || is(resource, "", "nodes")
}

/// Gives an object what is given out once in the cluster; the operations go into the transaction that stores it.
pub(crate) fn allocate(at: &Attributes<'_>, object: &mut Value, old: Option<&Value>) -> Result<Vec<Op>, Status> {
    match at.resource.row.resource() {
        _ if !allocates(at.resource) || !at.subresource.is_empty() => Ok(Vec::new()),
        "nodes" if old.is_some() => pod_range::check(at.cluster, object).map(|()| Vec::new()),
        "nodes" => pod_range::allocate(at, object),
        _ => network::allocate(at, object, old),
    }
}

/// What an object that goes gives back, in the transaction that removes it.
pub(crate) fn release(cluster: &Cluster, resource: &Resource, old: &Value) -> Vec<Op> {
    match resource.row.resource() {
        _ if is(resource, "", "resourcequotas") => quota::release(cluster, old),
        _ if !allocates(resource) => Vec::new(),
        "nodes" => pod_range::release(cluster, old),
        _ => network::release_all(cluster, old),
    }
}

fn is(resource: &Resource, group: &str, name: &str) -> bool {
    (resource.row.group(), resource.row.resource()) == (group, name)
}
