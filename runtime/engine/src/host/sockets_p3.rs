//! `wasi:sockets/types` of WASI 0.3: the functions that name an address go through the node, what keeps a socket open is counted, and the
//! others stay wasmtime's.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use wasmtime::component::{
    Access, Accessor, FutureConsumer, FutureReader, Linker, LinkerInstance, Resource, Source, StreamReader,
};
use wasmtime::{AsContextMut as _, StoreContextMut};
use wasmtime_wasi::WasiView as _;
use wasmtime_wasi::p3::bindings::sockets::types::{
    ErrorCode, HostTcpSocket, HostTcpSocketWithStore, HostUdpSocket, HostUdpSocketWithStore, IpAddressFamily,
    IpSocketAddress, TcpSocket, UdpSocket,
};
use wasmtime_wasi::p3::sockets::SocketResult;
use wasmtime_wasi::runtime::poll_noop;
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsCtxView, WasiSocketsView};

use super::descriptors::Taken;
use super::held::CALL_BYTES;
use super::read_ahead::Held;
use super::source;
use crate::guest::{Guest, sockets_p3};
use crate::{Protocol, Refused};

/// The interface, at the version that wasmtime defines.
const TYPES: &str = "wasi:sockets/types@0.3.0";

/// No datagram is longer (RFC 768: its length is a number of 16 bits).
const DATAGRAM_BYTES_MAX: usize = 65_535;

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
        let guest = store.data_mut();
        let mut ctx = sockets_p3(&guest.spec, guest.account());
        let mut sockets = WasiSocketsCtxView { ctx: &mut ctx, table: guest.ctx().table };
        Ok((answer(HostTcpSocket::create(&mut sockets, family))?,))
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
    )?;
    tcp_streams(&mut types)
}

/// How a stream of a connection ends.
type Ending = FutureReader<Result<(), ErrorCode>>;

/// The streams of a connection keep its socket open by themselves, so each has a descriptor of its own. What listens is counted by its
/// gate: see [`sockets_p3`].
fn tcp_streams(types: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    types.func_wrap(
        "[method]tcp-socket.send",
        |mut store: Store<'_>, (socket, mut data): (Resource<TcpSocket>, StreamReader<u8>)| {
            let Some(taken) = Taken::take(store.data().account()) else {
                data.close(&mut store)?;
                return Ok((FutureReader::new(&mut store, no_room())?,));
            };
            let access = Access::<Guest, WasiSockets>::new(store.as_context_mut(), Guest::sockets);
            let ending = <WasiSockets as HostTcpSocketWithStore<Guest>>::send(access, socket, data)?;
            Ok((until_ended(store, ending, taken)?,))
        },
    )?;
    types.func_wrap("[method]tcp-socket.receive", |mut store: Store<'_>, (socket,): (Resource<TcpSocket>,)| {
        let Some(taken) = Taken::take(store.data().account()) else {
            let nothing: StreamReader<u8> = StreamReader::new(&mut store, std::iter::empty())?;
            let ending: Ending = FutureReader::new(&mut store, no_room())?;
            return Ok(((nothing, ending),));
        };
        let access = Access::<Guest, WasiSockets>::new(store.as_context_mut(), Guest::sockets);
        let (received, ending) = <WasiSockets as HostTcpSocketWithStore<Guest>>::receive(access, socket)?;
        Ok(((received, until_ended(store, ending, taken)?),))
    })
}

async fn no_room() -> wasmtime::Result<Result<(), ErrorCode>> {
    Ok(Err(ErrorCode::OutOfMemory))
}

/// Passes on how a stream ends, and has its descriptor until then, whoever waits for it.
fn until_ended(mut store: Store<'_>, ending: Ending, taken: Taken) -> wasmtime::Result<Ending> {
    let (sender, ended) = oneshot::channel();
    ending.pipe(&mut store, Passed { to: Some(sender), _taken: taken })?;
    FutureReader::new(&mut store, ended)
}

/// See [`until_ended`].
struct Passed {
    to: Option<oneshot::Sender<Result<(), ErrorCode>>>,
    _taken: Taken,
}

impl FutureConsumer<Guest> for Passed {
    type Item = Result<(), ErrorCode>;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        store: Store<'_>,
        mut source: Source<'_, Self::Item>,
        _: bool,
    ) -> Poll<wasmtime::Result<()>> {
        let mut ended = None;
        source.read(store, &mut ended)?;
        if let (Some(sender), Some(ended)) = (self.to.take(), ended) {
            // It may not be waited for.
            let _ = sender.send(ended);
        }
        Poll::Ready(Ok(()))
    }
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
                if data.len() > DATAGRAM_BYTES_MAX {
                    return Ok((Err(ErrorCode::DatagramTooLarge),));
                }
                // It may wait, and one instance may have as many under way as it has handles.
                let held = CALL_BYTES + data.len() as u64;
                let _held = accessor.with(|mut store| Held::take(store.get().account(), held))?;
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
