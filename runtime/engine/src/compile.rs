//! Compiles one component: in this process, or in a limited one of its own.
//!
//! Compiling parses hostile input and takes from 0.06 to 35 seconds and up to a gigabyte. The process of its
//! own cannot take more than it was given, has low priority, and can be killed. It alone reads a component: what else is to be
//! known of one ([`Facts`]) it leaves beside the code.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, setpriority_process, setrlimit};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use wasmparser::{Parser, Payload};

use crate::adapt::{self, Kind};
use crate::cache::{Code, Known};
use crate::error::cut;
use crate::facts::{Facts, Model};
use crate::functions::Functions;
use crate::memory::Beside;
use crate::{Compiler, Error, settings};

/// Bytes of a component. Compiling one of 40 MB takes some 600 MB, so that what is larger than this could not be compiled within
/// [`crate::Config::compile_bytes_max`].
pub const COMPONENT_BYTES_MAX: u64 = 256 << 20;

/// Bytes of what a component says of itself: types, and the names of what it imports and exports. Its code and data are mapped,
/// but this is in the memory of whoever runs it, as objects that are larger than it. Components of 40 MB have some 200 KiB.
const DESCRIPTION_BYTES_MAX: usize = 8 << 20;

/// CPU time of one compiler process. The largest component seen took 104 seconds.
const CPU_SECONDS_MAX: u64 = 1_200;

/// Priority of a compiler process, as for `nice`.
const NICE: i32 = 10;

/// How often it is looked how much a compiler holds; it takes some 100 MB a second at most.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Bytes that any compiler holds.
const HELD_MIN: u64 = 8 << 20;

/// What is kept of a compiler's message.
const MESSAGE_BYTES_MAX: u64 = 16 << 10;

/// Exit code that says: the component is at fault, and standard error says how.
const EXIT_INVALID: u8 = 3;
/// Exit code that says: not WebAssembly.
const EXIT_NOT_WASM: u8 = 4;

/// Why compiling in this process failed.
enum Failure {
    NotWasm,
    Invalid(String),
    Io(std::io::Error),
}

/// Bounds of one compilation, in a process of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Address space.
    pub(crate) bytes_max: u64,
    /// On the wall's clock.
    pub(crate) time_max: Duration,
}

/// Where a compiler that writes its code to `output` leaves what is known of the component.
pub(crate) fn facts_beside(output: &Path) -> PathBuf {
    output.with_extension("facts.part")
}

/// Compiles `wasm` into `output`, which is complete and on disk when this returns, with its facts beside it. Functions that
/// `functions` has are taken from there.
pub(crate) async fn compile(
    compiler: &Compiler,
    wasm: &Path,
    output: &Path,
    functions: &Path,
    bounds: Bounds,
    memory: Beside,
) -> Result<(), Error> {
    match compiler {
        Compiler::InProcess => {
            let (from, to, functions) = (wasm.to_owned(), output.to_owned(), functions.to_owned());
            let compiled = tokio::task::spawn_blocking(move || compile_here(&from, &to, Some(&functions))).await;
            match compiled.map_err(|panic| Error::CompilerKilled(panic.to_string()))? {
                Ok(()) => Ok(()),
                Err(Failure::NotWasm) => Err(Error::NotWasm),
                Err(Failure::Invalid(message)) => Err(Error::Invalid(message)),
                Err(Failure::Io(source)) => Err(Error::Read { path: wasm.to_owned(), source }),
            }
        }
        Compiler::Process(program) => {
            // Dropping it kills the process.
            let compiled = compile_there(program, wasm, output, functions, bounds.bytes_max, memory);
            let seconds = bounds.time_max.as_secs();
            tokio::time::timeout(bounds.time_max, compiled)
                .await
                .unwrap_or_else(|_| Err(Error::CompilerKilled(format!("it took longer than {seconds} s"))))
        }
    }
}

fn compile_here(wasm: &Path, output: &Path, functions: Option<&Path>) -> Result<(), Failure> {
    let mut bytes = read(wasm)?;
    let mut facts = Facts::of(&bytes);
    match adapt::kind(&bytes) {
        None => return Err(Failure::NotWasm),
        Some(Kind::Component) => {}
        Some(Kind::Module) => bytes = adapt::component(&bytes).map_err(|error| Failure::Invalid(cut(error)))?,
    }
    let described = description_bytes(&bytes);
    if described > DESCRIPTION_BYTES_MAX {
        return Err(Failure::Invalid(format!(
            "its types and the names of its imports and exports have {described} bytes, more than {DESCRIPTION_BYTES_MAX}"
        )));
    }
    let name = output.file_stem().unwrap_or_default().to_string_lossy();
    // Without the cache it only takes longer.
    let functions = functions.and_then(|dir| Functions::open(dir, &name).ok());
    let compiled = match code(facts.model, &bytes, functions.as_ref()) {
        // It may use what its names do not say; else both say the same of it. It is read before anything is compiled.
        Err(_) if facts.model == Model::Sync => {
            facts.model = Model::Async;
            code(facts.model, &bytes, functions.as_ref())
        }
        compiled => compiled,
    };
    let code = compiled.map_err(|error| Failure::Invalid(crate::error::line(&error)))?;
    if let Some(Err(error)) = functions.map(|functions| functions.finish()) {
        tracing::debug!(%error, "compiled functions are not kept");
    }
    let known = Known { facts, code: Code::of(&code) };
    write(&facts_beside(output), known.to_text().as_bytes()).map_err(Failure::Io)?;
    write(output, &code).map_err(Failure::Io)
}

fn code(model: Model, component: &[u8], functions: Option<&Arc<Functions>>) -> wasmtime::Result<Vec<u8>> {
    let mut config = settings::code(model);
    if let Some(functions) = functions {
        config.enable_incremental_compilation(functions.clone())?;
    }
    // An engine for compiling only: it has no pool.
    wasmtime::Engine::new(&config)?.precompile_component(component)
}

/// Writes a file that is on the disk afterwards.
fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// A component's file, if it is no larger than it may be.
fn read(wasm: &Path) -> Result<Vec<u8>, Failure> {
    let file = fs::File::open(wasm).map_err(Failure::Io)?;
    let size = file.metadata().map_err(Failure::Io)?.len();
    if size > COMPONENT_BYTES_MAX {
        return Err(Failure::Invalid(format!("it has {size} bytes, more than {COMPONENT_BYTES_MAX}")));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(COMPONENT_BYTES_MAX).read_to_end(&mut bytes).map_err(Failure::Io)?;
    Ok(bytes)
}

/// Bytes of everything but code, data, and what no engine looks at. Of what cannot be read the compiler says more.
fn description_bytes(component: &[u8]) -> usize {
    let payloads = Parser::new(0).parse_all(component).map_while(Result::ok);
    let bytes = payloads.map(|payload| match payload {
        Payload::CodeSectionStart { .. } | Payload::DataSection(_) | Payload::CustomSection(_) => 0,
        // What is in these comes by itself.
        Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => 0,
        other => other.as_section().map_or(0, |(_, range)| range.len()),
    });
    bytes.fold(0, usize::saturating_add)
}

async fn compile_there(
    program: &Path,
    wasm: &Path,
    output: &Path,
    functions: &Path,
    bytes_max: u64,
    mut memory: Beside,
) -> Result<(), Error> {
    let failed = |source| Error::Compiler { path: program.to_owned(), source };
    let mut child = Command::new(program)
        .arg("compile")
        .args([wasm, output])
        .arg(bytes_max.to_string())
        .arg(functions)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut message = Vec::new();
    let (id, stderr) = (child.id(), child.stderr.take());
    let ended = async {
        if let Some(stderr) = stderr {
            stderr.take(MESSAGE_BYTES_MAX).read_to_end(&mut message).await?;
        }
        child.wait().await
    };
    let too_much = async {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            // Before the first look has seen what it takes, and for one that is over sooner, it counts as a small one.
            let bytes = id.and_then(held_by).unwrap_or(0).max(HELD_MIN);
            if !memory.set(bytes) {
                return bytes;
            }
        }
    };
    // Looking only waits; dropping the other kills the process.
    let status = tokio::select! {
        ended = ended => ended.map_err(failed)?,
        bytes = too_much => {
            let why = format!("it holds {bytes} bytes, and the node has no memory left for it");
            return Err(Error::CompilerKilled(why));
        }
    };
    let message = cut(String::from_utf8_lossy(&message).trim().to_owned());
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) if code == i32::from(EXIT_INVALID) => Err(Error::Invalid(message)),
        (Some(code), _) if code == i32::from(EXIT_NOT_WASM) => Err(Error::NotWasm),
        (Some(code), _) => Err(Error::CompilerKilled(format!("exit code {code}: {message}"))),
        (None, signal) => {
            let signal = signal.map_or_else(|| "a signal".to_owned(), |signal| format!("signal {signal}"));
            let why = if message.is_empty() { "out of memory or time" } else { message.as_str() };
            Err(Error::CompilerKilled(format!("{signal}: {why}")))
        }
    }
}

/// Bytes of memory that this process has for itself: without what it shares with files, as its own program.
fn held_by(process: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/statm")).ok()?;
    let mut pages = text.split_ascii_whitespace().skip(1).map_while(|number| number.parse::<u64>().ok());
    let (resident, shared) = (pages.next()?, pages.next()?);
    Some(resident.saturating_sub(shared) * rustix::param::page_size() as u64)
}

/// What a compiler process does: `EXE compile WASM OUTPUT BYTES_MAX [FUNCTIONS]`. Needs no runtime and prints errors only.
pub fn compile_worker(arguments: &[PathBuf]) -> ExitCode {
    let [wasm, output, bytes_max, functions @ ..] = arguments else {
        eprintln!("usage: compile WASM OUTPUT BYTES_MAX [FUNCTIONS]");
        return ExitCode::from(2);
    };
    let Some(bytes_max) = bytes_max.to_str().and_then(|text| text.parse().ok()) else {
        eprintln!("{} is not a number of bytes", bytes_max.display());
        return ExitCode::from(2);
    };
    limit(bytes_max);
    match compile_here(wasm, output, functions.first().map(PathBuf::as_path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::NotWasm) => ExitCode::from(EXIT_NOT_WASM),
        Err(Failure::Invalid(message)) => {
            eprintln!("{message}");
            ExitCode::from(EXIT_INVALID)
        }
        Err(Failure::Io(error)) => {
            eprintln!("{}: {error}", wasm.display());
            ExitCode::FAILURE
        }
    }
}

/// Holds this process to its limits. A machine that refuses one of them compiles without it.
fn limit(bytes_max: u64) {
    let limits = [(Resource::As, bytes_max), (Resource::Cpu, CPU_SECONDS_MAX), (Resource::Core, 0)];
    for (resource, value) in limits {
        let limit = Rlimit { current: Some(value), maximum: Some(value) };
        if let Err(error) = setrlimit(resource, limit) {
            eprintln!("limit {resource:?}: {error}");
        }
    }
    let _ = setpriority_process(None, NICE);
}
