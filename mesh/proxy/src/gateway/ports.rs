//! Ports of Gateways: which they are, their listeners say, and they come and go. A port at which the node serves Ingresses is theirs,
//! too, if the same is spoken there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use coracle_discovery::gateway_api::{PORTS_MAX, PortState, PortStates, Protocol as Spoken};
use coracle_discovery::{Gateways, Ports, Protocol, Wants};
use futures::future::join_all;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::under_way::UnderWay;
use super::{Certificates, Inbound, connection, tls};
use crate::Proxy;
use crate::accept::{self, DRAIN, Door, RETRY_FIRST, RETRY_MAX};
use crate::opening::Turn;

/// Routes of Gateways, and the certificates of their listeners.
#[derive(Clone)]
pub struct GatewayRoutes {
    /// Where requests go.
    pub routes: Gateways,
    /// Certificates by their Secrets.
    pub certificates: Arc<Certificates>,
}

/// A port at which the node serves Ingresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnPort {
    /// Its address.
    pub address: SocketAddr,
    /// Whether TLS is spoken there.
    pub has_tls: bool,
    /// Whether it is open; `None` while that is not known.
    pub is_open: Option<bool>,
}

/// Told of a port that cannot be opened, once.
pub type Failed = Box<dyn Fn(u16, &io::Error) + Send + Sync>;

/// A port that listeners want.
struct Wanted<'a> {
    port: u16,
    spoken: Spoken,
    by: &'a [Wants],
}

/// What is to be done about the ports of Gateways.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    /// To be listened at by themselves.
    open: BTreeMap<u16, Spoken>,
    /// Those that the node has anyway, and whether it serves them there.
    own: BTreeMap<u16, bool>,
    /// Too many, those of the oldest Gateways first.
    beyond: Vec<u16>,
}

/// Ports that are open stay so: nobody loses one to a Gateway that comes later. New ones are those of the oldest Gateways, and of one
/// namespace half of all at most: it leaves as many for others.
fn plan<'a>(
    wanted: impl Iterator<Item = Wanted<'a>>,
    own: &[OwnPort],
    bind: IpAddr,
    is_open: impl Fn(u16) -> bool,
    ports_max: usize,
) -> Plan {
    let mut plan = Plan::default();
    let mut shares: HashMap<&str, usize> = HashMap::new();
    let mut new: Vec<(usize, &str, u16, Spoken)> = Vec::new();
    for Wanted { port, spoken, by } in wanted {
        let is_near = |of: &&OwnPort| {
            let ip = of.address.ip();
            of.address.port() == port && (ip == bind || ip.is_unspecified() || bind.is_unspecified())
        };
        match own.iter().find(is_near) {
            // Whether it can be had is not known yet.
            Some(OwnPort { is_open: None, .. }) => {}
            Some(OwnPort { is_open: Some(is_open), has_tls, .. }) => {
                plan.own.insert(port, *is_open && *has_tls == (spoken == Spoken::Https));
            }
            None if is_open(port) => {
                plan.open.insert(port, spoken);
                if let Some(oldest) = by.first() {
                    *shares.entry(&oldest.namespace).or_default() += 1;
                }
            }
            None => new.extend(by.iter().map(|of| (of.age, &*of.namespace, port, spoken))),
        }
    }
    new.sort_unstable_by_key(|(age, _, port, _)| (*age, *port));
    let mut beyond = Vec::new();
    for (_, namespace, port, spoken) in new {
        // Another namespace wants it, too, and has had room.
        if plan.open.contains_key(&port) {
            continue;
        }
        let share = shares.entry(namespace).or_default();
        if plan.open.len() >= ports_max || *share >= ports_max / 2 {
            beyond.push(port);
            continue;
        }
        *share += 1;
        plan.open.insert(port, spoken);
    }
    let mut told = HashSet::new();
    beyond.retain(|port| !plan.open.contains_key(port) && told.insert(*port));
    plan.beyond = beyond;
    plan
}

struct Opened {
    spoken: Spoken,
    stop: CancellationToken,
    /// Has the socket until its end.
    accepting: JoinHandle<()>,
}

struct Failure {
    wait: Duration,
    again: Instant,
}

/// The ports that are open for Gateways.
struct Listeners {
    proxy: Proxy,
    bind: IpAddr,
    of: GatewayRoutes,
    failed: Failed,
    open: HashMap<u16, Opened>,
    failures: HashMap<u16, Failure>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Proxy {
    /// Serves Gateways at the ports of their listeners until shutdown, `own` ports aside, where [`Proxy::serve`] does. What has become of
    /// them [`Proxy::gateway_ports`] tells.
    pub async fn serve_gateways(
        self,
        bind: IpAddr,
        of: GatewayRoutes,
        mut own: watch::Receiver<Vec<OwnPort>>,
        failed: Failed,
        shutdown: CancellationToken,
    ) {
        // Services have what they had before.
        let (opening, mut turns) = (self.opening.clone(), self.opening.subscribe());
        let come = async { turns.wait_for(|turn| *turn != Turn::Held).await.is_ok() };
        // Waiting is all that is cut here.
        tokio::select! {
            _ = come => {}
            () = shutdown.cancelled() => return,
        }
        let mut generations = of.routes.subscribe();
        let states = self.gateway_ports.clone();
        let mut listeners = Listeners {
            proxy: self,
            bind,
            of,
            failed,
            open: HashMap::new(),
            failures: HashMap::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        loop {
            generations.borrow_and_update();
            let own_ports = own.borrow_and_update().clone();
            let ports = listeners.of.routes.ports();
            let (now, retry_at) = listeners.update(&ports, &own_ports).await;
            states.send_if_modified(|before| {
                let is_new = *before != now;
                *before = now;
                is_new
            });
            if ports.generation > 0 {
                opening.all();
            }
            let retry = async {
                match retry_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // Waiting is all that is cut here.
            tokio::select! {
                changed = generations.changed() => if changed.is_err() { break },
                Ok(()) = own.changed() => {}
                () = retry => {}
                () = shutdown.cancelled() => break,
            }
        }
        listeners.stop.cancel();
        listeners.tasks.close();
        let _ = tokio::time::timeout(DRAIN, listeners.tasks.wait()).await;
    }

    /// Ports of Gateways, and what has become of them.
    pub fn gateway_ports(&self) -> watch::Receiver<PortStates> {
        self.gateway_ports.subscribe()
    }
}

impl Listeners {
    /// Opens and closes ports; says what has become of them, and when one that is taken should be tried again.
    async fn update(&mut self, ports: &Ports, own: &[OwnPort]) -> (PortStates, Option<Instant>) {
        let all = ports.all().map(|(port, of)| Wanted { port, spoken: of.protocol, by: &of.wanted_by });
        let is_open = |port| self.open.contains_key(&port);
        let Plan { open: wanted, own, beyond } = plan(all, own, self.bind, is_open, PORTS_MAX);
        let closed = self.open.extract_if(|port, opened| wanted.get(port) != Some(&opened.spoken));
        // A port at which something else is spoken now is opened anew: by then nobody has it.
        join_all(closed.map(|(_, opened)| {
            opened.stop.cancel();
            opened.accepting
        }))
        .await;
        self.failures.retain(|port, _| wanted.contains_key(port));
        let state = |is_open| if is_open { PortState::Open } else { PortState::Taken };
        let mut states: BTreeMap<u16, PortState> =
            own.into_iter().map(|(port, is_open)| (port, state(is_open))).collect();
        let now = Instant::now();
        for (port, spoken) in wanted {
            let is_due = self.failures.get(&port).is_none_or(|failure| failure.again <= now);
            if !self.open.contains_key(&port) && is_due {
                self.open(port, spoken).await;
            }
            states.insert(port, state(self.open.contains_key(&port)));
        }
        let states = PortStates { ports: states, has_beyond: !beyond.is_empty() };
        (states, self.failures.values().map(|failure| failure.again).min())
    }

    async fn open(&mut self, port: u16, spoken: Spoken) {
        let socket = match TcpListener::bind(SocketAddr::new(self.bind, port)).await {
            Ok(socket) => socket,
            Err(error) => {
                let wait = match self.failures.get(&port) {
                    Some(failure) => (failure.wait * 2).min(RETRY_MAX),
                    None => {
                        (self.failed)(port, &error);
                        RETRY_FIRST
                    }
                };
                self.failures.insert(port, Failure { wait, again: Instant::now() + wait });
                return;
            }
        };
        self.failures.remove(&port);
        let stop = self.stop.child_token();
        let tls = (spoken == Spoken::Https).then(|| tls::server(None, Some((self.of.clone(), port))).into());
        let inbound = Arc::new(Inbound {
            proxy: self.proxy.clone(),
            routes: None,
            gateways: Some(self.of.clone()),
            tls,
            port,
            requests: UnderWay::default(),
            secure_port: None,
            stop: stop.clone(),
        });
        let door = Door {
            key: (port, Protocol::Tcp),
            stop: stop.clone(),
            tasks: self.tasks.clone(),
            places: self.proxy.places.clone(),
            whose: Arc::new(|| None::<Arc<str>>),
        };
        let serve = move |stream, client, turns| connection(inbound.clone(), stream, client, turns);
        let accepting = self.tasks.spawn(accept::accept(door, socket, serve));
        self.open.insert(port, Opened { spoken, stop, accepting });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_the_node_s_own_is_shared_if_the_same_is_spoken_there() {
        let own = |text: &str, has_tls, is_open| OwnPort { address: text.parse().unwrap(), has_tls, is_open };
        let bind: IpAddr = "127.0.0.1".parse().unwrap();
        let by = [Wants { age: 0, namespace: "n".into() }];
        let wanted = || {
            let all = [(80, Spoken::Http), (443, Spoken::Https), (8080, Spoken::Http)].into_iter();
            all.map(|(port, spoken)| Wanted { port, spoken, by: &by })
        };
        for (own, opens, shares) in [
            (vec![], vec![80, 443, 8080], vec![]),
            (vec![own("127.0.0.1:8080", false, Some(true))], vec![80, 443], vec![(8080, true)]),
            (vec![own("0.0.0.0:8080", false, Some(true))], vec![80, 443], vec![(8080, true)]),
            (vec![own("127.0.0.9:8080", false, Some(true))], vec![80, 443, 8080], vec![]),
            (vec![own("127.0.0.1:8080", true, Some(true))], vec![80, 443], vec![(8080, false)]),
            (vec![own("127.0.0.1:443", true, Some(false))], vec![80, 8080], vec![(443, false)]),
            (vec![own("127.0.0.1:443", true, None)], vec![80, 8080], vec![]),
        ] {
            let plan = plan(wanted(), &own, bind, |_| false, 8);
            assert_eq!(plan.open.keys().copied().collect::<Vec<_>>(), opens, "{own:?}");
            assert_eq!(plan.own.into_iter().collect::<Vec<_>>(), shares, "{own:?}");
        }
    }

    /// What is open, and what beyond it, of ports that Gateways of these ages and namespaces want, of four.
    fn planned(wanted: &[(u16, &[(usize, &str)])], open: &[u16]) -> (Vec<u16>, Vec<u16>) {
        let by: Vec<Vec<Wants>> = wanted
            .iter()
            .map(|(_, by)| by.iter().map(|(age, of)| Wants { age: *age, namespace: (*of).into() }).collect())
            .collect();
        let all = wanted.iter().zip(&by).map(|((port, _), by)| Wanted { port: *port, spoken: Spoken::Http, by });
        let plan = plan(all, &[], "127.0.0.1".parse().unwrap(), |port| open.contains(&port), 4);
        (plan.open.into_keys().collect(), plan.beyond)
    }

    #[test]
    fn ports_that_are_open_stay_and_the_oldest_gateways_have_the_others() {
        let four: [(u16, &[(usize, &str)]); 4] =
            [(7, &[(0, "a")]), (8, &[(1, "b")]), (9, &[(2, "c")]), (10, &[(3, "d")])];
        let with = |young: &[(u16, &'static [(usize, &'static str)])]| [young, &four[..]].concat();
        // A lower number is no reason.
        assert_eq!(planned(&with(&[(1, &[(4, "e")])]), &[]), (vec![7, 8, 9, 10], vec![1]));
        assert_eq!(planned(&with(&[(1, &[(4, "e")])]), &[1]), (vec![1, 7, 8, 9], vec![10]));
        // What has gone makes room.
        assert_eq!(planned(&[(1, &[(4, "e")]), (8, &[(1, "b")])], &[8]), (vec![1, 8], vec![]));
    }

    #[test]
    fn a_namespace_has_half_of_all_ports() {
        let of_a: [(u16, &[(usize, &str)]); 3] = [(1, &[(0, "a")]), (2, &[(1, "a")]), (3, &[(2, "a")])];
        assert_eq!(planned(&of_a, &[]), (vec![1, 2], vec![3]));
        // Another one that wants it has it.
        let both: &[(usize, &str)] = &[(2, "a"), (3, "b")];
        assert_eq!(planned(&[of_a[0], of_a[1], (3, both), (4, &[(4, "b")])], &[]), (vec![1, 2, 3, 4], vec![]));
        // What is open counts, and stays.
        assert_eq!(planned(&of_a, &[2, 3]), (vec![2, 3], vec![1]));
        assert_eq!(planned(&of_a, &[1, 2, 3]), (vec![1, 2, 3], vec![]));
        // None of the others is forgotten, however many they are.
        let many: Vec<(u16, &[(usize, &str)])> = (1..=9).map(|port| (port, of_a[0].1)).collect();
        assert_eq!(planned(&many, &[]), (vec![1, 2], (3..=9).collect()));
    }
}
