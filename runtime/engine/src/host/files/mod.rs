//! Files of guests: what is open is counted, and what is worked on at the same time is bounded.
//!
//! The work is done on threads that may block, which all guests share; a container has few of them at a time
//! ([`FILE_TURNS_MAX`](crate::limits::FILE_TURNS_MAX)), and its namespace some ([`turns`]): it waits for its own work, not for that of
//! others. A turn is held while a
//! thread works, never by what rests, and also where nobody waits for that work any more: a thread cannot be stopped. So the
//! turn belongs to the thread and not to the call ([`Turn::work`]), and there wasmtime's functions do their work at once, as they
//! do where a guest may block its thread.

mod entries;
mod p3;
mod streams;
mod turns;

use std::fs::File as Handle;
use std::sync::{Arc, LazyLock};
use std::task::Poll;

use futures::executor::block_on;
use wasmtime::component::{
    Accessor, FutureReader, Linker, LinkerInstance, Resource, ResourceTable, ResourceType, StreamReader,
};
use wasmtime::{AsContextMut as _, StoreContextMut};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemCtx, WasiFilesystemCtxView, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::filesystem::types as p2_types;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Descriptor, DescriptorFlags, DirectoryEntry, ErrorCode, HostDescriptor, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, FsError};
use wasmtime_wasi::p3::bindings::filesystem::types;
use wasmtime_wasi::runtime::spawn_blocking;
use wasmtime_wasi::{WasiCtxBuilder, WasiView};

use self::entries::{Entries, Failure};
use self::p3::{Listing, Outcome, Place, Reader, Writer};
use self::streams::{Reading, Writing};
use self::turns::{Permit, Queue, Turns};
use super::descriptors::Taken;
use super::held::CALL_BYTES;
use super::read_ahead::Held;
use crate::guest::Guest;
use crate::limits::Account;

/// The interfaces, at the versions that wasmtime defines.
const TYPES: &str = "wasi:filesystem/types@0.2.12";
const TYPES_P3: &str = "wasi:filesystem/types@0.3.0";

/// Bytes of a path from which on the kernel refuses it (`PATH_MAX`, which counts the byte that ends it).
const PATH_BYTES_MAX: usize = 4096;

type File = Resource<Descriptor>;

/// A call that waits for its turn. What it was given is the container's memory: one instance of 0.3 may have as many calls under way as
/// it has handles.
struct Call {
    turns: Turns,
    held: Held,
}

impl Call {
    /// An error when the container has no more memory.
    fn begin(account: &Arc<Account>, bytes: u64) -> wasmtime::Result<Call> {
        Ok(Call { turns: Turns::of(account), held: Held::take(account, CALL_BYTES + bytes)? })
    }

    async fn turn(self) -> Turn {
        Turn { _turn: self.turns.next().await, _held: self.held }
    }
}

/// A call whose turn it is.
struct Turn {
    _turn: Option<Permit>,
    _held: Held,
}

impl Turn {
    /// Works on a thread that may block, which has the turn until it is done, whoever still waits for it.
    async fn work<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let working = spawn_blocking(move || {
            let _turn = self;
            work()
        });
        working.await
    }
}

/// What a function of files is called with.
trait Argument: Sized {
    /// Bytes that the host holds of it.
    fn held_bytes(&self) -> u64 {
        0
    }

    /// Whether it is a path that the kernel refuses for its length: nobody has to wait for that.
    fn is_too_long(&self) -> bool {
        false
    }

    /// The same for a thread that has a table of its own.
    fn moved(self, _guest: &ResourceTable, _thread: &mut ResourceTable) -> wasmtime::Result<Self> {
        Ok(self)
    }
}

impl Argument for String {
    fn held_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn is_too_long(&self) -> bool {
        self.len() >= PATH_BYTES_MAX
    }
}

impl Argument for Vec<u8> {
    fn held_bytes(&self) -> u64 {
        self.len() as u64
    }
}

impl Argument for File {
    fn moved(self, guest: &ResourceTable, thread: &mut ResourceTable) -> wasmtime::Result<Self> {
        Ok(thread.push(guest.get(&self)?.clone())?)
    }
}

macro_rules! plain_arguments {
    ($($ty:ty)*) => {$(impl Argument for $ty {})*};
}

plain_arguments! {
    u64 PathFlags OpenFlags DescriptorFlags p2_types::Advice p2_types::NewTimestamp
    types::PathFlags types::OpenFlags types::DescriptorFlags types::Advice types::NewTimestamp
}

/// Calls a function of 0.2 on a thread that may block; what it has made is in the table.
fn call<T>(
    mut table: ResourceTable,
    call: impl AsyncFnOnce(&mut WasiFilesystemCtxView<'_>) -> T,
) -> (T, ResourceTable) {
    let mut ctx = blocking();
    let done = block_on(call(&mut WasiFilesystemCtxView { ctx: &mut ctx, table: &mut table }));
    (done, table)
}

/// The same of 0.3, whose functions want a store: one without a guest.
fn call_p3<T>(
    engine: &wasmtime::Engine,
    table: ResourceTable,
    call: impl AsyncFnOnce(&Accessor<Alone, WasiFilesystem>) -> T,
) -> wasmtime::Result<(T, ResourceTable)> {
    let mut store = wasmtime::Store::new(engine, Alone { ctx: blocking(), table });
    let done = block_on(
        store.run_concurrent(async |accessor| call(&accessor.with_getter::<WasiFilesystem>(Alone::files)).await),
    )?;
    Ok((done, store.into_data().table))
}

/// Files without a guest.
struct Alone {
    ctx: WasiFilesystemCtx,
    table: ResourceTable,
}

impl Alone {
    fn files(&mut self) -> WasiFilesystemCtxView<'_> {
        WasiFilesystemCtxView { ctx: &mut self.ctx, table: &mut self.table }
    }
}

/// Has what is opened work where it is called, as all that guests have open does: see [`Guest`]'s own.
fn blocking() -> WasiFilesystemCtx {
    static BLOCKING: LazyLock<WasiFilesystemCtx> =
        LazyLock::new(|| WasiCtxBuilder::new().allow_blocking_current_thread(true).build().filesystem().clone());
    BLOCKING.clone()
}

/// The functions that both versions have, with `$wrap!`.
macro_rules! functions {
    ($wrap:ident, $interface:expr, $types:ident) => {
        $wrap! { $interface;
            "advise" advise(file: File, offset: u64, length: u64, advice: $types::Advice) -> ();
            "sync" sync(file: File) -> ();
            "sync-data" sync_data(file: File) -> ();
            "get-flags" get_flags(file: File) -> $types::DescriptorFlags;
            "get-type" get_type(file: File) -> $types::DescriptorType;
            "set-size" set_size(file: File, size: u64) -> ();
            "set-times" set_times(file: File, accessed: $types::NewTimestamp, modified: $types::NewTimestamp) -> ();
            "stat" stat(file: File) -> $types::DescriptorStat;
            "stat-at" stat_at(dir: File, flags: $types::PathFlags, path: String) -> $types::DescriptorStat;
            "set-times-at" set_times_at(
                dir: File,
                flags: $types::PathFlags,
                path: String,
                accessed: $types::NewTimestamp,
                modified: $types::NewTimestamp
            ) -> ();
            "metadata-hash" metadata_hash(file: File) -> $types::MetadataHashValue;
            "metadata-hash-at" metadata_hash_at(
                dir: File, flags: $types::PathFlags, path: String
            ) -> $types::MetadataHashValue;
            "link-at" link_at(dir: File, flags: $types::PathFlags, path: String, to: File, name: String) -> ();
            "readlink-at" readlink_at(dir: File, path: String) -> String;
            "symlink-at" symlink_at(dir: File, path: String, name: String) -> ();
            "create-directory-at" create_directory_at(dir: File, path: String) -> ();
            "remove-directory-at" remove_directory_at(dir: File, path: String) -> ();
            "unlink-file-at" unlink_file_at(dir: File, path: String) -> ();
            "rename-at" rename_at(dir: File, path: String, to: File, name: String) -> ();
        }
    };
}

/// Functions of 0.2 that block a thread: each in its turn.
macro_rules! in_turn {
    ($interface:expr; $($name:literal $method:ident($($arg:ident: $ty:ty),*) -> $out:ty;)*) => {$(
        $interface.func_wrap_async(
            concat!("[method]descriptor.", $name),
            |mut store: StoreContextMut<'_, Guest>, ($($arg,)*): ($($ty,)*)| {
                Box::new(async move {
                    if $($arg.is_too_long())||* {
                        return Ok((Err(ErrorCode::NameTooLong),));
                    }
                    let turn = Call::begin(store.data().account(), 0 $(+ $arg.held_bytes())*)?.turn().await;
                    let mut table = ResourceTable::new();
                    $(let $arg = $arg.moved(store.data_mut().ctx().table, &mut table)?;)*
                    let (done, _) = turn
                        .work(move || call(table, async |files| HostDescriptor::$method(files, $($arg),*).await))
                        .await;
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
    functions!(in_turn, types, p2_types);
    in_turn! { types;
        "read" read(file: File, length: u64, offset: u64) -> (Vec<u8>, bool);
        "write" write(file: File, bytes: Vec<u8>, offset: u64) -> u64;
    }
    types.func_wrap_async(
        "[method]descriptor.is-same-object",
        |mut store: StoreContextMut<'_, Guest>, (file, other): (File, File)| {
            Box::new(async move {
                let turn = Call::begin(store.data().account(), 0)?.turn().await;
                let mut table = ResourceTable::new();
                let guest = store.data_mut().ctx().table;
                let (file, other) = (file.moved(guest, &mut table)?, other.moved(guest, &mut table)?);
                let same = move || call(table, async |files| HostDescriptor::is_same_object(files, file, other).await);
                Ok((turn.work(same).await.0?,))
            })
        },
    )?;
    type Open = (File, PathFlags, String, OpenFlags, DescriptorFlags);
    types.func_wrap_async(
        "[method]descriptor.open-at",
        |mut store: StoreContextMut<'_, Guest>, (dir, path_flags, path, open, flags): Open| {
            Box::new(async move {
                if path.is_too_long() {
                    return Ok((Err(ErrorCode::NameTooLong),));
                }
                if !store.data_mut().take_descriptor() {
                    return Ok((Err(ErrorCode::InsufficientMemory),));
                }
                let turn = Call::begin(store.data().account(), path.held_bytes())?.turn().await;
                let mut table = ResourceTable::new();
                let dir = dir.moved(store.data_mut().ctx().table, &mut table)?;
                let opening = move || {
                    call(table, async |files| HostDescriptor::open_at(files, dir, path_flags, path, open, flags).await)
                };
                let (opened, mut table) = turn.work(opening).await;
                let guest = store.data_mut();
                let result: Result<File, ErrorCode> = match opened {
                    Ok(file) => Ok(guest.ctx().table.push(table.delete(file)?)?),
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
            let Some(open) = Opened::new(guest.account(), 0)? else { return Ok((Err(ErrorCode::InsufficientMemory),)) };
            let made = HostDescriptor::read_via_stream(&mut guest.filesystem(), file, offset);
            let result: Result<Resource<DynInputStream>, ErrorCode> = match made {
                Ok(stream) => {
                    let inner = guest.ctx().table.delete(stream)?;
                    let stream: DynInputStream = Box::new(Reading::new(inner, open));
                    Ok(guest.ctx().table.push(stream)?)
                }
                Err(error) => Err(error.downcast()?),
            };
            Ok((result,))
        },
    )?;
    types.func_wrap(
        "[method]descriptor.write-via-stream",
        |mut store: StoreContextMut<'_, Guest>, (file, offset): (File, u64)| {
            let guest = store.data_mut();
            let Some(open) = Opened::new(guest.account(), 0)? else { return Ok((Err(ErrorCode::InsufficientMemory),)) };
            let made = HostDescriptor::write_via_stream(&mut guest.filesystem(), file, offset);
            Ok((output(guest, made, open)?,))
        },
    )?;
    types.func_wrap(
        "[method]descriptor.append-via-stream",
        |mut store: StoreContextMut<'_, Guest>, (file,): (File,)| {
            let guest = store.data_mut();
            let Some(open) = Opened::new(guest.account(), 0)? else { return Ok((Err(ErrorCode::InsufficientMemory),)) };
            let made = HostDescriptor::append_via_stream(&mut guest.filesystem(), file);
            Ok((output(guest, made, open)?,))
        },
    )?;
    add_directories(&mut types)?;
    types.resource("descriptor", ResourceType::host::<Descriptor>(), |mut store, rep| {
        let guest = store.data_mut();
        guest.descriptors.give();
        HostDescriptor::drop(&mut guest.filesystem(), Resource::new_own(rep))
    })
}

/// Directories are read by us: wasmtime's reads all of one before it gives the first entry.
fn add_directories(types: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    types.resource("directory-entry-stream", ResourceType::host::<Entries>(), |mut store, rep| {
        store.data_mut().ctx().table.delete(Resource::<Entries>::new_own(rep))?;
        Ok(())
    })?;
    types.func_wrap(
        "[method]descriptor.read-directory",
        |mut store: StoreContextMut<'_, Guest>, (dir,): (File,)| {
            let guest = store.data_mut();
            let Descriptor::Dir(dir) = guest.ctx().table.get(&dir)? else {
                return Ok((Err(ErrorCode::NotDirectory),));
            };
            let dir = dir.dir.clone();
            let Some(open) = Opened::new(guest.account(), entries::BYTES)? else {
                return Ok((Err(ErrorCode::InsufficientMemory),));
            };
            Ok((Ok::<Resource<Entries>, _>(guest.ctx().table.push(Entries::new(dir, open))?),))
        },
    )?;
    types.func_wrap_async(
        "[method]directory-entry-stream.read-directory-entry",
        |mut store: StoreContextMut<'_, Guest>, (entries,): (Resource<Entries>,)| {
            Box::new(async move {
                let next = std::future::poll_fn(|cx| {
                    let found = store.data_mut().ctx().table.get_mut(&entries);
                    found.map_or_else(|error| Poll::Ready(Err(error)), |entries| entries.poll_next(cx).map(Ok))
                });
                let result: Result<Option<DirectoryEntry>, ErrorCode> = match next.await? {
                    Some(Ok(entry)) => Ok(Some(DirectoryEntry { type_: kind_of(entry.kind), name: entry.name })),
                    Some(Err(Failure::Io(error))) => Err(FsError::from(error).downcast()?),
                    Some(Err(Failure::Name)) => Err(ErrorCode::IllegalByteSequence),
                    None => Ok(None),
                };
                Ok((result,))
            })
        },
    )
}

/// What a directory says that an entry is, in the words of one version.
macro_rules! kind {
    ($kind:expr, $types:ident, $unknown:expr) => {{
        use rustix::fs::FileType;
        match $kind {
            FileType::RegularFile => $types::DescriptorType::RegularFile,
            FileType::Directory => $types::DescriptorType::Directory,
            FileType::Symlink => $types::DescriptorType::SymbolicLink,
            FileType::Fifo => $types::DescriptorType::Fifo,
            FileType::Socket => $types::DescriptorType::Socket,
            FileType::CharacterDevice => $types::DescriptorType::CharacterDevice,
            FileType::BlockDevice => $types::DescriptorType::BlockDevice,
            FileType::Unknown => $unknown,
        }
    }};
}

fn kind_of(kind: rustix::fs::FileType) -> p2_types::DescriptorType {
    kind!(kind, p2_types, p2_types::DescriptorType::Unknown)
}

fn kind_of_p3(kind: rustix::fs::FileType) -> types::DescriptorType {
    kind!(kind, types, types::DescriptorType::Other(None))
}

/// What an open stream has of its container: a descriptor, memory, and turns.
struct Opened {
    turns: Queue,
    _descriptor: Taken,
    _memory: Held,
}

impl Opened {
    /// `None` when no more may be open; an error when the container has no more memory.
    fn new(account: &Arc<Account>, bytes: u64) -> wasmtime::Result<Option<Opened>> {
        let Some(descriptor) = Taken::take(account) else { return Ok(None) };
        let turns = Queue::new(Turns::of(account));
        Ok(Some(Opened { turns, _descriptor: descriptor, _memory: Held::take(account, bytes)? }))
    }

    fn turns(&self) -> Turns {
        self.turns.turns.clone()
    }
}

fn output(
    guest: &mut Guest,
    made: Result<Resource<DynOutputStream>, FsError>,
    open: Opened,
) -> wasmtime::Result<Result<Resource<DynOutputStream>, ErrorCode>> {
    let stream = match made {
        Ok(stream) => stream,
        Err(error) => return Ok(Err(error.downcast()?)),
    };
    let inner = guest.ctx().table.delete(stream)?;
    let stream: DynOutputStream = Box::new(Writing::new(inner, open));
    Ok(Ok(guest.ctx().table.push(stream)?))
}

/// The same of 0.3.
macro_rules! in_turn_p3 {
    ($interface:expr; $($name:literal $method:ident($($arg:ident: $ty:ty),*) -> $out:ty;)*) => {$(
        $interface.func_wrap_concurrent(
            concat!("[method]descriptor.", $name),
            |accessor: &Accessor<Guest>, ($($arg,)*): ($($ty,)*)| {
                Box::pin(async move {
                    if $($arg.is_too_long())||* {
                        return Ok((Err(types::ErrorCode::NameTooLong),));
                    }
                    let bytes = 0 $(+ $arg.held_bytes())*;
                    let call = accessor.with(|mut store| Call::begin(store.get().account(), bytes))?;
                    let turn = call.turn().await;
                    let mut table = ResourceTable::new();
                    $(let $arg = accessor.with(|mut store| $arg.moved(store.get().ctx().table, &mut table))?;)*
                    let engine = accessor.with(|mut store| store.as_context_mut().engine().clone());
                    let working = move || {
                        call_p3(&engine, table, async |files| {
                            <WasiFilesystem as types::HostDescriptorWithStore<Alone>>::$method(files, $($arg),*).await
                        })
                    };
                    let result: Result<$out, types::ErrorCode> = match turn.work(working).await?.0 {
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
pub(super) fn add_p3_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    type Files = WasiFilesystem;
    let mut instance = linker.instance(TYPES_P3)?;
    functions!(in_turn_p3, instance, types);
    instance.func_wrap_concurrent(
        "[method]descriptor.is-same-object",
        |accessor: &Accessor<Guest>, (file, other): (File, File)| {
            Box::pin(async move {
                let call = accessor.with(|mut store| Call::begin(store.get().account(), 0))?;
                let turn = call.turn().await;
                let mut table = ResourceTable::new();
                let (engine, file, other) = accessor.with(|mut store| {
                    let guest = store.get().ctx().table;
                    let (file, other) = (file.moved(guest, &mut table)?, other.moved(guest, &mut table)?);
                    wasmtime::error::Ok((store.as_context_mut().engine().clone(), file, other))
                })?;
                let working = move || {
                    call_p3(&engine, table, async |files| {
                        <Files as types::HostDescriptorWithStore<Alone>>::is_same_object(files, file, other).await
                    })
                };
                Ok((turn.work(working).await?.0?,))
            })
        },
    )?;
    type Open = (File, types::PathFlags, String, types::OpenFlags, types::DescriptorFlags);
    instance.func_wrap_concurrent(
        "[method]descriptor.open-at",
        |accessor: &Accessor<Guest>, (dir, path_flags, path, open, flags): Open| {
            Box::pin(async move {
                if path.is_too_long() {
                    return Ok((Err(types::ErrorCode::NameTooLong),));
                }
                let bytes = path.held_bytes();
                let call = accessor.with(|mut store| {
                    let guest = store.get();
                    guest.take_descriptor().then(|| Call::begin(guest.account(), bytes)).transpose()
                })?;
                let Some(call) = call else { return Ok((Err(types::ErrorCode::InsufficientMemory),)) };
                let turn = call.turn().await;
                let mut table = ResourceTable::new();
                let (engine, dir) = accessor.with(|mut store| {
                    let dir = dir.moved(store.get().ctx().table, &mut table)?;
                    wasmtime::error::Ok((store.as_context_mut().engine().clone(), dir))
                })?;
                let opening = move || {
                    call_p3(&engine, table, async |files| {
                        <Files as types::HostDescriptorWithStore<Alone>>::open_at(
                            files, dir, path_flags, path, open, flags,
                        )
                        .await
                    })
                };
                let (opened, mut table) = turn.work(opening).await?;
                let result: Result<File, types::ErrorCode> = match opened {
                    Ok(file) => {
                        let file = table.delete(file)?;
                        Ok(accessor.with(|mut store| store.get().ctx().table.push(file))?)
                    }
                    Err(error) => {
                        accessor.with(|mut store| store.get().descriptors.give());
                        Err(error.downcast()?)
                    }
                };
                Ok((result,))
            })
        },
    )?;
    add_p3_streams(&mut instance)
}

/// A stream and how it ends.
type Stream<T> = (StreamReader<T>, Ending);
type Ending = FutureReader<Result<(), types::ErrorCode>>;

/// Streams of files and directories are ours, so that they have descriptors and turns.
fn add_p3_streams(instance: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    instance.func_wrap(
        "[method]descriptor.read-via-stream",
        |mut store: StoreContextMut<'_, Guest>, (file, offset): (File, u64)| {
            let (mut outcome, ending) = Outcome::new();
            let ending = FutureReader::new(&mut store, ending)?;
            let stream: StreamReader<u8> = match file_p3(store.data_mut(), &file, types::ErrorCode::IsDirectory)? {
                Ok((file, _, open)) => {
                    StreamReader::new(&mut store, Reader { file, offset, outcome, open, task: None })?
                }
                Err(error) => {
                    outcome.end(Err(error));
                    StreamReader::new(&mut store, std::iter::empty())?
                }
            };
            Ok::<(Stream<u8>,), _>(((stream, ending),))
        },
    )?;
    instance.func_wrap(
        "[method]descriptor.write-via-stream",
        |store: StoreContextMut<'_, Guest>, (file, data, offset): (File, StreamReader<u8>, u64)| {
            Ok((written_p3(store, &file, data, Place::At(offset))?,))
        },
    )?;
    instance.func_wrap(
        "[method]descriptor.append-via-stream",
        |store: StoreContextMut<'_, Guest>, (file, data): (File, StreamReader<u8>)| {
            Ok((written_p3(store, &file, data, Place::End)?,))
        },
    )?;
    instance.func_wrap("[method]descriptor.read-directory", |mut store: StoreContextMut<'_, Guest>, (dir,): (File,)| {
        let (mut outcome, ending) = Outcome::new();
        let ending = FutureReader::new(&mut store, ending)?;
        let guest = store.data_mut();
        let dir = match guest.ctx().table.get(&dir)? {
            Descriptor::Dir(dir) => Ok(dir.dir.clone()),
            Descriptor::File(_) => Err(types::ErrorCode::NotDirectory),
        };
        let open = Opened::new(guest.account(), entries::BYTES)?.ok_or(types::ErrorCode::InsufficientMemory);
        let stream: StreamReader<types::DirectoryEntry> = match dir.and_then(|dir| Ok((dir, open?))) {
            Ok((dir, open)) => StreamReader::new(&mut store, Listing { entries: Entries::new(dir, open), outcome })?,
            Err(error) => {
                outcome.end(Err(error));
                StreamReader::new(&mut store, std::iter::empty())?
            }
        };
        Ok::<(Stream<types::DirectoryEntry>,), _>(((stream, ending),))
    })
}

/// A file that was opened, whether it may be written, and what a stream of it has.
type FileOfStream = (Arc<Handle>, bool, Opened);

/// The file behind a handle; `other` for a directory.
fn file_p3(
    guest: &mut Guest,
    file: &File,
    other: types::ErrorCode,
) -> wasmtime::Result<Result<FileOfStream, types::ErrorCode>> {
    let Descriptor::File(file) = guest.ctx().table.get(file)? else { return Ok(Err(other)) };
    let (file, may_write) = (file.file.clone(), !file.perms.write_not_permitted());
    let open = Opened::new(guest.account(), p3::CHUNK as u64)?;
    Ok(open.map(|open| (file, may_write, open)).ok_or(types::ErrorCode::InsufficientMemory))
}

fn written_p3(
    mut store: StoreContextMut<'_, Guest>,
    file: &File,
    mut data: StreamReader<u8>,
    place: Place,
) -> wasmtime::Result<Ending> {
    let (mut outcome, ending) = Outcome::new();
    let error = match file_p3(store.data_mut(), file, types::ErrorCode::BadDescriptor)? {
        Ok((file, true, open)) => {
            data.pipe(&mut store, Writer { file, place, outcome, open, task: None })?;
            return FutureReader::new(&mut store, ending);
        }
        Ok((_, false, _)) => types::ErrorCode::NotPermitted,
        Err(error) => error,
    };
    data.close(&mut store)?;
    outcome.end(Err(error));
    FutureReader::new(&mut store, ending)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What both versions have. Each of these works on files, and wasmtime's own takes no turn.
    const BOTH: [&str; 25] = [
        "descriptor.advise",
        "descriptor.append-via-stream",
        "descriptor.create-directory-at",
        "descriptor.get-flags",
        "descriptor.get-type",
        "descriptor.is-same-object",
        "descriptor.link-at",
        "descriptor.metadata-hash",
        "descriptor.metadata-hash-at",
        "descriptor.open-at",
        "descriptor.read-directory",
        "descriptor.read-via-stream",
        "descriptor.readlink-at",
        "descriptor.remove-directory-at",
        "descriptor.rename-at",
        "descriptor.set-size",
        "descriptor.set-times",
        "descriptor.set-times-at",
        "descriptor.stat",
        "descriptor.stat-at",
        "descriptor.symlink-at",
        "descriptor.sync",
        "descriptor.sync-data",
        "descriptor.unlink-file-at",
        "descriptor.write-via-stream",
    ];

    #[test]
    fn all_work_on_files_takes_turns() {
        // Another version may have more: compare its text with the list.
        assert_eq!((TYPES, TYPES_P3), ("wasi:filesystem/types@0.2.12", "wasi:filesystem/types@0.3.0"));
        let engine = wasmtime::Engine::new(wasmtime::Config::new().wasm_component_model_async(true)).unwrap();
        let mut linker = Linker::<Guest>::new(&engine);
        add_to_linker(&mut linker).unwrap();
        add_p3_to_linker(&mut linker).unwrap();
        let only_p2 = ["descriptor.read", "descriptor.write", "directory-entry-stream.read-directory-entry"];
        for (interface, names) in [(TYPES, [&BOTH[..], &only_p2].concat()), (TYPES_P3, BOTH.to_vec())] {
            for name in names {
                let nothing = |_: StoreContextMut<'_, Guest>, (): ()| Ok(());
                let again = linker.instance(interface).unwrap().func_wrap(&format!("[method]{name}"), nothing);
                assert!(again.is_err(), "{interface}: {name} is wasmtime's own, which takes no turn");
            }
        }
    }
}
