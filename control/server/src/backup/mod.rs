//! `POST /coracle/v1/backup`: everything of the cluster as it is at one moment, as a stream; and a new cluster made of it. The body is
//! the key under which the cluster's keys are sealed in it, in hexadecimal: whoever asks keeps it apart from the backup.
//!
//! Objects are shared with the state and encoded while they are sent, files of the registry are read while they are sent:
//! nobody who writes waits, and nothing is in memory whole. What was replaced since stays in memory until the backup is done, so
//! there are few at a time, and a client that does not read is given up. A backup holds the cluster's keys, so it is for `system:masters`
//! alone, whatever roles say.

mod format;
mod restore;

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use bytes::Bytes;
use coracle_apiserver::Identity;
use coracle_keyspace::{Keyspace, SecretKey, Whole};
use coracle_registry::{Named, Registry};
use futures::stream;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{Semaphore, mpsc};

use self::format::Writer;
pub use self::format::{Error, Frame, Reader};
pub use self::restore::{RestoreError, Restored, restore};
use crate::authority::{Authority, SharedKeys};

/// Bytes of a file in one frame.
const CONTENT_BYTES: usize = 256 << 10;
/// Bytes that are sent as one piece, and pieces that wait for a slow client.
const PIECE_BYTES: usize = 64 << 10;
const PIECES_QUEUED: usize = 8;
/// How long a piece waits for a client that does not read.
const PIECE_WAITS: Duration = Duration::from_secs(60);
/// Bytes of a body that is a key.
const KEY_BYTES_MAX: usize = 256;
/// Backups at a time; more are told to come again.
const BACKUPS_MAX: usize = 2;
/// What of the registry's directory is kept. What names blobs is among the records, which come before them, and none goes meanwhile:
/// so none of those that are here is missing.
const REGISTRY: &str = "blobs";

/// What a backup is made of.
pub struct Sources {
    /// The objects.
    pub keyspace: Keyspace,
    /// The keys.
    pub authority: Arc<Authority>,
    /// The images.
    pub registry: Registry,
    /// Where they are kept.
    pub dir: PathBuf,
}

/// What the route is made of.
struct Shared {
    sources: Sources,
    places: Arc<Semaphore>,
}

/// The route; the caller puts authentication before it.
pub fn router(sources: Sources) -> Router {
    routed(sources, BACKUPS_MAX)
}

fn routed(sources: Sources, most: usize) -> Router {
    let shared = Shared { sources, places: Arc::new(Semaphore::new(most)) };
    Router::new().route("/coracle/v1/backup", post(backup).get(backup)).with_state(Arc::new(shared))
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
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Identity>,
    Query(asked): Query<Asked>,
    body: Body,
) -> Response {
    let refused = |code: StatusCode, why: String| (code, why).into_response();
    if !caller.groups.iter().any(|group| group == crate::MASTERS) {
        let why = format!("a backup holds the keys of the cluster: only members of {} get one", crate::MASTERS);
        return refused(StatusCode::FORBIDDEN, why);
    }
    let said = axum::body::to_bytes(body, KEY_BYTES_MAX).await.unwrap_or_default();
    let Some(key) = std::str::from_utf8(&said).ok().and_then(|hex| SecretKey::from_hex(hex.trim())) else {
        let why = "the keys of the cluster are sealed in a backup, under a key that whoever asks sends as the body of a POST: 64 \
                   hexadecimal digits. `coracle backup` of this version does";
        return refused(StatusCode::BAD_REQUEST, why.to_owned());
    };
    let Ok(place) = shared.places.clone().try_acquire_owned() else {
        return refused(StatusCode::TOO_MANY_REQUESTS, format!("{BACKUPS_MAX} backups are under way: try again later"));
    };
    let keys = match shared.sources.authority.shared() {
        Ok(keys) => keys,
        Err(error) => return refused(StatusCode::SERVICE_UNAVAILABLE, format!("no backup is possible now: {error}")),
    };
    // Everything that was answered before is in it.
    if let Err(error) = shared.sources.keyspace.barrier().await {
        return refused(StatusCode::SERVICE_UNAVAILABLE, format!("no backup is possible now: {error}"));
    }
    let complete = async || match asked.images {
        true => shared.sources.registry.complete().await,
        false => Ok(()),
    };
    let lacks = |why: String| {
        let why = format!(
            "this server has not all images yet, and does not get them now: {why}; try again, or leave images out"
        );
        refused(StatusCode::SERVICE_UNAVAILABLE, why)
    };
    // Most of it before the moment that is kept; and then what was pushed until then.
    // No damage is carried along: what is not what its digest says is set aside, and comes from another server, if one has it.
    if asked.images
        && let Err(error) = shared.sources.registry.check_contents().await
    {
        return lacks(error.to_string());
    }
    if let Err(why) = complete().await {
        return lacks(why.to_string());
    }
    // What is named then stays until it was read, also where somebody deletes the names.
    let kept = match asked.images {
        true => match shared.sources.registry.keep_contents().await {
            Ok(kept) => Some(kept),
            Err(error) => return lacks(error.to_string()),
        },
        false => None,
    };
    let whole = shared.sources.keyspace.whole();
    if let Err(why) = complete().await {
        return lacks(why.to_string());
    }
    // What is nowhere is lost, and no reason to have no backup at all: it says so.
    let named = match asked.images {
        true => match shared.sources.registry.named().await {
            Ok(named) => Some(named),
            Err(error) => return lacks(error.to_string()),
        },
        false => None,
    };
    let (send, pieces) = mpsc::channel(PIECES_QUEUED);
    tokio::task::spawn_blocking(move || {
        let (_place, _kept) = (place, kept);
        let mut to = Pieces { buffer: Vec::with_capacity(PIECE_BYTES), send };
        if let Err(error) = write(&shared.sources, (&key, &keys), whole, named.as_ref(), &mut to)
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::error!(%error, "a backup is not complete");
            // The stream breaks off: whoever reads it does not take it for whole.
            let _ = to.pass(Err(error));
        }
    });
    let body = stream::unfold(pieces, |mut pieces| async move { pieces.recv().await.map(|piece| (piece, pieces)) });
    ([(header::CONTENT_TYPE, "application/vnd.coracle.backup")], Body::from_stream(body)).into_response()
}

/// Passes what is written on to the answer; waits for a client that is slow, and fails when there is none any more. Within a
/// runtime, on a thread that may block.
struct Pieces {
    buffer: Vec<u8>,
    send: mpsc::Sender<io::Result<Bytes>>,
}

impl Pieces {
    fn pass(&self, piece: io::Result<Bytes>) -> io::Result<()> {
        let sent = Handle::current().block_on(self.send.send_timeout(piece, PIECE_WAITS));
        sent.map_err(|error| match error {
            SendTimeoutError::Timeout(_) => io::Error::new(io::ErrorKind::TimedOut, "the client does not read"),
            SendTimeoutError::Closed(_) => io::ErrorKind::BrokenPipe.into(),
        })
    }
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
        self.pass(Ok(piece.into()))
    }
}

/// Writes all of it; without what is `named` in the registry no images.
fn write(
    sources: &Sources,
    (key, keys): (&SecretKey, &SharedKeys),
    whole: Whole,
    named: Option<&Named>,
    to: impl Write,
) -> io::Result<()> {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut writer = Writer::begin(to)?;
    writer.frame(&Frame::Head(json!({
        "cluster": sources.keyspace.cluster().to_string(),
        "revision": whole.revision().get(),
        "created": created,
        "version": env!("CARGO_PKG_VERSION"),
        "images": named.is_some(),
        "key": key.fingerprint(),
        "encryptionKey": whole.key(),
        "open": whole.open(),
    })))?;
    let keys = json!({
        "authority": keys.authority, "authorityKey": keys.authority_key, "tokenKey": keys.token_key,
    });
    writer.frame(&Frame::Sealed(format::seal(key, &keys)))?;
    for part in whole.parts() {
        writer.frame(&Frame::Records(part))?;
    }
    let mut digests = HashSet::new();
    let mut files = 0_u64;
    if named.is_some() {
        files += tree(&mut writer, &sources.dir, Path::new(REGISTRY), &mut digests)?;
    }
    // Only now is it known: what is damaged is set aside whenever somebody reads it, and may be here again by now.
    let lacking = named.map(|named| named.lacking(|digest| digests.contains(digest))).unwrap_or_default();
    if let Some(first) = lacking.first.first() {
        tracing::warn!(lacking.count, first, "a backup lacks images that were not to be had whole: push them again");
    }
    writer.frame(&Frame::End(json!({
        "records": whole.len(), "files": files, "lacking": lacking.first, "lackingCount": lacking.count,
    })))?;
    writer.finish()?.flush()
}

/// Writes all files below `place` in `root`, and notes their digests; returns how many there were. What has gone meanwhile was set aside.
fn tree<W: Write>(writer: &mut Writer<W>, root: &Path, place: &Path, digests: &mut HashSet<String>) -> io::Result<u64> {
    let Some(entries) = there(fs::read_dir(root.join(place)))? else { return Ok(0) };
    let mut files = 0;
    for entry in entries {
        let entry = entry?;
        let place = place.join(entry.file_name());
        let Some(kind) = there(entry.file_type())? else { continue };
        if kind.is_dir() {
            files += tree(writer, root, &place, digests)?;
            continue;
        }
        let Some(from) = there(fs::File::open(entry.path()))? else { continue };
        file(writer, &place, from)?;
        digests.extend(digest(&place));
        files += 1;
    }
    Ok(files)
}

/// What is found, unless there is nothing.
fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// The digest of the content at `blobs/ALGORITHM/../HEX`.
fn digest(place: &Path) -> Option<String> {
    let algorithm = place.components().nth(1)?.as_os_str().to_str()?;
    Some(format!("{algorithm}:{}", place.file_name()?.to_str()?))
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The revision that everything is of.
    pub revision: u64,
    /// Objects, and what else is kept beside them.
    pub records: u64,
    /// Files of the registry.
    pub files: u64,
    /// Its length.
    pub bytes: u64,
    /// Which key its keys are sealed under ([`SecretKey::fingerprint`]); empty of version 1, which has them open.
    pub key: String,
    /// Objects that are in it in the clear although the cluster is to encrypt them, Secrets always among these, because it has not yet;
    /// `None` where the server did not say it.
    pub open: Option<u64>,
    /// What it lacks of the registry, since no server had it whole: the first of them, as repositories and digests in words.
    pub lacking: Vec<String>,
    /// How many these are.
    pub lacking_count: u64,
}

/// Reads a backup to its end and says what it holds; fails where it is not whole. With the key that it was made with, the cluster's
/// keys in it are looked at, too. Blocks.
pub fn verify(from: impl Read, key: Option<&SecretKey>) -> Result<Contents, Error> {
    let mut reader = Reader::begin(from)?;
    let mut head = None;
    let (mut end, mut has_keys, mut files) = (Value::Null, false, 0_u64);
    while let Some(frame) = reader.read()? {
        match frame {
            Frame::Head(found) if head.is_none() => head = Some(found),
            Frame::Head(_) => return Err(Error::Damaged { at: reader.at(), why: "there are two heads" }),
            _ if head.is_none() => return Err(Error::Damaged { at: reader.at(), why: "it has no head" }),
            Frame::End(found) => end = found,
            Frame::Keys(keys) => {
                format::shared(&keys, reader.at())?;
                has_keys = true;
            }
            Frame::Sealed(sealed) => {
                if let Some(key) = key {
                    let why = "its keys cannot be opened";
                    let keys = format::open(key, &sealed).ok_or(Error::Damaged { at: reader.at(), why })?;
                    format::shared(&keys, reader.at())?;
                }
                has_keys = true;
            }
            Frame::File(_) => files += 1,
            Frame::Records(_) | Frame::Content(_) => {}
        }
    }
    let head = head.unwrap_or_default();
    let key = head["key"].as_str().unwrap_or_default().to_owned();
    let numbers = (head["revision"].as_u64(), end["records"].as_u64(), end["files"].as_u64());
    match numbers {
        (Some(revision), Some(records), Some(said)) if has_keys && said == files => {
            let lacking = end["lacking"].as_array().into_iter().flatten();
            let lacking: Vec<String> = lacking.filter_map(|one| one.as_str().map(str::to_owned)).collect();
            let lacking_count = end["lackingCount"].as_u64().unwrap_or(lacking.len() as u64);
            let open = head["open"].as_u64();
            Ok(Contents { revision, records, files, bytes: reader.at(), key, open, lacking, lacking_count })
        }
        _ => Err(Error::Damaged { at: reader.at(), why: "it does not hold what its end says" }),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use sha2::Digest as _;
    use tower::ServiceExt as _;

    use super::*;
    use crate::founding;

    async fn ask(router: &Router, groups: &[&str], query: &str) -> (u16, Bytes) {
        let groups = groups.iter().map(ToString::to_string).collect();
        let body = Body::from(SecretKey::derive(b"test", "backup").to_hex());
        let mut request = axum::http::Request::post(format!("/coracle/v1/backup{query}")).body(body).unwrap();
        request.extensions_mut().insert(Identity::authenticated("somebody", groups));
        let answer = router.clone().oneshot(request).await.unwrap();
        (answer.status().as_u16(), answer.into_body().collect().await.unwrap().to_bytes())
    }

    /// Empties a directory as soon as something is written.
    struct Empties(PathBuf);

    impl Write for Empties {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            fs::read_dir(&self.0)?.try_for_each(|entry| fs::remove_file(entry?.path()))?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_set_aside_while_it_is_read_is_passed_over() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("blobs/sha256/aa");
        fs::create_dir_all(&dir).unwrap();
        let mut writer = Writer::begin(Empties(dir.clone())).unwrap();
        for name in ["aa1", "aa2", "aa3"] {
            fs::write(dir.join(name), name).unwrap();
        }
        let mut digests = HashSet::new();
        assert_eq!(tree(&mut writer, temp.path(), Path::new(REGISTRY), &mut digests).unwrap(), 1);
        assert!(digests.len() == 1 && digests.iter().all(|digest| digest.starts_with("sha256:aa")), "{digests:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_backup_is_for_masters_and_becomes_a_directory_once() {
        let temp = tempfile::tempdir().unwrap();
        let keyspace = coracle_keyspace::Config::new(temp.path().join("control"));
        let keyspace = Keyspace::open(keyspace).await.unwrap();
        let registry = temp.path().join("registry");
        // More than waits for a client that does not read.
        let blob = vec![7; (PIECES_QUEUED + 4) * CONTENT_BYTES + 1];
        let other = vec![8; blob.len()];
        let places = [&blob, &other].map(|content| {
            let hex: String = sha2::Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
            format!("blobs/sha256/{}/{hex}", &hex[..2])
        });
        for (place, content) in [(&*places[0], &blob[..]), (&*places[1], &other[..]), ("uploads/u", b"x")] {
            founding::private_dir(registry.join(place).parent().unwrap()).unwrap();
            fs::write(registry.join(place), content).unwrap();
        }
        let images = crate::images::Images::new(keyspace.clone(), tokio_util::task::TaskTracker::new());
        let images = Registry::open(coracle_registry::Config::new(&registry), images.clone(), images).unwrap();
        let sources = || Sources {
            keyspace: keyspace.clone(),
            authority: Arc::new(Authority::open(&temp.path().join("pki"), false).unwrap()),
            registry: images.clone(),
            dir: registry.clone(),
        };
        // One more than are asked for at a time: a place is given back just after the last byte.
        let router = routed(sources(), 2);
        assert_eq!(ask(&router, &["system:nodes"], "").await.0, 403);
        assert_eq!(ask(&routed(sources(), 0), &[crate::MASTERS], "").await.0, 429);
        assert_eq!(ask(&router, &[crate::MASTERS], "?images=maybe").await.0, 400);
        // A key that was replaced meanwhile opens nothing of what would be in it.
        let ca_key = temp.path().join("pki/ca.key");
        let kept = fs::read(&ca_key).unwrap();
        fs::copy(temp.path().join("pki/service-account.key"), &ca_key).unwrap();
        let (code, why) = ask(&router, &[crate::MASTERS], "").await;
        assert!(code == 503 && String::from_utf8_lossy(&why).contains("does not belong to"), "{code} {why:?}");
        fs::write(&ca_key, kept).unwrap();
        let (_, small) = ask(&router, &[crate::MASTERS], "?images=false").await;
        let (code, whole) = ask(&router, &[crate::MASTERS], "").await;
        let contents = verify(&whole[..], Some(&SecretKey::derive(b"test", "backup"))).unwrap();
        assert_eq!((code, contents.files, contents.bytes), (200, 2, whole.len() as u64));
        assert_eq!(contents.open, Some(0));
        assert_eq!(
            (verify(&small[..], Some(&SecretKey::derive(b"test", "backup"))).unwrap().files, contents.lacking),
            (0, Vec::new())
        );

        // What nothing names any more, since the moment that is kept, goes after it was read.
        let body = Body::from(SecretKey::derive(b"test", "backup").to_hex());
        let mut request = axum::http::Request::post("/coracle/v1/backup").body(body).unwrap();
        request.extensions_mut().insert(Identity::authenticated("somebody", vec![crate::MASTERS.to_owned()]));
        let mut reading = router.clone().oneshot(request).await.unwrap().into_body();
        let begun = reading.frame().await.unwrap().unwrap().into_data().unwrap();
        let age = Duration::ZERO;
        assert_eq!(images.collect_garbage(age).await.unwrap().blobs, 0);
        let read = [begun, reading.collect().await.unwrap().to_bytes()].concat();
        assert_eq!(verify(&read[..], Some(&SecretKey::derive(b"test", "backup"))).unwrap().files, 2);

        // What is set aside while it is read is passed over, and named.
        let named = |key: String| coracle_registry::Change {
            key,
            only: coracle_registry::Only::Always,
            to: coracle_registry::To::Text(format!("{} 1", other.len())),
        };
        let catalog = crate::images::Images::new(keyspace.clone(), tokio_util::task::TaskTracker::new());
        let digest_of = |place: &str| format!("sha256:{}", place.rsplit('/').next().unwrap());
        for place in &places {
            let change = vec![named(format!("layer app {}", digest_of(place)))];
            coracle_registry::Catalog::change(&*catalog, change, None).await.unwrap();
        }
        let body = Body::from(SecretKey::derive(b"test", "backup").to_hex());
        let mut request = axum::http::Request::post("/coracle/v1/backup").body(body).unwrap();
        request.extensions_mut().insert(Identity::authenticated("somebody", vec![crate::MASTERS.to_owned()]));
        let mut reading = router.clone().oneshot(request).await.unwrap().into_body();
        let begun = reading.frame().await.unwrap().unwrap().into_data().unwrap();
        // One of the two is being read, and the other is not yet.
        let aside = |place: &str| registry.join(place.rsplit('/').next().unwrap());
        places.iter().for_each(|place| fs::rename(registry.join(place), aside(place)).unwrap());
        let read = [begun, reading.collect().await.unwrap().to_bytes()].concat();
        let contents = verify(&read[..], Some(&SecretKey::derive(b"test", "backup"))).unwrap();
        assert_eq!((contents.files, contents.lacking_count), (1, 1));
        places.iter().for_each(|place| fs::rename(aside(place), registry.join(place)).unwrap());

        let dir = temp.path().join("restored");
        let (target, bytes) = (dir.clone(), whole.clone());
        let made = tokio::task::spawn_blocking(move || {
            let key = SecretKey::derive(b"test", "backup");
            let cut = restore(&bytes[..bytes.len() - 3], &target, Some(&key));
            assert!(matches!(cut, Err(RestoreError::Backup(Error::Cut { .. }))) && !target.exists());
            // The keys are in it, and only for whoever has the key.
            let without = restore(&bytes[..], &target, None).unwrap_err();
            assert!(matches!(&without, RestoreError::NoKey { id } if *id == key.fingerprint()), "{without}");
            let wrong = restore(&bytes[..], &target, Some(&SecretKey::generate())).unwrap_err();
            assert!(matches!(wrong, RestoreError::OtherKey { .. }) && !target.exists(), "{wrong}");
            assert!(!bytes.windows(11).any(|found| found == b"PRIVATE KEY"), "no key stands in it in the clear");
            let made = restore(&bytes[..], &target, Some(&key)).unwrap();
            assert!(matches!(restore(&bytes[..], &target, Some(&key)), Err(RestoreError::NotEmpty { .. })));
            made
        });
        assert_eq!(made.await.unwrap().files, 2);
        assert_eq!(fs::read(dir.join("registry").join(&places[0])).unwrap(), blob);
        assert_eq!(fs::read(dir.join("pki/ca.key")).unwrap(), fs::read(temp.path().join("pki/ca.key")).unwrap());
        assert!(dir.join("CLUSTER").exists() && !dir.join("registry/uploads").exists());
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 4, "nothing is left beside it");

        // A cluster that has no key says how much of what it is to seal is in the clear.
        let value = coracle_keyspace::Value { bytes: "{}".into(), revision_at: 0 };
        let key = coracle_keyspace::Key::new("secrets", "a/one");
        let secret = coracle_keyspace::Op::Put { key, value, guard: coracle_keyspace::Guard::Absent };
        keyspace.transact(vec![secret]).await.unwrap();
        let (_, open) = ask(&router, &[crate::MASTERS], "?images=false").await;
        assert_eq!(verify(&open[..], Some(&SecretKey::derive(b"test", "backup"))).unwrap().open, Some(1));

        // What is damaged is not carried along, and is named.
        fs::write(registry.join(&places[1]), &blob).unwrap();
        let (code, whole) = ask(&router, &[crate::MASTERS], "").await;
        let contents = verify(&whole[..], Some(&SecretKey::derive(b"test", "backup"))).unwrap();
        assert_eq!((code, contents.files, contents.lacking_count), (200, 1, 1));
        assert_eq!(contents.lacking, [format!("app ({})", digest_of(&places[1]))]);
        keyspace.shutdown().await;
    }
}
