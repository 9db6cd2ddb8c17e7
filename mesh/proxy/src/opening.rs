//! Who opens ports of a node that begins, and when, so that each has afterwards what he had before: Services of type LoadBalancer and
//! Gateways may want the same, and hear of it at different times.
//!
//! ```text
//!  Held ─(what Services have by their status is open)─► Gateways ─(so are the ports of listeners)─► All
//! ```
//! Once all may open ports, whoever opens one first has it.
//!
//! What Services had is what their status says when the node lists them. The status of one that only this node was the balancer of loses
//! its addresses while the node is not ready, as in a restart, and has them again once the node is, and says what it did before: if the
//! node has listed the Service before that, its ports are new, and a Gateway that wants the same has them.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::watch;

/// How long Services wait for Gateways, of which somebody may not be told.
pub(crate) const GATEWAYS_WITHIN: Duration = Duration::from_secs(30);

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
}

impl Opening {
    /// Gateways will be served.
    pub fn expect_gateways(&self) {
        self.has_gateways.store(true, Relaxed);
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
