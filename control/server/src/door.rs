//! The API's address from the first moment on. Until this server has what the others have, it tells whoever may do everything how
//! it is (its client certificate is checked without any data), and everybody else that it waits, and for whom.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use coracle_apiserver::Identity;
use coracle_keyspace::Keyspace;
use tower::ServiceExt as _;

use crate::{MASTERS, group, join};

/// Clients of a server that waits come again after so many seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Clones are the same.
#[derive(Clone)]
pub struct Door(Arc<Shared>);

struct Shared {
    keyspace: Keyspace,
    /// What may be asked before, by whoever may ask everything.
    waiting: Router,
    /// Everything.
    whole: OnceLock<Router>,
}

impl Door {
    /// One that answers by `waiting` until it is opened.
    pub fn new(keyspace: Keyspace, waiting: Router) -> Door {
        let known = keyspace.clone();
        let waiting = waiting.fallback(move || async move { waits(&known) });
        Door(Arc::new(Shared { keyspace, waiting, whole: OnceLock::new() }))
    }

    /// Answers by `whole` from now on; the first call counts.
    pub fn open(&self, whole: Router) {
        let _ = self.0.whole.set(whole);
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
        let router = match self.0.whole.get() {
            Some(whole) => whole,
            None if is_master(&request) => &self.0.waiting,
            None => return waits(&self.0.keyspace),
        };
        router.clone().oneshot(request).await.unwrap_or_else(|never| match never {})
    }
}

fn waits(keyspace: &Keyspace) -> Response {
    let mut answer = join::status(StatusCode::SERVICE_UNAVAILABLE, &why(&group::others(keyspace)));
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
