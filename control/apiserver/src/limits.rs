//! How much is held at a time, and by whom.
//!
//! Which requests go on and which wait is decided elsewhere ([`crate::fairness`]). Here are the bounds of what a request holds
//! beside its seat: the bytes of its body until it is answered, and a place among the streams, also of one node.
//!
//! A caller is a *flow*. The cluster's own duties have places that users cannot take, and those in this process others than
//! what comes over the network by a duty's name. A flow gets a place while it has fewer than are still free: one flow alone
//! takes half of all, two a third each, so there is always room for one who comes later. Beyond that clients are told to
//! come again. Streams from nodes are counted once more by node: a node's own server has fewer places than this one.
//!
//! The accounts of one namespace are one flow. Whoever may make accounts there would otherwise make flows, and each new one
//! would get a half of what is left.

mod gate;

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use coracle_api::status::Status;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

pub(crate) use gate::{Gate, Turn};

/// Streams of the cluster's own duties: a node agent follows each ConfigMap and Secret of its pods.
const DUTY_STREAMS_MAX: usize = 100_000;
/// Bytes of bodies that are here and whose requests are not answered yet, of each class.
const BODY_BYTES_MAX: usize = 128 << 20;
/// Smaller ones are bounded by the number of requests that have a seat or wait for one: 12,000, of 48 MiB.
const BODY_BYTES_COUNTED: usize = 4 << 10;

/// Streams to one node at a time: a node's own server has 1,024 places, for all servers of the cluster.
const NODE_STREAMS_MAX: usize = 256;
/// Users of this name are ServiceAccounts, `NAMESPACE:NAME`.
const ACCOUNTS: &str = "system:serviceaccount:";

/// Marks a request that never left this process, in its extensions.
#[derive(Debug, Clone, Copy)]
pub struct Here;

/// The connection that a request came over, in the request's extensions. It is cut when what was sent over it is not read:
/// what lies in its buffers goes with nothing less.
#[derive(Clone, Default)]
pub struct Connection {
    cut: CancellationToken,
    _held: Option<Arc<dyn Any + Send + Sync>>,
}

impl Connection {
    /// A connection that is to end when `cut` is cancelled. `held` is dropped when the request is over, also where that has
    /// become a stream of bytes which HTTP knows nothing of.
    pub fn new(cut: CancellationToken, held: Arc<dyn Any + Send + Sync>) -> Connection {
        Connection { cut, _held: Some(held) }
    }

    /// Ends it.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Waits until it is to end.
    pub(crate) async fn is_cut(&self) {
        self.cut.cancelled().await;
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("cut", &self.cut.is_cancelled()).finish_non_exhaustive()
    }
}

/// Among whom a request takes its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// A duty of the cluster that runs in this process.
    Own,
    /// One that comes over the network.
    Duty,
    User,
}

/// Whose request it is, before anybody is impersonated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow<'a> {
    pub class: Class,
    /// The user, or the namespace whose account it is.
    pub name: &'a str,
}

impl Flow<'_> {
    /// The flow of a user.
    pub fn of(class: Class, user: &str) -> Flow<'_> {
        let of_account = user.strip_prefix(ACCOUNTS).and_then(|account| account.split_once(':'));
        let name = of_account.map_or(user, |(namespace, _)| &user[..ACCOUNTS.len() + namespace.len()]);
        Flow { class, name }
    }
}

/// Places, counted by flow.
#[derive(Debug)]
pub(crate) struct Pool {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    flows: HashMap<Arc<str>, usize>,
}

impl Taken {
    /// Counts `size` more of a flow, unless it would have more than are free.
    fn add(&mut self, flow: &str, size: usize, most: usize) -> Option<Arc<str>> {
        let free = most.saturating_sub(self.all);
        let flow = match self.flows.get_key_value(flow) {
            Some((_, mine)) if *mine + size > free => return None,
            None if size > free => return None,
            Some((name, _)) => name.clone(),
            None => Arc::from(flow),
        };
        self.all += size;
        *self.flows.entry(flow.clone()).or_default() += size;
        Some(flow)
    }
}

impl Pool {
    pub fn new(most: usize) -> Arc<Pool> {
        Arc::new(Pool { most, taken: Mutex::default() })
    }

    /// Takes `size` places at once.
    pub fn take(self: &Arc<Pool>, flow: &str, size: usize) -> Option<Place> {
        let flow = self.taken.lock().add(flow, size, self.most)?;
        Some(Place { pool: self.clone(), flow, size })
    }

    fn now(&self) -> usize {
        self.taken.lock().all
    }
}

/// Holds a place until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    pool: Arc<Pool>,
    flow: Arc<str>,
    size: usize,
}

impl Place {
    /// Takes `size` more; says whether there were so many.
    pub fn grow(&mut self, size: usize) -> bool {
        let has_grown = self.pool.taken.lock().add(&self.flow, size, self.pool.most).is_some();
        self.size += if has_grown { size } else { 0 };
        has_grown
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.pool.taken.lock();
        taken.all -= self.size;
        if let Some(mine) = taken.flows.get_mut(&self.flow) {
            *mine -= self.size;
            if *mine == 0 {
                taken.flows.remove(&self.flow);
            }
        }
    }
}

/// The places of a class.
struct Pools {
    bytes: Arc<Pool>,
    streams: Arc<Pool>,
}

impl Pools {
    fn new(streams: usize) -> Pools {
        Pools { bytes: Pool::new(BODY_BYTES_MAX), streams: Pool::new(streams) }
    }
}

/// Streams from nodes, counted by node and by flow: who follows the logs of one node's pods a thousand times leaves room
/// there for others, and for who looks after the node.
///
/// The server's own connections (to webhooks) have places beside those of users: who may follow logs shuts out no webhook.
#[derive(Debug)]
pub(crate) struct NodeStreams {
    /// What they come from, in words.
    from: &'static str,
    pools: Mutex<HashMap<(String, bool), Arc<Pool>>>,
}

impl Default for NodeStreams {
    fn default() -> NodeStreams {
        NodeStreams { from: "node", pools: Mutex::default() }
    }
}

impl NodeStreams {
    /// The same of other API servers, by their APIServices.
    pub fn of_api_services() -> NodeStreams {
        NodeStreams { from: "APIService", pools: Mutex::default() }
    }

    /// A place for a stream from `node`.
    pub fn take(&self, node: &str, flow: Flow<'_>) -> Result<Place, Status> {
        let key = (node.to_owned(), matches!(flow.class, Class::Own));
        let pool = {
            let mut nodes = self.pools.lock();
            match nodes.get(&key) {
                Some(pool) => pool.clone(),
                None => {
                    // Only the map itself has them: there is no stream from there.
                    nodes.retain(|_, pool| Arc::strong_count(pool) > 1);
                    nodes.entry(key).or_insert_with(|| Pool::new(NODE_STREAMS_MAX)).clone()
                }
            }
        };
        let message = format!("too many streams from {} {node}, please try again later", self.from);
        pool.take(flow.name, 1).ok_or_else(|| Status::too_many_requests(message, 1))
    }
}

/// Counters of what is under way.
pub(crate) struct Limits {
    own: Pools,
    duties: Pools,
    users: Pools,
}

impl Limits {
    pub fn new(streams_max: usize) -> Limits {
        Limits {
            own: Pools::new(DUTY_STREAMS_MAX),
            duties: Pools::new(DUTY_STREAMS_MAX),
            users: Pools::new(streams_max),
        }
    }

    fn of(&self, flow: Flow<'_>) -> &Pools {
        match flow.class {
            Class::Own => &self.own,
            Class::Duty => &self.duties,
            Class::User => &self.users,
        }
    }

    /// Room for the body of a request, of so many bytes, until it is answered; a small one needs none.
    pub fn body(&self, flow: Flow<'_>, bytes: usize) -> Result<Option<Place>, Status> {
        if bytes < BODY_BYTES_COUNTED {
            return Ok(None);
        }
        let place = self.of(flow).bytes.take(flow.name, bytes);
        let later = || Status::too_many_requests("too many bytes in requests, please try again later", 1);
        place.map(Some).ok_or_else(later)
    }

    /// A place for a stream.
    pub fn stream(&self, flow: Flow<'_>) -> Result<Place, Status> {
        let place = self.of(flow).streams.take(flow.name, 1);
        place.ok_or_else(|| Status::too_many_requests("too many streams, please try again later", 1))
    }

    pub fn streams_now(&self) -> usize {
        [&self.own, &self.duties, &self.users].iter().map(|pools| pools.streams.now()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> Flow<'_> {
        Flow { class: Class::User, name }
    }

    #[test]
    fn a_place_is_free_again_when_it_is_dropped() {
        let limits = Limits::new(2);
        let first = limits.stream(user("a")).ok();
        assert!(first.is_some());
        assert_eq!(limits.stream(user("a")).err().map(|status| status.code()), Some(429));
        drop(first);
        assert!(limits.stream(user("a")).is_ok());
        assert_eq!(limits.streams_now(), 0);
    }

    #[test]
    fn a_place_that_grows_leaves_room_for_others_too() {
        let pool = Pool::new(12);
        let mut greedy = pool.take("greedy", 4).unwrap();
        assert!(greedy.grow(2) && !greedy.grow(1), "half of all is its own");
        assert!(pool.take("second", 3).is_some());
        drop(greedy);
        assert_eq!(pool.now(), 0);
    }

    #[test]
    fn a_greedy_flow_leaves_room_for_others_and_for_duties() {
        let limits = Limits::new(12);
        let all = |name| -> Vec<Place> { std::iter::from_fn(|| limits.stream(user(name)).ok()).collect() };
        let greedy = all("greedy");
        let second = all("second");
        assert_eq!((greedy.len(), second.len()), (6, 3));
        assert!(limits.stream(user("third")).is_ok(), "there is room for one who comes later");
        let _all: Vec<Place> = ["c", "d", "e", "f", "g"].into_iter().flat_map(all).collect();
        let nodes: Vec<String> = (0..20).map(|number| format!("system:node:{number}")).collect();
        let remote = |name| Flow { class: Class::Duty, name };
        let _nodes: Vec<Place> =
            nodes.iter().flat_map(|name| std::iter::from_fn(|| limits.stream(remote(name)).ok())).collect();
        assert!(limits.stream(remote("system:node:last")).is_err(), "the agents took all that is theirs");
        let own = Flow { class: Class::Own, name: "system:kube-scheduler" };
        assert!(limits.stream(own).is_ok());
    }

    #[test]
    fn accounts_of_one_namespace_are_one_flow() {
        for (user, expected) in [
            ("system:serviceaccount:team:a", "system:serviceaccount:team"),
            ("system:serviceaccount:team:b", "system:serviceaccount:team"),
            ("system:serviceaccount:teams:a", "system:serviceaccount:teams"),
            ("system:serviceaccount:odd", "system:serviceaccount:odd"),
            ("system:node:a:b", "system:node:a:b"),
            ("alice", "alice"),
        ] {
            assert_eq!(Flow::of(Class::User, user).name, expected, "{user}");
        }
    }

    #[test]
    fn one_caller_s_streams_leave_a_node_room_for_others() {
        let streams = NodeStreams::default();
        let all = |node, name| -> Vec<Place> { std::iter::from_fn(|| streams.take(node, user(name)).ok()).collect() };
        let greedy = all("a", "greedy");
        assert_eq!(greedy.len(), NODE_STREAMS_MAX / 2);
        assert_eq!(streams.take("a", user("greedy")).unwrap_err().code(), 429);
        assert!(streams.take("a", user("other")).is_ok() && streams.take("b", user("greedy")).is_ok());
        drop(greedy);
        let again = streams.take("a", user("greedy"));
        assert!(again.is_ok() && streams.take("c", user("x")).is_ok());
        let has = |node: &str| streams.pools.lock().contains_key(&(node.to_owned(), false));
        assert!(has("a") && !has("b"), "what is over is forgotten");
    }

    #[test]
    fn users_take_no_place_on_a_node_from_the_server_s_own_connections() {
        let streams = NodeStreams::default();
        let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let take = |name: &str| streams.take("a", user(name)).ok();
        let _users: Vec<Place> = names.iter().flat_map(|name| std::iter::from_fn(|| take(name))).collect();
        assert_eq!(streams.take("a", user("another")).unwrap_err().code(), 429);
        let own = Flow { class: Class::Own, name: "hook.n.svc" };
        assert!(streams.take("a", own).is_ok());
    }

    #[test]
    fn bodies_that_wait_for_their_answers_are_bounded_in_bytes() {
        let limits = Limits::new(1);
        let big = 3 << 20;
        let all = || -> Vec<Place> { std::iter::from_fn(|| limits.body(user("greedy"), big).ok()?).collect() };
        let held = all();
        assert_eq!(held.len(), BODY_BYTES_MAX / 2 / big);
        assert!(matches!(limits.body(user("greedy"), (4 << 10) - 1), Ok(None)), "small ones go on");
        let left =
            |limits: &Limits| std::iter::from_fn(|| limits.body(user("few"), 4 << 10).ok()?).collect::<Vec<Place>>();
        assert!(!left(&limits).is_empty(), "those that many may wait with are counted");
        assert!(limits.body(user("other"), big).is_ok());
        drop(held);
        assert!(limits.body(user("greedy"), big).is_ok());
    }
}
