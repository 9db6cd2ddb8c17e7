//! The engine: from a file to something that can be started, and the threads on which guests compute.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use wasmtime::Store;
use wasmtime::component::Linker;

use crate::cache::Cache;
use crate::component::Loaded;
use crate::error::line;
use crate::exec::Executor;
use crate::guest::{Claim, Guest, Slots};
use crate::limits::Account;
use crate::memory::NodeMemory;
use crate::{Component, Config, Error, NodeUsage, Spec, host, machine, settings};

/// Compiles, loads and starts components. Cheap to clone; the guests' threads end with the last clone.
#[derive(Clone)]
pub struct Engine(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) wasm: wasmtime::Engine,
    linker: Linker<Guest>,
    cache: Cache,
    components: Mutex<Components>,
    slots: Arc<Slots>,
    memory: Arc<NodeMemory>,
    pub(crate) executor: Executor,
}

/// Components that are loaded or on their way, by digest.
#[derive(Default)]
struct Components {
    loaded: HashMap<String, Weak<Loaded>>,
    /// Held by the one who compiles and loads; the others of the same digest wait for it.
    gates: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
    /// Components that cannot be had, with when that was found.
    failed: HashMap<String, (Instant, Error)>,
}

/// How long a component that cannot run here is not compiled again: a thousand replicas of it ask.
const FAILURE_MEMORY: Duration = Duration::from_secs(300);

/// The same when its compiler was killed, which may have been the moment's fault.
const KILLED_MEMORY: Duration = Duration::from_secs(60);

/// Failures that are remembered at the same time.
const FAILURES_MAX: usize = 1_024;

/// What somebody who prepares a component waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is being compiled, or waits for a compiler; not told when the compiled code is there already.
    Compiling,
    /// It was compiled, for somebody or for the one who asks, in so much time.
    Compiled(Duration),
}

impl Components {
    fn failure(&mut self, digest: &str) -> Option<Error> {
        let (at, error) = self.failed.get(digest)?;
        let memory = if error.is_permanent() { FAILURE_MEMORY } else { KILLED_MEMORY };
        if at.elapsed() < memory {
            return error.again();
        }
        self.failed.remove(digest);
        None
    }

    fn remember(&mut self, digest: &str, error: &Error) {
        let Some(error) = error.again() else { return };
        self.failed.retain(|_, (at, _)| at.elapsed() < FAILURE_MEMORY);
        if self.failed.len() < FAILURES_MAX {
            self.failed.insert(digest.to_owned(), (Instant::now(), error));
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
        let executor = Executor::start(config.guest_threads)
            .map_err(|error| Error::Engine(format!("start the guests' threads: {error}")))?;
        let (components, slots) = (Mutex::default(), Slots::new(instances_max));
        let memory = NodeMemory::new(config.memory_bytes_max);
        Ok(Engine(Arc::new(Inner { wasm, linker, cache, components, slots, memory, executor })))
    }

    /// The runtime that is to serve connections of guests: a request that is handled on its threads has its guest run
    /// right there as long as it is quick. From other runtimes requests are handled, too, by way of the guests' threads.
    /// It ends with the engine.
    pub fn gateway(&self) -> &Handle {
        self.0.executor.gateway()
    }

    /// What all guests hold together, and the ceiling.
    pub fn memory(&self) -> NodeUsage {
        self.0.memory.usage()
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
    /// One that cannot run here is not compiled again for five minutes. Safe to drop: the next one who waits goes on, or
    /// the compilation ends.
    pub async fn prepare(&self, digest: &str, wasm: &Path) -> Result<Component, Error> {
        self.prepare_telling(digest, wasm, &|_| {}).await
    }

    /// The same, telling what is waited for.
    pub async fn prepare_telling(
        &self,
        digest: &str,
        wasm: &Path,
        tell: &(dyn Fn(Phase) + Sync),
    ) -> Result<Component, Error> {
        let begun = Instant::now();
        let gate = {
            let mut components = self.0.components.lock();
            if let Some(loaded) = components.loaded.get(digest).and_then(Weak::upgrade) {
                return Ok(Component::from_loaded(loaded));
            }
            if let Some(error) = components.failure(digest) {
                return Err(error);
            }
            components.gates.entry(digest.to_owned()).or_default().clone()
        };
        let is_compiled = self.is_compiled(digest);
        if !is_compiled {
            tell(Phase::Compiling);
        }
        let turn = gate.lock().await;
        let known = {
            let mut components = self.0.components.lock();
            let loaded = components.loaded.get(digest).and_then(Weak::upgrade);
            loaded.map(|loaded| Ok(Component::from_loaded(loaded))).or_else(|| components.failure(digest).map(Err))
        };
        let result = match known {
            Some(known) => known,
            None => self.load(digest, wasm).await,
        };
        drop(turn);
        let mut components = self.0.components.lock();
        match &result {
            Ok(component) => {
                components.loaded.retain(|_, loaded| loaded.strong_count() > 0);
                components.loaded.insert(digest.to_owned(), Arc::downgrade(component.loaded()));
                if !is_compiled {
                    tell(Phase::Compiled(begun.elapsed()));
                }
            }
            Err(error) => components.remember(digest, error),
        }
        // Two hold it when nobody else waits: the map and this call.
        if Arc::strong_count(&gate) <= 2 {
            components.gates.remove(digest);
        }
        result
    }

    /// Whether the compiled code of a component is on disk: then preparing it takes a moment.
    pub fn is_compiled(&self, digest: &str) -> bool {
        self.0.cache.path(digest).exists()
    }

    async fn load(&self, digest: &str, wasm: &Path) -> Result<Component, Error> {
        let path = self.0.cache.path(digest);
        if path.exists() {
            match self.map(digest, wasm, &path).await {
                // What cannot be mapped (a disk gave back something else) is made again.
                Err(Error::Start(error)) => {
                    tracing::warn!(path = %path.display(), error, "compiled component is not usable, compiling it again");
                }
                other => return other,
            }
        }
        self.0.cache.compile(digest, wasm, &self.0.memory).await?;
        self.map(digest, wasm, &path).await.map_err(|error| match error {
            // It has just been written: there is no room for what it wants, and compiling it again makes none.
            Error::Start(text) if path.exists() => Error::Invalid(text),
            other => other,
        })
    }

    async fn map(&self, digest: &str, wasm: &Path, path: &Path) -> Result<Component, Error> {
        let (inner, digest, wasm, path) = (self.0.clone(), digest.to_owned(), wasm.to_owned(), path.to_owned());
        let mapped = tokio::task::spawn_blocking(move || {
            let component = settings::load(&inner.wasm, &path).map_err(|error| {
                // The machine's (no descriptor, no mapping left), not the component's: it may be better the next moment.
                match error.is::<std::io::Error>() || error.is::<rustix::io::Errno>() {
                    true => Error::Read { path: path.clone(), source: std::io::Error::other(line(&error)) },
                    false => Error::Start(line(&error)),
                }
            })?;
            Cache::touch(&path);
            Component::link(&digest, &component, &inner.linker, Cache::facts(&path, &wasm))
        });
        mapped.await.map_err(|panic| Error::Engine(panic.to_string()))?
    }
}

impl Inner {
    /// The account of one more container.
    pub(crate) fn account(&self, spec: &Spec) -> Arc<Account> {
        Account::new(spec, &self.memory)
    }

    /// Instances that one container may have of this component.
    pub(crate) fn container_max(&self, component: &Component) -> u32 {
        (self.slots.container_max() / component.places().max(1)).max(1)
    }

    /// A store for one more instance.
    pub(crate) fn store(
        &self,
        component: &Component,
        spec: &Arc<Spec>,
        account: &Arc<Account>,
        claim: Claim,
    ) -> Result<Store<Guest>, Error> {
        let slot = self.slots.take(account, component.places(), claim)?;
        Guest::store(&self.wasm, spec, account, slot, component.world())
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
