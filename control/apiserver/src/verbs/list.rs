//! Lists: a snapshot, filtered, and a page of it. How it is written is [`body`]'s.

mod body;

use std::sync::Arc;

use axum::response::Response;
use coracle_api::status::Status;
use coracle_keyspace::{Record, Revision};

use super::selection::{ListOptions, Match};
use super::token::Token;
use crate::answer::respond;
use crate::answer::table::Include;
use crate::authz;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::conversion;
use crate::request::call::Call;
use crate::request::negotiate::{Offer, Shape};
use crate::store::{self, Past, Seen};
pub(crate) use body::{encode, is_plain, warm};

/// A list before it is encoded.
pub(crate) struct Page {
    pub revision: Revision,
    pub records: Vec<Arc<Record>>,
    pub next: Option<Token>,
    pub remaining: Option<usize>,
    /// Bytes that it may hold alone: of records that are no more.
    pub held: usize,
}

pub(crate) async fn list(cluster: &Cluster, call: &Call, resource: &Arc<Resource>) -> Result<Response, Status> {
    let form = resource.form(call, Offer::List)?;
    let mut options = ListOptions::of(call, resource, false)?;
    authz::node::narrow(cluster, call, resource, &mut options.fields);
    if let Shape::Metadata { .. } = form.shape {
        let (package, kind) = (respond::package(resource.row.group()), &resource.list_kind);
        let message =
            format!("you requested PartialObjectMetadata, but the requested object is a list (*{package}.{kind})");
        return Err(Status::failure(406, "NotAcceptable", message));
    }
    let include = Include::of(&call.query)?;
    let page = page(cluster, call, resource, &options, store::check_opened).await?;
    warm(form, resource, &page.records).await;
    Ok(encode(form, resource, page, include))
}

/// Reads what the options ask for. `check` says of each that is read whether the page goes on with it.
pub(crate) async fn page(
    cluster: &Cluster,
    call: &Call,
    resource: &Arc<Resource>,
    options: &ListOptions,
    check: fn(&Record) -> Result<(), Status>,
) -> Result<Page, Status> {
    let token = options.continue_token.as_deref().map(Token::decode).transpose()?;
    // Held until only the page is left of what was.
    let (revision, past) = match &token {
        Some(token) => continued(cluster, call, resource, options, token).await?,
        None => begun(cluster, call, resource, options).await?,
    };
    let namespace = options.namespace(call, resource);
    let records = cluster.store.all_renewed(resource, namespace, past.records.clone()).await;
    let records = options.candidates(namespace, resource, records);
    let after = token.as_ref().map(|token| token.after.as_str());
    let asked = || store::range(&records, namespace, after).map(|(_, record)| record.clone()).collect::<Vec<_>>();
    let (mut found, is_cut, remaining) = if conversion::is_needed(resource) && !options.selects_all() {
        let (found, is_cut) = Box::pin(select_converted(cluster, resource, options, &asked())).await?;
        (found, is_cut, None)
    } else {
        if options.needs_facts() {
            store::warm(resource, &asked(), |seen: &Seen<'_>| seen.learn()).await;
        }
        let (mut found, mut is_cut, mut remaining) = (Vec::new(), false, None);
        let mut rest = store::range(&records, namespace, after);
        for (_, record) in rest.by_ref() {
            check(record)?;
            if !options.selects_all() && !Seen::new(resource, record).matches(&options.labels, &options.fields) {
                continue;
            }
            if options.limit > 0 && found.len() == options.limit {
                is_cut = true;
                break;
            }
            found.push(record.clone());
        }
        if is_cut && options.selects_all() {
            // Of everything that is known without counting.
            remaining = Some(match (namespace, &token) {
                (None, None) => records.len() - found.len(),
                _ => rest.count() + 1,
            });
        }
        (found, is_cut, remaining)
    };
    let last = found.last().filter(|_| is_cut);
    let next = last.map(|last| Token { revision: Some(revision), after: last.key.name.to_string() });
    let mut held = past.undone(&found);
    if conversion::is_needed(resource) {
        found = Box::pin(conversion::each(cluster, resource, found)).await?;
        held = found.iter().map(|record| record.bytes.len()).sum();
    }
    Ok(Page { revision, records: found, next, remaining, held })
}

/// Those that are selected by what somebody outside makes of them, and whether there are more than were asked for. So many are
/// asked for as are sent together: who wants few of many does not wait for all.
async fn select_converted(
    cluster: &Cluster,
    resource: &Arc<Resource>,
    options: &ListOptions,
    mut left: &[Arc<Record>],
) -> Result<(Vec<Arc<Record>>, bool), Status> {
    let mut found = Vec::new();
    while !left.is_empty() {
        let (piece, rest) = left.split_at(conversion::together(left));
        left = rest;
        piece.iter().try_for_each(|record| store::check_opened(record))?;
        let piece = conversion::each(cluster, resource, piece.to_vec()).await?;
        if options.needs_facts() {
            store::warm(resource, &piece, |seen: &Seen<'_>| seen.learn()).await;
        }
        for record in piece {
            if !Seen::new(resource, &record).matches(&options.labels, &options.fields) {
                continue;
            }
            if options.limit > 0 && found.len() == options.limit {
                return Ok((found, true));
            }
            found.push(record);
        }
    }
    Ok((found, false))
}

/// Which records, at which revision.
type State = (Revision, Past);

/// The state for the first page (kubernetes-api §10.2).
async fn begun(cluster: &Cluster, call: &Call, resource: &Resource, options: &ListOptions) -> Result<State, Status> {
    let store = &cluster.store;
    let asked =
        options.revision().map_err(|error| Status::bad_request(format!("invalid resource version: {error}")))?;
    let exactly = options.version_match == Some(Match::Exact)
        || (options.version_match.is_none() && options.limit > 0 && asked.is_some_and(|revision| revision.get() > 0));
    match asked {
        None => {
            store.barrier().await?;
        }
        Some(revision) if revision.get() == 0 => {}
        Some(revision) => store.not_older_than(revision).await?,
    }
    let collection = resource.row.collection();
    if let (true, Some(revision)) = (exactly, asked) {
        let past = store.past(collection, revision, call.flow()).await.map_err(|_| {
            Status::expired(format!("The resourceVersion for the provided list is too old: {revision}"))
        })?;
        return Ok((revision, past));
    }
    let snapshot = store.keyspace.snapshot(collection);
    Ok((snapshot.revision, Past::none(snapshot.records)))
}

/// The state for a later page.
async fn continued(
    cluster: &Cluster,
    call: &Call,
    resource: &Resource,
    options: &ListOptions,
    token: &Token,
) -> Result<State, Status> {
    if options.resource_version.as_deref().is_some_and(|version| version != "0") {
        return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
    }
    let collection = resource.row.collection();
    let Some(revision) = token.revision else {
        cluster.store.barrier().await?;
        let snapshot = cluster.store.keyspace.snapshot(collection);
        return Ok((snapshot.revision, Past::none(snapshot.records)));
    };
    cluster.store.not_older_than(revision).await?;
    let past = cluster.store.past(collection, revision, call.flow()).await.map_err(|_| {
        let fresh = Token { revision: None, after: token.after.clone() };
        Status::expired_continue(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter, or use the continue token in this response to retrieve the remainder of \
             the results. Continuing with the provided token results in an inconsistent list - objects that were \
             created, modified, or deleted between the time the first chunk was returned and now may show up in the \
             list.",
            fresh.encode(),
        )
    })?;
    Ok((revision, past))
}
