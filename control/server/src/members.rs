//! The servers of the cluster, for those that ask.
//!
//! | route | who | what |
//! | --- | --- | --- |
//! | `GET /coracle/v1/members` | who may | all members, as this one sees them |
//! | `DELETE /coracle/v1/members/NUMBER` | who may | removes a member |

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use coracle_keyspace::{GroupError, Keyspace, MemberId, MemberStatus, Revision};
use serde_json::{Value, json};

use crate::join::status;

/// The routes; the caller puts authentication before them.
pub fn router(keyspace: Keyspace) -> Router {
    Router::new()
        .route("/coracle/v1/members", get(list))
        .route("/coracle/v1/members/{member}", delete(remove))
        .with_state(keyspace)
}

async fn list(State(keyspace): State<Keyspace>) -> Json<Value> {
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
        "formats": member.formats,
        "leads": member.leads,
        "matched": member.matched.map(Revision::get),
        "heardMilliseconds": member.heard.map(milliseconds),
    })
}

/// As it is told.
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

async fn remove(State(keyspace): State<Keyspace>, Path(member): Path<MemberId>) -> Response {
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
