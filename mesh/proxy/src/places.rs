//! Places at this node's ports, of a port and of the node. When all are taken, clients for whom nothing is under way give way to
//! new ones, so that nobody shuts a port by connecting often and saying little. Of those at ports of Services the Service's namespace
//! has a share ([`Shares`]), however many ports it has: a tenant whose pods do not answer keeps nobody else's clients out. At a port
//! for Ingresses or of Gateways a connection is nobody's, and each request is of the namespace whose route takes it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_discovery::Protocol;
use tokio_util::sync::CancellationToken;

use crate::shares::{Share, Shares};
use crate::turns::{PASSING_REST, Turns, Wanted};

/// A listener's number and protocol.
pub(crate) type Key = (u16, Protocol);

/// Connections at a time, of node ports and of what serves Ingresses. Of more, those for which nothing is under way give way; while
/// there are none, more wait in the kernel's queues.
pub(crate) const CONNECTIONS_MAX: Bounds = Bounds { node: 20_000, port: 10_000, shared: 20_000 };

/// One in so many gives way at a time, so that not each new client costs a look at all.
const SHARE: usize = 64;

/// How many clients there may be at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub node: usize,
    pub port: usize,
    /// Of this the clients of Services' ports have their namespaces' shares.
    pub shared: usize,
}

#[derive(Debug)]
pub(crate) struct Places {
    bounds: Bounds,
    shares: Arc<Shares<Arc<str>>>,
    table: Mutex<Table>,
    wanted: Arc<Wanted>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    clients: HashMap<u64, Client>,
    by_port: HashMap<Key, usize>,
}

#[derive(Debug)]
struct Client {
    port: Key,
    share: Option<Share<Arc<str>>>,
    turns: Arc<Turns>,
}

/// A client's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    pub turns: Arc<Turns>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.table().remove(self.number);
        self.places.wanted.changed();
    }
}

impl Table {
    fn remove(&mut self, number: u64) {
        let Some(Client { port, .. }) = self.clients.remove(&number) else { return };
        if let Some(count) = self.by_port.get_mut(&port) {
            *count -= 1;
            if *count == 0 {
                self.by_port.remove(&port);
            }
        }
    }

    /// Has some of these clients give way, unless some are about to leave; says whether some are.
    fn make_way(&self, is_one: impl Fn(&Client) -> bool) -> bool {
        let clients = || self.clients.values().filter(|client| is_one(client)).map(|client| &client.turns);
        if clients().any(|turns| turns.has_given_way()) {
            return true;
        }
        let mut waiting: Vec<_> = clients().filter_map(|turns| Some((turns.patience()?, turns))).collect();
        let count = (clients().count() / SHARE).clamp(1, waiting.len().max(1));
        if count < waiting.len() {
            waiting.select_nth_unstable_by_key(count - 1, |(patience, _)| *patience);
        }
        // One that has just begun to be answered stays.
        waiting.into_iter().filter(|(_, turns)| turns.give_way()).take(count).count() > 0
    }
}

impl Places {
    pub fn new(bounds: Bounds) -> Arc<Places> {
        Arc::new(Places { bounds, shares: Shares::new(bounds.shared), table: Mutex::default(), wanted: Arc::default() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place at a port, which is that of a namespace's Service or nobody's, if one is free; else others are asked to leave. `over` is
    /// cancelled when this one is.
    pub fn try_enter(
        self: &Arc<Self>,
        port: Key,
        namespace: Option<&Arc<str>>,
        over: &CancellationToken,
    ) -> Option<Place> {
        let mut table = self.table();
        if table.by_port.get(&port).is_some_and(|count| *count >= self.bounds.port) {
            table.make_way(|client| client.port == port);
            return None;
        }
        if table.clients.len() >= self.bounds.node {
            table.make_way(|_| true);
            return None;
        }
        let share = namespace.map(|namespace| self.shares.take(namespace.clone(), 1));
        if let (Some(None), Some(namespace)) = (&share, namespace) {
            table.make_way(|client| client.share.as_ref().is_some_and(|share| share.by() == namespace));
            return None;
        }
        let (number, turns) = (table.next, Arc::new(Turns::new(over.clone(), self.wanted.clone())));
        table.next += 1;
        table.clients.insert(number, Client { port, share: share.flatten(), turns: turns.clone() });
        *table.by_port.entry(port).or_default() += 1;
        Some(Place { places: self.clone(), number, turns })
    }

    /// A place at a port, as soon as there is one.
    pub async fn enter(self: &Arc<Self>, port: Key, namespace: Option<&Arc<str>>, over: &CancellationToken) -> Place {
        loop {
            let listening = self.wanted.listen();
            if let Some(place) = self.try_enter(port, namespace, over) {
                return place;
            }
            // That nothing moves for somebody any more is told by nobody.
            let _ = tokio::time::timeout(PASSING_REST / 8, listening.changed()).await;
        }
    }

    #[cfg(test)]
    pub fn taken(&self) -> usize {
        self.table().clients.len()
    }

    /// Has some clients of the node leave, for what bounds all of them; says whether any does.
    pub fn make_way(&self) -> bool {
        self.table().make_way(|_| true)
    }
}

#[cfg(test)]
mod tests {
    use coracle_discovery::Protocol::Tcp;

    use super::*;

    const A: Key = (30_001, Tcp);
    const B: Key = (30_002, Tcp);

    fn enter(places: &Arc<Places>, port: Key) -> Option<Place> {
        places.try_enter(port, None, &CancellationToken::new())
    }

    #[test]
    fn who_never_asked_gives_way_before_who_rests_and_who_is_answered_never() {
        let places = Places::new(Bounds { node: 4, port: 3, shared: 100 });
        let [rests, busy, silent] = [(); 3].map(|()| enter(&places, A).unwrap());
        drop(rests.turns.begin());
        let turn = busy.turns.begin().unwrap();
        assert!(enter(&places, A).is_none(), "until one has left");
        assert_eq!([&rests, &busy, &silent].map(|place| place.turns.has_given_way()), [false, false, true]);
        assert!(silent.turns.begin().is_none());
        // Nobody else goes while one is on its way.
        assert!(enter(&places, A).is_none() && !rests.turns.has_given_way());
        drop(silent);
        let newer = enter(&places, A).unwrap();
        drop(newer.turns.begin());
        assert!(enter(&places, A).is_none());
        assert!(rests.turns.has_given_way() && !newer.turns.has_given_way(), "the one that rested longer");
        drop((rests, newer, turn));
        let twice = busy.turns.begin().unwrap();
        drop(busy.turns.begin());
        assert!(busy.turns.is_busy(), "one of two is under way");
        drop(twice);
        assert!(!busy.turns.is_busy());
    }

    #[test]
    fn a_namespace_has_a_share_of_all_ports_and_its_own_clients_give_way() {
        let places = Places::new(Bounds { node: 100, port: 100, shared: 9 });
        let (greedy, other): (Arc<str>, Arc<str>) = (Arc::from("greedy"), Arc::from("other"));
        let enter =
            |port: Key, namespace: &Arc<str>| places.try_enter(port, Some(namespace), &CancellationToken::new());
        let bystander = places.try_enter(B, None, &CancellationToken::new()).unwrap();
        let own: Vec<Place> = [A, B, A].map(|port| enter(port, &greedy).unwrap()).into();
        let turns: Vec<_> = own.iter().map(|place| place.turns.begin().unwrap()).collect();
        assert!(enter(A, &greedy).is_none() && enter(B, &greedy).is_none(), "it has a third, all of which is busy");
        assert!(enter(A, &other).is_some_and(|place| !place.turns.has_given_way()));
        drop(turns);
        assert!(enter(A, &greedy).is_none());
        assert_eq!(own.iter().filter(|place| place.turns.has_given_way()).count(), 1);
        assert!(!bystander.turns.has_given_way(), "somebody else's does not");
        drop((own, bystander));
        assert!(places.shares.of(&*greedy) == 0 && enter(A, &greedy).is_some());
    }

    #[tokio::test]
    async fn a_new_client_waits_for_a_place_of_its_port_and_of_the_node() {
        let places = Places::new(Bounds { node: 3, port: 2, shared: 100 });
        let over = CancellationToken::new();
        let [one, two] = [(); 2].map(|()| enter(&places, A).unwrap());
        let turns = [&one, &two].map(|place| place.turns.begin().unwrap());
        let entering = tokio::spawn({
            let (places, over) = (places.clone(), over.clone());
            async move { places.enter(A, None, &over).await }
        });
        tokio::task::yield_now().await;
        assert!(!entering.is_finished(), "all are busy");
        let other = enter(&places, B).expect("another port has its own");
        drop(turns);
        while !one.turns.has_given_way() && !two.turns.has_given_way() {
            tokio::task::yield_now().await;
        }
        let (left, stays) = if one.turns.has_given_way() { (one, two) } else { (two, one) };
        drop(left);
        let third = entering.await.unwrap();
        assert!(enter(&places, B).is_none(), "the node is full");
        let gone = [&stays, &third, &other].map(|place| place.turns.has_given_way());
        assert_eq!(gone.into_iter().filter(|gone| *gone).count(), 1, "one of any port");
        drop((stays, third, other));
        assert!(places.taken() == 0 && places.table().by_port.is_empty());
    }
}
