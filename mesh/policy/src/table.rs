//! The answer to whether somebody may connect to somebody.

use std::net::IpAddr;
use std::sync::Arc;

use crate::memory::Memory;
use crate::rule::{Other, Work};
use crate::rules::Rules;
use crate::workload::{Destination, Port, Source, Workload};

/// A direction, as a pod has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// What comes to it.
    Ingress,
    /// What it begins.
    Egress,
}

/// Rules at one moment. Where they say nothing an answer costs a look; else it is found once for who calls, who is called and the port.
#[derive(Default)]
pub struct Table {
    rules: Rules,
    /// Grows with each table.
    generation: u64,
    memory: Memory<Question>,
}

/// The other end of a connection, in few bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum End {
    Pod(u64),
    Outside(IpAddr),
    Unknown,
}

impl End {
    fn of(other: Other<'_>) -> End {
        match other {
            Other::Pod(pod) => End::Pod(pod.number),
            Other::Outside(address) => End::Outside(address),
            Other::Unknown => End::Unknown,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Question {
    IsIsolated(u64, Direction),
    Allows(u64, Direction, End, Port),
}

impl Table {
    /// The table after another of a lower `generation`.
    pub fn new(rules: Rules, generation: u64) -> Table {
        Table { rules, generation, memory: Memory::default() }
    }

    /// Grows with each table; what an older one has allowed may not be allowed any more.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether there is no policy at all: everybody may do everything.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether `source` may connect to `to` at this port of it: it may let it out, and that lets it in.
    pub fn allows(&self, source: &Source, to: &Destination, port: Port) -> bool {
        if self.is_empty() {
            return true;
        }
        let lets_out = match source {
            Source::Pod(pod) => self.lets_out(pod, to, port),
            Source::Outside(_) | Source::Node | Source::Unknown => true,
        };
        lets_out
            && match to {
                Destination::Pod(pod) => self.lets_in(source, pod, port),
                Destination::Outside(_) | Destination::Unknown => true,
            }
    }

    /// Whether policies of the pod let it connect to this port of `to`.
    pub fn lets_out(&self, pod: &Arc<Workload>, to: &Destination, port: Port) -> bool {
        let (other, called) = match to {
            Destination::Pod(to) if to.is(pod) => return true,
            Destination::Pod(to) => (Other::Pod(to), Some(&**to)),
            Destination::Outside(address) => (Other::Outside(*address), None),
            Destination::Unknown => (Other::Unknown, None),
        };
        self.decide(pod, Direction::Egress, other, called, port)
    }

    /// Whether policies of the pod let `source` connect to this port of it.
    pub fn lets_in(&self, source: &Source, pod: &Arc<Workload>, port: Port) -> bool {
        let other = match source {
            Source::Node => return true,
            Source::Pod(from) if from.is(pod) => return true,
            Source::Pod(from) => Other::Pod(from),
            Source::Outside(address) => Other::Outside(*address),
            Source::Unknown => Other::Unknown,
        };
        self.decide(pod, Direction::Ingress, other, Some(pod), port)
    }

    /// Whether a policy is about this direction of the pod: what none allows it may not.
    pub fn isolates(&self, pod: &Workload, direction: Direction) -> bool {
        let Some(policies) = self.rules.of(&pod.namespace) else { return false };
        self.memory.answer(Question::IsIsolated(pod.number, direction), || {
            let mut work = Work::default();
            // Where that cannot be told to its end it is taken for one.
            policies.values().any(|policy| policy.rules(pod, direction, &mut work).is_some() || work.is_over())
        })
    }

    fn decide(
        &self,
        pod: &Workload,
        direction: Direction,
        other: Other<'_>,
        called: Option<&Workload>,
        port: Port,
    ) -> bool {
        let (rules, namespace) = (&self.rules, &*pod.namespace);
        let Some(policies) = rules.of(namespace) else { return true };
        self.memory.answer(Question::Allows(pod.number, direction, End::of(other), port), || {
            let (mut is_isolated, mut work) = (false, Work::default());
            for policy in policies.values() {
                let Some(found) = policy.rules(pod, direction, &mut work) else { continue };
                if found.allow(other, called, port, (namespace, &rules.namespaces), &mut work) {
                    return true;
                }
                is_isolated = true;
            }
            !is_isolated && !work.is_over()
        })
    }
}
