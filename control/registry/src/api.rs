//! The paths of the distribution specification, and who answers them.
//!
//! A repository's name may have any number of slashes, so a path is read from its end: what comes before
//! `/manifests/…`, `/blobs/…`, `/tags/list` or `/referrers/…` is the name.

use std::io;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use crate::catalog::{Added, CatalogError};
use crate::error::Refusal;
use crate::name::{Algorithm, Digest, Name, Reference};
use crate::replicas::RECOUNTS_MAX;
use crate::{Registry, blob, manifest};

/// Says what a content is.
pub const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Most entries on one page of a list.
const PAGE_MAX: usize = 1000;
/// A page of manifests that refer to another ends after so many bytes of them were read, also of those that were not asked for.
const REFERRERS_BYTES_MAX: usize = 4 << 20;
/// What reading a manifest costs at least.
const MANIFEST_BYTES_MIN: usize = 4 << 10;

/// The registry under `/v2/`.
pub fn router(registry: Registry) -> Router {
    let check = any(|| async { version() });
    Router::new().route("/v2", check.clone()).route("/v2/", check).route("/v2/{*path}", any(serve)).with_state(registry)
}

fn version() -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (API_VERSION, "registry/2.0")];
    (headers, "{}").into_response()
}

/// By which docker knows a registry.
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// What the query may say, of all paths together.
#[derive(Deserialize, Default)]
pub struct Query {
    /// Of the finished upload.
    pub digest: Option<String>,
    /// The blob to mount.
    pub mount: Option<String>,
    /// The repository it is in.
    pub from: Option<String>,
    n: Option<usize>,
    last: Option<String>,
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
}

impl Query {
    /// Most entries that are wanted on a page.
    fn limit(&self) -> usize {
        self.n.unwrap_or(PAGE_MAX).min(PAGE_MAX)
    }
}

async fn serve(State(registry): State<Registry>, Path(path): Path<String>, request: Request) -> Response {
    let mut response = match answer(&registry, &path, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    };
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response
}

/// What a path is about.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    Catalog,
    Tags(&'a str),
    Manifest(&'a str, &'a str),
    Blob(&'a str, &'a str),
    Uploads(&'a str),
    Upload(&'a str, &'a str),
    Referrers(&'a str, &'a str),
}

/// Reads a path, which is what follows `/v2/`.
fn target(path: &str) -> Option<Target<'_>> {
    if path == "_catalog" {
        return Some(Target::Catalog);
    }
    if let Some(name) = path.strip_suffix("/tags/list") {
        return Some(Target::Tags(name));
    }
    if let Some(name) = path.strip_suffix("/blobs/uploads").or_else(|| path.strip_suffix("/blobs/uploads/")) {
        return Some(Target::Uploads(name));
    }
    let (before, last) = path.rsplit_once('/')?;
    if let Some(name) = before.strip_suffix("/blobs/uploads") {
        return Some(Target::Upload(name, last));
    }
    let (name, kind) = before.rsplit_once('/')?;
    match kind {
        "manifests" => Some(Target::Manifest(name, last)),
        "blobs" => Some(Target::Blob(name, last)),
        "referrers" => Some(Target::Referrers(name, last)),
        _ => None,
    }
}

async fn answer(registry: &Registry, path: &str, request: Request) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    let reads = matches!(head.method, Method::GET | Method::HEAD);
    let target = target(path).ok_or_else(Refusal::not_found)?;
    match (&head.method, target) {
        (_, Target::Catalog) if reads => catalog(registry, &query(&head.uri)).await,
        (_, Target::Tags(name)) if reads => tags(registry, name.parse()?, &query(&head.uri)).await,
        (_, Target::Referrers(name, subject)) if reads => {
            referrers(registry, name.parse()?, subject.parse()?, &query(&head.uri)).await
        }
        (_, Target::Manifest(name, reference)) if reads => {
            get_manifest(registry, name.parse()?, reference.parse()?, reference, head.method == Method::HEAD).await
        }
        (&Method::PUT, Target::Manifest(name, reference)) => {
            let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
            put_manifest(registry, name.parse()?, reference.parse()?, content_type, body).await
        }
        (&Method::DELETE, Target::Manifest(name, reference)) => {
            delete_manifest(registry, name.parse()?, reference.parse()?, reference).await
        }
        (_, Target::Blob(name, digest)) if reads => {
            blob::get(registry, name.parse()?, digest.parse()?, &head.headers, head.method == Method::HEAD).await
        }
        (&Method::DELETE, Target::Blob(name, digest)) => blob::delete(registry, name.parse()?, digest.parse()?).await,
        (&Method::POST, Target::Uploads(name)) => blob::begin(registry, name.parse()?, query(&head.uri), body).await,
        (&Method::PATCH, Target::Upload(name, id)) => {
            blob::append(registry, name.parse()?, id, &head.headers, body).await
        }
        (&Method::PUT, Target::Upload(name, id)) => {
            blob::complete(registry, name.parse()?, id, query(&head.uri), &head.headers, body).await
        }
        (&Method::DELETE, Target::Upload(name, id)) => blob::cancel(registry, &name.parse()?, id),
        (_, Target::Upload(name, id)) if reads => blob::progress(registry, &name.parse()?, id),
        _ => Err(Refusal::method()),
    }
}

/// The query; one that cannot be read says nothing.
fn query(uri: &Uri) -> Query {
    axum::extract::Query::try_from_uri(uri).map(|axum::extract::Query(query)| query).unwrap_or_default()
}

async fn get_manifest(
    registry: &Registry,
    name: Name,
    reference: Reference,
    text: &str,
    head_only: bool,
) -> Result<Response, Refusal> {
    let names = &registry.inner().names;
    let unknown = || Refusal::manifest_unknown(text);
    let digest = match reference {
        Reference::Digest(digest) => digest,
        Reference::Tag(tag) => {
            // It may stand for something else since.
            names.current().await?;
            names.tag(&name, &tag)?.ok_or_else(unknown)?
        }
    };
    let found = names.find(|names| names.manifest(&name, &digest)).await?.ok_or_else(unknown)?;
    if !registry.is_here_whole(&digest, found.size).await? {
        // Who pushes is to send it again; who pulls is not told that there is none.
        return Err(match !head_only && registry.inner().store.is_unread(&digest) {
            true => io::Error::other(format!("{digest} cannot be read")).into(),
            false => unknown(),
        });
    }
    let body = if head_only { Body::empty() } else { blob::content(registry, &digest, (0, found.size), found.size) };
    let headers = [
        (header::CONTENT_TYPE, value(&found.media_type)),
        (header::CONTENT_LENGTH, found.size.into()),
        (header::ETAG, value(&format!("\"{digest}\""))),
        (CONTENT_DIGEST, value(&digest.to_string())),
    ];
    Ok((headers, body).into_response())
}

/// A manifest, whole. All that are being received are bounded together, by what has come of them.
async fn collect(registry: &Registry, body: Body) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Refusal> {
    let max = registry.inner().config.manifest_bytes_max;
    let mut body = Limited::new(body, max);
    let (mut bytes, mut held) = (BytesMut::new(), None::<OwnedSemaphorePermit>);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
            true => Refusal::too_large(max as u64),
            false => Refusal::manifest_invalid(format!("the body ended too early: {error}")),
        })?;
        let Ok(data) = frame.into_data() else { continue };
        let room = u32::try_from(data.len()).ok();
        let room = room.and_then(|room| registry.inner().manifests.clone().try_acquire_many_owned(room).ok());
        let room = room.ok_or_else(Refusal::too_many_manifests)?;
        match &mut held {
            Some(held) => held.merge(room),
            None => held = Some(room),
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.freeze(), held))
}

async fn put_manifest(
    registry: &Registry,
    name: Name,
    reference: Reference,
    content_type: Option<&str>,
    body: Body,
) -> Result<Response, Refusal> {
    let (bytes, held) = match tokio::time::timeout(blob::PACE_MAX, collect(registry, body)).await {
        Ok(collected) => collected?,
        Err(_) => return Err(Refusal::manifest_invalid("it did not come within a minute")),
    };
    let algorithm = match &reference {
        Reference::Digest(said) => said.algorithm(),
        Reference::Tag(_) => Algorithm::Sha256,
    };
    let digest = algorithm.digest(&bytes);
    let tag = match reference {
        Reference::Digest(said) if said != digest => return Err(Refusal::digest_differs(&digest.to_string())),
        Reference::Digest(_) => None,
        Reference::Tag(tag) => Some(tag),
    };
    let checked = manifest::check(content_type, &bytes).map_err(Refusal::manifest_invalid)?;
    let location = value(&format!("/v2/{name}/manifests/{digest}"));
    let pushed = tag.as_ref().map(|_| format!("{name}@{digest}"));
    let names = &registry.inner().names;
    let lacks = |lacking: Digest| Refusal::manifest_blob_unknown(&lacking.to_string());
    // What is refused anyway is written nowhere.
    if let Added::Lacks(lacking) = names.is_complete(&name, &checked).await? {
        return Err(lacks(lacking));
    }
    let size = bytes.len() as u64;
    {
        let digest = digest.clone();
        registry.changing(move |inner| inner.store.write(&digest, &bytes)).await?;
    }
    drop(held);
    let mut recounts = 0;
    let added = loop {
        let counted = registry.replicate(&digest, size).await?;
        match names.add_manifest(&name, tag.as_deref(), &digest, &checked, (size, counted)).await {
            Err(CatalogError::Recounted) if recounts < RECOUNTS_MAX => recounts += 1,
            added => break added?,
        }
    };
    if let Added::Lacks(lacking) = added {
        return Err(lacks(lacking));
    }
    // What has no tag yet is a part of something, or is asked for by nobody.
    if let Some(image) = pushed {
        registry.inner().pushes.add(image, digest.to_string());
    }
    let headers = [(header::LOCATION, location), (CONTENT_DIGEST, value(&digest.to_string()))];
    let mut response = (StatusCode::CREATED, headers).into_response();
    if let Some(subject) = &checked.subject {
        response.headers_mut().insert(HeaderName::from_static("oci-subject"), value(&subject.to_string()));
    }
    Ok(response)
}

async fn delete_manifest(
    registry: &Registry,
    name: Name,
    reference: Reference,
    text: &str,
) -> Result<Response, Refusal> {
    let names = &registry.inner().names;
    let deleted = match &reference {
        Reference::Tag(tag) => names.delete_tag(&name, tag).await?,
        Reference::Digest(digest) => names.delete_manifest(&name, digest).await?,
    };
    if deleted { Ok(StatusCode::ACCEPTED.into_response()) } else { Err(Refusal::manifest_unknown(text)) }
}

async fn catalog(registry: &Registry, query: &Query) -> Result<Response, Refusal> {
    registry.inner().names.current().await?;
    let names = &registry.inner().names;
    let page = page(names.repositories(query.last.as_deref(), query.limit().saturating_add(1)), query);
    Ok(page.respond("/v2/_catalog", |names| json!({"repositories": names})))
}

async fn tags(registry: &Registry, name: Name, query: &Query) -> Result<Response, Refusal> {
    registry.inner().names.current().await?;
    let names = &registry.inner().names;
    let unknown = || Refusal::name_unknown(name.as_str());
    let tags = names.tags(&name, query.last.as_deref(), query.limit().saturating_add(1)).ok_or_else(unknown)?;
    let page = page(tags, query);
    Ok(page.respond(&format!("/v2/{name}/tags/list"), |tags| json!({"name": name.as_str(), "tags": tags})))
}

async fn referrers(registry: &Registry, name: Name, subject: Digest, query: &Query) -> Result<Response, Refusal> {
    let wanted = query.artifact_type.clone();
    let mut path = format!("/v2/{name}/referrers/{subject}");
    if let Some(wanted) = &wanted {
        let escaped = url_escaped(wanted);
        path.push_str(&format!("?artifactType={escaped}"));
    }
    let (last, limit) = (query.last.as_ref(), query.limit());
    let names = &registry.inner().names;
    names.current().await?;
    let found =
        names.referrers(&name, &subject, last.map(String::as_str), REFERRERS_BYTES_MAX / MANIFEST_BYTES_MIN + 1)?;
    let (mut descriptors, mut read) = (Vec::new(), 0);
    let mut page = Page { entries: Vec::new(), limit, after: None };
    let mut looked_at = None;
    // One at a time: each may have megabytes of annotations.
    for digest in found {
        let text = digest.to_string();
        if page.entries.len() >= limit || read >= REFERRERS_BYTES_MAX {
            page.after = looked_at;
            break;
        }
        looked_at = Some(text.clone());
        read += MANIFEST_BYTES_MIN;
        let Some(found) = names.manifest(&name, &digest)? else { continue };
        if !registry.is_here(&digest, found.size).await? {
            continue;
        }
        read += usize::try_from(found.size).unwrap_or(usize::MAX);
        let wanted = wanted.clone();
        let descriptor = registry.searching(move |inner| {
            let descriptor = manifest::describe(&digest, &found.media_type, &inner.store.read(&digest)?);
            let fits =
                |d: &serde_json::Value| wanted.as_ref().is_none_or(|wanted| d["artifactType"] == wanted.as_str());
            Ok(descriptor.filter(fits))
        });
        if let Some(descriptor) = descriptor.await? {
            descriptors.push(descriptor);
            page.entries.push(text);
        }
    }
    let index = json!({"schemaVersion": 2, "mediaType": manifest::INDEX, "manifests": descriptors});
    let mut response = page.respond(&path, |_| index);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(manifest::INDEX));
    if wanted.is_some() {
        headers.insert(HeaderName::from_static("oci-filters-applied"), HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

/// A part of a list.
struct Page {
    entries: Vec<String>,
    limit: usize,
    /// After which one more follow.
    after: Option<String>,
}

/// At most `n` of `entries`, which are those after `last`, in order, and one more where there are more.
fn page(mut entries: Vec<String>, query: &Query) -> Page {
    let limit = query.limit();
    let more = entries.len() > limit;
    entries.truncate(limit);
    Page { after: entries.last().filter(|_| more).cloned(), entries, limit }
}

impl Page {
    fn respond(&self, path: &str, body: impl FnOnce(&[String]) -> serde_json::Value) -> Response {
        let mut response = axum::Json(body(&self.entries)).into_response();
        if let Some(last) = &self.after {
            // Names, tags and digests have no character that a URL would read otherwise.
            let joint = if path.contains('?') { '&' } else { '?' };
            let link = value(&format!("<{path}{joint}n={}&last={last}>; rel=\"next\"", self.limit));
            response.headers_mut().insert(header::LINK, link);
        }
        response
    }
}

/// Text as a query's value: what is not plain becomes `%XX`.
fn url_escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let one = |byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(one).collect()
}

/// A header's value from text that was checked, or made here.
pub fn value(text: &str) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_their_end() {
        for (path, expected) in [
            ("_catalog", Some(Target::Catalog)),
            ("a/b/c/tags/list", Some(Target::Tags("a/b/c"))),
            ("a/manifests/latest", Some(Target::Manifest("a", "latest"))),
            ("a/blobs/uploads/manifests/x", Some(Target::Manifest("a/blobs/uploads", "x"))),
            ("a/b/blobs/sha256:0", Some(Target::Blob("a/b", "sha256:0"))),
            ("a/b/blobs/uploads", Some(Target::Uploads("a/b"))),
            ("a/b/blobs/uploads/", Some(Target::Uploads("a/b"))),
            ("a/b/blobs/uploads/1-2", Some(Target::Upload("a/b", "1-2"))),
            ("a/referrers/sha256:0", Some(Target::Referrers("a", "sha256:0"))),
            ("a", None),
            ("a/b/c", None),
            ("manifests/latest", None),
        ] {
            assert_eq!(target(path), expected, "{path}");
        }
    }

    #[test]
    fn pages_follow_one_another() {
        let all: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let at = |n, last: Option<&str>| {
            let query = Query { n, last: last.map(str::to_owned), ..Query::default() };
            let entries = all.iter().filter(|entry| last.is_none_or(|last| entry.as_str() > last));
            let page = page(entries.take(query.limit() + 1).cloned().collect(), &query);
            (page.entries.join(""), page.after.is_some())
        };
        assert_eq!(at(None, None), ("abc".into(), false));
        assert_eq!(at(Some(2), None), ("ab".into(), true));
        assert_eq!(at(Some(2), Some("b")), ("c".into(), false));
        assert_eq!(at(Some(0), None), (String::new(), false));
        assert_eq!(at(Some(5), Some("z")), (String::new(), false));
    }
}
