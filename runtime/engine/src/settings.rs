//! How wasmtime is set up: what decides over compiled code, and what only over where instances live.

use std::path::Path;

use wasmtime::{Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::facts::Model;
use crate::machine;

/// Address space of one linear memory. With all that 32 bits can address reserved, memory accesses need no bounds
/// checks; less would cost 50 to 70 % of the speed.
const RESERVATION: u64 = 4 << 30;

/// The guard behind each memory, as wasmtime's default.
const GUARD: u64 = 32 << 20;

/// What a slot keeps resident for the next instance, at most: instantiating again is 2.5 times cheaper.
const KEEP_RESIDENT: usize = 1 << 20;
const TABLE_KEEP_RESIDENT: usize = 64 << 10;

/// Slots that keep memory although nothing runs in them. Mostly some 50 KiB each.
const WARM_SLOTS: u32 = 64;

/// Pointers in one table. CPython with its libraries has some 30,000 functions.
const TABLE_ELEMENTS: usize = 100_000;

/// Core instances of one component. Python with many libraries has some fifty.
const CORE_INSTANCES_MAX: u32 = 128;

/// Memories of one component. Nearly all have one.
const MEMORIES_MAX: u32 = 16;

/// Tables for each of the engine's places.
const TABLES_PER_PLACE: u32 = 3;

/// Of so many instances of 0.2 there may be one of WASI 0.3, whose pool comes beside theirs,
const ASYNC_SHARE: u32 = 8;
/// and at least so many.
const ASYNC_MIN: u32 = 256;

/// How many of the engine's places an instance of this component takes: as many as the memories or tables that it has.
pub(crate) fn places(component: &wasmtime::component::Component) -> u32 {
    // A component that imports core modules, which no component here can, would not say.
    let Some(needed) = component.resources_required() else { return MEMORIES_MAX };
    needed.num_memories.max(needed.num_tables.div_ceil(TABLES_PER_PLACE)).max(1)
}

/// What decides over the compiled code, the same in every process. Whatever is set here changes the key of the cache.
pub(crate) fn code(model: Model) -> wasmtime::Config {
    let is_async = model == Model::Async;
    let mut config = wasmtime::Config::new();
    config
        .wasm_component_model(true)
        .concurrency_support(is_async)
        .wasm_component_model_async(is_async)
        .consume_fuel(true)
        .memory_reservation(RESERVATION)
        .memory_guard_size(GUARD)
        .gc_heap_reservation(RESERVATION)
        .gc_heap_guard_size(GUARD)
        .memory_init_cow(true);
    config
}

/// An engine that runs instances, and for how many there is room.
pub(crate) fn engine(instances_max: u32) -> wasmtime::Result<(wasmtime::Engine, u32)> {
    engine_of(Model::Sync, machine::instances_max(instances_max))
}

/// The same beside that one, for components of WASI 0.3.
pub(crate) fn async_engine(sync_instances: u32) -> wasmtime::Result<(wasmtime::Engine, u32)> {
    engine_of(Model::Async, (sync_instances / ASYNC_SHARE).max(ASYNC_MIN).min(sync_instances))
}

fn engine_of(model: Model, mut instances: u32) -> wasmtime::Result<(wasmtime::Engine, u32)> {
    loop {
        match wasmtime::Engine::new(code(model).allocation_strategy(pool(instances))) {
            Ok(engine) => return Ok((engine, instances)),
            // Address space is limited (ulimit -v, a small machine): less of it, and then instances without a pool.
            Err(error) if instances > 256 => {
                tracing::debug!(instances, %error, "no pool of this size");
                instances /= 2;
            }
            Err(error) => {
                tracing::warn!(%error, "no room for a pool of instances: each takes and gives back its memory itself");
                let engine =
                    wasmtime::Engine::new(code(model).allocation_strategy(InstanceAllocationStrategy::OnDemand))?;
                return Ok((engine, instances));
            }
        }
    }
}

fn pool(instances: u32) -> InstanceAllocationStrategy {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        // A component is several core instances, most of them small shims; this is a counter, no memory. As many as all
        // components together could have, so that none of them can use it up.
        .total_core_instances(instances.saturating_mul(CORE_INSTANCES_MAX))
        .max_core_instances_per_component(CORE_INSTANCES_MAX)
        .max_memories_per_component(MEMORIES_MAX)
        .max_tables_per_component(MEMORIES_MAX * TABLES_PER_PLACE)
        .total_memories(instances)
        .total_tables(instances.saturating_mul(TABLES_PER_PLACE))
        // A store keeps its stack until it ends.
        .total_stacks(instances)
        .total_gc_heaps(instances.min(1000))
        .max_memories_per_module(4)
        .max_tables_per_module(8)
        .max_memory_size(RESERVATION as usize)
        .table_elements(TABLE_ELEMENTS)
        .max_component_instance_size(8 << 20)
        .max_core_instance_size(4 << 20)
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .table_keep_resident(TABLE_KEEP_RESIDENT)
        .max_unused_warm_slots(WARM_SLOTS.min(instances))
        .pagemap_scan(if machine::has_pagemap_scan() { Enabled::Auto } else { Enabled::No });
    InstanceAllocationStrategy::Pooling(pool)
}

/// The key of everything that decides over compiled code: wasmtime's version, the settings, the CPU.
pub(crate) fn code_key(engine: &wasmtime::Engine) -> String {
    use sha2::Digest;

    /// Feeds what is hashed into SHA-256: the standard hasher differs between versions of Rust.
    struct Feed(sha2::Sha256);
    impl std::hash::Hasher for Feed {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }

        fn finish(&self) -> u64 {
            0
        }
    }

    let mut feed = Feed(sha2::Sha256::new());
    std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut feed);
    feed.0.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Loads compiled code, which the caller has found to be what was written ([`crate::cache::Cache::facts`]).
pub(crate) fn load(engine: &wasmtime::Engine, path: &Path) -> wasmtime::Result<wasmtime::component::Component> {
    // SAFETY: the file was written by a compiler that this process started, into a directory that only this user may
    // write, and moved into place when it was complete; its name holds the key of the compiler and of its settings.
    unsafe { wasmtime::component::Component::deserialize_file(engine, path) }
}
