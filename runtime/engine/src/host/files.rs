//! Files of guests: what is open is counted, and what is worked on at the same time is bounded.
//!
//! wasmtime does the work on threads that may block, which all guests share; a container has few of them at a time
//! ([`FILE_TURNS_MAX`](crate::limits::FILE_TURNS_MAX)) and waits for its own work, not for others'.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, Linker, Resource, ResourceType};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Descriptor, DescriptorFlags, DescriptorStat, DirectoryEntryStream, ErrorCode, HostDescriptor, NewTimestamp,
    OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, InputStream, OutputStream, Pollable, StreamResult};
use wasmtime_wasi::p3::bindings::filesystem::types as p3;

use super::descriptors::Taken;
use crate::guest::Guest;

/// The interfaces, at the versions that wasmtime defines.
const TYPES: &str = "wasi:filesystem/types@0.2.12";
const TYPES_P3: &str = "wasi:filesystem/types@0.3.0";

type File = Resource<Descriptor>;

/// A turn of the container. The semaphore is never closed.
async fn turn(turns: Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    turns.acquire_owned().await.ok()
}

/// Functions that block a thread: each in its turn.
macro_rules! in_turn {
    ($types:expr; $($name:literal $method:ident($($arg:ident: $ty:ty),*) -> $out:ty;)*) => {$(
        $types.func_wrap_async(
            concat!("[method]descriptor.", $name),
            |mut store: StoreContextMut<'_, Guest>, ($($arg,)*): ($($ty,)*)| {
                Box::new(async move {
                    let _turn = turn(store.data().account().file_turns.clone()).await;
                    let done = HostDescriptor::$method(&mut store.data_mut().filesystem(), $($arg),*).await;
                    let result: Result<$out, ErrorCode> = match done {
                        Ok(value) => Ok(value),
                        Err(error) => Err(error.downcast()?),
                    };
                    Ok((result,))
                })
            },
        )?;
    )*};
}

/// Defines them in place of wasmtime's.
pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut types = linker.instance(TYPES)?;
    in_turn! { types;
        "read" read(file: File, length: u64, offset: u64) -> (Vec<u8>, bool);
        "write" write(file: File, bytes: Vec<u8>, offset: u64) -> u64;
        "sync" sync(file: File) -> ();
        "sync-data" sync_data(file: File) -> ();
        "set-size" set_size(file: File, size: u64) -> ();
        "set-times" set_times(file: File, accessed: NewTimestamp, modified: NewTimestamp) -> ();
        "stat" stat(file: File) -> DescriptorStat;
        "stat-at" stat_at(dir: File, flags: PathFlags, path: String) -> DescriptorStat;
        "read-directory" read_directory(dir: File) -> Resource<DirectoryEntryStream>;
        "create-directory-at" create_directory_at(dir: File, path: String) -> ();
        "remove-directory-at" remove_directory_at(dir: File, path: String) -> ();
        "unlink-file-at" unlink_file_at(dir: File, path: String) -> ();
        "rename-at" rename_at(dir: File, path: String, to: File, name: String) -> ();
    }
    type Open = (File, PathFlags, String, OpenFlags, DescriptorFlags);
    types.func_wrap_async(
        "[method]descriptor.open-at",
        |mut store: StoreContextMut<'_, Guest>, (dir, path_flags, path, open, flags): Open| {
            Box::new(async move {
                if !store.data_mut().take_descriptor() {
                    return Ok((Err(ErrorCode::InsufficientMemory),));
                }
                let _turn = turn(store.data().account().file_turns.clone()).await;
                let guest = store.data_mut();
                let opened = HostDescriptor::open_at(&mut guest.filesystem(), dir, path_flags, path, open, flags).await;
                let result: Result<File, ErrorCode> = match opened {
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
    types.func_wrap(
        "[method]descriptor.read-via-stream",
        |mut store: StoreContextMut<'_, Guest>, (file, offset): (File, u64)| {
            let guest = store.data_mut();
            let Some(open) = Held::new(guest) else { return Ok((Err(ErrorCode::InsufficientMemory),)) };
            let made = HostDescriptor::read_via_stream(&mut guest.filesystem(), file, offset);
            let result: Result<Resource<DynInputStream>, ErrorCode> = match made {
                Ok(stream) => Ok(input(guest, stream, open)?),
                Err(error) => Err(error.downcast()?),
            };
            Ok((result,))
        },
    )?;
    types.func_wrap(
        "[method]descriptor.write-via-stream",
        |mut store: StoreContextMut<'_, Guest>, (file, offset): (File, u64)| {
            let guest = store.data_mut();
            let Some(open) = Held::new(guest) else { return Ok((Err(ErrorCode::InsufficientMemory),)) };
            let made = HostDescriptor::write_via_stream(&mut guest.filesystem(), file, offset);
            let result: Result<Resource<DynOutputStream>, ErrorCode> = match made {
                Ok(stream) => Ok(output(guest, stream, open)?),
                Err(error) => Err(error.downcast()?),
            };
            Ok((result,))
        },
    )?;
    types.func_wrap(
        "[method]descriptor.append-via-stream",
        |mut store: StoreContextMut<'_, Guest>, (file,): (File,)| {
            let guest = store.data_mut();
            let Some(open) = Held::new(guest) else { return Ok((Err(ErrorCode::InsufficientMemory),)) };
            let made = HostDescriptor::append_via_stream(&mut guest.filesystem(), file);
            let result: Result<Resource<DynOutputStream>, ErrorCode> = match made {
                Ok(stream) => Ok(output(guest, stream, open)?),
                Err(error) => Err(error.downcast()?),
            };
            Ok((result,))
        },
    )?;
    types.resource("descriptor", ResourceType::host::<Descriptor>(), |mut store, rep| {
        let guest = store.data_mut();
        guest.descriptors.give();
        HostDescriptor::drop(&mut guest.filesystem(), Resource::new_own(rep))
    })
}

/// What an open stream has of its container: a descriptor, and turns.
struct Held {
    _descriptor: Taken,
    turns: Arc<Semaphore>,
}

impl Held {
    fn new(guest: &Guest) -> Option<Held> {
        let account = guest.account();
        Some(Held { _descriptor: Taken::take(account)?, turns: account.file_turns.clone() })
    }
}

fn input(
    guest: &mut Guest,
    stream: Resource<DynInputStream>,
    open: Held,
) -> wasmtime::Result<Resource<DynInputStream>> {
    let table = guest.ctx().table;
    let inner = table.delete(stream)?;
    let stream: DynInputStream = Box::new(Reading { inner, open, turn: None });
    Ok(table.push(stream)?)
}

fn output(
    guest: &mut Guest,
    stream: Resource<DynOutputStream>,
    open: Held,
) -> wasmtime::Result<Resource<DynOutputStream>> {
    let table = guest.ctx().table;
    let inner = table.delete(stream)?;
    let stream: DynOutputStream = Box::new(Writing { inner, open, turn: None });
    Ok(table.push(stream)?)
}

/// A file that is read as a stream. wasmtime's begins to read when it is asked, and is ready when that is done.
struct Reading {
    inner: DynInputStream,
    open: Held,
    /// Of the reading that is under way.
    turn: Option<OwnedSemaphorePermit>,
}

#[async_trait::async_trait]
impl Pollable for Reading {
    async fn ready(&mut self) {
        self.inner.ready().await;
        if self.turn.is_none() {
            // Whoever asks then finds a turn, as a rule.
            drop(turn(self.open.turns.clone()).await);
        }
    }
}

#[async_trait::async_trait]
impl InputStream for Reading {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if self.turn.is_none() {
            match self.open.turns.clone().try_acquire_owned() {
                Ok(turn) => self.turn = Some(turn),
                // Nothing is there yet.
                Err(_) => return Ok(Bytes::new()),
            }
        }
        let read = self.inner.read(size);
        if !matches!(&read, Ok(bytes) if bytes.is_empty()) {
            self.turn = None;
        }
        read
    }

    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        if self.turn.is_none() {
            self.turn = turn(self.open.turns.clone()).await;
        }
        let read = self.inner.blocking_read(size).await;
        self.turn = None;
        read
    }

    async fn cancel(&mut self) {
        self.inner.cancel().await;
        self.turn = None;
    }
}

/// The same for one that is written: wasmtime's takes nothing more until what it was given is written.
struct Writing {
    inner: DynOutputStream,
    open: Held,
    turn: Option<OwnedSemaphorePermit>,
}

#[async_trait::async_trait]
impl Pollable for Writing {
    async fn ready(&mut self) {
        self.inner.ready().await;
        self.turn = None;
        drop(turn(self.open.turns.clone()).await);
    }
}

#[async_trait::async_trait]
impl OutputStream for Writing {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.inner.flush()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let permitted = self.inner.check_write()?;
        if permitted == 0 {
            return Ok(0);
        }
        // Nothing is under way, or the last one is done. A turn that was given for a write stays until then.
        if self.turn.is_none() {
            match self.open.turns.clone().try_acquire_owned() {
                Ok(turn) => self.turn = Some(turn),
                Err(_) => return Ok(0),
            }
        }
        Ok(permitted)
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        if self.turn.is_none() {
            self.turn = turn(self.open.turns.clone()).await;
        }
        let written = self.inner.blocking_write_and_flush(bytes).await;
        self.turn = None;
        written
    }

    async fn cancel(&mut self) {
        self.inner.cancel().await;
        self.turn = None;
    }
}

/// The same functions of 0.3. Streams of files take no turn there: wasmtime has them among what it works on itself.
macro_rules! in_turn_p3 {
    ($types:expr; $($name:literal $method:ident($($arg:ident: $ty:ty),*) -> $out:ty;)*) => {$(
        $types.func_wrap_concurrent(
            concat!("[method]descriptor.", $name),
            |accessor: &Accessor<Guest>, ($($arg,)*): ($($ty,)*)| {
                Box::pin(async move {
                    let turns = accessor.with(|mut store| store.get().account().file_turns.clone());
                    let _turn = turn(turns).await;
                    let files = accessor.with_getter::<WasiFilesystem>(Guest::filesystem);
                    let done = <WasiFilesystem as p3::HostDescriptorWithStore<Guest>>::$method(&files, $($arg),*).await;
                    let result: Result<$out, p3::ErrorCode> = match done {
                        Ok(value) => Ok(value),
                        Err(error) => Err(error.downcast()?),
                    };
                    Ok((result,))
                })
            },
        )?;
    )*};
}

type FileP3 = Resource<p3::Descriptor>;

/// Defines them in place of wasmtime's.
pub(super) fn add_p3_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut types = linker.instance(TYPES_P3)?;
    in_turn_p3! { types;
        "sync" sync(file: FileP3) -> ();
        "sync-data" sync_data(file: FileP3) -> ();
        "set-size" set_size(file: FileP3, size: u64) -> ();
        "stat" stat(file: FileP3) -> p3::DescriptorStat;
        "stat-at" stat_at(dir: FileP3, flags: p3::PathFlags, path: String) -> p3::DescriptorStat;
        "create-directory-at" create_directory_at(dir: FileP3, path: String) -> ();
        "remove-directory-at" remove_directory_at(dir: FileP3, path: String) -> ();
        "unlink-file-at" unlink_file_at(dir: FileP3, path: String) -> ();
        "rename-at" rename_at(dir: FileP3, path: String, to: FileP3, name: String) -> ();
    }
    type Open = (FileP3, p3::PathFlags, String, p3::OpenFlags, p3::DescriptorFlags);
    types.func_wrap_concurrent(
        "[method]descriptor.open-at",
        |accessor: &Accessor<Guest>, (dir, path_flags, path, open, flags): Open| {
            Box::pin(async move {
                let turns = accessor.with(|mut store| {
                    let guest = store.get();
                    guest.take_descriptor().then(|| guest.account().file_turns.clone())
                });
                let Some(turns) = turns else { return Ok((Err(p3::ErrorCode::InsufficientMemory),)) };
                let _turn = turn(turns).await;
                let files = accessor.with_getter::<WasiFilesystem>(Guest::filesystem);
                let opened = <WasiFilesystem as p3::HostDescriptorWithStore<Guest>>::open_at(
                    &files, dir, path_flags, path, open, flags,
                );
                let result: Result<FileP3, p3::ErrorCode> = match opened.await {
                    Ok(file) => Ok(file),
                    Err(error) => {
                        accessor.with(|mut store| store.get().descriptors.give());
                        Err(error.downcast()?)
                    }
                };
                Ok((result,))
            })
        },
    )
}
