//! The engine: from a file to something that can be started, and the threads on which guests compute.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::runtime::{Handle, Runtime};
use wasmtime::Store;
use wasmtime::component::Linker;

use crate::cache::Cache;
use crate::component::Loaded;
use crate::error::line;
use crate::guest::{Guest, Slots};
use crate::limits::Account;
use crate::{Component, Config, Error, Spec, World, host, machine, settings};

/// Threads for what blocks on behalf of guests: files, the machine's resolver.
const BLOCKING_THREADS_MAX: usize = 64;

/// How much the guests' threads stand back: gateway and control go first when the CPUs are taken.
const NICE: i32 = 5;

/// Compiles, loads and starts components. Cheap to clone; the guests' threads end with the last clone.
#[derive(Clone)]
pub struct Engine(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) wasm: wasmtime::Engine,
    linker: Linker<Guest>,
    cache: Cache,
    components: Mutex<Components>,
    slots: Arc<Slots>,
    guests: Guests,
}

/// Components that are loaded or on their way, by digest.
#[derive(Default)]
struct Components {
    loaded: HashMap<String, Weak<Loaded>>,
    /// Held by the one who compiles and loads; the others of the same digest wait for it.
    gates: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
}

/// The guests' own executor, apart from the one that serves the network and the API: a guest that computes takes turns
/// with other guests only. Its queues are first in, first out, and a turn is one slice of fuel.
struct Guests(Option<Runtime>);

impl Guests {
    fn start(threads: usize) -> std::io::Result<Guests> {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("guest")
            .on_thread_start(|| {
                // On Linux this is the calling thread only.
                let _ = rustix::process::setpriority_process(None, NICE);
            })
            .enable_all()
            .build()
            .map(|runtime| Guests(Some(runtime)))
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // This may be dropped on another runtime, which must not block.
            runtime.shutdown_background();
        }
    }
}

impl Engine {
    /// Starts an engine: some 20 ms, in which it blocks.
    pub fn new(config: Config) -> Result<Engine, Error> {
        let failed = |error: wasmtime::Error| Error::Engine(line(&error));
        machine::raise_open_files();
        let (wasm, instances_max) = settings::engine(config.instances_max).map_err(failed)?;
        let linker = host::linker(&wasm).map_err(failed)?;
        let cache = Cache::open(&config, &settings::code_key(&wasm))?;
        let guests = Guests::start(config.guest_threads)
            .map_err(|error| Error::Engine(format!("start the guests' threads: {error}")))?;
        let components = Mutex::default();
        Ok(Engine(Arc::new(Inner { wasm, linker, cache, components, slots: Slots::new(instances_max), guests })))
    }

    /// How many instances can live at the same time.
    pub fn instances_max(&self) -> u32 {
        self.0.slots.max()
    }

    /// How many live now.
    pub fn instances(&self) -> u32 {
        self.0.slots.live()
    }

    /// A component that can be started, from the file `wasm` whose digest is `digest`: that the two belong together is
    /// the caller's word.
    ///
    /// Compiles it unless the cache has it; whoever asks for the same digest meanwhile waits for the same compilation.
    /// Safe to drop: the next one who waits goes on, or the compilation ends.
    pub async fn prepare(&self, digest: &str, wasm: &Path) -> Result<Component, Error> {
        let gate = {
            let mut components = self.0.components.lock();
            if let Some(loaded) = components.loaded.get(digest).and_then(Weak::upgrade) {
                return Ok(Component::from_loaded(loaded));
            }
            components.gates.entry(digest.to_owned()).or_default().clone()
        };
        let turn = gate.lock().await;
        let found = self.0.components.lock().loaded.get(digest).and_then(Weak::upgrade);
        let result = match found {
            Some(loaded) => Ok(Component::from_loaded(loaded)),
            None => self.load(digest, wasm).await,
        };
        drop(turn);
        let mut components = self.0.components.lock();
        if let Ok(component) = &result {
            components.loaded.retain(|_, loaded| loaded.strong_count() > 0);
            components.loaded.insert(digest.to_owned(), Arc::downgrade(component.loaded()));
        }
        // Two hold it when nobody else waits: the map and this call.
        if Arc::strong_count(&gate) <= 2 {
            components.gates.remove(digest);
        }
        result
    }

    async fn load(&self, digest: &str, wasm: &Path) -> Result<Component, Error> {
        let path = self.0.cache.path(digest);
        if path.exists() {
            match self.map(digest, &path).await {
                // What cannot be mapped (a disk gave back something else) is made again.
                Err(Error::Start(error)) => {
                    tracing::warn!(path = %path.display(), error, "compiled component is not usable, compiling it again");
                }
                other => return other,
            }
        }
        self.0.cache.compile(digest, wasm).await?;
        self.map(digest, &path).await
    }

    async fn map(&self, digest: &str, path: &Path) -> Result<Component, Error> {
        let (inner, digest, path) = (self.0.clone(), digest.to_owned(), path.to_owned());
        let mapped = tokio::task::spawn_blocking(move || {
            let component = settings::load(&inner.wasm, &path).map_err(|error| Error::Start(line(&error)))?;
            Cache::touch(&path);
            Component::link(&digest, &component, &inner.linker)
        });
        mapped.await.map_err(|panic| Error::Start(panic.to_string()))?
    }
}

impl Inner {
    /// Where guests compute.
    pub(crate) fn guests(&self) -> &Handle {
        self.guests.0.as_ref().expect("it is taken when the engine is dropped only").handle()
    }

    /// A store for one more instance.
    pub(crate) fn store(&self, spec: &Arc<Spec>, account: &Arc<Account>, world: World) -> Result<Store<Guest>, Error> {
        Guest::store(&self.wasm, spec, account, self.slots.take()?, world)
    }
}

/// Why an instance could not be made.
pub(crate) fn start_error(error: &wasmtime::Error, account: &Account) -> Error {
    if error.is::<crate::exit::OverLimit>() {
        return Error::OutOfMemory { bytes_max: account.memory_max() };
    }
    if error.is::<wasmtime::PoolConcurrencyLimitError>() {
        return Error::Limits(line(error));
    }
    Error::Start(line(error))
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("instances", &self.instances())
            .field("instances_max", &self.instances_max())
            .finish()
    }
}
