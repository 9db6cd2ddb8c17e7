//! A store and what it holds on behalf of one instance.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use wasmtime::Store;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::sockets::SocketAddrUse;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::host::{Answering, Hooks, Mesh, MeshView, Output};
use crate::limits::{Account, Limiter};
use crate::settings::FUEL_SLICE;
use crate::{Error, SocketUse, Spec, World};

/// Bytes that one call from a guest may make the host copy.
const HOSTCALL_BYTES_MAX: usize = 16 << 20;

/// Resources and handles that one instance of a service may hold: open files, sockets, streams, bodies, headers.
const SERVICE_HANDLES_MAX: usize = 1_024;
/// The same for a command, which may be a server with many connections, of some five handles each.
const COMMAND_HANDLES_MAX: usize = 8_192;

/// Random bytes that a guest can ask for in one call.
const RANDOM_BYTES_MAX: u64 = 1 << 20;

/// What a store holds.
pub(crate) struct Guest {
    pub(crate) spec: Arc<Spec>,
    pub(crate) answering: Answering,
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: Hooks,
    limiter: Limiter,
    _slot: Slot,
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
        let guest = Guest {
            table,
            wasi: wasi(spec)?,
            http: WasiHttpCtx::new(),
            hooks: Hooks::new(spec.outbound.clone(), account.clone()),
            limiter: Limiter::new(account.clone()),
            spec: spec.clone(),
            answering: Answering::default(),
            _slot: slot,
        };
        let mut store = Store::new(engine, guest);
        store.limiter(|guest| &mut guest.limiter);
        store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
        store.set_max_component_handles(handles_max);
        refuel(&mut store);
        Ok(store)
    }

    /// Bytes of its memories and tables. They never shrink.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.limiter.held()
    }

    /// The sockets of this guest, as its node wants them.
    pub(crate) fn mesh(&mut self) -> MeshView<'_> {
        MeshView {
            inner: wasmtime_wasi::sockets::WasiSocketsCtxView { ctx: self.wasi.sockets(), table: &mut self.table },
            network: &*self.spec.network,
        }
    }
}

/// Fills the tank: all that the specification allows, or what lasts longer than any machine.
pub(crate) fn refuel(store: &mut Store<Guest>) {
    let fuel = tank(&store.data().spec);
    // Both fail only in engines without fuel.
    let filled = store.set_fuel(fuel).and_then(|()| store.fuel_async_yield_interval(Some(FUEL_SLICE)));
    debug_assert!(filled.is_ok(), "the engine is made with fuel");
}

/// Fuel used since the tank was filled.
pub(crate) fn burnt(store: &Store<Guest>) -> u64 {
    store.get_fuel().map_or(0, |left| tank(&store.data().spec).saturating_sub(left))
}

fn tank(spec: &Spec) -> u64 {
    spec.fuel_max.unwrap_or(u64::MAX)
}

fn wasi(spec: &Arc<Spec>) -> Result<WasiCtx, Error> {
    let mut builder = WasiCtx::builder();
    builder
        .stdout(Output(spec.stdout.clone()))
        .stderr(Output(spec.stderr.clone()))
        .max_random_size(RANDOM_BYTES_MAX)
        .allow_ip_name_lookup(true)
        .allow_tcp(true)
        .allow_udp(true)
        .socket_addr_check({
            let network = spec.network.clone();
            move |address: SocketAddr, usage: SocketAddrUse| {
                let permitted = is_own(address, usage) && network.permits(address, usage_of(usage));
                Box::pin(std::future::ready(permitted))
            }
        });
    for mount in &spec.mounts {
        let permissions = if mount.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
        builder.preopened_dir(&mount.host, &mount.guest, permissions).map_err(|error| Error::Mount {
            path: mount.host.clone(),
            source: error.downcast().unwrap_or_else(|error| std::io::Error::other(error.to_string())),
        })?;
    }
    Ok(builder.build())
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

/// One of the engine's instances, counted while it lives.
pub(crate) struct Slot(Arc<Slots>);

/// How many instances live.
#[derive(Debug)]
pub(crate) struct Slots {
    live: AtomicU32,
    max: u32,
}

impl Slots {
    pub(crate) fn new(max: u32) -> Arc<Slots> {
        Arc::new(Slots { live: AtomicU32::new(0), max })
    }

    pub(crate) fn max(&self) -> u32 {
        self.max
    }

    pub(crate) fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    pub(crate) fn take(self: &Arc<Self>) -> Result<Slot, Error> {
        let more = |live| (live < self.max).then_some(live + 1);
        match self.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Slot(self.clone())),
            Err(live) => Err(Error::Limits(format!("{live} are alive, which is the node's limit"))),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
    }
}
