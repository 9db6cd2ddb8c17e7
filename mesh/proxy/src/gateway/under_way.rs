//! Requests under way at a port, shared by the namespaces whose routes take them, and within a namespace by its clients: neither a tenant
//! whose pods answer slowly nor a few clients that read slowly, each with many requests on a connection, have all of them.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use crate::places::CONNECTIONS_MAX;
use crate::shares::{Share, Shares};

/// As many as connections.
pub(crate) const REQUESTS_MAX: usize = if cfg!(test) { 48 } else { CONNECTIONS_MAX.port };

/// A namespace, and who asks it.
type Client = (Arc<str>, IpAddr);

/// The requests of a port.
pub(super) struct UnderWay {
    of_namespaces: Arc<Shares<Arc<str>>>,
    /// Of each as many as its namespace may have beside them.
    of_clients: Arc<Shares<Client>>,
}

/// A request, until it is over.
#[derive(Debug)]
pub(crate) struct Place {
    _namespace: Share<Arc<str>>,
    _client: Share<Client>,
}

/// Who has all that it may have.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Full {
    Namespace,
    Client,
}

impl Default for UnderWay {
    fn default() -> UnderWay {
        UnderWay::new(REQUESTS_MAX)
    }
}

impl UnderWay {
    fn new(max: usize) -> UnderWay {
        UnderWay { of_namespaces: Shares::new(max), of_clients: Shares::new(usize::MAX) }
    }

    /// A place for a request of this client.
    pub fn take(&self, namespace: &Arc<str>, client: IpAddr) -> Result<Place, Full> {
        let left = self.of_namespaces.left(namespace);
        let share = self.of_namespaces.take(namespace.clone(), 1).ok_or(Full::Namespace)?;
        let own = self.of_clients.take_within((namespace.clone(), network(client)), 1, left).ok_or(Full::Client)?;
        Ok(Place { _namespace: share, _client: own })
    }
}

/// Who has one address of IPv6 has as a rule all of its network (RFC 6177).
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_much_leaves_as_many_for_others_of_the_namespace_and_a_namespace_for_others() {
        let under_way = UnderWay::new(9_999);
        let (namespace, other): (Arc<str>, Arc<str>) = ("n".into(), "other".into());
        let all = |namespace: &Arc<str>, client: &str| {
            let client: IpAddr = client.parse().unwrap();
            let mut places = Vec::new();
            loop {
                match under_way.take(namespace, client) {
                    Ok(place) => places.push(place),
                    Err(full) => return (places, full),
                }
            }
        };
        let (one, full) = all(&namespace, "192.0.2.1");
        assert_eq!((one.len(), full), (2_000, Full::Client));
        // In whatever form it comes.
        assert_eq!(under_way.take(&namespace, "::ffff:192.0.2.1".parse().unwrap()).unwrap_err(), Full::Client);
        let (two, _) = all(&namespace, "2001:db8::1");
        assert_eq!(two.len(), 800);
        assert_eq!(under_way.take(&namespace, "2001:db8::2".parse().unwrap()).unwrap_err(), Full::Client);
        // Many slow ones together leave room for another, until the namespace has its share.
        let three: Vec<_> = (0..5).map(|n| all(&namespace, &format!("198.51.100.{n}")).0).collect();
        assert!(three.iter().all(|places| !places.is_empty()), "{:?}", three.iter().map(Vec::len).collect::<Vec<_>>());
        assert!(all(&other, "192.0.2.1").0.len() > 1_000, "another namespace has its own");
        drop((one, two, three));
        assert_eq!(all(&namespace, "203.0.113.1").0.len(), 2_000, "all was given back");
    }
}
