//! The Pod Security Standards that the labels of a namespace ask for.

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use crate::{Answer, Server, admin, pod};

const NAMESPACE: &str = "/api/v1/namespaces/default";
const PODS: &str = "/api/v1/namespaces/default/pods";
const PRIVILEGED: &str =
    "\"baseline:latest\": privileged (container \"c\" must not set securityContext.privileged=true)";

fn labels(labels: &[(&str, &str)]) -> Value {
    let labels = labels.iter().map(|(name, value)| (format!("pod-security.kubernetes.io/{name}"), json!(value)));
    json!({"metadata": {"labels": labels.collect::<serde_json::Map<_, _>>()}})
}

async fn send(server: &Server, method: &str, path: &str, body: &Value) -> Answer {
    let media_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("content-type", media_type);
    server.send(Some(admin()), request.body(Body::from(body.to_string())).expect("a request")).await
}

/// What the client was warned of, but for what this version says of fields.
fn warnings(answer: &Answer) -> Vec<String> {
    let all = answer.headers.get_all("warning").iter();
    let plain = |text: &str| {
        let text = text.strip_prefix("299 - \"").and_then(|text| text.strip_suffix('"'));
        text.expect("a warning").replace("\\\"", "\"")
    };
    let all = all.map(|text| plain(text.to_str().expect("text")));
    all.filter(|text| !text.contains("component") && !text.contains("Coracle")).collect()
}

fn privileged(name: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    pod
}

#[tokio::test]
async fn pods_keep_to_the_standard_of_their_namespace() {
    let server = Server::start().await.with_account().await;
    let asked = labels(&[("enforce", "baseline"), ("enforce-version", "latest"), ("warn", "restricted")]);
    let answer = send(&server, "PATCH", NAMESPACE, &asked).await;
    assert_eq!((answer.code, warnings(&answer)), (200, vec![]));
    let answer = send(&server, "POST", PODS, &privileged("p")).await;
    let expected = format!("pods \"p\" is forbidden: violates PodSecurity {PRIVILEGED}");
    assert_eq!((answer.code, &answer.json()["message"]), (403, &json!(expected)));
    assert_eq!(warnings(&answer), Vec::<String>::new(), "who is refused is not warned, too");
    let answer = send(&server, "POST", PODS, &pod("p")).await;
    assert_eq!(answer.code, 201, "{}", answer.json());
    let warned = warnings(&answer);
    assert!(
        warned[0].starts_with("would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false"),
        "{warned:?}"
    );
    // What does not matter to it is not looked at again.
    let answer = send(&server, "PATCH", &format!("{PODS}/p"), &json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!((answer.code, warnings(&answer)), (200, vec![]));
    let image = json!({"spec": {"containers": [{"name": "c", "image": "other"}]}});
    let strategic = "application/strategic-merge-patch+json";
    send(&server, "PATCH", NAMESPACE, &labels(&[("enforce", "restricted")])).await;
    let (code, status) = server.call_as("PATCH", &format!("{PODS}/p"), strategic, &image).await;
    assert_eq!(code, 403, "{status}");
    let ephemeral = json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "i"}]}});
    let (code, status) = server.call_as("PATCH", &format!("{PODS}/p/ephemeralcontainers"), strategic, &ephemeral).await;
    assert!(code == 403 || code == 422, "{status}");
}

#[tokio::test]
async fn templates_are_warned_of_and_never_refused() {
    let server = Server::start().await;
    send(&server, "PATCH", NAMESPACE, &labels(&[("enforce", "baseline")])).await;
    let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": privileged("x")["spec"]});
    let spec = json!({"selector": {"matchLabels": {"app": "a"}}, "template": template});
    let mut job = template.clone();
    job["spec"]["restartPolicy"] = json!("Never");
    for (path, object) in [
        ("/apis/apps/v1/namespaces/default/deployments", json!({"metadata": {"name": "d"}, "spec": spec})),
        ("/apis/apps/v1/namespaces/default/replicasets", json!({"metadata": {"name": "r"}, "spec": spec})),
        ("/api/v1/namespaces/default/podtemplates", json!({"metadata": {"name": "t"}, "template": template})),
        (
            "/apis/batch/v1/namespaces/default/cronjobs",
            json!({"metadata": {"name": "c"},
            "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": job}}}}),
        ),
    ] {
        let answer = send(&server, "POST", path, &object).await;
        assert_eq!(answer.code, 201, "{path}: {}", answer.json());
        assert_eq!(warnings(&answer), [format!("would violate PodSecurity {PRIVILEGED}")], "{path}");
    }
}

#[tokio::test]
async fn labels_that_existing_pods_violate_are_warned_of_and_wrong_ones_refused() {
    let server = Server::start().await.with_account().await;
    for name in ["a", "b", "c"] {
        server.make(PODS, privileged(name)).await;
    }
    server.make(PODS, pod("fine")).await;
    let answer = send(&server, "PATCH", NAMESPACE, &labels(&[("enforce", "baseline")])).await;
    assert_eq!(
        (answer.code, warnings(&answer)),
        (
            200,
            vec![
                "existing pods in namespace \"default\" violate the new PodSecurity enforce level \"baseline:latest\""
                    .to_owned(),
                "a (and 2 other pods): privileged".to_owned(),
            ]
        )
    );
    let answer = send(&server, "PATCH", NAMESPACE, &labels(&[("enforce", "privileged")])).await;
    assert_eq!((answer.code, warnings(&answer)), (200, vec![]));
    for (label, value, why) in [
        ("enforce", "strict", "must be one of privileged, baseline, restricted"),
        ("warn-version", "1.30", "must be \"latest\" or \"v1.x\""),
    ] {
        let answer = send(&server, "PATCH", NAMESPACE, &labels(&[(label, value)])).await;
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        let expected = format!(
            "Namespace \"default\" is invalid: metadata.labels[pod-security.kubernetes.io/{label}]: Invalid value: \
             \"{value}\": {why}"
        );
        assert_eq!((answer.code, message), (422, expected));
    }
    let mut wrong = labels(&[("audit", "x")]);
    wrong["metadata"]["name"] = json!("n");
    assert_eq!(send(&server, "POST", "/api/v1/namespaces", &wrong).await.code, 422);
    let audit = labels(&[("audit", "restricted")]);
    let told = send(&server, "PATCH", NAMESPACE, &audit).await;
    let told = told.headers.get("warning").map(|text| text.to_str().expect("text").to_owned()).unwrap_or_default();
    assert!(told.contains("keeps no audit log"), "{told}");
}
