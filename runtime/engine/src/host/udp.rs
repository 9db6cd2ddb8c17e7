//! `wasi:sockets/udp` of WASI 0.2: addresses go through the node, the rest is passed on.

use wasmtime::component::Resource;
use wasmtime::format_err;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network};
use wasmtime_wasi::p2::bindings::sockets::udp::{
    Host, HostIncomingDatagramStream, HostOutgoingDatagramStream, HostUdpSocket, IncomingDatagram,
    IncomingDatagramStream, OutgoingDatagram, OutgoingDatagramStream, UdpSocket,
};
use wasmtime_wasi::p2::bindings::sockets::udp_create_socket;
use wasmtime_wasi::p2::{DynPollable, SocketError, SocketResult};

use super::MeshView;
use crate::{Protocol, slice};

/// Datagrams that are sent at once, at most. Where each of them goes is asked of the kernel.
const DATAGRAMS_MAX: usize = 16;

impl Host for MeshView<'_> {}

impl udp_create_socket::Host for MeshView<'_> {
    async fn create_udp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<UdpSocket>> {
        if !self.descriptors.take() {
            return Err(ErrorCode::NewSocketLimit.into());
        }
        let created = udp_create_socket::Host::create_udp_socket(&mut self.inner, family).await;
        created.inspect_err(|_| self.descriptors.give())
    }
}

impl MeshView<'_> {
    fn target(&self, address: IpSocketAddress) -> Result<IpSocketAddress, ErrorCode> {
        Ok(self.network.connect(address.into(), Protocol::Udp)?.into())
    }
}

impl HostUdpSocket for MeshView<'_> {
    async fn start_bind(
        &mut self,
        socket: Resource<UdpSocket>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let address = self.network.bind(address.into(), Protocol::Udp).map_err(ErrorCode::from)?;
        HostUdpSocket::start_bind(&mut self.inner, socket, network, address.into()).await
    }

    fn finish_bind(&mut self, socket: Resource<UdpSocket>) -> SocketResult<()> {
        HostUdpSocket::finish_bind(&mut self.inner, socket)
    }

    async fn stream(
        &mut self,
        socket: Resource<UdpSocket>,
        remote: Option<IpSocketAddress>,
    ) -> SocketResult<(Resource<IncomingDatagramStream>, Resource<OutgoingDatagramStream>)> {
        let remote = remote.map(|remote| self.target(remote)).transpose()?;
        self.inner.stream(socket, remote).await
    }

    fn local_address(&mut self, socket: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let address = HostUdpSocket::local_address(&mut self.inner, socket)?;
        Ok(self.shown(address))
    }

    fn remote_address(&mut self, socket: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let address = HostUdpSocket::remote_address(&mut self.inner, socket)?;
        Ok(self.shown_datagram(address))
    }

    fn address_family(&mut self, socket: Resource<UdpSocket>) -> wasmtime::Result<IpAddressFamily> {
        HostUdpSocket::address_family(&mut self.inner, socket)
    }

    fn unicast_hop_limit(&mut self, socket: Resource<UdpSocket>) -> SocketResult<u8> {
        self.inner.unicast_hop_limit(socket)
    }

    fn set_unicast_hop_limit(&mut self, socket: Resource<UdpSocket>, value: u8) -> SocketResult<()> {
        self.inner.set_unicast_hop_limit(socket, value)
    }

    fn receive_buffer_size(&mut self, socket: Resource<UdpSocket>) -> SocketResult<u64> {
        HostUdpSocket::receive_buffer_size(&mut self.inner, socket)
    }

    fn set_receive_buffer_size(&mut self, socket: Resource<UdpSocket>, value: u64) -> SocketResult<()> {
        HostUdpSocket::set_receive_buffer_size(&mut self.inner, socket, value)
    }

    fn send_buffer_size(&mut self, socket: Resource<UdpSocket>) -> SocketResult<u64> {
        HostUdpSocket::send_buffer_size(&mut self.inner, socket)
    }

    fn set_send_buffer_size(&mut self, socket: Resource<UdpSocket>, value: u64) -> SocketResult<()> {
        HostUdpSocket::set_send_buffer_size(&mut self.inner, socket, value)
    }

    fn subscribe(&mut self, socket: Resource<UdpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        HostUdpSocket::subscribe(&mut self.inner, socket)
    }

    fn drop(&mut self, socket: Resource<UdpSocket>) -> wasmtime::Result<()> {
        self.descriptors.give();
        HostUdpSocket::drop(&mut self.inner, socket)
    }
}

impl HostIncomingDatagramStream for MeshView<'_> {
    fn receive(
        &mut self,
        stream: Resource<IncomingDatagramStream>,
        results_max: u64,
    ) -> SocketResult<Vec<IncomingDatagram>> {
        let mut datagrams = self.inner.receive(stream, results_max)?;
        for datagram in &mut datagrams {
            datagram.remote_address = self.shown_datagram(datagram.remote_address);
        }
        Ok(datagrams)
    }

    fn subscribe(&mut self, stream: Resource<IncomingDatagramStream>) -> wasmtime::Result<Resource<DynPollable>> {
        HostIncomingDatagramStream::subscribe(&mut self.inner, stream)
    }

    fn drop(&mut self, stream: Resource<IncomingDatagramStream>) -> wasmtime::Result<()> {
        HostIncomingDatagramStream::drop(&mut self.inner, stream)
    }
}

impl HostOutgoingDatagramStream for MeshView<'_> {
    fn check_send(&mut self, stream: Resource<OutgoingDatagramStream>) -> SocketResult<u64> {
        Ok(self.inner.check_send(stream)?.min(DATAGRAMS_MAX as u64))
    }

    fn send(
        &mut self,
        stream: Resource<OutgoingDatagramStream>,
        mut datagrams: Vec<OutgoingDatagram>,
    ) -> SocketResult<u64> {
        // As `wasi:sockets/udp` has it: more than was permitted is a trap. It is one before anything is asked for them.
        if datagrams.len() > DATAGRAMS_MAX {
            return Err(SocketError::trap(format_err!("more datagrams than check-send had permitted")));
        }
        slice::is_long();
        for datagram in &mut datagrams {
            datagram.remote_address = datagram.remote_address.map(|remote| self.target(remote)).transpose()?;
        }
        self.inner.send(stream, datagrams)
    }

    fn subscribe(&mut self, stream: Resource<OutgoingDatagramStream>) -> wasmtime::Result<Resource<DynPollable>> {
        HostOutgoingDatagramStream::subscribe(&mut self.inner, stream)
    }

    async fn drop(&mut self, stream: Resource<OutgoingDatagramStream>) -> wasmtime::Result<()> {
        HostOutgoingDatagramStream::drop(&mut self.inner, stream).await
    }
}
