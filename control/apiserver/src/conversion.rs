//! Conversion webhooks (kubernetes-api §22.2): objects of a definition whose versions are turned into each other by somebody
//! outside.
//!
//! ```text
//! records as they are stored ─► each ─► records in the version that was asked for ─► whoever reads, as of any other resource
//! an object that is written  ─► to_stored ─► the same in the version that is stored ─► the keyspace
//! ```
//! What is in the right version already is not sent. Many objects are sent together; what came of a record is kept with it for
//! as long as somebody asks for it, and who asks for it while it is converted waits for that. Of what the webhook answers only
//! labels, annotations and what is beside the metadata is believed: an object stays what it is, and where.

mod review;

use std::sync::Arc;

use coracle_api::status::Status;
use coracle_keyspace::{Event, Record};
use serde_json::Value;

use self::review::{Failure, convert};
use crate::catalog::{Custom, Resource};
use crate::cluster::Cluster;
use crate::hooks::Conversion;
use crate::store::converted::{Asking, Converted, Look};
use crate::store::{Seen, object};

/// Objects of one call, and bytes of them unless one alone is larger: a webhook may make them larger, and its answer has to fit.
const OBJECTS_MAX: usize = 500;
const BYTES_MAX: usize = 1 << 20;

/// Records that are sent together.
struct Batch {
    asking: Asking,
    places: Vec<(usize, Arc<Converted>)>,
    bytes: usize,
}

impl Batch {
    fn new() -> Batch {
        Batch { asking: Asking::new(), places: Vec::new(), bytes: 0 }
    }

    fn takes(&self, bytes: usize) -> bool {
        self.places.is_empty() || self.places.len() < OBJECTS_MAX && self.bytes + bytes <= BYTES_MAX
    }
}

/// The records as clients of this resource see them: those that are stored in another version are converted, if its definition
/// says by whom.
pub(crate) async fn each(
    cluster: &Cluster,
    resource: &Arc<Resource>,
    mut records: Vec<Arc<Record>>,
) -> Result<Vec<Arc<Record>>, Status> {
    let Some((custom, conversion)) =
        resource.custom.as_ref().and_then(|custom| Some((custom, custom.conversion.as_ref()?)))
    else {
        return Ok(records);
    };
    // With each, whether it is asked for together with others who want it.
    let places = (0..records.len()).filter(|at| custom.converter(&records[*at]).is_some());
    let mut open: Vec<(usize, bool)> = places.map(|at| (at, true)).collect();
    while !open.is_empty() {
        let (mut batch, mut waiting) = (Batch::new(), Vec::new());
        for (at, shares) in std::mem::take(&mut open) {
            let (kept, bytes) = (Seen::new(resource, &records[at]).converted(), records[at].bytes.len());
            if !batch.takes(bytes) {
                let full = std::mem::replace(&mut batch, Batch::new());
                ask(cluster, resource, (custom, conversion), &mut records, full).await?;
            }
            let look = if shares { kept.look(&batch.asking) } else { Look::Open };
            match look {
                Look::Known(known) => records[at] = known,
                Look::Asked(asked) => waiting.push((at, kept, asked)),
                Look::Open => {
                    batch.places.push((at, kept));
                    batch.bytes += bytes;
                }
            }
        }
        // Nobody waits for others before everybody who waits for it is answered.
        ask(cluster, resource, (custom, conversion), &mut records, batch).await?;
        for (at, kept, asked) in waiting {
            let has_left = asked.end().await?;
            match kept.known() {
                Some(known) => records[at] = known,
                None => open.push((at, has_left)),
            }
        }
    }
    Ok(records)
}

/// Has a batch converted.
async fn ask(
    cluster: &Cluster,
    resource: &Arc<Resource>,
    (custom, conversion): (&Custom, &Conversion),
    records: &mut [Arc<Record>],
    Batch { asking, places, bytes }: Batch,
) -> Result<(), Status> {
    if places.is_empty() {
        return Ok(());
    }
    let _room = conversion.room(bytes).await;
    let mut objects = Vec::with_capacity(places.len());
    for (at, _) in &places {
        objects.push(Seen::new(resource, &records[*at]).in_own_version()?);
    }
    let is_one = places.len() == 1;
    // What was written is there, whoever cannot show it.
    let unread = |status: Status| Status::internal_error(&status.message);
    let converted = match convert(cluster, conversion, &custom.kind.api_version, &objects).await {
        Ok(converted) => converted,
        Err(Failure::Refused(status)) if !is_one => {
            asking.answered();
            return Err(unread(status));
        }
        Err(Failure::Refused(status) | Failure::Unanswered(status)) => {
            let status = unread(status);
            asking.failed(&status);
            return Err(status);
        }
    };
    let mut wrong = None;
    for ((at, kept), object) in places.into_iter().zip(converted) {
        let renewed = object.map_err(unread).and_then(|mut object| {
            custom.kind.renew(&mut object).map_err(Status::internal_error)?;
            Ok(Arc::new(records[at].renewed(&object::encode(&object))))
        });
        match renewed {
            Ok(record) => {
                kept.keep(record.clone());
                records[at] = record;
            }
            Err(status) => drop(wrong.get_or_insert(status)),
        }
    }
    match &wrong {
        Some(status) if is_one => asking.failed(status),
        _ => asking.answered(),
    }
    wrong.map_or(Ok(()), Err)
}

/// The same of one.
pub(crate) async fn one(
    cluster: &Cluster,
    resource: &Arc<Resource>,
    record: &Arc<Record>,
) -> Result<Arc<Record>, Status> {
    // What nearly every request asks costs nothing, and no room in its future.
    if resource.custom.as_ref().is_none_or(|custom| custom.converter(record).is_none()) {
        return Ok(record.clone());
    }
    let one = Box::pin(each(cluster, resource, vec![record.clone()])).await?;
    Ok(one.into_iter().next().unwrap_or_else(|| record.clone()))
}

/// How many of these, from the first on, are sent together if all of them have to be converted.
pub(crate) fn together(records: &[Arc<Record>]) -> usize {
    let mut bytes = 0;
    let fits = |record: &&Arc<Record>| {
        bytes += record.bytes.len();
        bytes <= BYTES_MAX
    };
    records.iter().take(OBJECTS_MAX).take_while(fits).count().max(1).min(records.len())
}

/// The same of events, with what was before them.
pub(crate) async fn events(
    cluster: &Cluster,
    resource: &Arc<Resource>,
    events: Vec<Arc<Event>>,
) -> Result<Vec<Arc<Event>>, Status> {
    let told = events.iter().flat_map(|event| std::iter::once(event.record.clone()).chain(event.previous.clone()));
    let converted = Box::pin(each(cluster, resource, told.collect())).await?;
    let mut converted = converted.into_iter();
    let mut next = |before: &Arc<Record>| converted.next().unwrap_or_else(|| before.clone());
    let retell = |event: Arc<Event>| {
        let record = next(&event.record);
        let previous = event.previous.as_ref().map(&mut next);
        let is_same = Arc::ptr_eq(&record, &event.record)
            && previous.as_ref().zip(event.previous.as_ref()).is_none_or(|(a, b)| Arc::ptr_eq(a, b));
        if is_same { event } else { Arc::new(event.retold(record, previous)) }
    };
    Ok(events.into_iter().map(retell).collect())
}

/// Whether records of this resource may have to be converted.
pub(crate) fn is_needed(resource: &Resource) -> bool {
    resource.custom.as_ref().is_some_and(|custom| custom.conversion.is_some())
}

/// An object of a resource in the version that is stored, where that is another.
pub(crate) async fn to_stored(cluster: &Cluster, resource: &Resource, object: &Value) -> Result<Option<Value>, Status> {
    let Some(custom) = &resource.custom else { return Ok(None) };
    let stored = &custom.kind.stored_version;
    match &custom.conversion {
        _ if *stored == custom.kind.api_version => Ok(None),
        Some(conversion) => Box::pin(single(cluster, conversion, stored, object)).await.map(Some),
        None => renamed(custom, object).map(Some),
    }
}

/// The same where nobody is asked.
fn renamed(custom: &Custom, object: &Value) -> Result<Value, Status> {
    let mut object = object.clone();
    custom.kind.store(&mut object).map_err(Status::request_too_large)?;
    Ok(object)
}

/// Whether an object that clients of this resource see as it was would be stored as it is: of a version that lacks fields of the
/// stored one it may not be.
pub(crate) fn keeps(resource: &Resource, record: &Arc<Record>, object: &Value) -> Result<bool, Status> {
    let Some(custom) =
        resource.custom.as_ref().filter(|custom| custom.conversion.is_none() && !custom.is_alike(record))
    else {
        return Ok(true);
    };
    let (mut renamed, mut stored) = (renamed(custom, object)?, Seen::new(resource, record).in_own_version()?);
    // That is as it was, but for what is known by the record.
    renamed["metadata"].take();
    stored["metadata"].take();
    Ok(renamed == stored)
}

/// An object of a resource in another of its versions.
pub(crate) async fn to_version(cluster: &Cluster, to: &Resource, mut object: Value) -> Result<Value, Status> {
    let Some(custom) = &to.custom else { return Ok(object) };
    if object["apiVersion"] == custom.kind.api_version {
        return Ok(object);
    }
    match &custom.conversion {
        Some(conversion) => object = single(cluster, conversion, &custom.kind.api_version, &object).await?,
        None => object["apiVersion"] = custom.kind.api_version.as_str().into(),
    }
    custom.kind.renew(&mut object).map_err(Status::internal_error)?;
    Ok(object)
}

/// Has one object converted that is no record.
async fn single(cluster: &Cluster, conversion: &Conversion, wanted: &str, object: &Value) -> Result<Value, Status> {
    let converted = convert(cluster, conversion, wanted, std::slice::from_ref(object)).await?;
    converted.into_iter().next().unwrap_or_else(|| Ok(object.clone()))
}
