//! A store and what it holds on behalf of one instance.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use wasmtime::Store;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::p2::bindings::sockets::network::IpAddress;
use wasmtime_wasi::sockets::{SocketAddrUse, WasiSocketsCtx};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::engine::over_limit;
use crate::host::{Answering, Descriptors, Hooks, Input, Mesh, MeshView, OpenSocket, Output};
use crate::limits::{Account, Limiter};
use crate::slice::{self, Slice};
use crate::{Error, SocketUse, Spec, World, host};

/// Bytes that one call from a guest may make the host copy: well below a millisecond. Streams take less at once.
const HOSTCALL_BYTES_MAX: usize = 1 << 20;

/// Bytes of one list of headers or trailers, with what the host needs to hold them.
const FIELDS_BYTES_MAX: usize = 96 << 10;

/// Host calls between two looks at what the host holds for an instance, at least; as many as it has handles, if more.
const CALLS_PER_SURVEY: u32 = 16;

/// Resources and handles that one instance of a service may hold: open files, sockets, streams, bodies, headers.
const SERVICE_HANDLES_MAX: usize = 1_024;
/// The same for a command, which may be a server with many connections, of some five handles each.
const COMMAND_HANDLES_MAX: usize = 8_192;

/// What a store holds.
pub(crate) struct Guest {
    pub(crate) spec: Arc<Spec>,
    pub(crate) answering: Answering,
    pub(crate) slice: Slice,
    pub(crate) descriptors: Descriptors,
    /// See [`MeshView`].
    more_addresses: HashMap<u32, Vec<IpAddress>>,
    pub(crate) hooks: Hooks,
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    limiter: Limiter,
    /// Handles at the last survey, and the host calls until then.
    surveyed: (u32, u32),
    slot: Slot,
}

impl Guest {
    /// A store for one instance with everything the specification gives it.
    pub(crate) fn store(
        engine: &wasmtime::Engine,
        spec: &Arc<Spec>,
        account: &Arc<Account>,
        slot: Slot,
        world: World,
    ) -> Result<Store<Guest>, Error> {
        let handles_max = match world {
            World::Http => SERVICE_HANDLES_MAX,
            World::Command => COMMAND_HANDLES_MAX,
        };
        let mut table = ResourceTable::new();
        table.set_max_capacity(handles_max);
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELDS_BYTES_MAX);
        let limiter = Limiter::new(account.clone()).map_err(|over| over_limit(over, account))?;
        let mounts = u32::try_from(spec.mounts.len()).unwrap_or(u32::MAX);
        let descriptors = Descriptors::new(account.clone(), mounts)
            .ok_or_else(|| Error::Limits("too many files are open".to_owned()))?;
        let guest = Guest {
            table,
            wasi: wasi(spec, account)?,
            http,
            hooks: Hooks::new(spec.outbound.clone(), account.clone()),
            limiter,
            descriptors,
            more_addresses: HashMap::new(),
            slice: Slice::default(),
            surveyed: (0, 0),
            spec: spec.clone(),
            answering: Answering::default(),
            slot,
        };
        let mut store = Store::new(engine, guest);
        store.limiter(|guest| &mut guest.limiter);
        store.call_hook(slice::hook);
        store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
        store.set_max_component_handles(handles_max);
        refuel(&mut store);
        Ok(store)
    }

    /// Bytes of its memories and tables, which never shrink, and of what the host holds.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.limiter.held()
    }

    pub(crate) fn account(&self) -> &Arc<Account> {
        self.limiter.account()
    }

    /// Whether whoever comes next may have the instance ([`Slot::is_anybodys`]).
    pub(crate) fn is_anybodys(&mut self) -> bool {
        self.slot.is_anybodys()
    }

    /// Counts what the host holds for the guest, when it may have changed by much since the last time.
    pub(crate) fn survey(&mut self, calls: u32) -> wasmtime::Result<()> {
        let (handles, at) = self.surveyed;
        if calls.wrapping_sub(at) < CALLS_PER_SURVEY.max(handles) {
            return Ok(());
        }
        let (mut handles, mut bytes, mut open) = (0, 0, 0);
        for entry in self.table.iter_mut() {
            handles += 1;
            bytes += host::bytes_of(entry);
            open += u32::from(host::is_open(entry));
        }
        self.surveyed = (handles, calls);
        self.descriptors.count(open);
        Ok(self.limiter.set_host(bytes)?)
    }

    /// Whether this guest may open one more file or socket, which is counted then. What it has closed since the last survey
    /// is found first.
    pub(crate) fn take_descriptor(&mut self) -> bool {
        if self.descriptors.take() {
            return true;
        }
        let open = self.table.iter_mut().map(|entry| u32::from(host::is_open(entry))).sum();
        self.descriptors.count(open);
        self.descriptors.take()
    }

    /// The sockets of this guest, as its node wants them.
    pub(crate) fn mesh(&mut self) -> MeshView<'_> {
        MeshView {
            inner: wasmtime_wasi::sockets::WasiSocketsCtxView { ctx: self.wasi.sockets(), table: &mut self.table },
            network: &*self.spec.network,
            descriptors: &mut self.descriptors,
            more_addresses: &mut self.more_addresses,
        }
    }
}

/// Fills the tank: all that the specification allows, or what lasts longer than any machine.
pub(crate) fn refuel(store: &mut Store<Guest>) {
    let fuel = tank(&store.data().spec);
    // Both fail only in engines without fuel.
    let filled = store.set_fuel(fuel).and_then(|()| store.fuel_async_yield_interval(Some(slice::FUEL)));
    debug_assert!(filled.is_ok(), "the engine is made with fuel");
}

/// Fuel used since the tank was filled.
pub(crate) fn burnt(store: &Store<Guest>) -> u64 {
    store.get_fuel().map_or(0, |left| tank(&store.data().spec).saturating_sub(left))
}

fn tank(spec: &Spec) -> u64 {
    spec.fuel_max.unwrap_or(u64::MAX)
}

fn wasi(spec: &Arc<Spec>, account: &Arc<Account>) -> Result<WasiCtx, Error> {
    let mut builder = WasiCtx::builder();
    builder
        .stdout(Output::new(spec.stdout.clone(), spec.is_terminal))
        .stderr(Output::new(spec.stderr.clone(), spec.is_terminal))
        .allow_ip_name_lookup(true)
        .allow_tcp(true)
        .allow_udp(true)
        // Never where a guest is polled: see `host::files`, which calls what works on files on threads of its own.
        .allow_blocking_current_thread(true)
        .socket_addr_check(gate(spec, account, None));
    if let Some(stdin) = &spec.stdin {
        builder.stdin(Input::new(stdin.clone(), spec.is_terminal));
    }
    for mount in &spec.mounts {
        let permissions = if mount.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
        builder.preopened_dir(&mount.host, &mount.guest, permissions).map_err(|error| Error::Mount {
            path: mount.host.clone(),
            source: error.downcast().unwrap_or_else(|error| std::io::Error::other(error.to_string())),
        })?;
    }
    Ok(builder.build())
}

/// Asked about each address that a socket is to use. A socket of 0.3 that listens goes on as a stream, whatever becomes of its handle:
/// a gate of its own counts that as one more, until nobody has the gate.
fn gate(
    spec: &Spec,
    account: &Arc<Account>,
    listening: Option<OnceLock<OpenSocket>>,
) -> impl Fn(SocketAddr, SocketAddrUse) -> Pin<Box<dyn Future<Output = bool> + Send + Sync>> + Send + Sync + 'static {
    let (network, account) = (spec.network.clone(), account.clone());
    move |address: SocketAddr, usage: SocketAddrUse| {
        let is_permitted = is_own(address, usage) && network.permits(address, usage_of(usage));
        let has_room = || match (usage, &listening) {
            // A connection that a guest of 0.3 gets is its own before anybody could ask: it is reset here.
            (SocketAddrUse::TcpAccept, _) => host::has_descriptors(&account),
            (SocketAddrUse::TcpListen, Some(listening)) => {
                OpenSocket::take(&account).is_some_and(|open| listening.set(open).is_ok())
            }
            _ => true,
        };
        Box::pin(std::future::ready(is_permitted && has_room()))
    }
}

/// What a TCP socket of 0.3 is made with.
pub(crate) fn sockets_p3(spec: &Spec, account: &Arc<Account>) -> WasiSocketsCtx {
    let gate = gate(spec, account, Some(OnceLock::new()));
    WasiCtx::builder().allow_tcp(true).socket_addr_check(gate).build().sockets().clone()
}

/// Opens the mounts once, so that one that is not there is an error of the start.
pub(crate) fn check_mounts(spec: &Spec) -> Result<(), Error> {
    for mount in &spec.mounts {
        let failed = |source| Error::Mount { path: PathBuf::from(&mount.host), source };
        std::fs::read_dir(&mount.host).map_err(failed)?;
    }
    Ok(())
}

/// Whether a socket does not stand open to the machine's other interfaces. The unspecified address gets here when the
/// kernel chooses the port of an outgoing connection, and from interfaces whose addresses do not go through the node.
fn is_own(address: SocketAddr, usage: SocketAddrUse) -> bool {
    match usage {
        SocketAddrUse::TcpListen => !address.ip().is_unspecified(),
        SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => !address.ip().is_unspecified() || address.port() == 0,
        _ => true,
    }
}

fn usage_of(usage: SocketAddrUse) -> SocketUse {
    match usage {
        SocketAddrUse::TcpBind => SocketUse::TcpBind,
        SocketAddrUse::TcpListen => SocketUse::TcpListen,
        SocketAddrUse::TcpAccept => SocketUse::TcpAccept,
        SocketAddrUse::TcpConnect => SocketUse::TcpConnect,
        SocketAddrUse::UdpBind => SocketUse::UdpBind,
        SocketAddrUse::UdpSend => SocketUse::UdpSend,
        SocketAddrUse::UdpReceive => SocketUse::UdpReceive,
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

impl wasmtime::component::HasData for Mesh {
    type Data<'a> = MeshView<'a>;
}

/// What an instance is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    Command,
    Request,
    /// Asked by the node how the guest is: not refused because requests have taken all places, which would look as if
    /// the guest were broken.
    Probe,
}

/// What an instance takes of the engine's places, counted while it lives.
pub(crate) struct Slot {
    slots: Arc<Slots>,
    account: Arc<Account>,
    weight: u32,
    claim: Claim,
}

/// How many instances live. An instance counts for as many as the memories that it has, and more where there is room for fewer of
/// its kind.
#[derive(Debug)]
pub(crate) struct Slots {
    live: AtomicU32,
    commands: AtomicU32,
    max: AtomicU32,
}

/// Of eight places, those that commands may take: some are left for requests.
const COMMANDS_OF_EIGHT: u32 = 7;

/// A container may take one of so many places.
const CONTAINER_SHARE: u32 = 4;

/// Instances that a container may have for probes beyond its share.
pub(crate) const CONTAINER_PROBES_MAX: u32 = 2;

/// One of so many places is for probes alone, and at most so many places are.
const PROBES_SHARE: u32 = 16;
const PROBES_KEPT_MAX: u32 = 64;

impl Slots {
    pub(crate) fn new(max: u32) -> Arc<Slots> {
        Arc::new(Slots { live: AtomicU32::new(0), commands: AtomicU32::new(0), max: AtomicU32::new(max) })
    }

    pub(crate) fn max(&self) -> u32 {
        self.max.load(Ordering::Relaxed)
    }

    /// There is room for no more than so many from now on. Those that live go on.
    pub(crate) fn shrink(&self, max: u32) {
        self.max.fetch_min(max, Ordering::Relaxed);
    }

    pub(crate) fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    /// The most that there may be but for probes.
    fn others_max(&self) -> u32 {
        let all = self.max();
        all - (all / PROBES_SHARE).min(PROBES_KEPT_MAX)
    }

    /// The most that one container may have.
    pub(crate) fn container_max(&self) -> u32 {
        (self.max() / CONTAINER_SHARE).max(1)
    }

    pub(crate) fn take(self: &Arc<Self>, account: &Arc<Account>, weight: u32, claim: Claim) -> Result<Slot, Error> {
        let weight = weight.max(1);
        let (container_max, max) = match claim {
            Claim::Probe => (self.container_max() + CONTAINER_PROBES_MAX * weight, self.max()),
            Claim::Command | Claim::Request => (self.container_max(), self.others_max()),
        };
        account.take_slots(weight, container_max).map_err(|live| {
            Error::Limits(format!("{live} of this container are alive, and one container may have {container_max}"))
        })?;
        // From here on, dropping it gives back what was taken.
        let mut slot = Slot { slots: self.clone(), account: account.clone(), weight, claim };
        if add(&self.live, weight, max).is_err() {
            slot.forget(false);
            return Err(Error::Limits(format!("{} are alive, which is the node's limit", self.live())));
        }
        let commands_max = (self.max() / 8 * COMMANDS_OF_EIGHT).max(1);
        if claim == Claim::Command && add(&self.commands, weight, commands_max).is_err() {
            slot.forget(true);
            return Err(Error::Limits(format!("commands have taken their {commands_max} places on the node")));
        }
        Ok(slot)
    }
}

fn add(count: &AtomicU32, more: u32, max: u32) -> Result<u32, u32> {
    let fits = |live: u32| live.checked_add(more).filter(|sum| *sum <= max);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
}

impl Slot {
    /// Whether requests may have an instance in it, as one that was made for them. A probe's becomes such a one where there is room
    /// for it: else those that wait for their next request would have the places of probes.
    fn is_anybodys(&mut self) -> bool {
        let has_room =
            || self.account.slots() <= self.slots.container_max() && self.slots.live() <= self.slots.others_max();
        if self.claim == Claim::Probe && has_room() {
            self.claim = Claim::Request;
        }
        self.claim == Claim::Request
    }

    /// Not all of it was taken.
    fn forget(&mut self, was_live: bool) {
        if was_live {
            self.slots.live.fetch_sub(self.weight, Ordering::Relaxed);
        }
        self.account.give_slots(self.weight);
        self.weight = 0;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.weight == 0 {
            return;
        }
        self.slots.live.fetch_sub(self.weight, Ordering::Relaxed);
        if self.claim == Claim::Command {
            self.slots.commands.fetch_sub(self.weight, Ordering::Relaxed);
        }
        self.account.give_slots(self.weight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::NodeMemory;

    #[test]
    fn neither_a_container_nor_all_commands_can_take_every_place() {
        let node = NodeMemory::new(u64::MAX);
        let account = || Account::new(&Spec::new("a"), &node);
        let slots = Slots::new(16);
        let one = account();
        let mut held: Vec<Slot> = (0..4).map(|_| slots.take(&one, 1, Claim::Request).unwrap()).collect();
        assert!(slots.take(&one, 1, Claim::Request).is_err(), "a quarter is what one container may have");
        assert!(slots.take(&account(), 5, Claim::Request).is_err(), "five memories are five places");
        held.extend((0..10).map(|_| slots.take(&account(), 1, Claim::Command).unwrap()));
        assert_eq!(slots.live(), 14);
        held.push(slots.take(&account(), 1, Claim::Request).unwrap());
        assert!(slots.take(&account(), 1, Claim::Request).is_err());
        held.push(slots.take(&one, 1, Claim::Probe).expect("full, and beyond its share, it can still be probed"));
        assert!(slots.take(&account(), 1, Claim::Probe).is_err());
        drop(held);
        let commands: Vec<_> = (0..14).map(|_| slots.take(&account(), 1, Claim::Command).unwrap()).collect();
        assert!(slots.take(&account(), 1, Claim::Command).is_err(), "two are left for requests");
        assert!(slots.take(&account(), 1, Claim::Request).is_ok());
        drop(commands);
        assert_eq!((slots.live(), slots.commands.load(Ordering::Relaxed)), (0, 0));
    }

    /// An instance of a probe waits for whoever comes next, and with it a place that is kept for probes.
    #[test]
    fn a_probes_place_is_a_requests_only_where_one_might_have_taken_it() {
        let node = NodeMemory::new(u64::MAX);
        let account = || Account::new(&Spec::new("a"), &node);
        let (slots, one) = (Slots::new(16), account());
        let mut held: Vec<Slot> = (0..4).map(|_| slots.take(&one, 1, Claim::Request).unwrap()).collect();
        let mut probe = slots.take(&one, 1, Claim::Probe).unwrap();
        assert!(!probe.is_anybodys(), "its container has as many as it may");
        held.pop();
        assert!(probe.is_anybodys());
        held.extend((0..11).map(|_| slots.take(&account(), 1, Claim::Request).unwrap()));
        let mut last = slots.take(&account(), 1, Claim::Probe).unwrap();
        assert!(!last.is_anybodys(), "it is the place of probes");
        drop(probe);
        assert!(last.is_anybodys());
        slots.take(&account(), 1, Claim::Probe).expect("the next is probed");
    }

    #[test]
    fn where_there_is_room_for_fewer_those_that_live_go_on() {
        let node = NodeMemory::new(u64::MAX);
        let slots = Slots::new(16);
        let held: Vec<Slot> =
            (0..3).map(|_| slots.take(&Account::new(&Spec::new("a"), &node), 3, Claim::Request).unwrap()).collect();
        slots.shrink(8);
        assert_eq!((slots.max(), slots.live(), slots.container_max()), (8, 9, 2));
        let account = Account::new(&Spec::new("b"), &node);
        assert!(slots.take(&account, 1, Claim::Request).is_err());
        drop(held);
        assert!(slots.take(&account, 2, Claim::Request).is_ok());
    }
}
