//! Sockets of unmodified programs in a pod's network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Printed, component, engine, get, ok, soon, spec};
use crate::{Command, Exit, HttpOptions, Network, Protocol, Refused, RequestError, Resolved, SocketUse, Spec};

/// A pod that is 10.244.0.N to others and 127.77.0.N to the kernel; `server.default.svc` is 10.96.0.1, and leads to pod 2.
struct Pod(u8);

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

fn twin(pod: u8) -> IpAddr {
    Ipv4Addr::new(127, 77, 0, pod).into()
}

impl Network for Pod {
    fn bind(&self, wanted: SocketAddr, _: Protocol) -> Result<SocketAddr, Refused> {
        Ok((twin(self.0), wanted.port()).into())
    }

    fn connect(&self, wanted: SocketAddr, _: Protocol) -> Result<SocketAddr, Refused> {
        match wanted.ip() {
            ip if ip == SERVICE => Ok((twin(2), wanted.port()).into()),
            _ => Err(Refused::NoEndpoint),
        }
    }

    fn shown(&self, actual: SocketAddr) -> SocketAddr {
        match actual.ip() {
            IpAddr::V4(ip) if ip.octets()[..3] == [127, 77, 0] => {
                (Ipv4Addr::new(10, 244, 0, ip.octets()[3]), actual.port()).into()
            }
            _ => actual,
        }
    }

    fn resolve(&self, name: &str) -> Resolved {
        match name {
            "server.default.svc" => Resolved::Addresses(vec![SERVICE.into()]),
            "peers.default.svc" => {
                Resolved::Addresses([4, 5, 6].map(|pod| Ipv4Addr::new(10, 244, 0, pod).into()).to_vec())
            }
            _ => Resolved::Unknown,
        }
    }

    fn permits(&self, actual: SocketAddr, _: SocketUse) -> bool {
        actual.ip().is_loopback() || actual.ip().is_unspecified()
    }
}

async fn start(pod: u8, steps: &[&str]) -> (Command, Printed) {
    let (spec, printed) = spec();
    let args = std::iter::once("probe").chain(steps.iter().copied()).map(str::to_owned).collect();
    let spec = Spec { args, network: Arc::new(Pod(pod)), ..spec };
    (engine().start_command(&component("probe-command").await, spec).await.unwrap(), printed)
}

#[tokio::test]
async fn pods_reach_each_other_by_name_and_see_pod_addresses() {
    let (server, server_printed) = start(2, &["listen", "18123"]).await;
    soon(async {
        while !server_printed.text().contains('\n') {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (client, client_printed) = start(3, &["send", "server.default.svc:18123", "ahoy"]).await;
    assert_eq!(soon(client.wait()).await, Exit::Code(0), "{}", client_printed.text());
    assert_eq!(client_printed.text(), "connected from 10.244.0.3 to 10.244.0.2:18123\nAHOY\n");
    assert_eq!(server_printed.text(), "listening on 10.244.0.2:18123\nconnection from 10.244.0.3\n");
    server.kill();
    soon(server.wait()).await;
}

/// A call that is a trap anyway asks nothing before: it would hold its thread for as long as that takes.
#[tokio::test]
async fn more_datagrams_than_may_be_sent_at_once_ask_for_no_way() {
    struct Counted(Pod, AtomicU32);
    impl Network for Counted {
        fn bind(&self, wanted: SocketAddr, protocol: Protocol) -> Result<SocketAddr, Refused> {
            self.0.bind(wanted, protocol)
        }

        fn connect(&self, wanted: SocketAddr, _: Protocol) -> Result<SocketAddr, Refused> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Ok((twin(4), wanted.port()).into())
        }

        fn resolve(&self, name: &str) -> Resolved {
            self.0.resolve(name)
        }

        fn permits(&self, actual: SocketAddr, usage: SocketUse) -> bool {
            self.0.permits(actual, usage)
        }
    }
    let network = Arc::new(Counted(Pod(5), AtomicU32::new(0)));
    let spec = Spec { network: network.clone(), ..Spec::new("a") };
    let service = engine().start_http(&component("hostile").await, spec, HttpOptions::default()).await.unwrap();
    assert_eq!(get(&service, "/datagrams?16").await, ok("Ok(16)\n"));
    assert_eq!(network.1.swap(0, Ordering::Relaxed), 16);
    assert!(matches!(get(&service, "/datagrams?17").await, Err(RequestError::Trap(_))));
    assert_eq!(network.1.load(Ordering::Relaxed), 0);
}

/// Who looks for its peers wants all of them.
#[tokio::test]
async fn a_name_of_several_has_all_their_addresses() {
    let (resolve, printed) = start(3, &["resolve", "peers.default.svc", "resolve", "peers.default.svc"]).await;
    assert_eq!(soon(resolve.wait()).await, Exit::Code(0), "{}", printed.text());
    assert_eq!(printed.text(), "10.244.0.4\n10.244.0.5\n10.244.0.6\n".repeat(2));
}

#[tokio::test]
async fn what_the_node_does_not_know_is_refused() {
    let (resolve, printed) = start(3, &["resolve", "server.default.svc", "resolve", "example.com"]).await;
    assert_eq!(soon(resolve.wait()).await, Exit::Code(1));
    assert!(printed.text().starts_with("10.96.0.1\nresolve: "), "{}", printed.text());
    let (connect, printed) = start(3, &["send", "10.1.1.1:80", "ahoy"]).await;
    assert_eq!(soon(connect.wait()).await, Exit::Code(1));
    assert!(printed.text().contains("refused"), "{}", printed.text());
}

#[tokio::test]
async fn programs_of_wasi_0_3_have_the_same_network() {
    let start = async |pod: u8, steps: &[&str]| {
        let (spec, printed) = spec();
        let args = std::iter::once("probe").chain(steps.iter().copied()).map(str::to_owned).collect();
        let spec = Spec { args, network: Arc::new(Pod(pod)), ..spec };
        (engine().start_command(&component("probe-command-p3").await, spec).await.unwrap(), printed)
    };
    let (server, server_printed) = start(2, &["serve", "18124"]).await;
    soon(async {
        while !server_printed.text().contains("listening") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(server_printed.text(), "probe serve 18124\nlistening on 10.244.0.2\n");
    assert_eq!(server.descriptors(), 2, "what listens, and the stream of its connections");
    let (client, printed) = start(3, &["connect", "server.default.svc", "18124"]).await;
    assert_eq!(soon(client.wait()).await, Exit::Code(0), "{}", printed.text());
    assert!(printed.text().ends_with("connected to 10.244.0.2\nhello 10.244.0.3\n"), "{}", printed.text());
    // A stream keeps its socket open, whatever becomes of the handle that it was made from.
    for steps in [&["keep", "server.default.svc", "18124"][..], &["keep-listening", "18125"]] {
        let (keeps, printed) = start(3, steps).await;
        soon(async {
            while !printed.text().contains("kept") {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(keeps.descriptors(), 1, "{steps:?}");
        keeps.kill();
        soon(keeps.wait()).await;
        assert_eq!(keeps.descriptors(), 0, "{steps:?}");
    }
    for (steps, said) in [(["connect", "example.com", "80"], "NameUnresolvable"), (["connect", "10.1.1.1", "80"], "")] {
        let (client, printed) = start(3, &steps).await;
        assert_eq!(soon(client.wait()).await, Exit::Code(1));
        assert!(printed.text().contains(said), "{}", printed.text());
    }
    server.stop();
    assert_eq!(soon(server.wait()).await, Exit::Stopped);
    assert_eq!(soon(start(3, &[]).await.0.wait()).await, Exit::Code(0));
    assert_eq!(soon(start(3, &["fail"]).await.0.wait()).await, Exit::Code(1));
}
