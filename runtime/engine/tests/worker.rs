//! Compiles in processes of their own, which are this same program, as the node does with its executable.

use std::path::PathBuf;
use std::process::ExitCode;

use coracle_engine::{Compiler, Config, Engine, Error, World, compile_worker};

/// A component without any world, as text would be `(component)`.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// A command of WASI 0.1: `(module (memory (export "memory") 1) (func (export "_start")))`.
const COMMAND: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x05\x03\x01\0\x01\
    \x07\x13\x02\x06memory\x02\0\x06_start\0\0\x0a\x04\x01\x02\0\x0b";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    if arguments.next().is_some_and(|first| first.as_os_str() == "compile") {
        return compile_worker(&arguments.collect::<Vec<_>>());
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(async {
        compiles_and_explains().await;
        stays_within_its_memory().await;
        counts_as_memory_of_the_node().await;
    });
    println!("worker: ok");
    ExitCode::SUCCESS
}

fn config(dir: &tempfile::TempDir) -> Config {
    let program = std::env::current_exe().expect("this program has a path");
    Config { instances_max: 4, compiler: Compiler::Process(program), ..Config::new(dir.path().join("cache")) }
}

async fn compiles_and_explains() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = Engine::new(config(&dir)).expect("an engine starts");
    let prepare = async |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("the file is written");
        engine.prepare(name, &path).await
    };
    assert_eq!(prepare("command", COMMAND).await.expect("it compiles").world(), World::Command);
    assert!(matches!(prepare("none", COMPONENT).await, Err(Error::NoWorld(_))));
    assert!(matches!(prepare("text", b"hello").await, Err(Error::NotWasm)));
    let invalid = prepare("cut", &COMMAND[..20]).await.expect_err("it is cut off");
    assert!(matches!(&invalid, Error::Invalid(message) if !message.is_empty()), "{invalid}");
}

async fn stays_within_its_memory() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = Engine::new(Config { compile_bytes_max: 16 << 20, ..config(&dir) }).expect("an engine starts");
    let path = dir.path().join("command");
    std::fs::write(&path, COMMAND).expect("the file is written");
    let error = engine.prepare("command", &path).await.expect_err("16 MiB are not enough");
    assert!(matches!(&error, Error::CompilerKilled(_)), "{error}");
    assert!(!error.is_permanent());
}

/// What a compiler is seen to hold counts, which is more than any is taken to hold (8 MiB).
async fn counts_as_memory_of_the_node() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("command");
    let body = "(local.set 0 (i64.add (i64.mul (local.get 0) (i64.const 3)) (i64.rotl (local.get 0) (i64.const 7))))";
    let function = format!("(func (param i64) (result i64) {} (local.get 0))", body.repeat(100));
    let text = format!("(module (memory (export \"memory\") 1) (func (export \"_start\")) {})", function.repeat(2_000));
    std::fs::write(&path, wat::parse_str(text).expect("it is a module")).expect("the file is written");
    let of_memory = |bytes| Engine::new(Config { memory_bytes_max: bytes, ..config(&dir) }).expect("an engine starts");
    let engine = of_memory(12 << 20);
    let error = engine.prepare("command", &path).await.expect_err("the node has 12 MiB for all").to_string();
    let held = error.split("it holds ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    assert!(held.is_some_and(|held| held > 12 << 20) && error.contains("no memory left"), "{error}");
    assert_eq!(engine.memory().memory_bytes, 0, "it is gone");
    let engine = of_memory(4 << 30);
    engine.prepare("command", &path).await.expect("there is room for it");
    let peak = engine.memory().memory_bytes_peak;
    assert!(peak > 12 << 20, "{peak}");
}
