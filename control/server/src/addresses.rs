//! The addresses of this machine, for the certificate of a listener that takes calls to all of them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// This machine's addresses by the kernel's routing tables; none where they cannot be read.
pub fn of_this_machine() -> BTreeSet<IpAddr> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let v4 = local_v4(&read("/proc/net/fib_trie")).map(IpAddr::V4).collect::<BTreeSet<_>>();
    v4.into_iter().chain(local_v6(&read("/proc/net/if_inet6")).map(IpAddr::V6)).collect()
}

/// Those of them that other machines may reach, the one with the way out first.
pub fn outward() -> Vec<IpAddr> {
    // Nothing is sent: the kernel only chooses. The address is one for documentation (RFC 5737).
    let chosen = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    let first = chosen().ok().filter(|address| !address.is_loopback());
    let others = of_this_machine().into_iter().filter(|address| !address.is_loopback() && Some(*address) != first);
    first.into_iter().chain(others).collect()
}

/// Leaves `|-- ADDRESS` of the trie that are followed by `/32 host LOCAL`.
fn local_v4(trie: &str) -> impl Iterator<Item = Ipv4Addr> {
    let mut last = None;
    trie.lines().filter_map(move |line| {
        let line = line.trim();
        match line.strip_prefix("|-- ") {
            Some(address) => {
                last = address.parse::<Ipv4Addr>().ok();
                None
            }
            None if line == "/32 host LOCAL" => last,
            None => None,
        }
    })
}

/// Lines of 32 hexadecimal digits and more; addresses of one link only are nobody's to call.
fn local_v6(lines: &str) -> impl Iterator<Item = Ipv6Addr> {
    let address = |line: &str| u128::from_str_radix(line.split_ascii_whitespace().next()?, 16).ok().map(Ipv6Addr::from);
    lines.lines().filter_map(address).filter(|address| !address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_addresses_are_those_of_hosts() {
        let trie = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 127.0.0.0\n        /8 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 192.0.2.2\n        /32 host LOCAL\n     |-- 192.0.2.255\n        /32 link BROADCAST\n";
        let found: Vec<String> = local_v4(trie).map(|address| address.to_string()).collect();
        assert_eq!(found, ["127.0.0.1", "192.0.2.2"]);
        let lines = "00000000000000000000000000000001 01 80 10 80       lo\nfe800000000000000000000000000001 02 40 20 80     eth0\n20010db8000000000000000000000007 02 40 00 80     eth0\n";
        let found: Vec<String> = local_v6(lines).map(|address| address.to_string()).collect();
        assert_eq!(found, ["::1", "2001:db8::7"]);
        assert!(of_this_machine().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let outward = outward();
        assert!(outward.iter().all(|address| !address.is_loopback() && of_this_machine().contains(address)));
    }
}
