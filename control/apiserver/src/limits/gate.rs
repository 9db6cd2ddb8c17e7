//! A few places, given out by caller: whoever asks a thousand times waits behind itself, and not before everybody else.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

type Flows = Arc<Mutex<HashMap<Arc<str>, Arc<Semaphore>>>>;

/// The places.
pub(crate) struct Gate {
    places: Arc<Semaphore>,
    most: usize,
    /// Each flow has no more at the gate than there are places: behind it the turns go by flow.
    flows: Flows,
}

/// A place, held.
pub(crate) struct Turn {
    flows: Flows,
    flow: Arc<str>,
    held: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Gate {
    pub fn new(most: usize) -> Gate {
        Gate { places: Arc::new(Semaphore::new(most)), most, flows: Arc::default() }
    }

    /// Waits for a place.
    pub async fn take(&self, flow: &str) -> Turn {
        let (name, gate) = {
            let mut flows = self.flows.lock();
            match flows.get_key_value(flow) {
                Some((name, gate)) => (name.clone(), gate.clone()),
                None => {
                    let name: Arc<str> = Arc::from(flow);
                    let gate = Arc::new(Semaphore::new(self.most));
                    flows.insert(name.clone(), gate.clone());
                    (name, gate)
                }
            }
        };
        // Made before the first wait: whoever leaves while waiting tidies up, too.
        let mut turn = Turn { flows: self.flows.clone(), flow: name, held: None };
        let mine = gate.acquire_owned().await.expect("nobody closes it");
        let place = self.places.clone().acquire_owned().await.expect("nobody closes it");
        turn.held = Some((mine, place));
        turn
    }

    /// How many have a place at a time.
    #[cfg(test)]
    pub fn most(&self) -> usize {
        self.most
    }

    /// Whether nobody waits or has a place.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.flows.lock().is_empty()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.held = None;
        let mut flows = self.flows.lock();
        // Only the map itself still has it: nobody of this flow waits or works.
        if flows.get(&self.flow).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            flows.remove(&self.flow);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_caller_s_queue_is_before_nobody_else() {
        let gate = Gate::new(2);
        let held = [gate.take("many").await, gate.take("many").await];
        let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(gate.take("many"))).collect();
        for turn in &mut waiting {
            assert!(turn.now_or_never().is_none());
        }
        let mut other = Box::pin(gate.take("other"));
        assert!((&mut other).now_or_never().is_none());
        drop(held);
        let turn = (&mut other).now_or_never().expect("it comes before what the first asks for later");
        drop((turn, other, waiting));
        assert!(gate.is_empty());
    }
}
