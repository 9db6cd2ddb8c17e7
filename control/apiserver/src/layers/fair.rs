//! Priority and fairness at the edge: a request that is understood is told where it belongs, and every answer says so. Its seat
//! it takes when its body is here ([`Fairness::seat`]).
//!
//! It is behind authentication, since it asks who calls, and before authorization: who may not do something is also answered
//! by the name of somebody.

use axum::response::Response;
use http::{HeaderName, HeaderValue};

use crate::authz;
use crate::fairness::{About, Asked, Fairness, Ticket};
use crate::limits::Class;
use crate::request::call::Call;

/// Uids of the schema and the level of a request, in its answer.
const HEADERS: [HeaderName; 2] = [
    HeaderName::from_static("x-kubernetes-pf-flowschema-uid"),
    HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid"),
];

/// What is said in an answer of where its request belonged.
pub(crate) struct Belongs([Option<HeaderValue>; 2]);

/// Where a request belongs, and what its answer says of that.
pub(crate) async fn ticket(fairness: &Fairness, call: &Call) -> (Ticket, Belongs) {
    let own = call.flow().class == Class::Own;
    let about = About { identity: call.identity.clone(), method: call.method.clone(), uri: call.uri.clone() };
    let ticket = fairness.ticket(&call.identity, own, &asked(call)).await.of(about);
    let uids = ticket.uids().map(|uid| uid.cloned());
    (ticket, Belongs(uids))
}

impl Belongs {
    /// Says it.
    pub fn say(self, answer: &mut Response) {
        for (name, uid) in HEADERS.into_iter().zip(self.0) {
            if let Some(uid) = uid {
                answer.headers_mut().insert(name, uid);
            }
        }
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
