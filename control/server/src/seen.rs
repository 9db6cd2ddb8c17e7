//! What servers tell each other of themselves, so that whichever a person asks tells of all: of each what is wrong with it, and of the one
//! that leads what it knows of the others.
//!
//! `GET /coracle/v1/seen`, between servers alone. They are asked when somebody asks, and each has [`ANSWER_MAX`].

use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use coracle_keyspace::{Keyspace, MemberId, Role};
use coracle_registry::Registry;
use http_body_util::{BodyExt as _, Limited};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::task::TaskTracker;

use crate::{images, members};

const PATH: &str = "/coracle/v1/seen";
/// How long another server may take: whoever is gone keeps nobody waiting for longer.
const ANSWER_MAX: Duration = Duration::from_millis(1500);
/// Bytes of its answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What a server sees.
#[derive(Serialize, Deserialize)]
pub struct Seen {
    /// The members, as it knows them.
    pub members: Vec<Value>,
    /// What is wrong with it.
    pub alarms: Vec<String>,
}

/// The route, for other servers.
pub fn router(keyspace: Keyspace, registry: Registry) -> Router {
    Router::new().route(PATH, get(seen)).with_state((keyspace, registry))
}

async fn seen(State((keyspace, registry)): State<(Keyspace, Registry)>) -> Json<Seen> {
    Json(Seen { members: members::all(&keyspace), alarms: alarms(&keyspace, &registry) })
}

fn alarms(keyspace: &Keyspace, registry: &Registry) -> Vec<String> {
    let mut alarms: Vec<String> = keyspace.alarms().iter().map(ToString::to_string).collect();
    alarms.extend(registry.alarms());
    alarms
}

/// The members as whoever leads knows them; without its answer as this server does.
pub async fn members(keyspace: &Keyspace, tasks: &TaskTracker) -> Vec<Value> {
    let leader = other_leader(keyspace);
    let told = match leader {
        Some(leader) => ask(keyspace, tasks, leader).await.ok().flatten(),
        None => None,
    };
    told.map_or_else(|| members::all(keyspace), |told| told.members)
}

/// Who leads, if it is another that is heard of.
fn other_leader(keyspace: &Keyspace) -> Option<MemberId> {
    let leader = keyspace.status().leader.filter(|leader| *leader != keyspace.member())?;
    keyspace.alone_for().is_none().then_some(leader)
}

/// What this server sees, and what the others do.
pub async fn everywhere(keyspace: &Keyspace, registry: &Registry, tasks: &TaskTracker) -> Seen {
    let mut own = Seen { members: members::all(keyspace), alarms: alarms(keyspace, registry) };
    // Whoever is cut off says who is missing, and asks none of them.
    if keyspace.alone_for().is_some() {
        return own;
    }
    let leader = other_leader(keyspace);
    let others = keyspace.members().into_iter().filter(|other| {
        // A leader knows who does not answer.
        let is_silent = leader.is_none() && other.heard.is_none_or(|heard| heard > ANSWER_MAX);
        other.member != keyspace.member() && other.role != Role::Absent && !is_silent
    });
    let asked = others.map(|other| async move { (ask(keyspace, tasks, other.member).await, other) });
    for (told, other) in futures::future::join_all(asked).await {
        let leads = leader == Some(other.member);
        match told {
            Ok(Some(told)) => {
                let said = told.alarms.iter().filter(|alarm| !own.alarms.contains(*alarm));
                let said: Vec<String> =
                    said.map(|alarm| format!("server {} ({}): {alarm}", other.name, other.member)).collect();
                own.alarms.extend(said);
                if leads {
                    own.members = told.members;
                }
            }
            Err(why) if leads => own.alarms.push(format!(
                "server {} ({}) leads, is heard of, and does not answer this one ({why}): what is wrong with others is not known here; ask \
                 another server, and look at the MTU on the way",
                other.name, other.member
            )),
            // A version that does not tell, or one that the leader tells of.
            Ok(None) | Err(_) => (),
        }
    }
    own
}

/// What that server sees; nothing where its version does not tell.
async fn ask(keyspace: &Keyspace, tasks: &TaskTracker, member: MemberId) -> Result<Option<Seen>, String> {
    let request = http::Request::get(PATH).body(axum::body::Body::empty()).expect("a request of constants");
    let asked = async {
        let answer = images::call(keyspace, tasks, member, request).await.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Ok(None);
        }
        let body =
            Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
        serde_json::from_slice(&body.to_bytes()).map(Some).map_err(|error| error.to_string())
    };
    tokio::time::timeout(ANSWER_MAX, asked).await.unwrap_or_else(|_| Err("not in time".to_owned()))
}
