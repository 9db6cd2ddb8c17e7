//! Lists: order, selection, pages, forms.

use http::Request;
use serde_json::{Value, json};

use crate::{Server, admin, config_map, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn pages_show_the_state_of_the_first() {
    let server = Server::start().await;
    for name in ["c", "a", "b", "d", "e"] {
        server.make(MAPS, config_map(name, json!({}))).await;
    }
    let (code, first) = server.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!((code, names(&first)), (200, vec!["a", "b"]));
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    assert!(first["items"][0].get("kind").is_none(), "items of lists say no kind");
    server.call("DELETE", &format!("{MAPS}/d"), Value::Null).await;
    let next = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = server.get(&format!("{MAPS}?limit=5&continue={next}")).await;
    assert_eq!(names(&second), ["c", "d", "e"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert!(second["metadata"].get("continue").is_none());
}

#[tokio::test]
async fn namespaces_do_not_mix() {
    let server = Server::start().await;
    for namespace in ["n", "n-a", "n1"] {
        server.make("/api/v1/namespaces", json!({"metadata": {"name": namespace}})).await;
        server.make(&format!("/api/v1/namespaces/{namespace}/configmaps"), config_map(namespace, json!({}))).await;
    }
    let (_, one) = server.get("/api/v1/namespaces/n/configmaps").await;
    assert_eq!(names(&one), ["n"]);
    let (_, all) = server.get("/api/v1/configmaps").await;
    assert_eq!(names(&all), ["n-a", "n", "n1"], "in the order of their keys");
    let (_, pinned) = server.get("/api/v1/configmaps?fieldSelector=metadata.namespace%3Dn1").await;
    assert_eq!(names(&pinned), ["n1"]);
}

#[tokio::test]
async fn selectors_select() {
    let server = Server::start().await.with_account().await;
    for (name, tier) in [("a", "front"), ("b", "back")] {
        let mut object = pod(name);
        object["metadata"]["labels"] = json!({"tier": tier});
        server.make("/api/v1/namespaces/default/pods", object).await;
    }
    for (query, expected) in [
        ("labelSelector=tier%3Dfront", vec!["a"]),
        ("labelSelector=tier+in+(front,back)", vec!["a", "b"]),
        ("labelSelector=!tier", vec![]),
        ("fieldSelector=status.phase%3DPending", vec!["a", "b"]),
        ("fieldSelector=status.phase%3DRunning", vec![]),
        ("fieldSelector=metadata.name!%3Da", vec!["b"]),
    ] {
        let (code, list) = server.get(&format!("/api/v1/pods?{query}")).await;
        assert_eq!((code, names(&list)), (200, expected), "{query}");
    }
    let (code, refused) = server.get("/api/v1/pods?fieldSelector=spec.priority%3D0").await;
    assert_eq!((code, &refused["message"]), (400, &json!("field label not supported: spec.priority")));
}

#[tokio::test]
async fn tables_and_metadata_are_shown_on_request() {
    let server = Server::start().await;
    server.make(MAPS, config_map("a", json!({"k": "v"}))).await;
    let ask = async |path: &str, accept: &str| {
        let request = Request::get(path).header("accept", accept).body(Default::default()).unwrap();
        server.send(Some(admin()), request).await
    };
    let table = ask(MAPS, "application/json;as=Table;v=v1;g=meta.k8s.io,application/json").await.json();
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let partial = ask(MAPS, "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await.json();
    assert_eq!(partial["items"][0]["metadata"]["name"], "a");
    assert!(partial["items"][0].get("data").is_none());
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let request = Request::post(path)
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(json!({"spec": {"resourceAttributes": {"verb": "get"}}}).to_string().into())
        .unwrap();
    assert_eq!(server.send(Some(admin()), request).await.code, 406);
}

#[tokio::test]
async fn a_long_list_is_whole() {
    let server = Server::start().await;
    for at in 0..300 {
        server.make(MAPS, config_map(&format!("m{at:03}"), json!({"k": "x".repeat(4096)}))).await;
    }
    let (_, list) = server.get(MAPS).await;
    assert_eq!(names(&list).len(), 300);
    assert_eq!(names(&list)[299], "m299");
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let server = Server::start().await;
    for (name, tier) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let mut object = config_map(name, json!({}));
        object["metadata"]["labels"] = json!({"tier": tier});
        server.make(MAPS, object).await;
    }
    let (code, deleted) = server.call("DELETE", &format!("{MAPS}?labelSelector=tier%3Dx"), Value::Null).await;
    assert_eq!((code, names(&deleted)), (200, vec!["a", "c"]));
    assert_eq!(names(&server.get(MAPS).await.1), ["b"]);
}

#[tokio::test]
async fn long_lists_are_the_same_in_every_form_and_selection() {
    let server = Server::start().await;
    // More than are computed on the way, in pages and over several pieces of a watch.
    let ops = (0..700).map(|at| {
        let labels = json!({"odd": (at % 2 == 1).to_string()});
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"k": "x".repeat(300)},
            "metadata": {"name": format!("m-{at:04}"), "namespace": "default", "labels": labels}});
        server.make(MAPS, object)
    });
    futures::future::join_all(ops).await;
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().or(list["rows"].as_array()).unwrap().iter();
        items
            .map(|item| {
                item.pointer("/object/metadata/name")
                    .or(item.pointer("/metadata/name"))
                    .unwrap()
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    };
    let all: Vec<String> = (0..700).map(|at| format!("m-{at:04}")).collect();
    let odd: Vec<String> = all.iter().skip(1).step_by(2).cloned().collect();
    assert_eq!(names(&server.get(MAPS).await.1), all);
    assert_eq!(names(&server.get(&format!("{MAPS}?labelSelector=odd%3Dtrue")).await.1), odd);
    assert_eq!(names(&server.get(&format!("{MAPS}?fieldSelector=metadata.name%3Dm-0003")).await.1), ["m-0003"]);
    assert_eq!(names(&server.get(&format!("{MAPS}?fieldSelector=metadata.name%3Dnone")).await.1), [""; 0]);
    let table = Request::get(MAPS).header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = server.send(Some(admin()), table.body(axum::body::Body::empty()).unwrap()).await.json();
    assert_eq!((names(&table), &table["rows"][0]["cells"][1]), (all.clone(), &json!(1)), "{}", table["rows"][0]);
    let (mut paged, mut token, mut left) = (Vec::new(), String::new(), 700_usize);
    loop {
        let (_, page) = server.get(&format!("{MAPS}?limit=300&continue={token}")).await;
        paged.extend(names(&page));
        left = left.saturating_sub(300);
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        if token.is_empty() {
            break;
        }
        assert_eq!(page["metadata"]["remainingItemCount"], left);
    }
    assert_eq!(paged, all);
    let watch = Request::get(format!("{MAPS}?watch=1&timeoutSeconds=2&labelSelector=odd%3Dtrue"));
    let heard = server.send(Some(admin()), watch.body(axum::body::Body::empty()).unwrap()).await;
    let heard: Vec<String> = heard
        .bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            let event: Value = serde_json::from_slice(line).unwrap();
            assert_eq!(event["type"], "ADDED");
            event["object"]["metadata"]["name"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(heard, odd);
}

#[tokio::test]
async fn a_list_as_yaml_is_sent_while_it_is_made_and_says_the_same() {
    use coracle_api::codec::yaml;
    let server = Server::start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let all = async |accept: &str| {
        let request = Request::get(maps).header("accept", accept).body(axum::body::Body::empty()).unwrap();
        server.send(Some(admin()), request).await
    };
    let metadata = "as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    for count in [0, 3] {
        for at in 0..count {
            let text = format!("a\n\n  b: {}\n- c # d\n", "long ".repeat(40 * at));
            server.make(maps, config_map(&format!("m{at}"), json!({"k": text, "items": "\nitems: []\n"}))).await;
        }
        for kind in ["", metadata] {
            let json = all(&format!("application/json;{kind}")).await;
            let listed = all(&format!("application/yaml;{kind}")).await;
            let text = String::from_utf8(listed.bytes).unwrap();
            if count > 0 {
                let mut request =
                    Request::get(maps).header("accept", "application/yaml").body(axum::body::Body::empty()).unwrap();
                request.extensions_mut().insert(admin());
                let answer = tower::ServiceExt::oneshot(server.api.router(), request).await.unwrap();
                let size = http_body::Body::size_hint(answer.body()).exact();
                assert_eq!(size, None, "nobody knows how long it will be");
            }
            assert_eq!(text, yaml::from_json(&coracle_api::codec::json::parse(&json.bytes).unwrap()), "{kind}");
        }
    }
}
