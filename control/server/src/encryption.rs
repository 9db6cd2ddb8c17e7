//! What is encrypted before it is in the log, and under which key (docs/encryption.md).
//!
//! | route | who | what |
//! | --- | --- | --- |
//! | `GET /coracle/v1/encryption` | who may | the newest key's number and age, what is encrypted, and how much is not as it is to be |
//! | `POST /coracle/v1/encryption/rotate` | who may | makes a new key; what is stored is encrypted anew by whoever leads |
//! | `PUT /coracle/v1/encryption` | who may | `{"resources": […]}`: what is encrypted |

use std::collections::BTreeSet;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use coracle_api::kinds;
use coracle_keyspace::{Keyspace, NoRoom, Role, SealingError, TransactError};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::join::status;

/// Where definitions of custom resources are kept; each is called as the collection of its resources.
const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
/// What is always encrypted.
const SECRETS: &str = "secrets";

/// The routes; the caller puts authentication before them.
pub fn router(keyspace: Keyspace) -> Router {
    Router::new()
        .route("/coracle/v1/encryption", get(show).put(choose))
        .route("/coracle/v1/encryption/rotate", post(rotate))
        .with_state(keyspace)
}

/// As it is told; looks at every record.
pub fn told(keyspace: &Keyspace) -> Value {
    let sealing = keyspace.sealing();
    let unreadable = sealing.unreadable.iter().map(|(what, why)| json!({"what": what, "why": why}));
    let held_back = if sealing.key.is_none() { keyspace.not_sealing() } else { Vec::new() };
    let held_back = held_back
        .iter()
        .map(|member| json!({"member": member.member, "name": member.name, "absent": member.role == Role::Absent}));
    json!({
        "key": sealing.key,
        "heldBackBy": held_back.collect::<Vec<_>>(),
        "created": sealing.created,
        "olderKeys": sealing.older,
        "resources": sealing.collections,
        "objects": sealing.records,
        "left": sealing.unsettled,
        "unreadable": unreadable.collect::<Vec<_>>(),
        "unreadableCount": sealing.unreadable_count,
    })
}

/// The same off the threads that serve requests.
async fn now(keyspace: Keyspace) -> Response {
    match tokio::task::spawn_blocking(move || told(&keyspace)).await {
        Ok(told) => Json(told).into_response(),
        Err(error) => status(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn show(State(keyspace): State<Keyspace>) -> Response {
    now(keyspace).await
}

async fn rotate(State(keyspace): State<Keyspace>) -> Response {
    match keyspace.renew_key().await {
        Ok(_) => now(keyspace).await,
        Err(error) => refused(&error),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Chosen {
    resources: BTreeSet<String>,
}

async fn choose(State(keyspace): State<Keyspace>, Json(Chosen { resources }): Json<Chosen>) -> Response {
    if !resources.contains(SECRETS) {
        return status(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Secrets are always encrypted: name secrets among the resources",
        );
    }
    let is_known = |name: &&String| {
        kinds::all().iter().any(|kind| kind.collection == name.as_str()) || keyspace.get(DEFINITIONS, name).is_some()
    };
    if let Some(unknown) = resources.iter().find(|name| !is_known(name)) {
        let why = format!(
            "there is no resource {unknown:?} that is stored: say it as in `kubectl api-resources -o name`, as configmaps or \
             deployments.apps"
        );
        return status(StatusCode::UNPROCESSABLE_ENTITY, &why);
    }
    match keyspace.seal_collections(&resources).await {
        Ok(()) => now(keyspace).await,
        Err(error) => refused(&error),
    }
}

fn refused(error: &SealingError) -> Response {
    let code = match error {
        SealingError::Refused(_) => StatusCode::CONFLICT,
        SealingError::Transact(TransactError::Unknown) => StatusCode::GATEWAY_TIMEOUT,
        SealingError::Transact(TransactError::NoRoom(NoRoom::Disk { .. } | NoRoom::Quota { .. })) => {
            StatusCode::INSUFFICIENT_STORAGE
        }
        SealingError::Transact(TransactError::Unsealed(_)) => StatusCode::INTERNAL_SERVER_ERROR,
        SealingError::Transact(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    status(code, &error.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;
    use std::time::Duration;

    use coracle_apiserver::Identity;
    use coracle_keyspace::Restoring;

    use super::*;
    use crate::tests::{below, config};
    use crate::{Authority, Server};

    pub const PLAIN: &str = "Zq7RmV2xK9tLw4Ns8Yc1";
    /// The same in base64.
    pub const ENCODED: &str = "WnE3Um1WMnhLOXRMdzROczhZYzE=";
    pub const SECRETS: &str = "/api/v1/namespaces/default/secrets";

    /// The answer, or code and message of the refusal.
    async fn ask(client: &kube::Client, method: &str, path: &str, body: Value) -> Result<Value, (u16, String)> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
        match client.request::<Value>(request.body(body).unwrap()).await {
            Ok(value) => Ok(value),
            Err(kube::Error::Api(status)) => Err((status.code, status.message.clone())),
            Err(error) => panic!("{method} {path}: {error}"),
        }
    }

    fn secret(name: &str) -> Value {
        json!({
            "kind": "Secret", "apiVersion": "v1", "metadata": {"name": name, "annotations": {"said": PLAIN}},
            "data": {"password": ENCODED},
        })
    }

    /// Files below `dir` that hold `text`.
    pub fn holding(dir: &Path, text: &str) -> Vec<String> {
        let (mut left, mut found) = (vec![dir.to_owned()], Vec::new());
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            if std::fs::read(&path).unwrap().windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
        found
    }

    /// Of a Secret of the API; a ConfigMap is found, so what is looked at is looked at.
    #[tokio::test(flavor = "multi_thread")]
    async fn no_file_of_a_server_holds_a_secret_in_the_clear() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("data");
        let mut server = Server::start(config(&dir)).await.unwrap();
        let open = "Xw2Bk8Hd5Jq0Mz7Tn3Uv";
        let one = format!("{SECRETS}/one");
        for round in 0..2 {
            let client = server.admin();
            match round {
                0 => ask(&client, "POST", SECRETS, secret("one")).await.unwrap(),
                _ => {
                    let mut changed = secret("one");
                    changed["data"]["more"] = ENCODED.into();
                    ask(&client, "PUT", &one, changed).await.unwrap()
                }
            };
            let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": format!("m{round}")}, "data": {"x": open}});
            ask(&client, "POST", "/api/v1/namespaces/default/configmaps", map).await.unwrap();
            // As much as makes a checkpoint.
            let large = "y".repeat(1 << 20);
            for at in 0..18 {
                let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": format!("l{round}-{at}")}, "data": {"x": large}});
                ask(&client, "POST", "/api/v1/namespaces/default/configmaps", map).await.unwrap();
            }
            server.keyspace.flush_history().await;
            let read = ask(&client, "GET", &one, Value::Null).await.unwrap();
            assert_eq!(read["data"]["password"], ENCODED);
            assert_eq!(
                ask(&client, "GET", SECRETS, Value::Null).await.unwrap()["items"][0]["data"]["password"],
                ENCODED
            );
            server.shutdown().await;
            server = Server::start(config(&dir)).await.unwrap();
        }
        let client = server.admin();
        assert_eq!(ask(&client, "GET", &one, Value::Null).await.unwrap()["data"]["more"], ENCODED);
        let told = ask(&client, "GET", "/coracle/v1/encryption", Value::Null).await.unwrap();
        assert_eq!((&told["key"], &told["left"], &told["unreadableCount"]), (&1.into(), &0.into(), &0.into()));
        // What the log still has, whatever was cut from it before.
        let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "last"}, "data": {"x": open}});
        ask(&client, "POST", "/api/v1/namespaces/default/configmaps", map).await.unwrap();
        ask(&client, "POST", SECRETS, secret("last")).await.unwrap();
        server.shutdown().await;
        // What is not encrypted is found, in the log and in the checkpoint: so they are looked at.
        let looked = holding(&dir, open);
        assert!(
            ["/log/", "/state.redb"].iter().all(|part| looked.iter().any(|path| path.contains(part))),
            "{looked:?}"
        );
        for text in [PLAIN, ENCODED] {
            assert_eq!(holding(&dir, text), Vec::<String>::new(), "{text}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_secret_that_was_changed_on_the_disk_is_told_and_can_go_and_others_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("data");
        let server = Server::start(config(&dir)).await.unwrap();
        let client = server.admin();
        for name in ["one", "two"] {
            ask(&client, "POST", SECRETS, secret(name)).await.unwrap();
        }
        // The same data but for a bit of the first.
        let whole = server.keyspace.whole();
        let mut parts: Vec<Vec<u8>> = whole.parts().collect();
        server.shutdown().await;
        let at = parts.iter_mut().find_map(|part| {
            let at = part.windows(8).position(|window| window == b"\0SEALED1")?;
            part[at + 60] ^= 1;
            Some(at)
        });
        assert!(at.is_some(), "it is sealed");
        let mut restoring = Restoring::new();
        parts.iter().for_each(|part| restoring.part(part).unwrap());
        std::fs::rename(dir.join("control"), temp.path().join("before")).unwrap();
        restoring.finish(&dir.join("control"), whole.revision()).await.unwrap();

        let server = Server::start(config(&dir)).await.unwrap();
        let client = server.admin();
        let (one, two) = (format!("{SECRETS}/one"), format!("{SECRETS}/two"));
        assert_eq!(ask(&client, "GET", &two, Value::Null).await.unwrap()["data"]["password"], ENCODED);
        let all = format!("{SECRETS}?labelSelector=a%3Db");
        let foreground = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"});
        let patch = json!({"data": {"more": ENCODED}});
        for (method, path, body) in [
            ("GET", &one, Value::Null),
            ("GET", &SECRETS.to_owned(), Value::Null),
            ("GET", &all, Value::Null),
            ("PUT", &one, secret("one")),
            ("DELETE", &one, foreground),
        ] {
            let (code, said) = ask(&client, method, path, body).await.unwrap_err();
            let told =
                said.contains("secrets default/one") && said.contains("encryption key 1") && said.contains("restore");
            assert!(code == 500 && told, "{method} {path}: {code} {said}");
        }
        let request = http::Request::patch(&one).header("content-type", "application/merge-patch+json");
        let patched = client.request::<Value>(request.body(patch.to_string().into_bytes()).unwrap()).await;
        assert!(matches!(patched, Err(kube::Error::Api(status)) if status.code == 500));
        let watch = http::Request::get(format!("{SECRETS}?watch=true&timeoutSeconds=5")).body(Vec::new()).unwrap();
        let told = tokio::time::timeout(Duration::from_secs(60), client.request_text(watch)).await.unwrap().unwrap();
        assert!(told.contains("ERROR") && told.contains("encryption key 1") && !told.contains("\"ADDED\""), "{told}");
        assert!(ask(&client, "GET", "/api/v1/namespaces/default/configmaps", Value::Null).await.is_ok());
        let state = ask(&client, "GET", "/coracle/v1/encryption", Value::Null).await.unwrap();
        assert_eq!(
            (&state["unreadableCount"], &state["unreadable"][0]["what"]),
            (&1.into(), &"secrets default/one".into())
        );
        // It goes, and can be made again.
        ask(&client, "DELETE", &one, Value::Null).await.unwrap();
        ask(&client, "POST", SECRETS, secret("one")).await.unwrap();
        assert_eq!(ask(&client, "GET", SECRETS, Value::Null).await.unwrap()["items"].as_array().unwrap().len(), 2);
        server.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_key_is_renewed_and_resources_are_chosen_by_who_may() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("data");
        let server = Server::start(config(&dir)).await.unwrap();
        let client = server.admin();
        ask(&client, "POST", SECRETS, secret("one")).await.unwrap();
        let told = ask(&client, "POST", "/coracle/v1/encryption/rotate", Value::Null).await.unwrap();
        assert_eq!(
            (&told["key"], &told["olderKeys"], &told["resources"]),
            (&2.into(), &json!([1]), &json!(["secrets"]))
        );
        let put = |resources: Value| json!({"resources": resources});
        for (wrong, said) in [(json!(["configmaps"]), "always encrypted"), (json!(["secrets", "nothings"]), "nothings")]
        {
            let (code, message) = ask(&client, "PUT", "/coracle/v1/encryption", put(wrong)).await.unwrap_err();
            assert!(code == 422 && message.contains(said), "{message}");
        }
        let chosen = json!(["configmaps", "deployments.apps", "secrets"]);
        let told = ask(&client, "PUT", "/coracle/v1/encryption", put(chosen.clone())).await.unwrap();
        assert_eq!(told["resources"], chosen);
        let settled = async {
            while ask(&client, "GET", "/coracle/v1/encryption", Value::Null).await.unwrap()["left"] != 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), settled).await.unwrap();
        assert!(server.keyspace.get("secrets", "default/one").unwrap().sealed_by() == Some(2));
        let nobody = server.whole_client(Identity::authenticated("nobody", Vec::new()), None);
        for (method, path) in [("GET", "/coracle/v1/encryption"), ("POST", "/coracle/v1/encryption/rotate")] {
            assert_eq!(ask(&nobody, method, path, Value::Null).await.unwrap_err().0, 403, "{method}");
        }
        server.shutdown().await;
        // A key that is gone, or another authority's, opens nothing: the server says so, and starts with its own.
        let (pki, away, other) = (dir.join("pki"), temp.path().join("away"), temp.path().join("other"));
        std::fs::create_dir(&away).unwrap();
        Authority::open(&other, false).unwrap();
        // Whether everything is as it was.
        let refused = async |expected: &[&str]| {
            let before = below(&dir).1;
            let error = Server::start(config(&dir)).await.err().expect("it is refused");
            let mut said = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(next) = source {
                said = format!("{said}: {next}");
                source = next.source();
            }
            assert!(expected.iter().all(|expected| said.contains(expected)), "{said}");
            before == below(&dir).1
        };
        std::fs::rename(pki.join("ca.key"), away.join("ca.key")).unwrap();
        assert!(refused(&["pki/ca.key is missing"]).await);
        std::fs::copy(other.join("ca.key"), pki.join("ca.key")).unwrap();
        assert!(refused(&["pki/ca.key does not belong to", "put back"]).await);
        std::fs::rename(pki.join("ca.crt"), away.join("ca.crt")).unwrap();
        std::fs::copy(other.join("ca.crt"), pki.join("ca.crt")).unwrap();
        refused(&["encryption key 1 cannot be opened", "pki/ca.key", "put that back"]).await;
        for name in ["ca.key", "ca.crt"] {
            std::fs::rename(away.join(name), pki.join(name)).unwrap();
        }
        Server::start(config(&dir)).await.unwrap().shutdown().await;
    }
}
