//! Requests for group versions that another API server serves: passed on to it with who asks, and its answers passed back.
//!
//! Who asks is said in headers (`X-Remote-User` and its like, kubernetes-api §23), which the other server believes because this
//! one proves that it is the front proxy. A client's own headers of these names, its credentials and its wishes to act as
//! somebody go no further than here.
//!
//! A request that is passed on has a place among the streams of its caller and of its APIService, and no seat: whoever waits for
//! another server takes nothing from those who are answered here.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use coracle_api::meta;
use coracle_api::status::Status;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use crate::aggregation::Backend;
use crate::answer::respond;
use crate::callout;
use crate::cluster::Cluster;
use crate::identity::Identity;
use crate::limits::{Class, Flow, Place};
use crate::outward::{self, Target};
use crate::subresources::{Passing, forwarded, forwarded_for, remove_hop_by_hop, tunnel};

const USER: HeaderName = HeaderName::from_static("x-remote-user");
const UID: HeaderName = HeaderName::from_static("x-remote-uid");
const GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const EXTRA: &str = "x-remote-extra-";

/// How long it may take to reach a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a request goes.
fn target(cluster: &Cluster, backend: &Backend, path: String) -> Result<Target, String> {
    let service = (backend.namespace.as_str(), backend.service.as_str(), backend.port);
    callout::behind(cluster, service, path, backend.passage.has_authorities())
}

/// Says in whose name a request is made.
///
/// # Errors
/// Something of it fits no header. Without it the other server would take whoever asks for somebody else.
fn say_who(headers: &mut HeaderMap, who: &Identity) -> Result<(), Status> {
    let wrong = |what: &str, text: &str| {
        let text = meta::text::quote(&outward::words(text));
        Status::bad_request(format!("the {what} of the user cannot be told to another API server in a header: {text}"))
    };
    let mut add = |name: HeaderName, what: &str, text: &str| {
        // Whoever reads a header takes the blanks around it away.
        let value = HeaderValue::from_bytes(text.as_bytes()).ok().filter(|_| text.trim_matches([' ', '\t']) == text);
        headers.append(name, value.ok_or_else(|| wrong(what, text))?);
        Ok::<_, Status>(())
    };
    add(USER, "name", &who.user)?;
    if !who.uid.is_empty() {
        add(UID, "uid", &who.uid)?;
    }
    for group in &who.groups {
        add(GROUP, "group", group)?;
    }
    for (key, values) in &who.extra {
        let name = HeaderName::try_from(format!("{EXTRA}{}", escaped(key))).map_err(|_| wrong("extra key", key))?;
        for value in values {
            add(name.clone(), "extra value", value)?;
        }
    }
    Ok(())
}

/// A key as part of the name of a header: what may not stand there is percent-encoded (as client-go does it).
fn escaped(key: &str) -> String {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    let text = |byte: u8| if is_token(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    key.to_ascii_lowercase().bytes().map(text).collect()
}

/// What the reference says of a server that cannot be asked.
fn unavailable() -> Response {
    respond::text(503, "service unavailable\n")
}

/// And of one that is asked and does not answer.
pub(crate) fn unreachable(why: &str) -> Response {
    respond::text(503, format!("error trying to reach service: {}\n", outward::words(why)))
}

/// How long an answer may take.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Longest {
    /// Until it begins; then it goes on for as long as the client likes.
    Begins(Duration),
    /// Until it is whole: a server that stops in the midst holds nobody up.
    Whole(Duration),
}

/// Passes a request on to this path, with its own query, and its answer back.
pub(crate) async fn pass(
    cluster: &Cluster,
    stopping: &CancellationToken,
    passing: Passing,
    backend: &Arc<Backend>,
    (path, longest): (&str, Longest),
) -> Result<Response, Status> {
    let begun = Instant::now();
    let Passing { call, body, upgrade, peer, connection, place } = passing;
    if !backend.is_available {
        return Ok(unavailable());
    }
    let places = (cluster.backends.streams.take(&backend.name, call.flow())?, place);
    let path = call.uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let target = match target(cluster, backend, path) {
        Ok(target) => target,
        Err(why) => {
            tracing::debug!(api_service = &*backend.name, why, "there is no way to it");
            return Ok(unavailable());
        }
    };
    let mut request = Request::builder()
        .method(call.method.clone())
        .uri(target.path.as_str())
        .body(body)
        .map_err(|error| Status::bad_request(format!("the path cannot be passed on: {error}")))?;
    let mut headers = forwarded(&call.headers);
    say_who(&mut headers, &call.identity)?;
    forwarded_for(&mut headers, peer);
    headers.extend(HeaderValue::from_str(&target.host).ok().map(|host| (header::HOST, host)));
    *request.headers_mut() = headers;
    let send = async {
        let open = tokio::time::timeout(CONNECT_TIMEOUT, backend.passage.open(&cluster.nodes, &target, call.flow()));
        let mut sender = open.await.map_err(|_| "i/o timeout".to_owned())??;
        sender.send_request(request).await.map_err(|error| error.to_string())
    };
    let (until, is_whole) = match longest {
        Longest::Begins(longest) => (begun + longest, false),
        Longest::Whole(longest) => (begun + longest, true),
    };
    let mut answer = match tokio::time::timeout_at(until, send).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(why)) => return Ok(unreachable(&why)),
        Err(_) => return Err(Status::timeout("request did not complete within the allotted timeout", 0)),
    };
    // A client that follows it would take its credentials where another server sends it (CVE-2022-3172).
    if answer.status().is_redirection() && answer.headers().contains_key(header::LOCATION) {
        return Ok(respond::text(502, "the backend attempted to redirect this request, which is not permitted"));
    }
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (mut parts, body) = answer.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        // Theirs say where the request belonged there.
        for name in ["x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid", "audit-id"] {
            parts.headers.remove(name);
        }
        let over = is_whole.then(|| Box::pin(tokio::time::sleep_until(until)));
        let body = Passed { body, over, _places: places };
        return Ok(Response::from_parts(parts, Body::new(body)));
    }
    let Some(upgrade) = upgrade else {
        return Err(Status::bad_request("the connection of this request cannot be upgraded"));
    };
    let there = hyper::upgrade::on(&mut answer);
    let (parts, _) = answer.into_parts();
    let stopping = stopping.clone();
    tokio::spawn(async move {
        tunnel(upgrade, there, stopping).await;
        drop((places, connection));
    });
    Ok(Response::from_parts(parts, Body::empty()))
}

/// The body of an answer, which breaks off when its time is over. The places are held while it goes on.
struct Passed {
    body: Incoming,
    over: Option<Pin<Box<Sleep>>>,
    _places: (Place, Place),
}

impl http_body::Body for Passed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.over.as_mut().is_some_and(|over| over.as_mut().poll(cx).is_ready()) {
            let late = io::Error::new(io::ErrorKind::TimedOut, "the answer was not whole within the allotted timeout");
            return Poll::Ready(Some(Err(axum::Error::new(late))));
        }
        Pin::new(&mut self.body).poll_frame(cx).map_err(axum::Error::new)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What this server asks another for itself.
pub(crate) struct Question<'a> {
    /// In the name of this user, of these groups.
    pub who: (&'a str, &'a [&'a str]),
    pub path: &'a str,
    pub headers: &'a [(HeaderName, String)],
    /// Bytes of the answer that are read at most; of `None` its head alone is.
    pub most: Option<usize>,
    /// How long there is for all of it.
    pub within: Duration,
}

/// An answer, read as far as was asked for.
pub(crate) struct Read {
    pub code: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// As errors call what was asked.
    pub url: String,
}

/// Why there is no answer.
pub(crate) enum Silence {
    /// There is no way to the server.
    NoWay(String),
    /// It was asked for this.
    Failed { url: String, why: String },
}

/// Asks a server for this one itself.
pub(crate) async fn fetch(cluster: &Cluster, backend: &Backend, question: Question<'_>) -> Result<Read, Silence> {
    let target = target(cluster, backend, question.path.to_owned()).map_err(Silence::NoWay)?;
    let url = match &target.way {
        outward::Way::Direct { host, port } => format!("https://{host}:{port}{}", question.path),
        outward::Way::Plain { .. } | outward::Way::Node { .. } | outward::Way::Tunnel { .. } => target.url.clone(),
    };
    match tokio::time::timeout(question.within, asked(cluster, backend, &target, &question)).await {
        Ok(Ok((parts, body))) => Ok(Read { code: parts.status, headers: parts.headers, body, url }),
        Ok(Err(why)) => Err(Silence::Failed { url, why: outward::words(&why) }),
        Err(_) => {
            let why = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned();
            Err(Silence::Failed { url, why })
        }
    }
}

async fn asked(
    cluster: &Cluster,
    backend: &Backend,
    target: &Target,
    question: &Question<'_>,
) -> Result<(http::response::Parts, Bytes), String> {
    let flow = Flow { class: Class::Own, name: "system:apiserver" };
    let _place = cluster.backends.streams.take(&backend.name, flow).map_err(|status| status.message.clone())?;
    let mut request = Request::get(target.path.as_str()).body(Body::empty()).map_err(|error| error.to_string())?;
    let (user, groups) = question.who;
    let identity = Identity {
        user: user.to_owned(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        uid: String::new(),
        extra: BTreeMap::new(),
    };
    let headers = request.headers_mut();
    say_who(headers, &identity).map_err(|status| status.message.clone())?;
    headers.extend(HeaderValue::from_str(&target.host).ok().map(|host| (header::HOST, host)));
    headers.insert(header::USER_AGENT, HeaderValue::from_static("kube-aggregator"));
    for (name, value) in question.headers {
        headers.extend(HeaderValue::from_str(value).ok().map(|value| (name.clone(), value)));
    }
    let mut sender = backend.passage.open(&cluster.nodes, target, flow).await?;
    let answer = sender.send_request(request).await.map_err(|error| outward::why(&error))?;
    let (parts, body) = answer.into_parts();
    let Some(most) = question.most else { return Ok((parts, Bytes::new())) };
    let body = outward::read(body, most).await;
    let body = body.map_err(|why| why.unwrap_or_else(|| format!("the answer is larger than {most} bytes")))?;
    Ok((parts, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_said_in_headers() {
        let mut who = Identity::authenticated("süß", vec!["a".to_owned()]);
        who.uid = "u".to_owned();
        who.extra.insert("authentication.kubernetes.io/Pod-name".to_owned(), vec!["p".to_owned(), "q".to_owned()]);
        let mut headers = HeaderMap::new();
        say_who(&mut headers, &who).unwrap();
        let all = |name: &str| -> Vec<String> {
            let values = headers.get_all(name).iter();
            values.map(|value| String::from_utf8(value.as_bytes().to_vec()).unwrap()).collect()
        };
        assert_eq!(all("x-remote-user"), ["süß"]);
        assert_eq!(all("x-remote-uid"), ["u"]);
        assert_eq!(all("x-remote-group"), ["a", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-authentication.kubernetes.io%2fpod-name"), ["p", "q"]);
    }

    /// One who is in a group less, or has another name, may be let do more.
    #[test]
    fn who_cannot_be_said_is_refused() {
        let alice = || Identity::authenticated("alice", vec!["a".to_owned()]);
        fn line() -> String {
            "a\r\nx-remote-group: system:masters".to_owned()
        }
        type Change = fn(&mut Identity);
        let changes: [(&str, Change); 7] = [
            ("name", |who| who.user = line()),
            ("name", |who| who.user = "admin ".to_owned()),
            ("group", |who| who.groups.push("\tadmins".to_owned())),
            ("uid", |who| who.uid = line()),
            ("group", |who| who.groups.push("\0".to_owned())),
            ("extra value", |who| drop(who.extra.insert("key".to_owned(), vec!["ok".to_owned(), line()]))),
            ("extra key", |who| drop(who.extra.insert("k".repeat(1 << 17), vec!["v".to_owned()]))),
        ];
        for (what, change) in changes {
            let mut who = alice();
            change(&mut who);
            let refused = say_who(&mut HeaderMap::new(), &who).expect_err(what);
            assert_eq!(refused.code(), 400);
            assert!(refused.message.starts_with(&format!("the {what} of the user")), "{}", refused.message);
        }
        assert!(say_who(&mut HeaderMap::new(), &alice()).is_ok());
    }
}
