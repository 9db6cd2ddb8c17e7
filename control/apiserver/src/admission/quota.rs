//! ResourceQuota: a write that takes of what its namespace may have is charged, in its own transaction (the reference's plugin
//! of that name; what is counted is `coracle_api::kinds::quota`'s).
//!
//! ```text
//! one quota is charged:   { the object, the quota with its new status, if it is as it was }
//! others beside it:       { the object, the first quota, a pending charge for each other, which is as it was } ─► folded
//! ```
//! Of the collection of quotas only one record can be written in a transaction (its watchers go on after a revision), so what
//! others take is written beside them, where nobody watches ([`PENDING`]), and folded into their status before the write is
//! answered. Whoever reads a quota to enforce it adds what is pending. So no limit is exceeded, whoever races; a write that is
//! not done takes nothing; and what is pending when a server dies is folded by the next who writes there.
//!
//! Writes that are charged take turns within their namespace on each server: they would refuse each other otherwise, as all of
//! them change the same record. What is given back (deletions, pods that end) is counted by the controller, whose counts are
//! refused while anything is pending and when a charge came between.

use std::sync::Arc;

use bytes::Bytes;
use coracle_api::kinds::quota::{self, Amounts, Quota};
use coracle_api::meta;
use coracle_api::status::Status;
use coracle_keyspace::{Guard, Key, Op, Record, Value as Content};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::MutexGuard;

use super::{Attributes, is};
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::store::{self, Refused, Seen, Store};

/// What was charged and is not in the status of its quota yet; named as the quota.
const PENDING: &str = "coracle.quotacharges";
/// How often a fold is tried when others write the quota; what is left is folded by the next who writes.
const FOLDS_MAX: usize = 16;

/// What a write takes, until it is done.
#[derive(Default)]
pub(crate) struct Charge<'a> {
    /// They go into the write's transaction.
    pub ops: Vec<Op>,
    /// Names of the records of quotas whose charge is written beside them.
    pending: Vec<Arc<str>>,
    _turn: Option<MutexGuard<'a, ()>>,
}

/// A quota as it is stored, and what is pending.
struct Known {
    record: Arc<Record>,
    object: Value,
    pending: Pending,
}

struct Pending {
    /// The record beside the quota, which may be of one before it that had its name.
    record: Option<Arc<Record>>,
    amounts: Amounts,
}

impl Known {
    /// The quotas of a namespace.
    fn all(cluster: &Cluster, quotas: &Resource, namespace: &str) -> Result<Vec<Known>, Status> {
        let records = cluster.store.keyspace.snapshot(quotas.row.collection()).records;
        if records.is_empty() {
            return Ok(Vec::new());
        }
        store::range(&records, Some(namespace), None)
            .map(|(_, record)| {
                let object = Seen::new(quotas, record).stored()?;
                let pending = Pending::of(cluster, &record.key.name, meta::uid(&object))?;
                Ok(Known { record: record.clone(), object, pending })
            })
            .collect()
    }

    fn quota(&self) -> Quota<'_> {
        let status = &self.object["status"];
        let mut used = quota::amounts(&status["used"]);
        sum(&mut used, &self.pending.amounts);
        let hard = quota::amounts(&status["hard"]);
        Quota { name: meta::name(&self.object), spec: &self.object["spec"], hard, used }
    }
}

fn sum(into: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        match into.get_mut(name) {
            Some(before) => *before += amount,
            None => drop(into.insert(name.clone(), amount.clone())),
        }
    }
}

impl Pending {
    /// What is pending for the quota with this uid.
    fn of(cluster: &Cluster, name: &str, uid: &str) -> Result<Pending, Status> {
        let mut pending = Pending::beside(cluster, name);
        if let Some(record) = &pending.record {
            // Its revision stands behind the content.
            let content = record.bytes.get(..record.revision_at.start as usize).unwrap_or_default();
            let content: Value = serde_json::from_slice(content).map_err(|error| {
                Status::internal_error(format_args!("what is pending for the quota {name} cannot be read: {error}"))
            })?;
            if content["uid"] == uid {
                pending.amounts = quota::amounts(&content["amounts"]);
            }
        }
        Ok(pending)
    }

    /// The record beside the quota of this name, whatever is in it.
    fn beside(cluster: &Cluster, name: &str) -> Pending {
        Pending { record: cluster.store.keyspace.get(PENDING, name), amounts: Amounts::new() }
    }

    /// That the record is as it was read.
    fn guard(&self) -> Guard {
        self.record.as_ref().map_or(Guard::Absent, |record| Guard::Revision(record.revision))
    }

    /// The operation after which nothing is pending for the quota of this name.
    fn end(&self, name: &Arc<str>) -> Op {
        let (key, guard) = (Key::new(PENDING, name.clone()), self.guard());
        match self.record {
            Some(_) => Op::Delete { key, guard },
            None => Op::Check { key, guard },
        }
    }
}

/// What a write takes of the quotas of its namespace, or why it may not.
pub(super) async fn charge<'a>(
    at: &Attributes<'a>,
    object: &Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<Charge<'a>, Status> {
    let (Some(quotas), Some(namespace)) = (at.cluster.catalog.named("", "resourcequotas"), at.namespace) else {
        return Ok(Charge::default());
    };
    let row = &at.resource.row;
    if is(at.resource, "", "resourcequotas") && at.subresource == "status" {
        return counted(at, quotas, object).await;
    }
    let write = quota::Write { group: row.group(), resource: row.resource(), subresource: at.subresource, object, old };
    let store = &at.cluster.store;
    let has_quotas = || {
        let records = store.keyspace.snapshot(quotas.row.collection()).records;
        !records.is_empty() && store::range(&records, Some(namespace), None).next().is_some()
    };
    if !write.counts() || !has_quotas() {
        return Ok(Charge::default());
    }
    let turn = if dry_run { None } else { Some(store.charge_turn(namespace).await) };
    let mut is_confirmed = false;
    let (known, charges) = loop {
        let known = Known::all(at.cluster, quotas, namespace)?;
        let enforced: Vec<Quota<'_>> = known.iter().map(Known::quota).collect();
        match quota::charge(&enforced, &write, Timestamp::now()) {
            Ok(charges) => {
                drop(enforced);
                break (known, charges);
            }
            // It may have been decided by records that are old ones here.
            Err(_) if !is_confirmed => {
                store.barrier().await?;
                is_confirmed = true;
            }
            Err(why) => return Err(at.resource.forbidden(meta::name(object), why)),
        }
    };
    if dry_run || charges.is_empty() {
        return Ok(Charge::default());
    }
    let mut charge = Charge { ops: Vec::new(), pending: Vec::new(), _turn: turn };
    // One that is a quota itself has the place in their collection.
    let mut is_free = !is(at.resource, "", "resourcequotas");
    for quota::Charge { quota, added, .. } in charges {
        let Known { record, object, pending } = &known[quota];
        let guard = Guard::Revision(record.revision);
        if std::mem::take(&mut is_free) {
            charge.ops.push(Op::Put {
                key: record.key.clone(),
                value: folded(quotas, object, &[&pending.amounts, &added]),
                guard,
            });
            charge.ops.push(pending.end(&record.key.name));
            continue;
        }
        let mut amounts = pending.amounts.clone();
        sum(&mut amounts, &added);
        let content = json!({"uid": meta::uid(object), "amounts": quota::to_list(&amounts)});
        let bytes = Bytes::from(content.to_string());
        let revision_at = bytes.len();
        charge.ops.push(Op::Put {
            key: Key::new(PENDING, record.key.name.clone()),
            value: Content { bytes, revision_at },
            guard: pending.guard(),
        });
        charge.ops.push(Op::Check { key: record.key.clone(), guard });
        charge.pending.push(record.key.name.clone());
    }
    Ok(charge)
}

/// A quota with more in its status.
fn folded(quotas: &Resource, quota: &Value, more: &[&Amounts]) -> Content {
    let mut used = quota::amounts(&quota["status"]["used"]);
    for more in more {
        sum(&mut used, more);
    }
    let mut quota = quota.clone();
    if !quota["status"].is_object() {
        quota["status"] = json!({});
    }
    quota["status"]["used"] = quota::to_list(&used);
    Store::encode(quotas, &quota)
}

/// The status of a quota is written anew: whoever counted knows nothing of what is pending, so that is folded first, and the
/// quota is another then.
async fn counted<'a>(at: &Attributes<'a>, quotas: &Resource, object: &Value) -> Result<Charge<'a>, Status> {
    let name = quotas.record_name(at.namespace, meta::name(object));
    let pending = Pending::of(at.cluster, &name, meta::uid(object))?;
    if !pending.amounts.is_empty() {
        fold(at.cluster, quotas, &name).await?;
    }
    let ops = vec![Op::Check { key: Key::new(PENDING, name), guard: pending.guard() }];
    Ok(Charge { ops, ..Charge::default() })
}

/// Folds what is pending for a quota into its status.
async fn fold(cluster: &Cluster, quotas: &Resource, name: &Arc<str>) -> Result<(), Status> {
    for _ in 0..FOLDS_MAX {
        let Some(record) = cluster.store.get(quotas, name) else { return Ok(()) };
        let object = Seen::new(quotas, &record).stored()?;
        let pending = Pending::of(cluster, name, meta::uid(&object))?;
        if pending.amounts.is_empty() {
            return Ok(());
        }
        let (value, guard) = (folded(quotas, &object, &[&pending.amounts]), Guard::Revision(record.revision));
        let put = Op::Put { key: Store::key(quotas, name), value, guard };
        match cluster.store.transact(vec![put, pending.end(name)]).await {
            Ok(_) => return Ok(()),
            Err(Refused::Guard(_)) => cluster.store.barrier().await.map(drop)?,
            Err(Refused::Final(status)) => return Err(status),
        }
    }
    Ok(())
}

impl Charge<'_> {
    /// The write is done.
    pub async fn settle(self, cluster: &Cluster) {
        let Some(quotas) = cluster.catalog.named("", "resourcequotas") else { return };
        for name in &self.pending {
            if let Err(error) = fold(cluster, quotas, name).await {
                tracing::debug!(%name, %error, "what a write took of a quota is told in its status later");
            }
        }
    }
}

/// What is pending for a quota goes with it.
pub(super) fn release(cluster: &Cluster, quota: &Value) -> Vec<Op> {
    let name: Arc<str> = format!("{}/{}", meta::namespace(quota), meta::name(quota)).into();
    vec![Pending::beside(cluster, &name).end(&name)]
}
