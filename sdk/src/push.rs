//! Pushes a component into the cluster's registry, as an OCI artifact of the CNCF Wasm layout.
//!
//! It goes through the API server's `/v2/` (TLS, the kubeconfig's credentials), so that it works from anywhere the
//! cluster's API can be reached.

use std::path::{Path, PathBuf};

use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::json;
use sha2::{Digest, Sha256};

/// Media type of the artifact's configuration (CNCF TAG Runtime, Wasm OCI artifact layout).
const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
/// Media type of the one layer: the component itself.
const LAYER_TYPE: &str = "application/wasm";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Larger files are refused before they are read into memory.
const FILE_BYTES_MAX: u64 = 512 << 20;

/// Why a component could not be pushed.
#[derive(Debug, thiserror::Error)]
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
    /// The file is no WebAssembly.
    #[error(
        "{0} is not WebAssembly: it does not begin with \"\\0asm\"; build a component, e.g. cargo build --release --target wasm32-wasip2"
    )]
    NotWasm(PathBuf),
    /// The file is too large.
    #[error("{path} has {bytes} bytes; at most {FILE_BYTES_MAX} can be pushed")]
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
        source: Box<kube::Error>,
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
    let bytes = tokio::fs::metadata(file).await.map_err(read)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(Error::TooLarge { path: file.into(), bytes });
    }
    let wasm = tokio::fs::read(file).await.map_err(read)?;
    if !wasm.starts_with(b"\0asm") {
        return Err(Error::NotWasm(file.into()));
    }
    let (name, tag) = split(image)?;
    let size = wasm.len();
    let layer = digest(&wasm);
    let config = json!({
        "created": null,
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [layer],
    });
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

/// Splits `NAME[:TAG]` and checks both by the rules of the OCI distribution specification.
fn split(image: &str) -> Result<(String, String), Error> {
    let bad = || Error::Name(image.to_owned());
    let last = image.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match image[last..].find(':') {
        Some(at) => (&image[..last + at], &image[last + at + 1..]),
        None => (image, "latest"),
    };
    let part_fits = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
    };
    let tag_fits = !tag.is_empty()
        && tag.len() <= 128
        && !tag.starts_with(['.', '-'])
        && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if name.is_empty() || name.len() > 255 || !name.split('/').all(part_fits) || !tag_fits {
        return Err(bad());
    }
    Ok((name.to_owned(), tag.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_and_checked() {
        for (image, expected) in [
            ("hello", Some(("hello", "latest"))),
            ("myregistry/fastapi-app:latest", Some(("myregistry/fastapi-app", "latest"))),
            ("a/b/c:v1.2", Some(("a/b/c", "v1.2"))),
            ("Hello", None),
            ("hello:", None),
            ("", None),
            ("a//b", None),
            ("-a", None),
            ("hello:bad tag", None),
        ] {
            let got = split(image).ok();
            assert_eq!(got.as_ref().map(|(n, t)| (n.as_str(), t.as_str())), expected, "{image:?}");
        }
    }
}
