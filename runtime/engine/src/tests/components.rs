//! From a file to a component, and what is refused.

use std::fs;
use std::sync::Arc;

use super::{Printed, engine, soon, spec};
use crate::cache::{Code, Known};
use crate::compile::{self, Bounds};
use crate::facts::{Facts, Model};
use crate::{Compiler, Config, Engine, Error, Exit, Phase, World};

/// What becomes of text as a component.
async fn prepared(name: &str, text: &[u8]) -> Result<crate::Component, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.wasm");
    fs::write(&path, text).unwrap();
    soon(engine().prepare(name, &path)).await
}

#[tokio::test]
async fn refuses_what_cannot_run_and_says_why() {
    let import = "(component (import \"foo:bar/baz@1.0.0\" (instance (export \"f\" (func)))))";
    let table = [
        ("page", b"<html>".to_vec(), "not a WebAssembly component: the file does not begin as WebAssembly does"),
        ("empty", Vec::new(), "not a WebAssembly component: the file does not begin as WebAssembly does"),
        ("import", wat::parse_str(import).unwrap(), "imports `foo:bar/baz@1.0.0`, which this node does not offer"),
        (
            "none",
            wat::parse_str("(component)").unwrap(),
            "exports neither `wasi:http/incoming-handler` nor `wasi:cli/run`, so there is nothing to start (exports: none)",
        ),
        ("cut", wat::parse_str(import).unwrap()[..30].to_vec(), "not a component that can run here: "),
    ];
    for (name, bytes, message) in table {
        let error = prepared(name, &bytes).await.unwrap_err();
        assert!(error.to_string().starts_with(message), "{name}: {error}");
        assert!(error.is_permanent(), "{name}");
    }
}

#[tokio::test]
async fn a_core_module_of_wasi_0_1_becomes_a_command() {
    let module = r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 8) "\10\00\00\00\03\00\00\00")
        (data (i32.const 16) "hi\0a")
        (func (export "_start") (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 32)))))"#;
    let component = prepared("module", &wat::parse_str(module).unwrap()).await.unwrap();
    assert_eq!(component.world(), World::Command);
    let (spec, printed) = spec();
    let command = engine().start_command(&component, spec).await.unwrap();
    assert_eq!(soon(command.wait()).await, Exit::Code(0));
    assert_eq!(printed.text(), "hi\n");
}

#[tokio::test]
async fn a_component_is_compiled_once_for_all_who_ask_and_for_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = dir.path().join("app.wasm");
    fs::copy(tokio::task::spawn_blocking(|| super::built("hello")).await.unwrap(), &wasm).unwrap();
    let config = || Config { instances_max: 4, ..Config::new(dir.path().join("cache")) };
    let first = Engine::new(config()).unwrap();
    let (one, two) = tokio::join!(first.prepare("sha256:1", &wasm), first.prepare("sha256:1", &wasm));
    assert!(Arc::ptr_eq(one.unwrap().loaded(), two.unwrap().loaded()));
    drop(first);
    let broken = Config { compiler: Compiler::Process("/nonexistent/coracle".into()), ..config() };
    let second = Engine::new(broken).unwrap();
    let component = second.prepare("sha256:1", &wasm).await.expect("nothing needs to be compiled");
    assert_eq!(component.world(), World::Http);
    let error = second.prepare("sha256:2", &wasm).await.unwrap_err();
    assert!(matches!(error, Error::Compiler { .. }) && !error.is_permanent(), "{error:?}");
}

/// What 0.3 adds to the component model costs each call, of a guest and of the host.
#[tokio::test]
async fn only_components_of_0_3_pay_for_what_it_adds() {
    for (package, pays) in [("hello", false), ("probe-command", false), ("hello-p3", true), ("probe-command-p3", true)]
    {
        let component = super::component(package).await;
        assert_eq!(component.wasm().get_concurrency_support(), pays, "{package}");
    }
}

#[tokio::test]
async fn what_uses_0_3_without_naming_it_is_compiled_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (wasm, output) = (dir.path().join("a.wasm"), dir.path().join("a.part"));
    for (text, facts) in
        [("(component (type (future)))", "fresh async\n"), ("(component (type string))", "fresh sync\n")]
    {
        fs::write(&wasm, wat::parse_str(text).unwrap()).unwrap();
        let bounds = Bounds { bytes_max: u64::MAX, time_max: std::time::Duration::MAX };
        let functions = dir.path().join("functions");
        let memory = engine().beside_guests();
        compile::compile(&Compiler::InProcess, &wasm, &output, &functions, bounds, memory).await.unwrap();
        let said = fs::read_to_string(compile::facts_beside(&output)).unwrap();
        assert!(said.starts_with(facts), "{text}: {said:?}");
    }
}

/// The file is read by the compiler alone: it may be as large as any, and this process is the API's.
#[tokio::test]
async fn what_is_known_of_a_component_is_its_compilers_word() {
    let dir = tempfile::tempdir().unwrap();
    let hello = tokio::task::spawn_blocking(|| super::built("hello")).await.unwrap();
    let config = |name: &str| Config { instances_max: 4, ..Config::new(dir.path().join(name)) };
    Engine::new(config("first")).unwrap().prepare("sha256:1", &hello).await.unwrap();
    let key = fs::read_dir(dir.path().join("first")).unwrap().next().unwrap().unwrap().path();
    // A compiler that gives the same code for a file of which nothing can be known.
    let (program, code) = (dir.path().join("compiler"), key.join("sha256-1.cwasm"));
    let text = |facts: &str| format!("#!/bin/sh\n{facts}\ncp {} \"$3\"\n", code.display());
    let write = |facts: &str| {
        fs::write(&program, text(facts)).unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    let wasm = dir.path().join("empty.wasm");
    fs::write(&wasm, "").unwrap();
    let engine = || {
        let compiler = Compiler::Process(program.clone());
        Engine::new(Config { compiler, ..config("second") }).unwrap()
    };
    write("");
    let error = engine().prepare("sha256:2", &wasm).await.unwrap_err();
    assert!(matches!(error, Error::Cache { .. }), "it has not said it: {error}");
    let says = |is_reusable| {
        let known =
            Known { facts: Facts { is_reusable, model: Model::Sync }, code: Code::of(&fs::read(&code).unwrap()) };
        format!("printf '%s' '{}' > \"${{3%.part}}.facts.part\"", known.to_text())
    };
    for (facts, reuse) in [("reusable", 1_000), ("fresh", 1)] {
        write(&says(reuse > 1));
        let component = engine().prepare(facts, &wasm).await.unwrap();
        assert_eq!(component.reuse(), reuse);
    }
    // It is asked again when its word was lost.
    let beside = dir.path().join("second").join(key.file_name().unwrap()).join("fresh.facts");
    fs::write(&beside, "").unwrap();
    write(&says(true));
    assert_eq!(engine().prepare("fresh", &wasm).await.unwrap().reuse(), 1_000);
}

/// Code runs as it is: what a disk has changed is not run, but made again.
#[tokio::test]
async fn code_that_is_not_what_was_written_is_compiled_again() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = tokio::task::spawn_blocking(|| super::built("hello")).await.unwrap();
    let config = || Config { instances_max: 4, ..Config::new(dir.path()) };
    drop(Engine::new(config()).unwrap().prepare("sha256:1", &wasm).await.unwrap());
    let key = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let path = key.join("sha256-1.cwasm");
    let good = fs::read(&path).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 2;
    for wrong in [&flipped[..], &[], &good[..good.len() - 1], &[&good[..], &[0]].concat()] {
        fs::write(&path, wrong).unwrap();
        Engine::new(config()).unwrap().prepare("sha256:1", &wasm).await.expect("it is compiled again");
        assert_eq!(fs::read(&path).unwrap(), good);
    }
    // What cannot be read is not there either, and while the component is not to be had nobody counts on what was compiled.
    let facts = path.with_extension("facts");
    fs::remove_file(&facts).unwrap();
    std::os::unix::fs::symlink(&facts, &facts).unwrap();
    Engine::new(config()).unwrap().prepare("sha256:1", &wasm).await.expect("it is compiled again");
    fs::write(&path, &flipped).unwrap();
    let engine = Engine::new(config()).unwrap();
    let error = engine.prepare("sha256:1", &dir.path().join("gone.wasm")).await.unwrap_err();
    assert!(matches!(error, Error::Read { .. }) && engine.reads("sha256:1"), "{error}");
    engine.prepare("sha256:1", &wasm).await.expect("it is compiled again");
    assert!(!engine.reads("sha256:1"));
}

#[tokio::test]
async fn a_component_has_a_bound_of_bytes_and_so_has_what_it_says_of_itself() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = dir.path().join("a.wasm");
    // A section of zeros that nobody needs, as long as one can be: next to nothing in an image's layer.
    let begin = b"\0asm\x0d\0\x01\0\0\xf0\xff\xff\x7f\x01x";
    fs::write(&wasm, begin).unwrap();
    fs::File::options().write(true).open(&wasm).unwrap().set_len(crate::COMPONENT_BYTES_MAX + 1).unwrap();
    let error = soon(engine().prepare("large", &wasm)).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid(message) if message.contains("268435457 bytes")), "{error}");
    // Many long names.
    let named = |count: usize, bytes: usize| {
        let exports: String =
            (0..count).map(|number| format!("(export \"{}-a{number}\" (instance 0))", "x".repeat(bytes))).collect();
        wat::parse_str(format!("(component (instance) {exports})")).unwrap()
    };
    let error = prepared("described", &named(100, 90_000)).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid(message) if message.contains("more than 8388608")), "{error}");
    let error = prepared("named", &named(100, 50_000)).await.unwrap_err();
    assert!(matches!(&error, Error::NoWorld(_)), "{error:?}");
    assert!(error.to_string().len() < 5_000, "{} bytes of names", error.to_string().len());
    let unfit = crate::check(&named(100, 50_000)).unwrap_err();
    assert!(unfit.to_string().len() < 5_000);
}

/// Compilers that take as long as they may.
#[tokio::test]
async fn one_owner_never_has_all_compilers() {
    let dir = tempfile::tempdir().unwrap();
    let (program, begun) = (dir.path().join("compiler"), dir.path().join("begun"));
    fs::create_dir(&begun).unwrap();
    fs::write(&program, format!("#!/bin/sh\ntouch {}/$(basename $2)\nexec sleep 1000\n", begun.display())).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config =
        Config { instances_max: 4, compiler: Compiler::Process(program), ..Config::new(dir.path().join("cache")) };
    let engine = Engine::new(config).unwrap();
    let asked = |owner: &'static str, name: String| {
        let (engine, wasm) = (engine.clone(), dir.path().join(&name));
        tokio::spawn(async move { engine.prepare_telling(owner, &name, &wasm, &|_| {}).await.map(drop) })
    };
    let names = || -> Vec<String> {
        let names = fs::read_dir(&begun).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    };
    let hog: Vec<_> = (0..10).map(|number| asked("hog", format!("hog-{number}"))).collect();
    soon(async {
        while names().len() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    // Who wants what waits in the other's line does not wait there with it.
    let waiting = (0..10).rev().map(|number| format!("hog-{number}")).find(|name| !names().contains(name)).unwrap();
    let other = asked("other", waiting.clone());
    soon(async {
        while names().len() < 3 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(names().contains(&waiting), "{:?}", names());
    for task in hog.into_iter().chain([other]) {
        task.abort();
    }
}

#[tokio::test]
async fn functions_are_compiled_once_for_all_components_that_have_them() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = tokio::task::spawn_blocking(|| super::built("hello")).await.unwrap();
    let engine = Engine::new(Config { instances_max: 8, ..Config::new(dir.path()) }).unwrap();
    let packs = || {
        let key = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let files = fs::read_dir(key.join("functions")).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
        files.map(|metadata| metadata.len()).sum::<u64>()
    };
    let phases = std::sync::Mutex::new(Vec::new());
    let tell = |phase| phases.lock().unwrap().push(phase);
    engine.prepare_telling("", "sha256:1", &wasm, &tell).await.unwrap();
    assert!(matches!(phases.lock().unwrap()[..], [Phase::Compiling, Phase::Compiled(_)]), "{phases:?}");
    let first = packs();
    // The same functions under another name: next to nothing is added (what cranelift numbers anew each time), and what
    // comes from the cache works.
    let again = engine.prepare("sha256:2", &wasm).await.unwrap();
    assert!(first > 0 && packs() - first < first / 5, "{first} then {}", packs());
    assert_eq!(again.reuse(), 1_000, "it is Rust, although it is stripped");
    let service = engine.start_http(&again, crate::Spec::new("a"), crate::HttpOptions::default()).await.unwrap();
    assert_eq!(super::get(&service, "/").await, super::ok("hello\n"));
    phases.lock().unwrap().clear();
    engine.prepare_telling("", "sha256:2", &wasm, &tell).await.unwrap();
    assert!(phases.lock().unwrap().is_empty(), "it is there");
}

#[tokio::test]
async fn a_component_that_cannot_run_is_compiled_once_for_a_thousand_replicas() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = dir.path().join("a.wasm");
    fs::write(&wasm, &wat::parse_str("(component)").unwrap()[..]).unwrap();
    fs::write(&wasm, b"\0asm\x0d\0\x01\0\xff").unwrap();
    let engine = Engine::new(Config { instances_max: 4, ..Config::new(dir.path().join("cache")) }).unwrap();
    let first = engine.prepare("sha256:1", &wasm).await.unwrap_err();
    // Without its file it could not be compiled again.
    fs::remove_file(&wasm).unwrap();
    for _ in 0..1_000 {
        let again = engine.prepare("sha256:1", &wasm).await.unwrap_err();
        assert_eq!(again.to_string(), first.to_string());
    }
    assert!(matches!(engine.prepare("sha256:2", &wasm).await, Err(Error::Read { .. })));
}

#[tokio::test]
async fn a_component_for_which_no_instance_has_room_is_compiled_once() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = dir.path().join("a.wasm");
    let large = "(component (core module $m (table 1000000 funcref)) (core instance (instantiate $m)))";
    fs::write(&wasm, wat::parse_str(large).unwrap()).unwrap();
    let engine = Engine::new(Config { instances_max: 4, ..Config::new(dir.path().join("cache")) }).unwrap();
    let first = engine.prepare("sha256:1", &wasm).await.unwrap_err();
    assert!(matches!(&first, Error::Invalid(_)) && first.is_permanent(), "{first:?}");
    // Without its file it could not be compiled again.
    fs::remove_file(&wasm).unwrap();
    assert_eq!(engine.prepare("sha256:1", &wasm).await.unwrap_err().to_string(), first.to_string());
}

#[tokio::test]
async fn a_compiler_that_takes_too_long_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = tokio::task::spawn_blocking(|| super::built("hello")).await.unwrap();
    let program = dir.path().join("compiler");
    let id = dir.path().join("id");
    fs::write(&program, format!("#!/bin/sh\necho $$ > {}\nexec sleep 1000\n", id.display())).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = Config {
        instances_max: 4,
        compiler: Compiler::Process(program),
        compile_time_max: std::time::Duration::from_secs(2),
        ..Config::new(dir.path().join("cache"))
    };
    let error = soon(Engine::new(config).unwrap().prepare("sha256:1", &wasm)).await.unwrap_err();
    assert!(error.to_string().contains("longer than 2 s") && !error.is_permanent(), "{error}");
    let process = format!("/proc/{}", fs::read_to_string(&id).unwrap().trim());
    soon(async {
        while fs::read_to_string(format!("{process}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_cache_keeps_within_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = tokio::task::spawn_blocking(|| super::built("hello")).await.unwrap();
    let config = Config { instances_max: 4, cache_bytes_max: 300 << 10, ..Config::new(dir.path()) };
    let engine = Engine::new(config).unwrap();
    for number in 0..4 {
        engine.prepare(&format!("sha256:{number}"), &wasm).await.unwrap();
    }
    let keys: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let sum: u64 = fs::read_dir(&keys[0])
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap())
        .filter(std::fs::Metadata::is_file)
        .map(|metadata| metadata.len())
        .sum();
    assert!(sum > 0 && sum <= 300 << 10, "{sum}");
}

#[tokio::test]
async fn a_compiler_that_fails_is_no_fault_of_the_component() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = tokio::task::spawn_blocking(|| super::built("hello")).await.unwrap();
    let config =
        Config { instances_max: 4, compiler: Compiler::Process("/bin/false".into()), ..Config::new(dir.path()) };
    let error = Engine::new(config).unwrap().prepare("sha256:1", &wasm).await.unwrap_err();
    assert!(matches!(&error, Error::CompilerKilled(_)) && !error.is_permanent(), "{error}");
}

#[test]
fn the_worker_compiles_and_explains() {
    let dir = tempfile::tempdir().unwrap();
    let (wasm, output) = (dir.path().join("a.wasm"), dir.path().join("a.cwasm"));
    fs::write(&wasm, "nothing").unwrap();
    let code = crate::compile_worker(&[wasm.clone(), output.clone()]);
    assert_eq!(format!("{code:?}"), format!("{:?}", std::process::ExitCode::from(2)), "arguments are missing");
    assert!(!output.exists());
    let _ = Printed::default();
}
