//! Which addresses outside of the cluster are out of reach for whoever asks on a pod's behalf, whatever it was granted: this
//! machine's own (its loopback, where the registry and the API listen without asking who comes, and its interfaces), those
//! that mean "whatever is near", and the cluster's ranges. Decided on resolved addresses, right before they are used; every way out asks here: sockets,
//! datagrams, HTTP, HTTPS, probes and hooks.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long it is remembered whether an address is this machine's: interfaces come and go.
const KNOWN_FOR: Duration = Duration::from_secs(5);
/// Addresses that are remembered; beyond it all are asked for anew.
const KNOWN_MAX: usize = 1024;
/// Where a cloud's machines ask for their credentials over IPv6; over IPv4 that address is link-local.
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Remembers what the kernel says.
#[derive(Default)]
pub struct Gate(Mutex<HashMap<IpAddr, (bool, Instant)>>);

impl Gate {
    /// Whether the address may be reached by who may leave the cluster.
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = embedded(address);
        !is_near(address) && !is_clusters(address) && !self.is_own(address)
    }

    /// Whether the address is one of this machine's.
    fn is_own(&self, address: IpAddr) -> bool {
        let now = Instant::now();
        let known = self.0.lock().get(&address).copied();
        if let Some((is_own, at)) = known
            && now.duration_since(at) < KNOWN_FOR
        {
            return is_own;
        }
        let is_own = leads_back(address);
        let mut known = self.0.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(address, (is_own, now));
        is_own
    }
}

/// The IPv4 address that an IPv6 address stands for (mapped, NAT64, 6to4), or the address itself.
pub(super) fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let s = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

/// The ranges of pods (10.240.0.0/12) and of Services (10.96.0.0/16): what nobody has there is nobody, and not a stranger outside.
pub fn is_clusters(address: IpAddr) -> bool {
    let IpAddr::V4(v4) = address else { return false };
    matches!(v4.octets(), [10, 96 | 240..=255, ..])
}

/// Loopback, link-local, unspecified, and what is no single host.
fn is_near(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.octets()[0] == 0
                || v4.is_link_local()
                || v4.is_multicast()
                // Reserved, and the broadcast address.
                || v4.octets()[0] >= 240
        }
        IpAddr::V6(v6) => {
            let s = v6.segments();
            // Loopback, unspecified, and the deprecated form of IPv4 addresses.
            s[..6] == [0; 6]
                || v6.is_unicast_link_local()
                // Site-local, deprecated.
                || s[0] & 0xffc0 == 0xfec0
                || v6.is_multicast()
                // NAT64 of a local prefix.
                || s[..3] == [0x64, 0xff9b, 1]
                || v6 == METADATA
        }
    }
}

/// Asks the kernel for the way: to its own addresses a machine goes from the very same address. Nothing is sent.
fn leads_back(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = || {
        let socket = UdpSocket::bind((any, 0))?;
        // The discard port; no datagram follows.
        socket.connect(SocketAddr::new(address, 9))?;
        socket.local_addr()
    };
    // Where no way leads, nothing is reached.
    source().is_ok_and(|source| source.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_out_of_reach_in_every_spelling() {
        let gate = Gate::default();
        for near in [
            "127.0.0.1",
            "127.67.2.160",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:7f00:1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "::ffff:169.254.169.254",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "10.96.0.1",
            "10.96.255.255",
            "10.240.0.0",
            "::ffff:10.244.0.1",
        ] {
            assert!(!gate.permits(near.parse().unwrap()), "{near}");
        }
        for far in ["192.0.2.1", "1.1.1.1", "10.95.0.1", "10.97.0.1", "10.239.0.1", "2001:db8::1", "::ffff:192.0.2.1"] {
            assert!(gate.permits(far.parse().unwrap()), "{far}");
        }
    }

    #[test]
    fn this_machines_interfaces_are_its_own() {
        // The address from which the machine would go out, where it has one.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let Ok(()) = socket.connect("192.0.2.1:9") else { return assert!(leads_back("127.0.0.1".parse().unwrap())) };
        let own = socket.local_addr().unwrap().ip();
        let gate = Gate::default();
        assert!(!gate.permits(own), "{own}");
        // A second time from what is remembered.
        assert!(!gate.permits(own), "{own}");
    }
}
