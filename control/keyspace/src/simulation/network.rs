//! The network: it loses, delays, repeats and cuts off, as a seed says; and how a member is opened on it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::raft::{AppendEntriesResponse, VoteResponse};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::SimDisk;
use crate::host::{Host, Sizes, Timing};
use crate::raft::testing::{TransportError, answer, incoming, incoming_answer, make_ahead, spare, wire, wire_answer};
use crate::raft::{Answer, Ask, Call, Member, MemberId, Transport};
use crate::{Begin, Config, Keyspace, OpenError, SecretKey, leader};

/// A fault that is planted in the network, as if the members had it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Tamper {
    /// None.
    #[default]
    Nothing,
    /// An append is answered before anybody has it.
    EarlyAppends,
    /// A vote is granted before whoever grants it has kept it: the answer comes at once, what was asked for later.
    EarlyVotes,
    /// One of three is a majority: who cannot be reached is counted among those who agree.
    SmallQuorum,
}

/// The network; clones are the same.
#[derive(Clone)]
pub struct SimNet(Arc<Mutex<Wires>>);

struct Wires {
    random: StdRng,
    members: HashMap<MemberId, Weak<Member>>,
    /// Nothing comes through from the first to the second.
    cut: BTreeSet<(MemberId, MemberId)>,
    /// Of a hundred messages so many are lost, repeated, delayed.
    unreliable: u32,
    tamper: Tamper,
    /// Under what the members' keys are sealed.
    root: Option<SecretKey>,
}

/// What happens to one call.
struct Fate {
    lost: bool,
    answer_lost: bool,
    repeated: bool,
    delay: Duration,
}

impl SimNet {
    /// One that is well.
    pub fn new(seed: u64) -> SimNet {
        SimNet(Arc::new(Mutex::new(Wires {
            random: StdRng::seed_from_u64(seed),
            members: HashMap::new(),
            cut: BTreeSet::new(),
            unreliable: 0,
            tamper: Tamper::Nothing,
            root: None,
        })))
    }

    /// Of a hundred messages so many are lost, repeated, delayed.
    pub fn set_unreliable(&self, percent: u32) {
        self.0.lock().unreliable = percent;
    }

    /// Cuts or mends one direction.
    pub fn cut(&self, from: MemberId, to: MemberId, is_cut: bool) {
        let mut wires = self.0.lock();
        if is_cut {
            wires.cut.insert((from, to))
        } else {
            wires.cut.remove(&(from, to))
        };
    }

    /// Mends all that was cut.
    pub fn mend(&self) {
        self.0.lock().cut.clear();
    }

    /// Makes it as good as new; what is planted stays.
    pub fn heal(&self) {
        let mut wires = self.0.lock();
        wires.cut.clear();
        wires.unreliable = 0;
    }

    /// Plants a fault.
    pub fn tamper(&self, tamper: Tamper) {
        self.0.lock().tamper = tamper;
    }

    /// Has members that are opened from now on seal with keys under `root`.
    pub fn seal_under(&self, root: SecretKey) {
        self.0.lock().root = Some(root);
    }

    /// Forgets a member: nothing reaches it any more.
    pub fn detach(&self, member: MemberId) {
        self.0.lock().members.remove(&member);
    }

    /// Opens the member whose disk this is, or which `begin` makes there. `bounds` say how patient it is, and how much it keeps.
    pub async fn open(
        &self,
        disk: &SimDisk,
        seed: u64,
        bounds: (Timing, Sizes),
        begin: Begin,
    ) -> Result<Keyspace, OpenError> {
        let mut host = Host::simulated(Arc::new(disk.clone()), seed, false, bounds.1);
        host.timing = bounds.0;
        let of = disk.clone();
        host.latency = Some(Arc::new(move || of.latency()));
        let root = self.0.lock().root.clone();
        let prepared = Keyspace::prepare_on(host, Config { begin, root, ..Config::new("/data") }).await?;
        let member = prepared.member();
        let port = Arc::new(Port { from: member, net: self.clone() });
        let keyspace = prepared.start_with(port).await?;
        self.0.lock().members.insert(member, Arc::downgrade(&keyspace.0.member));
        let (of, mut stopped) = (keyspace.0.member.clone(), keyspace.0.stop.subscribe());
        let announce = leader::announce(of.clone(), format!("sim:{member}"), Vec::new(), stopped.clone());
        let ahead = async move {
            tokio::select! {
                () = make_ahead(of) => (),
                _ = stopped.wait_for(|stopped| *stopped) => (),
            }
        };
        keyspace.0.tasks.lock().extend([tokio::spawn(announce), tokio::spawn(ahead)]);
        Ok(keyspace)
    }

    fn is_cut(&self, from: MemberId, to: MemberId) -> bool {
        self.0.lock().cut.contains(&(from, to))
    }

    fn find(&self, member: MemberId) -> Option<Arc<Member>> {
        self.0.lock().members.get(&member)?.upgrade()
    }

    fn fate(&self) -> Fate {
        let mut wires = self.0.lock();
        let percent = wires.unreliable;
        let mut happens = |of: u32| percent > 0 && wires.random.random_ratio(percent.min(100), of);
        let (lost, answer_lost, repeated, delayed) = (happens(200), happens(200), happens(100), happens(100));
        let delay = if delayed { Duration::from_millis(wires.random.random_range(1..60)) } else { Duration::ZERO };
        Fate { lost, answer_lost, repeated, delay }
    }

    /// Where something comes later than what was said of it: to whom, and how much.
    fn late(&self, to: MemberId) -> Option<(Arc<Member>, Duration)> {
        let member = self.find(to)?;
        let mut wires = self.0.lock();
        (wires.tamper == Tamper::EarlyVotes).then(|| (member, Duration::from_millis(wires.random.random_range(1..100))))
    }

    /// What a planted fault answers at once.
    fn tampered(&self, from: MemberId, to: MemberId, call: &Call) -> Option<Answer> {
        let tamper = self.0.lock().tamper;
        let is_gone = || self.is_cut(from, to) || self.is_cut(to, from) || self.find(to).is_none();
        match (call, tamper) {
            (Call::Append(request), Tamper::EarlyAppends) if !request.entries.is_empty() => {
                Some(Answer::Append(AppendEntriesResponse::Success))
            }
            (Call::Append(_), Tamper::SmallQuorum) if is_gone() => Some(Answer::Append(AppendEntriesResponse::Success)),
            (Call::Vote(request) | Call::PreVote(request), Tamper::EarlyVotes) if !is_gone() => {
                Some(Answer::Vote(VoteResponse::new(request.vote, None, true)))
            }
            (Call::Vote(request) | Call::PreVote(request), Tamper::SmallQuorum) if is_gone() => {
                Some(Answer::Vote(VoteResponse::new(request.vote, None, true)))
            }
            _ => None,
        }
    }
}

struct Port {
    from: MemberId,
    net: SimNet,
}

impl Transport for Port {
    fn call(&self, to: MemberId, _: &str, call: Call) -> BoxFuture<'static, Result<Answer, TransportError>> {
        let (from, net) = (self.from, self.net.clone());
        Box::pin(async move {
            let failed = |why: &str| TransportError::Failed { member: to, reason: why.into() };
            if let Some(early) = net.tampered(from, to, &call) {
                if let (Call::Vote(_), Some((member, late))) = (&call, net.late(to)) {
                    tokio::spawn(async move {
                        tokio::time::sleep(late).await;
                        answer(&member, from, call).await.is_ok()
                    });
                }
                return Ok(early);
            }
            if net.is_cut(from, to) {
                return Err(TransportError::Unreachable(to));
            }
            if let Call::Snapshot { .. } = call {
                let member = net.find(to).ok_or(TransportError::Unreachable(to))?;
                return answer(&member, from, call).await;
            }
            let asked = match &call {
                Call::Ask(Ask::Write(transaction)) => Some(transaction.clone()),
                _ => None,
            };
            // A stream repeats nothing that was asked for a client: it is written to once.
            let streams = matches!(call, Call::Ask(_));
            let bytes: Bytes = wire(&call).into();
            let fate = net.fate();
            tokio::time::sleep(fate.delay).await;
            if fate.lost || net.is_cut(from, to) {
                return Err(failed("it was lost"));
            }
            let member = net.find(to).ok_or(TransportError::Unreachable(to))?;
            if fate.repeated && !streams {
                let (member, again) = (member.clone(), incoming(&bytes));
                tokio::spawn(async move { answer(&member, from, again).await.is_ok() });
            }
            // Whoever called may go away; whoever is called does not know.
            let (call, of) = (incoming(&bytes), asked.clone());
            let answering = tokio::spawn(async move {
                let mut answer = answer(&member, from, call).await;
                if let (Ok(answer), Some(asked)) = (&mut answer, &of) {
                    spare(answer, asked);
                }
                wire_answer(&answer)
            });
            let bytes = answering.await.map_err(|_| failed("it ended"))?;
            if fate.answer_lost || net.is_cut(to, from) {
                return Err(failed("the answer was lost"));
            }
            incoming_answer(&bytes, to, asked.as_ref())
        })
    }
}
