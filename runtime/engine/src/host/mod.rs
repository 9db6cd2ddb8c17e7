//! What guests import. Most is wasmtime's; what a pod must see differently is here, one interface per module.

mod body_end;
mod descriptors;
mod environment;
mod fields;
mod files;
mod held;
mod input;
mod names;
mod outbound;
mod output;
mod random;
mod read_ahead;
mod sockets_p3;
mod tcp;
mod udp;

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::p2::SocketError;
use wasmtime_wasi::p2::bindings as p2;
use wasmtime_wasi::p3::bindings as p3;
use wasmtime_wasi::sockets::WasiSocketsCtxView;

pub(crate) use self::body_end::{Answering, BodyEnd};
pub use self::descriptors::OpenSocket;
pub(crate) use self::descriptors::{Descriptors, Namespace, has_room as has_descriptors};
use self::environment::Environment;
pub(crate) use self::held::{bytes_of, is_open};
pub(crate) use self::input::Input;
pub use self::names::look_up;
pub(crate) use self::outbound::Trace;
pub use self::outbound::{Chain, NoChain, Outbound, OutboundError, Timeouts};
pub(crate) use self::outbound::{Hooks, to_wasi};
pub(crate) use self::output::Output;
use crate::facts::Model;
use crate::guest::Guest;
use crate::{Network, Protocol, Refused};

/// Everything that a component of this model may import: the worlds of commands and services of WASI 0.2, and those of 0.3. What a
/// guest may not use is refused when it uses it; ordinary programs of many languages import what they never call.
pub(crate) fn linker(engine: &wasmtime::Engine, model: Model) -> wasmtime::Result<Linker<Guest>> {
    let mut linker: Linker<Guest> = Linker::new(engine);
    linker.allow_shadowing(true);
    add_p2(&mut linker)?;
    if model == Model::Async {
        add_p3(&mut linker)?;
    }
    Ok(linker)
}

fn add_p2(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    body_end::add_to_linker(linker)?;
    fields::add_to_linker(linker)?;
    p2::cli::environment::add_to_linker::<_, Environment>(linker, |guest| &*guest.spec)?;
    p2::sockets::tcp::add_to_linker::<_, Mesh>(linker, Guest::mesh)?;
    p2::sockets::udp::add_to_linker::<_, Mesh>(linker, Guest::mesh)?;
    p2::sockets::tcp_create_socket::add_to_linker::<_, Mesh>(linker, Guest::mesh)?;
    p2::sockets::udp_create_socket::add_to_linker::<_, Mesh>(linker, Guest::mesh)?;
    p2::sockets::ip_name_lookup::add_to_linker::<_, Mesh>(linker, Guest::mesh)?;
    names::add_to_linker(linker)?;
    files::add_to_linker(linker)?;
    random::add_to_linker(linker)
}

fn add_p3(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    wasmtime_wasi::p3::add_to_linker(linker)?;
    wasmtime_wasi_http::p3::add_to_linker(linker)?;
    fields::add_p3_to_linker(linker)?;
    p3::cli::environment::add_to_linker::<_, Environment>(linker, |guest| &*guest.spec)?;
    p3::sockets::ip_name_lookup::add_to_linker::<_, Mesh>(linker, Guest::mesh)?;
    sockets_p3::add_to_linker(linker)?;
    files::add_p3_to_linker(linker)?;
    random::add_p3_to_linker(linker)
}

/// Marks the interfaces that are answered by [`MeshView`].
pub(crate) struct Mesh;

/// wasmtime's sockets, with every address going through the node's [`Network`] first. The calls that name no address
/// are passed on as they are.
pub(crate) struct MeshView<'a> {
    pub(crate) inner: WasiSocketsCtxView<'a>,
    pub(crate) network: &'a dyn Network,
    pub(crate) descriptors: &'a mut Descriptors,
    /// What look-ups of 0.2 have found beside their first address, the last first, by the number of their stream. Bounded by the
    /// handles that a guest may have.
    pub(crate) more_addresses: &'a mut HashMap<u32, Vec<p2::sockets::network::IpAddress>>,
}

/// The address from which a pod connects to a neighbour on this machine; none for targets elsewhere, which loopback
/// does not reach.
fn source(network: &dyn Network, target: SocketAddr, protocol: Protocol) -> Option<SocketAddr> {
    let any = match target {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    if target.ip().is_loopback() { network.bind(any, protocol).ok() } else { None }
}

impl MeshView<'_> {
    /// What the guest is told about a real address.
    fn shown(&self, actual: p2::sockets::network::IpSocketAddress) -> p2::sockets::network::IpSocketAddress {
        self.network.shown(SocketAddr::from(actual)).into()
    }

    /// The same for where a datagram comes from.
    fn shown_datagram(&self, actual: p2::sockets::network::IpSocketAddress) -> p2::sockets::network::IpSocketAddress {
        self.network.shown_datagram(SocketAddr::from(actual)).into()
    }
}

impl p2::sockets::network::Host for MeshView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<p2::sockets::network::ErrorCode> {
        self.inner.convert_error_code(error)
    }

    fn network_error_code(
        &mut self,
        error: Resource<p2::sockets::network::Error>,
    ) -> wasmtime::Result<Option<p2::sockets::network::ErrorCode>> {
        self.inner.network_error_code(error)
    }
}

impl p2::sockets::network::HostNetwork for MeshView<'_> {
    fn drop(&mut self, network: Resource<p2::sockets::network::Network>) -> wasmtime::Result<()> {
        p2::sockets::network::HostNetwork::drop(&mut self.inner, network)
    }
}

impl From<Refused> for p2::sockets::network::ErrorCode {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Denied => Self::AccessDenied,
            Refused::NoEndpoint => Self::ConnectionRefused,
            Refused::Unreachable => Self::RemoteUnreachable,
        }
    }
}
