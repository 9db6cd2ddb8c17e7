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
mod present;
mod schema;
mod seats;
mod show;
mod shuffle;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_api::status::Status;
use coracle_keyspace::Keyspace;
use http::HeaderValue;

pub(crate) use configured::{COLLECTIONS, Facts, facts};
use configured::{Configured, Flow};
use dispatch::Rejection;
pub(crate) use present::About;
use present::Present;
pub(crate) use schema::Asked;
use seats::Seats;
pub(crate) use seats::Taken;
pub(crate) use show::DEBUG;

use crate::current::Current;
use crate::identity::Identity;

/// How long a request waits for a seat: a quarter of its time (Kubernetes').
const WAIT_MAX: Duration = Duration::from_secs(15);
/// How often a request is classified anew because its level went away meanwhile.
const ANEW_MAX: usize = 4;

/// Who waits for what here.
pub(crate) struct Fairness {
    seats: Arc<Seats>,
    current: Current<Configured>,
    /// Nobody else knows which flows share a queue.
    hashing: RandomState,
    keyspace: Keyspace,
}

/// Where a request belongs.
#[derive(Clone)]
pub(crate) struct Ticket {
    flow: Arc<Flow>,
    hash: u64,
    about: Option<Arc<About>>,
}

impl Ticket {
    /// The same, which says what it is for while it waits and has its seat.
    pub fn of(self, about: About) -> Ticket {
        Ticket { about: Some(Arc::new(about)), ..self }
    }

    /// Uids of its schema and of its level, as far as they are stored.
    pub fn uids(&self) -> [Option<&HeaderValue>; 2] {
        [self.flow.schema_uid.as_ref(), self.flow.level_uid.as_ref()]
    }
}

impl Fairness {
    /// With so many seats, for what is stored here.
    pub fn new(keyspace: &Keyspace, seats: usize) -> Fairness {
        let seats = Seats::new(seats as u64);
        let first = Configured::new(None, &Default::default(), &seats);
        Fairness {
            current: Current::after(keyspace, &COLLECTIONS, first, |_| false),
            seats,
            hashing: RandomState::new(),
            keyspace: keyspace.clone(),
        }
    }

    /// Where a request belongs that `who` makes. `own` are the duties of this process.
    pub async fn ticket(&self, who: &Identity, own: bool, asked: &Asked<'_>) -> Ticket {
        // That level is always there, and the same one: nobody waits for what was changed of others.
        if own {
            return Ticket { flow: self.current.last().exempt.clone(), hash: 0, about: None };
        }
        let configured = self.now().await;
        let flow = configured.find(who, asked);
        let distinguisher = flow.distinguisher.of(who, asked);
        Ticket { hash: self.hashing.hash_one((&flow.name, distinguisher)), flow: flow.clone(), about: None }
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
            let present = Present::new(&flow, ticket.about.clone(), width);
            let taken = self.seats.take(ticket.hash, until, present);
            match taken.await {
                Ok(Some(taken)) => return Ok(taken),
                Ok(None) => flow = self.now().await.again(&flow.name),
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

    async fn now(&self) -> Arc<Configured> {
        let read = || {
            let (keyspace, seats) = (self.keyspace.clone(), self.seats.clone());
            move |before: &Configured| {
                let stored = COLLECTIONS.map(|collection| keyspace.snapshot(collection).records);
                Configured::new(Some(before), &stored, &seats)
            }
        };
        self.current.get(read).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use coracle_keyspace::{Guard, Key, Op, Value as Content};
    use futures::FutureExt as _;
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
        let of = async |who: &Identity, own: bool| {
            let ticket = fairness.ticket(who, own, &GET).await;
            format!("{}/{}", ticket.flow.name, ticket.flow.level_name)
        };
        let (alice, scheduler) = (user("alice", &[]), user("system:kube-scheduler", &[]));
        assert_eq!(of(&alice, false).await, "global-default/global-default");
        assert_eq!(of(&scheduler, false).await, "kube-scheduler/workload-high");
        assert_eq!(of(&scheduler, true).await, "exempt/exempt", "a duty of this process waits behind nobody");
        // Of what cannot be read nothing is made, and the rest stays.
        for spec in [json!({"matchingPrecedence": 3}), json!({"matchingPrecedence": 3, "rules": 1})] {
            put(&keyspace, COLLECTIONS[1], &json!({"metadata": {"name": "odd"}, "spec": spec})).await;
            assert_eq!(of(&alice, false).await, "global-default/global-default");
        }
        put(&keyspace, COLLECTIONS[0], &json!({"metadata": {"name": "global-default"}, "spec": {"type": "Limited"}}))
            .await;
        let own = fairness.ticket(&scheduler, true, &GET).now_or_never().expect("a duty waits for nobody who reads");
        assert_eq!(&*own.flow.name, "exempt");
        assert_eq!(of(&alice, false).await, "catch-all/catch-all", "its level is none any more");
        keyspace.shutdown().await;
    }

    #[tokio::test]
    async fn a_request_whose_level_goes_while_its_body_comes_is_classified_anew() {
        let (_dir, keyspace, fairness) = with_facts(600).await;
        let alice = user("alice", &[]);
        let ticket = fairness.ticket(&alice, false, &GET).await;
        let key = Key::new(COLLECTIONS[0], "global-default");
        keyspace.transact(vec![Op::Delete { key, guard: Guard::None }]).await.unwrap();
        // Somebody else has seen it first.
        fairness.ticket(&alice, false, &GET).await;
        let until = Instant::now() + WAIT_MAX;
        let _seat = fairness.seat(&ticket, 1, until).await.expect("a seat of another level");
        assert_eq!(fairness.executing(), 1);
        keyspace.shutdown().await;
    }

    #[tokio::test]
    async fn who_waits_is_told_in_time_and_leaves_nothing_behind() {
        let (_dir, keyspace, fairness) = with_facts(10).await;
        // One seat of its own, and what is lent is taken as well.
        let alice = user("alice", &[]);
        let ticket = fairness.ticket(&alice, false, &GET).await;
        let seat = |until: Instant| Box::pin(fairness.seat(&ticket, 1, until));
        let late = || Instant::now() + WAIT_MAX;
        let mut seats = Vec::new();
        // Whoever finds one does not wait.
        while let Some(taken) = seat(late()).now_or_never() {
            seats.push(taken.expect("a seat"));
        }
        assert!(!seats.is_empty() && seats.len() < 10, "{}", seats.len());
        let refused = seat(Instant::now()).await.err().expect("no seat");
        assert_eq!(refused.code(), 429);
        // One who has given up, and one whom a seat is given at the moment in which it leaves.
        let mut waiting = seat(late());
        assert!((&mut waiting).now_or_never().is_none());
        seats.pop();
        drop(waiting);
        let again = seat(late()).now_or_never().expect("the seat is free").expect("a seat");
        drop((again, seats));
        assert_eq!(fairness.executing(), 0);
        let counters = &ticket.flow.counters;
        assert_eq!((counters.executing.load(Ordering::Relaxed), counters.waiting.load(Ordering::Relaxed)), (0, 0));
        keyspace.shutdown().await;
    }
}
