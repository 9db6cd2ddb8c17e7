//! Requests about blobs and uploads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use tokio::time::Instant;

use crate::Registry;
use crate::api::{CONTENT_DIGEST, Query, value};
use crate::catalog::CatalogError;
use crate::error::{Refusal, range_until};
use crate::name::{Digest, Hashing, Name};
use crate::replicas::RECOUNTS_MAX;
use crate::store::Found;
use crate::upload::Upload;

/// Bytes that are collected before they go to the disk together.
const WRITE_BYTES: usize = 512 << 10;
/// How long a client may take for [`PACE_BYTES`]: whoever is slower holds a place that others wait for (tests do not wait so long).
pub const PACE_MAX: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(60) };
/// What must come in each [`PACE_MAX`], unless it is the end.
const PACE_BYTES: usize = 64 << 10;
/// Bytes read at a time.
const READ_BYTES: usize = 128 << 10;

/// A blob, whole or in part, or only its head.
pub async fn get(
    registry: &Registry,
    name: Name,
    digest: Digest,
    headers: &HeaderMap,
    head_only: bool,
) -> Result<Response, Refusal> {
    let unknown = || Refusal::blob_unknown(&digest.to_string());
    let size = registry.inner().names.find(|names| names.blob(&name, &digest)).await?.ok_or_else(unknown)?;
    // Also for its head: who pushes takes what it hears of for what is here. What is read is hashed while it is read.
    let is_here = match head_only {
        true => registry.is_here(&digest, size).await? && registry.is_here_whole(&digest, size).await?,
        false => registry.is_here(&digest, size).await?,
    };
    if !is_here {
        return Err(unknown());
    }
    let range =
        headers.get(header::RANGE).and_then(|range| range.to_str().ok()).map_or(Range::Whole, |r| range(r, size));
    let (status, start, length) = match range {
        Range::Whole => (StatusCode::OK, 0, size),
        Range::Part(start, length) => (StatusCode::PARTIAL_CONTENT, start, length),
        Range::Beyond => return Err(Refusal::blob_range()),
    };
    let body = if head_only { Body::empty() } else { content(registry, &digest, (start, length), size) };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::ETAG, value(&format!("\"{digest}\"")));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=31536000, immutable"));
    headers.insert(CONTENT_DIGEST, value(&digest.to_string()));
    if status == StatusCode::PARTIAL_CONTENT {
        headers.insert(header::CONTENT_RANGE, value(&format!("bytes {start}-{}/{size}", start + length - 1)));
    }
    Ok(response)
}

/// A part of a content of `size` bytes, for a client; of one that cannot be read another server's takes the place.
pub fn content(registry: &Registry, digest: &Digest, range: (u64, u64), size: u64) -> Body {
    let (replacing, replaced) = (registry.clone(), digest.clone());
    Body::from_stream(pieces(registry, digest, range, size).inspect_err(move |_| {
        replacing.begin_to_replace(&replaced, size);
    }))
}

/// A part of a content of `size` bytes, read while it is sent. The whole of one that is not what its digest says breaks off before
/// its end, and is set aside.
pub fn pieces(
    registry: &Registry,
    digest: &Digest,
    (start, length): (u64, u64),
    size: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
    let is_whole = (start, length) == (0, size);
    let hashing = is_whole.then(|| Hashing::new(digest.algorithm()));
    let reading = Reading { registry: registry.clone(), digest: digest.clone(), at: start, left: length, hashing };
    futures::stream::unfold(Some(reading), |reading: Option<Reading>| async move {
        let mut reading = reading.filter(|reading| reading.left > 0)?;
        let read = tokio::task::spawn_blocking(move || reading.next().map(|piece| (piece, reading)));
        match read.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok((piece, reading)) => Some((Ok(piece), Some(reading))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// A content that is being read. Its file is open while a piece is read, and not while its client makes up its mind.
struct Reading {
    registry: Registry,
    digest: Digest,
    at: u64,
    left: u64,
    /// Of what was read of the whole.
    hashing: Option<Hashing>,
}

impl Reading {
    /// The next piece; an error in the place of the last one where all of them are not what the digest says. Blocks on the disk.
    fn next(&mut self) -> io::Result<Bytes> {
        let mut piece = vec![0; READ_BYTES.min(usize::try_from(self.left).unwrap_or(READ_BYTES))];
        let store = &self.registry.inner().store;
        let read = match File::open(store.path(&self.digest)).and_then(|file| file.read_at(&mut piece, self.at)) {
            Ok(read) if read > 0 => read,
            // It has become shorter.
            Ok(_) => {
                store.look(&self.digest)?;
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // The disk does not give it, which is seen without reading all of it once more.
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    store.note_unread(&self.digest, &error);
                }
                return Err(error);
            }
        };
        piece.truncate(read);
        (self.at, self.left) = (self.at + read as u64, self.left - read as u64);
        if let Some(hashing) = &mut self.hashing {
            hashing.update(&piece);
        }
        if self.left == 0
            && let Some(hashing) = self.hashing.take()
            && hashing.finish() != self.digest
        {
            store.look(&self.digest)?;
            return Err(io::Error::other("the content is damaged here"));
        }
        Ok(piece.into())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    Whole,
    /// Where it begins and how long it is.
    Part(u64, u64),
    Beyond,
}

/// One range of bytes (RFC 9110 §14.1.2). Several, or what cannot be read, are answered with the whole.
fn range(text: &str, size: u64) -> Range {
    let Some((from, to)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Whole;
    };
    let (start, end) = match (from.trim(), to.trim()) {
        ("", suffix) => match suffix.parse::<u64>() {
            Ok(0) => return Range::Beyond,
            Ok(suffix) => (size.saturating_sub(suffix), size),
            Err(_) => return Range::Whole,
        },
        (from, to) => match (from.parse::<u64>(), to.parse::<u64>()) {
            (Ok(from), Ok(to)) if from <= to => (from, to.saturating_add(1).min(size)),
            (Ok(from), Err(_)) if to.is_empty() => (from, size),
            _ => return Range::Whole,
        },
    };
    if start >= end { Range::Beyond } else { Range::Part(start, end - start) }
}

/// Removes a blob from a repository. Its content goes with the garbage, on every server.
pub async fn delete(registry: &Registry, name: Name, digest: Digest) -> Result<Response, Refusal> {
    match registry.inner().names.delete_layer(&name, &digest).await? {
        true => Ok(StatusCode::ACCEPTED.into_response()),
        false => Err(Refusal::blob_unknown(&digest.to_string())),
    }
}

/// Begins an upload; with a digest it is the whole of it, with a mount it may be none at all.
pub async fn begin(registry: &Registry, name: Name, query: Query, body: Body) -> Result<Response, Refusal> {
    // What cannot be mounted, for whatever reason, is uploaded (distribution specification, "Mounting a blob").
    let parsed = |mount: &String, from: &String| Some((mount.parse::<Digest>().ok()?, from.parse::<Name>().ok()?));
    let mount = query.mount.as_ref().zip(query.from.as_ref()).and_then(|(mount, from)| parsed(mount, from));
    let names = &registry.inner().names;
    if let Some((digest, from)) = mount
        && names.find(|names| names.blob(&from, &digest)).await?.is_some()
        && matches!(registry.look(&digest).await?, None | Some(Found::Sound))
        && names.mount(&name, &digest, &from).await?
    {
        return Ok(created(&name, &digest));
    }
    let digest = query.digest.as_deref().map(str::parse::<Digest>).transpose()?;
    let upload = {
        let name = name.clone();
        registry.blocking(move |inner| inner.uploads.begin(name)).await?.ok_or_else(Refusal::too_many_uploads)?
    };
    let Some(digest) = digest else { return Ok(state(&name, &upload, StatusCode::ACCEPTED)) };
    // Whatever happens, also when the client goes away: it has no other way to this upload.
    let _forget = Forget { registry, upload: &upload };
    let _busy = upload.busy.lock().await;
    receive(registry, &upload, body, registry.inner().config.blob_bytes_max).await?;
    finish(registry, name, &upload, digest).await
}

/// Forgets an upload when it is dropped.
struct Forget<'a> {
    registry: &'a Registry,
    upload: &'a Upload,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.registry.inner().uploads.forget(self.upload);
    }
}

/// Takes a chunk.
pub async fn append(
    registry: &Registry,
    name: Name,
    id: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let upload = registry.inner().uploads.find(&name, id).ok_or_else(Refusal::upload_unknown)?;
    let _busy = upload.busy.try_lock().map_err(|_| Refusal::upload_range(upload.offset()))?;
    receive_range(registry, &upload, headers, body).await?;
    Ok(state(&name, &upload, StatusCode::ACCEPTED))
}

/// Takes the last chunk, if any, and makes the upload a blob.
pub async fn complete(
    registry: &Registry,
    name: Name,
    id: &str,
    query: Query,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let upload = registry.inner().uploads.find(&name, id).ok_or_else(Refusal::upload_unknown)?;
    let digest: Digest = query.digest.as_deref().ok_or_else(Refusal::digest_missing)?.parse()?;
    let _busy = upload.busy.try_lock().map_err(|_| Refusal::upload_range(upload.offset()))?;
    receive_range(registry, &upload, headers, body).await?;
    registry.inner().uploads.forget(&upload);
    finish(registry, name, &upload, digest).await
}

/// How far an upload is.
pub fn progress(registry: &Registry, name: &Name, id: &str) -> Result<Response, Refusal> {
    let upload = registry.inner().uploads.find(name, id).ok_or_else(Refusal::upload_unknown)?;
    Ok(state(name, &upload, StatusCode::NO_CONTENT))
}

/// Ends an upload without a blob.
pub fn cancel(registry: &Registry, name: &Name, id: &str) -> Result<Response, Refusal> {
    let upload = registry.inner().uploads.find(name, id).ok_or_else(Refusal::upload_unknown)?;
    registry.inner().uploads.forget(&upload);
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// A chunk that says where it lies must begin where the last one ended, and be as long as it says. Gives where it ends.
fn check_range(upload: &Upload, headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(range) = headers.get(header::CONTENT_RANGE) else { return Ok(None) };
    let range = range.to_str().unwrap_or_default();
    let bounds = range.strip_prefix("bytes ").unwrap_or(range).split('/').next().unwrap_or_default();
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let parsed = bounds.split_once('-').and_then(|(start, last)| Some((number(start)?, number(last)?.checked_add(1)?)));
    let (start, end) = parsed
        .filter(|(start, end)| start < end)
        .ok_or_else(|| Refusal::upload_invalid(format!("Content-Range {range:?} is no range")))?;
    if start != upload.offset() {
        return Err(Refusal::upload_range(upload.offset()));
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| number(length.to_str().ok()?));
    match length {
        Some(length) if length != end - start => Err(range_differs(range, length)),
        _ => Ok(Some(end)),
    }
}

fn range_differs(range: &str, length: u64) -> Refusal {
    Refusal::upload_invalid(format!("Content-Range {range:?} is not the range of a body of {length} bytes"))
}

/// Takes a chunk that says where it lies; one of another length ends the upload, since what was taken cannot be given back.
async fn receive_range(
    registry: &Registry,
    upload: &Arc<Upload>,
    headers: &HeaderMap,
    body: Body,
) -> Result<(), Refusal> {
    let (begun, end) = (upload.offset(), check_range(upload, headers)?);
    receive(registry, upload, body, registry.inner().config.blob_bytes_max).await?;
    match end {
        Some(end) if end != upload.offset() => {
            registry.inner().uploads.forget(upload);
            Err(range_differs(&format!("{begun}-{}", end - 1), upload.offset() - begun))
        }
        _ => Ok(()),
    }
}

/// Takes all that comes, `max` bytes at most. What came before an error stays.
pub async fn receive(registry: &Registry, upload: &Arc<Upload>, mut body: Body, max: u64) -> Result<(), Refusal> {
    let mut at = upload.offset();
    let mut left = max.saturating_sub(at);
    let (mut due, mut paced) = (Instant::now() + PACE_MAX, 0);
    loop {
        let (mut chunks, mut bytes, mut ended) = (Vec::new(), 0, None);
        while bytes < WRITE_BYTES {
            match tokio::time::timeout_at(due, body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    bytes += data.len();
                    paced += data.len();
                    chunks.push(data);
                    if paced >= PACE_BYTES {
                        (due, paced) = (Instant::now() + PACE_MAX, 0);
                    }
                }
                Ok(None) => ended = Some(Ok(())),
                Ok(Some(Err(error))) => ended = Some(Err(Refusal::body(format!("the body ended too early: {error}")))),
                Err(_) => ended = Some(Err(Refusal::body("less than 64 KiB came in a minute"))),
            }
            if ended.is_some() {
                break;
            }
        }
        if bytes as u64 > left {
            registry.inner().uploads.forget(upload);
            return Err(Refusal::too_large(max));
        }
        left -= bytes as u64;
        write(registry, upload, at, chunks).await?;
        at += bytes as u64;
        if let Some(end) = ended {
            return end;
        }
    }
}

async fn write(registry: &Registry, upload: &Arc<Upload>, at: u64, chunks: Vec<Bytes>) -> Result<(), Refusal> {
    let here = upload.clone();
    let taken = chunks.is_empty() || registry.blocking(move |_| here.append(at, &chunks)).await?;
    if taken { Ok(()) } else { Err(Refusal::upload_range(upload.offset())) }
}

/// Makes the upload a blob, if it is what `digest` says and a majority of the servers holds it.
async fn finish(registry: &Registry, name: Name, upload: &Arc<Upload>, digest: Digest) -> Result<Response, Refusal> {
    keep(registry, upload, &digest).await?;
    let mut recounts = 0;
    loop {
        let counted = registry.replicate(&digest, upload.offset()).await?;
        match registry.inner().names.add_layer(&name, &digest, upload.offset(), counted).await {
            Err(CatalogError::Recounted) if recounts < RECOUNTS_MAX => recounts += 1,
            added => {
                added?;
                return Ok(created(&name, &digest));
            }
        }
    }
}

/// Makes the upload a content of this server, if it is what `digest` says.
pub async fn keep(registry: &Registry, upload: &Arc<Upload>, digest: &Digest) -> Result<(), Refusal> {
    let is = {
        let (upload, algorithm) = (upload.clone(), digest.algorithm());
        // Beside others: of a large one it takes long, and touches nothing that they share.
        registry.blocking(move |_| upload.finish(algorithm)).await?
    };
    if is != *digest {
        return Err(Refusal::digest_differs(&is.to_string()));
    }
    let (upload, digest) = (upload.clone(), digest.clone());
    Ok(registry.changing(move |inner| inner.store.add(&digest, upload.path())).await?)
}

fn created(name: &Name, digest: &Digest) -> Response {
    let location = value(&format!("/v2/{name}/blobs/{digest}"));
    let headers = [(header::LOCATION, location), (CONTENT_DIGEST, value(&digest.to_string()))];
    (StatusCode::CREATED, headers).into_response()
}

fn state(name: &Name, upload: &Upload, status: StatusCode) -> Response {
    let id = upload.id;
    let headers = [
        (header::LOCATION, value(&format!("/v2/{name}/blobs/uploads/{id}"))),
        (header::RANGE, range_until(upload.offset())),
        (header::HeaderName::from_static("docker-upload-uuid"), value(&id.to_string())),
        (header::HeaderName::from_static("oci-chunk-min-length"), HeaderValue::from_static("1")),
    ];
    (status, headers).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_sends_a_byte_now_and_then_does_not_hold_a_place_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let registry = crate::memory::alone(crate::Config::new(dir.path()));
        let drops = futures::stream::unfold((), |()| async {
            tokio::time::sleep(PACE_MAX / 10).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
        });
        let upload = registry.inner().uploads.begin("a".parse().unwrap()).unwrap().unwrap();
        let received = receive(&registry, &upload, Body::from_stream(drops), 1 << 30);
        let received = tokio::time::timeout(Duration::from_secs(30), received).await.expect("it ends");
        assert!(format!("{received:?}").contains("less than 64 KiB"), "{received:?}");
        assert!(upload.offset() > 0, "what came stays");
    }

    #[tokio::test]
    async fn what_a_cut_request_still_wrote_is_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let registry = crate::memory::alone(crate::Config::new(dir.path()));
        let upload = registry.inner().uploads.begin("a".parse().unwrap()).unwrap().unwrap();
        let late = upload.clone();
        let sent = futures::stream::once(async move {
            assert!(late.append(0, &[Bytes::from_static(b"late")])?);
            Ok::<_, std::io::Error>(Bytes::from_static(b"mine"))
        });
        let refused = receive(&registry, &upload, Body::from_stream(sent), 1 << 30).await.unwrap_err().into_response();
        assert_eq!(refused.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(refused.headers()[header::RANGE], "0-3", "the client goes on from there");
    }

    #[test]
    fn ranges_are_read_as_http_says() {
        for (text, expected) in [
            ("bytes=0-", Range::Part(0, 10)),
            ("bytes=2-4", Range::Part(2, 3)),
            ("bytes=2-99", Range::Part(2, 8)),
            ("bytes=9-9", Range::Part(9, 1)),
            ("bytes=-3", Range::Part(7, 3)),
            ("bytes=-99", Range::Part(0, 10)),
            ("bytes=10-", Range::Beyond),
            ("bytes=-0", Range::Beyond),
            ("bytes=4-2", Range::Whole),
            ("bytes=0-1,3-4", Range::Whole),
            ("items=0-1", Range::Whole),
            ("bytes=a-b", Range::Whole),
        ] {
            assert_eq!(range(text, 10), expected, "{text}");
        }
        assert_eq!(range("bytes=0-", 0), Range::Beyond);
    }
}
