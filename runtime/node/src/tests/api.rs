//! As much of an API server as a node talks to: pods with watch, status writes and deletion; everything else exists
//! and is empty.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, broadcast};

use super::PATIENCE;

type Body = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Clone)]
pub struct Api {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<Value>,
    node_events: broadcast::Sender<Value>,
    /// ConfigMaps and Secrets that are put, by kind and name.
    object_events: broadcast::Sender<(String, Value)>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    revision: u64,
    pods: BTreeMap<String, Value>,
    node: Value,
    /// The node's Lease, once it is made; a renewal does not change its version.
    lease: Value,
    /// Status writes by pod, with their moments.
    writes: Vec<(String, Instant, Value)>,
    created: BTreeMap<String, Instant>,
    recorded: Vec<Value>,
    /// Pods whose status is refused, with what, and how often it was.
    refused: BTreeMap<String, (StatusCode, u32)>,
    /// Rings when the refusal of a pod's status may be answered, where it waits for that.
    held: Option<Arc<Notify>>,
    /// A pod whose condition is set back after each write.
    contradicted: Option<String>,
    objects: BTreeMap<String, Value>,
    /// Labels of pods that are made.
    labels: Value,
    /// Tokens that were asked for.
    tokens: u32,
    /// How often the node's status, and its annotations, were written; annotations may be refused.
    node_writes: [u32; 2],
    refuses_annotations: bool,
    /// Requests with this in their path are not answered, this often.
    silent: Option<(&'static str, u32)>,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            events: broadcast::Sender::new(1024),
            node_events: broadcast::Sender::new(64),
            object_events: broadcast::Sender::new(1024),
            changed: Arc::default(),
        }
    }
}

impl Api {
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    pub fn node(&self) -> Value {
        self.state.lock().node.clone()
    }

    /// The node's Lease.
    pub fn lease(&self) -> Value {
        self.state.lock().lease.clone()
    }

    /// Another process renews the node's Lease.
    pub fn hold_lease(&self, incarnation: &str) {
        let mut state = self.state.lock();
        let metadata = json!({"annotations": {"coracle.dev/incarnation": incarnation}});
        self.write_lease(
            &mut state,
            &json!({"metadata": metadata, "spec": {"renewTime": jiff::Timestamp::now().to_string()}}),
        );
    }

    fn write_lease(&self, state: &mut State, patch: &Value) -> Response<Body> {
        let version = state.lease["metadata"]["resourceVersion"].clone();
        if patch["metadata"].get("resourceVersion").is_some_and(|named| *named != version) {
            return answer(StatusCode::CONFLICT, &json!({"message": "it is another version by now"}));
        }
        coracle_api::patch::merge(&mut state.lease, patch).unwrap();
        if patch["metadata"].get("annotations").is_some() {
            state.revision += 1;
            state.lease["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        }
        self.changed.notify_waiters();
        answer(StatusCode::OK, &state.lease)
    }

    /// Puts a ConfigMap or Secret.
    pub fn put(&self, kind: &str, name: &str, data: Value) {
        self.put_object(kind, name, json!({"data": data}));
    }

    /// Puts an object of any kind into the namespace `default`, for whoever lists it.
    pub fn put_object(&self, kind: &str, name: &str, mut object: Value) {
        object["metadata"]["name"] = json!(name);
        object["metadata"]["namespace"] = json!("default");
        object["metadata"]["resourceVersion"] = json!("1");
        let key = format!("{kind}/{name}");
        self.state.lock().objects.insert(key.clone(), object.clone());
        let _ = self.object_events.send((key, object));
    }

    /// An object that was put.
    pub fn object(&self, kind: &str, name: &str) -> Option<Value> {
        self.state.lock().objects.get(&format!("{kind}/{name}")).cloned()
    }

    /// The events recorded about an object.
    pub fn events(&self, name: &str) -> Vec<Value> {
        let state = self.state.lock();
        state.recorded.iter().filter(|event| event["involvedObject"]["name"] == name).cloned().collect()
    }

    /// Pods that are made from now on have these labels.
    pub fn labels(&self, labels: Value) {
        self.state.lock().labels = labels;
    }

    pub fn create(&self, name: &str, annotations: Value, spec: Value) {
        let mut state = self.state.lock();
        let uid = format!("uid-{name}");
        let mut metadata =
            json!({"name": name, "namespace": "default", "uid": uid, "generation": 1, "annotations": annotations});
        metadata["labels"] = state.labels.clone();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {}});
        state.created.insert(name.to_owned(), Instant::now());
        self.store(&mut state, "ADDED", name, pod);
    }

    /// Asks for a pod's end, as a DELETE with grace does.
    pub fn delete(&self, name: &str, grace: i64) {
        let mut state = self.state.lock();
        let mut pod = state.pods[name].clone();
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.store(&mut state, "MODIFIED", name, pod);
    }

    /// Loses a pod without telling anybody who watches.
    pub fn lose(&self, name: &str) {
        self.state.lock().pods.remove(name);
    }

    /// Changes a pod, as somebody else.
    pub fn modify(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut state = self.state.lock();
        let mut pod = state.pods[name].clone();
        change(&mut pod);
        self.store(&mut state, "MODIFIED", name, pod);
    }

    /// Refuses a pod's status from now on: first as forbidden, then with this code.
    pub fn refuse_status(&self, name: &str, code: u16) {
        self.state.lock().refused.insert(name.to_owned(), (StatusCode::from_u16(code).unwrap(), 0));
    }

    /// Takes the pod's status again.
    pub fn take_status(&self, name: &str) {
        self.state.lock().refused.remove(name);
    }

    /// Each refusal of a status waits from now on until it is let go.
    pub fn hold_refusals(&self) -> Arc<Notify> {
        self.state.lock().held.insert(Arc::default()).clone()
    }

    /// How often the pod's status was refused.
    pub fn refusals(&self, name: &str) -> u32 {
        self.state.lock().refused.get(name).map_or(0, |(_, count)| *count)
    }

    /// Does not answer the next `count` writes whose path has `part` in it.
    pub fn be_silent(&self, part: &'static str, count: u32) {
        self.state.lock().silent = Some((part, count));
    }

    /// Refuses annotations of the node from now on.
    pub fn refuse_annotations(&self) {
        self.state.lock().refuses_annotations = true;
    }

    /// How often the node's status, and its annotations, were written, or tried to be.
    pub fn node_writes(&self) -> [u32; 2] {
        self.state.lock().node_writes
    }

    /// How many tokens were given.
    pub fn tokens(&self) -> u32 {
        self.state.lock().tokens
    }

    /// How often such a request is still to be left without an answer.
    pub fn silence_left(&self) -> u32 {
        self.state.lock().silent.map_or(0, |(_, left)| left)
    }

    fn is_silent(&self, method: &Method, path: &str) -> bool {
        match &mut self.state.lock().silent {
            Some((part, left)) if *left > 0 && *method != Method::GET && path.contains(*part) => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }

    /// Says from now on, right after each write, that a pod is not ready.
    pub fn contradict(&self, name: &str) {
        self.state.lock().contradicted = Some(name.to_owned());
    }

    /// Waits for so many status writes about a pod from now on; returns their moments.
    pub async fn next_writes(&self, name: &str, count: usize) -> Vec<Instant> {
        let of = |state: &State| -> Vec<Instant> {
            state.writes.iter().filter(|(pod, ..)| pod == name).map(|(_, at, _)| *at).collect()
        };
        let before = of(&self.state.lock()).len();
        let written = async {
            loop {
                let changed = self.changed.notified();
                let writes = of(&self.state.lock());
                if writes.len() >= before + count {
                    return writes[before..before + count].to_vec();
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, written).await.expect("status writes")
    }

    /// Changes the node, as somebody else.
    pub fn modify_node(&self, change: impl FnOnce(&mut Value)) {
        let mut state = self.state.lock();
        change(&mut state.node);
        self.store_node(&mut state);
    }

    /// Waits until the node is as wanted.
    pub async fn node_is(&self, wanted: impl Fn(&Value) -> bool) {
        loop {
            let changed = self.changed.notified();
            if wanted(&self.node()) {
                return;
            }
            changed.await;
        }
    }

    fn store_node(&self, state: &mut State) {
        state.revision += 1;
        state.node["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        let _ = self.node_events.send(json!({"type": "MODIFIED", "object": state.node}));
        self.changed.notify_waiters();
    }

    /// The pod's status as it is.
    pub fn pod_status(&self, name: &str) -> Value {
        self.state.lock().pods[name]["status"].clone()
    }

    /// Waits until the pod's status is as wanted.
    pub async fn status(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = async {
            loop {
                let changed = self.changed.notified();
                let status = self.state.lock().pods.get(name).map(|pod| pod["status"].clone());
                if let Some(status) = status.filter(|status| wanted(status)) {
                    return status;
                }
                changed.await;
            }
        };
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(status) => status,
            Err(_) => {
                let state = self.state.lock();
                panic!("pod {name} is not {what}: {:#?} {:#?}", state.pods.get(name), state.recorded)
            }
        }
    }

    pub async fn gone(&self, name: &str) {
        let gone = async {
            loop {
                let changed = self.changed.notified();
                if !self.state.lock().pods.contains_key(name) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("the pod goes");
    }

    /// How often, and how long after its creation at last, a pod's status was written.
    pub fn writes(&self, name: &str) -> (usize, std::time::Duration) {
        let state = self.state.lock();
        let of: Vec<Instant> = state.writes.iter().filter(|(pod, ..)| pod == name).map(|(_, at, _)| *at).collect();
        (of.len(), *of.last().unwrap() - state.created[name])
    }

    /// Reasons of the events recorded about a pod.
    pub fn reasons(&self, name: &str) -> Vec<String> {
        let state = self.state.lock();
        let of = state.recorded.iter().filter(|event| event["involvedObject"]["name"] == name);
        of.map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
    }

    /// Messages of the events recorded about a pod.
    pub fn messages(&self, name: &str) -> Vec<String> {
        let state = self.state.lock();
        let of = state.recorded.iter().filter(|event| event["involvedObject"]["name"] == name);
        of.map(|event| event["message"].as_str().unwrap().to_owned()).collect()
    }

    /// The first so many of them, once they are there.
    pub async fn first_reasons(&self, name: &str, count: usize) -> Vec<String> {
        let recorded = async {
            loop {
                let changed = self.changed.notified();
                let mut reasons = self.reasons(name);
                if reasons.len() >= count {
                    reasons.truncate(count);
                    return reasons;
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, recorded).await.expect("events")
    }

    fn store(&self, state: &mut State, kind: &str, name: &str, mut pod: Value) {
        state.revision += 1;
        pod["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        if kind == "DELETED" {
            state.pods.remove(name);
        } else {
            state.pods.insert(name.to_owned(), pod.clone());
        }
        let _ = self.events.send(json!({"type": kind, "object": pod}));
        self.changed.notify_waiters();
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        let is_watch = query.contains("watch=true") || query.contains("watch=1");
        if self.is_silent(&parts.method, parts.uri.path()) {
            self.changed.notify_waiters();
            return std::future::pending().await;
        }
        match (&parts.method, &path[..]) {
            (&Method::GET, ["api", "v1", "pods"]) if is_watch => self.watch_pods(),
            (&Method::GET, ["api", "v1", "pods"]) => {
                let state = self.state.lock();
                let items: Vec<&Value> = state.pods.values().collect();
                let metadata = json!({"resourceVersion": state.revision.to_string()});
                answer(StatusCode::OK, &json!({"metadata": metadata, "items": items}))
            }
            (&Method::GET, ["api", "v1", "nodes"]) if is_watch => {
                let events = tokio_stream::wrappers::BroadcastStream::new(self.node_events.subscribe());
                streamed(events.filter_map(|event| async { event.ok() }))
            }
            (&Method::GET, ["api", "v1", "nodes"]) => {
                let state = self.state.lock();
                let items = Some(state.node.clone()).filter(Value::is_object).into_iter().collect::<Vec<_>>();
                answer(StatusCode::OK, &json!({"metadata": {"resourceVersion": "1"}, "items": items}))
            }
            // Volumes are listed once; what happens to them later is not told.
            (&Method::GET, ["api", "v1", "persistentvolumes"]) if is_watch => {
                self.listed("persistentvolumes", "PersistentVolume")
            }
            (&Method::GET, ["api", "v1", "namespaces", _, kind @ ("configmaps" | "secrets")]) if is_watch => {
                let key = format!("{kind}/{}", named(&query));
                let later = tokio_stream::wrappers::BroadcastStream::new(self.object_events.subscribe());
                // As it is now, for what happened since it was listed.
                let now = self.state.lock().objects.get(&key).cloned();
                let later = later.filter_map(move |event| {
                    let object = event.ok().filter(|(of, _)| *of == key).map(|(_, object)| object);
                    async { object }
                });
                let all = stream::iter(now).chain(later);
                streamed(all.map(|object| json!({"type": "MODIFIED", "object": object})))
            }
            (&Method::GET, _) if is_watch => streamed(stream::pending()),
            (method, ["apis", "coordination.k8s.io", "v1", "namespaces", "kube-node-lease", "leases", rest @ ..]) => {
                let mut state = self.state.lock();
                match (method, rest, state.lease.is_object()) {
                    (&Method::GET, [_], true) => answer(StatusCode::OK, &state.lease),
                    (&Method::PATCH, [_], true) => self.write_lease(&mut state, &body),
                    (&Method::POST, [], false) => self.write_lease(&mut state, &body),
                    (&Method::POST, [], true) => answer(StatusCode::CONFLICT, &json!({})),
                    _ => answer(StatusCode::NOT_FOUND, &not_found()),
                }
            }
            (&Method::GET, ["api", "v1", "nodes", _]) => answer(StatusCode::OK, &self.node()),
            (&Method::GET, ["api", "v1", "namespaces", _, kind @ ("configmaps" | "secrets")]) => {
                let found = self.state.lock().objects.get(&format!("{kind}/{}", named(&query))).cloned();
                let items: Vec<Value> = found.into_iter().collect();
                answer(StatusCode::OK, &json!({"metadata": {"resourceVersion": "1"}, "items": items}))
            }
            (&Method::GET, ["api", "v1", .., kind @ ("persistentvolumes" | "persistentvolumeclaims"), name]) => {
                match self.object(kind, name) {
                    Some(object) => answer(StatusCode::OK, &object),
                    None => answer(StatusCode::NOT_FOUND, &not_found()),
                }
            }
            (&Method::GET, ["apis", "apiextensions.k8s.io", "v1", kind @ "customresourcedefinitions", name]) => {
                match self.object(kind, name) {
                    Some(object) => answer(StatusCode::OK, &object),
                    None => answer(StatusCode::NOT_FOUND, &not_found()),
                }
            }
            (&Method::PATCH, ["api", "v1", "persistentvolumes", name]) => {
                let Some(mut volume) = self.object("persistentvolumes", name) else {
                    return answer(StatusCode::NOT_FOUND, &not_found());
                };
                for field in ["annotations", "finalizers"] {
                    if let Some(said) = body["metadata"].get(field) {
                        volume["metadata"][field] = said.clone();
                    }
                }
                self.put_object("persistentvolumes", name, volume.clone());
                self.changed.notify_waiters();
                answer(StatusCode::OK, &volume)
            }
            (&Method::GET, ["api", "v1", "namespaces", _, "pods", name]) => match self.state.lock().pods.get(*name) {
                Some(pod) => answer(StatusCode::OK, pod),
                None => answer(StatusCode::NOT_FOUND, &not_found()),
            },
            (&Method::GET, [.., kind]) => {
                let state = self.state.lock();
                let items: Vec<&Value> = state
                    .objects
                    .iter()
                    .filter(|(key, _)| key.split_once('/').is_some_and(|(of, _)| of == *kind))
                    .map(|(_, object)| object)
                    .collect();
                answer(StatusCode::OK, &json!({"metadata": {"resourceVersion": "1"}, "items": items}))
            }
            (&Method::PATCH, ["api", "v1", "nodes", _]) => {
                let mut state = self.state.lock();
                if body["metadata"].get("annotations").is_some() {
                    state.node_writes[1] += 1;
                    if state.refuses_annotations {
                        self.changed.notify_waiters();
                        return answer(StatusCode::UNPROCESSABLE_ENTITY, &json!({"message": "no"}));
                    }
                }
                for (name, value) in body["metadata"]["annotations"].as_object().into_iter().flatten() {
                    let annotations = &mut state.node["metadata"]["annotations"];
                    match value {
                        Value::Null => {
                            drop(annotations.as_object_mut().and_then(|annotations| annotations.remove(name)))
                        }
                        value => annotations[name] = value.clone(),
                    }
                }
                self.store_node(&mut state);
                answer(StatusCode::OK, &json!({}))
            }
            (&Method::PATCH, ["api", "v1", "namespaces", _, "pods", name, "status"]) => {
                let answered = self.write(name, &body);
                let held = self.state.lock().held.clone().filter(|_| !answered.status().is_success());
                if let Some(held) = held {
                    held.notified().await;
                }
                answered
            }
            (&Method::DELETE, ["api", "v1", "namespaces", _, "pods", name]) => {
                let mut state = self.state.lock();
                let Some(pod) = state.pods.get(*name).cloned() else {
                    return answer(StatusCode::NOT_FOUND, &json!({}));
                };
                assert_eq!(body["preconditions"]["uid"], pod["metadata"]["uid"]);
                assert_eq!(body["gracePeriodSeconds"], 0);
                self.store(&mut state, "DELETED", name, pod);
                answer(StatusCode::OK, &json!({}))
            }
            (&Method::POST, ["api", "v1", "nodes"]) => {
                let mut state = self.state.lock();
                if state.node.is_object() {
                    return answer(StatusCode::CONFLICT, &json!({}));
                }
                state.node = body;
                answer(StatusCode::CREATED, &json!({}))
            }
            (&Method::PATCH, ["api", "v1", "nodes", _, "status"]) => {
                let mut state = self.state.lock();
                state.node_writes[0] += 1;
                let nodes = coracle_api::schema::of_kind("", "v1", "Node").unwrap();
                coracle_api::patch::strategic(&mut state.node, &body, &nodes).unwrap();
                self.store_node(&mut state);
                answer(StatusCode::OK, &json!({}))
            }
            (&Method::POST, ["api", "v1", "namespaces", _, "serviceaccounts", _, "token"]) => {
                let mut state = self.state.lock();
                state.tokens += 1;
                let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
                let token = format!("token {}", state.tokens);
                answer(StatusCode::CREATED, &json!({"status": {"token": token, "expirationTimestamp": expires}}))
            }
            (&Method::POST, ["api", "v1", "namespaces", _, "events"]) => {
                self.state.lock().recorded.push(body.clone());
                self.changed.notify_waiters();
                answer(StatusCode::CREATED, &body)
            }
            _ => answer(StatusCode::OK, &json!({})),
        }
    }

    fn write(&self, name: &str, patch: &Value) -> Response<Body> {
        let mut state = self.state.lock();
        let Some(mut pod) = state.pods.get(name).cloned() else { return answer(StatusCode::NOT_FOUND, &json!({})) };
        assert_eq!(patch["metadata"]["uid"], pod["metadata"]["uid"]);
        if let Some((code, count)) = state.refused.get_mut(name) {
            *count += 1;
            let code = if *count == 1 { StatusCode::FORBIDDEN } else { *code };
            let message = if code == StatusCode::CONFLICT { "somebody wrote the uid meanwhile" } else { "no" };
            return answer(code, &json!({ "message": message }));
        }
        let mut status = patch["status"].clone();
        for list in ["podIPs", "hostIPs"] {
            if let Some(addresses) = status.get_mut(list).and_then(Value::as_array_mut) {
                addresses.retain(|address| address.get("$patch").is_none());
            }
        }
        status.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        pod["status"] = status.clone();
        state.writes.push((name.to_owned(), Instant::now(), status));
        self.store(&mut state, "MODIFIED", name, pod.clone());
        let written = answer(StatusCode::OK, &state.pods[name]);
        if state.contradicted.as_deref() == Some(name) {
            for condition in pod["status"]["conditions"].as_array_mut().unwrap() {
                condition["status"] = json!("False");
            }
            self.store(&mut state, "MODIFIED", name, pod);
        }
        written
    }

    /// A watch that says what there is.
    fn listed(&self, plural: &str, kind: &str) -> Response<Body> {
        let state = self.state.lock();
        let of = state.objects.iter().filter(|(key, _)| key.split_once('/').is_some_and(|(of, _)| of == plural));
        let mut first: Vec<Value> = of.map(|(_, object)| json!({"type": "ADDED", "object": object})).collect();
        let metadata = json!({"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}});
        first.push(json!({"type": "BOOKMARK", "object": {"apiVersion": "v1", "kind": kind, "metadata": metadata}}));
        streamed(stream::iter(first).chain(stream::pending()))
    }

    fn watch_pods(&self) -> Response<Body> {
        let state = self.state.lock();
        let mut first: Vec<Value> = state.pods.values().map(|pod| json!({"type": "ADDED", "object": pod})).collect();
        let metadata = json!({
            "resourceVersion": state.revision.to_string(),
            "annotations": {"k8s.io/initial-events-end": "true"},
        });
        let bookmark = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": []}});
        first.push(json!({"type": "BOOKMARK", "object": bookmark}));
        let later = tokio_stream::wrappers::BroadcastStream::new(self.events.subscribe());
        let later = later.filter_map(|event| async { event.ok() });
        streamed(stream::iter(first).chain(later))
    }
}

/// The name that is asked for.
fn named(query: &str) -> &str {
    query.split("metadata.name%3D").nth(1).unwrap_or_default().split('&').next().unwrap_or_default()
}

fn not_found() -> Value {
    json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found"})
}

fn answer(code: StatusCode, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

fn streamed(events: impl futures::Stream<Item = Value> + Send + 'static) -> Response<Body> {
    // The type stands first, as every API server writes it: who reads may copy what follows as it is.
    let line = |event: Value| format!("{{\"type\":{},\"object\":{}}}\n", event["type"], event["object"]);
    let frames = events.map(move |event| Ok(Frame::data(Bytes::from(line(event)))));
    Response::new(StreamBody::new(frames).boxed_unsync())
}
