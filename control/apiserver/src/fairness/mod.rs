//! API priority and fairness (flowcontrol.apiserver.k8s.io/v1): which requests go on, and which wait.
//!
//! ```text
//! FlowSchemas ─────────────────┐ (kept while they are what is stored)
//! PriorityLevelConfigurations ─┴► Configured ─► Ticket (schema, level, flow) ─► seat ─► work
//! ```
//! A request gets its [`Ticket`] when it is known who calls and for what, and takes its seat when its body is here; it gives it
//! back when its answer is made. So a seat is held while something is done, and not by who sends or reads slowly. What is
//! sent and received is bounded in bytes, elsewhere ([`crate::limits`], and the layers).
//!
//! The duties of this process belong to the exempt level, whatever the schemas say.

mod configured;
mod counters;
mod dispatch;
mod level;
mod schema;
mod seats;
mod show;
mod shuffle;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use coracle_api::status::Status;
use coracle_keyspace::Keyspace;
use http::HeaderValue;

pub(crate) use configured::{COLLECTIONS, Facts, facts};
use configured::{Configured, Flow};
use dispatch::Rejection;
pub(crate) use schema::Asked;
use seats::Seats;
pub(crate) use seats::Taken;
pub(crate) use show::DEBUG;

use crate::identity::Identity;

/// How long a request waits for a seat: a quarter of its time (Kubernetes').
const WAIT_MAX: Duration = Duration::from_secs(15);
/// How often a request is classified anew because its level went away meanwhile.
const ANEW_MAX: usize = 4;
/// No change has this number.
const NEVER: u64 = u64::MAX;

/// Who waits for what here.
pub(crate) struct Fairness {
    seats: Arc<Seats>,
    changes: Arc<AtomicU64>,
    now: ArcSwap<Configured>,
    making: parking_lot::Mutex<()>,
    /// Nobody else knows which flows share a queue.
    hashing: RandomState,
    keyspace: Keyspace,
}

/// Where a request belongs.
#[derive(Clone)]
pub(crate) struct Ticket {
    flow: Arc<Flow>,
    hash: u64,
}

impl Ticket {
    /// Uids of its schema and of its level, as far as they are stored.
    pub fn uids(&self) -> [Option<&HeaderValue>; 2] {
        [self.flow.schema_uid.as_ref(), self.flow.level_uid.as_ref()]
    }
}

impl Fairness {
    /// With so many seats, for what is stored here.
    pub fn new(keyspace: &Keyspace, seats: usize) -> Fairness {
        let seats = Seats::new(seats as u64);
        let never = Configured::new(None, &Default::default(), NEVER, &seats);
        Fairness {
            changes: keyspace.count_changes(&COLLECTIONS),
            now: ArcSwap::from_pointee(never),
            seats,
            making: parking_lot::Mutex::new(()),
            hashing: RandomState::new(),
            keyspace: keyspace.clone(),
        }
    }

    /// Where a request belongs that `who` makes. `own` are the duties of this process.
    pub fn ticket(&self, who: &Identity, own: bool, asked: &Asked<'_>) -> Ticket {
        let configured = self.now();
        if own {
            return Ticket { flow: configured.exempt.clone(), hash: 0 };
        }
        let flow = configured.find(who, asked);
        let distinguisher = flow.distinguisher.of(who, asked);
        Ticket { hash: self.hashing.hash_one((&flow.name, distinguisher)), flow: flow.clone() }
    }

    /// A seat for a request that looks at so many `objects`, as soon as there is one.
    ///
    /// # Errors
    /// 429, when there is none in time or too many wait.
    pub async fn seat(&self, ticket: &Ticket, objects: usize, until: Instant) -> Result<Taken, Status> {
        let until = until.min(Instant::now() + WAIT_MAX);
        let mut flow = ticket.flow.clone();
        for _ in 0..ANEW_MAX {
            let width = self.width(&flow, objects);
            let taken = self.seats.take(flow.level, ticket.hash, width, until, &flow.counters);
            match taken.await {
                Ok(Some(taken)) => return Ok(taken),
                Ok(None) => flow = self.now().again(&flow.name),
                Err(Rejection::Cancelled) => break,
                Err(_) => return Err(Fairness::refusal()),
            }
        }
        Err(Fairness::refusal())
    }

    fn refusal() -> Status {
        Status::too_many_requests("Too many requests, please try again later.", 1)
    }

    /// Seats that a list takes: one for each hundred objects (Kubernetes').
    fn width(&self, flow: &Flow, objects: usize) -> u32 {
        const OBJECTS_PER_SEAT: usize = 100;
        if objects <= OBJECTS_PER_SEAT {
            return 1;
        }
        let most = self.seats.with(|dispatcher| (dispatcher.width_max(flow.level), Vec::new()));
        u32::try_from(objects.div_ceil(OBJECTS_PER_SEAT)).unwrap_or(u32::MAX).clamp(1, most)
    }

    /// As many objects as make a request as wide as it can be: whoever counts need not count further.
    pub const OBJECTS_MAX: usize = 1_000;

    /// Requests at work.
    pub fn executing(&self) -> usize {
        self.seats.with(|dispatcher| (dispatcher.executing(), Vec::new()))
    }

    fn now(&self) -> Arc<Configured> {
        let at = self.changes.load(Ordering::Acquire);
        let now = self.now.load_full();
        if now.at == at { now } else { self.make() }
    }

    #[cold]
    fn make(&self) -> Arc<Configured> {
        let _one = self.making.lock();
        // What changes while it is read has another number, and is read again by whoever looks next.
        let (before, at) = (self.now.load_full(), self.changes.load(Ordering::Acquire));
        if before.at == at {
            return before;
        }
        let stored = COLLECTIONS.map(|collection| self.keyspace.snapshot(collection).records);
        let next = Arc::new(Configured::new(Some(&before), &stored, at, &self.seats));
        self.now.store(next.clone());
        next
    }
}

#[cfg(test)]
mod tests {
    use coracle_keyspace::{Guard, Key, Op, Value as Content};
    use serde_json::{Value, json};

    use super::*;

    async fn put(keyspace: &Keyspace, collection: &'static str, object: &Value) {
        // The revision is put into the text at this place.
        let bytes = format!("{{\"v\":\"\",{}", &object.to_string()[1..]);
        let value = Content { revision_at: 6, bytes: bytes.into() };
        let name: Arc<str> = object["metadata"]["name"].as_str().expect("a name").into();
        keyspace.transact(vec![Op::Put { key: Key::new(collection, name), value, guard: Guard::None }]).await.unwrap();
    }

    async fn with_facts(seats: usize) -> (tempfile::TempDir, Keyspace, Fairness) {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        let fairness = Fairness::new(&keyspace, seats);
        for facts in facts() {
            let place = usize::from(facts.resource == "flowschemas");
            put(&keyspace, COLLECTIONS[place], &facts.object).await;
        }
        (dir, keyspace, fairness)
    }

    const GET: Asked<'static> =
        Asked { verb: "get", group: "", resource: "pods", subresource: "", namespace: "n", path: None };

    fn user(name: &str, groups: &[&str]) -> Identity {
        Identity::authenticated(name, groups.iter().map(|group| (*group).to_owned()).collect())
    }

    #[tokio::test]
    async fn what_is_kept_is_what_is_stored() {
        let (_dir, keyspace, fairness) = with_facts(600).await;
        let of = |who: &Identity, own: bool| {
            let ticket = fairness.ticket(who, own, &GET);
            format!("{}/{}", ticket.flow.name, ticket.flow.level_name)
        };
        let (alice, scheduler) = (user("alice", &[]), user("system:kube-scheduler", &[]));
        assert_eq!(of(&alice, false), "global-default/global-default");
        assert_eq!(of(&scheduler, false), "kube-scheduler/workload-high");
        assert_eq!(of(&scheduler, true), "exempt/exempt", "a duty of this process waits behind nobody");
        // Of what cannot be read nothing is made, and the rest stays.
        for spec in [json!({"matchingPrecedence": 3}), json!({"matchingPrecedence": 3, "rules": 1})] {
            put(&keyspace, COLLECTIONS[1], &json!({"metadata": {"name": "odd"}, "spec": spec})).await;
            assert_eq!(of(&alice, false), "global-default/global-default");
        }
        put(&keyspace, COLLECTIONS[0], &json!({"metadata": {"name": "global-default"}, "spec": {"type": "Limited"}}))
            .await;
        assert_eq!(of(&alice, false), "catch-all/catch-all", "its level is none any more");
        keyspace.shutdown().await;
    }

    #[tokio::test]
    async fn a_request_whose_level_goes_while_its_body_comes_is_classified_anew() {
        let (_dir, keyspace, fairness) = with_facts(600).await;
        let alice = user("alice", &[]);
        let ticket = fairness.ticket(&alice, false, &GET);
        let key = Key::new(COLLECTIONS[0], "global-default");
        keyspace.transact(vec![Op::Delete { key, guard: Guard::None }]).await.unwrap();
        // Somebody else has seen it first.
        fairness.ticket(&alice, false, &GET);
        let until = Instant::now() + Duration::from_secs(5);
        let _seat = fairness.seat(&ticket, 1, until).await.expect("a seat of another level");
        assert_eq!(fairness.executing(), 1);
        keyspace.shutdown().await;
    }

    #[tokio::test]
    async fn who_waits_is_told_in_time_and_leaves_nothing_behind() {
        let (_dir, keyspace, fairness) = with_facts(10).await;
        // One seat of its own, and what is lent is taken as well.
        let alice = user("alice", &[]);
        let ticket = fairness.ticket(&alice, false, &GET);
        let soon = || Instant::now() + Duration::from_millis(20);
        let mut seats = Vec::new();
        while let Ok(seat) = fairness.seat(&ticket, 1, soon()).await {
            seats.push(seat);
        }
        assert!(!seats.is_empty() && seats.len() < 10, "{}", seats.len());
        let refused = fairness.seat(&ticket, 1, soon()).await.err().expect("no seat");
        assert_eq!(refused.code(), 429);
        // One who is given up, and one whom a seat is given at the moment in which it leaves.
        drop(
            tokio::time::timeout(Duration::from_millis(5), fairness.seat(&ticket, 1, Instant::now() + WAIT_MAX)).await,
        );
        let mut waiting = Box::pin(fairness.seat(&ticket, 1, Instant::now() + WAIT_MAX));
        assert!(futures::FutureExt::now_or_never(&mut waiting).is_none());
        seats.pop();
        drop(waiting);
        let again = fairness.seat(&ticket, 1, soon()).await.expect("the seat is free");
        drop((again, seats));
        assert_eq!(fairness.executing(), 0);
        let counters = &ticket.flow.counters;
        assert_eq!((counters.executing.load(Ordering::Relaxed), counters.waiting.load(Ordering::Relaxed)), (0, 0));
        keyspace.shutdown().await;
    }

    /// What it costs a request, on its way: run it with `--nocapture`.
    #[tokio::test]
    async fn a_request_is_classified_and_seated_in_microseconds() {
        let (_dir, keyspace, fairness) = with_facts(2_000).await;
        let account =
            user("system:serviceaccount:team:bot", &["system:serviceaccounts", "system:serviceaccounts:team"]);
        let until = Instant::now() + Duration::from_secs(3_600);
        const TIMES: u32 = 100_000;
        let begun = Instant::now();
        for _ in 0..TIMES {
            let ticket = fairness.ticket(&account, false, &GET);
            drop(std::hint::black_box(fairness.seat(&ticket, 1, until).await));
        }
        let each = begun.elapsed() / TIMES;
        println!("{each:?} for a ticket and a seat");
        // Without optimisation, on a machine that does other things, too.
        assert!(each < Duration::from_micros(200), "{each:?}");
        keyspace.shutdown().await;
    }
}
