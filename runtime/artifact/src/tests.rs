//! Pulls against a small registry on loopback that counts what it is asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::registry::Transport;
use crate::store::Source;
use crate::{Config, Credential, PullError, PullPolicy, Store};

const WASM: &[u8] = b"\0asm\x0d\0\x01\0";

#[derive(Default)]
struct Registry {
    content: Mutex<HashMap<String, Vec<u8>>>,
    requests: AtomicUsize,
    blobs: AtomicUsize,
    password: Option<&'static str>,
    /// Blobs begin, and then nothing more comes.
    drips: bool,
    /// The digest that every manifest is said to have, without being shown.
    claims: Mutex<Option<String>>,
}

impl Registry {
    fn put(&self, path: &str, bytes: &[u8]) -> String {
        self.content.lock().unwrap().insert(path.to_owned(), bytes.to_vec());
        format!("sha256:{:x}", Sha256::digest(bytes))
    }

    fn push(&self, repository: &str, tag: &str, media_type: &str, component: &[u8]) -> String {
        let config = self.put_blob(repository, b"{}");
        let layer = self.put_blob(repository, component);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": config, "size": 2},
            "layers": [{"mediaType": media_type, "digest": layer, "size": component.len()}]
        });
        self.put_manifest(repository, tag, manifest.to_string().as_bytes())
    }

    fn put_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = format!("sha256:{:x}", Sha256::digest(bytes));
        self.put(&format!("{repository}/blobs/{digest}"), bytes)
    }

    fn put_manifest(&self, repository: &str, tag: &str, bytes: &[u8]) -> String {
        let digest = self.put(&format!("{repository}/manifests/{tag}"), bytes);
        self.put(&format!("{repository}/manifests/{digest}"), bytes)
    }

    /// The refusal of whoever does not bring the password.
    fn challenge(&self, headers: &HeaderMap) -> Option<Response> {
        use base64::Engine as _;
        let password = self.password?;
        let shown = headers.get("authorization").and_then(|have| have.to_str().ok()?.strip_prefix("Basic "));
        let shown = shown.and_then(|shown| base64::engine::general_purpose::STANDARD.decode(shown).ok());
        // Whoever it is.
        if shown.is_some_and(|shown| shown.ends_with(format!(":{password}").as_bytes())) {
            return None;
        }
        Some((StatusCode::UNAUTHORIZED, [("www-authenticate", "Basic realm=\"r\"")]).into_response())
    }

    async fn serve(self: Arc<Self>) -> String {
        self.serve_at("127.0.0.1:0").await
    }

    async fn serve_at(self: Arc<Self>, at: &str) -> String {
        let router = Router::new()
            .route("/v2/", axum::routing::get(root))
            .route("/v2/{*path}", axum::routing::any(answer))
            .with_state(self);
        let listener = tokio::net::TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address.to_string()
    }
}

/// Where clients learn which authorization is wanted.
async fn root(State(registry): State<Arc<Registry>>, headers: HeaderMap) -> Response {
    registry.challenge(&headers).unwrap_or_else(|| StatusCode::OK.into_response())
}

async fn answer(
    State(registry): State<Arc<Registry>>,
    Path(path): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    registry.requests.fetch_add(1, SeqCst);
    if let Some(refused) = registry.challenge(&headers) {
        return refused;
    }
    if let Some(digest) = registry.claims.lock().unwrap().clone().filter(|_| method == Method::HEAD) {
        return [("docker-content-digest", digest)].into_response();
    }
    if path.contains("/blobs/") {
        registry.blobs.fetch_add(1, SeqCst);
        if registry.drips {
            let begin = futures::stream::once(async { Ok::<_, std::io::Error>(bytes::Bytes::from_static(WASM)) });
            let body = futures::StreamExt::chain(begin, futures::stream::pending());
            return axum::body::Body::from_stream(body).into_response();
        }
    }
    let Some(bytes) = registry.content.lock().unwrap().get(&path).cloned() else {
        let body = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}).to_string();
        return (StatusCode::NOT_FOUND, body).into_response();
    };
    let digest = format!("sha256:{:x}", Sha256::digest(&bytes));
    let body = if method == Method::HEAD { Vec::new() } else { bytes };
    ([("docker-content-digest", digest)], body).into_response()
}

/// A registry that wants a token of its own service for everything.
struct Guarded {
    /// What the service answers.
    token: Box<dyn Fn(&str) -> axum::body::Body + Send + Sync>,
    /// The address of the service, where it is another than the registry's.
    realm: Option<&'static str>,
    asked: AtomicUsize,
    registry: Registry,
}

impl Guarded {
    async fn serve(self: Arc<Self>) -> String {
        async fn tokens(State(all): State<Arc<Guarded>>, request: axum::extract::Request) -> axum::body::Body {
            all.asked.fetch_add(1, SeqCst);
            (all.token)(request.uri().query().unwrap_or_default())
        }
        async fn content(State(all): State<Arc<Guarded>>, request: axum::extract::Request) -> Response {
            if request.headers().get("authorization").is_none_or(|have| have != "Bearer t1") {
                let host = request.headers()["host"].to_str().unwrap();
                let realm = all.realm.map_or(format!("http://{host}/token"), str::to_owned);
                let wanted = format!("Bearer realm=\"{realm}\",service=\"here\"");
                return (StatusCode::UNAUTHORIZED, [("www-authenticate", wanted)]).into_response();
            }
            let path = request.uri().path().trim_start_matches("/v2/");
            match all.registry.content.lock().unwrap().get(path).cloned() {
                Some(bytes) => bytes.into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        }
        let router = Router::new()
            .route("/token", axum::routing::get(tokens))
            .route("/v2/{*path}", axum::routing::any(content))
            .with_state(self);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address.to_string()
    }
}

/// Bytes without end; `pulled` counts them.
fn endless(pulled: Arc<AtomicUsize>) -> axum::body::Body {
    axum::body::Body::from_stream(futures::stream::repeat_with(move || {
        pulled.fetch_add(64 << 10, SeqCst);
        Ok::<_, std::io::Error>(bytes::Bytes::from_static(&[b' '; 64 << 10]))
    }))
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_shown() {
    let token = |query: &str| {
        assert_eq!(query, "service=here&scope=repository%3Ateam%2Fapp%3Apull");
        axum::body::Body::from(r#"{"access_token":"t1","expires_in":300}"#)
    };
    let guarded =
        Guarded { token: Box::new(token), realm: None, asked: AtomicUsize::new(0), registry: Registry::default() };
    guarded.registry.push("team/app", "1", "application/wasm", WASM);
    let guarded = Arc::new(guarded);
    let address = guarded.clone().serve().await;
    let dir = tempfile::tempdir().unwrap();
    let image = format!("{address}/team/app:1");
    let pulled = store(&dir, "127.0.0.1:1").pull("n", &image, PullPolicy::Always, &[]).await.unwrap();
    assert_eq!(std::fs::read(&pulled.path).unwrap(), WASM);
    assert_eq!(guarded.asked.load(SeqCst), 1);
}

#[tokio::test]
async fn what_a_token_service_says_is_bounded() {
    let count = Arc::new(AtomicUsize::new(0));
    let pulled = count.clone();
    let guarded = Guarded {
        token: Box::new(move |_| endless(pulled.clone())),
        realm: None,
        asked: AtomicUsize::new(0),
        registry: Registry::default(),
    };
    let address = Arc::new(guarded).serve().await;
    let dir = tempfile::tempdir().unwrap();
    let image = format!("{address}/team/app:1");
    let error = store(&dir, "127.0.0.1:1").pull("n", &image, PullPolicy::Always, &[]).await.unwrap_err();
    assert!(error.to_string().contains("more than 65536 bytes"), "{error}");
    assert!(count.load(SeqCst) < 64 << 20, "{} bytes were taken", count.load(SeqCst));
}

#[tokio::test]
async fn manifests_and_refusals_are_bounded() {
    async fn flood(State((status, pulled)): State<(StatusCode, Arc<AtomicUsize>)>) -> Response {
        (status, endless(pulled)).into_response()
    }
    for status in [StatusCode::OK, StatusCode::INTERNAL_SERVER_ERROR] {
        let count = Arc::new(AtomicUsize::new(0));
        let router = Router::new()
            .route("/v2/{*path}", axum::routing::get(flood).head(async || StatusCode::OK))
            .with_state((status, count.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let dir = tempfile::tempdir().unwrap();
        let name = format!("{address}/team/app:1");
        let error = store(&dir, "127.0.0.1:1").pull("n", &name, PullPolicy::Always, &[]).await.unwrap_err();
        let wanted = if status == StatusCode::OK { "more than 4194304 bytes" } else { "500" };
        assert!(error.to_string().contains(wanted), "{error}");
        assert!(count.load(SeqCst) < 64 << 20, "{} bytes were taken", count.load(SeqCst));
    }
}

fn store(dir: &tempfile::TempDir, embedded: &str) -> Store {
    sized_store(dir, embedded, 1 << 20, 1 << 20)
}

fn sized_store(dir: &tempfile::TempDir, embedded: &str, max_bytes: u64, component_bytes_max: u64) -> Store {
    let config = Config {
        dir: dir.path().to_owned(),
        embedded: Some(embedded.to_owned()),
        max_bytes,
        component_bytes_max,
        min_free_bytes: 0,
        transport: Transport::default(),
    };
    Store::new(config).unwrap()
}

#[tokio::test]
async fn finds_a_name_without_host_in_the_embedded_registry() {
    let registry = Arc::new(Registry::default());
    registry.push("myregistry/app", "latest", "application/wasm", WASM);
    registry.push("registry.k8s.io/pause", "3.10", "application/vnd.wasm.content.layer.v1+wasm", WASM);
    let address = registry.clone().serve().await;
    let dir = tempfile::tempdir().unwrap();
    let images = store(&dir, &address);

    let artifact = images.pull("n", "myregistry/app", PullPolicy::Always, &[]).await.unwrap();
    assert_eq!(std::fs::read(&artifact.path).unwrap(), WASM);
    assert_eq!(artifact.source, Source::Downloaded);
    assert_eq!(&*artifact.image_id, format!("myregistry/app@{}", artifact.manifest_digest));
    let mirrored = images.pull("n", "registry.k8s.io/pause:3.10", PullPolicy::IfNotPresent, &[]).await.unwrap();
    assert_eq!(mirrored.path, artifact.path);

    // A restart finds it again by name, without asking anybody.
    drop((images, artifact, mirrored));
    let before = registry.requests.load(SeqCst);
    let images = store(&dir, &address);
    let again = images.pull("n", "myregistry/app:latest", PullPolicy::IfNotPresent, &[]).await.unwrap();
    assert_eq!((again.source, registry.requests.load(SeqCst)), (Source::Present, before));
    assert!(images.pull("n", "myregistry/app", PullPolicy::Never, &[]).await.is_ok());
}

#[tokio::test]
async fn concurrent_pulls_are_one_and_always_sees_a_moved_tag() {
    let registry = Arc::new(Registry::default());
    let first = registry.push("app", "latest", "application/wasm", WASM);
    let address = registry.clone().serve().await;
    let dir = tempfile::tempdir().unwrap();
    let images = store(&dir, &address);
    let pulls = (0..200).map(|_| images.pull("n", "app", PullPolicy::Always, &[]));
    let pulled = futures::future::try_join_all(pulls).await.unwrap();
    assert!(pulled.iter().all(|artifact| *artifact.manifest_digest == first));
    assert_eq!(registry.blobs.load(SeqCst), 1);
    assert!(registry.requests.load(SeqCst) < 8);

    let moved = [WASM, b"2"].concat();
    let second = registry.push("app", "latest", "application/wasm", &moved);
    let started = std::time::Instant::now();
    loop {
        let artifact = images.pull("n", "app", PullPolicy::Always, &[]).await.unwrap();
        if *artifact.manifest_digest == second {
            break;
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(5), "a moved tag was not seen");
    }
    let kept = images.pull("n", &format!("app@{first}"), PullPolicy::Always, &[]).await.unwrap();
    assert_eq!(*kept.manifest_digest, first);
}

#[tokio::test]
async fn says_why_an_image_cannot_be_had() {
    let registry = Arc::new(Registry::default());
    registry.push("text", "latest", "application/wasm", b"hello, not wasm");
    registry.push("chart", "latest", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"x");
    registry.push("big", "latest", "application/wasm", &[WASM, &vec![0; 2 << 20]].concat());
    let lie = registry.push("lie", "latest", "application/wasm", &[WASM, b"lie"].concat());
    {
        let mut content = registry.content.lock().unwrap();
        let layer = content.keys().find(|key| key.starts_with("lie/blobs") && content[*key].len() > 2).unwrap().clone();
        content.insert(layer, b"\0asm!".to_vec());
    }
    let _ = lie;
    let address = registry.clone().serve().await;
    let dir = tempfile::tempdir().unwrap();
    let images = store(&dir, &address);
    let at = |name: &str| format!("{address}/{name}");
    for (image, class) in [
        (at("missing"), "NotFound"),
        (at("text"), "NotWasm"),
        (at("chart"), "NotWasm"),
        (at("big"), "TooLarge"),
        (at("lie"), "Corrupt"),
        ("127.0.0.1:1/closed".to_owned(), "Unreachable"),
        ("Not A Name".to_owned(), "InvalidName"),
    ] {
        let error = images.pull("n", &image, PullPolicy::IfNotPresent, &[]).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(class), "{image}: {error:?}");
    }
    let error = images.pull("n", "text", PullPolicy::Never, &[]).await.unwrap_err();
    assert!(matches!(error, PullError::NotPresent { .. }));
    assert_eq!(images.total_bytes(), 0);
}

/// The variables of a process are all its threads': the test runs itself again with them.
#[tokio::test]
async fn a_proxy_is_not_asked_for_registries_of_this_machine() {
    const NAME: &str = "tests::a_proxy_is_not_asked_for_registries_of_this_machine";
    if std::env::var_os("CORACLE_TEST_PROXY").is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", NAME]).env("CORACLE_TEST_PROXY", "1");
        // Nobody listens there.
        for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
            again.env(name, "http://127.0.0.1:1");
        }
        let done = again.env_remove("NO_PROXY").env_remove("no_proxy").output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let registry = Arc::new(Registry::default());
    registry.push("app", "latest", "application/wasm", WASM);
    let address = registry.serve().await;
    let dir = tempfile::tempdir().unwrap();
    store(&dir, &address).pull("n", "app", PullPolicy::Always, &[]).await.unwrap();
}

/// Pods with secrets of their own, at the same time: each that was given the image has it after a restart, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_were_given_an_image_at_once_are_remembered() {
    let registry = Arc::new(Registry { password: Some("secret"), ..Registry::default() });
    let other = Arc::new(Registry::default()).serve().await;
    let address = registry.clone().serve().await;
    let dir = tempfile::tempdir().unwrap();
    let images = store(&dir, &other);
    let credentials = |user: usize| {
        let (registry, username, password) = (address.clone(), format!("u{user}"), "secret".to_owned());
        [Credential { registry, username, password }]
    };
    let names: Vec<_> = (0..10).map(|number| format!("{address}/private/app{number}")).collect();
    for (number, image) in names.iter().enumerate() {
        registry.push(&format!("private/app{number}"), "latest", "application/wasm", WASM);
        let pulls = (0..12).map(|user| {
            let (images, image, credentials) = (images.clone(), image.clone(), credentials(user));
            tokio::spawn(async move { images.pull("n", &image, PullPolicy::Always, &credentials).await.map(drop) })
        });
        for pulled in futures::future::join_all(pulls).await {
            pulled.unwrap().unwrap();
        }
    }
    drop(images);
    let images = store(&dir, &other);
    for image in &names {
        for user in 0..12 {
            assert!(images.is_accessible(image, &credentials(user)), "{image} of u{user}");
        }
    }
}

#[tokio::test]
async fn uses_the_pull_secret_of_the_pod_and_of_nobody_else() {
    let registry = Arc::new(Registry { password: Some("secret"), ..Registry::default() });
    registry.push("private/app", "latest", "application/wasm", WASM);
    let other = Arc::new(Registry::default()).serve().await;
    let address = registry.clone().serve().await;
    let dir = tempfile::tempdir().unwrap();
    let images = store(&dir, &other);
    let image = format!("{address}/private/app");
    let credential = |password: &str| Credential {
        registry: address.clone(),
        username: "u".to_owned(),
        password: password.to_owned(),
    };
    for credentials in [vec![], vec![credential("wrong")]] {
        let error = images.pull("n", &image, PullPolicy::Always, &credentials).await.unwrap_err();
        assert!(matches!(error, PullError::Unauthorized { .. }), "{error:?}");
    }
    let pulled = images.pull("n", &image, PullPolicy::Always, &[credential("secret")]).await.unwrap();
    let by_digest = format!("{address}/private/app@{}", pulled.manifest_digest);
    // That it is here now is no reason to give it to others, under any name, also after a restart.
    for images in [images, store(&dir, &other)] {
        for policy in [PullPolicy::Always, PullPolicy::IfNotPresent] {
            for image in [&image, &by_digest] {
                for credentials in [vec![], vec![credential("wrong")]] {
                    let error = images.pull("n", image, policy, &credentials).await.unwrap_err();
                    assert!(matches!(error, PullError::Unauthorized { .. }), "{policy:?} {image}: {error:?}");
                    assert!(!images.is_accessible(image, &credentials));
                }
            }
        }
        assert!(images.pull("n", &image, PullPolicy::Never, &[]).await.is_err());
        let asked = registry.requests.load(SeqCst);
        images.pull("n", &image, PullPolicy::IfNotPresent, &[credential("secret")]).await.unwrap();
        assert_eq!(registry.requests.load(SeqCst), asked, "who was given it is not asked again");
    }
}

#[tokio::test]
async fn a_registry_that_only_names_an_image_does_not_give_it() {
    let registry = Arc::new(Registry { password: Some("secret"), ..Registry::default() });
    registry.push("private/app", "latest", "application/wasm", WASM);
    let liar = Arc::new(Registry::default());
    let (address, lies) = (registry.clone().serve().await, liar.clone().serve().await);
    let embedded = Arc::new(Registry::default()).serve().await;
    let dir = tempfile::tempdir().unwrap();
    let images = store(&dir, &embedded);
    let owner = Credential { registry: address.clone(), username: "u".to_owned(), password: "secret".to_owned() };
    let pulled = images.pull("n", &format!("{address}/private/app"), PullPolicy::Always, &[owner]).await.unwrap();
    *liar.claims.lock().unwrap() = Some(pulled.manifest_digest.to_string());
    for image in [format!("{lies}/x"), format!("{lies}/x@{}", pulled.manifest_digest)] {
        let got = images.pull("n", &image, PullPolicy::Always, &[]).await;
        assert!(got.is_err(), "{image}: {got:?}");
    }
    // One that has it may give it.
    *liar.claims.lock().unwrap() = None;
    liar.push("x", "latest", "application/wasm", WASM);
    let got = images.pull("n", &format!("{lies}/x"), PullPolicy::Always, &[]).await.unwrap();
    assert_eq!((got.source, &got.path), (Source::Downloaded, &pulled.path));
}

#[tokio::test]
async fn a_digest_is_kept_to_whatever_a_registry_calls_it() {
    let registry = Arc::new(Registry::default());
    registry.push("app", "1", "application/wasm", WASM);
    let address = registry.clone().serve().await;
    // Another manifest, under a digest of another algorithm.
    let other = format!("sha512:{}", "b".repeat(128));
    let good = registry.content.lock().unwrap()["app/manifests/1"].clone();
    registry.put(&format!("app/manifests/{other}"), &good);
    *registry.claims.lock().unwrap() = Some(other);
    let dir = tempfile::tempdir().unwrap();
    let images = store(&dir, &address);
    let pinned = format!("app@sha256:{}", "a".repeat(64));
    let refused = images.pull("n", &pinned, PullPolicy::Always, &[]).await.unwrap_err();
    assert!(matches!(refused, PullError::NotFound { .. }), "{refused:?}");
}

#[tokio::test]
async fn what_the_embedded_registry_may_have_is_not_looked_for_elsewhere() {
    // It does not answer as one that has not the image.
    let failing = Router::new().fallback(|| async { StatusCode::BAD_GATEWAY });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, failing).await });
    let outside = Arc::new(Registry::default());
    outside.push("team/app", "1", "application/wasm", WASM);
    let name = format!("{}/team/app:1", outside.clone().serve().await.replace("127.0.0.1", "localhost"));
    let dir = tempfile::tempdir().unwrap();
    let refused = store(&dir, &address).pull("n", "team/app:1", PullPolicy::Always, &[]).await.unwrap_err();
    let PullError::Unreachable { message, .. } = &refused else { panic!("{refused:?}") };
    assert!(message.starts_with(&address) && !message.contains("docker"), "{message}");
    // A host with a port is no name of the embedded one.
    let dir = tempfile::tempdir().unwrap();
    store(&dir, &address).pull("n", &name, PullPolicy::Always, &[]).await.unwrap();
}

#[tokio::test]
async fn naming_a_layer_does_not_give_a_component_that_somebody_else_brought() {
    let private = Arc::new(Registry { password: Some("p"), ..Registry::default() });
    private.push("app", "1", "application/wasm", WASM);
    let there = private.clone().serve().await;
    let dir = tempfile::tempdir().unwrap();
    let images = store(&dir, "127.0.0.1:1");
    let credential = Credential { registry: there.clone(), username: "u".to_owned(), password: "p".to_owned() };
    images.pull("n", &format!("{there}/app:1"), PullPolicy::Always, &[credential]).await.unwrap();
    // A manifest of somebody else's with the same layer, which is not there.
    let thief = Arc::new(Registry::default());
    thief.push("mine", "1", "application/wasm", WASM);
    thief.content.lock().unwrap().retain(|path, _| !path.contains("/blobs/"));
    let theirs = thief.clone().serve().await;
    images.pull("n", &format!("{theirs}/mine:1"), PullPolicy::Always, &[]).await.unwrap_err();
    // Who brings it has it.
    thief.put_blob("mine", WASM);
    images.pull("n", &format!("{theirs}/mine:1"), PullPolicy::Always, &[]).await.unwrap();
}

#[tokio::test]
async fn follows_an_index_to_an_index_and_no_circle() {
    let registry = Arc::new(Registry::default());
    let image = registry.push("app", "image", "application/wasm", WASM);
    let index_type = "application/vnd.oci.image.index.v1+json";
    let index = |entries: serde_json::Value| json!({"schemaVersion": 2, "mediaType": index_type, "manifests": entries});
    let native =
        json!({"mediaType": "m", "digest": image, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}});
    let wasm =
        json!({"mediaType": "m", "digest": image, "size": 1, "platform": {"os": "wasi", "architecture": "wasm"}});
    let mut digest = registry.put_manifest("app", "1", index(json!([native, wasm])).to_string().as_bytes());
    for depth in 2..=6 {
        let entry = json!({"mediaType": index_type, "digest": digest, "size": 1});
        let bytes = index(json!([native, entry])).to_string();
        digest = registry.put_manifest("app", &depth.to_string(), bytes.as_bytes());
    }
    let only = registry.put_manifest("app", "native", index(json!([native])).to_string().as_bytes());
    assert!(only.starts_with("sha256:"));
    let address = registry.clone().serve().await;
    let dir = tempfile::tempdir().unwrap();
    let images = store(&dir, &address);
    for depth in 1..=4 {
        let artifact = images.pull("n", &format!("app:{depth}"), PullPolicy::Always, &[]).await.unwrap();
        assert_eq!(std::fs::read(&artifact.path).unwrap(), WASM, "{depth}");
    }
    let error = images.pull("n", "app:5", PullPolicy::Always, &[]).await.unwrap_err().to_string();
    assert!(error.contains("leads to more than 4"), "{error}");
    let error = images.pull("n", "app:native", PullPolicy::Always, &[]).await.unwrap_err().to_string();
    assert!(error.contains("linux/amd64 (m)"), "{error}");
}

/// The pull that has ended is known for a moment, by nobody who runs it.
#[tokio::test]
async fn what_nobody_runs_gives_way_also_when_it_was_the_last_to_be_pulled() {
    let registry = Arc::new(Registry::default());
    registry.push("app", "latest", "application/wasm", WASM);
    let address = registry.clone().serve().await;
    let dir = tempfile::tempdir().unwrap();
    let images = store(&dir, &address);
    let held = images.pull("n", "app", PullPolicy::Always, &[]).await.unwrap();
    assert_eq!(images.free(1, std::iter::empty()), 0, "somebody runs it");
    drop(held);
    assert_eq!(images.free(1, ["app"].into_iter()), 0, "somebody names it");
    assert_eq!(images.free(1, std::iter::empty()), WASM.len() as u64);
}

#[tokio::test]
async fn what_a_disk_gave_back_as_something_else_is_fetched_again() {
    let registry = Arc::new(Registry::default());
    registry.push("app", "latest", "application/wasm", WASM);
    let address = registry.clone().serve().await;
    let dir = tempfile::tempdir().unwrap();
    let images = store(&dir, &address);
    let get = async || images.pull("n", "app", PullPolicy::IfNotPresent, &[]).await.unwrap();
    assert!(images.is_sound("n", &get().await).await, "it was downloaded");
    let kept = get().await;
    assert!(images.is_sound("n", &kept).await && kept.source == Source::Present);
    let mut flipped = WASM.to_vec();
    flipped[5] ^= 1;
    std::fs::write(&kept.path, flipped).unwrap();
    assert!(!images.is_sound("n", &kept).await);
    // Who held it meanwhile holds nothing up.
    let again = get().await;
    assert_eq!((again.source, std::fs::read(&again.path).unwrap()), (Source::Downloaded, WASM.to_vec()));
    std::fs::remove_file(&again.path).unwrap();
    assert!(!images.is_sound("n", &get().await).await && images.total_bytes() == 0);
    let again = get().await;
    assert_eq!(again.source, Source::Downloaded);
    // Nor will it ever be read what leads nowhere, or is somebody else's.
    std::fs::remove_file(&again.path).unwrap();
    std::os::unix::fs::symlink(&again.path, &again.path).unwrap();
    assert!(!images.is_sound("n", &get().await).await && images.total_bytes() == 0);
    let again = get().await;
    assert_eq!((again.source, std::fs::read(&again.path).unwrap()), (Source::Downloaded, WASM.to_vec()));
}

#[tokio::test]
async fn a_look_at_a_blob_counts_for_who_asked_before() {
    let registry = Arc::new(Registry::default());
    registry.push("app", "latest", "application/wasm", WASM);
    let address = registry.clone().serve().await;
    let dir = tempfile::tempdir().unwrap();
    let images = store(&dir, &address);
    let get = async || images.pull("n", "app", PullPolicy::IfNotPresent, &[]).await.unwrap();
    get().await;
    let kept = get().await;
    let blobs = crate::blobs::Blobs::open(dir.path(), 1 << 20).unwrap();
    let blob = blobs.get(&kept.digest).unwrap();
    let before = std::time::Instant::now();
    assert!(!blobs.is_seen_since(&kept.digest, &blob, before), "nobody has looked");
    blobs.see(&kept.digest, &blob, before);
    assert!(blobs.is_seen_since(&kept.digest, &blob, before));
    let later = before + std::time::Duration::from_millis(1);
    assert!(!blobs.is_seen_since(&kept.digest, &blob, later), "it may have changed since");
}

#[tokio::test]
async fn takes_the_component_out_of_a_container_image() {
    let registry = Arc::new(Registry::default());
    let (config, layer) = (&br#"{"config":{"Entrypoint":["/app.wasm"]}}"#[..], crate::unpack::tar_of("app.wasm", WASM));
    let (config_size, layer_size) = (config.len(), layer.len());
    let (config, layer) = (registry.put_blob("docker", config), registry.put_blob("docker", &layer));
    let manifest = json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size}]
    });
    registry.put_manifest("docker", "latest", manifest.to_string().as_bytes());
    let address = registry.clone().serve().await;
    let dir = tempfile::tempdir().unwrap();
    let artifact = store(&dir, &address).pull("n", "docker", PullPolicy::IfNotPresent, &[]).await.unwrap();
    assert_eq!(std::fs::read(&artifact.path).unwrap(), WASM);
    assert_eq!(*artifact.digest, format!("sha256:{:x}", Sha256::digest(WASM)));
}

/// A registry whose blobs begin and do not go on, under as many addresses as it likes; the second is its port.
async fn dripping() -> (Arc<Registry>, String) {
    let registry = Arc::new(Registry { drips: true, ..Registry::default() });
    for tag in 0..4 {
        let layer =
            json!({"mediaType": "application/wasm", "digest": format!("sha256:{}", "a".repeat(64)), "size": 15 << 20});
        let manifest = json!({"schemaVersion": 2, "layers": [layer], "annotations": {"tag": tag.to_string()}});
        registry.put_manifest("app", &tag.to_string(), manifest.to_string().as_bytes());
    }
    let address = registry.clone().serve_at("0.0.0.0:0").await;
    (registry, address.rsplit(':').next().unwrap().to_owned())
}

#[tokio::test]
async fn nobody_holds_the_places_of_others_nor_those_of_the_clusters_own_registry() {
    let (drips, port) = dripping().await;
    let (own, outside) = (Arc::new(Registry::default()), Arc::new(Registry::default()));
    own.push("own", "1", "application/wasm", WASM);
    outside.push("app", "1", "application/wasm", &[WASM, b"other"].concat());
    let (embedded, outside) = (own.serve().await, outside.serve().await);
    let dir = tempfile::tempdir().unwrap();
    let images = sized_store(&dir, &embedded, 1 << 30, 1 << 30);
    let hogs: Vec<_> = (1..=20)
        .flat_map(|host| (0..4).map(move |tag| (host, tag)))
        .map(|(host, tag)| {
            let (images, image) = (images.clone(), format!("127.0.0.{host}:{port}/app:{tag}"));
            tokio::spawn(async move { images.pull("hog", &image, PullPolicy::Always, &[]).await.map(drop) })
        })
        .collect();
    let soon = std::time::Duration::from_secs(20);
    tokio::time::timeout(soon, async {
        // All have asked what the names stand for, and some hold places.
        while drips.requests.load(SeqCst) < 80 || drips.blobs.load(SeqCst) < 8 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let begun = std::time::Instant::now();
    for (owner, image) in [("hog", "own:1".to_owned()), ("other", format!("{outside}/app:1"))] {
        let pulled = tokio::time::timeout(soon, images.pull(owner, &image, PullPolicy::Always, &[])).await;
        assert_eq!(pulled.expect("it has a place").unwrap().source, Source::Downloaded, "{image}");
    }
    // Eight at a time, each of which is given up after three seconds.
    let (downloads, most) = (drips.blobs.load(SeqCst), 8 * (begun.elapsed().as_secs() as usize / 3 + 3));
    assert!(downloads <= most, "{downloads} downloads");
    hogs.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_download_that_drips_is_given_up_however_much_is_to_come() {
    let (_drips, port) = dripping().await;
    let dir = tempfile::tempdir().unwrap();
    let images = sized_store(&dir, "127.0.0.1:1", 1 << 30, 1 << 30);
    let image = format!("127.0.0.1:{port}/app:1");
    let begun = std::time::Instant::now();
    let error = images.pull("n", &image, PullPolicy::Always, &[]).await.unwrap_err().to_string();
    assert!(error.contains("stalled: 8 of 15728640 bytes"), "{error}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_component_is_no_larger_than_one_that_runs() {
    let registry = Arc::new(Registry::default());
    registry.push("app", "1", "application/wasm", &[WASM, &[0; 100]].concat());
    let address = registry.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let images = sized_store(&dir, &address, 1 << 30, 100);
    let error = images.pull("n", "app:1", PullPolicy::Always, &[]).await.unwrap_err();
    assert!(matches!(error, PullError::TooLarge { size: 108, limit: 100, .. }), "{error:?}");
}

#[tokio::test]
async fn names_of_one_component_have_a_bound() {
    let registry = Arc::new(Registry::default());
    for tag in 0..70 {
        registry.push("app", &tag.to_string(), "application/wasm", WASM);
    }
    let address = registry.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let images = store(&dir, &address);
    for tag in 0..70 {
        images.pull("n", &format!("app:{tag}"), PullPolicy::Always, &[]).await.unwrap();
        assert!(images.is_present(&format!("app:{tag}")), "the newest stays");
    }
    let files = std::fs::read_dir(dir.path().join("names")).unwrap().count();
    assert_eq!((images.images().len(), files), (64, 64));
}
