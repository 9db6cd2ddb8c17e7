//! Watches: what is there, then what happens, until the client leaves or time is up (kubernetes-api §11).
//!
//! An event is encoded once for all who watch in the common forms ([`Event::frame`]); a watcher only chooses and copies.

mod frame;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use coracle_api::status::Status;
use coracle_keyspace::{Batch, Event, EventKind, Record, Records, Revision, WatchEnded, Watcher};
use futures::stream;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use self::frame::{Encoder, Kind};
use super::list;
use super::selection::ListOptions;
use crate::answer::respond;
use crate::answer::table::Include;
use crate::authz;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::conversion;
use crate::limits::Place;
use crate::request::call::Call;
use crate::request::negotiate::{Format, Offer};
use crate::store::keyed::Subscription;
use crate::store::leases::{self, Renewals};
use crate::store::{self, Seen};

/// How often a quiet watch says how far it is.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A last bookmark before the end, so that the client goes on from there.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// Shortest life of a watch whose client names none; it is drawn up to twice as long.
const LIFE: Duration = Duration::from_secs(30 * 60);
/// Frames that are sent as one piece.
const PIECE_BYTES: usize = 64 << 10;
/// Records that are looked into for one piece, where a form needs that, or that somebody outside has to convert: so many are
/// looked into aside.
const PIECE_BYTES_READ: usize = 256 << 10;
/// Events that are converted for one piece, with what was before them.
const PIECE_EVENTS: usize = 250;
/// Terms of a selector that are looked at between two turns of the others, when few records are selected; of a selector of
/// few terms that are a thousand records.
const TERMS_LOOKED_AT: usize = 8_000;
const TERMS_OF_FEW: usize = 8;

pub(crate) async fn watch(
    cluster: &Cluster,
    call: &Call,
    resource: &Arc<Resource>,
    server: Around<'_>,
    place: Place,
) -> Result<Response, Status> {
    if call.is_connected && cluster.store.keyspace.alone_for().is_some() {
        return Err(Status::service_unavailable(
            "this server has no majority of the servers, and does not hear what happens",
        ));
    }
    let form = resource.form(call, Offer::Watch)?;
    let mut options = ListOptions::of(call, resource, true)?;
    authz::node::narrow(cluster, call, resource, &mut options.fields);
    let include = Include::of(&call.query)?;
    let revision = options.revision().map_err(|error| Status::unknown_error(error.to_string()))?;
    let encoder = Encoder::new(form, resource.clone(), include);
    let content_type = match form.format {
        Format::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => "application/json",
    };
    let start = begin(cluster, call, resource, &options, revision, encoder, server, place).await;
    let body = match start {
        Ok(watch) => Body::from_stream(stream::unfold(watch, |mut watch| async move {
            let piece = watch.next().await?;
            Some((Ok::<Bytes, Infallible>(piece), watch))
        })),
        // The stream has begun for the client: the error is its first and last event.
        Err((encoder, status)) => Body::from(encoder.error(&status)),
    };
    Ok(respond::bytes(200, content_type, body))
}

#[expect(clippy::too_many_arguments, reason = "what a watch is made of, each once")]
async fn begin(
    cluster: &Cluster,
    call: &Call,
    resource: &Arc<Resource>,
    options: &ListOptions,
    revision: Option<Revision>,
    encoder: Encoder,
    server: Around<'_>,
    place: Place,
) -> Result<Watch, (Encoder, Status)> {
    let keyspace = &cluster.store.keyspace;
    let collection = resource.row.collection();
    let unset = revision.is_none_or(|revision| revision.get() == 0);
    let initial = options.initial_events.unwrap_or(unset);
    let fresh = match revision {
        None => cluster.store.barrier().await.map(drop),
        Some(revision) if revision.get() > 0 && initial => cluster.store.not_older_than(revision).await,
        Some(_) => Ok(()),
    };
    if let Err(status) = fresh {
        return Err((encoder, status));
    }
    let namespace = options.namespace(call, resource).map(str::to_owned);
    let mut backlog = None;
    // The state is read before the watch begins at its revision, so nothing falls between them.
    let after = if initial {
        let snapshot = keyspace.snapshot(collection);
        let records = cluster.store.all_renewed(resource, namespace.as_deref(), snapshot.records).await;
        let records = options.candidates(namespace.as_deref(), resource, records);
        if options.needs_facts() && !conversion::is_needed(resource) {
            let asked: Vec<_> = store::range(&records, namespace.as_deref(), None).map(|(_, r)| r.clone()).collect();
            store::warm(resource, &asked, |seen: &Seen<'_>| seen.learn()).await;
        }
        let until = Instant::now() + server.initial_max;
        backlog = Some(Backlog { records, namespace: namespace.clone(), after: None, until });
        snapshot.revision
    } else if unset {
        keyspace.snapshot(collection).revision
    } else {
        revision.unwrap_or_default()
    };
    let store = &cluster.store;
    let source = match options.key(namespace.as_deref(), resource) {
        Some(key) => {
            store.keyed.subscribe(keyspace, resource, key, after, (server.tasks, server.stopping)).map(Source::Keyed)
        }
        None => keyspace.watch(collection, after).map(Source::All),
    };
    let source = match source {
        Ok(source) => source,
        Err(compacted) => {
            let message = format!("too old resource version: {} ({})", after, compacted.0);
            return Err((encoder, Status::expired(message)));
        }
    };
    let life = options.timeout.unwrap_or_else(|| LIFE + LIFE.mul_f64(rand::random::<f64>()));
    let now = Instant::now();
    Ok(Watch {
        encoder,
        resource: resource.clone(),
        options: options.clone(),
        prefix: namespace.as_ref().map(|namespace| format!("{namespace}/")),
        backlog,
        renewals: store.renewals(resource, namespace.as_deref()),
        // The end of the initial events is told when they were asked for by name.
        marks_end: initial && options.initial_events == Some(true) && options.bookmarks,
        converts: conversion::is_needed(resource).then(|| server.cluster.clone()),
        untold: VecDeque::new(),
        source,
        seen: after,
        end: now + life,
        alarm: Box::pin(tokio::time::sleep_until(if options.bookmarks {
            now + BOOKMARK_EVERY.min(life.saturating_sub(BOOKMARK_BEFORE_END))
        } else {
            now + life
        })),
        stopping: Box::pin(server.stopping.clone().cancelled_owned()),
        stop: server.stopping.clone(),
        cut_off: call.is_connected.then(|| Box::pin(keyspace.cut_off()) as _),
        ended: false,
        retired: resource.custom.as_ref().map(|custom| Box::pin(custom.retired.clone().cancelled_owned())),
        _place: place,
    })
}

/// Waits for somebody outside no longer than until then, and not when the server stops.
async fn in_time<T>(stop: &CancellationToken, until: Instant, work: impl Future<Output = T>) -> Option<T> {
    let work = stop.run_until_cancelled(Box::pin(work));
    tokio::time::timeout_at(until, work).await.ok().flatten()
}

/// When it happens, if it may.
async fn happens<F: Future<Output = ()> + ?Sized>(may: &mut Option<Pin<Box<F>>>) {
    match may {
        Some(may) => may.await,
        None => std::future::pending().await,
    }
}

/// What a watch needs of the server beside its data.
#[derive(Clone, Copy)]
pub(crate) struct Around<'a> {
    pub cluster: &'a Arc<Cluster>,
    pub stopping: &'a CancellationToken,
    pub tasks: &'a TaskTracker,
    /// Within which what was there at the beginning is to be read, as a list is: it is held until then, however much of it was
    /// replaced meanwhile.
    pub initial_max: Duration,
}

/// Where events come from.
enum Source {
    /// Everything of the collection.
    All(Watcher),
    /// What has to do with one name or node, and little else.
    Keyed(Subscription),
}

impl Source {
    async fn next(&mut self) -> Result<Batch, WatchEnded> {
        match self {
            Source::All(watcher) => watcher.next().await,
            Source::Keyed(subscription) => subscription.next().await,
        }
    }

    fn pending(&mut self) -> Result<Batch, WatchEnded> {
        match self {
            Source::All(watcher) => watcher.pending(),
            Source::Keyed(subscription) => subscription.pending(),
        }
    }

    fn is_ahead(&self) -> bool {
        match self {
            Source::All(watcher) => watcher.is_ahead(),
            Source::Keyed(subscription) => subscription.is_ahead(),
        }
    }
}

struct Watch {
    encoder: Encoder,
    resource: Arc<Resource>,
    options: ListOptions,
    prefix: Option<String>,
    backlog: Option<Backlog>,
    marks_end: bool,
    source: Source,
    /// Where what is told has to be converted first: piece by piece, when it is read.
    converts: Option<Arc<Cluster>>,
    /// What has happened up to there, and is not converted yet.
    untold: VecDeque<Arc<Event>>,
    renewals: Option<Renewals>,
    /// Everything up to here was sent, or is untold.
    seen: Revision,
    end: Instant,
    /// Rings for the next bookmark, and at the end.
    alarm: Pin<Box<Sleep>>,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
    stop: CancellationToken,
    /// Of this server from the others: its client goes on at one that hears what happens.
    cut_off: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    ended: bool,
    /// Of a custom resource: over when it is served no more as it is.
    retired: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _place: Place,
}

/// Records that were there when the watch began and are not sent yet: a place in a snapshot, which is shared.
struct Backlog {
    records: Records,
    namespace: Option<String>,
    after: Option<Arc<str>>,
    /// When it is let go of.
    until: Instant,
}

impl Watch {
    /// The next bytes; `None` when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            // Under a steady stream of events the waiting below never gets to its other branches.
            let is_told = self.ended && self.untold.is_empty();
            if is_told || self.stop.is_cancelled() || Instant::now() >= self.end {
                return None;
            }
            if self.backlog.as_ref().is_some_and(|backlog| Instant::now() >= backlog.until) {
                self.ended = true;
                return Some(self.encoder.error(&Status::expired("the initial events were not read in time")));
            }
            if self.backlog.is_some() || self.marks_end {
                let piece = self.initial().await;
                if !piece.is_empty() {
                    return Some(piece);
                }
                tokio::task::yield_now().await;
                continue;
            }
            if !self.untold.is_empty() {
                let piece = self.convert_some().await;
                if !piece.is_empty() {
                    return Some(piece);
                }
                continue;
            }
            // The alarm and the end of the server stay registered between events: a thousand watchers that register
            // anew with each event would meet at their locks.
            tokio::select! {
                biased;
                batch = self.source.next() => match batch {
                    Ok(batch) => {
                        let piece = self.told(batch.events).await;
                        self.seen = self.seen.max(batch.revision);
                        if !piece.is_empty() {
                            return Some(piece);
                        }
                    }
                    Err(ended) => return self.over(ended),
                },
                () = &mut self.alarm => {
                    if Instant::now() >= self.end {
                        return None;
                    }
                    let next = self.after_bookmark();
                    self.alarm.as_mut().reset(next);
                    match self.bookmark().await {
                        Ok(piece) if piece.is_empty() => {}
                        Ok(piece) => return Some(piece),
                        Err(ended) => return self.over(ended),
                    }
                }
                renewed = leases::next(&mut self.renewals) => match self.renewed(renewed) {
                    Ok(piece) if piece.is_empty() => {}
                    Ok(piece) => return Some(piece),
                    Err(ended) => return self.over(ended),
                },
                () = &mut self.stopping => return None,
                () = happens(&mut self.cut_off) => {
                    self.ended = true;
                    return None;
                }
                () = happens(&mut self.retired) => {
                    // What happened until then is told by what it was.
                    self.ended = true;
                    let last = self.source.pending().ok()?;
                    let piece = self.told(last.events).await;
                    if !piece.is_empty() {
                        return Some(piece);
                    }
                }
            }
        }
    }

    /// The last that a watch tells. Nothing when the server stops: its client goes on at another from where it is, and does
    /// not list again.
    fn over(&mut self, why: WatchEnded) -> Option<Bytes> {
        self.ended = true;
        match why {
            WatchEnded::Stopped => None,
            WatchEnded::Compacted(_) => Some(self.encoder.error(&Status::expired(why.to_string()))),
        }
    }

    /// How far the watch is, of a quiet kind as of a busy one, behind the events up to there. Nothing when that lies in the
    /// future: nobody knows what will have happened by then.
    async fn bookmark(&mut self) -> Result<Bytes, WatchEnded> {
        let batch = self.source.pending()?;
        let events = self.told(batch.events).await;
        self.seen = self.seen.max(batch.revision);
        if self.source.is_ahead() || self.ended || !self.untold.is_empty() {
            return Ok(events);
        }
        let bookmark = self.encoder.bookmark(self.seen, false);
        Ok(if events.is_empty() { bookmark } else { [events, bookmark].concat().into() })
    }

    /// What was renewed, this and more, behind the events up to now: as of there, so that a client that goes on from it
    /// misses nothing. What has not come yet, or has changed meanwhile, is told as an event.
    fn renewed(&mut self, first: Arc<Record>) -> Result<Bytes, WatchEnded> {
        let batch = self.source.pending()?;
        let mut out = BytesMut::from(self.events(&batch.events));
        self.seen = self.seen.max(batch.revision);
        let mut next = Some(first);
        while let Some(renewed) = next {
            let valid = |renewals: &Renewals| renewals.is_valid(&renewed) && renewed.revision <= self.seen;
            if self.renewals.as_ref().is_some_and(valid) && !self.source.is_ahead() {
                let as_of_now = Arc::new(renewed.at_revision(self.seen));
                let seen = Seen::new(&self.resource, &as_of_now);
                let asked = self.prefix.as_ref().is_none_or(|prefix| renewed.key.name.starts_with(prefix.as_str()));
                if asked && (self.options.selects_all() || seen.matches(&self.options.labels, &self.options.fields)) {
                    self.encoder.record(&mut out, Kind::Modified, &seen);
                }
            }
            let more = self.renewals.as_mut().filter(|_| out.len() < PIECE_BYTES);
            next = more.and_then(Renewals::try_next);
        }
        Ok(out.freeze())
    }

    /// The frames of events as clients of this version see them; what has to be converted and is more than one piece stays
    /// untold until that is sent.
    async fn told(&mut self, mut events: Vec<Arc<Event>>) -> Bytes {
        if self.converts.is_none() {
            return self.events(&events);
        }
        if let Some(prefix) = &self.prefix {
            events.retain(|event| event.record.key.name.starts_with(prefix.as_str()));
        }
        self.untold.extend(events);
        self.convert_some().await
    }

    /// The next of what is untold. One that cannot be converted ends the watch.
    async fn convert_some(&mut self) -> Bytes {
        let (mut events, mut bytes) = (Vec::new(), 0);
        while bytes < PIECE_BYTES_READ
            && events.len() < PIECE_EVENTS
            && let Some(event) = self.untold.pop_front()
        {
            bytes += event.record.bytes.len() + event.previous.as_ref().map_or(0, |before| before.bytes.len());
            events.push(event);
        }
        let Some(cluster) = self.converts.clone().filter(|_| !events.is_empty()) else { return Bytes::new() };
        let resource = self.resource.clone();
        match in_time(&self.stop, self.end, conversion::events(&cluster, &resource, events)).await {
            Some(Ok(events)) => self.events(&events),
            Some(Err(status)) => self.broken(&status),
            // What was to be told is not: whoever goes on does so from before it.
            None => {
                self.ended = true;
                Bytes::new()
            }
        }
    }

    /// The last word of a watch whose events cannot be told.
    fn broken(&mut self, status: &Status) -> Bytes {
        self.ended = true;
        self.untold.clear();
        self.encoder.error(status)
    }

    /// When the bookmark after this one is due; after the last one it is the end.
    fn after_bookmark(&self) -> Instant {
        let now = Instant::now();
        let last = self.end.checked_sub(BOOKMARK_BEFORE_END).unwrap_or(self.end);
        if now < last { (now + BOOKMARK_EVERY).min(last) } else { self.end }
    }

    /// Some of what was there at the beginning.
    async fn initial(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        if let Some(Backlog { records, namespace, after, until }) = self.backlog.take() {
            let most = TERMS_LOOKED_AT / self.options.terms().max(TERMS_OF_FEW);
            let form = self.encoder.form();
            let is_plain = list::is_plain(form, &self.resource) && self.converts.is_none();
            let read_max = if is_plain { PIECE_BYTES } else { PIECE_BYTES_READ };
            let (mut next, mut read) = (Vec::new(), 0);
            for (_, record) in store::range(&records, namespace.as_deref(), after.as_deref()).take(most) {
                next.push(record.clone());
                read += record.bytes.len();
                if read >= read_max {
                    break;
                }
            }
            let last = next.last().filter(|_| read >= read_max || next.len() == most);
            let last = last.map(|last| last.key.name.clone());
            if let Some(cluster) = self.converts.clone() {
                let resource = self.resource.clone();
                let converted = conversion::each(&cluster, &resource, next);
                match in_time(&self.stop, until.min(self.end), converted).await {
                    Some(Ok(converted)) => next = converted,
                    Some(Err(status)) => return self.broken(&status),
                    None => {
                        self.backlog = Some(Backlog { records, namespace, after, until });
                        return Bytes::new();
                    }
                }
            }
            let after = last;
            if let Err(status) = next.iter().try_for_each(|record| store::check_opened(record)) {
                return self.broken(&status);
            }
            let selected = |record: &Arc<Record>| {
                self.options.selects_all()
                    || Seen::new(&self.resource, record).matches(&self.options.labels, &self.options.fields)
            };
            next.retain(selected);
            list::warm(form, &self.resource, &next).await;
            for record in &next {
                self.encoder.record(&mut out, Kind::Added, &Seen::new(&self.resource, record));
            }
            if after.is_some() {
                self.backlog = Some(Backlog { records, namespace, after, until });
                return out.freeze();
            }
        }
        if std::mem::take(&mut self.marks_end) {
            out.extend_from_slice(&self.encoder.bookmark(self.seen, true));
        }
        out.freeze()
    }

    /// The frames of a batch of events, as one piece.
    fn events(&mut self, events: &[Arc<Event>]) -> Bytes {
        let mut single: Option<Bytes> = None;
        let mut out = BytesMut::new();
        for event in events {
            let Some(frame) = self.frame(event) else { continue };
            match single.take() {
                None if out.is_empty() => single = Some(frame),
                None => out.extend_from_slice(&frame),
                Some(first) => {
                    out.reserve(first.len() + frame.len());
                    out.extend_from_slice(&first);
                    out.extend_from_slice(&frame);
                }
            }
            if event.record.why_unreadable().is_some() {
                break;
            }
        }
        single.unwrap_or_else(|| out.freeze())
    }

    /// The frame of an event, if this watcher is to hear of it.
    fn frame(&mut self, event: &Arc<Event>) -> Option<Bytes> {
        if self.prefix.as_ref().is_some_and(|prefix| !event.record.key.name.starts_with(prefix.as_str())) {
            return None;
        }
        if let Err(status) = store::check_opened(&event.record) {
            return Some(self.broken(&status));
        }
        if self.options.selects_all() {
            return Some(self.encoder.event(event));
        }
        let matches = |record: &Arc<Record>| {
            Seen::new(&self.resource, record).matches(&self.options.labels, &self.options.fields)
        };
        let before = event.previous.as_ref().is_some_and(matches);
        let now = event.kind == EventKind::Put && matches(&event.record);
        match (before, now) {
            (false, false) => None,
            // The whole object went, or it came into being: what everybody hears.
            (true, true) => Some(self.encoder.event(event)),
            (false, true) if event.previous.is_none() => Some(self.encoder.event(event)),
            (true, false) if event.kind == EventKind::Delete => Some(self.encoder.event(event)),
            (false, true) => {
                let mut out = BytesMut::new();
                self.encoder.record(&mut out, Kind::Added, &Seen::new(&self.resource, &event.record));
                Some(out.freeze())
            }
            (true, false) => {
                let previous = event.previous.as_ref()?;
                Some(self.encoder.left(&Seen::new(&self.resource, previous), event.record.revision))
            }
        }
    }
}
