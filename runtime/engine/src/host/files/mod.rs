//! Files of guests: what is open is counted, and what is worked on at the same time is bounded.
//!
//! The work is done on threads that may block, which all guests share; a container has few of them at a time
//! ([`FILE_TURNS_MAX`](crate::limits::FILE_TURNS_MAX)) and waits for its own work, not for others'. A turn is held while a
//! thread works, never by what rests.

mod entries;
mod p3;
mod streams;

use std::fs::File as Handle;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;
use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, FutureReader, Linker, LinkerInstance, Resource, ResourceType, StreamReader};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Advice, Descriptor, DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry, ErrorCode, HostDescriptor,
    MetadataHashValue, NewTimestamp, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, FsError};
use wasmtime_wasi::p3::bindings::filesystem::types;

use self::entries::{Entries, Failure};
use self::p3::{Listing, Outcome, Place, Reader, Writer};
use self::streams::{Reading, Writing};
use super::descriptors::Taken;
use super::read_ahead::Held;
use crate::guest::Guest;
use crate::limits::Account;

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
        "advise" advise(file: File, offset: u64, length: u64, advice: Advice) -> ();
        "sync" sync(file: File) -> ();
        "sync-data" sync_data(file: File) -> ();
        "get-flags" get_flags(file: File) -> DescriptorFlags;
        "get-type" get_type(file: File) -> DescriptorType;
        "set-size" set_size(file: File, size: u64) -> ();
        "set-times" set_times(file: File, accessed: NewTimestamp, modified: NewTimestamp) -> ();
        "stat" stat(file: File) -> DescriptorStat;
        "stat-at" stat_at(dir: File, flags: PathFlags, path: String) -> DescriptorStat;
        "set-times-at" set_times_at(
            dir: File, flags: PathFlags, path: String, accessed: NewTimestamp, modified: NewTimestamp
        ) -> ();
        "metadata-hash" metadata_hash(file: File) -> MetadataHashValue;
        "metadata-hash-at" metadata_hash_at(dir: File, flags: PathFlags, path: String) -> MetadataHashValue;
        "link-at" link_at(dir: File, flags: PathFlags, path: String, to: File, name: String) -> ();
        "readlink-at" readlink_at(dir: File, path: String) -> String;
        "symlink-at" symlink_at(dir: File, path: String, name: String) -> ();
        "create-directory-at" create_directory_at(dir: File, path: String) -> ();
        "remove-directory-at" remove_directory_at(dir: File, path: String) -> ();
        "unlink-file-at" unlink_file_at(dir: File, path: String) -> ();
        "rename-at" rename_at(dir: File, path: String, to: File, name: String) -> ();
    }
    types.func_wrap_async(
        "[method]descriptor.is-same-object",
        |mut store: StoreContextMut<'_, Guest>, (file, other): (File, File)| {
            Box::new(async move {
                let _turn = turn(store.data().account().file_turns.clone()).await;
                Ok((HostDescriptor::is_same_object(&mut store.data_mut().filesystem(), file, other).await?,))
            })
        },
    )?;
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
                    Some(Ok(entry)) => Ok(Some(DirectoryEntry { type_: kind(entry.kind), name: entry.name })),
                    Some(Err(Failure::Io(error))) => Err(FsError::from(error).downcast()?),
                    Some(Err(Failure::Name)) => Err(ErrorCode::IllegalByteSequence),
                    None => Ok(None),
                };
                Ok((result,))
            })
        },
    )
}

fn kind(kind: rustix::fs::FileType) -> DescriptorType {
    use rustix::fs::FileType;
    match kind {
        FileType::RegularFile => DescriptorType::RegularFile,
        FileType::Directory => DescriptorType::Directory,
        FileType::Symlink => DescriptorType::SymbolicLink,
        FileType::Fifo => DescriptorType::Fifo,
        FileType::Socket => DescriptorType::Socket,
        FileType::CharacterDevice => DescriptorType::CharacterDevice,
        FileType::BlockDevice => DescriptorType::BlockDevice,
        FileType::Unknown => DescriptorType::Unknown,
    }
}

/// What an open stream has of its container: a descriptor, memory, and turns.
struct Opened {
    turns: PollSemaphore,
    _descriptor: Taken,
    _memory: Held,
}

impl Opened {
    /// `None` when no more may be open; an error when the container has no more memory.
    fn new(account: &Arc<Account>, bytes: u64) -> wasmtime::Result<Option<Opened>> {
        let Some(descriptor) = Taken::take(account) else { return Ok(None) };
        let turns = PollSemaphore::new(account.file_turns.clone());
        Ok(Some(Opened { turns, _descriptor: descriptor, _memory: Held::take(account, bytes)? }))
    }

    fn turns(&self) -> Arc<Semaphore> {
        self.turns.clone_inner()
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

/// The same functions of 0.3.
macro_rules! in_turn_p3 {
    ($types:expr; $($name:literal $method:ident($($arg:ident: $ty:ty),*) -> $out:ty;)*) => {$(
        $types.func_wrap_concurrent(
            concat!("[method]descriptor.", $name),
            |accessor: &Accessor<Guest>, ($($arg,)*): ($($ty,)*)| {
                Box::pin(async move {
                    let turns = accessor.with(|mut store| store.get().account().file_turns.clone());
                    let _turn = turn(turns).await;
                    let files = accessor.with_getter::<WasiFilesystem>(Guest::filesystem);
                    let done = <WasiFilesystem as types::HostDescriptorWithStore<Guest>>::$method(&files, $($arg),*).await;
                    let result: Result<$out, types::ErrorCode> = match done {
                        Ok(value) => Ok(value),
                        Err(error) => Err(error.downcast()?),
                    };
                    Ok((result,))
                })
            },
        )?;
    )*};
}

type FileP3 = Resource<types::Descriptor>;

/// Defines them in place of wasmtime's.
pub(super) fn add_p3_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut instance = linker.instance(TYPES_P3)?;
    in_turn_p3! { instance;
        "advise" advise(file: FileP3, offset: u64, length: u64, advice: types::Advice) -> ();
        "sync" sync(file: FileP3) -> ();
        "sync-data" sync_data(file: FileP3) -> ();
        "get-flags" get_flags(file: FileP3) -> types::DescriptorFlags;
        "get-type" get_type(file: FileP3) -> types::DescriptorType;
        "set-size" set_size(file: FileP3, size: u64) -> ();
        "set-times" set_times(file: FileP3, accessed: types::NewTimestamp, modified: types::NewTimestamp) -> ();
        "stat" stat(file: FileP3) -> types::DescriptorStat;
        "stat-at" stat_at(dir: FileP3, flags: types::PathFlags, path: String) -> types::DescriptorStat;
        "set-times-at" set_times_at(
            dir: FileP3, flags: types::PathFlags, path: String, accessed: types::NewTimestamp, modified: types::NewTimestamp
        ) -> ();
        "metadata-hash" metadata_hash(file: FileP3) -> types::MetadataHashValue;
        "metadata-hash-at" metadata_hash_at(
            dir: FileP3, flags: types::PathFlags, path: String
        ) -> types::MetadataHashValue;
        "link-at" link_at(dir: FileP3, flags: types::PathFlags, path: String, to: FileP3, name: String) -> ();
        "readlink-at" readlink_at(dir: FileP3, path: String) -> String;
        "symlink-at" symlink_at(dir: FileP3, path: String, name: String) -> ();
        "create-directory-at" create_directory_at(dir: FileP3, path: String) -> ();
        "remove-directory-at" remove_directory_at(dir: FileP3, path: String) -> ();
        "unlink-file-at" unlink_file_at(dir: FileP3, path: String) -> ();
        "rename-at" rename_at(dir: FileP3, path: String, to: FileP3, name: String) -> ();
    }
    instance.func_wrap_concurrent(
        "[method]descriptor.is-same-object",
        |accessor: &Accessor<Guest>, (file, other): (FileP3, FileP3)| {
            Box::pin(async move {
                let turns = accessor.with(|mut store| store.get().account().file_turns.clone());
                let _turn = turn(turns).await;
                let files = accessor.with_getter::<WasiFilesystem>(Guest::filesystem);
                type Host = WasiFilesystem;
                let is_same = <Host as types::HostDescriptorWithStore<Guest>>::is_same_object(&files, file, other);
                Ok((is_same.await?,))
            })
        },
    )?;
    type Open = (FileP3, types::PathFlags, String, types::OpenFlags, types::DescriptorFlags);
    instance.func_wrap_concurrent(
        "[method]descriptor.open-at",
        |accessor: &Accessor<Guest>, (dir, path_flags, path, open, flags): Open| {
            Box::pin(async move {
                let turns = accessor.with(|mut store| {
                    let guest = store.get();
                    guest.take_descriptor().then(|| guest.account().file_turns.clone())
                });
                let Some(turns) = turns else { return Ok((Err(types::ErrorCode::InsufficientMemory),)) };
                let _turn = turn(turns).await;
                let files = accessor.with_getter::<WasiFilesystem>(Guest::filesystem);
                let opened = <WasiFilesystem as types::HostDescriptorWithStore<Guest>>::open_at(
                    &files, dir, path_flags, path, open, flags,
                );
                let result: Result<FileP3, types::ErrorCode> = match opened.await {
                    Ok(file) => Ok(file),
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
        |mut store: StoreContextMut<'_, Guest>, (file, offset): (FileP3, u64)| {
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
        |store: StoreContextMut<'_, Guest>, (file, data, offset): (FileP3, StreamReader<u8>, u64)| {
            Ok((written_p3(store, &file, data, Place::At(offset))?,))
        },
    )?;
    instance.func_wrap(
        "[method]descriptor.append-via-stream",
        |store: StoreContextMut<'_, Guest>, (file, data): (FileP3, StreamReader<u8>)| {
            Ok((written_p3(store, &file, data, Place::End)?,))
        },
    )?;
    instance.func_wrap(
        "[method]descriptor.read-directory",
        |mut store: StoreContextMut<'_, Guest>, (dir,): (FileP3,)| {
            let (mut outcome, ending) = Outcome::new();
            let ending = FutureReader::new(&mut store, ending)?;
            let guest = store.data_mut();
            let dir = match guest.ctx().table.get(&dir)? {
                Descriptor::Dir(dir) => Ok(dir.dir.clone()),
                Descriptor::File(_) => Err(types::ErrorCode::NotDirectory),
            };
            let open = Opened::new(guest.account(), entries::BYTES)?.ok_or(types::ErrorCode::InsufficientMemory);
            let stream: StreamReader<types::DirectoryEntry> = match dir.and_then(|dir| Ok((dir, open?))) {
                Ok((dir, open)) => {
                    StreamReader::new(&mut store, Listing { entries: Entries::new(dir, open), outcome })?
                }
                Err(error) => {
                    outcome.end(Err(error));
                    StreamReader::new(&mut store, std::iter::empty())?
                }
            };
            Ok::<(Stream<types::DirectoryEntry>,), _>(((stream, ending),))
        },
    )
}

/// A file that was opened, whether it may be written, and what a stream of it has.
type FileOfStream = (Arc<Handle>, bool, Opened);

/// The file behind a handle; `other` for a directory.
fn file_p3(
    guest: &mut Guest,
    file: &FileP3,
    other: types::ErrorCode,
) -> wasmtime::Result<Result<FileOfStream, types::ErrorCode>> {
    let Descriptor::File(file) = guest.ctx().table.get(file)? else { return Ok(Err(other)) };
    let (file, may_write) = (file.file.clone(), !file.perms.write_not_permitted());
    let open = Opened::new(guest.account(), p3::CHUNK as u64)?;
    Ok(open.map(|open| (file, may_write, open)).ok_or(types::ErrorCode::InsufficientMemory))
}

fn written_p3(
    mut store: StoreContextMut<'_, Guest>,
    file: &FileP3,
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
