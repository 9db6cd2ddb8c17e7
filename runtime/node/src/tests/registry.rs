//! A registry that hands out components under their names, whatever the tag.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use sha2::{Digest as _, Sha256};

type Content = Arc<HashMap<String, (&'static str, Vec<u8>)>>;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Serves these components; returns the address.
pub async fn serve(images: Vec<(&'static str, Vec<u8>)>) -> String {
    let digest = |bytes: &[u8]| format!("sha256:{:x}", Sha256::digest(bytes));
    let mut content = HashMap::new();
    for (name, component) in images {
        let layer = json!({"mediaType": "application/wasm", "digest": digest(&component), "size": component.len()});
        let config = json!({"mediaType": "application/vnd.wasm.config.v0+json", "digest": digest(b"{}"), "size": 2});
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}).to_string();
        let manifest = manifest.into_bytes();
        content.insert(format!("{name}/manifests/{}", digest(&manifest)), (MANIFEST, manifest.clone()));
        content.insert(format!("{name}/manifests/1"), (MANIFEST, manifest));
        content.insert(format!("{name}/blobs/{}", digest(&component)), ("application/octet-stream", component));
    }
    let router = Router::new()
        .route("/v2/", axum::routing::get(|| async {}))
        .route("/v2/{*path}", axum::routing::any(answer))
        .with_state(Arc::new(content));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address.to_string()
}

async fn answer(State(content): State<Content>, Path(path): Path<String>) -> Response {
    match content.get(&path) {
        Some((kind, bytes)) => {
            let digest = format!("sha256:{:x}", Sha256::digest(bytes));
            ([("content-type", (*kind).to_owned()), ("docker-content-digest", digest)], bytes.clone()).into_response()
        }
        None => (StatusCode::NOT_FOUND, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}"#).into_response(),
    }
}
