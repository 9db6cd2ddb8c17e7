//! The API as a service within the process: for clients that need no network.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};

use coracle_keyspace::Lead;

use crate::identity::Identity;
use crate::limits::Here;
use crate::router;
use crate::server::Shared;
use crate::store;

/// Answers requests of one caller. Cheap to clone.
#[derive(Clone)]
pub struct InProcess {
    shared: Arc<Shared>,
    identity: Identity,
    lead: Option<Lead>,
}

impl InProcess {
    pub(crate) fn new(shared: Arc<Shared>, identity: Identity) -> InProcess {
        InProcess { shared, identity, lead: None }
    }

    /// The same for a duty that only a leader has: whatever it writes is written under `lead` or not at all.
    pub fn under(self, lead: Lead) -> InProcess {
        InProcess { lead: Some(lead), ..self }
    }
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.identity.clone());
        request.extensions_mut().insert(Here);
        let shared = self.shared.clone();
        let lead = self.lead;
        let answer: Pin<Box<dyn Future<Output = Response<Body>> + Send>> = Box::pin(router::handle(shared, request));
        Box::pin(async move { Ok(store::under(lead, answer).await) })
    }
}
