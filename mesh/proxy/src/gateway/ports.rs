//! Ports of Gateways: which they are, their listeners say, and they come and go. A port at which the node serves Ingresses is theirs,
//! too, if the same is spoken there.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use coracle_discovery::gateway_api::Protocol as Spoken;
use coracle_discovery::{Gateways, Ports, Protocol};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Certificates, Inbound, connection, tls};
use crate::Proxy;
use crate::accept::{self, DRAIN, Door, RETRY_FIRST, RETRY_MAX};
use crate::opening::Turn;

/// Ports of Gateways that a node opens. A port beyond it is as one that somebody else has.
const PORTS_MAX: usize = 256;

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

/// What is to be done about the ports of Gateways.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    /// To be listened at by themselves.
    open: BTreeMap<u16, Spoken>,
    /// Those that the node has anyway, and whether it serves them there.
    own: BTreeMap<u16, bool>,
    /// Too many.
    beyond: Vec<u16>,
}

fn plan(wanted: impl Iterator<Item = (u16, Spoken)>, own: &[OwnPort], bind: IpAddr, ports_max: usize) -> Plan {
    let mut plan = Plan::default();
    for (port, spoken) in wanted {
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
            None if plan.open.len() >= ports_max => plan.beyond.push(port),
            None => drop(plan.open.insert(port, spoken)),
        }
    }
    plan
}

struct Opened {
    spoken: Spoken,
    stop: CancellationToken,
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

    /// Ports of Gateways, and whether they are served.
    pub fn gateway_ports(&self) -> watch::Receiver<BTreeMap<u16, bool>> {
        self.gateway_ports.subscribe()
    }
}

impl Listeners {
    /// Opens and closes ports; says what has become of them, and when one that is taken should be tried again.
    async fn update(&mut self, ports: &Ports, own: &[OwnPort]) -> (BTreeMap<u16, bool>, Option<Instant>) {
        let Plan { open: wanted, own, beyond } = plan(ports.all(), own, self.bind, PORTS_MAX);
        self.open.retain(|port, opened| {
            let stays = wanted.get(port) == Some(&opened.spoken);
            if !stays {
                opened.stop.cancel();
            }
            stays
        });
        self.failures.retain(|port, _| wanted.contains_key(port));
        let mut states = own;
        states.extend(beyond.into_iter().map(|port| (port, false)));
        let now = Instant::now();
        for (port, spoken) in wanted {
            let is_due = self.failures.get(&port).is_none_or(|failure| failure.again <= now);
            if !self.open.contains_key(&port) && is_due {
                self.open(port, spoken).await;
            }
            states.insert(port, self.open.contains_key(&port));
        }
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
            secure_port: None,
            stop: stop.clone(),
        });
        let door = Door {
            key: (port, Protocol::Tcp),
            stop: stop.clone(),
            tasks: self.tasks.clone(),
            places: self.proxy.places.clone(),
        };
        let serve = move |stream, client, turns| connection(inbound.clone(), stream, client, turns);
        self.tasks.spawn(accept::accept(door, socket, serve));
        self.open.insert(port, Opened { spoken, stop });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_the_node_s_own_is_shared_if_the_same_is_spoken_there() {
        let own = |text: &str, has_tls, is_open| OwnPort { address: text.parse().unwrap(), has_tls, is_open };
        let bind: IpAddr = "127.0.0.1".parse().unwrap();
        let wanted = || [(80, Spoken::Http), (443, Spoken::Https), (8080, Spoken::Http)].into_iter();
        for (own, opens, shares) in [
            (vec![], vec![80, 443, 8080], vec![]),
            (vec![own("127.0.0.1:8080", false, Some(true))], vec![80, 443], vec![(8080, true)]),
            (vec![own("0.0.0.0:8080", false, Some(true))], vec![80, 443], vec![(8080, true)]),
            (vec![own("127.0.0.9:8080", false, Some(true))], vec![80, 443, 8080], vec![]),
            (vec![own("127.0.0.1:8080", true, Some(true))], vec![80, 443], vec![(8080, false)]),
            (vec![own("127.0.0.1:443", true, Some(false))], vec![80, 8080], vec![(443, false)]),
            (vec![own("127.0.0.1:443", true, None)], vec![80, 8080], vec![]),
        ] {
            let plan = plan(wanted(), &own, bind, 8);
            assert_eq!(plan.open.keys().copied().collect::<Vec<_>>(), opens, "{own:?}");
            assert_eq!(plan.own.into_iter().collect::<Vec<_>>(), shares, "{own:?}");
        }
        assert_eq!(plan(wanted(), &[], bind, 2).beyond, [8080]);
    }
}
