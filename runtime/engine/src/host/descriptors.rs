//! Files and sockets that guests have open: bounded per container, and the last ones of the process are not for guests.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, LazyLock};

use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, Linker, Resource, ResourceType};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Descriptor, DescriptorFlags, ErrorCode, HostDescriptor, OpenFlags, PathFlags,
};

use crate::guest::Guest;
use crate::limits::Account;
use crate::machine;

/// The interface, at the version that wasmtime defines.
const TYPES: &str = "wasi:filesystem/types@0.2.12";

static BOUNDS: LazyLock<machine::Descriptors> = LazyLock::new(machine::descriptors);

/// What one instance has open.
pub(crate) struct Descriptors {
    account: Arc<Account>,
    open: u32,
}

impl Descriptors {
    pub(crate) fn new(account: Arc<Account>) -> Descriptors {
        Descriptors { account, open: 0 }
    }

    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Whether one more may be opened, which is counted then.
    pub(crate) fn take(&mut self) -> bool {
        let is_free = node_has_more() && self.account.take_descriptor(BOUNDS.container_max);
        self.open += u32::from(is_free);
        is_free
    }

    /// One was closed. Those that nobody counted are not given back.
    pub(crate) fn give(&mut self) {
        if self.open > 0 {
            self.open -= 1;
            self.account.give_descriptors(1);
        }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        self.account.give_descriptors(self.open);
    }
}

/// One more descriptor of a container, given back when this is dropped.
pub(super) struct Taken(Arc<Account>);

impl Taken {
    /// None at the bound of the container or of the node.
    pub(super) fn take(account: &Arc<Account>) -> Option<Taken> {
        let is_free = node_has_more() && account.take_descriptor(BOUNDS.container_max);
        is_free.then(|| Taken(account.clone()))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.give_descriptors(1);
    }
}

/// Whether descriptors of this process are left for guests: the kernel gives the lowest number that is free.
pub(super) fn node_has_more() -> bool {
    File::open("/dev/null")
        .is_ok_and(|lowest| u32::try_from(lowest.as_raw_fd()).is_ok_and(|number| number < BOUNDS.number_max))
}

/// Where files are opened in 0.3; only the node's bound, since nothing tells here when one is closed. What an instance
/// may have open is bounded by its handles.
pub(super) fn add_p3_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    use wasmtime_wasi::p3::bindings::filesystem::types as p3;
    type Open = (Resource<p3::Descriptor>, p3::PathFlags, String, p3::OpenFlags, p3::DescriptorFlags);
    linker.instance("wasi:filesystem/types@0.3.0")?.func_wrap_concurrent(
        "[method]descriptor.open-at",
        |accessor: &Accessor<Guest>, (dir, path_flags, path, open, flags): Open| {
            Box::pin(async move {
                if !node_has_more() {
                    return Ok((Err(p3::ErrorCode::InsufficientMemory),));
                }
                let files = accessor.with_getter::<WasiFilesystem>(Guest::filesystem);
                let opened = <WasiFilesystem as p3::HostDescriptorWithStore<Guest>>::open_at(
                    &files, dir, path_flags, path, open, flags,
                );
                let result: Result<Resource<p3::Descriptor>, p3::ErrorCode> = match opened.await {
                    Ok(file) => Ok(file),
                    Err(error) => Err(error.downcast()?),
                };
                Ok((result,))
            })
        },
    )
}

/// Watches where files are opened and closed.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    type Open = (Resource<Descriptor>, PathFlags, String, OpenFlags, DescriptorFlags);
    let mut types = linker.instance(TYPES)?;
    types.func_wrap_async(
        "[method]descriptor.open-at",
        |mut store: StoreContextMut<'_, Guest>, (dir, path_flags, path, open, flags): Open| {
            Box::new(async move {
                let guest = store.data_mut();
                if !guest.descriptors.take() {
                    return Ok((Err(ErrorCode::InsufficientMemory),));
                }
                let opened = HostDescriptor::open_at(&mut guest.filesystem(), dir, path_flags, path, open, flags).await;
                let result: Result<Resource<Descriptor>, ErrorCode> = match opened {
                    Ok(file) => Ok(file),
                    Err(error) => {
                        guest.descriptors.give();
                        Err(error.downcast()?)
                    }
                };
                Ok((result,))
            })
        },
    )?;
    types.resource("descriptor", ResourceType::host::<Descriptor>(), |mut store, rep| {
        let guest = store.data_mut();
        guest.descriptors.give();
        HostDescriptor::drop(&mut guest.filesystem(), Resource::new_own(rep))
    })
}
