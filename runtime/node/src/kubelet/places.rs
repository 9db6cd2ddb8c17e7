//! Places of those who are known: of API servers, and of other nodes' links. Neither takes those of the other; and of an API server's,
//! what its clients do with the pods of one namespace has a share, so that nobody keeps others from theirs.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use coracle_proxy::{Share, Shares};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::refusal;
use super::socket::Watch;
use crate::network::LINKS_MAX;

/// Connections of API servers at the same time, with what they have become; more are closed.
pub(crate) const API_SERVERS_MAX: usize = if cfg!(test) { 24 } else { 1024 };
/// Those of them that are for pods. The others are for the node itself: its figures, what is asked of its Services.
pub(crate) const FOR_PODS_MAX: usize = API_SERVERS_MAX - API_SERVERS_MAX / 8;
/// Links of one node: those that it makes, and as many that it does not use any more without having said so. Of more the oldest
/// gives way.
const PER_NODE_MAX: usize = 2 * LINKS_MAX;
/// Links of all nodes; more are closed.
const ALL_LINKS_MAX: usize = 8192;

/// Those of API servers.
pub(super) struct ApiServers(Arc<Semaphore>);

/// The place of an API server's connection, as long as anything holds it: the connection, or a protocol to which it has changed.
/// It is among the extensions of its requests.
#[derive(Clone)]
pub(super) struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
    api_server: Watch,
    /// Of its namespace, where a request is for a pod.
    share: Option<Arc<Share<String>>>,
}

/// Does what a connection has become, in its place, until that has ended or the API server has gone.
pub(super) async fn hold(place: Option<Place>, work: impl Future<Output = ()>) {
    let Some(place) = place else { return work.await };
    tokio::select! {
        () = work => {}
        () = place.api_server.gone() => tracing::debug!("an API server has gone"),
    }
}

/// Shares of those places, by namespace.
pub(super) type ByNamespace = Arc<Shares<String>>;

/// None is taken.
pub(super) fn by_namespace() -> ByNamespace {
    Shares::new(FOR_PODS_MAX)
}

/// Answers a request for a pod within its namespace's share, which is held as long as the answer or what comes of it goes on.
pub(super) async fn share(
    State(shares): State<ByNamespace>,
    Path(path): Path<HashMap<String, String>>,
    mut request: Request,
    next: Next,
) -> Response {
    let namespace = path.get("namespace").map(String::as_str).unwrap_or_default();
    let Some(share) = shares.take(namespace.to_owned(), 1) else {
        let message = format!("too many connections to pods of namespace {namespace:?} on this node");
        return refusal(StatusCode::SERVICE_UNAVAILABLE, message);
    };
    let share = Arc::new(share);
    if let Some(place) = request.extensions_mut().get_mut::<Place>() {
        place.share = Some(share.clone());
    }
    next.run(request).await.map(|body| Body::new(Shared { body, _share: share }))
}

/// The body of an answer, which goes on in its share.
struct Shared {
    body: Body,
    _share: Arc<Share<String>>,
}

impl http_body::Body for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Default for ApiServers {
    fn default() -> ApiServers {
        ApiServers(Arc::new(Semaphore::new(API_SERVERS_MAX)))
    }
}

impl ApiServers {
    /// A place for one more connection.
    pub fn enter(&self, api_server: Watch) -> Option<Place> {
        let permit = self.0.clone().try_acquire_owned().ok()?;
        Some(Place { _permit: Arc::new(permit), api_server, share: None })
    }
}

/// Those of links, by the names of the nodes that made them.
#[derive(Default)]
pub(super) struct Links(Mutex<Table>);

#[derive(Default)]
struct Table {
    next: u64,
    count: usize,
    by_node: HashMap<String, VecDeque<(u64, CancellationToken)>>,
}

/// The place of a link, until it is dropped.
pub(super) struct Link {
    links: Arc<Links>,
    node: String,
    number: u64,
    /// It has to leave.
    pub over: CancellationToken,
}

impl Links {
    /// A place for one more link of this node; `None` when there are too many of all.
    pub fn enter(self: &Arc<Self>, node: String) -> Option<Link> {
        let mut table = self.0.lock();
        let table = &mut *table;
        let own = table.by_node.entry(node.clone()).or_default();
        while own.len() >= PER_NODE_MAX
            && let Some((_, oldest)) = own.pop_front()
        {
            oldest.cancel();
            table.count -= 1;
        }
        if table.count >= ALL_LINKS_MAX {
            if own.is_empty() {
                table.by_node.remove(&node);
            }
            return None;
        }
        let (number, over) = (table.next, CancellationToken::new());
        own.push_back((number, over.clone()));
        (table.next, table.count) = (number + 1, table.count + 1);
        Some(Link { links: self.clone(), node, number, over })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut table = self.links.0.lock();
        let table = &mut *table;
        let Some(own) = table.by_node.get_mut(&self.node) else { return };
        // One that has given way is not there any more.
        if let Some(at) = own.iter().position(|(number, _)| *number == self.number) {
            own.remove(at);
            table.count -= 1;
        }
        if own.is_empty() {
            table.by_node.remove(&self.node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_s_newest_links_stay_and_others_have_theirs() {
        let links = Arc::new(Links::default());
        let enter = |name: &str| links.enter(name.to_owned()).unwrap();
        let other = enter("other");
        let mut own: Vec<Link> = (0..PER_NODE_MAX).map(|_| enter("one")).collect();
        assert!(own.iter().all(|link| !link.over.is_cancelled()));
        own.push(enter("one"));
        let over: Vec<bool> = own.iter().map(|link| link.over.is_cancelled()).collect();
        assert_eq!(over.iter().position(|over| *over), Some(0));
        assert_eq!(over.iter().filter(|over| **over).count(), 1);
        drop(own.pop());
        own.push(enter("one"));
        assert!(!own[1].over.is_cancelled() && !other.over.is_cancelled(), "a place was free");
        // However many names there are.
        let many: Vec<Link> = (PER_NODE_MAX + 1..ALL_LINKS_MAX).map(|n| enter(&n.to_string())).collect();
        assert!(links.enter("late".to_owned()).is_none());
        assert!(links.enter("one".to_owned()).is_some(), "in the place of its oldest");
        drop((own, other, many));
        let table = links.0.lock();
        assert!(table.count == 0 && table.by_node.is_empty());
    }
}
