//! Ranges of addresses.

use std::net::IpAddr;

use k8s_openapi::api::networking::v1::IPBlock;

/// Addresses as sorted ranges that do not touch each other; both ends belong to them. Those of IPv4 are apart from those of IPv6.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Block {
    v4: Vec<(u128, u128)>,
    v6: Vec<(u128, u128)>,
}

impl Block {
    /// All addresses that one of the blocks has, without those that it excepts. One that cannot be read has none.
    pub fn of<'a>(blocks: impl IntoIterator<Item = &'a IPBlock>) -> Block {
        let mut all = Block::default();
        for block in blocks {
            let Some((is_v4, range)) = range(&block.cidr) else { continue };
            let mut excepted = Vec::new();
            let mut is_known = true;
            for except in block.except.iter().flatten() {
                match self::range(except) {
                    Some((of_v4, range)) if of_v4 == is_v4 => excepted.push(range),
                    // Of the other family: nothing is taken away.
                    Some(_) => {}
                    // Who knows what it was to keep out?
                    None => is_known = false,
                }
            }
            if is_known {
                let list = if is_v4 { &mut all.v4 } else { &mut all.v6 };
                list.extend(without(range, excepted));
            }
        }
        all.v4 = joined(all.v4);
        all.v6 = joined(all.v6);
        all
    }

    /// The addresses of these ranges, as `10.0.0.0/8`. One that cannot be read has none.
    pub fn of_ranges<'a>(ranges: impl IntoIterator<Item = &'a str>) -> Block {
        let mut all = Block::default();
        for (is_v4, range) in ranges.into_iter().filter_map(range) {
            if is_v4 { &mut all.v4 } else { &mut all.v6 }.push(range);
        }
        all.v4 = joined(all.v4);
        all.v6 = joined(all.v6);
        all
    }

    /// Whether an address is among them. One that is near this machine is never.
    pub fn contains(&self, address: IpAddr) -> bool {
        !is_near(address.to_canonical()) && self.has(address)
    }

    /// The same, wherever the address is.
    pub fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let (list, number) = match address {
            IpAddr::V4(v4) => (&self.v4, u128::from(u32::from(v4))),
            IpAddr::V6(v6) => (&self.v6, u128::from(v6)),
        };
        let after = list.partition_point(|(first, _)| *first <= number);
        after > 0 && number <= list[after - 1].1
    }
}

/// Addresses that mean something else on every machine.
fn is_near(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

/// The first and the last address of a range, and whether they are of IPv4. What is written of IPv4 in IPv6 is of IPv4.
fn range(text: &str) -> Option<(bool, (u128, u128))> {
    let (address, bits) = text.split_once('/')?;
    let bits: u32 = bits.parse().ok()?;
    let (is_v4, number, host_bits) = match address.parse().ok()? {
        IpAddr::V4(v4) => (true, u128::from(u32::from(v4)), 32_u32.checked_sub(bits)?),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped().filter(|_| bits >= 96) {
            Some(v4) => (true, u128::from(u32::from(v4)), 128_u32.checked_sub(bits)?),
            None => (false, u128::from(v6), 128_u32.checked_sub(bits)?),
        },
    };
    let hosts = 1_u128.checked_shl(host_bits).map_or(u128::MAX, |count| count - 1);
    Some((is_v4, (number & !hosts, number | hosts)))
}

/// What is left of a range.
fn without((first, last): (u128, u128), mut excepted: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    excepted.sort_unstable();
    let (mut left, mut next) = (Vec::new(), first);
    for (from, to) in excepted {
        if from > last {
            break;
        }
        if from > next {
            left.push((next, from - 1));
        }
        if to >= last {
            return left;
        }
        next = next.max(to + 1);
    }
    left.push((next, last));
    left
}

/// The same addresses in as few ranges as can be, sorted.
fn joined(mut all: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    all.sort_unstable();
    let mut joined: Vec<(u128, u128)> = Vec::with_capacity(all.len());
    for (first, last) in all {
        match joined.last_mut() {
            Some((_, before)) if first <= before.saturating_add(1) => *before = last.max(*before),
            _ => joined.push((first, last)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(cidr: &str, except: &[&str]) -> IPBlock {
        let except = except.iter().map(|one| (*one).to_owned()).collect();
        IPBlock { cidr: cidr.to_owned(), except: Some(except) }
    }

    #[test]
    fn ranges_have_what_is_near_too() {
        let ranges = Block::of_ranges(["127.0.0.0/8", "10.1.0.0/16", "2001:db8::/32", "odd"]);
        for (address, is_within) in [
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("10.1.2.3", true),
            ("10.2.0.1", false),
            ("2001:db8::1", true),
            ("::1", false),
        ] {
            assert_eq!(ranges.has(address.parse().unwrap()), is_within, "{address}");
        }
        assert!(!Block::of_ranges([]).has("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn what_is_excepted_is_not_among_them_unless_another_block_has_it() {
        for (blocks, within, beyond) in [
            (
                vec![block("10.0.0.0/8", &[])],
                vec!["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"],
                vec!["9.255.255.255", "11.0.0.0", "::a00:1"],
            ),
            (
                vec![block("10.0.0.0/8", &["10.1.0.0/16", "10.1.2.0/24"])],
                vec!["10.0.255.255", "10.2.0.0"],
                vec!["10.1.0.0", "10.1.2.3", "10.1.255.255"],
            ),
            (
                vec![block("10.0.0.0/8", &["10.1.0.0/16"]), block("10.1.2.0/24", &[])],
                vec!["10.1.2.3"],
                vec!["10.1.3.1"],
            ),
            (vec![block("10.0.0.0/24", &["10.0.0.0/24"])], vec![], vec!["10.0.0.1"]),
            (
                vec![block("0.0.0.0/0", &["192.168.0.0/16"])],
                vec!["8.8.8.8", "255.255.255.255"],
                vec!["192.168.3.4", "2001:db8::1"],
            ),
            (vec![block("::/0", &["2001:db8::/32"])], vec!["2001:db9::1", "ffff::"], vec!["2001:db8::1", "8.8.8.8"]),
            (vec![block("::ffff:10.0.0.0/104", &[])], vec!["10.9.8.7"], vec!["11.0.0.1"]),
            // What it was to keep out is not known.
            (vec![block("10.0.0.0/8", &["x"]), block("y", &[]), block("10.0.0.0/33", &[])], vec![], vec!["10.0.0.1"]),
            (vec![block("10.0.0.0/8", &["2001:db8::/32"])], vec!["10.0.0.1"], vec![]),
        ] {
            let all = Block::of(&blocks);
            for (addresses, expected) in [(within, true), (beyond, false)] {
                for address in addresses {
                    assert_eq!(all.contains(address.parse().unwrap()), expected, "{address} in {blocks:?}");
                }
            }
        }
    }

    #[test]
    fn no_block_is_about_this_machine() {
        let everything = Block::of(&[block("0.0.0.0/0", &[]), block("::/0", &[]), block("127.0.0.0/8", &[])]);
        for near in ["127.0.0.1", "127.9.8.7", "169.254.169.254", "0.0.0.0", "::1", "::", "fe80::1", "::ffff:127.0.0.1"]
        {
            assert!(!everything.contains(near.parse().unwrap()), "{near}");
        }
        assert!(
            everything.contains("10.0.0.1".parse().unwrap()) && everything.contains("2001:db8::1".parse().unwrap())
        );
    }
}
