//! Priority and fairness at the edge, as a layer: a request that is understood is told where it belongs, and every answer says
//! so. Its seat it takes when its body is here ([`Fairness::seat`]).
//!
//! It is behind authentication, since it asks who calls, and before authorization: who may not do something is also answered
//! by the name of somebody.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::response::Response;
use http::{HeaderName, HeaderValue};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::authz;
use crate::fairness::{Asked, Fairness, Ticket};
use crate::limits::Class;
use crate::request::call::Call;

/// Uids of the schema and the level of a request, in its answer.
const HEADERS: [HeaderName; 2] = [
    HeaderName::from_static("x-kubernetes-pf-flowschema-uid"),
    HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid"),
];

/// A request that is understood, with what else belongs to it.
pub(crate) struct Understood<T> {
    pub call: Call,
    pub with: T,
}

/// The layer.
pub(crate) struct FairLayer<'a>(pub &'a Fairness);

impl<'a, S> Layer<S> for FairLayer<'a> {
    type Service = Fair<'a, S>;

    fn layer(&self, inner: S) -> Fair<'a, S> {
        Fair { fairness: self.0, inner }
    }
}

/// What is behind it gets each request with its ticket.
pub(crate) struct Fair<'a, S> {
    fairness: &'a Fairness,
    inner: S,
}

impl<S, T> Service<Understood<T>> for Fair<'_, S>
where
    S: Service<(Ticket, Understood<T>), Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Understood<T>) -> Self::Future {
        let call = &request.call;
        let own = call.flow().class == Class::Own;
        let ticket = self.fairness.ticket(&call.identity, own, &asked(call));
        let [schema, level] = ticket.uids().map(|uid| uid.cloned());
        Answer { inner: self.inner.call((ticket, request)), uids: [schema, level] }
    }
}

/// What a request asks for.
fn asked(call: &Call) -> Asked<'_> {
    let target = &call.target;
    if target.resource.is_empty() {
        let verb = match call.method.as_str() {
            "GET" => "get",
            "HEAD" => "head",
            "POST" => "post",
            "PUT" => "put",
            "PATCH" => "patch",
            "DELETE" => "delete",
            "OPTIONS" => "options",
            // A list of verbs that is not everything has none of these.
            _ => "",
        };
        return Asked { verb, path: Some(call.uri.path()), group: "", resource: "", subresource: "", namespace: "" };
    }
    let of = authz::Attributes::of(call, authz::verb(call));
    Asked {
        verb: of.verb,
        group: of.group,
        resource: of.resource,
        subresource: of.subresource,
        namespace: of.namespace,
        path: None,
    }
}

pin_project! {
    /// The answer, which says where its request belonged.
    pub(crate) struct Answer<F> {
        #[pin]
        inner: F,
        uids: [Option<HeaderValue>; 2],
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Answer<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        for (name, uid) in HEADERS.into_iter().zip(this.uids.iter_mut()) {
            if let Some(uid) = uid.take() {
                response.headers_mut().insert(name, uid);
            }
        }
        Poll::Ready(Ok(response))
    }
}
