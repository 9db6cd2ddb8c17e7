//! `wasi:sockets/ip-name-lookup`: the mesh's names first.

use std::net::IpAddr;

use wasmtime::component::{Accessor, Resource};
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::SocketError;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup as p2;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, Network};
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup as p3;

use super::{Mesh, MeshView};
use crate::Resolved;

impl p2::Host for MeshView<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<Network>,
        name: String,
    ) -> Result<Resource<p2::ResolveAddressStream>, SocketError> {
        let name = match self.network.resolve(&name) {
            Resolved::System => name,
            // An address as a name comes back as it is; the type of the stream is wasmtime's own and takes no list.
            Resolved::Addresses(addresses) => match addresses.first() {
                Some(address) => address.to_string(),
                None => return Err(ErrorCode::NameUnresolvable.into()),
            },
            Resolved::Unknown => return Err(ErrorCode::NameUnresolvable.into()),
            Resolved::Failed => return Err(ErrorCode::TemporaryResolverFailure.into()),
        };
        p2::Host::resolve_addresses(&mut self.inner, network, name)
    }
}

impl p2::HostResolveAddressStream for MeshView<'_> {
    fn resolve_next_address(
        &mut self,
        stream: Resource<p2::ResolveAddressStream>,
    ) -> Result<Option<IpAddress>, SocketError> {
        self.inner.resolve_next_address(stream)
    }

    fn subscribe(&mut self, stream: Resource<p2::ResolveAddressStream>) -> wasmtime::Result<Resource<DynPollable>> {
        p2::HostResolveAddressStream::subscribe(&mut self.inner, stream)
    }

    fn drop(&mut self, stream: Resource<p2::ResolveAddressStream>) -> wasmtime::Result<()> {
        p2::HostResolveAddressStream::drop(&mut self.inner, stream)
    }
}

impl p3::Host for MeshView<'_> {}

impl<T> p3::HostWithStore<T> for Mesh {
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<p3::IpAddress>, p3::ErrorCode>> {
        let resolved = store.with(|mut view| view.get().network.resolve(&name));
        let addresses: Vec<IpAddr> = match resolved {
            Resolved::Addresses(addresses) => addresses,
            Resolved::System => match tokio::net::lookup_host((name.as_str(), 0)).await {
                Ok(found) => found.map(|address| address.ip().to_canonical()).collect(),
                Err(_) => return Ok(Err(p3::ErrorCode::NameUnresolvable)),
            },
            Resolved::Unknown => return Ok(Err(p3::ErrorCode::NameUnresolvable)),
            Resolved::Failed => return Ok(Err(p3::ErrorCode::TemporaryResolverFailure)),
        };
        Ok(Ok(addresses.into_iter().map(Into::into).collect()))
    }
}
