//! `coracle`: Kubernetes without containers, in one executable.

// Both panic when nobody reads or the disk is full, whatever is under way: `output` has what does not.
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod anew;
mod audit;
mod backup;
mod backup_key;
mod bench;
mod cluster;
mod completion;
mod controllers;
mod demo;
mod down;
mod encryption;
mod kubeconfig;
mod logs;
mod member;
mod memory;
mod node;
mod output;
mod own_log;
mod push;
mod recover;
mod routes;
mod server;
mod status;
mod tap;
mod token;
mod up;
mod upgrade;
mod version;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::output::tell;

// A third of the API server's time under load went into the system's allocator, and what it kept after that load was twice
// as much (`apibench writes`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Kubernetes without containers: a cluster that runs WebAssembly components as its pods.
#[derive(Parser)]
#[command(name = "coracle", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 done, 1 it failed, 2 the arguments are wrong, 3 no cluster answers.\n\n\
    CORACLE_LOG in the environment says what is logged on standard error: a level (error, warn, info, debug, trace), or \
    levels of parts, as warn,coracle_node=debug.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Up(up::Arguments),
    Down(down::Arguments),
    Demo(demo::Arguments),
    Server(server::Arguments),
    Node(node::Arguments),
    Controllers(controllers::Arguments),
    Member(member::Arguments),
    Token(token::Arguments),
    Encryption(encryption::Arguments),
    Push(push::Arguments),
    Status(status::Arguments),
    Kubeconfig(kubeconfig::Arguments),
    Logs(logs::Arguments),
    Tap(tap::Arguments),
    Routes(routes::Arguments),
    Reset(down::ResetArguments),
    Backup(backup::Arguments),
    Restore(backup::RestoreArguments),
    Recover(recover::Arguments),
    Upgrade(upgrade::Arguments),
    Bench(bench::Arguments),
    Completion(completion::Arguments),
    Version(version::Arguments),
    /// Serve a constant with bare hyper; `bench http` compares with this process
    #[command(hide = true)]
    BenchPeer,
    /// Compile one component; the server runs this as a process of its own
    #[command(hide = true)]
    Compile {
        /// Passed on to the worker.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<PathBuf>,
    },
}

/// By these a person says where data is; empty they say nothing, as those of other programs.
const DIRECTORIES: [&str; 2] = ["CORACLE_DATA_DIR", "CORACLE_NODE_DIR"];

fn main() -> ExitCode {
    // With RUST_BACKTRACE set wasmtime would take a backtrace for each instance that ends: 10 µs. Panics go on having theirs.
    // Who asks for them expressly has them.
    if std::env::var_os("RUST_LIB_BACKTRACE").is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
    }
    for name in DIRECTORIES.into_iter().filter(|name| std::env::var_os(name).is_some_and(|said| said.is_empty())) {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::remove_var(name) };
    }
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Up(arguments) => run(up::run(arguments)),
        Command::Down(arguments) => run(down::run(arguments)),
        Command::Logs(arguments) => run(logs::run(arguments)),
        Command::Tap(arguments) => run(tap::run(arguments)),
        Command::Routes(arguments) => run(routes::run(arguments)),
        Command::Reset(arguments) => run(down::reset(arguments)),
        Command::Backup(arguments) => run(backup::run(arguments)),
        Command::Restore(arguments) => run(backup::restore(arguments)),
        Command::Recover(arguments) => run(recover::run(arguments)),
        Command::Demo(arguments) => run(demo::run(arguments)),
        Command::Server(arguments) => run(server::run(arguments)),
        Command::Node(arguments) => run(node::run(arguments)),
        Command::Controllers(arguments) => run(controllers::run(arguments)),
        Command::Member(arguments) => run(member::run(arguments)),
        Command::Token(arguments) => run(token::run(arguments)),
        Command::Encryption(arguments) => run(encryption::run(arguments)),
        Command::Push(arguments) => run(push::run(arguments)),
        Command::Status(arguments) => run(status::run(arguments)),
        Command::Kubeconfig(arguments) => run(kubeconfig::run(arguments)),
        Command::Upgrade(arguments) => run(upgrade::run(arguments)),
        Command::Bench(arguments) => run(bench::run(arguments)),
        Command::BenchPeer => run(bench::peer()),
        Command::Completion(arguments) => completion::run(&arguments),
        Command::Version(arguments) => version::run(&arguments),
        // No runtime and no log: a worker does one thing and ends.
        Command::Compile { arguments } => return coracle_sdk::compile_worker(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(wrong) = error.downcast_ref::<clap::Error>() {
                wrong.exit();
            }
            tell!("error: {}", output::chain(&error));
            match error.downcast_ref::<up::Ended>() {
                Some(ended) => ExitCode::from(ended.code),
                None if output::is_unreachable(&error) => ExitCode::from(3),
                None => ExitCode::FAILURE,
            }
        }
    }
}

/// By this a person says what is logged.
const LOG: &str = "CORACLE_LOG";
/// What is when nobody says it. What the client library logs is told again as the command's own error.
const LOGGED: &str = "warn,openraft=error,kube_client=off";

/// What `said` asks to be logged; a mistake in it is told, and is no reason to end.
fn logged(said: Option<&str>) -> (EnvFilter, Option<String>) {
    let usual = || EnvFilter::new(LOGGED);
    match said.filter(|said| !said.trim().is_empty()).map(EnvFilter::try_new) {
        None => (usual(), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (usual(), Some(format!("{LOG} is not heeded: {error}"))),
    }
}

fn run(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    memory::begin();
    let (filter, mistake) = logged(std::env::var_os(LOG).map(|said| said.to_string_lossy().into_owned()).as_deref());
    if let Some(mistake) = mistake {
        tell!("warning: {mistake}");
    }
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    // Of a line that cannot be written it would tell with `eprintln!`, in the midst of whatever has logged.
    log.log_internal_errors(false).init();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().on_thread_park(memory::rest).build()?.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_about_the_log_is_told() {
        for (said, is_mistake) in [
            (None, false),
            (Some(""), false),
            (Some("debug"), false),
            (Some("warn,coracle_node=debug"), false),
            (Some("a=loud"), true),
        ] {
            let (filter, mistake) = logged(said);
            assert_eq!(mistake.is_some_and(|said| said.contains(LOG)), is_mistake, "{said:?}");
            assert_eq!(
                filter.to_string().contains("openraft=error"),
                said.is_none_or(str::is_empty) || is_mistake,
                "{said:?}"
            );
        }
    }

    #[test]
    fn arguments_are_consistent() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }
}
