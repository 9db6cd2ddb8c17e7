//! What watches of one kind were told, by whom. What is heard of a revision is the same whoever says it; and where one was told
//! everything between two revisions, what it was not told did not happen there.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash as _, Hasher};
use std::ops::Bound;

/// An event as it is compared: what it was called, and what it said.
pub type Told = (String, String);

/// What one was told everything of: what happened after a revision, up to another.
#[derive(Hash)]
pub struct Span {
    pub by: u64,
    pub after: u64,
    pub upto: u64,
}

/// Everything that was heard of one kind.
#[derive(Default)]
pub struct Heard {
    events: BTreeMap<u64, Told>,
    spans: Vec<Span>,
}

impl Heard {
    /// Takes what was told in one go; what is wrong with it. `kind` is for people.
    pub fn takes(&mut self, kind: &str, span: Span, events: Vec<(u64, Told)>) -> Vec<String> {
        let mut wrong = Vec::new();
        let Span { by, after, upto } = span;
        let these: BTreeSet<u64> = events.iter().map(|(revision, _)| *revision).collect();
        for (revision, event) in self.events.range((Bound::Excluded(after), Bound::Included(upto.max(after)))) {
            if !these.contains(revision) {
                wrong.push(format!("member {by} does not say {kind} {revision} ({event:?}), from {after} to {upto}"));
            }
        }
        for (revision, event) in events {
            match self.events.get(&revision) {
                Some(known) if *known != event => {
                    wrong.push(format!("member {by} says {kind} {revision} is {event:?}, another {known:?}"));
                }
                Some(_) => (),
                None => {
                    let missed = |other: &&Span| other.after < revision && revision <= other.upto;
                    if let Some(Span { by, after, upto }) = self.spans.iter().find(missed) {
                        let span = format!("from {after} to {upto}");
                        wrong.push(format!("member {by} does not say {kind} {revision} ({event:?}), {span}"));
                    }
                    self.events.insert(revision, event);
                }
            }
        }
        self.spans.push(span);
        wrong
    }

    /// Adds all of it to a fingerprint.
    pub fn print(&self, into: &mut impl Hasher) {
        (&self.events, &self.spans).hash(into);
    }
}
