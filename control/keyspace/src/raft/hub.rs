//! Members of one process, connected by function calls: for programs that embed a whole group, and for tests, which can
//! cut the connections.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::ask::Ask;
use super::network::{Answer, Call, Transport, TransportError, answer};
use super::{Member, MemberId};

/// Where the members of a group meet; clones are the same one.
#[derive(Clone, Default)]
pub struct Hub(Arc<Mutex<Connections>>);

#[derive(Default)]
struct Connections {
    members: HashMap<MemberId, Weak<Member>>,
    alone: HashSet<MemberId>,
    /// Pairs that do not reach each other, the lower number first.
    cut: HashSet<(MemberId, MemberId)>,
    /// Pairs of which what the first sends the second comes there only if it is small.
    narrow: HashSet<(MemberId, MemberId)>,
}

impl Hub {
    /// A hub without members.
    pub fn new() -> Hub {
        Hub::default()
    }

    /// Cuts `member` off from all others, or connects it again.
    pub fn isolate(&self, member: MemberId, alone: bool) {
        let mut connections = self.0.lock();
        if alone {
            connections.alone.insert(member);
        } else {
            connections.alone.remove(&member);
        }
    }

    /// Cuts the connection between two members, which reach all others still.
    pub fn cut(&self, one: MemberId, other: MemberId) {
        self.0.lock().cut.insert((one.min(other), one.max(other)));
    }

    /// Loses entries, snapshots and writes on the way from one member to another, as a network does that has lost its large packets.
    /// Or no more.
    pub fn narrow(&self, from: MemberId, to: MemberId, narrow: bool) {
        let mut connections = self.0.lock();
        match narrow {
            true => connections.narrow.insert((from, to)),
            false => connections.narrow.remove(&(from, to)),
        };
    }

    /// How `from` reaches the others.
    pub(crate) fn transport(&self, from: MemberId) -> Arc<dyn Transport> {
        Arc::new(Link { from, hub: self.clone() })
    }

    /// Lets the others reach `member`. It is forgotten when it is dropped.
    pub(crate) fn attach(&self, id: MemberId, member: &Arc<Member>) {
        self.0.lock().members.insert(id, Arc::downgrade(member));
    }

    fn find(&self, from: MemberId, to: MemberId) -> Option<Arc<Member>> {
        let connections = self.0.lock();
        let pair = (from.min(to), from.max(to));
        if connections.alone.contains(&from) || connections.alone.contains(&to) || connections.cut.contains(&pair) {
            return None;
        }
        connections.members.get(&to)?.upgrade()
    }
}

struct Link {
    from: MemberId,
    hub: Hub,
}

impl Transport for Link {
    fn call(&self, to: MemberId, _: &str, call: Call) -> BoxFuture<'static, Result<Answer, TransportError>> {
        let (from, hub) = (self.from, self.hub.clone());
        Box::pin(async move {
            let member = hub.find(from, to).ok_or(TransportError::Unreachable(to))?;
            if is_large(&call) && hub.0.lock().narrow.contains(&(from, to)) {
                // Nobody says that it is lost.
                return std::future::pending().await;
            }
            let answer = answer(&member, from, call).await?;
            // An answer is lost on a connection that was cut meanwhile.
            let cut = || TransportError::Failed { member: to, reason: "the connection was cut".into() };
            hub.find(to, from).ok_or_else(cut)?;
            Ok(answer)
        })
    }
}

fn is_large(call: &Call) -> bool {
    match call {
        Call::Append(request) => !request.entries.is_empty(),
        Call::Ask(Ask::Write(_)) | Call::Snapshot { .. } => true,
        Call::Vote(_) | Call::PreVote(_) | Call::Transfer(_) | Call::Ask(_) => false,
    }
}
