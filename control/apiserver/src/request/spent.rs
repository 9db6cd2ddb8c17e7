//! What the expressions of one request take, whoever asks them: policies and match conditions of webhooks, in every phase of its
//! admission and each time that it is admitted anew.

use std::time::{Duration, Instant};

use coracle_api::cel::admission::{Condition, Inputs, matches};
use parking_lot::Mutex;

/// What all that is asked of one request may cost together: ten bindings may cost all that one may.
const REQUEST_BUDGET: usize = 100_000_000;
/// For how long policies are asked, with what they are asked with.
const ASKED_FOR: Duration = Duration::from_secs(10);
/// Units after which others have their turn: some milliseconds of a thread that many share.
const TURN_COST: usize = 100_000;
/// Bytes of an object or of a message that are read, or made, for one unit.
pub(crate) const UNIT_BYTES: usize = 10;

const OVER: &str = "the expressions that admission asks of this request cost more than they may together";

/// What a request has taken. One object is admitted in one phase at a time.
#[derive(Default)]
pub(crate) struct Spent(Mutex<Taken>);

#[derive(Default)]
struct Taken {
    cost: usize,
    /// Since others had their turn.
    turn: usize,
    /// How long policies were asked, but for the phase under way, and since when that is.
    asked: Duration,
    since: Option<Instant>,
}

/// A phase in which policies are asked; it ends when this is dropped.
pub(crate) struct Phase<'a>(&'a Spent);

impl Drop for Phase<'_> {
    fn drop(&mut self) {
        let mut taken = self.0.0.lock();
        let passed = taken.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        taken.asked += passed;
    }
}

impl Spent {
    /// Begins a phase in which policies are asked. How long somebody outside takes between two of these does not count.
    pub fn phase(&self) -> Phase<'_> {
        self.0.lock().since.get_or_insert_with(Instant::now);
        Phase(self)
    }

    /// Takes more; others have their turn after much.
    pub async fn take(&self, cost: usize) {
        let is_much = {
            let mut taken = self.0.lock();
            taken.cost = taken.cost.saturating_add(cost);
            taken.turn = taken.turn.saturating_add(cost);
            taken.turn >= TURN_COST && std::mem::take(&mut taken.turn) > 0
        };
        if is_much {
            tokio::task::yield_now().await;
        }
    }

    /// Whether all conditions hold, or what failed, in words.
    pub async fn matches(&self, conditions: &[Condition], inputs: &Inputs<'_>) -> Result<bool, String> {
        if self.cost() >= REQUEST_BUDGET {
            return Err(OVER.to_owned());
        }
        let (holds, cost) = matches(conditions, inputs);
        self.take(cost).await;
        holds
    }

    /// Why nothing further can be asked.
    pub fn over(&self) -> Option<String> {
        let taken = self.0.lock();
        let asked = taken.asked + taken.since.map_or(Duration::ZERO, |since| since.elapsed());
        (taken.cost >= REQUEST_BUDGET || asked >= ASKED_FOR).then(|| OVER.to_owned())
    }

    /// Units that were taken.
    pub fn cost(&self) -> usize {
        self.0.lock().cost
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_are_paid_for_and_end_with_the_budget() {
        let conditions = [Condition::compile("c", "lists.range(200000).size() > 0", false).expect("a condition")];
        let request = json!({});
        let inputs = Inputs {
            object: None,
            old_object: None,
            request: &request,
            params: None,
            namespace: None,
            authorizer: None,
        };
        let spent = Spent::default();
        {
            let mut asked = Box::pin(spent.matches(&conditions, &inputs));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            // Others have their turn after it.
            assert!(asked.as_mut().poll(&mut context).is_pending());
            assert_eq!(asked.as_mut().poll(&mut context), std::task::Poll::Ready(Ok(true)));
        }
        assert!(spent.cost() >= 200_000);
        spent.0.lock().cost = REQUEST_BUDGET;
        assert!(futures::executor::block_on(spent.matches(&conditions, &inputs)).is_err());
        assert!(spent.over().is_some());
    }

    #[test]
    fn phases_are_timed_together_and_what_is_between_them_is_not() {
        let spent = Spent::default();
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).expect("a time");
        let phase = spent.phase();
        spent.0.lock().since = Some(ago(6));
        drop(phase);
        assert!(spent.over().is_none() && spent.0.lock().since.is_none());
        let _phase = spent.phase();
        assert!(spent.over().is_none());
        spent.0.lock().since = Some(ago(6));
        assert!(spent.over().is_some());
    }
}
