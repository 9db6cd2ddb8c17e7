//! What two nodes tell each other beside a request that goes from one to the other: how it ended where nobody has answered it,
//! and what came with it. It is in headers, which only nodes write and read: both ends take away what others have written by
//! these names, and an answer is believed only when it came from the node of a component that is called ([`crate::Elsewhere`]).

use std::time::Duration;

use coracle_policy::Source;
use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use tokio::time::Instant;

use crate::endpoint::Failure;
use crate::{Body, BoxError, Busy, Carried, Deadline, NotAllowed, Seen, retry};

/// With an answer of the node instead of the pod's: [`Refusal`].
const REFUSED: HeaderName = HeaderName::from_static("x-coracle-link-refused");
/// With a request: milliseconds until nobody waits for its answer any more.
const DEADLINE: HeaderName = HeaderName::from_static("x-coracle-link-deadline");
/// With a request: [`Carried`].
const CARRIED: HeaderName = HeaderName::from_static("x-coracle-link-carried");
/// With a request, or with a connection: who calls, in the words of [`Source`].
pub const SOURCE: HeaderName = HeaderName::from_static("x-coracle-link-source");
/// What is carried with a request has so many bytes at most.
const CARRIED_BYTES_MAX: usize = 1024;
/// No deadline is later than this.
const DEADLINE_MAX: Duration = Duration::from_secs(24 * 3600);

/// How a request ended that has no answer of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Nobody took it.
    Unseen,
    /// The same, because there is too much to do.
    Busy,
    /// It was taken, and whoever had it was ended.
    Seen,
    /// Nobody took it, because who asks may not ask there.
    NotAllowed,
}

impl Refusal {
    const ALL: [(Refusal, &str); 4] = [
        (Refusal::Unseen, "unseen"),
        (Refusal::Busy, "busy"),
        (Refusal::Seen, "seen"),
        (Refusal::NotAllowed, "not-allowed"),
    ];

    fn of(error: &BoxError) -> Refusal {
        match error {
            error if error.is::<Seen>() => Refusal::Seen,
            error if error.is::<Busy>() => Refusal::Busy,
            error if error.is::<NotAllowed>() => Refusal::NotAllowed,
            _ => Refusal::Unseen,
        }
    }

    /// As a failure of the endpoint, at the node that has asked.
    pub fn failure(self, endpoint: std::net::SocketAddr) -> Failure {
        match self {
            Refusal::Unseen => Failure::unseen(endpoint, "its node says that nobody took the request".into()),
            Refusal::Busy => Failure::unseen(endpoint, Busy.into()),
            Refusal::NotAllowed => Failure::unseen(endpoint, NotAllowed.into()),
            Refusal::Seen => Failure::seen(endpoint, "its node says that it was ended before it had answered".into()),
        }
    }
}

/// Takes away what only nodes may say.
pub(crate) fn strip(headers: &mut HeaderMap) {
    for name in [REFUSED, DEADLINE, CARRIED, SOURCE] {
        headers.remove(name);
    }
}

/// Writes what goes with a request to another node.
pub(crate) fn send(request: &mut Request<Body>) {
    let deadline = request.extensions().get::<Deadline>().map(|Deadline(at)| at.duration_since(Instant::now()));
    if let Some(left) = deadline {
        request.headers_mut().insert(DEADLINE, HeaderValue::from(left.as_millis() as u64));
    }
    let carried =
        request.extensions().get::<Carried>().filter(|Carried(text)| text.len() <= CARRIED_BYTES_MAX).cloned();
    if let Some(Carried(text)) = carried {
        request.headers_mut().insert(CARRIED, text);
    }
    let source = request.extensions().get::<Source>().map(said);
    if let Some(source) = source {
        request.headers_mut().insert(SOURCE, source);
    }
}

/// A source as another node is told it.
pub fn said(source: &Source) -> HeaderValue {
    HeaderValue::from_str(&source.text()).unwrap_or(HeaderValue::from_static("unknown"))
}

/// Reads it there.
pub(crate) fn receive(request: &mut Request<Body>) {
    let millis = request.headers().get(DEADLINE).and_then(|text| text.to_str().ok()?.parse().ok());
    if let Some(millis) = millis {
        let left = Duration::from_millis(millis).min(DEADLINE_MAX);
        request.extensions_mut().insert(Deadline(Instant::now() + left));
    }
    let carried = request.headers().get(CARRIED).filter(|text| text.len() <= CARRIED_BYTES_MAX).cloned();
    if let Some(text) = carried {
        request.extensions_mut().insert(Carried(text));
    }
    strip(request.headers_mut());
}

/// The answer to who asks from another node, when the pod gives none. Where the pod is gone, or more of the request was to come,
/// the stream is of no more use.
pub(crate) fn refuse(error: &BoxError, has_more: bool) -> Response<Body> {
    let refusal = Refusal::of(error);
    let mut response = Response::new(retry::empty());
    *response.status_mut() = match refusal {
        Refusal::Unseen | Refusal::Busy => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::Seen => StatusCode::BAD_GATEWAY,
        Refusal::NotAllowed => StatusCode::FORBIDDEN,
    };
    let word = Refusal::ALL.iter().find(|(one, _)| *one == refusal).map_or("unseen", |(_, word)| *word);
    response.headers_mut().insert(REFUSED, HeaderValue::from_static(word));
    if has_more || refusal == Refusal::Unseen {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What a node says instead of an answer, if it does; whoever has written it.
pub(crate) fn take_refusal(headers: &mut HeaderMap) -> Option<Refusal> {
    let said = headers.remove(REFUSED)?;
    Refusal::ALL.iter().find(|(_, word)| said == *word).map(|(refusal, _)| *refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_request_ended_is_told_and_what_came_with_it() {
        for (error, refusal, status, is_over) in [
            (BoxError::from("gone"), Refusal::Unseen, 503, true),
            (Busy.into(), Refusal::Busy, 503, false),
            (Seen("ended".into()).into(), Refusal::Seen, 502, false),
            (NotAllowed.into(), Refusal::NotAllowed, 403, false),
        ] {
            let mut response = refuse(&error, false);
            assert_eq!((response.status().as_u16(), response.headers().contains_key(CONNECTION)), (status, is_over));
            assert_eq!(take_refusal(response.headers_mut()), Some(refusal));
            assert_eq!(take_refusal(response.headers_mut()), None);
            assert!(refuse(&error, true).headers().contains_key(CONNECTION), "more would come");
        }
        let mut request = Request::new(retry::empty());
        request.extensions_mut().insert(Deadline(Instant::now() + Duration::from_secs(9)));
        request.extensions_mut().insert(Carried(HeaderValue::from_static("1,2")));
        send(&mut request);
        let mut heard = Request::new(retry::empty());
        *heard.headers_mut() = request.headers().clone();
        receive(&mut heard);
        assert!(heard.headers().is_empty(), "no component sees it");
        let Deadline(at) = heard.extensions().get().copied().unwrap();
        let left = at.duration_since(Instant::now());
        assert!(left > Duration::from_secs(5) && left <= Duration::from_secs(9), "{left:?}");
        assert_eq!(heard.extensions().get::<Carried>().unwrap().0, "1,2");
        // Nonsense is nothing.
        heard.extensions_mut().clear();
        heard.headers_mut().insert(DEADLINE, HeaderValue::from_static("-1"));
        heard.headers_mut().insert(CARRIED, "x".repeat(2000).parse().unwrap());
        receive(&mut heard);
        assert!(heard.extensions().get::<Deadline>().is_none() && heard.extensions().get::<Carried>().is_none());
    }
}
