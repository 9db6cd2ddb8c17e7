//! Which of a pod's connections are in use, as the kernel knows it: what a command is given time for when its pod is deleted.
//!
//! The kernel is asked for all TCP sockets at once (`sock_diag(7)`), at most every [`SAMPLE_EVERY`] however many pods end, and
//! not at all while none does. A kernel that does not answer leaves commands without that time, as if nothing were connected.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How old an answer of the kernel may be.
const SAMPLE_EVERY: Duration = Duration::from_millis(50);
/// How long a listener stays although nobody is connected: others may still believe that the pod is ready.
const LINGER: Duration = Duration::from_millis(250);
/// A connection of the gateway on which nothing has moved for this long waits for its next request.
const QUIET: Duration = Duration::from_millis(1000);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Requests under way.
    Requests,
    /// Those, and connections of other guests for as long as they are open: they may be in the middle of something that only
    /// they know.
    Sessions,
}

/// One TCP socket at a loopback address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    is_listener: bool,
    port: u16,
    peer: IpAddr,
    /// Bytes that were not read (of a listener: connections that were not accepted) and not sent.
    unread: u32,
    unsent: u32,
    /// How long ago something was sent and received.
    sent: Duration,
    received: Duration,
}

impl Socket {
    fn is_busy(&self, patience: Patience) -> bool {
        let is_guest = self.peer != IpAddr::V4(Ipv4Addr::LOCALHOST);
        self.unread > 0
            || self.unsent > 0
            // What came last came from the client: it waits for an answer.
            || self.received < self.sent
            || self.sent.min(self.received) < QUIET
            || (is_guest && patience == Patience::Sessions)
    }
}

type Sample = Arc<HashMap<IpAddr, Vec<Socket>>>;

/// Asks the kernel, for all who wait.
#[derive(Default)]
pub struct Connections(Mutex<Option<(Instant, Sample)>>);

impl Connections {
    /// Waits until nobody uses what listens at this address. At once, when nothing does.
    pub async fn quiet(&self, address: IpAddr, patience: Patience) {
        let begun = Instant::now();
        loop {
            let sample = match self.sample().await {
                Ok(sample) => sample,
                Err(error) => return tracing::debug!(%error, "sockets are not known"),
            };
            let sockets = sample.get(&address).map(Vec::as_slice).unwrap_or_default();
            match in_use(sockets, patience) {
                None => return,
                Some(false) if begun.elapsed() >= LINGER => return,
                Some(_) => tokio::time::sleep(SAMPLE_EVERY).await,
            }
        }
    }

    async fn sample(&self) -> io::Result<Sample> {
        let mut last = self.0.lock().await;
        if let Some((at, sample)) = &*last
            && at.elapsed() < SAMPLE_EVERY
        {
            return Ok(sample.clone());
        }
        let sample = tokio::task::spawn_blocking(dump).await.map_err(io::Error::other)??;
        let sample = Arc::new(sample);
        *last = Some((Instant::now(), sample.clone()));
        Ok(sample)
    }
}

/// Whether listeners are in use; `None` when there are none.
fn in_use(sockets: &[Socket], patience: Patience) -> Option<bool> {
    let listeners: Vec<&Socket> = sockets.iter().filter(|socket| socket.is_listener).collect();
    if listeners.is_empty() {
        return None;
    }
    // What the guest has connected itself is its own affair.
    let accepted = sockets
        .iter()
        .filter(|socket| !socket.is_listener && listeners.iter().any(|listener| listener.port == socket.port));
    Some(listeners.iter().any(|listener| listener.unread > 0) || accepted.into_iter().any(|s| s.is_busy(patience)))
}

const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;
/// Kernel constants (`linux/netlink.h`, `linux/sock_diag.h`, `linux/inet_diag.h`).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_DUMP: u16 = 0x301;
const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;
const HEADER_BYTES: usize = 16;
const DIAG_BYTES: usize = 72;
const ATTRIBUTE_INFO: u16 = 2;
/// Offsets in `struct tcp_info`.
const LAST_DATA_SENT: usize = 44;
const LAST_DATA_RECEIVED: usize = 52;

/// All TCP sockets at loopback addresses. Blocks.
fn dump() -> io::Result<HashMap<IpAddr, Vec<Socket>>> {
    let protocol = Some(rustix::net::netlink::SOCK_DIAG);
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    let mut request = Vec::with_capacity(HEADER_BYTES + 56);
    request.extend_from_slice(&72_u32.to_ne_bytes());
    request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend_from_slice(&REQUEST_DUMP.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    // IPv4, TCP, with `tcp_info`.
    request.extend_from_slice(&[2, 6, 1 << (ATTRIBUTE_INFO - 1), 0]);
    let states = 1_u32 << ESTABLISHED | 1 << CLOSE_WAIT | 1 << LISTEN;
    request.extend_from_slice(&states.to_ne_bytes());
    request.extend_from_slice(&[0; 48]);
    rustix::net::send(&socket, &request, SendFlags::empty())?;
    let mut sockets: HashMap<IpAddr, Vec<Socket>> = HashMap::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (count, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !read(&buffer[..count], |address, socket| sockets.entry(address).or_default().push(socket))? {
            return Ok(sockets);
        }
    }
}

/// Reads the messages of one answer; false when there are no more.
fn read(mut bytes: &[u8], mut take: impl FnMut(IpAddr, Socket)) -> io::Result<bool> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut off");
    while bytes.len() >= HEADER_BYTES {
        let length = u32_at(bytes, 0).ok_or_else(short)? as usize;
        let kind = u16_at(bytes, 4).ok_or_else(short)?;
        let message = bytes.get(HEADER_BYTES..length).ok_or_else(short)?;
        match kind {
            MESSAGE_DONE => return Ok(false),
            MESSAGE_ERROR => {
                let code = u32_at(message, 0).ok_or_else(short)?.cast_signed();
                return Err(io::Error::from_raw_os_error(-code));
            }
            _ => {
                if let Some((address, socket)) = socket(message) {
                    take(address, socket);
                }
            }
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// One `inet_diag_msg` with its attributes, when it is about a loopback address.
fn socket(message: &[u8]) -> Option<(IpAddr, Socket)> {
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(message.get(at..at + 4)?).ok()?));
    let (own, peer) = (address(8)?, address(24)?);
    if !own.is_loopback() {
        return None;
    }
    let port = u16::from_be_bytes([*message.get(4)?, *message.get(5)?]);
    let is_listener = *message.get(1)? == LISTEN;
    let (unread, unsent) = (u32_at(message, 56)?, u32_at(message, 60)?);
    let mut rest = message.get(DIAG_BYTES..)?;
    let (mut sent, mut received) = (Duration::ZERO, Duration::ZERO);
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let value = rest.get(4..usize::from(length))?;
        if kind == ATTRIBUTE_INFO {
            sent = Duration::from_millis(u64::from(u32_at(value, LAST_DATA_SENT)?));
            received = Duration::from_millis(u64::from(u32_at(value, LAST_DATA_RECEIVED)?));
        }
        rest = rest.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
    }
    // Of a listener the second is its backlog.
    let unsent = if is_listener { 0 } else { unsent };
    Some((own.into(), Socket { is_listener, port, peer: peer.into(), unread, unsent, sent, received }))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_kernel_tells_listeners_and_who_waits_for_an_answer() {
        let own: IpAddr = "127.199.3.7".parse().unwrap();
        let listener = TcpListener::bind((own, 0)).unwrap();
        let of = || dump().unwrap().remove(&own).unwrap_or_default();
        assert_eq!(in_use(&of(), Patience::Sessions), Some(false));
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(in_use(&of(), Patience::Requests), Some(true), "it was not accepted");
        let (served, _) = listener.accept().unwrap();
        client.write_all(b"request").unwrap();
        assert_eq!(in_use(&of(), Patience::Requests), Some(true), "it was not read");
        drop((served, client));
        assert_eq!(in_use(&[], Patience::Sessions), None);
        drop(listener);
    }

    #[test]
    fn what_is_busy() {
        let quiet = Socket {
            is_listener: false,
            port: 80,
            peer: Ipv4Addr::LOCALHOST.into(),
            unread: 0,
            unsent: 0,
            sent: Duration::from_secs(5),
            received: Duration::from_secs(6),
        };
        let listener = Socket { is_listener: true, ..quiet };
        let guest = Socket { peer: "127.9.0.2".parse().unwrap(), ..quiet };
        for (socket, requests, sessions) in [
            (quiet, false, false),
            (Socket { received: Duration::from_secs(4), ..quiet }, true, true),
            (Socket { sent: Duration::from_millis(10), ..quiet }, true, true),
            (Socket { unsent: 1, ..quiet }, true, true),
            (guest, false, true),
            // Its own connection to somebody else.
            (Socket { port: 40_000, unsent: 1, ..quiet }, false, false),
        ] {
            assert_eq!(in_use(&[listener, socket], Patience::Requests), Some(requests), "{socket:?}");
            assert_eq!(in_use(&[listener, socket], Patience::Sessions), Some(sessions), "{socket:?}");
        }
        // Cut off at any place it is an error or nothing, never a panic.
        let message: Vec<u8> = (0..200).map(|n| n as u8).collect();
        for end in 0..message.len() {
            let _ = socket(&message[..end]);
            let _ = read(&message[..end], |_, _| {});
        }
    }
}
