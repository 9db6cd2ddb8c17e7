//! `wasi:sockets/ip-name-lookup`: the mesh's names first, the machine's resolver where the node says so.
//!
//! The machine's resolver blocks a thread for as long as it likes, and whose names somebody asks for may never answer: so a
//! container has few look-ups under way, and so has a namespace, all of them together leave threads for files, and nobody waits for
//! longer than [`PATIENCE`]. Whoever looks something up on a guest's behalf has his turn among them ([`look_up`]).

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

use super::descriptors::Namespace;
use super::held::CALL_BYTES;
use super::read_ahead::Held;
use super::{Mesh, MeshView};
use crate::Resolved;
use crate::guest::Guest;
use crate::limits::Account;

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

/// Whose turns a look-up takes.
struct Asker {
    /// Of the container, where it asks itself.
    container: Option<Arc<Semaphore>>,
    namespace: Arc<Namespace>,
}

impl Asker {
    fn of(account: &Account) -> Asker {
        Asker { container: Some(account.look_ups.clone()), namespace: account.namespace.clone() }
    }

    /// Asks the machine's resolver, within the bounds of the container, its namespace and the node.
    async fn ask_machine(self, name: String) -> Result<Vec<IpAddr>, Unresolved> {
        static NODE: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(LOOK_UPS_MAX)));
        let Asker { container, namespace } = self;
        let turns = container.into_iter().chain([namespace.look_ups.clone(), NODE.clone()]);
        let looking = in_turn(turns, move || {
            // Who asks next for the same namespace waits for the same turns.
            let _namespace = namespace;
            let found = (name.as_str(), 0).to_socket_addrs()?;
            Ok::<_, std::io::Error>(found.map(|address| address.ip().to_canonical()).collect::<Vec<_>>())
        });
        let found = tokio::time::timeout(PATIENCE, looking).await.ok().flatten();
        found.ok_or(Unresolved::Later)?.map_err(|_| Unresolved::Unknown)
    }
}

/// Does what may block. Its turns are over when its thread is done, which nobody can stop, however long anybody waits for it.
async fn in_turn<T: Send + 'static>(
    turns: impl Iterator<Item = Arc<Semaphore>>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let mut taken = Vec::new();
    for turn in turns {
        taken.push(turn.acquire_owned().await.ok()?);
    }
    let done = tokio::task::spawn_blocking(move || {
        let _taken = taken;
        work()
    });
    done.await.ok()
}

/// What the machine's resolver says of a name that is asked for on behalf of a guest of this namespace; none where it says nothing.
pub async fn look_up(namespace: &str, name: &str) -> Option<Vec<IpAddr>> {
    if is_too_long(name) {
        return None;
    }
    let asker = Asker { container: None, namespace: Namespace::of(namespace) };
    asker.ask_machine(name.to_owned()).await.ok()
}

/// What a name stands for, whoever knows it.
async fn resolve(resolved: Resolved, asker: Asker, name: String) -> Result<Vec<IpAddr>, Unresolved> {
    match resolved {
        Resolved::Addresses(addresses) => Ok(addresses),
        Resolved::System => asker.ask_machine(name).await,
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
                let (resolved, asker) = {
                    let guest = store.data_mut();
                    (guest.spec.network.resolve(&name), Asker::of(guest.account()))
                };
                let addresses = match resolve(resolved, asker, name).await {
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
        let (resolved, asker, _held) = store.with(|mut view| {
            let view = view.get();
            let account = view.descriptors.account();
            let held = Held::take(account, CALL_BYTES + name.len() as u64)?;
            wasmtime::error::Ok((view.network.resolve(&name), Asker::of(account), held))
        })?;
        Ok(match resolve(resolved, asker, name).await {
            Ok(addresses) => Ok(addresses.into_iter().map(Into::into).collect()),
            Err(why) => Err(why.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_look_up_has_its_turn_until_its_thread_is_done() {
        let turns = Arc::new(Semaphore::new(1));
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let mut under_way = Box::pin(in_turn([turns.clone()].into_iter(), move || ended.recv()));
        assert!(under_way.as_mut().now_or_never().is_none());
        drop(under_way);
        assert_eq!(turns.available_permits(), 0, "nobody waits for it, and its thread is not done");
        drop(end);
        let _turn = turns.acquire().await.unwrap();
    }

    /// As when a tenant asks for names that nobody answers for, in whatever way.
    #[tokio::test]
    async fn a_namespace_waits_for_its_own_look_ups_and_no_other_does() {
        let slow = Namespace::of("look-ups-that-last");
        let all = u32::try_from(slow.look_ups.available_permits()).unwrap();
        let held = slow.look_ups.clone().acquire_many_owned(all).await.unwrap();
        let mut waits = Box::pin(look_up("look-ups-that-last", "localhost"));
        assert!(waits.as_mut().now_or_never().is_none());
        let found = look_up("another", "localhost").await.unwrap();
        assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(held);
        assert_eq!(waits.await, Some(found));
        assert_eq!(look_up("another", &"a".repeat(254)).await, None);
    }
}
