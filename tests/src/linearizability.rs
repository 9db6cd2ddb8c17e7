//! Whether what clients saw of an object can have happened one operation after another, each between its call and its return.
//!
//! The search is Wing and Gong's with Lowe's memory of places where it has been (G. Lowe, *Testing for linearizability*, 2017):
//! from a state, whatever was called before the first return of those that are left may come next; a set of operations that are
//! done together with the state that they led to is tried once. Objects are independent of each other, so each is searched alone.
//!
//! An operation whose outcome nobody knows may have its effect at any time after its call, or never. So it has no return, and a
//! history is explained when all others are. One that would change nothing where it is tried is not tried there: it may as well
//! never happen.

use std::collections::HashSet;
use std::fmt;

/// What is in an object; each write writes another.
pub type Value = u64;

/// What a client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// To make the object.
    Create(Value),
    /// To write `value` if what is there is what was read, by its resourceVersion.
    Update {
        /// What was read.
        expected: Value,
        /// What is written.
        value: Value,
    },
    /// To write whatever is there.
    Patch(Value),
    /// To delete it.
    Delete,
    /// To read it.
    Get,
}

/// What it is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It is there already.
    Exists,
    /// It is not there.
    Missing,
    /// Something else is there.
    Conflict,
    /// This is there.
    Found(Value),
    /// Nothing that says whether it was done.
    Unknown,
}

/// One operation on one object. Times are of one clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Who asked.
    pub client: usize,
    /// For what.
    pub kind: Kind,
    /// When it was asked for.
    pub called: u64,
    /// When the answer was there; later than everything for one whose outcome is unknown.
    pub returned: u64,
    /// What the answer was.
    pub outcome: Outcome,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Operation { client, kind, called, returned, outcome } = self;
        let milliseconds = |at: u64| at as f64 / 1e6;
        write!(f, "client {client} {kind:?} → {outcome:?}, called at {:.3} ms", milliseconds(*called))?;
        match outcome {
            Outcome::Unknown => Ok(()),
            _ => write!(f, ", returned at {:.3} ms", milliseconds(*returned)),
        }
    }
}

/// What a history is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It can have happened in some order.
    Linearizable,
    /// It cannot. How far the search came, in words.
    Impossible(String),
    /// Nobody knows: the search was given up.
    Undecided,
}

/// Places of a search; beyond them it is given up. A history of an object with a dozen unknown operations has some thousands.
const PLACES_MAX: usize = 4_000_000;

/// What is there: nothing, or a value.
type State = Option<Value>;

/// What an operation makes of a state, and answers.
fn effect(state: State, kind: Kind) -> (State, Outcome) {
    match (kind, state) {
        (Kind::Create(value), None) => (Some(value), Outcome::Done),
        (Kind::Create(_), Some(_)) => (state, Outcome::Exists),
        (Kind::Get, Some(value)) => (state, Outcome::Found(value)),
        (_, None) => (state, Outcome::Missing),
        (Kind::Update { expected, .. }, Some(there)) if there != expected => (state, Outcome::Conflict),
        (Kind::Update { value, .. } | Kind::Patch(value), Some(_)) => (Some(value), Outcome::Done),
        (Kind::Delete, Some(_)) => (None, Outcome::Done),
    }
}

/// A set of operations, by their places in the history.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Set(Box<[u64]>);

impl Set {
    fn new(count: usize) -> Set {
        Set(vec![0; count.div_ceil(64)].into())
    }

    fn has(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }

    fn flip(&mut self, at: usize) {
        self.0[at / 64] ^= 1 << (at % 64);
    }
}

/// A place of the search: what may come next here, and what led here.
struct Place {
    state: State,
    next: Vec<usize>,
    came_by: Option<usize>,
}

/// Judges the history of one object, whose operations may be in any order.
pub fn check(history: &[Operation]) -> Verdict {
    let mut operations: Vec<Operation> = history.to_vec();
    operations.sort_by_key(|operation| operation.called);
    let is_known = |at: usize| operations[at].outcome != Outcome::Unknown;
    let known = (0..operations.len()).filter(|at| is_known(*at)).count();
    // What may come next, the likeliest last: those with the earliest returns, and before those without one.
    let next = |done: &Set, state: State| {
        let left = || (0..operations.len()).filter(|at| !done.has(*at));
        let first_return = left().filter(|at| is_known(*at)).map(|at| operations[at].returned).min();
        let callable = left().take_while(|at| first_return.is_none_or(|first| operations[*at].called <= first));
        let mut possible: Vec<usize> = callable
            .filter(|at| {
                let (then, answer) = effect(state, operations[*at].kind);
                if is_known(*at) { answer == operations[*at].outcome } else { then != state }
            })
            .collect();
        possible.sort_by_key(|at| std::cmp::Reverse((!is_known(*at), operations[*at].returned)));
        possible
    };
    let (mut done, mut done_known) = (Set::new(operations.len()), 0);
    let mut been = HashSet::new();
    let mut furthest = (0, None, done.clone());
    let mut way = vec![Place { state: None, next: next(&done, None), came_by: None }];
    while let Some(place) = way.last_mut() {
        if done_known == known {
            return Verdict::Linearizable;
        }
        let Some(at) = place.next.pop() else {
            if let Some(back) = place.came_by {
                done.flip(back);
                done_known -= usize::from(is_known(back));
            }
            way.pop();
            continue;
        };
        let state = effect(place.state, operations[at].kind).0;
        done.flip(at);
        if !been.insert((done.clone(), state)) {
            done.flip(at);
            continue;
        }
        if been.len() > PLACES_MAX {
            return Verdict::Undecided;
        }
        done_known += usize::from(is_known(at));
        if done_known > furthest.0 {
            furthest = (done_known, state, done.clone());
        }
        way.push(Place { state, next: next(&done, state), came_by: Some(at) });
    }
    let (count, state, done) = furthest;
    let left = (0..operations.len()).filter(|at| !done.has(*at) && is_known(*at));
    let mut left: Vec<Operation> = left.map(|at| operations[at]).collect();
    left.sort_by_key(|operation| operation.returned);
    let mut text = match state {
        Some(value) => format!("of {known} operations {count} can be explained, after which {value} is there;"),
        None => format!("of {known} operations {count} can be explained, after which nothing is there;"),
    };
    text.push_str(" none of these can come next:");
    for operation in left.iter().take(4) {
        text.push_str(&format!("\n    {operation}"));
    }
    Verdict::Impossible(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(kind: Kind, called: u64, returned: u64, outcome: Outcome) -> Operation {
        let returned = if outcome == Outcome::Unknown { u64::MAX } else { returned };
        Operation { client: 0, kind, called, returned, outcome }
    }

    #[test]
    fn what_may_not_happen_is_found() {
        use Kind::*;
        use Outcome::*;
        let update = |expected, value| Update { expected, value };
        for (what, is_possible, history) in [
            ("nothing", true, vec![]),
            ("one after the other", true, vec![(Create(1), 0, 1, Done), (Get, 2, 3, Found(1)), (Delete, 4, 5, Done)]),
            ("a stale read", false, vec![(Create(1), 0, 1, Done), (Patch(2), 2, 3, Done), (Get, 4, 5, Found(1))]),
            (
                "a read beside a write",
                true,
                vec![(Create(1), 0, 1, Done), (Patch(2), 2, 6, Done), (Get, 3, 5, Found(1))],
            ),
            (
                "a read that goes back",
                false,
                vec![(Create(1), 0, 1, Done), (Patch(2), 2, 9, Done), (Get, 3, 4, Found(2)), (Get, 5, 6, Found(1))],
            ),
            ("a lost write", false, vec![(Create(1), 0, 1, Done), (Get, 2, 3, Missing)]),
            (
                "two that compare with the same",
                false,
                vec![(Create(1), 0, 1, Done), (update(1, 2), 2, 5, Done), (update(1, 3), 3, 6, Done)],
            ),
            ("a conflict with nothing", false, vec![(Create(1), 0, 1, Done), (update(1, 2), 2, 3, Conflict)]),
            ("two that create", false, vec![(Create(1), 0, 3, Done), (Create(2), 1, 4, Done)]),
            (
                "two that create, and one between that deletes",
                true,
                vec![(Create(1), 0, 3, Done), (Create(2), 1, 4, Done), (Delete, 2, 5, Done)],
            ),
            (
                "an unknown write that came late",
                true,
                vec![(Create(1), 0, 1, Done), (Patch(2), 2, 0, Unknown), (Get, 3, 4, Found(1)), (Get, 5, 6, Found(2))],
            ),
            (
                "an unknown write that came twice",
                false,
                vec![
                    (Create(1), 0, 1, Done),
                    (Patch(2), 2, 0, Unknown),
                    (Get, 3, 4, Found(2)),
                    (Patch(3), 5, 6, Done),
                    (Get, 7, 8, Found(2)),
                ],
            ),
            (
                "an unknown write that came before it was asked for",
                false,
                vec![(Create(1), 0, 1, Done), (Get, 2, 3, Found(2)), (Patch(2), 4, 0, Unknown)],
            ),
            (
                "an unknown delete that explains what is missing",
                true,
                vec![(Create(1), 0, 1, Done), (Delete, 2, 0, Unknown), (Patch(2), 3, 4, Missing)],
            ),
            ("a write that failed and was seen", false, vec![(Create(1), 0, 1, Done), (Get, 2, 3, Found(2))]),
        ] {
            let history: Vec<Operation> = history
                .into_iter()
                .map(|(kind, called, returned, outcome)| operation(kind, called, returned, outcome))
                .collect();
            assert_eq!(check(&history) == Verdict::Linearizable, is_possible, "{what}: {:?}", check(&history));
        }
    }
}
