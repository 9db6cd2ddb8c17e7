//! A mesh between a scripted API server and scripted pods: what discovery is told and who answers is up to the test.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use coracle_discovery::{Discovery, Gateways, Ingresses, Policies, Protocol, Routing, Service, Snapshot};
use coracle_policy::{Source, Workload};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body as ApiBody;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    Admit, Asker, Body, BoxError, Elsewhere, HttpService, Local, LocalEndpoints, NotAllowed, Place, Proxy, Purpose,
    ServiceFailure, serve_link, serve_stream,
};

/// The name of the node.
pub const NODE: &str = "here";

/// Longest wait for what must come.
pub const SOON: Duration = Duration::from_secs(20);

/// Objects of one kind and who watches them.
struct Kind {
    objects: Mutex<(u64, BTreeMap<String, Value>)>,
    events: broadcast::Sender<Bytes>,
    list: Value,
}

impl Kind {
    fn new(api_version: &str, list: &str) -> Kind {
        let list = json!({"apiVersion": api_version, "kind": list});
        Kind { objects: Mutex::default(), events: broadcast::Sender::new(1024), list }
    }

    fn put(&self, name: &str, mut object: Value) {
        let mut objects = self.objects.lock().unwrap();
        objects.0 += 1;
        object["metadata"]["name"] = json!(name);
        object["metadata"]["namespace"] = json!("n");
        object["metadata"]["resourceVersion"] = json!(objects.0.to_string());
        let was = objects.1.insert(name.to_owned(), object.clone());
        self.tell(if was.is_some() { "MODIFIED" } else { "ADDED" }, &object);
    }

    fn delete(&self, name: &str) {
        let mut objects = self.objects.lock().unwrap();
        objects.0 += 1;
        if let Some(mut object) = objects.1.remove(name) {
            object["metadata"]["resourceVersion"] = json!(objects.0.to_string());
            self.tell("DELETED", &object);
        }
    }

    fn tell(&self, kind: &str, object: &Value) {
        // Nobody may be watching yet.
        let _ = self.events.send(format!("{}\n", json!({"type": kind, "object": object})).into());
    }

    /// One object.
    fn one(&self, name: &str) -> Option<Response<Body>> {
        let objects = self.objects.lock().unwrap();
        objects.1.get(name).map(|object| Response::new(text(object.to_string())))
    }

    fn answer(&self, is_watch: bool) -> Response<Body> {
        let objects = self.objects.lock().unwrap();
        let body = match is_watch {
            false => {
                let mut list = self.list.clone();
                list["metadata"] = json!({"resourceVersion": objects.0.to_string()});
                list["items"] = objects.1.values().cloned().collect();
                text(list.to_string())
            }
            true => {
                // All of it, as additions: what came between list and watch must not be missed.
                let now: Vec<Bytes> = objects
                    .1
                    .values()
                    .map(|object| format!("{}\n", json!({"type": "ADDED", "object": object})).into())
                    .collect();
                let later = stream::unfold(self.events.subscribe(), |mut events| async {
                    events.recv().await.ok().map(|event| (event, events))
                });
                let frames = stream::iter(now).chain(later).map(|line| Ok(http_body::Frame::data(line)));
                StreamBody::new(frames.boxed()).boxed_unsync()
            }
        };
        let mut response = Response::new(body);
        response.headers_mut().insert("content-type", "application/json".parse().unwrap());
        response
    }
}

fn forbidden() -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden", "message": ""});
    let mut response = Response::new(text(status.to_string()));
    *response.status_mut() = http::StatusCode::FORBIDDEN;
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}

/// A pod of another node: a component, or nobody, and how often it was connected.
type There = (Option<Arc<dyn HttpService>>, usize);

/// What answers at addresses of pods.
#[derive(Default)]
pub struct Pods {
    at: Mutex<HashMap<IpAddr, Local>>,
    /// Pods of other nodes.
    pub elsewhere: Mutex<HashMap<IpAddr, There>>,
    /// Who has asked for a place on the way there; who holds one holds a clone of this; and how many there are.
    pub entered: Mutex<Vec<Asker>>,
    pub taken: Arc<()>,
    pub places_elsewhere: AtomicUsize,
    /// Pods of other nodes listen themselves: nobody speaks for them.
    pub listen_elsewhere: AtomicBool,
    pub failures: Mutex<Vec<String>>,
    /// Whether endpoints may lead to this machine's loopback.
    pub may_dial_near: AtomicBool,
    /// Sockets that are somebody else's.
    pub foreign: Mutex<Vec<SocketAddr>>,
    /// What is known of pods, also of those of other nodes.
    pub workloads: Mutex<HashMap<IpAddr, Arc<Workload>>>,
    /// Who of them was asked about last.
    pub looked_at: Mutex<Option<IpAddr>>,
    /// Who has connected to other nodes, by the stream, and who sent requests, as the other node was told.
    pub connected: Mutex<Vec<Source>>,
    pub asked: Arc<Mutex<Vec<Source>>>,
    /// Nobody is let in there.
    pub is_shut_elsewhere: Arc<AtomicBool>,
    /// The node that has the pods of other nodes, for datagrams.
    pub other: Mutex<Option<Proxy>>,
}

impl Pods {
    /// As the other node takes a flow of datagrams.
    fn take_datagrams(&self, to: SocketAddr, source: Source) -> BoxFuture<'static, io::Result<Elsewhere>> {
        let other = self.other.lock().unwrap().clone();
        let called = self.workloads.lock().unwrap().get(&to.ip()).cloned();
        Box::pin(async move {
            let other = other.ok_or(io::ErrorKind::HostUnreachable)?;
            let Some(Local::Tcp(at)) = other.local.lookup(to.ip(), to.port()) else {
                return Err(io::ErrorKind::ConnectionRefused.into());
            };
            let may = move |other: &Proxy| other.permits(&source, to, Protocol::Udp);
            if !may(&other) {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, NotAllowed));
            }
            let (upstream, (here, there)) = (other.upstream(at).await?, tokio::io::duplex(1 << 16));
            tokio::spawn(async move { upstream.serve(there, || may(&other)).await });
            Ok(Elsewhere { stream: Box::new(here), is_called: false, called })
        })
    }
}

impl LocalEndpoints for Pods {
    fn node(&self) -> &str {
        NODE
    }

    fn lookup(&self, address: IpAddr, _: u16) -> Option<Local> {
        self.at.lock().unwrap().get(&address).cloned()
    }

    fn workload(&self, address: IpAddr) -> Option<Arc<Workload>> {
        *self.looked_at.lock().unwrap() = Some(address);
        let is_here = !self.is_elsewhere(address);
        self.workloads.lock().unwrap().get(&address).filter(|_| is_here).cloned()
    }

    fn is_pod_address(&self, address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(address) if address.octets()[0] == 10)
    }

    fn is_elsewhere(&self, address: IpAddr) -> bool {
        self.elsewhere.lock().unwrap().contains_key(&address)
    }

    fn connect_elsewhere(
        &self,
        to: SocketAddr,
        purpose: Purpose,
        source: Source,
    ) -> BoxFuture<'static, io::Result<Elsewhere>> {
        self.connected.lock().unwrap().push(source.clone());
        if purpose == Purpose::Datagrams {
            return self.take_datagrams(to, source);
        }
        let called = self.workloads.lock().unwrap().get(&to.ip()).cloned();
        let (asked, is_shut) = (self.asked.clone(), self.is_shut_elsewhere.clone());
        let admit: Admit = Arc::new(move |said| {
            let source = said.and_then(|said| Source::from_text(said.to_str().ok()?))?;
            asked.lock().unwrap().push(source.clone());
            (!is_shut.load(Relaxed)).then_some(source)
        });
        let is_refused = self.listen_elsewhere.load(Relaxed) && self.is_shut_elsewhere.load(Relaxed);
        let mut elsewhere = self.elsewhere.lock().unwrap();
        let there = elsewhere.get_mut(&to.ip()).map(|(service, connections)| {
            *connections += 1;
            service.clone()
        });
        let is_called = !self.listen_elsewhere.load(Relaxed);
        Box::pin(async move {
            let service = there.flatten().ok_or(io::ErrorKind::ConnectionRefused)?;
            if is_refused {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, NotAllowed));
            }
            let (here, there) = tokio::io::duplex(1 << 16);
            match purpose {
                Purpose::Requests if is_called => {
                    drop(tokio::spawn(serve_link(there, service, admit, CancellationToken::new())))
                }
                Purpose::Requests | Purpose::Bytes | Purpose::Datagrams => {
                    drop(tokio::spawn(serve_stream(there, service)))
                }
            }
            Ok(Elsewhere { stream: Box::new(here), is_called, called })
        })
    }

    fn enter_elsewhere(&self, _: SocketAddr, by: Asker) -> Option<Place> {
        let mut entered = self.entered.lock().unwrap();
        entered.push(by);
        let held = Arc::strong_count(&self.taken) - 1;
        (held < self.places_elsewhere.load(Relaxed)).then(|| Box::new(self.taken.clone()) as Place)
    }

    fn links(&self) -> Option<IpAddr> {
        Some([127, 84, 0, 1].into())
    }

    /// Sockets of the pod N of this node are at `127.85.0.N`.
    fn caller(&self, from: IpAddr) -> Option<(IpAddr, Source)> {
        match from {
            IpAddr::V4(from) if from.octets()[..3] == [127, 85, 0] => {
                let pod = pod(from.octets()[3]);
                Some((pod, self.workload(pod).map_or(Source::Unknown, Source::Pod)))
            }
            _ => None,
        }
    }

    fn is_reached(&self, actual: SocketAddr, _: Protocol) -> bool {
        !self.foreign.lock().unwrap().contains(&actual)
    }

    fn may_dial(&self, endpoint: SocketAddr) -> bool {
        !endpoint.ip().is_loopback() || self.may_dial_near.load(Relaxed)
    }

    fn service_failed(&self, service: &Service, failure: ServiceFailure<'_>) {
        let what = match failure {
            ServiceFailure::Port(port, ..) => format!("port {port}"),
            ServiceFailure::Taken(port, _, holder) => format!("port {port} is of {}", holder.name),
            ServiceFailure::TooMany(port, _) => format!("port {port} is too many"),
            ServiceFailure::Endpoint(at) => format!("Endpoint({at})"),
        };
        self.failures.lock().unwrap().push(format!("{}: {what}", service.name));
    }
}

/// The mesh and all around it.
pub struct World {
    services: Arc<Kind>,
    slices: Arc<Kind>,
    ingresses: Arc<Kind>,
    rules: Arc<Kind>,
    /// Of Gateway API, by their plurals, the definitions among them.
    gateway_kinds: HashMap<&'static str, Arc<Kind>>,
    /// How often it was not told which definitions there are; `None` while it is told.
    are_refused: watch::Sender<Option<usize>>,
    pub policies: Policies,
    /// Followed by who asks for it.
    pub routes: Ingresses,
    pub gateways: Gateways,
    pub discovery: Discovery,
    pub pods: Arc<Pods>,
    pub proxy: Proxy,
    pub stop: CancellationToken,
    pub running: JoinHandle<()>,
}

impl World {
    pub async fn new() -> World {
        let services = Arc::new(Kind::new("v1", "ServiceList"));
        let slices = Arc::new(Kind::new("discovery.k8s.io/v1", "EndpointSliceList"));
        let ingresses = Arc::new(Kind::new("networking.k8s.io/v1", "IngressList"));
        let classes = Arc::new(Kind::new("networking.k8s.io/v1", "IngressClassList"));
        classes.put("coracle", json!({"spec": {"controller": "coracle.dev/ingress"}}));
        let rules = Arc::new(Kind::new("networking.k8s.io/v1", "NetworkPolicyList"));
        let namespaces = Arc::new(Kind::new("v1", "NamespaceList"));
        namespaces.put("n", json!({"metadata": {"labels": {"team": "a"}}}));
        let gateway_kind = |plural: &'static str| (plural, Arc::new(Kind::new("gateway.networking.k8s.io/v1", "List")));
        let plurals = ["gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants"];
        let gateway_kinds: HashMap<&str, Arc<Kind>> =
            plurals.into_iter().chain(["customresourcedefinitions"]).map(gateway_kind).collect();
        let of_gateways: Vec<(String, Arc<Kind>)> =
            gateway_kinds.iter().map(|(plural, kind)| (format!("/{plural}"), kind.clone())).collect();
        let kinds = [
            ("/services", services.clone()),
            ("/ingresses", ingresses.clone()),
            ("/ingressclasses", classes),
            ("/networkpolicies", rules.clone()),
            ("/namespaces", namespaces),
        ];
        let refused = watch::Sender::new(None);
        let are_refused = refused.clone();
        let (rest, definitions) = (slices.clone(), gateway_kinds["customresourcedefinitions"].clone());
        let api = tower::service_fn(move |request: Request<ApiBody>| {
            let path = request.uri().path();
            let named = kinds.iter().find(|(name, _)| path.ends_with(name)).map(|(_, kind)| kind);
            let of_gateways = || of_gateways.iter().find(|(name, _)| path.ends_with(name)).map(|(_, kind)| kind);
            let kind = named.or_else(of_gateways).unwrap_or(&rest);
            let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            let definition = path.split_once("/customresourcedefinitions/").and_then(|(_, name)| definitions.one(name));
            let is_refused = refused.borrow().is_some() && path.ends_with("/customresourcedefinitions");
            let answer = match definition {
                Some(definition) => definition,
                None if is_refused => {
                    refused.send_modify(|count| *count = count.map(|count| count + 1));
                    forbidden()
                }
                None => kind.answer(is_watch),
            };
            async move { Ok::<_, Infallible>(answer) }
        });
        let client = kube::Client::new(api, "default");
        let (discovery, policies) = (Discovery::new(client.clone()), Policies::new(client.clone()));
        let (routes, gateways) = (Ingresses::new(client.clone()), Gateways::new(client));
        let pods = Arc::new(Pods { places_elsewhere: AtomicUsize::new(usize::MAX), ..Pods::default() });
        let proxy = Proxy::new(discovery.clone(), policies.clone(), pods.clone());
        let stop = CancellationToken::new();
        tokio::spawn(discovery.clone().run(stop.clone()));
        tokio::spawn(policies.clone().run(stop.clone()));
        let running = tokio::spawn(proxy.clone().run(Some([127, 0, 0, 1].into()), stop.clone()));
        discovery.synced().await;
        policies.synced().await;
        World {
            services,
            slices,
            ingresses,
            rules,
            gateway_kinds,
            are_refused,
            policies,
            routes,
            gateways,
            discovery,
            pods,
            proxy,
            stop,
            running,
        }
    }

    /// A policy of the namespace, known to the mesh when this returns; `null` takes it away.
    pub async fn policy(&self, name: &str, spec: Value) {
        let mut generations = self.policies.subscribe();
        generations.borrow_and_update();
        match spec.is_null() {
            true => self.rules.delete(name),
            false => self.rules.put(name, json!({"spec": spec})),
        }
        tokio::time::timeout(SOON, generations.changed()).await.expect("policies are known").unwrap();
    }

    /// A pod that is known to have this label `app`, on whichever node it is.
    pub fn known_as(&self, n: u8, app: &str) -> Source {
        let labels = BTreeMap::from([("app".to_owned(), app.to_owned())]);
        let workload = Arc::new(Workload::new(pod(n), "n", &format!("pod{n}"), "default", labels, Vec::new()));
        self.pods.workloads.lock().unwrap().insert(pod(n), workload.clone());
        Source::Pod(workload)
    }

    /// An Ingress of our class.
    pub fn ingress(&self, name: &str, annotations: Value, mut spec: Value) {
        spec["ingressClassName"] = json!("coracle");
        self.ingresses.put(name, json!({"metadata": {"uid": name, "annotations": annotations}, "spec": spec}));
    }

    /// The definitions of Gateway API's kinds.
    pub fn define_gateways(&self) {
        for plural in ["gatewayclasses", "gateways", "httproutes", "grpcroutes", "referencegrants"] {
            let versions = ["v1", "v1beta1"].map(|name| json!({"name": name, "served": true}));
            let name = format!("{plural}.gateway.networking.k8s.io");
            self.gateway_object("customresourcedefinitions", &name, json!({"spec": {"versions": versions}}));
        }
    }

    /// It is not told any more which definitions there are; returns when somebody has asked twice: what came of the first time is
    /// known by then.
    pub async fn refuse_definitions(&self) {
        self.are_refused.send_replace(Some(0));
        let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired", "message": ""});
        self.gateway_kinds["customresourcedefinitions"].tell("ERROR", &gone);
        let mut refused = self.are_refused.subscribe();
        let twice = refused.wait_for(|count| count.is_some_and(|count| count >= 2));
        tokio::time::timeout(SOON, twice).await.expect("it is asked again").unwrap();
    }

    /// An object of Gateway API, or a definition.
    pub fn gateway_object(&self, plural: &str, name: &str, mut object: Value) {
        object["metadata"]["uid"] = json!(name);
        self.gateway_kinds[plural].put(name, object);
    }

    pub fn delete_gateway_object(&self, plural: &str, name: &str) {
        self.gateway_kinds[plural].delete(name);
    }

    /// Waits until the routes are so.
    pub async fn routed(&self, is: impl Fn(&Routing) -> bool) {
        let mut generations = self.routes.subscribe();
        let routed = async {
            while !is(&self.routes.routing()) {
                generations.changed().await.unwrap();
            }
        };
        tokio::time::timeout(SOON, routed).await.expect("the routes are known");
    }

    /// A Service with these ports (`{"port": …, "nodePort": …}`).
    pub fn service(&self, name: &str, cluster_ip: &str, ports: Value) {
        self.services.put(name, json!({"spec": {"clusterIP": cluster_ip, "ports": ports}}));
    }

    /// A Service with this spec, made at this second.
    pub fn service_with(&self, name: &str, second: u8, spec: Value) {
        let metadata = json!({"uid": name, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")});
        self.services.put(name, json!({"metadata": metadata, "spec": spec}));
    }

    /// The same, whose status says where it is served.
    pub fn service_at(&self, name: &str, second: u8, spec: Value, ingress: Value) {
        let metadata = json!({"uid": name, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")});
        let status = json!({"loadBalancer": {"ingress": ingress}});
        self.services.put(name, json!({"metadata": metadata, "spec": spec, "status": status}));
    }

    /// Ready endpoints of a Service, `10.9.0.N`, each on a node; those that are not ready any more end.
    pub fn placed(&self, service: &str, pods: &[(u8, &str, bool)], ports: Value) {
        let endpoint = |(n, node, is_ready): &(u8, &str, bool)| {
            let conditions = json!({"ready": is_ready, "serving": true, "terminating": !is_ready});
            json!({"addresses": [pod(*n)], "nodeName": node, "conditions": conditions})
        };
        let endpoints: Vec<Value> = pods.iter().map(endpoint).collect();
        let labels = json!({"labels": {"kubernetes.io/service-name": service}});
        self.slices
            .put(service, json!({"addressType": "IPv4", "metadata": labels, "endpoints": endpoints, "ports": ports}));
    }

    /// The same, of one whose pods are scaled by what is asked of it.
    pub fn activated(&self, name: &str, cluster_ip: &str, ports: Value) {
        let annotations = json!({coracle_discovery::ACTIVATES: "deployment.apps/web"});
        let spec = json!({"clusterIP": cluster_ip, "ports": ports});
        self.services.put(name, json!({"metadata": {"annotations": annotations}, "spec": spec}));
    }

    /// The same, of one whose clients stay where they went first.
    pub fn sticky(&self, name: &str, cluster_ip: &str, ports: Value) {
        let spec = json!({"clusterIP": cluster_ip, "ports": ports, "sessionAffinity": "ClientIP"});
        self.services.put(name, json!({"spec": spec}));
    }

    pub fn delete_service(&self, name: &str) {
        self.services.delete(name);
    }

    /// Ready endpoints of a Service, `10.9.0.N`, and its ports there.
    pub fn ready(&self, service: &str, pods: &[u8], ports: Value) {
        let pods: Vec<IpAddr> = pods.iter().map(|n| pod(*n)).collect();
        self.leads_to(service, &pods, ports);
    }

    /// Ready endpoints of a Service, wherever they are.
    pub fn leads_to(&self, service: &str, addresses: &[IpAddr], ports: Value) {
        let ready = |address| json!({"addresses": [address], "conditions": {"ready": true}});
        let endpoints: Vec<Value> = addresses.iter().map(ready).collect();
        let labels = json!({"labels": {"kubernetes.io/service-name": service}});
        self.slices
            .put(service, json!({"addressType": "IPv4", "metadata": labels, "endpoints": endpoints, "ports": ports}));
    }

    /// A Service `web` on port 80 with these pods, known to the mesh.
    pub async fn web(&self, pods: &[u8]) {
        self.service("web", "10.96.0.7", json!([{"port": 80}]));
        self.ready("web", pods, json!([{"port": 8080}]));
        self.known("web", pods.len()).await;
    }

    /// Waits until the mesh knows so many endpoints of the Service's first port.
    pub async fn known(&self, service: &str, endpoints: usize) {
        let is_known = |snapshot: &Snapshot| {
            snapshot.service("n", service).is_some_and(|service| service.ports[0].endpoints().len() == endpoints)
        };
        let mut generations = self.discovery.subscribe();
        let known = async {
            while !is_known(&self.discovery.snapshot()) {
                generations.changed().await.unwrap();
            }
        };
        tokio::time::timeout(SOON, known).await.expect("discovery hears of it");
    }

    /// Something answers at this pod.
    pub fn start(&self, n: u8, what: Local) {
        self.pods.at.lock().unwrap().insert(pod(n), what);
    }

    /// A component answers at this pod of another node.
    pub fn start_elsewhere(&self, n: u8, component: Arc<dyn HttpService>) {
        self.pods.elsewhere.lock().unwrap().insert(pod(n), (Some(component), 0));
    }

    /// This pod is on another node; what it says to datagrams is up to that one ([`Pods::other`]).
    pub fn is_elsewhere(&self, n: u8) {
        self.pods.elsewhere.lock().unwrap().insert(pod(n), (None, 0));
    }

    pub fn end(&self, n: u8) {
        self.pods.at.lock().unwrap().remove(&pod(n));
    }

    /// A guest's request to `http://web/`.
    pub async fn ask(&self, method: &str, body: &str) -> (u16, String) {
        self.ask_as(&Source::Unknown, method, body).await
    }

    pub async fn ask_as(&self, source: &Source, method: &str, body: &str) -> (u16, String) {
        let request = Request::builder().method(method).uri("http://web/").body(text(body.to_owned())).unwrap();
        match self.proxy.call(source, "n", request).await {
            Ok(response) => (response.status().as_u16(), read(response).await),
            Err(error) => (0, format!("{error:?}")),
        }
    }
}

pub fn pod(n: u8) -> IpAddr {
    [10, 9, 0, n].into()
}

pub fn text(text: String) -> Body {
    match text.is_empty() {
        true => crate::retry::empty(),
        false => Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync(),
    }
}

pub async fn read(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// What a component answers.
type Script = dyn Fn(Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> + Send + Sync;

/// A component that is called, and how often it was.
pub struct Called {
    pub calls: AtomicUsize,
    script: Box<Script>,
}

impl HttpService for Called {
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        self.calls.fetch_add(1, Relaxed);
        (self.script)(request)
    }
}

/// A component that answers by a script.
pub fn called<F, A>(script: F) -> (Arc<Called>, Local)
where
    F: Fn(Request<Body>) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Response<Body>, BoxError>> + Send + 'static,
{
    let called =
        Arc::new(Called { calls: AtomicUsize::new(0), script: Box::new(move |request| script(request).boxed()) });
    (called.clone(), Local::Http(called))
}

/// Answers with what it was sent.
pub fn echo() -> (Arc<Called>, Local) {
    called(|request| async move {
        let body = request.into_body().collect().await?.to_bytes();
        Ok(Response::new(text(String::from_utf8(body.to_vec())?)))
    })
}

/// A socket whose connections are handled by a script.
pub async fn listening<F, A>(script: F) -> (Local, SocketAddr)
where
    F: Fn(TcpStream) -> A + Send + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(script(stream));
        }
    });
    (Local::Tcp(address), address)
}

/// A socket at which nobody listens.
pub async fn closed() -> Local {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Local::Tcp(listener.local_addr().unwrap())
}

/// A number that is free for TCP and UDP.
pub async fn free_port() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        if tokio::net::UdpSocket::bind(("127.0.0.1", port)).await.is_ok() {
            return port;
        }
    }
}

/// A connection to a node's port, once somebody listens there.
pub async fn connect(port: u16) -> TcpStream {
    let connecting = async {
        loop {
            match TcpStream::connect(("127.0.0.1", port)).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(SOON, connecting).await.expect("the node's port is listened at")
}

/// Reads a request's headers.
pub async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

pub async fn write(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

pub const TCP: Protocol = Protocol::Tcp;
pub const UDP: Protocol = Protocol::Udp;
