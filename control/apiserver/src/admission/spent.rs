//! What the expressions of one request take, whoever asks them: policies and match conditions of webhooks.

use std::time::{Duration, Instant};

use coracle_api::cel::admission::{Condition, Inputs, matches};

/// What all that is asked of one request may cost together: ten bindings may cost all that one may.
const REQUEST_BUDGET: usize = 100_000_000;
/// For how long it is asked.
const ASKED_FOR: Duration = Duration::from_secs(10);
/// Units after which others have their turn: some milliseconds of a thread that many share.
const TURN_COST: usize = 100_000;
/// Bytes of an object or of a message that are read, or made, for one unit.
pub(super) const UNIT_BYTES: usize = 10;

const OVER: &str = "the expressions that admission asks of this request cost more than they may together";

/// What a request has taken.
pub(super) struct Spent {
    pub cost: usize,
    /// Since others had their turn.
    turn: usize,
    since: Instant,
}

impl Spent {
    pub fn new() -> Spent {
        Spent { cost: 0, turn: 0, since: Instant::now() }
    }

    /// Takes more; others have their turn after much.
    pub async fn take(&mut self, cost: usize) {
        self.cost += cost;
        self.turn += cost;
        if self.turn >= TURN_COST {
            self.turn = 0;
            tokio::task::yield_now().await;
        }
    }

    /// Whether all conditions hold, or what failed, in words. How long somebody outside took between two of these does not count.
    pub async fn matches(&mut self, conditions: &[Condition], inputs: &Inputs<'_>) -> Result<bool, String> {
        if self.cost >= REQUEST_BUDGET {
            return Err(OVER.to_owned());
        }
        let (holds, cost) = matches(conditions, inputs);
        self.take(cost).await;
        holds
    }

    /// Why nothing further can be asked.
    pub fn over(&self) -> Option<String> {
        let is_over = self.cost >= REQUEST_BUDGET || self.since.elapsed() >= ASKED_FOR;
        is_over.then(|| OVER.to_owned())
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
        let mut spent = Spent::new();
        {
            let mut asked = Box::pin(spent.matches(&conditions, &inputs));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            // Others have their turn after it.
            assert!(asked.as_mut().poll(&mut context).is_pending());
            assert_eq!(asked.as_mut().poll(&mut context), std::task::Poll::Ready(Ok(true)));
        }
        assert!(spent.cost >= 200_000);
        spent.cost = REQUEST_BUDGET;
        assert!(futures::executor::block_on(spent.matches(&conditions, &inputs)).is_err());
        assert!(spent.over().is_some());
    }
}
