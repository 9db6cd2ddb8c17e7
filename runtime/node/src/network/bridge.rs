//! Sockets for components that have none: a guest that speaks TCP to an HTTP component of another pod gets a listener
//! at that pod's twin, made when it is first wanted and closed with the pod. Whoever comes is answered by the component that
//! runs then: it may have been restarted since the listener was made. One that speaks to a pod of another node gets a listener,
//! too, whose connections go through the link to that node; it closes when nobody has wanted it for a while. So does one to a
//! Service of which such a pod would answer, or whose pods are scaled by what is asked of them: who answers is picked for each connection,
//! or request, and waited for where there is no pod.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use coracle_policy::Source;
use coracle_proxy::{
    Asker, Body, BoxError, HttpService, Local, LocalEndpoints as _, Proxy, Share, Shares, serve_stream,
};
use futures::future::BoxFuture;
use http::{Request, Response};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Table, pass};

/// Listeners at the same time, of which each namespace has a share ([`Shares`]) for what its pods ask for; beyond it one that nobody is
/// connected to is closed, or a connection is refused.
const BRIDGES_MAX: usize = 1024;
/// Listeners of one pod at ports that it does not declare: its only component answers at any port, and a guest may ask for all
/// of them. Beyond it one that nobody is connected to is closed. Ports that are declared always get theirs.
const BRIDGES_PER_POD_MAX: usize = 16;
/// Listeners that lead to pods of other nodes, shared in the same way, and those that lead to one of them. Beyond it one that nobody is
/// connected to is closed, or a connection is refused.
const ELSEWHERE_MAX: usize = 4096;
const ELSEWHERE_PER_POD_MAX: usize = 64;
/// A listener that leads to another node's pod is closed when nobody was connected to it, or asked for it, for so long.
const ELSEWHERE_IDLE_MAX: Duration = Duration::from_secs(60);
/// Connections of one listener, shared by the namespaces of those who connect, and those of one pod among them. More are reset: whoever
/// connects hears of it at once, and one pod takes no other's place, nor do those of one tenant together.
const CONNECTIONS_MAX: usize = 4096;
const CONNECTIONS_PER_POD_MAX: usize = if cfg!(test) { 8 } else { 256 };
/// The same of all listeners that lead to other nodes: a link has room for few pods that take all they get (`framing`).
const LINKED_MAX: usize = 16_384;
const LINKED_PER_POD_MAX: usize = 512;
/// A pod of another node is reached within this time.
const LINK_MAX: Duration = Duration::from_secs(5);
/// Wait after a connection could not be accepted, as when there are no more descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

pub(super) struct Bridges {
    here: Mutex<HashMap<SocketAddr, Bridge>>,
    elsewhere: Mutex<HashMap<SocketAddr, Bridge>>,
    /// Pods of other nodes by the sockets that lead there.
    leads: Mutex<HashMap<SocketAddr, SocketAddr>>,
    /// Who is connected to other nodes.
    linked: Arc<Places>,
    /// For which namespaces' pods the listeners are there.
    here_for: Arc<Shares<Arc<str>>>,
    elsewhere_for: Arc<Shares<Arc<str>>>,
}

impl Default for Bridges {
    fn default() -> Bridges {
        let (here, elsewhere, leads) = Default::default();
        Bridges {
            here,
            elsewhere,
            leads,
            linked: Arc::new(Places::new(LINKED_MAX, LINKED_PER_POD_MAX)),
            here_for: Shares::new(BRIDGES_MAX),
            elsewhere_for: Shares::new(ELSEWHERE_MAX),
        }
    }
}

struct Bridge {
    at: SocketAddr,
    stop: CancellationToken,
    places: Arc<Places>,
    /// When somebody asked for it last.
    asked: Instant,
    /// Of whose share it is: of the namespace for which it was made.
    share: Share<Arc<str>>,
}

impl Bridge {
    fn is_idle(&self) -> bool {
        self.places.taken.lock().is_empty()
    }
}

/// Who is connected: pods by their addresses, and their namespaces.
struct Places {
    taken: Mutex<HashMap<IpAddr, usize>>,
    shares: Arc<Shares<Arc<str>>>,
    pod_max: usize,
}

impl Default for Places {
    /// Those of a listener.
    fn default() -> Places {
        Places::new(CONNECTIONS_MAX, CONNECTIONS_PER_POD_MAX)
    }
}

/// The place of a connection, given back with it.
struct Place {
    places: Arc<Places>,
    pod: IpAddr,
    _share: Share<Arc<str>>,
}

impl Places {
    fn new(max: usize, pod_max: usize) -> Places {
        Places { taken: Mutex::default(), shares: Shares::new(max), pod_max }
    }

    fn take(self: &Arc<Self>, pod: IpAddr, namespace: &Arc<str>) -> Option<Place> {
        let share = self.shares.take(namespace.clone(), 1)?;
        let mut taken = self.taken.lock();
        let own = taken.entry(pod).or_default();
        if *own >= self.pod_max {
            return None;
        }
        *own += 1;
        Some(Place { places: self.clone(), pod, _share: share })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        if let Some(own) = taken.get_mut(&self.pod) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.pod);
            }
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Bridges {
    /// The socket at `at` that leads to the component of the pod's `endpoint`; one that is made is made for a namespace.
    pub fn open(
        &self,
        endpoint: SocketAddr,
        at: SocketAddr,
        namespace: &Arc<str>,
        (table, proxy): (&Arc<Table>, &Proxy),
    ) -> Option<SocketAddr> {
        let mut bridges = self.here.lock();
        if let Some(bridge) = bridges.get(&endpoint) {
            return Some(bridge.at);
        }
        if !table.is_declared(endpoint) {
            let undeclared = |other: &SocketAddr| other.ip() == endpoint.ip() && !table.is_declared(*other);
            let own: Vec<_> = bridges.iter().filter(|(other, _)| undeclared(other)).collect();
            if own.len() >= BRIDGES_PER_POD_MAX {
                let idle = own.iter().find(|(_, bridge)| bridge.is_idle()).map(|(other, _)| **other)?;
                bridges.remove(&idle);
            }
        }
        let share = self.here_for.take(namespace.clone(), 1).or_else(|| {
            let idle = idle(&bridges, &self.here_for, namespace, |_| true)?;
            bridges.remove(&idle);
            self.here_for.take(namespace.clone(), 1)
        })?;
        let component = present(table, endpoint);
        let way = Way { table: table.clone(), proxy: proxy.clone(), endpoint };
        let bridge = Bridge::open(at, Leads::ToComponent(way, component), share)?;
        bridges.insert(endpoint, bridge);
        Some(at)
    }

    /// A socket of this process that leads to a pod of another node.
    pub fn open_elsewhere(
        self: &Arc<Self>,
        endpoint: SocketAddr,
        namespace: &Arc<str>,
        of: (&Arc<Table>, &Proxy),
    ) -> Option<SocketAddr> {
        self.open_link(endpoint, namespace, of, Leads::Elsewhere)
    }

    /// A socket of this process that leads to whoever answers for a Service's address and port, as soon as somebody does.
    pub fn open_service(
        self: &Arc<Self>,
        to: SocketAddr,
        namespace: &Arc<str>,
        of: (&Arc<Table>, &Proxy),
    ) -> Option<SocketAddr> {
        self.open_link(to, namespace, of, Leads::Service)
    }

    fn open_link(
        self: &Arc<Self>,
        endpoint: SocketAddr,
        namespace: &Arc<str>,
        (table, proxy): (&Arc<Table>, &Proxy),
        leads: fn(Weak<Bridges>, Way) -> Leads,
    ) -> Option<SocketAddr> {
        let mut bridges = self.elsewhere.lock();
        if let Some(bridge) = bridges.get_mut(&endpoint) {
            bridge.asked = Instant::now();
            return Some(bridge.at);
        }
        let of_pod = bridges.keys().filter(|other| other.ip() == endpoint.ip()).count();
        let close = |bridges: &mut HashMap<SocketAddr, Bridge>, may_go: &dyn Fn(&SocketAddr) -> bool| {
            let idle = idle(bridges, &self.elsewhere_for, namespace, may_go)?;
            let bridge = bridges.remove(&idle)?;
            self.leads.lock().remove(&bridge.at);
            Some(())
        };
        if of_pod >= ELSEWHERE_PER_POD_MAX {
            // It only says who goes: those of one tenant that are in use keep no other from the pod. Namespaces have shares.
            let _ = close(&mut bridges, &|other| other.ip() == endpoint.ip());
        }
        let share = self.elsewhere_for.take(namespace.clone(), 1).or_else(|| {
            close(&mut bridges, &|_| true)?;
            self.elsewhere_for.take(namespace.clone(), 1)
        })?;
        let way = Way { table: table.clone(), proxy: proxy.clone(), endpoint };
        let bridge = Bridge::open(SocketAddr::new(table.links(), 0), leads(Arc::downgrade(self), way), share)?;
        let at = bridge.at;
        self.leads.lock().insert(at, endpoint);
        bridges.insert(endpoint, bridge);
        Some(at)
    }

    /// The pod of another node, or the Service, to which this socket leads.
    pub fn elsewhere(&self, at: SocketAddr) -> Option<SocketAddr> {
        self.leads.lock().get(&at).copied()
    }

    /// Closes the one that leads there, if nobody has wanted it for long; says whether it is closed.
    fn close_idle(&self, endpoint: SocketAddr, now: Instant) -> bool {
        let mut bridges = self.elsewhere.lock();
        let Some(bridge) = bridges.get(&endpoint) else { return true };
        let is_over = bridge.is_idle() && now.duration_since(bridge.asked) >= ELSEWHERE_IDLE_MAX;
        if is_over {
            self.leads.lock().remove(&bridge.at);
            bridges.remove(&endpoint);
        }
        is_over
    }

    /// Closes those of a pod.
    pub fn close(&self, address: IpAddr) {
        let mut bridges = self.here.lock();
        if !bridges.is_empty() {
            bridges.retain(|endpoint, _| endpoint.ip() != address);
        }
    }
}

/// One that nobody is connected to and that may go: of this namespace, if it has one, else of one that has more than it.
fn idle(
    bridges: &HashMap<SocketAddr, Bridge>,
    shares: &Shares<Arc<str>>,
    namespace: &Arc<str>,
    may_go: impl Fn(&SocketAddr) -> bool,
) -> Option<SocketAddr> {
    let idle = || bridges.iter().filter(|(other, bridge)| may_go(other) && bridge.is_idle());
    let own = idle().find(|(_, bridge)| bridge.share.by() == namespace);
    let more = || {
        let has = shares.of(&**namespace);
        idle().find(|(_, bridge)| shares.of(&**bridge.share.by()) > has)
    };
    own.or_else(more).map(|(other, _)| *other)
}

impl Bridge {
    fn open(at: SocketAddr, leads: Leads, share: Share<Arc<str>>) -> Option<Bridge> {
        let listen = || -> std::io::Result<(tokio::net::TcpListener, SocketAddr)> {
            let listener = std::net::TcpListener::bind(at)?;
            if !coracle_proxy::is_spare(&listener) {
                return Err(std::io::ErrorKind::QuotaExceeded.into());
            }
            listener.set_nonblocking(true)?;
            let at = listener.local_addr()?;
            Ok((tokio::net::TcpListener::from_std(listener)?, at))
        };
        let (listener, at) = listen().inspect_err(|error| tracing::debug!(%at, %error, "bridge")).ok()?;
        let stop = CancellationToken::new();
        let places = Arc::<Places>::default();
        tokio::spawn(accept(listener, leads, places.clone(), stop.clone()));
        Some(Bridge { at, stop, places, asked: Instant::now(), share })
    }
}

/// Where a listener's connections go.
#[derive(Clone)]
enum Leads {
    ToComponent(Way, Arc<dyn HttpService>),
    Elsewhere(Weak<Bridges>, Way),
    Service(Weak<Bridges>, Way),
}

/// To an endpoint or a Service, and who asks whether it may be gone.
#[derive(Clone)]
struct Way {
    table: Arc<Table>,
    proxy: Proxy,
    endpoint: SocketAddr,
}

impl Way {
    /// Who is connected from there: a pod, or somebody of this machine whom no rule can name.
    fn source(&self, from: IpAddr) -> Source {
        self.table.pod_of_twin(from).map_or(Source::Unknown, |pod| self.table.source(pod))
    }

    /// His namespace; all who have none are one.
    fn namespace(&self, from: IpAddr) -> Arc<str> {
        match self.source(from) {
            Source::Pod(pod) => pod.namespace.clone(),
            Source::Outside(_) | Source::Node | Source::Unknown => Arc::from(""),
        }
    }
}

impl Leads {
    fn way(&self) -> &Way {
        let (Leads::ToComponent(way, _) | Leads::Elsewhere(_, way) | Leads::Service(_, way)) = self;
        way
    }

    /// Whether somebody at this address may connect at all. What leads out of this machine is for pods: what else could be judged?
    fn is_for(&self, from: IpAddr) -> bool {
        match self {
            Leads::ToComponent(..) => true,
            Leads::Elsewhere(_, way) | Leads::Service(_, way) => way.table.pod_of_twin(from).is_some(),
        }
    }

    async fn pass(self, stream: tokio::net::TcpStream, from: IpAddr) -> Result<(), BoxError> {
        match self {
            Leads::ToComponent(way, service) => {
                let service = way.proxy.guarded(way.source(from), way.endpoint, service);
                serve_stream(stream, service).await
            }
            Leads::Elsewhere(_, way) => {
                let (source, Way { table, proxy, endpoint }) = (way.source(from), way);
                let place = table.enter_elsewhere(endpoint, Asker::Pod(table.pod_of_twin(from).unwrap_or(from)));
                let called = Notify::new();
                let there = async {
                    if place.is_none() {
                        return Err(io::ErrorKind::QuotaExceeded.into());
                    }
                    let connecting = proxy.connect_elsewhere(endpoint, source.clone());
                    let there = tokio::time::timeout(LINK_MAX, connecting).await??;
                    if there.is_called {
                        called.notify_one();
                    }
                    Ok(there.stream)
                };
                // A component's node judges each request, by what it was told of who connects.
                let other = async {
                    called.notified().await;
                    proxy.until_other(&source, table.relabelled()).await;
                };
                // A pod that does not answer is a reset, too: nothing else can be told to who is connected already.
                tokio::select! {
                    passed = pass(stream, there) => Ok(passed?),
                    () = other => Err("it is another to policies than when it connected".into()),
                }
            }
            Leads::Service(_, way) => {
                let (source, asker) = (way.source(from), Asker::Pod(way.table.pod_of_twin(from).unwrap_or(from)));
                way.proxy.pass_on(source, way.endpoint, asker, stream).await
            }
        }
    }
}

impl Leads {
    /// Waits, and says whether the listener is closed because nobody wants it any more.
    async fn rests(&self) -> bool {
        let (Leads::Elsewhere(bridges, Way { endpoint, .. }) | Leads::Service(bridges, Way { endpoint, .. })) = self
        else {
            return std::future::pending().await;
        };
        tokio::time::sleep(ELSEWHERE_IDLE_MAX).await;
        bridges.upgrade().is_none_or(|bridges| bridges.close_idle(*endpoint, Instant::now()))
    }
}

/// Whoever answers at an endpoint of this node at present.
pub(super) fn present(table: &Arc<Table>, endpoint: SocketAddr) -> Arc<dyn HttpService> {
    Arc::new(Present { table: table.clone(), endpoint, life: table.life(endpoint.ip()) })
}

/// The component that answers at an endpoint at present, as long as the pod is the one that had the address at first.
struct Present {
    table: Arc<Table>,
    endpoint: SocketAddr,
    life: Option<CancellationToken>,
}

impl HttpService for Present {
    fn call(&self, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
        let found = self.table.lookup(self.endpoint.ip(), self.endpoint.port());
        // Asked afterwards: what was found is this pod's, if it has the address still.
        let is_its = self.life.as_ref().is_some_and(|life| !life.is_cancelled());
        match found.filter(|_| is_its) {
            Some(Local::Http(service)) => service.call(request),
            _ => {
                let error = format!("no component answers at {} now", self.endpoint);
                Box::pin(async move { Err(error.into()) })
            }
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, leads: Leads, places: Arc<Places>, stop: CancellationToken) {
    loop {
        // Waiting is all that is cut here.
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
            is_over = leads.rests() => match is_over {
                true => return,
                false => continue,
            },
        };
        let Ok((stream, from)) = accepted else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let namespace = leads.way().namespace(from.ip());
        let place =
            places.take(from.ip(), &namespace).filter(|_| leads.is_for(from.ip()) && coracle_proxy::is_spare(&stream));
        let linked = match &leads {
            Leads::Elsewhere(bridges, ..) | Leads::Service(bridges, ..) => {
                bridges.upgrade().map(|bridges| bridges.linked.take(from.ip(), &namespace))
            }
            Leads::ToComponent(..) => None,
        };
        let (Some(place), None | Some(Some(_))) = (place, &linked) else {
            let _ = stream.set_zero_linger();
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (leads, stop) = (leads.clone(), stop.clone());
        tokio::spawn(async move {
            // The connection ends with the pod.
            tokio::select! {
                result = leads.pass(stream, from.ip()) => if let Err(error) = result {
                    tracing::trace!(%error, "bridge connection");
                },
                () = stop.cancelled() => {}
            }
            drop((place, linked));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addresses::Addresses;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    struct Says(&'static str);

    impl HttpService for Says {
        fn call(&self, _: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
            let text = self.0;
            Box::pin(async move { Ok(Response::new(coracle_engine::full(text.to_owned()))) })
        }
    }

    /// One that no API server tells anything.
    fn proxy(table: &Arc<Table>) -> Proxy {
        let nobody = tower::service_fn(|_: Request<kube::client::Body>| async {
            Err::<Response<kube::client::Body>, _>(io::Error::from(io::ErrorKind::NotConnected))
        });
        let client = kube::Client::new(nobody, "default");
        let (discovery, policies) =
            (coracle_discovery::Discovery::new(client.clone()), coracle_discovery::Policies::new(client));
        Proxy::new(discovery, policies, table.clone())
    }

    async fn ask(at: SocketAddr) -> String {
        let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn leads_to_the_component_that_runs_now_and_has_bounds() {
        let addresses = Addresses::new("10.1.0.0/24".parse().unwrap()).unwrap();
        let table = Arc::new(Table::new(addresses, Box::new(|_, _| {})));
        let pod = table.allocate(None).unwrap();
        let proxy = proxy(&table);
        let bridges = Bridges::default();
        let endpoint = |port| SocketAddr::new(pod.pod, port);
        let own: Arc<str> = Arc::from("n");
        let open = |port: u16| {
            bridges.open(endpoint(port), SocketAddr::new(pod.loopback, 20_000 + port), &own, (&table, &proxy))
        };
        table.serve(pod.pod, 0, Box::new([80]), Arc::new(Says("first life")));
        let at = open(80).unwrap();
        assert!(ask(at).await.ends_with("first life"));
        // The container was restarted: nobody opens anything anew.
        table.stop(pod.pod, 0);
        assert!(ask(at).await.starts_with("HTTP/1.1 50"));
        table.serve(pod.pod, 0, Box::new([80]), Arc::new(Says("second life")));
        assert!(ask(at).await.ends_with("second life"));
        assert_eq!(open(80), Some(at));
        assert!((0..100).all(|port| open(100 + port).is_some()), "idle ones make room");
        let count = || bridges.here.lock().len();
        assert_eq!(count(), BRIDGES_PER_POD_MAX + 1, "a guest that knocks at every port gets no listener for each");
        // Somebody is connected to every one of them.
        for bridge in bridges.here.lock().values() {
            std::mem::forget(bridge.places.take(pod.loopback, &own).unwrap());
        }
        assert_eq!(open(300), None);
        table.serve(pod.pod, 0, Box::new([80, 301]), Arc::new(Says("third life")));
        assert!(open(301).is_some(), "a declared port gets its own");
        bridges.close(pod.pod);
        assert!(open(200).is_some());
    }

    #[tokio::test]
    async fn a_pod_that_gets_the_address_of_another_is_not_called_in_its_place() {
        let addresses = Addresses::new("10.1.0.0/24".parse().unwrap()).unwrap();
        let table = Arc::new(Table::new(addresses, Box::new(|_, _| {})));
        let first = table.allocate(None).unwrap();
        let endpoint = SocketAddr::new(first.pod, 80);
        table.serve(first.pod, 0, Box::new([80]), Arc::new(Says("first")));
        let present = present(&table, endpoint);
        let ask = async || {
            let request = Request::get("/").body(coracle_engine::empty()).unwrap();
            present.call(request).await.map(drop).is_ok()
        };
        assert!(ask().await);
        // Its container is restarted, and then the pod has gone.
        table.stop(first.pod, 0);
        assert!(!ask().await);
        table.serve(first.pod, 0, Box::new([80]), Arc::new(Says("first again")));
        assert!(ask().await);
        let life = table.life(first.pod).unwrap();
        table.release(first.pod);
        assert!(life.is_cancelled());
        let second = table.allocate(Some(first.pod)).unwrap();
        assert_eq!(second.pod, first.pod);
        table.serve(second.pod, 0, Box::new([80]), Arc::new(Says("second")));
        assert!(!ask().await, "it is another pod's");
    }

    #[tokio::test]
    async fn one_to_another_node_closes_when_nobody_has_wanted_it_for_long() {
        let addresses = Addresses::new("10.1.0.0/24".parse().unwrap()).unwrap();
        let table = Arc::new(Table::new(addresses, Box::new(|_, _| {})));
        let proxy = proxy(&table);
        let bridges: Arc<Bridges> = Arc::default();
        let (one, two) = (SocketAddr::from(([10, 2, 0, 1], 80)), SocketAddr::from(([10, 2, 0, 2], 80)));
        let own: Arc<str> = Arc::from("n");
        let at = bridges.open_elsewhere(one, &own, (&table, &proxy)).unwrap();
        bridges.open_elsewhere(two, &own, (&table, &proxy)).unwrap();
        let place = bridges.elsewhere.lock()[&two].places.take(one.ip(), &own).unwrap();
        let now = Instant::now();
        assert!(!bridges.close_idle(one, now), "it was asked for a moment ago");
        let later = now + ELSEWHERE_IDLE_MAX;
        assert!(!bridges.close_idle(two, later), "somebody is connected");
        assert!(bridges.close_idle(one, later));
        assert_eq!((bridges.elsewhere(at), bridges.leads.lock().len()), (None, 1));
        drop(place);
        assert!(bridges.close_idle(two, later) && bridges.elsewhere.lock().is_empty());
    }

    /// A connection from this address that was answered and stays.
    async fn kept(at: SocketAddr, from: [u8; 4]) -> std::io::Result<tokio::net::TcpStream> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((from, 0)))?;
        let mut stream = socket.connect(at).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        stream.read_u8().await.map(|_| stream)
    }

    #[tokio::test]
    async fn a_pod_that_has_its_share_of_a_listener_is_told_and_others_have_theirs() {
        let addresses = Addresses::new("10.1.0.0/24".parse().unwrap()).unwrap();
        let table = Arc::new(Table::new(addresses, Box::new(|_, _| {})));
        let pod = table.allocate(None).unwrap();
        let proxy = proxy(&table);
        let bridges = Bridges::default();
        table.serve(pod.pod, 0, Box::new([80]), Arc::new(Says("it")));
        let own: Arc<str> = Arc::from("n");
        let (endpoint, socket) = (SocketAddr::new(pod.pod, 80), SocketAddr::new(pod.loopback, 20_081));
        let at = bridges.open(endpoint, socket, &own, (&table, &proxy)).unwrap();
        let asked = async {
            let (one, other) = ([127, 0, 0, 1], [127, 0, 0, 2]);
            let mut all = Vec::new();
            for _ in 0..CONNECTIONS_PER_POD_MAX {
                all.push(kept(at, one).await.unwrap());
            }
            assert!(kept(at, one).await.is_err(), "it has more than its share");
            assert!(kept(at, other).await.is_ok(), "another pod waits for nobody");
            all.pop();
            // Its place is free when the listener has seen that it went.
            while kept(at, one).await.is_err() {}
        };
        tokio::time::timeout(Duration::from_secs(60), asked).await.expect("nobody is left waiting");
        let (full, pods) = (Arc::<Places>::default(), |n: usize| IpAddr::from((n as u32).to_be_bytes()));
        let places: Vec<_> = (0..CONNECTIONS_MAX).filter_map(|n| full.take(pods(n), &format!("n{n}").into())).collect();
        assert!((CONNECTIONS_MAX - 8..CONNECTIONS_MAX).contains(&places.len()), "the bound of all");
        drop(places);
        let places: Vec<_> = (0..CONNECTIONS_MAX).filter_map(|n| full.take(pods(n), &own)).collect();
        assert!(places.len() < CONNECTIONS_MAX / 2, "many pods of one tenant are one tenant");
        assert!(full.take(pods(0), &Arc::from("other")).is_some());
        drop(places);
        assert!(full.taken.lock().is_empty());
    }

    #[tokio::test]
    async fn a_tenant_whose_pods_want_all_listeners_has_a_share_of_them() {
        let addresses = Addresses::new("10.1.0.0/24".parse().unwrap()).unwrap();
        let table = Arc::new(Table::new(addresses, Box::new(|_, _| {})));
        let (proxy, bridges) = (proxy(&table), Arc::<Bridges>::default());
        let (greedy, other): (Arc<str>, Arc<str>) = (Arc::from("greedy"), Arc::from("other"));
        // All but little is taken, as if there were as many sockets.
        let all = [
            bridges.here_for.take(greedy.clone(), BRIDGES_MAX / 3).unwrap(),
            bridges.elsewhere_for.take(greedy.clone(), ELSEWHERE_MAX / 3).unwrap(),
        ];
        let pod = table.allocate(None).unwrap();
        let to = |ip: IpAddr, namespace: &Arc<str>| SocketAddr::new(ip, if *namespace == greedy { 80 } else { 81 });
        let elsewhere = |namespace: &Arc<str>| {
            bridges.open_elsewhere(to([10, 2, 0, 1].into(), namespace), namespace, (&table, &proxy))
        };
        let here = |namespace: &Arc<str>| {
            let at = SocketAddr::new(pod.loopback, to(pod.pod, namespace).port() + 20_002);
            bridges.open(to(pod.pod, namespace), at, namespace, (&table, &proxy))
        };
        // Of the share one or two are left, as it is counted.
        let rest = [&bridges.here_for, &bridges.elsewhere_for]
            .map(|shares| std::iter::from_fn(|| shares.take(greedy.clone(), 1)).collect::<Vec<_>>());
        assert_eq!((here(&greedy), elsewhere(&greedy)), (None, None));
        assert!(here(&other).is_some() && elsewhere(&other).is_some());
        // Nor does who is at its bound close what others have, though nobody uses it at the moment.
        assert_eq!((here(&greedy), elsewhere(&greedy)), (None, None));
        assert_eq!((bridges.here.lock().len(), bridges.elsewhere.lock().len()), (1, 1));
        drop((all, rest));
        assert!(bridges.here_for.of(&*greedy) == 0 && bridges.here_for.of(&*other) == 1);
        bridges.close(pod.pod);
        assert_eq!(bridges.here_for.of(&*other), 0, "it is given back with the listener");
    }

    /// Nobody answers there: an orderly end would be an empty answer.
    #[tokio::test]
    async fn one_to_a_pod_that_is_not_reached_is_reset() {
        let addresses = Addresses::new("10.1.0.0/24".parse().unwrap()).unwrap();
        let table = Arc::new(Table::new(addresses, Box::new(|_, _| {})));
        let bridges = Arc::<Bridges>::default();
        let endpoint = SocketAddr::from(([10, 2, 0, 1], 80));
        let at = bridges.open_elsewhere(endpoint, &Arc::from("n"), (&table, &proxy(&table))).unwrap();
        let pod = table.allocate(None).unwrap();
        let read = async {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind(SocketAddr::new(pod.loopback, 0))?;
            socket.connect(at).await?.read_u8().await
        };
        let read = tokio::time::timeout(Duration::from_secs(30), read).await.expect("it ends");
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        // Who is no pod could not be judged.
        let way = Way { table: table.clone(), proxy: proxy(&table), endpoint };
        let (stranger, own) = (IpAddr::from([127, 0, 0, 1]), pod.loopback);
        assert_eq!(way.source(stranger), Source::Unknown);
        for leads in [Leads::Elsewhere, Leads::Service] {
            let leads = leads(Arc::downgrade(&bridges), way.clone());
            assert!(leads.is_for(own) && !leads.is_for(stranger));
        }
        table.release(pod.pod);
        assert!(!Leads::Elsewhere(Arc::downgrade(&bridges), way).is_for(own), "it has gone");
    }
}
