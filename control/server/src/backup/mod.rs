//! `GET /coracle/v1/backup`: everything of the cluster as it is at one moment, as a stream; and a new cluster made of it.
//!
//! Objects are shared with the state and encoded while they are sent, files of the registry are read while they are sent:
//! nobody who writes waits, and nothing is in memory whole. A backup holds the cluster's keys, so it is for `system:masters`
//! alone, whatever roles say.

mod format;
mod restore;

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use coracle_apiserver::Identity;
use coracle_keyspace::{Keyspace, Whole};
use futures::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use self::format::Writer;
pub use self::format::{Error, Frame, Reader};
pub use self::restore::{RestoreError, Restored, restore};
use crate::authority::Authority;

/// Bytes of a file in one frame.
const CONTENT_BYTES: usize = 256 << 10;
/// Bytes that are sent as one piece, and pieces that wait for a slow client.
const PIECE_BYTES: usize = 64 << 10;
const PIECES_QUEUED: usize = 8;
/// What of the registry's directory is kept; what refers to blobs comes before them, so that none of those is missing.
const REGISTRY: [&str; 2] = ["repositories", "blobs"];

/// What a backup is made of.
pub struct Sources {
    /// The objects.
    pub keyspace: Keyspace,
    /// The keys.
    pub authority: Arc<Authority>,
    /// Where the registry keeps everything.
    pub registry: PathBuf,
}

/// The route; the caller puts authentication before it.
pub fn router(sources: Sources) -> Router {
    Router::new().route("/coracle/v1/backup", get(backup)).with_state(Arc::new(sources))
}

#[derive(serde::Deserialize)]
struct Asked {
    #[serde(default = "yes")]
    images: bool,
}

fn yes() -> bool {
    true
}

async fn backup(
    State(sources): State<Arc<Sources>>,
    Extension(caller): Extension<Identity>,
    Query(asked): Query<Asked>,
) -> Response {
    let refused = |code: StatusCode, why: String| (code, why).into_response();
    if !caller.groups.iter().any(|group| group == crate::MASTERS) {
        let why = format!("a backup holds the keys of the cluster: only members of {} get one", crate::MASTERS);
        return refused(StatusCode::FORBIDDEN, why);
    }
    // Everything that was answered before is in it.
    if let Err(error) = sources.keyspace.barrier().await {
        return refused(StatusCode::SERVICE_UNAVAILABLE, format!("no backup is possible now: {error}"));
    }
    let (send, pieces) = mpsc::channel(PIECES_QUEUED);
    tokio::task::spawn_blocking(move || {
        let mut to = Pieces { buffer: Vec::with_capacity(PIECE_BYTES), send };
        if let Err(error) = write(&sources, asked.images, &mut to)
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::error!(%error, "a backup is not complete");
            // The stream breaks off: whoever reads it does not take it for whole.
            let _ = to.send.blocking_send(Err(error));
        }
    });
    let body = stream::unfold(pieces, |mut pieces| async move { pieces.recv().await.map(|piece| (piece, pieces)) });
    ([(header::CONTENT_TYPE, "application/vnd.coracle.backup")], Body::from_stream(body)).into_response()
}

/// Passes what is written on to the answer; waits for a client that is slow, and fails when there is none any more.
struct Pieces {
    buffer: Vec<u8>,
    send: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE_BYTES));
        self.send.blocking_send(Ok(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn write(sources: &Sources, images: bool, to: impl Write) -> io::Result<()> {
    let whole: Whole = sources.keyspace.whole();
    let keys = sources.authority.shared().map_err(io::Error::other)?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut writer = Writer::begin(to)?;
    writer.frame(&Frame::Head(json!({
        "cluster": sources.keyspace.cluster().to_string(),
        "revision": whole.revision().get(),
        "created": created,
        "version": env!("CARGO_PKG_VERSION"),
        "images": images,
    })))?;
    writer.frame(&Frame::Keys(json!({
        "authority": keys.authority, "authorityKey": keys.authority_key, "tokenKey": keys.token_key,
    })))?;
    for part in whole.parts() {
        writer.frame(&Frame::Records(part))?;
    }
    let mut files = 0_u64;
    for part in REGISTRY.iter().filter(|_| images) {
        files += tree(&mut writer, &sources.registry, Path::new(part))?;
    }
    writer.frame(&Frame::End(json!({"records": whole.len(), "files": files})))?;
    writer.finish()?.flush()
}

/// Writes all files below `place` in `root`; returns how many there were. One that goes meanwhile was deleted: so it is in
/// the backup.
fn tree<W: Write>(writer: &mut Writer<W>, root: &Path, place: &Path) -> io::Result<u64> {
    let entries = match fs::read_dir(root.join(place)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut files = 0;
    for entry in entries {
        let entry = entry?;
        let place = place.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            files += tree(writer, root, &place)?;
            continue;
        }
        match fs::File::open(entry.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => {
                file(writer, &place, opened?)?;
                files += 1;
            }
        }
    }
    Ok(files)
}

fn file<W: Write>(writer: &mut Writer<W>, place: &Path, from: fs::File) -> io::Result<()> {
    let length = from.metadata()?.len();
    writer.frame(&Frame::File(json!({"path": place, "bytes": length})))?;
    let (mut from, mut left) = (from.take(length), length);
    while left > 0 {
        let mut content = Vec::with_capacity(CONTENT_BYTES.min(left as usize));
        (&mut from).take(CONTENT_BYTES as u64).read_to_end(&mut content)?;
        if content.is_empty() {
            return Err(io::Error::other(format!("{} has become shorter", place.display())));
        }
        left -= content.len() as u64;
        writer.frame(&Frame::Content(content))?;
    }
    Ok(())
}

/// How much a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The revision that everything is of.
    pub revision: u64,
    /// Objects, and what else is kept beside them.
    pub records: u64,
    /// Files of the registry.
    pub files: u64,
    /// Its length.
    pub bytes: u64,
}

/// Reads a backup to its end and says what it holds; fails where it is not whole. Blocks.
pub fn verify(from: impl Read) -> Result<Contents, Error> {
    let mut reader = Reader::begin(from)?;
    let mut head = None;
    let mut end = Value::Null;
    while let Some(frame) = reader.read()? {
        match frame {
            Frame::Head(found) if head.is_none() => head = Some(found),
            Frame::Head(_) => return Err(Error::Damaged { at: reader.at(), why: "there are two heads" }),
            _ if head.is_none() => return Err(Error::Damaged { at: reader.at(), why: "it has no head" }),
            Frame::End(found) => end = found,
            Frame::Keys(_) | Frame::Records(_) | Frame::File(_) | Frame::Content(_) => {}
        }
    }
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let revision = number(&head.unwrap_or_default()["revision"]);
    Ok(Contents { revision, records: number(&end["records"]), files: number(&end["files"]), bytes: reader.at() })
}
