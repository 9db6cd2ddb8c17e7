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

async fn counts_as_memory_of_the_node() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = Engine::new(Config { memory_bytes_max: 1 << 20, ..config(&dir) }).expect("an engine starts");
    let path = dir.path().join("command");
    std::fs::write(&path, COMMAND).expect("the file is written");
    let error = engine.prepare("command", &path).await.expect_err("the node has 1 MiB for all");
    assert!(error.to_string().contains("no memory left"), "{error}");
    assert_eq!(engine.memory().memory_bytes, 0, "it is gone");
}
