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
use crate::exit::OverLimit;
use crate::facts::{Facts, Model};
use crate::guest::{Claim, Guest, Slots};
use crate::limits::Account;
use crate::memory::NodeMemory;
use crate::{Component, Config, Error, NodeUsage, Spec, host, machine, settings};

/// Compiles, loads and starts components. Cheap to clone; the guests' threads end with the last clone.
#[derive(Clone)]
pub struct Engine(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    /// For components of WASI 0.2, as nearly all are.
    wasm: Wasm,
    /// For the others: made when the first of them comes, since its pool takes maps of this process.
    async_wasm: Mutex<Option<Arc<Wasm>>>,
    cache: Cache,
    components: Mutex<Components>,
    slots: Arc<Slots>,
    memory: Arc<NodeMemory>,
    pub(crate) executor: Executor,
}

/// What components of one model run in.
struct Wasm {
    engine: wasmtime::Engine,
    linker: Linker<Guest>,
    /// Of the engine's places, those that an instance with one memory takes: a pool may have room for fewer.
    weight: u32,
}

impl Wasm {
    fn new(engine: wasmtime::Engine, model: Model, weight: u32) -> wasmtime::Result<Wasm> {
        let linker = host::linker(&engine, model)?;
        Ok(Wasm { engine, linker, weight })
    }

    /// Loads and links a component of which that is known.
    fn load(&self, digest: &str, path: &Path, facts: Facts) -> Result<Component, Error> {
        let component = settings::load(&self.engine, path).map_err(|error| {
            // The machine's (no descriptor, no mapping left), not the component's: it may be better the next moment.
            match error.is::<std::io::Error>() || error.is::<rustix::io::Errno>() {
                true => Error::Read { path: path.to_owned(), source: std::io::Error::other(line(&error)) },
                false => Error::Start(line(&error)),
            }
        })?;
        Cache::touch(path);
        Component::link(digest, &component, &self.linker, facts, self.weight)
    }
}

/// Components that are loaded or on their way, by digest.
#[derive(Default)]
struct Components {
    loaded: HashMap<String, Weak<Loaded>>,
    gates: HashMap<Key, Arc<tokio::sync::Mutex<()>>>,
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

/// What somebody waits for: a digest, for all; before that the same for its owner alone, who may have to wait for its turn.
type Key = (Option<String>, String);

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
        // What decides over code for 0.3 is the same, but for 0.3.
        let cache = Cache::open(&config, &settings::code_key(&wasm))?;
        let wasm = Wasm::new(wasm, Model::Sync, 1).map_err(failed)?;
        let executor = Executor::start(config.guest_threads)
            .map_err(|error| Error::Engine(format!("start the guests' threads: {error}")))?;
        let (components, slots) = (Mutex::default(), Slots::new(instances_max));
        let (memory, async_wasm) = (NodeMemory::new(config.memory_bytes_max), Mutex::default());
        Ok(Engine(Arc::new(Inner { wasm, async_wasm, cache, components, slots, memory, executor })))
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

    /// Memory beside that of guests, as a compiler has it.
    #[cfg(test)]
    pub(crate) fn beside_guests(&self) -> crate::memory::Beside {
        self.0.memory.beside()
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
        self.prepare_telling("", digest, wasm, &|_| {}).await
    }

    /// The same for an `owner`, who never has all compilers, telling what is waited for.
    pub async fn prepare_telling(
        &self,
        owner: &str,
        digest: &str,
        wasm: &Path,
        tell: &(dyn Fn(Phase) + Sync),
    ) -> Result<Component, Error> {
        let begun = Instant::now();
        if let Some(known) = self.known(digest) {
            return known;
        }
        let is_compiled = self.is_compiled(digest);
        if !is_compiled {
            tell(Phase::Compiling);
        }
        // In this order, everywhere: one's own gate, one's turn, the gate of all, a compiler. Who waits for his turn holds up
        // nobody else who wants the same.
        let _own = self.gate(Some(owner), digest).lock_owned().await;
        let needs_turn = !is_compiled && self.known(digest).is_none();
        let _turn = if needs_turn { self.0.cache.turn(owner).await } else { None };
        let made = self.made(digest, wasm).await;
        if made.is_ok() && !is_compiled {
            tell(Phase::Compiled(begun.elapsed()));
        }
        made
    }

    /// A component that is loaded, or the failure of one that cannot be had.
    fn known(&self, digest: &str) -> Option<Result<Component, Error>> {
        let mut components = self.0.components.lock();
        if let Some(loaded) = components.loaded.get(digest).and_then(Weak::upgrade) {
            return Some(Ok(Component::from_loaded(loaded)));
        }
        components.failure(digest).map(Err)
    }

    /// Held by the one who compiles and loads; the others of the same digest wait for it.
    fn gate(&self, owner: Option<&str>, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut components = self.0.components.lock();
        // Who has one, or waits for it, holds it as well.
        components.gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        components.gates.entry((owner.map(str::to_owned), digest.to_owned())).or_default().clone()
    }

    /// Loads a component, which somebody else may have done meanwhile.
    async fn made(&self, digest: &str, wasm: &Path) -> Result<Component, Error> {
        let _gate = self.gate(None, digest).lock_owned().await;
        if let Some(known) = self.known(digest) {
            return known;
        }
        let result = self.load(digest, wasm).await;
        let mut components = self.0.components.lock();
        match &result {
            Ok(component) => {
                components.loaded.retain(|_, loaded| loaded.strong_count() > 0);
                components.loaded.insert(digest.to_owned(), Arc::downgrade(component.loaded()));
            }
            Err(error) => components.remember(digest, error),
        }
        drop(components);
        result
    }

    /// Whether preparing a component reads its file: only a compiler does, and none is asked for what is loaded, for what is
    /// compiled, and for what is known to fail.
    pub fn reads(&self, digest: &str) -> bool {
        self.known(digest).is_none() && !self.is_compiled(digest)
    }

    /// Whether the compiled code of a component is on disk: then preparing it takes a moment.
    fn is_compiled(&self, digest: &str) -> bool {
        self.0.cache.has(digest)
    }

    async fn load(&self, digest: &str, wasm: &Path) -> Result<Component, Error> {
        let path = self.0.cache.path(digest);
        if path.exists() {
            match self.map(digest, &path).await {
                // What cannot be mapped (a disk gave back something else) is made again.
                Err(Error::Start(error)) => {
                    tracing::warn!(path = %path.display(), error, "compiled component is not usable, compiling it again");
                    // Until that is done nobody is to count on it.
                    let _ = std::fs::remove_file(&path);
                }
                other => return other,
            }
        }
        self.0.cache.compile(digest, wasm, &self.0.memory).await?;
        self.map(digest, &path).await.map_err(|error| match error {
            // It has just been written: there is no room for what it wants, and compiling it again makes none.
            Error::Start(text) if path.exists() => Error::Invalid(text),
            other => other,
        })
    }

    async fn map(&self, digest: &str, path: &Path) -> Result<Component, Error> {
        let (inner, digest, path) = (self.0.clone(), digest.to_owned(), path.to_owned());
        let mapped = tokio::task::spawn_blocking(move || {
            let facts = Cache::facts(&path)?;
            match facts.model {
                Model::Sync => inner.wasm.load(&digest, &path, facts),
                Model::Async => inner.async_wasm()?.load(&digest, &path, facts),
            }
        });
        mapped.await.map_err(|panic| Error::Engine(panic.to_string()))?
    }
}

impl Inner {
    /// For components of WASI 0.3. Blocks some milliseconds, once.
    fn async_wasm(&self) -> Result<Arc<Wasm>, Error> {
        let mut made = self.async_wasm.lock();
        if let Some(wasm) = &*made {
            return Ok(wasm.clone());
        }
        let failed = |error: wasmtime::Error| Error::Engine(line(&error));
        let all = self.slots.max();
        let (engine, instances) = settings::async_engine(all).map_err(failed)?;
        let wasm = Arc::new(Wasm::new(engine, Model::Async, all.div_ceil(instances)).map_err(failed)?);
        self.slots.shrink(machine::instances_max_beside(all, instances));
        Ok(made.insert(wasm).clone())
    }

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
        Guest::store(component.wasm(), spec, account, slot, component.world())
    }
}

/// Why an instance could not be made.
pub(crate) fn start_error(error: &wasmtime::Error, account: &Account) -> Error {
    if let Some(over) = error.downcast_ref::<OverLimit>() {
        return over_limit(*over, account);
    }
    if error.is::<wasmtime::PoolConcurrencyLimitError>() {
        return Error::Limits(line(error));
    }
    Error::Start(line(error))
}

/// Why an instance could not be made for want of memory. That others have taken the node's is no fault of its container, which
/// may have one the next moment.
pub(crate) fn over_limit(over: OverLimit, account: &Account) -> Error {
    match over {
        OverLimit::Container => Error::OutOfMemory { bytes_max: account.memory_max() },
        OverLimit::Node => Error::Limits(over.to_string()),
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("instances", &self.instances())
            .field("instances_max", &self.instances_max())
            .finish()
    }
}
