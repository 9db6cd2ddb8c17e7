//! `agnhost`, the image that most pods of Kubernetes' test suite run, by its subcommands.

mod admission;
mod conversion;
mod guestbook;
mod identity;
mod mtls;
mod netexec;
mod nettest;
mod options;
mod small;

use crate::net::Failure;
use options::Options;

type Subcommand = fn(&Options) -> Result<u8, String>;

const SUBCOMMANDS: &[(&str, Subcommand)] = &[
    ("connect", small::connect),
    ("crd-conversion-webhook", conversion::run),
    ("grpc-health-checking", small::grpc_health_checking),
    ("guestbook", guestbook::run),
    ("liveness", small::liveness),
    ("logs-generator", small::logs_generator),
    ("mounttest", small::mounttest),
    ("mtlsclient", mtls::client),
    ("mtlsserver", mtls::server),
    ("netexec", netexec::run),
    ("nettest", nettest::run),
    ("pause", |_| small::pause()),
    ("porter", small::porter),
    ("serve-hostname", small::serve_hostname),
    ("tcp-reset", |_| Err("a component cannot reset a connection".to_owned())),
    ("test-service-account-issuer-discovery", identity::run),
    ("test-webserver", small::test_webserver),
    ("webhook", admission::run),
];

/// Runs a subcommand; without one it pauses.
pub fn run(program: &str, arguments: &[String]) -> u8 {
    let Some((name, rest)) = arguments.split_first() else { return small::pause().unwrap_or(1) };
    if name == "entrypoint-tester" {
        println!("[{}]", [&[program.to_owned()], arguments].concat().join(" "));
        return 0;
    }
    let Some((_, subcommand)) = SUBCOMMANDS.iter().find(|(known, _)| known == name) else {
        eprintln!("Error: unknown command {name:?} for \"app\"");
        return 1;
    };
    match Options::read(rest).and_then(|options| subcommand(&options)) {
        Ok(status) => status,
        Err(wrong) => {
            eprintln!("Error: {wrong}");
            1
        }
    }
}

/// The pod's name.
pub fn hostname() -> String {
    std::env::var("HOSTNAME").unwrap_or_else(|_| "localhost".to_owned())
}

/// A line of a log, with the time.
pub fn log(text: &str) {
    let [year, month, day, hour, minute, second] = crate::programs::utc(std::time::SystemTime::now());
    eprintln!("{year:04}/{month:02}/{day:02} {hour:02}:{minute:02}:{second:02} {text}");
}

fn failed(what: &str) -> impl Fn(Failure) -> String + '_ {
    move |failure| format!("{what}: {failure}")
}
