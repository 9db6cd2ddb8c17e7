//! Stands in for the images of Kubernetes' own test suite: one component that is `agnhost`, `busybox` and a few servers, by the name
//! that it is called by. The suite's specs run unmodified with it under the images' names (`tests/src/bin/conformance.rs`).
//!
//! | Called as | Is |
//! | --- | --- |
//! | `agnhost`, `/agnhost`, `/agnhost-2` | a subcommand (`netexec`, `webhook`, `mounttest` …), as `src/agnhost/` has them |
//! | `sh`, `/bin/sh`, `cat`, `sleep`, `curl` … | a shell and its programs (`src/shell/`, `src/programs.rs`, `src/clients.rs`) |
//! | `pause` | a pause |
//! | `nginx`, `kitten`, `nautilus` | a web server at port 80 |
//! | `python … port-server.py PORT…` | an echo at each port, as that script of the Python client's tests is |
//!
//! What a component cannot do (modes and owners of files, processes, jobs in the background) is refused, not pretended.

#[cfg(target_os = "wasi")]
mod agnhost;
#[cfg(target_os = "wasi")]
mod clients;
#[cfg_attr(not(target_os = "wasi"), allow(dead_code, reason = "the servers are for WASI"))]
mod grpc;
#[cfg_attr(not(target_os = "wasi"), allow(dead_code, reason = "the servers are for WASI"))]
mod http;
mod io;
#[cfg(target_os = "wasi")]
mod net;
mod programs;
#[cfg(target_os = "wasi")]
mod server;
mod shell;
#[cfg(target_os = "wasi")]
mod tls;

use std::path::PathBuf;

use crate::io::Io;
use crate::shell::Shell;

/// Elsewhere, where it is only tested, nobody is asked.
#[cfg(not(target_os = "wasi"))]
mod clients {
    pub fn exists(_: &str) -> bool {
        false
    }

    pub fn run(_: &str, _: &[String], _: &mut crate::io::Io) -> Option<u8> {
        None
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (name, rest) = arguments.split_first().map_or(("sh", &[][..]), |(name, rest)| (name.as_str(), rest));
    end(run(name, rest));
}

fn run(name: &str, arguments: &[String]) -> u8 {
    #[cfg(target_os = "wasi")]
    match name {
        "pause" | "/pause" => return agnhost::run(name, &["pause".to_owned()]),
        "nginx" | "kitten" | "nautilus" => return image(name),
        "python" => return python(arguments),
        _ => {}
    }
    let mut io = Io::standard();
    let (name, arguments) = match (name, arguments.is_empty()) {
        // The image's own command.
        ("busybox" | "glibc-dns-testing", true) => ("sh", arguments),
        _ => (name, arguments),
    };
    programs::run(name, arguments, &mut shell_of_its_own(), &mut io).unwrap_or_else(|| {
        io.errors.line(&format!("exec: {name:?}: no such file or directory"));
        127
    })
}

/// A web server, as an image has it.
#[cfg(target_os = "wasi")]
fn image(name: &str) -> u8 {
    use http::Response;
    let picture = format!("{name}.jpg");
    let mut server = server::Server::default();
    let handler = move |request: &http::Request| match request.path.as_str() {
        "/data.json" => Response::json(&serde_json::json!({"image": picture})).into(),
        "/" | "/index.html" => {
            Response::new(200, "<h1>Welcome to nginx!</h1>\n").with("content-type", "text/html").into()
        }
        _ => Response::error(404, "404 page not found").into(),
    };
    match server.http(80, handler) {
        Ok(()) => server.run(),
        Err(failure) => {
            eprintln!("{name}: {failure}");
            1
        }
    }
}

/// The one script that is known, by its name.
#[cfg(target_os = "wasi")]
fn python(arguments: &[String]) -> u8 {
    let script = arguments.iter().position(|word| word.ends_with("/port-server.py"));
    let Some(ports) = script.map(|at| &arguments[at + 1..]) else {
        eprintln!("python: only port-server.py can be run");
        return 2;
    };
    let mut server = server::Server::default();
    for port in ports {
        let bound = port.parse().map_err(|_| format!("bad port {port:?}"));
        if let Err(wrong) = bound.and_then(|port| server.echo(port).map_err(|failure| failure.to_string())) {
            eprintln!("python: {wrong}");
            return 1;
        }
    }
    server.run()
}

/// Runs `agnhost` where this is its name.
#[cfg(target_os = "wasi")]
fn agnhost(name: &str, arguments: &[String]) -> Option<u8> {
    let program = match name {
        "agnhost" | "/agnhost" => "/agnhost",
        "/agnhost-2" => name,
        _ => return None,
    };
    Some(agnhost::run(program, arguments))
}

#[cfg(not(target_os = "wasi"))]
fn agnhost(_: &str, _: &[String]) -> Option<u8> {
    None
}

/// A shell with the component's environment.
fn shell_of_its_own() -> Shell {
    #[cfg(target_os = "wasi")]
    let directory = wasip2::cli::environment::initial_cwd();
    #[cfg(not(target_os = "wasi"))]
    let directory = None::<String>;
    Shell::new(std::env::vars(), directory.map_or_else(|| PathBuf::from("/"), PathBuf::from))
}

/// Ends with a code; the standard library tells only 0 and 1 apart.
fn end(status: u8) -> ! {
    use std::io::Write;
    let _ = std::io::stdout().flush();
    #[cfg(target_os = "wasi")]
    wasip2::cli::exit::exit_with_code(status);
    std::process::exit(i32::from(status))
}
