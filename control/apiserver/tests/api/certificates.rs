//! Requests for certificates: who asks, who may decide about them and sign them, and what never changes.

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_apiserver::Identity;
use http::Request;
use serde_json::{Value, json};

use super::Server;

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// For `CN=anna, O=crew`, and for `CN=root, O=system:masters`.
const ANNA: &str = "MIHaMIGAAgEAMB4xDTALBgNVBAoMBGNyZXcxDTALBgNVBAMMBGFubmEwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARwtYPtbTt9iSkmtJVtR9VE33GpQggtNuaN8inFFd7XVYV2WtVQ/K24usieC8LUgktVRYUpcfnqsoh7JTA7SVpboAAwCgYIKoZIzj0EAwIDSQAwRgIhALPdwOyBusWr8MERqQALECu3/5qUZdhoSAwBEPnrJbRQAiEAldEovTMTeSog5rNKeIgauqNbYI3/SN/f/NTfkLaIV6E=";
const ROOT: &str = "MIHiMIGKAgEAMCgxFzAVBgNVBAoMDnN5c3RlbTptYXN0ZXJzMQ0wCwYDVQQDDARyb290MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEonrVG5mj/840ii7fSiT+BrvbweIZk62nTGh5Axh0UVyMdS9fybA4/0iONeMMrCpVcwX6vRFRAqI1IICVle+MxaAAMAoGCCqGSM49BAMCA0cAMEQCIDdNiQJKtaBZFmZfxtndhNqt1Trwq1sgJKDxfkd8qw9gAiBWpHQUvAu5Qrp4R7Z7XLfGAFsMJcyL2hyaV0xj7w6qgw==";

fn pem(body: &str) -> String {
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
}

fn request(name: &str, body: &str) -> Value {
    let spec = json!({
        "request": STANDARD.encode(pem(body)), "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"],
        "username": "somebody-else", "groups": ["system:masters"],
    });
    json!({"metadata": {"name": name}, "spec": spec, "status": {"conditions": [{"type": "Approved", "status": "True"}]}})
}

async fn ask(server: &Server, user: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
    let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("content-type", media);
    let identity = Identity::authenticated(user, vec!["crew".to_owned()]);
    let answer = server.send(Some(identity), request.body(Body::from(body.to_string())).expect("a request")).await;
    (answer.code, answer.json())
}

/// Lets a user do this with requests, and that with their signers.
async fn allow(server: &Server, user: &str, verbs: &[&str], signer_verbs: &[&str]) {
    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1";
    let mut rules = vec![json!({"apiGroups": ["certificates.k8s.io"], "verbs": verbs,
        "resources": ["certificatesigningrequests", "certificatesigningrequests/approval", "certificatesigningrequests/status"]})];
    if !signer_verbs.is_empty() {
        rules.push(json!({"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "verbs": signer_verbs,
            "resourceNames": ["kubernetes.io/*"]}));
    }
    server.make(&format!("{ROLES}/clusterroles"), json!({"metadata": {"name": user}, "rules": rules})).await;
    let binding = json!({
        "metadata": {"name": user}, "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
    });
    server.make(&format!("{ROLES}/clusterrolebindings"), binding).await;
}

#[tokio::test]
async fn a_request_is_of_who_sends_it_and_signed_with_its_own_key() {
    let server = Server::start().await;
    allow(&server, "anna", &["create", "get"], &[]).await;
    let (code, made) = ask(&server, "anna", "POST", REQUESTS, request("anna", ANNA)).await;
    assert_eq!((code, &made["spec"]["username"]), (201, &json!("anna")), "{made}");
    assert_eq!(made["spec"]["groups"], json!(["crew", "system:authenticated"]));
    assert!(made["status"]["conditions"].as_array().is_none_or(Vec::is_empty), "nobody comes approved: {made}");
    let (code, answer) = ask(&server, "anna", "POST", REQUESTS, request("root", ROOT)).await;
    let message = answer["message"].as_str().unwrap_or_default();
    assert!(code == 403 && message.contains("signer with system:masters group is not allowed"), "{answer}");
    // One reader would see the one, and another the other.
    let mut two = request("two", ANNA);
    two["spec"]["request"] = json!(STANDARD.encode(format!("{}{}", pem(ANNA), pem(ROOT))));
    let (code, answer) = ask(&server, "anna", "POST", REQUESTS, two).await;
    let message = answer["message"].as_str().unwrap_or_default();
    assert!(code == 422 && message.contains("there is more than one PEM block"), "{answer}");
    let forged = ANNA.replacen('A', "B", 40);
    let (code, answer) = ask(&server, "anna", "POST", REQUESTS, request("forged", &forged)).await;
    assert!(code == 422 && answer["message"].as_str().unwrap_or_default().contains("spec.request"), "{answer}");
}

#[tokio::test]
async fn who_decides_and_who_signs_may_do_so_for_that_signer() {
    let server = Server::start().await;
    for (user, verbs) in [("idle", &[][..]), ("approver", &["approve"][..]), ("signer", &["sign"][..])] {
        allow(&server, user, &["create", "get", "patch", "update"], verbs).await;
    }
    server.make(REQUESTS, request("a", ANNA)).await;
    let at = |door: &str| format!("{REQUESTS}/a/{door}");
    let approved = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "x"}]}});
    for user in ["idle", "signer"] {
        let (code, answer) = ask(&server, user, "PATCH", &at("approval"), approved.clone()).await;
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(code == 403 && message.contains("user not permitted to approve requests"), "{answer}");
    }
    let (code, answer) = ask(&server, "approver", "PATCH", &at("status"), approved.clone()).await;
    let message = answer["message"].as_str().unwrap_or_default();
    assert!(code == 422 && message.contains("updates may not add a condition of type \"Approved\""), "{answer}");
    let (code, done) = ask(&server, "approver", "PATCH", &at("approval"), approved).await;
    assert_eq!(code, 200, "{done}");
    assert!(done["status"]["conditions"][0]["lastUpdateTime"].is_string(), "{done}");
    let certificate = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
    let signed = json!({"status": {"certificate": STANDARD.encode(certificate)}});
    assert_eq!(ask(&server, "approver", "PATCH", &at("status"), signed.clone()).await.0, 403);
    assert_eq!(ask(&server, "signer", "PATCH", &at("status"), signed).await.0, 200);
    let request =
        Request::get(format!("{REQUESTS}/a")).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = server.send(Some(super::admin()), request.body(Body::empty()).expect("a request")).await.json();
    let cells = table["rows"][0]["cells"].as_array().cloned().unwrap_or_default();
    assert_eq!((&cells[2], &cells[5]), (&json!("kubernetes.io/kube-apiserver-client"), &json!("Approved,Issued")));
}

#[tokio::test]
async fn nobody_owns_what_a_request_says_nor_the_conditions_of_its_status() {
    let server = Server::start().await;
    let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{ANNA}\n-----END CERTIFICATE REQUEST-----\n");
    let spec = json!({"request": STANDARD.encode(pem), "signerName": "a.b/c", "usages": ["client auth"]});
    let object = json!({"metadata": {"name": "r", "labels": {"a": "b"}}, "spec": spec});
    let made = server.make(REQUESTS, object).await;
    let labels = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}});
    assert_eq!(made["metadata"]["managedFields"][0]["fieldsV1"], labels, "{made}");
    let path = format!("{REQUESTS}/r/status");
    let (code, same) = server.call_as("PATCH", &path, "application/merge-patch+json", &json!({})).await;
    assert_eq!((code, &same), (200, &made), "what says nothing changes nothing");
    let patch = json!({"status": {"conditions": [{"type": "Odd", "status": "True", "reason": "R", "message": "m"}]}});
    let (code, changed) = server.call_as("PATCH", &path, "application/merge-patch+json", &patch).await;
    assert_eq!((code, &changed["metadata"]["managedFields"]), (200, &made["metadata"]["managedFields"]), "{changed}");
}
