//! Deleting what a selector selects, one object after the other; the answer lists them.

use std::sync::Arc;

use axum::response::Response;
use coracle_api::status::Status;
use coracle_keyspace::Record;

use super::delete;
use super::list::{self, Page};
use super::selection::ListOptions;
use crate::admission;
use crate::answer::table::Include;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::request::call::Request;
use crate::request::negotiate::Offer;
use crate::request::spent::Spent;
use crate::store::{self, memo};

/// Deletions under way at a time.
const AT_A_TIME: usize = 64;

pub(crate) async fn deletecollection(
    cluster: &Cluster,
    request: &Request,
    resource: &Arc<Resource>,
) -> Result<Response, Status> {
    use futures::stream::{self, StreamExt};
    let call = &request.call;
    let form = resource.form(call, Offer::Stored)?;
    let include = Include::of(&call.query)?;
    let options = delete::options(request)?;
    delete::warn(call, resource, &options);
    let selection = ListOptions::of(call, resource, false)?;
    // Where all are meant, what cannot be opened goes as by its name; whether a selector means it nobody knows.
    let check: fn(&Record) -> Result<(), Status> = match selection.selects_all() {
        true => |_| Ok(()),
        false => store::check_opened,
    };
    let Page { revision, records, next, remaining, held } =
        list::page(cluster, call, resource, &selection, check).await?;
    let at = delete::attributes(cluster, call, resource, &options);
    let asked = at.asks();
    let outcomes: Vec<Result<Option<_>, Status>> = stream::iter(records)
        .map(|record| {
            let options = options.clone();
            async move {
                let name = record.key.name.clone();
                admission::delete(resource, memo::split(&name).1)?;
                // Each is admitted as a request of its own.
                let spent = Spent::default();
                let at = admission::Attributes { spent: &spent, ..at };
                // The answer shows what was listed, not what became of it.
                let (listed, mut record, mut turn) = (record.clone(), record, None);
                loop {
                    match delete::remove_record(cluster, &call.identity, resource, &record, &options, Some((&at, "")))
                        .await?
                    {
                        // Nothing in the place of a Secret would be taken for an empty one.
                        Some(_) => return Ok(Some(listed).filter(|listed| listed.why_unreadable().is_none())),
                        None if turn.is_none() && !asked => turn = Some(cluster.store.turn(resource, &name).await),
                        None => {}
                    }
                    match cluster.store.read(resource, &name).await? {
                        Some(newer) => record = newer,
                        None => return Ok(None),
                    }
                }
            }
        })
        .buffered(AT_A_TIME)
        .collect()
        .await;
    let mut records = Vec::with_capacity(outcomes.len());
    for outcome in outcomes {
        records.extend(outcome?);
    }
    Ok(list::encode(form, resource, Page { revision, records, next, remaining, held }, include))
}
