//! The cluster's names for programs that are no pods: a DNS server on request, at one address of a node.
//!
//! What a name means is what it means to a pod ([`coracle_discovery::Snapshot::meaning`], which guests' look-ups go through as well): there is no second zone. One
//! thing differs, because an answer is to be of use. Addresses of Services and pods lead somewhere in pods only, there is nothing in
//! the kernel that has them; so a Service that this node serves at ports of its own has the address of those ports ([`Served`]), and SRV
//! records say which they are. Others have the answer that a pod gets, which is true and cannot be connected to from here.
//!
//! [`zone`] says what is asked, [`message`] what stands in a packet, both without I/O; [`listen`] is the sockets. Nobody is asked
//! on behalf of a client: what is not the cluster's is refused. Messages are read and written by `simple-dns`, of which only what is needed of
//! a query is let see the bytes ([`message::answer`] counts first, since that crate makes room for as many records as a header claims).

mod listen;
mod message;
mod zone;

pub use listen::{Listener, is_near};
pub use zone::{Served, Zone};
