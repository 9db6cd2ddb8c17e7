//! The servers of the cluster, for those that ask.
//!
//! | route | who | what |
//! | --- | --- | --- |
//! | `GET /coracle/v1/members` | who may | all members, as this one sees them |
//! | `DELETE /coracle/v1/members/NUMBER` | who may | removes a member |
//! | `GET /coracle/v1/servers` | nodes, too | where the API is; with `?after=VERSION` the answer waits until there is another version |

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use coracle_keyspace::{GroupError, Keyspace, MemberId, MemberStatus, Revision};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::join::status;

/// How long an answer waits for news.
const WAIT_MAX: Duration = Duration::from_secs(25);

#[derive(Clone)]
struct Shared {
    keyspace: Keyspace,
    stop: CancellationToken,
}

/// The routes, until `stop`; the caller puts authentication before them.
pub fn router(keyspace: Keyspace, stop: CancellationToken) -> Router {
    Router::new()
        .route("/coracle/v1/members", get(list))
        .route("/coracle/v1/members/{member}", delete(remove))
        .route("/coracle/v1/servers", get(servers))
        .with_state(Shared { keyspace, stop })
}

async fn list(State(Shared { keyspace, .. }): State<Shared>) -> Json<Value> {
    Json(json!({"member": keyspace.member(), "members": all(&keyspace)}))
}

/// All members, as this one sees them.
pub fn all(keyspace: &Keyspace) -> Vec<Value> {
    keyspace.members().iter().map(member).collect()
}

/// What is known of a member; what only the leader knows is missing where another one is asked.
fn member(member: &MemberStatus) -> Value {
    json!({
        "member": member.member,
        "name": member.name,
        "address": member.address,
        "api": member.api,
        "role": member.role,
        "leads": member.leads,
        "matched": member.matched.map(Revision::get),
        "heardMilliseconds": member.heard.map(|heard| u64::try_from(heard.as_millis()).unwrap_or(u64::MAX)),
    })
}

async fn remove(State(Shared { keyspace, .. }): State<Shared>, Path(member): Path<MemberId>) -> Response {
    let removed = keyspace.remove([member].into()).await;
    let code = match removed {
        Ok(()) => return Json(json!({"member": member, "members": all(&keyspace)})).into_response(),
        Err(GroupError::Refused(_)) => StatusCode::CONFLICT,
        Err(GroupError::Unknown) => StatusCode::GATEWAY_TIMEOUT,
        Err(GroupError::NoRoom(_)) => StatusCode::INSUFFICIENT_STORAGE,
        Err(GroupError::Unavailable | GroupError::Stopped) => StatusCode::SERVICE_UNAVAILABLE,
    };
    status(code, &removed.err().map(|error| error.to_string()).unwrap_or_default())
}

async fn servers(
    State(Shared { keyspace, stop }): State<Shared>,
    Query(query): Query<HashMap<String, String>>,
) -> Json<Value> {
    let after = query.get("after").map(String::as_str).unwrap_or_default();
    let news = async {
        loop {
            // Before what it is to follow is looked at.
            let watcher = keyspace.watch_group();
            let answer = urls(&keyspace);
            if answer["version"] != after {
                return answer;
            }
            match watcher {
                Some(mut watcher) => drop(watcher.next().await),
                None => std::future::pending().await,
            }
        }
    };
    tokio::select! {
        answer = news => Json(answer),
        () = tokio::time::sleep(WAIT_MAX) => Json(urls(&keyspace)),
        () = stop.cancelled() => Json(urls(&keyspace)),
    }
}

/// Where the API is, this server's first.
fn urls(keyspace: &Keyspace) -> Value {
    let mut members = keyspace.members();
    members.sort_by_key(|member| (member.member != keyspace.member(), member.member));
    let known = members.iter().filter(|member| !member.api.is_empty());
    let urls: Vec<String> = known.map(|member| format!("https://{}", member.api)).collect();
    let mut hash = DefaultHasher::new();
    urls.hash(&mut hash);
    json!({"version": format!("{:016x}", hash.finish()), "servers": urls})
}
