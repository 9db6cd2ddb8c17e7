//! Who opens ports of a node that begins, and when, so that each has afterwards what he had before: Services of type LoadBalancer and
//! Gateways may want the same, and hear of it at different times.
//!
//! ```text
//!  Held ─(what Services have is open)─► Gateways ─(so are the ports of listeners)─► All
//! ```
//! Once all may open ports, whoever opens one first has it.
//!
//! What Services have is what their status says when the node lists them, and what this node had for them in an earlier life, as its own
//! object says: the status of one that only this node was the balancer of loses its addresses while the node is not ready, as in a
//! restart.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use coracle_discovery::Service;
use tokio::sync::watch;

use crate::Opened;
use crate::places::Key;

/// How long Services wait for Gateways, of which somebody may not be told.
pub(crate) const GATEWAYS_WITHIN: Duration = Duration::from_secs(30);
/// How long it is waited for what the node had, once Services are known: the node may not be told of itself.
pub(crate) const HAD_WITHIN: Duration = Duration::from_secs(30);

/// The ports of balancers that this node had in an earlier life, and for which Service.
#[derive(Debug, Default)]
pub(crate) struct Had(HashMap<Key, (Arc<str>, Arc<str>)>);

impl Had {
    /// Whether this Service had the port.
    pub fn has(&self, service: &Service, key: Key) -> bool {
        self.0.get(&key).is_some_and(|(namespace, name)| *namespace == service.namespace && *name == service.name)
    }
}

/// Who may open ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Turn {
    /// Services, such as they have, and node ports.
    #[default]
    Held,
    /// Gateways, too.
    Gateways,
    /// Everybody.
    All,
}

/// Whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Opening {
    turn: watch::Sender<Turn>,
    has_gateways: AtomicBool,
    expects_had: AtomicBool,
    had: watch::Sender<Option<Arc<Had>>>,
}

impl Opening {
    /// Gateways will be served.
    pub fn expect_gateways(&self) {
        self.has_gateways.store(true, Relaxed);
    }

    /// What the node had will be told.
    pub fn expect_had(&self) {
        self.expects_had.store(true, Relaxed);
    }

    /// What it had; what was told first holds.
    pub fn tell_had(&self, before: Vec<Opened>) {
        let open = before.into_iter().filter(|port| port.is_open);
        let had = open.map(|port| ((port.port, port.protocol), (port.namespace, port.name))).collect();
        self.had.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert_with(|| Arc::new(Had(had)));
            is_first
        });
    }

    /// Whether nothing more is told of what it had.
    pub fn knows_had(&self) -> bool {
        !self.expects_had.load(Relaxed) || self.had.borrow().is_some()
    }

    /// What it had, as far as it is known, and when more is.
    pub fn subscribe_had(&self) -> watch::Receiver<Option<Arc<Had>>> {
        self.had.subscribe()
    }

    /// Tells when it is another's.
    pub fn subscribe(&self) -> watch::Receiver<Turn> {
        self.turn.subscribe()
    }

    /// Whose it is.
    pub fn turn(&self) -> Turn {
        *self.turn.borrow()
    }

    /// What Services have is open.
    pub fn held(&self) {
        self.go_on(if self.has_gateways.load(Relaxed) { Turn::Gateways } else { Turn::All });
    }

    /// So are the ports of Gateways, as far as they can be had.
    pub fn all(&self) {
        self.go_on(Turn::All);
    }

    fn go_on(&self, to: Turn) {
        self.turn.send_if_modified(|turn| {
            let is_later = *turn < to;
            *turn = to.max(*turn);
            is_later
        });
    }
}
