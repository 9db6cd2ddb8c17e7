//! `wasi:sockets/tcp` of WASI 0.2: addresses go through the node, the rest is passed on.

use std::net::SocketAddr;
use std::pin::pin;

use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network};
use wasmtime_wasi::p2::bindings::sockets::tcp::{Host, HostTcpSocket, ShutdownType, TcpSocket};
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, SocketResult};
use wasmtime_wasi::runtime::poll_noop;

use super::{MeshView, source};
use crate::Protocol;

impl Host for MeshView<'_> {}

impl tcp_create_socket::Host for MeshView<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        if !self.descriptors.take() {
            return Err(ErrorCode::NewSocketLimit.into());
        }
        tcp_create_socket::Host::create_tcp_socket(&mut self.inner, family).inspect_err(|_| self.descriptors.give())
    }
}

impl MeshView<'_> {
    /// Gives a socket that connects to a neighbour the pod's own address, so that the neighbour sees who it is.
    fn bind_source(&mut self, socket: u32, network: u32, target: SocketAddr) {
        let Some(source) = source(self.network, target, Protocol::Tcp) else { return };
        let bound = {
            let binding = self.inner.start_bind(
                Resource::new_borrow(socket),
                Resource::new_borrow(network),
                IpSocketAddress::from(source),
            );
            // Binding asks the gate, which answers at once, and the kernel.
            poll_noop(pin!(binding))
        };
        // A socket that the guest has bound itself stays as it is.
        if matches!(bound, Some(Ok(()))) {
            let _ = self.inner.finish_bind(Resource::new_borrow(socket));
        }
    }
}

impl HostTcpSocket for MeshView<'_> {
    async fn start_bind(
        &mut self,
        socket: Resource<TcpSocket>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let address = self
            .network
            .bind(address.into(), Protocol::Tcp)
            .map_err(wasmtime_wasi::p2::bindings::sockets::network::ErrorCode::from)?;
        self.inner.start_bind(socket, network, address.into()).await
    }

    fn finish_bind(&mut self, socket: Resource<TcpSocket>) -> SocketResult<()> {
        self.inner.finish_bind(socket)
    }

    fn start_connect(
        &mut self,
        socket: Resource<TcpSocket>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let target = self
            .network
            .connect(address.into(), Protocol::Tcp)
            .map_err(wasmtime_wasi::p2::bindings::sockets::network::ErrorCode::from)?;
        self.bind_source(socket.rep(), network.rep(), target);
        self.inner.start_connect(socket, network, target.into())
    }

    fn finish_connect(
        &mut self,
        socket: Resource<TcpSocket>,
    ) -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)> {
        self.inner.finish_connect(socket)
    }

    async fn start_listen(&mut self, socket: Resource<TcpSocket>) -> SocketResult<()> {
        self.inner.start_listen(socket).await
    }

    fn finish_listen(&mut self, socket: Resource<TcpSocket>) -> SocketResult<()> {
        self.inner.finish_listen(socket)
    }

    fn accept(
        &mut self,
        socket: Resource<TcpSocket>,
    ) -> SocketResult<(Resource<TcpSocket>, Resource<DynInputStream>, Resource<DynOutputStream>)> {
        if !self.descriptors.take() {
            return Err(ErrorCode::NewSocketLimit.into());
        }
        self.inner.accept(socket).inspect_err(|_| self.descriptors.give())
    }

    fn local_address(&mut self, socket: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let address = HostTcpSocket::local_address(&mut self.inner, socket)?;
        Ok(self.shown(address))
    }

    fn remote_address(&mut self, socket: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let address = HostTcpSocket::remote_address(&mut self.inner, socket)?;
        Ok(self.shown(address))
    }

    fn is_listening(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<bool> {
        self.inner.is_listening(socket)
    }

    fn address_family(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<IpAddressFamily> {
        HostTcpSocket::address_family(&mut self.inner, socket)
    }

    fn set_listen_backlog_size(&mut self, socket: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        self.inner.set_listen_backlog_size(socket, value)
    }

    fn keep_alive_enabled(&mut self, socket: Resource<TcpSocket>) -> SocketResult<bool> {
        self.inner.keep_alive_enabled(socket)
    }

    fn set_keep_alive_enabled(&mut self, socket: Resource<TcpSocket>, value: bool) -> SocketResult<()> {
        self.inner.set_keep_alive_enabled(socket, value)
    }

    fn keep_alive_idle_time(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u64> {
        self.inner.keep_alive_idle_time(socket)
    }

    fn set_keep_alive_idle_time(&mut self, socket: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        self.inner.set_keep_alive_idle_time(socket, value)
    }

    fn keep_alive_interval(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u64> {
        self.inner.keep_alive_interval(socket)
    }

    fn set_keep_alive_interval(&mut self, socket: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        self.inner.set_keep_alive_interval(socket, value)
    }

    fn keep_alive_count(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u32> {
        self.inner.keep_alive_count(socket)
    }

    fn set_keep_alive_count(&mut self, socket: Resource<TcpSocket>, value: u32) -> SocketResult<()> {
        self.inner.set_keep_alive_count(socket, value)
    }

    fn hop_limit(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u8> {
        self.inner.hop_limit(socket)
    }

    fn set_hop_limit(&mut self, socket: Resource<TcpSocket>, value: u8) -> SocketResult<()> {
        self.inner.set_hop_limit(socket, value)
    }

    fn receive_buffer_size(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u64> {
        HostTcpSocket::receive_buffer_size(&mut self.inner, socket)
    }

    fn set_receive_buffer_size(&mut self, socket: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        HostTcpSocket::set_receive_buffer_size(&mut self.inner, socket, value)
    }

    fn send_buffer_size(&mut self, socket: Resource<TcpSocket>) -> SocketResult<u64> {
        HostTcpSocket::send_buffer_size(&mut self.inner, socket)
    }

    fn set_send_buffer_size(&mut self, socket: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        HostTcpSocket::set_send_buffer_size(&mut self.inner, socket, value)
    }

    fn subscribe(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        HostTcpSocket::subscribe(&mut self.inner, socket)
    }

    fn shutdown(&mut self, socket: Resource<TcpSocket>, shutdown: ShutdownType) -> SocketResult<()> {
        self.inner.shutdown(socket, shutdown)
    }

    fn drop(&mut self, socket: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.descriptors.give();
        HostTcpSocket::drop(&mut self.inner, socket)
    }
}
