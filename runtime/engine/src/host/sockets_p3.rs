//! `wasi:sockets/types` of WASI 0.3: the functions that name an address go through the node, the others stay wasmtime's.

use std::net::SocketAddr;
use std::pin::pin;

use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, Linker, Resource};
use wasmtime_wasi::p3::bindings::sockets::types::{
    ErrorCode, HostTcpSocket, HostTcpSocketWithStore, HostUdpSocket, HostUdpSocketWithStore, IpAddressFamily,
    IpSocketAddress, TcpSocket, UdpSocket,
};
use wasmtime_wasi::p3::sockets::SocketResult;
use wasmtime_wasi::runtime::poll_noop;
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsView};

use super::source;
use crate::guest::Guest;
use crate::{Protocol, Refused};

/// The interface, at the version that wasmtime defines.
const TYPES: &str = "wasi:sockets/types@0.3.0";

type Store<'a> = StoreContextMut<'a, Guest>;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    tcp(linker)?;
    udp(linker)
}

fn tcp(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut types = linker.instance(TYPES)?;
    types.func_wrap("[static]tcp-socket.create", |mut store: Store<'_>, (family,): (IpAddressFamily,)| {
        if !store.data_mut().take_descriptor() {
            return Ok((Err(ErrorCode::OutOfMemory),));
        }
        Ok((answer(HostTcpSocket::create(&mut store.data_mut().sockets(), family))?,))
    })?;
    types.func_wrap_async(
        "[method]tcp-socket.bind",
        |mut store: Store<'_>, (socket, address): (Resource<TcpSocket>, IpSocketAddress)| {
            Box::new(async move {
                let guest = store.data_mut();
                let result = match guest.spec.network.bind(address.into(), Protocol::Tcp) {
                    Ok(address) => answer(HostTcpSocket::bind(&mut guest.sockets(), socket, address.into()).await)?,
                    Err(refused) => Err(refused.into()),
                };
                Ok((result,))
            })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]tcp-socket.connect",
        |accessor: &Accessor<Guest>, (socket, address): (Resource<TcpSocket>, IpSocketAddress)| {
            Box::pin(async move {
                let target = accessor.with(|mut store| store.get().spec.network.connect(address.into(), Protocol::Tcp));
                let result = match target {
                    Ok(target) => {
                        accessor.with(|mut store| bind_source(store.get(), &socket, target));
                        let sockets = accessor.with_getter::<WasiSockets>(Guest::sockets);
                        answer(WasiSockets::connect(&sockets, socket, target.into()).await)?
                    }
                    Err(refused) => Err(refused.into()),
                };
                Ok((result,))
            })
        },
    )?;
    types.func_wrap(
        "[method]tcp-socket.get-local-address",
        |mut store: Store<'_>, (socket,): (Resource<TcpSocket>,)| {
            let address = answer(HostTcpSocket::get_local_address(&mut store.data_mut().sockets(), socket))?;
            Ok((shown(&store, address),))
        },
    )?;
    types.func_wrap(
        "[method]tcp-socket.get-remote-address",
        |mut store: Store<'_>, (socket,): (Resource<TcpSocket>,)| {
            let address = answer(HostTcpSocket::get_remote_address(&mut store.data_mut().sockets(), socket))?;
            Ok((shown(&store, address),))
        },
    )
}

fn udp(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut types = linker.instance(TYPES)?;
    types.func_wrap_async("[static]udp-socket.create", |mut store: Store<'_>, (family,): (IpAddressFamily,)| {
        Box::new(async move {
            if !store.data_mut().take_descriptor() {
                return Ok((Err(ErrorCode::OutOfMemory),));
            }
            Ok((answer(HostUdpSocket::create(&mut store.data_mut().sockets(), family).await)?,))
        })
    })?;
    types.func_wrap_async(
        "[method]udp-socket.bind",
        |mut store: Store<'_>, (socket, address): (Resource<UdpSocket>, IpSocketAddress)| {
            Box::new(async move {
                let guest = store.data_mut();
                let result = match guest.spec.network.bind(address.into(), Protocol::Udp) {
                    Ok(address) => answer(HostUdpSocket::bind(&mut guest.sockets(), socket, address.into()).await)?,
                    Err(refused) => Err(refused.into()),
                };
                Ok((result,))
            })
        },
    )?;
    types.func_wrap_async(
        "[method]udp-socket.connect",
        |mut store: Store<'_>, (socket, address): (Resource<UdpSocket>, IpSocketAddress)| {
            Box::new(async move {
                let guest = store.data_mut();
                let result = match guest.spec.network.connect(address.into(), Protocol::Udp) {
                    Ok(address) => {
                        bind_datagrams(guest, &socket, address);
                        answer(HostUdpSocket::connect(&mut guest.sockets(), socket, address.into()).await)?
                    }
                    Err(refused) => Err(refused.into()),
                };
                Ok((result,))
            })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]udp-socket.send",
        |accessor: &Accessor<Guest>,
         (socket, data, remote): (Resource<UdpSocket>, Vec<u8>, Option<IpSocketAddress>)| {
            Box::pin(async move {
                let target = accessor.with(|mut store| {
                    let guest = store.get();
                    let target = remote.map(|remote| guest.spec.network.connect(remote.into(), Protocol::Udp));
                    if let Some(Ok(target)) = &target {
                        bind_datagrams(guest, &socket, *target);
                    }
                    target.transpose()
                });
                let result = match target {
                    Ok(target) => {
                        let sockets = accessor.with_getter::<WasiSockets>(Guest::sockets);
                        answer(
                            <WasiSockets as HostUdpSocketWithStore<Guest>>::send(
                                &sockets,
                                socket,
                                data,
                                target.map(Into::into),
                            )
                            .await,
                        )?
                    }
                    Err(refused) => Err(refused.into()),
                };
                Ok((result,))
            })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]udp-socket.receive",
        |accessor: &Accessor<Guest>, (socket,): (Resource<UdpSocket>,)| {
            Box::pin(async move {
                let sockets = accessor.with_getter::<WasiSockets>(Guest::sockets);
                let received = answer(<WasiSockets as HostUdpSocketWithStore<Guest>>::receive(&sockets, socket).await)?;
                let received = received.map(|(data, from)| {
                    let shown =
                        accessor.with(|mut store| store.get().spec.network.shown_datagram(SocketAddr::from(from)));
                    (data, IpSocketAddress::from(shown))
                });
                Ok((received,))
            })
        },
    )?;
    types.func_wrap(
        "[method]udp-socket.get-local-address",
        |mut store: Store<'_>, (socket,): (Resource<UdpSocket>,)| {
            let address = answer(HostUdpSocket::get_local_address(&mut store.data_mut().sockets(), socket))?;
            Ok((shown(&store, address),))
        },
    )?;
    types.func_wrap(
        "[method]udp-socket.get-remote-address",
        |mut store: Store<'_>, (socket,): (Resource<UdpSocket>,)| {
            let address = answer(HostUdpSocket::get_remote_address(&mut store.data_mut().sockets(), socket))?;
            let shown = |actual| store.data().spec.network.shown_datagram(SocketAddr::from(actual));
            Ok((address.map(|actual| IpSocketAddress::from(shown(actual))),))
        },
    )
}

/// Gives a socket that connects to a neighbour the pod's own address, so that the neighbour sees who it is. A socket
/// that the guest has bound itself stays as it is.
fn bind_source(guest: &mut Guest, socket: &Resource<TcpSocket>, target: SocketAddr) {
    if let Some(source) = source(&*guest.spec.network, target, Protocol::Tcp) {
        let mut sockets = guest.sockets();
        // Binding asks the gate, which answers at once, and the kernel.
        let _ = poll_noop(pin!(HostTcpSocket::bind(&mut sockets, Resource::new_borrow(socket.rep()), source.into())));
    }
}

/// The same for datagrams: the kernel would send those of a socket that is not bound from an address of its own choice, from
/// which a neighbour takes none.
fn bind_datagrams(guest: &mut Guest, socket: &Resource<UdpSocket>, target: SocketAddr) {
    if let Some(source) = source(&*guest.spec.network, target, Protocol::Udp) {
        let mut sockets = guest.sockets();
        // One that is bound already says so, and stays as it is.
        let _ = poll_noop(pin!(HostUdpSocket::bind(&mut sockets, Resource::new_borrow(socket.rep()), source.into())));
    }
}

/// What the guest is told, apart from what ends it.
fn answer<T>(result: SocketResult<T>) -> wasmtime::Result<Result<T, ErrorCode>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => Ok(Err(error.downcast()?)),
    }
}

fn shown(store: &Store<'_>, address: Result<IpSocketAddress, ErrorCode>) -> Result<IpSocketAddress, ErrorCode> {
    address.map(|actual| store.data().spec.network.shown(SocketAddr::from(actual)).into())
}

impl From<Refused> for ErrorCode {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Denied => Self::AccessDenied,
            Refused::NoEndpoint => Self::ConnectionRefused,
            Refused::Unreachable => Self::RemoteUnreachable,
        }
    }
}
