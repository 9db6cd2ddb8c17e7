//! Addresses of pods, and the loopback addresses on which guests that open sockets really listen.
//!
//! Pods get addresses of the node's pod range in turn, so that one given back is not soon somebody else's. Each has a twin
//! in a block `127.B.0.0/16` of this process: without root, that is where a guest that binds `0.0.0.0:8000` listens.
//! A block is claimed by holding a listener in it, so several nodes on one machine do not meet.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener};

use parking_lot::Mutex;

use crate::config::Cidr;

/// Port of the listener that claims a block.
const CLAIM_PORT: u16 = 20_249;

/// Offset of the node's own address.
const GATEWAY: u32 = 1;

/// An address could not be given.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no address is free in {0}: every one of its {1} belongs to a pod")]
pub struct Exhausted(String, u32);

/// The addresses of this node.
#[derive(Debug)]
pub struct Addresses {
    range: Cidr,
    block: u8,
    _claim: TcpListener,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    used: HashSet<u32>,
    next: u32,
}

/// An address with its loopback twin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PodAddress {
    /// What the cluster sees.
    pub pod: IpAddr,
    /// Where sockets really are.
    pub loopback: IpAddr,
}

impl Addresses {
    /// Addresses of `range`, with a loopback block that no other process has.
    pub fn new(range: Cidr) -> io::Result<Self> {
        let start: u8 = rand::random();
        let mut last = None;
        for step in 0..=u8::MAX {
            let block = start.wrapping_add(step);
            // 127.0.0.0/16 is what people use by hand.
            if block == 0 || block == u8::MAX {
                continue;
            }
            match TcpListener::bind((Ipv4Addr::new(127, block, 0, 1), CLAIM_PORT)) {
                Ok(claim) => {
                    let state = Mutex::new(State { used: HashSet::new(), next: 0 });
                    return Ok(Self { range, block, _claim: claim, state });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
    }

    /// Takes the address the pod had before, when it is free, else the next free one.
    pub fn allocate(&self, previous: Option<IpAddr>) -> Result<PodAddress, Exhausted> {
        let capacity = self.range.capacity();
        let mut state = self.state.lock();
        if let Some(offset) = previous.and_then(|address| self.range.offset(address))
            && state.used.insert(offset)
        {
            return Ok(self.address(offset));
        }
        if state.used.len() >= capacity as usize {
            return Err(Exhausted(self.range.to_string(), capacity));
        }
        loop {
            let offset = 2 + state.next % capacity;
            state.next = (state.next + 1) % capacity;
            if state.used.insert(offset) {
                return Ok(self.address(offset));
            }
        }
    }

    /// New pods get addresses after these, so that pods of an earlier life find theirs free when they ask for them again. Once all
    /// the others were given, whoever comes first has them.
    pub fn reserve_order(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let last = addresses.into_iter().filter_map(|address| self.range.offset(address)).max();
        if let Some(last) = last {
            let mut state = self.state.lock();
            state.next = state.next.max((last - 1) % self.range.capacity());
        }
    }

    /// Gives an address back.
    pub fn release(&self, address: IpAddr) {
        if let Some(offset) = self.range.offset(address) {
            self.state.lock().used.remove(&offset);
        }
    }

    /// Whether pods have addresses like this one.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.range.offset(address).is_some()
    }

    /// The node's own address among its pods', the first of the range, which no pod has.
    pub fn gateway(&self) -> PodAddress {
        self.address(GATEWAY)
    }

    /// Where this process listens for its pods' connections to other nodes: the twin of the range's own address, which
    /// nobody has.
    pub fn links(&self) -> IpAddr {
        Ipv4Addr::new(127, self.block, 0, 0).into()
    }

    /// The pod address whose twin this is, or the node's own.
    pub fn of_loopback(&self, loopback: IpAddr) -> Option<IpAddr> {
        let IpAddr::V4(address) = loopback else { return None };
        let [first, block, high, low] = address.octets();
        if first != 127 || block != self.block {
            return None;
        }
        let offset = u32::from(u16::from_be_bytes([high, low]));
        (offset == GATEWAY || self.state.lock().used.contains(&offset)).then(|| self.range.at(offset).into())
    }

    fn address(&self, offset: u32) -> PodAddress {
        // A range larger than /16 shares twins; the node's pod limit is far below.
        let [_, _, high, low] = offset.to_be_bytes();
        PodAddress { pod: self.range.at(offset).into(), loopback: Ipv4Addr::new(127, self.block, high, low).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_each_once_and_the_old_one_again() {
        let addresses = Addresses::new("10.1.0.0/29".parse().unwrap()).unwrap();
        let all: Vec<PodAddress> = (0..5).map(|_| addresses.allocate(None).unwrap()).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 5);
        assert!(addresses.allocate(None).unwrap_err().to_string().contains("10.1.0.0/29"));
        assert_eq!(addresses.of_loopback(all[3].loopback), Some(all[3].pod));
        let gateway = addresses.gateway();
        assert_eq!(addresses.of_loopback(gateway.loopback), Some("10.1.0.1".parse().unwrap()));
        assert!(!all.contains(&gateway) && !addresses.contains(gateway.pod));
        addresses.release(all[3].pod);
        assert_eq!(addresses.of_loopback(all[3].loopback), None);
        assert_eq!(addresses.allocate(Some(all[3].pod)), Ok(all[3]));
        assert_ne!(Addresses::new("10.1.0.0/29".parse().unwrap()).unwrap().block, addresses.block);
    }
}
