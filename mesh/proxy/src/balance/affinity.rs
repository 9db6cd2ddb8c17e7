//! `sessionAffinity: ClientIP`: a client goes to the endpoint that it went to last, until it has rested for so long or the endpoint
//! is gone. Clients are told apart by their address, as kube-proxy does it; each port of a Service remembers its own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_discovery::Endpoint;

use super::load::Nanos;

/// Clients that one port remembers; beyond it those that have rested longest are forgotten.
const CLIENTS_MAX: usize = 16_384;

/// Where the clients of a port went last.
#[derive(Debug)]
pub(super) struct Affinity {
    timeout: Nanos,
    clients: Mutex<HashMap<IpAddr, Session>>,
}

#[derive(Debug)]
struct Session {
    endpoint: Endpoint,
    used: Nanos,
}

impl Affinity {
    pub fn new(timeout: Duration) -> Affinity {
        Affinity { timeout: nanos(timeout), clients: Mutex::default() }
    }

    /// Whether sessions last so long.
    pub fn lasts(&self, timeout: Duration) -> bool {
        self.timeout == nanos(timeout)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Session>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where this client went, if it has not rested for too long.
    pub fn endpoint(&self, client: IpAddr, now: Nanos) -> Option<Endpoint> {
        let clients = self.lock();
        let session = clients.get(&client).filter(|session| now.saturating_sub(session.used) < self.timeout)?;
        Some(session.endpoint.clone())
    }

    /// It goes there now.
    pub fn went(&self, client: IpAddr, endpoint: &Endpoint, now: Nanos) {
        let mut clients = self.lock();
        match clients.get_mut(&client) {
            Some(session) if session.endpoint == *endpoint => session.used = now,
            Some(session) => *session = Session { endpoint: endpoint.clone(), used: now },
            None => {
                if clients.len() >= CLIENTS_MAX {
                    self.forget(&mut clients, now);
                }
                clients.insert(client, Session { endpoint: endpoint.clone(), used: now });
            }
        }
    }

    /// Makes room for many at once, so that one who is new costs little.
    fn forget(&self, clients: &mut HashMap<IpAddr, Session>, now: Nanos) {
        clients.retain(|_, session| now.saturating_sub(session.used) < self.timeout);
        let most = CLIENTS_MAX - CLIENTS_MAX / 4;
        if clients.len() > most {
            let mut used: Vec<Nanos> = clients.values().map(|session| session.used).collect();
            let (_, oldest_kept, _) = used.select_nth_unstable(clients.len() - most);
            let oldest_kept = *oldest_kept;
            clients.retain(|_, session| session.used > oldest_kept);
        }
    }
}

fn nanos(time: Duration) -> Nanos {
    Nanos::try_from(time.as_nanos()).unwrap_or(Nanos::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(n: u8) -> Endpoint {
        Endpoint { address: [10, 0, 0, n].into(), port: 80, node: None }
    }

    #[test]
    fn a_session_ends_when_its_client_has_rested() {
        let affinity = Affinity::new(Duration::from_nanos(100));
        let client = IpAddr::from([192, 0, 2, 1]);
        affinity.went(client, &endpoint(1), 0);
        assert_eq!(affinity.endpoint(client, 99), Some(endpoint(1)));
        affinity.went(client, &endpoint(1), 99);
        assert_eq!(affinity.endpoint(client, 198), Some(endpoint(1)), "it was used meanwhile");
        assert_eq!(affinity.endpoint(client, 199), None);
        affinity.went(client, &endpoint(2), 199);
        assert_eq!(affinity.endpoint(client, 200), Some(endpoint(2)));
    }

    #[test]
    fn clients_are_bounded_and_the_longest_rested_go() {
        let affinity = Affinity::new(Duration::from_secs(3600));
        let client = |n: usize| IpAddr::from([10, (n >> 16) as u8, (n >> 8) as u8, n as u8]);
        for n in 0..CLIENTS_MAX * 2 {
            affinity.went(client(n), &endpoint(1), n as Nanos);
            assert!(affinity.lock().len() <= CLIENTS_MAX);
        }
        assert_eq!(affinity.endpoint(client(0), 0), None);
        assert!(affinity.endpoint(client(CLIENTS_MAX * 2 - 1), 0).is_some());
    }
}
