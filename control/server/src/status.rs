//! `GET /coracle/v1/status`: what the server says of itself beyond the Kubernetes API, and
//! `GET /coracle/v1/preparations/DIGEST`: how far a pushed image's compilation is (404 when nobody compiles it).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use coracle_keyspace::Keyspace;
use coracle_registry::Registry;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use crate::authority::Authority;
use crate::tls::Certificates;
use crate::{encryption, members, seen};

/// What the answer is made of.
#[derive(Clone)]
pub struct Facts {
    /// Who signs the certificates.
    pub authority: Arc<Authority>,
    /// Those that are shown.
    pub certificates: Arc<Certificates>,
    /// The data.
    pub keyspace: Keyspace,
    /// The registry.
    pub images: Registry,
    /// Where the registry listens.
    pub registry: SocketAddr,
    /// The API's URL.
    pub api_url: String,
    /// URLs at which other machines may find the API.
    pub join_urls: Vec<String>,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where connections to other servers are.
    pub tasks: TaskTracker,
}

/// The route; the caller puts authentication before it.
pub fn router(facts: Facts) -> Router {
    Router::new()
        .route("/coracle/v1/status", get(status))
        .route("/coracle/v1/preparations/{digest}", get(preparation))
        .with_state(facts)
}

async fn preparation(
    State(facts): State<Facts>,
    Path(digest): Path<String>,
) -> Result<Json<coracle_registry::State>, StatusCode> {
    facts.images.preparation(&digest).map(Json).ok_or(StatusCode::NOT_FOUND)
}

async fn status(State(facts): State<Facts>) -> Json<Value> {
    let raft = facts.keyspace.status();
    let seen::Seen { members, alarms } = seen::everywhere(&facts.keyspace, &facts.images, &facts.tasks).await;
    let (keyspace, authority, shown) = (facts.keyspace.clone(), facts.authority.clone(), facts.certificates.clone());
    // Walks directories and records: not on a thread that serves requests.
    let looked = tokio::task::spawn_blocking(move || {
        (keyspace.disk_bytes(), shown.ends(&authority), encryption::told(&keyspace))
    });
    let (disk_bytes, ends, encryption) = match looked.await {
        Ok((bytes, ends, encryption)) => (Some(bytes), Some(ends), Some(encryption)),
        Err(_) => (None, None, None),
    };
    let certificates: Vec<Value> =
        ends.into_iter().flatten().map(|(name, ends)| json!({"name": name, "ends": ends})).collect();
    Json(json!({
        "apiUrl": facts.api_url,
        "joinUrls": facts.join_urls,
        "registry": facts.registry,
        "dataDir": facts.data_dir,
        "version": env!("CARGO_PKG_VERSION"),
        // There is no format 0: the record of it cannot be read.
        "format": facts.keyspace.format().unwrap_or_default(),
        "revision": facts.keyspace.revision().get(),
        "term": raft.term,
        "cluster": facts.keyspace.cluster().to_string(),
        "member": raft.member,
        "leader": raft.leader,
        "members": members,
        "aloneMilliseconds": facts.keyspace.alone_for().map(members::milliseconds),
        "certificates": certificates,
        "storedBytes": raft.stored_bytes,
        "diskBytes": disk_bytes,
        "alarms": alarms,
        "encryption": encryption,
        "memoryBytes": resident_bytes(),
        "processId": std::process::id(),
    }))
}

/// Resident memory of this process, from the kernel.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
