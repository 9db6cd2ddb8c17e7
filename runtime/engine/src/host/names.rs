//! `wasi:sockets/ip-name-lookup`: the mesh's names first, the machine's resolver where the node says so.
//!
//! The machine's resolver blocks a thread for as long as it likes, so a container has few look-ups under way, all of
//! them together leave threads for files, and nobody waits for longer than [`PATIENCE`].

use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::Semaphore;
use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, Linker, Resource};
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::SocketError;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup as p2;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, Network};
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup as p3;

use super::held::CALL_BYTES;
use super::read_ahead::Held;
use super::{Mesh, MeshView};
use crate::Resolved;
use crate::guest::Guest;

/// The interface of 0.2, at the version that wasmtime defines.
const LOOK_UP: &str = "wasi:sockets/ip-name-lookup@0.2.12";

/// Look-ups of all guests that the machine's resolver works on at the same time: half of the threads that may block.
const LOOK_UPS_MAX: usize = 32;

/// Addresses of one name that a guest of 0.2 is told after the first: the host keeps them until it has asked for each.
const ADDRESSES_MAX: usize = 31;

/// How long a guest waits for the machine's resolver, its turn included.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no address.
enum Unresolved {
    Unknown,
    Later,
}

impl From<Unresolved> for ErrorCode {
    fn from(why: Unresolved) -> Self {
        match why {
            Unresolved::Unknown => Self::NameUnresolvable,
            Unresolved::Later => Self::TemporaryResolverFailure,
        }
    }
}

impl From<Unresolved> for p3::ErrorCode {
    fn from(why: Unresolved) -> Self {
        match why {
            Unresolved::Unknown => Self::NameUnresolvable,
            Unresolved::Later => Self::TemporaryResolverFailure,
        }
    }
}

/// The longest name there is (RFC 1035, as text without the last dot).
const NAME_BYTES_MAX: usize = 253;

/// Whether no resolver would be asked for it.
fn is_too_long(name: &str) -> bool {
    name.strip_suffix('.').unwrap_or(name).len() > NAME_BYTES_MAX
}

/// Asks the machine's resolver, within the bounds of the container and of the node.
async fn ask_machine(container: Arc<Semaphore>, name: String) -> Result<Vec<IpAddr>, Unresolved> {
    static NODE: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(LOOK_UPS_MAX)));
    let asked = async move {
        // Neither is ever closed. Both are given back by the thread, which nobody can stop.
        let turns = (container.acquire_owned().await, NODE.clone().acquire_owned().await);
        let found = tokio::task::spawn_blocking(move || {
            let _turns = turns;
            let found = (name.as_str(), 0).to_socket_addrs()?;
            Ok::<_, std::io::Error>(found.map(|address| address.ip().to_canonical()).collect::<Vec<_>>())
        });
        found.await.map_err(|_| Unresolved::Later)?.map_err(|_| Unresolved::Unknown)
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or(Err(Unresolved::Later))
}

/// What a name stands for, whoever knows it.
async fn resolve(resolved: Resolved, container: Arc<Semaphore>, name: String) -> Result<Vec<IpAddr>, Unresolved> {
    match resolved {
        Resolved::Addresses(addresses) => Ok(addresses),
        Resolved::System => ask_machine(container, name).await,
        Resolved::Unknown => Err(Unresolved::Unknown),
        Resolved::Failed => Err(Unresolved::Later),
    }
}

/// Look-ups of 0.2 wait within the call: the type of the stream is wasmtime's own, and asks the machine without bounds.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.instance(LOOK_UP)?.func_wrap_async(
        "resolve-addresses",
        |mut store: StoreContextMut<'_, Guest>, (network, name): (Resource<Network>, String)| {
            Box::new(async move {
                if is_too_long(&name) {
                    return Ok((Err(ErrorCode::NameUnresolvable),));
                }
                let (resolved, turns) = {
                    let guest = store.data_mut();
                    (guest.spec.network.resolve(&name), guest.account().look_ups.clone())
                };
                let addresses = match resolve(resolved, turns, name).await {
                    Ok(addresses) => addresses,
                    Err(why) => return Ok((Err(why.into()),)),
                };
                let Some((first, rest)) = addresses.split_first() else {
                    return Ok((Err(ErrorCode::NameUnresolvable),));
                };
                let mut mesh = store.data_mut().mesh();
                // An address as a name comes back as it is, and the others after it.
                let stream = match p2::Host::resolve_addresses(&mut mesh.inner, network, first.to_string()) {
                    Ok(stream) => stream,
                    Err(error) => return Ok((Err(error.downcast()?),)),
                };
                if !rest.is_empty() {
                    let rest = rest.iter().take(ADDRESSES_MAX).rev().map(|address| IpAddress::from(*address));
                    mesh.more_addresses.insert(stream.rep(), rest.collect());
                }
                Ok((Ok(stream),))
            })
        },
    )
}

impl p2::Host for MeshView<'_> {
    fn resolve_addresses(
        &mut self,
        _: Resource<Network>,
        _: String,
    ) -> Result<Resource<p2::ResolveAddressStream>, SocketError> {
        // Defined above instead, which may wait.
        Err(ErrorCode::NotSupported.into())
    }
}

impl p2::HostResolveAddressStream for MeshView<'_> {
    fn resolve_next_address(
        &mut self,
        stream: Resource<p2::ResolveAddressStream>,
    ) -> Result<Option<IpAddress>, SocketError> {
        let rep = stream.rep();
        match self.inner.resolve_next_address(stream)? {
            None => Ok(self.more_addresses.get_mut(&rep).and_then(Vec::pop)),
            first => Ok(first),
        }
    }

    fn subscribe(&mut self, stream: Resource<p2::ResolveAddressStream>) -> wasmtime::Result<Resource<DynPollable>> {
        p2::HostResolveAddressStream::subscribe(&mut self.inner, stream)
    }

    fn drop(&mut self, stream: Resource<p2::ResolveAddressStream>) -> wasmtime::Result<()> {
        self.more_addresses.remove(&stream.rep());
        p2::HostResolveAddressStream::drop(&mut self.inner, stream)
    }
}

impl p3::Host for MeshView<'_> {}

impl<T> p3::HostWithStore<T> for Mesh {
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<p3::IpAddress>, p3::ErrorCode>> {
        // Before it waits: one instance may have as many look-ups under way as it has handles.
        if is_too_long(&name) {
            return Ok(Err(p3::ErrorCode::NameUnresolvable));
        }
        let (resolved, turns, _held) = store.with(|mut view| {
            let view = view.get();
            let account = view.descriptors.account();
            let held = Held::take(account, CALL_BYTES + name.len() as u64)?;
            wasmtime::error::Ok((view.network.resolve(&name), account.look_ups.clone(), held))
        })?;
        Ok(match resolve(resolved, turns, name).await {
            Ok(addresses) => Ok(addresses.into_iter().map(Into::into).collect()),
            Err(why) => Err(why.into()),
        })
    }
}
