//! The kubeconfig that a person or a tool uses to reach the cluster.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::authority::Pair;

/// A complete kubeconfig (JSON, which is YAML) for one user of one cluster.
pub fn render(api_url: &str, authority: &str, user: &str, credentials: &Pair) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "clusters": [{"name": "coracle", "cluster": {
            "server": api_url,
            "certificate-authority-data": STANDARD.encode(authority),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate-data": STANDARD.encode(&credentials.certificate),
            "client-key-data": STANDARD.encode(&credentials.key),
        }}],
        "contexts": [{"name": "coracle", "context": {"cluster": "coracle", "user": user}}],
        "current-context": "coracle",
    });
    let mut text = serde_json::to_string_pretty(&config).expect("JSON of strings");
    text.push('\n');
    text
}
