//! Who gets what is sent to a pod's twin. The twin is an address of the machine: where no guest listens at a port, the kernel
//! gives connections and datagrams to whatever listens there at *every* address, which is a daemon of the host.
//!
//! The kernel is asked for the one socket that it would choose (`sock_diag(7)`, without a dump). Where it cannot answer, its
//! tables in `/proc` are read, which takes longer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::sync::OnceLock;

use coracle_discovery::Protocol;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Kernel constants (`linux/netlink.h`, `linux/sock_diag.h`, `linux/in.h`).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;
const MESSAGE_ERROR: u16 = 2;
const NO_ENTRY: i32 = 2;
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;
const REQUEST_BYTES: u32 = 72;
const HEADER_BYTES: usize = 16;

/// Whether nobody but a socket bound to exactly this address gets what is sent there. Where nothing listens at all, the kernel
/// refuses by itself.
pub fn is_reached(actual: SocketAddr, protocol: Protocol) -> bool {
    let (SocketAddr::V4(at), Some(number)) = (actual, number(protocol)) else { return true };
    let found = match kernel_answers(number) {
        true => receiver(at, number),
        false => listed(at, number),
    };
    match found {
        Ok(found) => found.is_none_or(|address| address == IpAddr::V4(*at.ip())),
        Err(error) => {
            tracing::warn!(%error, "who listens at a pod's address is not known: it is not connected to");
            false
        }
    }
}

fn number(protocol: Protocol) -> Option<u8> {
    match protocol {
        Protocol::Tcp => Some(TCP),
        Protocol::Udp => Some(UDP),
        Protocol::Sctp => None,
    }
}

/// Whether the kernel tells a socket that is known to be there; asked once.
fn kernel_answers(number: u8) -> bool {
    static TCP_ANSWERS: OnceLock<bool> = OnceLock::new();
    static UDP_ANSWERS: OnceLock<bool> = OnceLock::new();
    let known = if number == TCP { &TCP_ANSWERS } else { &UDP_ANSWERS };
    *known.get_or_init(|| {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let tells = |at: io::Result<SocketAddr>| match at {
            Ok(SocketAddr::V4(at)) => matches!(receiver(at, number), Ok(Some(address)) if address == *at.ip()),
            _ => false,
        };
        match number {
            TCP => TcpListener::bind(any).is_ok_and(|socket| tells(socket.local_addr())),
            _ => UdpSocket::bind(any).is_ok_and(|socket| tells(socket.local_addr())),
        }
    })
}

/// The address to which the socket is bound that would get what is sent there.
fn receiver(at: SocketAddrV4, number: u8) -> io::Result<Option<IpAddr>> {
    let protocol = Some(rustix::net::netlink::SOCK_DIAG);
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    let mut request = Vec::with_capacity(REQUEST_BYTES as usize);
    request.extend_from_slice(&REQUEST_BYTES.to_ne_bytes());
    request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend_from_slice(&REQUEST.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(&[FAMILY_IPV4, number, 0, 0]);
    request.extend_from_slice(&u32::MAX.to_ne_bytes());
    // The kernel looks from the side of who sends for UDP, and of who listens for TCP.
    let (ip, port) = (at.ip().octets(), at.port().to_be_bytes());
    let (own, none) = ((port, ip), ([0; 2], [0; 4]));
    let (source, destination) = if number == TCP { (own, none) } else { (none, own) };
    request.extend_from_slice(&source.0);
    request.extend_from_slice(&destination.0);
    for address in [source.1, destination.1] {
        request.extend_from_slice(&address);
        request.extend_from_slice(&[0; 12]);
    }
    // Any interface, and whichever socket it is.
    request.extend_from_slice(&[0; 4]);
    request.extend_from_slice(&[0xff; 8]);
    rustix::net::send(&socket, &request, SendFlags::empty())?;
    // The answer is there when the request has been sent.
    let mut buffer = [0; 1024];
    let (count, _) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
    read(&buffer[..count])
}

/// The first message of an answer.
fn read(bytes: &[u8]) -> io::Result<Option<IpAddr>> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut off");
    let kind = bytes.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes).ok_or_else(short)?;
    let message = bytes.get(HEADER_BYTES..).ok_or_else(short)?;
    if kind == MESSAGE_ERROR {
        let code = message.get(..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes).ok_or_else(short)?;
        return match -code {
            NO_ENTRY => Ok(None),
            code => Err(io::Error::from_raw_os_error(code)),
        };
    }
    let family = *message.first().ok_or_else(short)?;
    let own = message.get(8..24).and_then(|own| <[u8; 16]>::try_from(own).ok()).ok_or_else(short)?;
    match family {
        FAMILY_IPV4 => Ok(Some(Ipv4Addr::new(own[0], own[1], own[2], own[3]).into())),
        FAMILY_IPV6 => Ok(Some(IpAddr::V6(Ipv6Addr::from(own)).to_canonical())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is of another family")),
    }
}

/// The same from the kernel's tables: an exact address before one that stands for all.
fn listed(at: SocketAddrV4, number: u8) -> io::Result<Option<IpAddr>> {
    let (tables, state) = match number {
        TCP => (["tcp", "tcp6"], Some("0A")),
        _ => (["udp", "udp6"], None),
    };
    let mut everywhere = None;
    for table in tables {
        let text = match std::fs::read_to_string(format!("/proc/self/net/{table}")) {
            Ok(text) => text,
            // A machine without IPv6 has no such table.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table.ends_with('6') => continue,
            Err(error) => return Err(error),
        };
        for row in text.lines().skip(1) {
            let mut fields = row.split_ascii_whitespace().skip(1);
            let (Some(own), Some(_), Some(is)) = (fields.next(), fields.next(), fields.next()) else { continue };
            let Some((address, port)) = own.split_once(':') else { continue };
            if u16::from_str_radix(port, 16) != Ok(at.port()) || state.is_some_and(|state| state != is) {
                continue;
            }
            if address.bytes().all(|digit| digit == b'0') {
                everywhere = Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            } else if u32::from_str_radix(address, 16).map(u32::to_ne_bytes) == Ok(at.ip().octets()) {
                return Ok(Some(IpAddr::V4(*at.ip())));
            }
        }
    }
    Ok(everywhere)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWIN: Ipv4Addr = Ipv4Addr::new(127, 199, 4, 9);

    #[test]
    fn a_daemon_of_the_host_does_not_stand_in_for_a_pod() {
        let (host, guest) = (TcpListener::bind("0.0.0.0:0").unwrap(), TcpListener::bind((TWIN, 0)).unwrap());
        let (host_udp, guest_udp) = (UdpSocket::bind("0.0.0.0:0").unwrap(), UdpSocket::bind((TWIN, 0)).unwrap());
        // A guest that has connected its socket gets answers, whoever it is connected to.
        let connected = UdpSocket::bind((TWIN, 0)).unwrap();
        connected.connect("127.0.0.1:9").unwrap();
        let at = |address: io::Result<SocketAddr>| SocketAddr::new(TWIN.into(), address.unwrap().port());
        for (at, protocol, expected) in [
            (at(host.local_addr()), Protocol::Tcp, false),
            (at(guest.local_addr()), Protocol::Tcp, true),
            (at(host_udp.local_addr()), Protocol::Udp, false),
            (at(guest_udp.local_addr()), Protocol::Udp, true),
            (at(connected.local_addr()), Protocol::Udp, true),
        ] {
            assert_eq!(is_reached(at, protocol), expected, "{at} {protocol:?}");
            let SocketAddr::V4(at) = at else { panic!("of IPv4") };
            let found = listed(at, number(protocol).unwrap()).unwrap();
            assert_eq!(found == Some(TWIN.into()), expected, "{at} {protocol:?} as listed: {found:?}");
        }
        if let Ok(host) = TcpListener::bind("[::]:0") {
            assert!(!is_reached(at(host.local_addr()), Protocol::Tcp), "[::] is every address too");
        }
        let free = at(guest.local_addr());
        drop(guest);
        assert!(is_reached(free, Protocol::Tcp), "the kernel refuses it");
        for end in 0..40 {
            let _ = read(&[0; 40][..end]);
        }
    }
}
