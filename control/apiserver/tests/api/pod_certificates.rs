//! Certificates for pods: who asks for which pod, who answers, and what an answer is.

use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_apiserver::Identity;
use http::Request;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use super::{Server, node, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/namespaces/default/podcertificaterequests";
const BUNDLES: &str = "/apis/certificates.k8s.io/v1/clustertrustbundles";
const SIGNER: &str = "example.com/mesh";

async fn ask(server: &Server, who: Identity, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("content-type", media);
    let answer = server.send(Some(who), request.body(Body::from(body.to_string())).expect("a request")).await;
    (answer.code, answer.json())
}

/// An empty request that is signed with this key, in base64.
fn request_of(key: &KeyPair) -> String {
    let request = CertificateParams::default().serialize_request(key).expect("a request");
    STANDARD.encode(request.der())
}

/// A pod on `mine` with a certificate volume, and what its node asks for.
async fn asked_for(server: &Server, key: &KeyPair) -> Value {
    let of_node = server.make("/api/v1/nodes", json!({"metadata": {"name": "mine"}})).await;
    let mut wants = pod("wants");
    wants["spec"]["nodeName"] = json!("mine");
    let source =
        json!({"podCertificate": {"signerName": SIGNER, "keyType": "ECDSAP256", "credentialBundlePath": "all.pem"}});
    wants["spec"]["volumes"] = json!([{"name": "v", "projected": {"sources": [source]}}]);
    let wants = server.make(PODS, wants).await;
    let (_, account) = server.get("/api/v1/namespaces/default/serviceaccounts/default").await;
    json!({"metadata": {"name": "r"}, "spec": {
        "signerName": SIGNER, "podName": "wants", "podUID": wants["metadata"]["uid"], "serviceAccountName": "default",
        "serviceAccountUID": account["metadata"]["uid"], "nodeName": "mine", "nodeUID": of_node["metadata"]["uid"],
        "maxExpirationSeconds": 7200, "stubPKCS10Request": request_of(key),
    }, "status": {"certificateChain": "x"}})
}

#[tokio::test]
async fn a_node_asks_for_its_own_pods_as_they_are() {
    let server = Server::start().await.with_account().await;
    let key = KeyPair::generate().expect("a key");
    let request = asked_for(&server, &key).await;
    for (field, value, expected) in [
        ("nodeName", json!("other"), "which is not the requesting node \"mine\""),
        ("nodeUID", json!("x"), "node \"mine\" has not the uid"),
        ("podName", json!("gone"), "pod \"gone\" named in the PodCertificateRequest is not there"),
        ("podUID", json!("x"), "pod \"wants\" has not the uid"),
        ("serviceAccountName", json!("other"), "does not run as service account \"other\""),
        ("serviceAccountUID", json!("x"), "serviceaccount \"default\" has not the uid"),
        ("signerName", json!("example.com/other"), "does not mount a podCertificate projected volume for signer"),
    ] {
        let mut other = request.clone();
        other["spec"][field] = value;
        let (code, refused) = ask(&server, node("mine"), "POST", REQUESTS, &other).await;
        let message = refused["message"].as_str().unwrap_or_default();
        assert!(code == 403 && message.contains(expected), "{field}: {refused}");
    }
    let mut forged = request.clone();
    forged["spec"]["stubPKCS10Request"] = json!(request_of(&key).replacen('A', "B", 12));
    let (code, refused) = ask(&server, node("mine"), "POST", REQUESTS, &forged).await;
    assert!(
        code == 422 && refused["message"].as_str().is_some_and(|text| text.contains("stubPKCS10Request")),
        "{refused}"
    );
    let (code, made) = ask(&server, node("mine"), "POST", REQUESTS, &request).await;
    assert_eq!((code, &made["status"]), (201, &json!({})), "{made}");
    // It sees those for its own pods, and answers none.
    let one = format!("{REQUESTS}/r");
    assert_eq!(ask(&server, node("mine"), "GET", &one, &Value::Null).await.0, 200);
    assert_eq!(ask(&server, node("other"), "GET", &one, &Value::Null).await.0, 403);
    assert_eq!(ask(&server, node("mine"), "GET", REQUESTS, &Value::Null).await.0, 403);
    let own = format!("{REQUESTS}?fieldSelector=spec.nodeName%3Dmine");
    assert_eq!(ask(&server, node("mine"), "GET", &own, &Value::Null).await.0, 200);
    let denied = answer(json!({}), "Denied");
    assert_eq!(ask(&server, node("mine"), "PATCH", &format!("{one}/status"), &denied).await.0, 403);
    // What was asked for stays.
    let (code, refused) = server.call("PATCH", &one, json!({"spec": {"podName": "other"}})).await;
    assert!(code == 422 && refused["message"].as_str().is_some_and(|text| text.contains("immutable")), "{refused}");
}

/// A status that says this and how it ended.
fn answer(mut status: Value, end: &str) -> Value {
    let condition = json!({"type": end, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    status["conditions"] = json!([condition]);
    json!({ "status": status })
}

/// A moment in seconds since 1970, as the API writes it.
fn text(moment: i64) -> String {
    jiff::Timestamp::from_second(moment).expect("a time").strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[tokio::test]
async fn who_may_sign_answers_once_with_a_certificate_of_that_key() {
    let server = Server::start().await.with_account().await;
    let key = KeyPair::generate().expect("a key");
    let request = asked_for(&server, &key).await;
    server.make(REQUESTS, request.clone()).await;
    // Somebody who may write the status of requests, and sign for another signer.
    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1";
    let rule = |resources: &str, verbs: &str, names: Value| json!({"apiGroups": ["certificates.k8s.io"], "resources": [resources], "verbs": [verbs], "resourceNames": names});
    let rules = json!([
        rule("podcertificaterequests/status", "patch", json!([])),
        rule("signers", "sign", json!(["other.com/*"]))
    ]);
    server.make(&format!("{ROLES}/clusterroles"), json!({"metadata": {"name": "s"}, "rules": rules})).await;
    let subjects = json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "s"}]);
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "s"});
    let binding = json!({"metadata": {"name": "s"}, "subjects": subjects, "roleRef": role});
    server.make(&format!("{ROLES}/clusterrolebindings"), binding).await;
    let status = format!("{REQUESTS}/r/status");
    let signer = || Identity::authenticated("s", Vec::new());
    let (code, refused) = ask(&server, signer(), "PATCH", &status, &answer(json!({}), "Denied")).await;
    let message = refused["message"].as_str().unwrap_or_default();
    assert!(
        code == 422 && message.contains("User \"s\" is not permitted to \"sign\" for signer \"example.com/mesh\""),
        "{refused}"
    );
    let (code, _) = server
        .call(
            "PATCH",
            &format!("{ROLES}/clusterroles/s"),
            json!({"rules": [rules[0],
        rule("signers", "sign", json!(["example.com/*"]))]}),
        )
        .await;
    assert_eq!(code, 200);

    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = Issuer::new(authority, KeyPair::generate().expect("a key"));
    let begin = jiff::Timestamp::now().as_second() - 120;
    let issue = |key: &KeyPair, begin: i64, life: i64| {
        let at = |moment: i64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(moment.unsigned_abs());
        let der = CertificateParams::default().serialize_request(key).expect("a request").der().clone();
        let mut params = CertificateSigningRequestParams::from_der(&der).expect("a request");
        (params.params.not_before, params.params.not_after) = (at(begin), at(begin + life));
        let chain = params.signed_by(&issuer).expect("a certificate").pem();
        json!({"certificateChain": chain, "notBefore": text(begin), "notAfter": text(begin + life),
            "beginRefreshAt": text(begin + life / 2)})
    };
    let hours = |hours: i64| hours * 3600;
    let good = issue(&key, begin, hours(2));
    let with = |field: &str, value: Value| {
        let mut other = good.clone();
        other[field] = value;
        other
    };
    for (given, expected) in [
        (with("certificateChain", json!("x")), "issued certificate chain must contain at least one certificate"),
        (issue(&KeyPair::generate().expect("a key"), begin, hours(2)), "was not issued to the requested public key"),
        (issue(&key, begin, hours(3)), "leaf certificate lifetime must be <= spec.maxExpirationSeconds (7200)"),
        (issue(&key, begin, 59 * 60), "leaf certificate lifetime must be >= 1 hour"),
        (issue(&key, begin - hours(1), hours(2)), "within 5 minutes of kube-apiserver's current time"),
        (
            with("notAfter", json!(text(begin + hours(1)))),
            "must be set to the NotAfter time encoded in the leaf certificate",
        ),
        (with("beginRefreshAt", json!(text(begin))), "must be at least 10 minutes after status.notBefore"),
        (with("beginRefreshAt", Value::Null), "status.beginRefreshAt: Required value"),
    ] {
        let (code, refused) = ask(&server, signer(), "PATCH", &status, &answer(given, "Issued")).await;
        let message = refused["message"].as_str().unwrap_or_default();
        assert!(code == 422 && message.contains(expected), "{expected}: {refused}");
    }
    let (code, done) = ask(&server, signer(), "PATCH", &status, &answer(good, "Issued")).await;
    assert_eq!((code, &done["status"]["conditions"][0]["type"]), (200, &json!("Issued")), "{done}");
    let (code, refused) = ask(&server, signer(), "PATCH", &status, &answer(json!({}), "Failed")).await;
    assert!(
        code == 422 && refused["message"].as_str().is_some_and(|text| text.contains("immutable after")),
        "{refused}"
    );
}

#[tokio::test]
async fn who_writes_a_signers_bundle_may_attest_for_it() {
    let server = Server::start().await;
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = authority.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").pem();
    let bundle = |name: &str, signer: &str| json!({"metadata": {"name": name}, "spec": {"signerName": signer, "trustBundle": authority}});
    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1";
    let rule = json!({"apiGroups": ["certificates.k8s.io"], "resources": ["clustertrustbundles"], "verbs": ["create"]});
    server.make(&format!("{ROLES}/clusterroles"), json!({"metadata": {"name": "b"}, "rules": [rule]})).await;
    let subjects = json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "b"}]);
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "b"});
    let binding = json!({"metadata": {"name": "b"}, "subjects": subjects, "roleRef": role});
    server.make(&format!("{ROLES}/clusterrolebindings"), binding).await;
    let user = || Identity::authenticated("b", Vec::new());
    let (code, refused) = ask(&server, user(), "POST", BUNDLES, &bundle("example.com:mesh:a", SIGNER)).await;
    let message = refused["message"].as_str().unwrap_or_default();
    assert!(
        code == 403 && message.contains("user not permitted to attest for signerName \"example.com/mesh\""),
        "{refused}"
    );
    assert_eq!(ask(&server, user(), "POST", BUNDLES, &bundle("free", "")).await.0, 201);
    server.make(BUNDLES, bundle("example.com:mesh:a", SIGNER)).await;
    let bad = json!({"metadata": {"name": "bad"}, "spec": {"trustBundle": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}});
    let (code, refused) = server.call("POST", BUNDLES, bad).await;
    let message = refused["message"].as_str().unwrap_or_default();
    assert!(code == 422 && message.contains("entry 0 does not parse as X.509"), "{refused}");
}
