//! The servers of the cluster, for those that ask.
//!
//! | route | who | what |
//! | --- | --- | --- |
//! | `GET /coracle/v1/members` | who may | all members, as the one that leads sees them, or else this one, and whoever was admitted and has not come |
//! | `DELETE /coracle/v1/members/NUMBER` | who may | removes a member |
//! | `GET`, `POST /coracle/v1/members/NUMBER/program` | who may | that server's program ([`crate::program`]), whichever is asked |

use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use coracle_keyspace::{Clock, GroupError, Keyspace, MemberId, MemberStatus, Revision};
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::join::status;
use crate::{images, program, seen};

/// How long another server may take to answer: its program may have to be asked who it is.
const PROGRAM_MAX: Duration = Duration::from_secs(30);

/// The routes but for programs; the caller puts authentication before them.
pub fn router(keyspace: Keyspace, tasks: TaskTracker) -> Router {
    Router::new()
        .route("/coracle/v1/members", get(list))
        .route("/coracle/v1/members/{member}", delete(remove))
        .with_state((keyspace, tasks))
}

/// What is needed to ask a server for its program.
#[derive(Clone)]
pub struct Programs {
    pub keyspace: Keyspace,
    /// What this server says of its own; nothing where it is a part of another program.
    pub own: Router,
    pub tasks: TaskTracker,
}

/// Programs' route; the caller puts authentication before it, and serves it only when this server has what the others have: whoever
/// has a server begin anew waits for that.
pub fn programs(programs: Programs) -> Router {
    Router::new().route("/coracle/v1/members/{member}/program", get(program).post(program)).with_state(programs)
}

/// Asks that server what is asked here.
async fn program(State(programs): State<Programs>, Path(member): Path<MemberId>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let mut asked = http::Request::builder().method(head.method).uri(program::PATH);
    if let Some(kind) = head.headers.get(header::CONTENT_TYPE) {
        asked = asked.header(header::CONTENT_TYPE, kind);
    }
    let asked = asked.body(body).expect("a path that is constant, and what was in a request");
    let answer = match member == programs.keyspace.member() {
        true => programs.own.oneshot(asked).await.unwrap_or_else(|never| match never {}),
        false => {
            let call = images::call(&programs.keyspace, &programs.tasks, member, asked);
            match tokio::time::timeout(PROGRAM_MAX, call).await {
                Ok(Ok(answer)) => answer.into_response(),
                Ok(Err(error)) => return status(StatusCode::BAD_GATEWAY, &format!("server {member}: {error}")),
                Err(_) => return status(StatusCode::GATEWAY_TIMEOUT, &format!("server {member} gives no answer")),
            }
        }
    };
    match answer.status() {
        StatusCode::NOT_FOUND => status(
            StatusCode::NOT_IMPLEMENTED,
            "it runs a version that cannot be asked to begin anew, or is a part of another program: it has to be started again where it \
             was started",
        ),
        _ => answer,
    }
}

async fn list(State((keyspace, tasks)): State<(Keyspace, TaskTracker)>) -> Json<Value> {
    Json(json!({"member": keyspace.member(), "members": seen::members(&keyspace, &tasks).await}))
}

/// All members, as this one sees them, and those that were admitted and have not come.
pub fn all(keyspace: &Keyspace) -> Vec<Value> {
    keyspace.members().iter().chain(&keyspace.absent()).map(member).collect()
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
        "waits": member.waits,
        "hasLost": member.has_lost,
        "clock": member.clock.map(|clock| match clock {
            Clock::Ahead(by) => json!({"ahead": by.as_secs()}),
            Clock::Behind(by) => json!({"behind": by.as_secs()}),
            Clock::Other => json!("other"),
        }),
    })
}

/// As it is told.
pub fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

async fn remove(State((keyspace, _)): State<(Keyspace, TaskTracker)>, Path(member): Path<MemberId>) -> Response {
    let removed = keyspace.remove([member].into()).await;
    let code = match removed {
        Ok(()) => return Json(json!({"member": member, "members": all(&keyspace)})).into_response(),
        Err(GroupError::Refused(_)) => StatusCode::CONFLICT,
        Err(GroupError::Unknown) => StatusCode::GATEWAY_TIMEOUT,
        Err(GroupError::NoRoom(_)) => StatusCode::INSUFFICIENT_STORAGE,
        Err(GroupError::Unavailable | GroupError::Stopped | GroupError::Changed) => StatusCode::SERVICE_UNAVAILABLE,
    };
    status(code, &removed.err().map(|error| error.to_string()).unwrap_or_default())
}
