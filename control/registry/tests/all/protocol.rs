//! Requests one by one: what the specification says beyond what clients usually do, and what must be refused.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{Server, digest};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn code(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

async fn send(server: &Server, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response: Response<Body> = server.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    Answer { status: head.status, headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
}

async fn get(server: &Server, path: &str) -> Answer {
    send(server, Method::GET, path, &[], "").await
}

async fn push_blob(server: &Server, name: &str, content: &'static [u8]) -> String {
    let digest = digest(content);
    let answer = send(server, Method::POST, &format!("/v2/{name}/blobs/uploads/?digest={digest}"), &[], content).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.code());
    digest
}

/// Pushes a small image and returns the digest of its manifest.
async fn push_image(server: &Server, name: &str, tag: &str, content: &'static [u8]) -> String {
    let (config, layer) = (push_blob(server, name, b"{}").await, push_blob(server, name, content).await);
    let manifest = json!({"schemaVersion": 2, "mediaType": IMAGE,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
        "layers": [{"mediaType": "application/wasm", "digest": layer, "size": content.len()}]});
    let path = format!("/v2/{name}/manifests/{tag}");
    let answer = send(server, Method::PUT, &path, &[("content-type", IMAGE)], manifest.to_string()).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.code());
    answer.header("docker-content-digest").to_owned()
}

#[tokio::test]
async fn who_does_not_read_holds_no_file() {
    static LARGE: [u8; 300_000] = [7; 300_000];
    let server = Server::start();
    let digest = push_blob(&server, "app", &LARGE).await;
    let mut bodies = Vec::new();
    for _ in 0..20 {
        let request = Request::get(format!("/v2/app/blobs/{digest}")).body(Body::empty()).unwrap();
        let mut body = server.router.clone().oneshot(request).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        bodies.push(body);
    }
    let dir = server.dir.path().canonicalize().unwrap();
    let is_blob = |path: std::path::PathBuf| path.starts_with(&dir) && path.to_string_lossy().contains(&digest[7..]);
    let open =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    assert_eq!(open.filter(|path| is_blob(path.clone())).count(), 0);
    // They are still there for whoever reads on.
    for body in bodies {
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), LARGE.len() - (128 << 10));
    }
}

#[tokio::test]
async fn a_client_finds_out_that_this_is_a_registry() {
    let server = Server::start();
    for path in ["/v2", "/v2/"] {
        let answer = get(&server, path).await;
        assert_eq!((answer.status, answer.header("docker-distribution-api-version")), (StatusCode::OK, "registry/2.0"));
    }
}

#[tokio::test]
async fn chunks_must_follow_one_another() {
    let server = Server::start();
    let begun = send(&server, Method::POST, "/v2/a/b/blobs/uploads/", &[], "").await;
    assert_eq!((begun.status, begun.header("range")), (StatusCode::ACCEPTED, "0-0"));
    let location = begun.header("location").to_owned();
    let first = send(&server, Method::PATCH, &location, &[("content-range", "0-4")], "hello").await;
    assert_eq!((first.status, first.header("range")), (StatusCode::ACCEPTED, "0-4"));
    let hole = send(&server, Method::PATCH, &location, &[("content-range", "6-9")], "hole").await;
    assert_eq!((hole.status, hole.header("range")), (StatusCode::RANGE_NOT_SATISFIABLE, "0-4"));
    let progress = get(&server, &location).await;
    assert_eq!((progress.status, progress.header("range")), (StatusCode::NO_CONTENT, "0-4"));
    // The last chunk may come with the end.
    let digest = digest(b"hello, boat");
    let end = format!("{location}?digest={digest}");
    let done = send(&server, Method::PUT, &end, &[("content-range", "5-10")], ", boat").await;
    assert_eq!((done.status, done.header("docker-content-digest")), (StatusCode::CREATED, &*digest));
    let blob = get(&server, done.header("location")).await;
    assert_eq!((blob.status, &blob.body[..]), (StatusCode::OK, &b"hello, boat"[..]));
    assert_eq!(send(&server, Method::PUT, &end, &[], "").await.code(), "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn a_chunk_is_as_long_as_its_range_says() {
    let server = Server::start();
    let begun = send(&server, Method::POST, "/v2/a/blobs/uploads/", &[], "").await;
    let upload = begun.header("location").to_owned();
    for (range, length) in [("0-49", Some("100")), ("0-149", Some("100")), ("0-49", None), ("49-0", Some("100"))] {
        let begun = send(&server, Method::POST, "/v2/a/blobs/uploads/", &[], "").await;
        let mut headers = vec![("content-range", range)];
        headers.extend(length.map(|length| ("content-length", length)));
        let answer = send(&server, Method::PATCH, begun.header("location"), &headers, vec![1; 100]).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID".into()), "{range}");
    }
    let answer = send(&server, Method::PATCH, &upload, &[("content-range", "0-99")], vec![1; 100]).await;
    assert_eq!((answer.status, answer.header("range")), (StatusCode::ACCEPTED, "0-99"));
}

#[tokio::test]
async fn digests_may_be_of_sha512() {
    use sha2::Digest;
    let server = Server::start();
    let digest = sha512(&sha2::Sha512::digest(b"blob"));
    let path = format!("/v2/a/blobs/uploads/?digest={digest}");
    assert_eq!(send(&server, Method::POST, &path, &[], "other").await.code(), "DIGEST_INVALID");
    assert_eq!(send(&server, Method::POST, &path, &[], "blob").await.status, StatusCode::CREATED);
    assert_eq!(&get(&server, &format!("/v2/a/blobs/{digest}")).await.body[..], b"blob");
    let manifest = json!({"schemaVersion": 2, "mediaType": IMAGE, "layers": [],
        "config": {"mediaType": "x/y", "digest": digest, "size": 4}})
    .to_string();
    let of_manifest = sha512(&sha2::Sha512::digest(manifest.as_bytes()));
    let path = format!("/v2/a/manifests/{of_manifest}");
    let put = send(&server, Method::PUT, &path, &[("content-type", IMAGE)], manifest.clone()).await;
    assert_eq!((put.status, put.header("docker-content-digest")), (StatusCode::CREATED, of_manifest.as_str()));
    assert_eq!(get(&server, &path).await.body, manifest);
    // Named by a manifest, both stay.
    assert_eq!(server.registry.collect_garbage(Duration::ZERO).await.unwrap().blobs, 0);
    assert_eq!(&get(&server, &format!("/v2/a/blobs/{digest}")).await.body[..], b"blob");
}

fn sha512(hash: &[u8]) -> String {
    format!("sha512:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

#[tokio::test]
async fn what_cannot_be_mounted_is_uploaded() {
    let server = Server::start();
    let digest = push_blob(&server, "from", b"blob").await;
    for query in [format!("mount={digest}&from="), format!("mount={digest}&from=NO"), "mount=md5:0&from=from".into()] {
        let answer = send(&server, Method::POST, &format!("/v2/to/blobs/uploads/?{query}"), &[], "").await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{query}");
        assert!(!answer.header("location").is_empty());
    }
}

/// What an upload has brought goes aside, when whoever asked has been answered.
async fn nothing_is_left(server: &Server) {
    let uploads = server.dir.path().join("uploads");
    let gone = async {
        while std::fs::read_dir(&uploads).unwrap().count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("uploads go");
}

#[tokio::test]
async fn a_blob_is_what_its_digest_says_or_nothing() {
    let server = Server::start();
    let wrong = digest(b"something else");
    let answer = send(&server, Method::POST, &format!("/v2/a/blobs/uploads/?digest={wrong}"), &[], "content").await;
    assert_eq!((answer.status, &*answer.code()), (StatusCode::BAD_REQUEST, "DIGEST_INVALID"));
    assert_eq!(get(&server, &format!("/v2/a/blobs/{wrong}")).await.code(), "BLOB_UNKNOWN");
    nothing_is_left(&server).await;
    let begun = send(&server, Method::POST, "/v2/a/blobs/uploads/", &[], "").await;
    let cancelled = send(&server, Method::DELETE, begun.header("location"), &[], "").await;
    assert_eq!(cancelled.status, StatusCode::NO_CONTENT);
    assert_eq!(get(&server, begun.header("location")).await.status, StatusCode::NOT_FOUND);
    nothing_is_left(&server).await;
}

#[tokio::test]
async fn what_was_cut_off_on_the_disk_is_not_given_as_if_that_were_all() {
    let server = Server::start();
    let blob = push_blob(&server, "a", b"a content that is cut off").await;
    let path = format!("/v2/a/blobs/{blob}");
    let hex = blob.strip_prefix("sha256:").unwrap();
    let place = server.dir.path().join("blobs/sha256").join(&hex[..2]).join(hex);
    for (method, bytes) in [(Method::GET, 10), (Method::HEAD, 10), (Method::GET, 0), (Method::GET, 100)] {
        // It was found to be sound a moment ago.
        assert_eq!(send(&server, Method::HEAD, &path, &[], "").await.status, StatusCode::OK);
        std::fs::File::options().write(true).open(&place).unwrap().set_len(bytes).unwrap();
        assert_eq!(send(&server, method, &path, &[], "").await.status, StatusCode::NOT_FOUND);
        assert!(!place.exists(), "it is set aside");
        push_blob(&server, "a", b"a content that is cut off").await;
    }
}

#[tokio::test]
async fn what_is_damaged_on_the_disk_is_not_given_and_comes_with_the_next_push() {
    let server = Server::start();
    let content: &[u8] = b"a content that a disk spoils";
    let image = push_image(&server, "a", "v1", b"a content that a disk spoils").await;
    let (blob, manifest) = (digest(content), format!("/v2/a/manifests/{image}"));
    let path = format!("/v2/a/blobs/{blob}");
    let place = |digest: &str| {
        let hex = digest.strip_prefix("sha256:").unwrap();
        server.dir.path().join("blobs/sha256").join(&hex[..2]).join(hex)
    };
    let damage = |digest: &str| {
        let mut bytes = std::fs::read(place(digest)).unwrap();
        bytes[3] ^= 1;
        std::fs::write(place(digest), bytes).unwrap();
    };
    let aside = || std::fs::read_dir(server.dir.path().join("damaged")).map_or(0, Iterator::count);
    // Whoever pushes asks first what is here.
    damage(&blob);
    assert_eq!(send(&server, Method::HEAD, &path, &[], "").await.status, StatusCode::NOT_FOUND);
    assert_eq!((place(&blob).exists(), aside()), (false, 1));
    push_blob(&server, "a", b"a content that a disk spoils").await;
    assert_eq!((get(&server, &path).await.body.as_ref(), aside()), (content, 0));
    // Whoever reads all of it gets no wrong end of it, and nobody after it any of it.
    damage(&blob);
    let request = Request::get(&path).body(Body::empty()).unwrap();
    let answer = server.router.clone().oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.into_body().collect().await.is_err());
    assert_eq!(get(&server, &path).await.code(), "BLOB_UNKNOWN");
    push_blob(&server, "a", b"a content that a disk spoils").await;
    // What is damaged is mounted nowhere.
    damage(&blob);
    let mount = format!("/v2/b/blobs/uploads/?mount={blob}&from=a");
    assert_eq!(send(&server, Method::POST, &mount, &[], "").await.status, StatusCode::ACCEPTED);
    push_blob(&server, "a", b"a content that a disk spoils").await;
    assert_eq!(send(&server, Method::POST, &mount, &[], "").await.status, StatusCode::CREATED);
    damage(&image);
    assert_eq!(get(&server, &manifest).await.status, StatusCode::NOT_FOUND);
    let lacking = server.registry.named().await.unwrap().lacking(|digest| place(digest).exists());
    assert_eq!((lacking.count, lacking.first), (1, vec![format!("a ({image})")]));
    // A large one is not read for each who asks; who reads the whole finds it.
    let large = push_blob(&server, "a", &[7; 5 << 20]).await;
    let path = format!("/v2/a/blobs/{large}");
    assert_eq!(send(&server, Method::HEAD, &path, &[], "").await.status, StatusCode::OK);
    damage(&large);
    assert_eq!(send(&server, Method::HEAD, &path, &[], "").await.status, StatusCode::OK);
    server.registry.check_contents().await.unwrap();
    assert_eq!(send(&server, Method::HEAD, &path, &[], "").await.status, StatusCode::NOT_FOUND);
    // Nobody asked for this one; a copy of everything looks.
    damage(&blob);
    server.registry.check_contents().await.unwrap();
    assert!(!place(&blob).exists());
    assert_eq!(aside(), 3);
    server.registry.collect_garbage(Duration::ZERO).await.unwrap();
    assert_eq!(aside(), 2, "what is named may be all that is left of it");
}

#[tokio::test]
async fn limits_hold() {
    let server = Server::with(|config| {
        config.blob_bytes_max = 10;
        config.manifest_bytes_max = 100;
        config.uploads_max = 4;
    });
    let (small, large) = (digest(b"0123456789"), digest(b"0123456789a"));
    let push = |digest: String, content: &'static str| {
        let server = &server;
        async move { send(server, Method::POST, &format!("/v2/a/blobs/uploads/?digest={digest}"), &[], content).await }
    };
    assert_eq!(push(small, "0123456789").await.status, StatusCode::CREATED);
    let refused = push(large, "0123456789a").await;
    assert_eq!((refused.status, &*refused.code()), (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"));
    let refused = send(&server, Method::PUT, "/v2/a/manifests/x", &[], "x".repeat(101)).await;
    assert_eq!((refused.status, &*refused.code()), (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"));
    // Nobody has more than half of the places.
    let (accepted, refused) = (StatusCode::ACCEPTED, StatusCode::TOO_MANY_REQUESTS);
    for (name, expected) in
        [("a", accepted), ("a/b", accepted), ("a/c", refused), ("d", accepted), ("e", accepted), ("f", refused)]
    {
        let begun = send(&server, Method::POST, &format!("/v2/{name}/blobs/uploads/"), &[], "").await;
        assert_eq!(begun.status, expected, "{name}");
    }
}

#[tokio::test]
async fn an_upload_that_is_left_gives_its_place_to_one_that_begins_and_one_that_is_sent_to_does_not() {
    use futures::{FutureExt, StreamExt};
    let server = Server::with(|config| {
        config.uploads_max = 2;
        config.upload_idle_max = Duration::ZERO;
    });
    let begin = |name: &'static str| send(&server, Method::POST, name, &[], "");
    let sent_to = begin("/v2/a/blobs/uploads/").await;
    let left = begin("/v2/b/blobs/uploads/").await;
    let begun = futures::stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"x")) });
    let slow = Body::from_stream(begun.chain(futures::stream::pending()));
    let mut sends = Box::pin(send(&server, Method::PATCH, sent_to.header("location"), &[], slow));
    assert!((&mut sends).now_or_never().is_none());
    assert_eq!(begin("/v2/c/blobs/uploads/").await.status, StatusCode::ACCEPTED);
    assert_eq!(get(&server, left.header("location")).await.code(), "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(get(&server, sent_to.header("location")).await.status, StatusCode::NO_CONTENT);
    assert_eq!(begin("/v2/a/blobs/uploads/").await.status, StatusCode::TOO_MANY_REQUESTS, "its half is taken");
}

#[tokio::test]
async fn uploads_that_nobody_goes_on_with_make_room() {
    let server = Server::with(|config| {
        config.uploads_max = 1;
        config.upload_idle_max = Duration::ZERO;
    });
    for _ in 0..3 {
        let begun = send(&server, Method::POST, "/v2/a/blobs/uploads/", &[], "").await;
        assert_eq!(begun.status, StatusCode::ACCEPTED);
    }
    assert_eq!(std::fs::read_dir(server.dir.path().join("uploads")).unwrap().count(), 1);
}

#[tokio::test]
async fn a_part_of_a_blob_can_be_read() {
    let server = Server::start();
    let digest = push_blob(&server, "a", b"0123456789").await;
    let path = format!("/v2/a/blobs/{digest}");
    let part = send(&server, Method::GET, &path, &[("range", "bytes=2-4")], "").await;
    assert_eq!((part.status, &part.body[..]), (StatusCode::PARTIAL_CONTENT, &b"234"[..]));
    assert_eq!((part.header("content-range"), part.header("content-length")), ("bytes 2-4/10", "3"));
    let beyond = send(&server, Method::GET, &path, &[("range", "bytes=10-")], "").await;
    assert_eq!(beyond.status, StatusCode::RANGE_NOT_SATISFIABLE);
    let head = send(&server, Method::HEAD, &path, &[], "").await;
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (StatusCode::OK, "10", 0));
}

#[tokio::test]
async fn a_manifest_needs_what_it_names() {
    let server = Server::start();
    let missing = digest(b"missing");
    for manifest in [
        json!({"schemaVersion": 2, "config": {"digest": missing}}),
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [{"digest": missing}]}),
    ] {
        let answer = send(&server, Method::PUT, "/v2/a/manifests/x", &[], manifest.to_string()).await;
        assert_eq!((answer.status, &*answer.code()), (StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN"));
    }
    // A subject may come later.
    let config = push_blob(&server, "a", b"{}").await;
    let manifest = json!({"schemaVersion": 2, "config": {"digest": config}, "subject": {"digest": missing}});
    let answer = send(&server, Method::PUT, "/v2/a/manifests/x", &[], manifest.to_string()).await;
    assert_eq!((answer.status, answer.header("oci-subject")), (StatusCode::CREATED, &*missing));
    let wrong = send(&server, Method::PUT, &format!("/v2/a/manifests/{missing}"), &[], manifest.to_string()).await;
    assert_eq!(wrong.code(), "DIGEST_INVALID");
    // What another repository has is not here.
    let elsewhere = send(&server, Method::PUT, "/v2/b/manifests/x", &[], manifest.to_string()).await;
    assert_eq!(elsewhere.code(), "MANIFEST_BLOB_UNKNOWN");
}

#[tokio::test]
async fn tags_and_repositories_are_listed_in_pages() {
    let server = Server::start();
    assert_eq!(get(&server, "/v2/app/tags/list").await.code(), "NAME_UNKNOWN");
    for tag in ["b", "a", "c"] {
        push_image(&server, "app", tag, b"\0asm1").await;
    }
    push_image(&server, "app/deep/er", "x", b"\0asm2").await;
    let first = get(&server, "/v2/app/tags/list?n=2").await;
    assert_eq!(first.json(), json!({"name": "app", "tags": ["a", "b"]}));
    let next = first.header("link").split(['<', '>']).nth(1).unwrap().to_owned();
    let second = get(&server, &next).await;
    assert_eq!((second.json(), second.header("link")), (json!({"name": "app", "tags": ["c"]}), ""));
    let catalog = get(&server, "/v2/_catalog").await;
    assert_eq!(catalog.json(), json!({"repositories": ["app", "app/deep/er"]}));
}

#[tokio::test]
async fn a_tag_moves_and_goes_alone_and_a_manifest_takes_its_tags_with_it() {
    let server = Server::start();
    let first = push_image(&server, "app", "latest", b"\0asm1").await;
    push_image(&server, "app", "old", b"\0asm1").await;
    let second = push_image(&server, "app", "latest", b"\0asm2").await;
    assert_ne!(first, second);
    let latest = get(&server, "/v2/app/manifests/latest").await;
    assert_eq!((latest.header("docker-content-digest"), latest.header("content-type")), (&*second, IMAGE));
    let delete = |path: String| {
        let server = &server;
        async move { send(server, Method::DELETE, &path, &[], "").await }
    };
    assert_eq!(delete("/v2/app/manifests/latest".into()).await.status, StatusCode::ACCEPTED);
    assert_eq!(get(&server, &format!("/v2/app/manifests/{second}")).await.status, StatusCode::OK);
    assert_eq!(delete(format!("/v2/app/manifests/{first}")).await.status, StatusCode::ACCEPTED);
    assert_eq!(get(&server, "/v2/app/manifests/old").await.code(), "MANIFEST_UNKNOWN");
    assert_eq!(delete(format!("/v2/app/manifests/{first}")).await.code(), "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn a_blob_stays_as_long_as_a_repository_has_it() {
    let server = Server::start();
    let digest = push_blob(&server, "a", b"shared").await;
    let mounted = send(&server, Method::POST, &format!("/v2/b/blobs/uploads/?mount={digest}&from=a"), &[], "").await;
    assert_eq!(mounted.status, StatusCode::CREATED);
    let absent =
        send(&server, Method::POST, &format!("/v2/b/blobs/uploads/?mount={digest}&from=nowhere"), &[], "").await;
    assert_eq!(absent.status, StatusCode::ACCEPTED);
    let gone = send(&server, Method::DELETE, &format!("/v2/a/blobs/{digest}"), &[], "").await;
    assert_eq!(gone.status, StatusCode::ACCEPTED);
    assert_eq!(get(&server, &format!("/v2/a/blobs/{digest}")).await.code(), "BLOB_UNKNOWN");
    assert_eq!(&get(&server, &format!("/v2/b/blobs/{digest}")).await.body[..], b"shared");
    send(&server, Method::DELETE, &format!("/v2/b/blobs/{digest}"), &[], "").await;
    assert_eq!(server.registry.collect_garbage(Duration::ZERO).await.unwrap().blobs, 1);
    let hex = digest.strip_prefix("sha256:").unwrap();
    assert!(!server.dir.path().join("blobs/sha256").join(&hex[..2]).join(hex).exists());
}

#[tokio::test]
async fn garbage_is_what_no_manifest_names() {
    let server = Server::start();
    let manifest = push_image(&server, "app", "latest", b"\0asm1").await;
    let loose = push_blob(&server, "app", b"loose").await;
    let young = server.registry.collect_garbage(Duration::from_secs(3600)).await.unwrap();
    assert_eq!(young, coracle_registry::Collected::default());
    let collected = server.registry.collect_garbage(Duration::ZERO).await.unwrap();
    assert_eq!((collected.blobs, collected.bytes), (1, 5));
    assert_eq!(get(&server, &format!("/v2/app/blobs/{loose}")).await.code(), "BLOB_UNKNOWN");
    assert_eq!(get(&server, "/v2/app/manifests/latest").await.status, StatusCode::OK);
    send(&server, Method::DELETE, &format!("/v2/app/manifests/{manifest}"), &[], "").await;
    assert_eq!(server.registry.collect_garbage(Duration::ZERO).await.unwrap().blobs, 3);
}

#[tokio::test]
async fn what_is_no_name_or_path_is_refused() {
    let server = Server::start();
    for (method, path, status, code) in [
        (Method::GET, "/v2/UPPER/manifests/x", StatusCode::BAD_REQUEST, "NAME_INVALID"),
        (Method::GET, "/v2/a/../b/manifests/x", StatusCode::BAD_REQUEST, "NAME_INVALID"),
        (Method::GET, "/v2/%2e%2e%2fetc/manifests/x", StatusCode::BAD_REQUEST, "NAME_INVALID"),
        (Method::GET, "/v2/_layers/manifests/x", StatusCode::BAD_REQUEST, "NAME_INVALID"),
        (Method::GET, "/v2/a/manifests/.x", StatusCode::BAD_REQUEST, "TAG_INVALID"),
        (Method::GET, "/v2/a/blobs/sha256:1", StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        (Method::GET, "/v2/a/blobs/uploads/no-uuid", StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
        (Method::GET, "/v2/a/other", StatusCode::NOT_FOUND, "UNSUPPORTED"),
        (Method::POST, "/v2/a/manifests/x", StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
        (Method::PUT, "/v2/a/manifests/x", StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
    ] {
        let answer = send(&server, method.clone(), path, &[], "").await;
        assert_eq!((answer.status, &*answer.code()), (status, code), "{method} {path}");
        assert!(answer.headers.contains_key(header::CONTENT_TYPE));
    }
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Pushes a manifest of nothing that refers to `subject`, with a note.
async fn push_referrer(server: &Server, subject: &str, note: &str) -> Answer {
    let subject = json!({"mediaType": IMAGE, "digest": subject, "size": 1});
    let manifest = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": subject,
        "annotations": {"note": note}});
    let bytes = manifest.to_string();
    let path = format!("/v2/a/manifests/{}", digest(bytes.as_bytes()));
    send(server, Method::PUT, &path, &[("content-type", INDEX)], bytes).await
}

#[tokio::test]
async fn a_page_of_referrers_ends_by_bytes_too_and_none_is_left_out() {
    let server = Server::start();
    let subject = digest(b"subject");
    for note in ["x", "y", "z"] {
        let pushed = push_referrer(&server, &subject, &note.repeat(3 << 20)).await;
        assert_eq!(pushed.status, StatusCode::CREATED, "{}", pushed.code());
    }
    let (mut path, mut pages, mut met) = (format!("/v2/a/referrers/{subject}"), 0, std::collections::BTreeSet::new());
    loop {
        let page = get(&server, &path).await;
        assert!(page.body.len() < 7 << 20, "{}", page.body.len());
        pages += 1;
        met.extend(page.json()["manifests"].as_array().unwrap().iter().map(|found| found["digest"].to_string()));
        let Some(next) = page.header("link").strip_prefix('<').and_then(|link| link.split_once('>')) else { break };
        path = next.0.to_owned();
    }
    assert_eq!((pages, met.len()), (2, 3));
}

#[tokio::test]
async fn manifests_that_are_read_in_vain_end_a_page_too() {
    let server = Server::start();
    let subject = digest(b"subject");
    for note in ["x", "y", "z"] {
        push_referrer(&server, &subject, &note.repeat(3 << 20)).await;
    }
    let mut path = format!("/v2/a/referrers/{subject}?artifactType=none");
    let mut pages = Vec::new();
    loop {
        let page = get(&server, &path).await;
        pages.push(page.json()["manifests"].as_array().unwrap().len());
        let Some(next) = page.header("link").strip_prefix('<').and_then(|link| link.split_once('>')) else { break };
        path = next.0.to_owned();
    }
    assert_eq!(pages, [0, 0]);
}

#[tokio::test]
async fn manifests_leave_the_disk_what_it_needs() {
    let server = Server::with(|config| config.free_min = u64::MAX / 2);
    let pushed = push_referrer(&server, &digest(b"subject"), "x").await;
    assert_eq!(pushed.status, StatusCode::INSUFFICIENT_STORAGE, "{}", pushed.code());
}

#[tokio::test]
async fn manifests_on_their_way_are_bounded_together() {
    use futures::{FutureExt, StreamExt};
    let server = Server::start();
    let slow = || {
        let begun = futures::stream::once(async { Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 4 << 20])) });
        Body::from_stream(begun.chain(futures::stream::pending()))
    };
    let mut waiting = Vec::new();
    for _ in 0..16 {
        let mut answer = Box::pin(send(&server, Method::PUT, "/v2/a/manifests/x", &[], slow()));
        assert!((&mut answer).now_or_never().is_none());
        waiting.push(answer);
    }
    let refused = push_referrer(&server, &digest(b"subject"), "x").await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"));
    waiting.clear();
    assert_eq!(push_referrer(&server, &digest(b"subject"), "x").await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn uploads_that_nobody_goes_on_with_go_with_the_garbage() {
    let server = Server::with(|config| config.upload_idle_max = Duration::ZERO);
    assert_eq!(send(&server, Method::POST, "/v2/a/blobs/uploads/", &[], "").await.status, StatusCode::ACCEPTED);
    server.registry.collect_garbage(Duration::from_secs(3600)).await.unwrap();
    nothing_is_left(&server).await;
}

#[tokio::test]
async fn a_manifest_is_read_while_it_is_sent() {
    let server = Server::start();
    let pushed = push_referrer(&server, &digest(b"subject"), &"x".repeat(3 << 20)).await;
    let path = format!("/v2/a/manifests/{}", pushed.header("docker-content-digest"));
    let request = Request::get(&path).body(Body::empty()).unwrap();
    let mut body = server.router.clone().oneshot(request).await.unwrap().into_body();
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        assert!(data.len() <= 128 << 10, "{} bytes are held for a client that may not read them", data.len());
        whole.extend_from_slice(&data);
    }
    assert_eq!(digest(&whole), pushed.header("docker-content-digest"));
}
