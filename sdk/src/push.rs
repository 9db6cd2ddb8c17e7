//! Pushes a component into the cluster's registry, as an OCI artifact of the CNCF Wasm layout.
//!
//! It goes through the API server's `/v2/` (TLS, the kubeconfig's credentials), so that it works from anywhere the
//! cluster's API can be reached.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use coracle_node::{Checked, Unfit};
use coracle_server::{Preparation, Reference, Repository};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt as _;

use crate::AskError;

/// Media type of the artifact's configuration (CNCF TAG Runtime, Wasm OCI artifact layout).
const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
/// Media type of the one layer: the component itself.
const LAYER_TYPE: &str = "application/wasm";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Larger files are refused before they are read into memory.
const FILE_BYTES_MAX: u64 = 512 << 20;
/// How often the cluster is asked how far a compilation is.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long a cluster may be unable to say how far it is.
const SILENT_MAX: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(30) };
/// How long a compilation is waited for; it goes on without.
const COMPILED_MAX: Duration = Duration::from_secs(600);
/// Bytes of one answer to that.
const STATE_BYTES_MAX: usize = 64 << 10;

/// Why a component could not be pushed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is nothing that could run.
    #[error("{path} cannot run: {why}")]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        why: Unfit,
    },
    /// The file is too large.
    #[error("{path} has {bytes} bytes or more; at most {FILE_BYTES_MAX} can be pushed")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The name is not one an image can have.
    #[error(
        "{0:?} is not an image name: use lower-case letters, digits, '.', '_', '-' and '/', then optionally a colon and a tag"
    )]
    Name(String),
    /// The cluster could not be reached.
    #[error("{step}")]
    Send {
        /// What was being sent.
        step: &'static str,
        /// Why.
        #[source]
        source: AskError,
    },
    /// The registry said no.
    #[error("{step}: the registry answered {status}: {body}")]
    Refused {
        /// What was being sent.
        step: &'static str,
        /// The answer.
        status: StatusCode,
        /// Its text.
        body: String,
    },
}

/// What was pushed.
#[derive(Debug, serde::Serialize)]
pub struct Pushed {
    /// Name and tag, as pods name it.
    pub image: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Size of the component.
    pub bytes: usize,
}

/// Pushes the component in `file` under `image` (`NAME[:TAG]`, tag `latest` by default).
pub async fn push(client: &kube::Client, file: &Path, image: &str) -> Result<Pushed, Error> {
    let read = |source| Error::Read { path: file.into(), source };
    let metadata = tokio::fs::metadata(file).await.map_err(read)?;
    let bytes = metadata.len();
    if bytes > FILE_BYTES_MAX {
        return Err(Error::TooLarge { path: file.into(), bytes });
    }
    let mut wasm = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
    // It may have more than it says, as a device does, or a file that grows.
    let opened = tokio::fs::File::open(file).await.map_err(read)?;
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut wasm).await.map_err(read)?;
    let bytes = wasm.len() as u64;
    if bytes > FILE_BYTES_MAX {
        return Err(Error::TooLarge { path: file.into(), bytes });
    }
    let checked = coracle_node::check(&wasm).map_err(|why| Error::Unfit { path: file.into(), why })?;
    let (name, tag) = split(image)?;
    let size = wasm.len();
    let layer = digest(&wasm);
    let config = config(&checked, metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), &layer);
    let config = serde_json::to_vec(&config).expect("JSON of strings");
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": digest(&config), "size": config.len()},
        "layers": [{"mediaType": LAYER_TYPE, "digest": layer, "size": size,
            "annotations": {"org.opencontainers.image.title": file.file_name().map(|n| n.to_string_lossy())}}],
    });
    let manifest = serde_json::to_vec(&manifest).expect("JSON of strings");
    blob(client, &name, wasm, "push the component").await?;
    blob(client, &name, config, "push the configuration").await?;
    let manifest_digest = digest(&manifest);
    let request = Request::builder()
        .method(Method::PUT)
        .uri(format!("/v2/{name}/manifests/{tag}"))
        .header(header::CONTENT_TYPE, MANIFEST_TYPE)
        .body(Body::from(manifest))
        .expect("a request of checked parts");
    send(client, request, "push the manifest").await?;
    Ok(Pushed { image: format!("{name}:{tag}"), digest: manifest_digest, bytes: size })
}

/// The configuration as the Wasm OCI artifact layout and its readers (`wkg`) want it. It is `created` when the file was: the
/// same file pushed again is the same image.
fn config(checked: &Checked, modified: SystemTime, layer: &str) -> Value {
    let created = jiff::Timestamp::try_from(modified).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let mut config = json!({
        "created": created.to_string(),
        "architecture": "wasm",
        "os": if checked.is_module { "wasip1" } else { "wasip2" },
        "layerDigests": [layer],
    });
    if !checked.is_module {
        config["component"] = json!({"exports": checked.exports, "imports": checked.imports, "target": null});
    }
    config
}

/// Waits until the cluster has compiled what was pushed, telling what it waits for. A cluster that does not say how far
/// it is (another version, or a registry without node) is not waited for: `None`. One that cannot say so at the moment is asked again
/// for half a minute, which is an error then. Safe to drop.
pub async fn compiled(
    client: &kube::Client,
    pushed: &Pushed,
    tell: impl Fn(&Preparation),
) -> Result<Option<Preparation>, Error> {
    let step = "ask how far the compilation is";
    let (begun, mut last) = (Instant::now(), None);
    let mut heard = begun;
    loop {
        let request = Request::builder()
            .uri(format!("/coracle/v1/preparations/{}", pushed.digest))
            .body(Body::empty())
            .expect("a request of checked parts");
        let answer = client.send(request).await.map_err(|source| Error::Send { step, source: source.into() })?;
        let status = answer.status();
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let body = Limited::new(answer.into_body(), STATE_BYTES_MAX).collect().await.map(|body| body.to_bytes());
        let body = match body {
            Ok(body) if status.is_success() => body,
            body => {
                let is_final = status.is_client_error()
                    && !matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
                if is_final || heard.elapsed() > SILENT_MAX {
                    let body =
                        body.map_or_else(|error| error.to_string(), |body| String::from_utf8_lossy(&body).into());
                    return Err(Error::Refused { step, status, body });
                }
                tokio::time::sleep(ASK_EVERY).await;
                continue;
            }
        };
        heard = Instant::now();
        // Of another version.
        let Ok(state) = serde_json::from_slice::<Preparation>(&body) else { return Ok(None) };
        if last.as_ref() != Some(&state) {
            tell(&state);
        }
        if matches!(state, Preparation::Ready { .. } | Preparation::Failed { .. }) || begun.elapsed() > COMPILED_MAX {
            return Ok(Some(state));
        }
        last = Some(state);
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Sends one blob unless the registry has it.
async fn blob(client: &kube::Client, name: &str, content: Vec<u8>, step: &'static str) -> Result<(), Error> {
    let digest = digest(&content);
    let head = Request::builder()
        .method(Method::HEAD)
        .uri(format!("/v2/{name}/blobs/{digest}"))
        .body(Body::empty())
        .expect("a request of checked parts");
    let there = client.send(head).await.map_err(|source| Error::Send { step, source: source.into() })?;
    if there.status() == StatusCode::OK {
        return Ok(());
    }
    let upload = Request::builder()
        .method(Method::POST)
        .uri(format!("/v2/{name}/blobs/uploads/?digest={digest}"))
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, content.len())
        .body(Body::from(content))
        .expect("a request of checked parts");
    send(client, upload, step).await
}

async fn send(client: &kube::Client, request: Request<Body>, step: &'static str) -> Result<(), Error> {
    let answer = client.send(request).await.map_err(|source| Error::Send { step, source: source.into() })?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let body = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    Err(Error::Refused { step, status, body: String::from_utf8_lossy(&body).into_owned() })
}

fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        write!(out, "{byte:02x}").expect("a String takes every write");
    }
    out
}

/// Splits `NAME[:TAG]` and checks both as the registry will.
fn split(image: &str) -> Result<(String, String), Error> {
    let bad = || Error::Name(image.to_owned());
    let last = image.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match image[last..].find(':') {
        Some(at) => (&image[..last + at], &image[last + at + 1..]),
        None => (image, "latest"),
    };
    let tag_fits = matches!(tag.parse(), Ok(Reference::Tag(_)));
    if name.parse::<Repository>().is_err() || !tag_fits {
        return Err(bad());
    }
    // Pods find it under the short name, whichever of them they say.
    let short = name.strip_prefix("docker.io/").map(|short| short.strip_prefix("library/").unwrap_or(short));
    Ok((short.filter(|short| !short.is_empty()).unwrap_or(name).to_owned(), tag.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_what_readers_want() {
        let checked = Checked { is_module: false, imports: vec!["i".into()], exports: vec!["e".into()] };
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let expected = json!({"created": "2023-11-14T22:13:20Z", "architecture": "wasm", "os": "wasip2",
            "layerDigests": ["sha256:x"], "component": {"exports": ["e"], "imports": ["i"], "target": null}});
        assert_eq!(config(&checked, modified, "sha256:x"), expected);
        let module = config(&Checked { is_module: true, ..checked }, modified, "sha256:x");
        assert_eq!((&module["os"], &module["component"]), (&json!("wasip1"), &Value::Null));
    }

    /// Answers in this order, and then as the last time.
    fn answering(answers: &[(u16, &'static str)]) -> kube::Client {
        let answers = std::sync::Mutex::new(answers.to_vec());
        let answers = std::sync::Arc::new(answers);
        let service = tower::service_fn(move |_: Request<Body>| {
            let mut answers = answers.lock().unwrap();
            let (status, body) = if answers.len() > 1 { answers.remove(0) } else { answers[0] };
            let answer = http::Response::builder().status(status).body(Body::from(body.as_bytes().to_vec()));
            async move { answer }
        });
        kube::Client::new(service, "default")
    }

    #[tokio::test]
    async fn what_was_not_heard_is_neither_yes_nor_no() {
        let pushed = Pushed { image: "a:b".to_owned(), digest: "sha256:c".to_owned(), bytes: 0 };
        let failed: &str = serde_json::to_string(&Preparation::Failed { message: "why".to_owned() }).unwrap().leak();
        let ask = async |answers: &[(u16, &'static str)]| compiled(&answering(answers), &pushed, |_| {}).await;
        let found = ask(&[(503, ""), (500, "{}"), (429, ""), (200, failed)]).await.unwrap();
        assert!(matches!(found, Some(Preparation::Failed { .. })), "{found:?}");
        assert_eq!(ask(&[(503, ""), (404, "")]).await.unwrap(), None, "nobody says");
        for status in [403, 503] {
            let refused = ask(&[(status, "no")]).await.unwrap_err();
            assert!(matches!(&refused, Error::Refused { body, .. } if body == "no"), "{refused:?}");
        }
    }

    #[test]
    fn names_are_split_and_checked() {
        for (image, expected) in [
            ("hello", Some(("hello", "latest"))),
            ("myregistry/fastapi-app:latest", Some(("myregistry/fastapi-app", "latest"))),
            ("a/b/c:v1.2", Some(("a/b/c", "v1.2"))),
            ("docker.io/library/hello:v1", Some(("hello", "v1"))),
            ("docker.io/a/b", Some(("a/b", "latest"))),
            ("ghcr.io/library/a", Some(("ghcr.io/library/a", "latest"))),
            ("Hello", None),
            ("hello:", None),
            ("", None),
            ("a//b", None),
            ("-a", None),
            ("hello:bad tag", None),
            ("a..b", None),
            ("a___b", None),
            ("a._b", None),
            ("a__b/c--d", Some(("a__b/c--d", "latest"))),
            (&format!("hello:sha256:{}", "a".repeat(64)), None),
        ] {
            let got = split(image).ok();
            assert_eq!(got.as_ref().map(|(n, t)| (n.as_str(), t.as_str())), expected, "{image:?}");
        }
    }
}
