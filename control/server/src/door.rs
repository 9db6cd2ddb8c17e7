//! The API's address from the first moment on. Until this server has what the others have, it tells whoever may do everything how
//! it is (its client certificate is checked without any data), and everybody else that it waits, and for whom.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use coracle_apiserver::Identity;
use coracle_keyspace::Keyspace;
use tokio::sync::watch;
use tower::ServiceExt as _;

use crate::{MASTERS, group, join};

/// Clients of a server that waits come again after so many seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// How long a request waits for a server that is about to answer.
const OPENS_WITHIN: Duration = Duration::from_secs(3);

/// Clones are the same.
#[derive(Clone)]
pub struct Door(Arc<Shared>);

struct Shared {
    keyspace: Keyspace,
    /// What may be asked before, by whoever may ask everything.
    waiting: Router,
    /// Everything.
    whole: watch::Sender<Option<Router>>,
}

impl Door {
    /// One that answers by `waiting` until it is opened.
    pub fn new(keyspace: Keyspace, waiting: Router) -> Door {
        let known = keyspace.clone();
        let waiting = waiting.fallback(move || async move { waits(&known) });
        Door(Arc::new(Shared { keyspace, waiting, whole: watch::Sender::new(None) }))
    }

    /// Answers by `whole` from now on; the first call counts.
    pub fn open(&self, whole: Router) {
        self.0.whole.send_if_modified(|known| known.is_none().then(|| *known = Some(whole)).is_some());
    }

    /// For the listener.
    pub fn router(&self) -> Router {
        let door = self.clone();
        Router::new().fallback(move |request| {
            let door = door.clone();
            async move { door.answer(request).await }
        })
    }

    async fn answer(&self, request: Request) -> Response {
        let known = self.0.whole.borrow().clone();
        let router = match known {
            Some(whole) => whole,
            None if is_master(&request) => self.0.waiting.clone(),
            None => match self.opened().await {
                Some(whole) => whole,
                None => return waits(&self.0.keyspace),
            },
        };
        router.oneshot(request).await.unwrap_or_else(|never| match never {})
    }
}

impl Door {
    /// Everything, where it is there in a moment: whoever begins anew beside others has what they have within a second or two.
    async fn opened(&self) -> Option<Router> {
        if self.0.keyspace.alone_for().is_some() {
            return None;
        }
        let mut whole = self.0.whole.subscribe();
        let opened = tokio::time::timeout(OPENS_WITHIN, whole.wait_for(Option::is_some)).await;
        opened.ok()?.ok()?.clone()
    }
}

fn waits(keyspace: &Keyspace) -> Response {
    // Whoever hears of a leader needs nobody to be started.
    let others = if keyspace.alone_for().is_some() { group::others(keyspace) } else { String::new() };
    let mut answer = join::status(StatusCode::SERVICE_UNAVAILABLE, &why(&others));
    answer.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    answer
}

/// What it waits for, which is the `others` where it knows of any.
fn why(others: &str) -> String {
    let waits = match others {
        "" => "is still starting, or joining the others".to_owned(),
        others => format!("waits for a majority of the servers: start the others ({others})"),
    };
    format!("this server {waits}; `coracle status` on its machine says more")
}

fn is_master(request: &Request) -> bool {
    let identity = request.extensions().get::<Identity>();
    identity.is_some_and(|identity| identity.groups.iter().any(|group| group == MASTERS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_names_the_others_where_it_knows_of_any() {
        let more = "`coracle status` on its machine says more";
        assert_eq!(why(""), format!("this server is still starting, or joining the others; {more}"));
        let others = "member 1 at 192.0.2.1:7";
        let expected = format!("this server waits for a majority of the servers: start the others ({others}); {more}");
        assert_eq!(why(others), expected);
    }
}
