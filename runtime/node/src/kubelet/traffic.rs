//! Connections that have become something else (`exec`, `attach`, `portForward`): whether anybody is there, and how long they may carry
//! nothing.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// A connection that has carried nothing for so long is ended (kubelet's `streamingConnectionIdleTimeout`).
pub(super) const IDLE_MAX: Duration = Duration::from_secs(4 * 3600);
/// So often a client is sent a ping. An answer is not waited for: who reads slowly answers late. But what is sent to somebody who is
/// not there any more comes back as an error, also while nothing is read of him because nobody wants what he says.
pub(super) const PING_EVERY: Duration = Duration::from_secs(30);
/// A connection of a client's to a pod that takes nothing of what waits for it is ended after this.
pub(super) const STALLED_MAX: Duration = Duration::from_secs(if cfg!(test) { 20 } else { 15 * 60 });
/// How long a client may take to open all streams of one thing (kubelet's `streamCreationTimeout`).
pub(super) const STREAMS_WAIT: Duration = Duration::from_secs(30);

/// How long words of parting may take, to a client that has gone or has not been heard of.
pub(super) const PARTING_MAX: Duration = Duration::from_secs(10);

/// When a connection has carried something for the last time. Pings are nothing.
#[derive(Debug)]
pub(super) struct Traffic(Mutex<Instant>);

impl Default for Traffic {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Traffic {
    pub fn carried(&self) {
        *self.0.lock() = Instant::now();
    }

    /// Waits until nothing has been carried for [`IDLE_MAX`].
    pub async fn idle(&self) {
        loop {
            let until = *self.0.lock() + IDLE_MAX;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_carried_puts_off_the_end() {
        let (traffic, begun) = (Traffic::default(), Instant::now());
        let carrying = async {
            tokio::time::sleep(IDLE_MAX / 2).await;
            traffic.carried();
        };
        tokio::join!(traffic.idle(), carrying);
        assert_eq!(begun.elapsed().as_secs(), (IDLE_MAX + IDLE_MAX / 2).as_secs());
    }
}
