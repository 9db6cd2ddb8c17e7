//! Datagrams to pods of other nodes.
//!
//! UDP knows no connections: a flow is what one socket of a client's and one port of a pod say to each other. Each has a stream of the
//! link between the nodes, in which a datagram stands behind its length (two bytes, the most significant first), so that whatever holds for
//! streams holds for flows: both nodes judge them, and who uses the way has a share of it. A stream loses nothing and delivers in order; what
//! comes faster than it goes is lost here, as it would be in a router. Rejected: datagrams of our own between nodes (QUIC, or
//! DTLS), which lose less time after a loss, and would be a second port, a second handshake and a second crate; and the capsules of RFC 9298, whose
//! types and contexts nobody needs here. Revisit when somebody has media between nodes.
//!
//! [`carry`] is the end that calls, for clients of a node's port and for guests, whose datagrams come to [`sockets`] of this process;
//! [`upstream`] the end that is called.

mod carry;
mod sockets;
mod upstream;

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::codec::LengthDelimitedCodec;

pub(crate) use self::carry::{Carry, Outbox, Waiting};
pub(crate) use self::sockets::Sockets;
pub use self::upstream::Upstream;
pub(crate) use self::upstream::Upstreams;

use crate::turns::Turns;

/// A client that neither sends nor gets anything for so long is forgotten (the kernel's own times, for a stream of datagrams
/// and for those that nobody has answered).
const IDLE_MAX: Duration = Duration::from_secs(180);
const IDLE_UNANSWERED_MAX: Duration = Duration::from_secs(30);
/// The largest datagram.
pub(crate) const DATAGRAM_BYTES_MAX: usize = 65_535;
/// A program may say that it runs before it has bound its socket, and no probe knows about datagrams: the first one of a client is
/// sent again for so long while the kernel says that nobody is there,
pub(crate) const BOUND_WITHIN: Duration = Duration::from_secs(2);
/// this often.
pub(crate) const AGAIN_AFTER: Duration = Duration::from_millis(20);
/// Wait after an error of a socket that comes again and again.
pub(crate) const ERROR_WAIT: Duration = Duration::from_millis(5);

/// When a flow has rested for long enough to be forgotten, as things are.
pub(crate) fn rests_at(turns: &Turns, begun: Instant) -> Instant {
    let rests = |(is_answered, since)| since + if is_answered { IDLE_MAX } else { IDLE_UNANSWERED_MAX };
    turns.patience().map_or(begun, rests)
}

/// Waits until a flow has rested for long enough to be forgotten.
async fn rested(turns: &Turns, begun: Instant) {
    loop {
        let rests_at = rests_at(turns, begun);
        tokio::time::sleep_until(rests_at).await;
        if self::rests_at(turns, begun) <= Instant::now() {
            return;
        }
    }
}

/// How datagrams stand in a stream, the same at both ends.
fn framing() -> tokio_util::codec::length_delimited::Builder {
    let mut framing = LengthDelimitedCodec::builder();
    framing.length_field_type::<u16>().max_frame_length(DATAGRAM_BYTES_MAX);
    framing
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::{SinkExt as _, StreamExt as _};

    #[tokio::test]
    async fn a_datagram_stands_behind_its_length_and_what_is_cut_off_is_none() {
        let mut written = framing().new_write(Vec::new());
        let largest = vec![7; DATAGRAM_BYTES_MAX];
        for datagram in [&b"ab"[..], b"", &largest] {
            written.send(Bytes::copy_from_slice(datagram)).await.unwrap();
        }
        let beyond = Bytes::from(vec![0; DATAGRAM_BYTES_MAX + 1]);
        assert!(written.send(beyond).await.is_err(), "no such datagram");
        let bytes = written.into_inner();
        assert_eq!(&bytes[..8], b"\0\x02ab\0\0\xff\xff");
        let read = async |bytes: &[u8]| {
            let mut read = framing().new_read(bytes);
            let mut lengths = Vec::new();
            while let Some(datagram) = read.next().await {
                match datagram {
                    Ok(datagram) => lengths.push(datagram.len()),
                    Err(_) => return (lengths, false),
                }
            }
            (lengths, true)
        };
        assert_eq!(read(&bytes).await, (vec![2, 0, DATAGRAM_BYTES_MAX], true));
        // Where a length has come and nothing else, the end is as good as one in order: nothing is taken for a datagram.
        let ends = [(0, true), (1, false), (3, false), (4, true), (5, false), (6, true), (8, true), (100, false)];
        for (end, is_whole) in ends {
            let (lengths, is_over) = read(&bytes[..end]).await;
            assert_eq!((is_over, lengths.len()), (is_whole, [4, 6].iter().filter(|at| **at <= end).count()), "{end}");
        }
    }
}
