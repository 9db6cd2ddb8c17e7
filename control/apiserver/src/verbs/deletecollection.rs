//! Deleting what a selector selects, one object after the other; the answer lists them.

use std::sync::Arc;

use axum::response::Response;
use coracle_api::status::Status;

use super::delete::{self, Deleted};
use super::list::{self, Page};
use super::selection::ListOptions;
use crate::admission;
use crate::catalog::Resource;
use crate::edge::call::Request;
use crate::edge::negotiate::Offer;
use crate::server::Shared;
use crate::store::memo;
use crate::table::Include;

/// Deletions under way at a time.
const AT_A_TIME: usize = 64;
/// How often one is tried again when its object changes meanwhile.
const TRIES: usize = 8;

pub(crate) async fn deletecollection(
    server: &Arc<Shared>,
    request: &Request,
    resource: &Arc<Resource>,
) -> Result<Response, Status> {
    use futures::stream::{self, StreamExt};
    let call = &request.call;
    let form = call.form(Offer::Stored)?;
    let include = Include::of(&call.query)?;
    let options = delete::options(request)?;
    let selection = ListOptions::of(call, resource, false)?;
    let Page { revision, records, next, remaining } = list::page(server, call, resource, &selection).await?;
    let outcomes: Vec<Result<Option<_>, Status>> = stream::iter(records)
        .map(|record| {
            let options = options.clone();
            async move {
                let name = record.key.name.clone();
                admission::delete(resource, memo::split(&name).1)?;
                let mut record = record;
                for _ in 0..TRIES {
                    match delete::remove_record(server, resource, &record, &options).await? {
                        Some(Deleted::Gone(record) | Deleted::Marked(record)) => return Ok(Some(record)),
                        None => match server.store.get(resource, &name) {
                            Some(newer) => record = newer,
                            None => return Ok(None),
                        },
                    }
                }
                Err(resource.stale(memo::split(&name).1))
            }
        })
        .buffered(AT_A_TIME)
        .collect()
        .await;
    let mut records = Vec::with_capacity(outcomes.len());
    for outcome in outcomes {
        records.extend(outcome?);
    }
    Ok(list::encode(form, resource, Page { revision, records, next, remaining }, include))
}
