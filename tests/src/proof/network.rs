//! The network of a proof: a namespace for each server, on a bridge in the namespace of the program, which is its own.
//!
//! ```text
//! unshare ─► this program, its clients ── bridge 10.213.0.254
//!              server one   10.213.0.1 ──┤   each in a namespace that a process of ours holds
//!              server two   10.213.0.2 ──┤   and that goes when this program does
//!              server three 10.213.0.3 ──┘
//! ```
//! A packet is lost without a word where the sender believes that its neighbour has a hardware address that nobody has. So a way
//! is cut in one direction, and connections that are there notice nothing but silence. What leaves a server is made slow
//! by `tc`: late, where the kernel has netem, else narrow. Clients reach every server all the time.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use super::SERVERS;
use crate::{PROGRAM, coracle, run};

/// Says to the program that the namespaces around it are its own.
const INSIDE: &str = "CORACLE_PROOF_INSIDE";
/// An address that no interface has.
const NOBODY: &str = "02:00:00:00:00:de";
/// What a slow server sends comes so much later, with netem; without, it is at most so much at a time.
const LATE: &[&str] = &["netem", "delay", "25ms", "15ms"];
const NARROW: &[&str] = &["tbf", "rate", "2mbit", "burst", "16kb", "latency", "400ms"];

/// Runs `inside` in namespaces of its own: this program is started again in them, and ends with the same code.
pub fn within(inside: impl FnOnce() -> ExitCode) -> ExitCode {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let needs = "the proof needs Linux, `unshare` and `nsenter` (util-linux), `ip` and `tc` (iproute2), and the right to make \
                 network namespaces: as root, or as a user who may make user namespaces";
    for tool in ["unshare", "nsenter", "ip", "tc"] {
        let found = Command::new(tool).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if let Err(error) = found {
            eprintln!("proof: {tool} does not run ({error}): {needs}");
            return ExitCode::from(2);
        }
    }
    let unshare = |words: &[&str]| {
        let mut command = Command::new("unshare");
        // What it starts ends with it, however it ends.
        command.args(words).args(["--net", "--mount-proc", "--pid", "--fork", "--kill-child"]);
        command
    };
    let may = |words: &[&str]| {
        let tried = unshare(words).arg("true").stdout(Stdio::null()).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    let user: &[&str] = &["--user", "--map-root-user"];
    let words = match (may(&[]), may(user)) {
        (true, _) => &[],
        (false, true) => user,
        (false, false) => {
            eprintln!("proof: no network namespace can be made here: {needs}");
            return ExitCode::from(2);
        }
    };
    let program = std::env::current_exe().expect("this program's own file");
    let dir = tempfile::Builder::new().prefix("coracle-proof-").tempdir().expect("a temporary directory").keep();
    tidy_after(&dir);
    // Built out here, where a network is.
    let mut inner = unshare(words);
    inner.arg(program).args(std::env::args_os().skip(1));
    let error = inner.env(INSIDE, "1").env("TMPDIR", &dir).env(PROGRAM, coracle()).exec();
    eprintln!("proof: unshare does not run: {error}");
    ExitCode::from(2)
}

/// Begins a process that outlives this one, which may be killed, and tidies up below `dir` then. Mounts go with the namespaces that they are
/// in; but a file system that stood still when its program was killed stays, and its device with it, until somebody mounts it
/// once more and has it go on.
fn tidy_after(dir: &Path) {
    const TIDY: &str = r#"(
        tail --pid="$PPID" --follow /dev/null
        for image in "$0"/.tmp*/*.ext4; do
            [ -n "$(losetup --associated "$image")" ] || continue
            mount -o loop "$image" "$0" && { fsfreeze --unfreeze "$0"; umount "$0"; }
        done
        rmdir "$0"
    ) &"#;
    let mut tidy = Command::new("sh");
    // Whoever waits for the end of our output does not wait for it, and whoever ends our group does not end it.
    tidy.args(["-c", TIDY]).arg(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    if let Err(error) = tidy.status() {
        eprintln!("proof: nothing is tidied up after it: {error}");
    }
}

/// The address of a server.
pub fn address(server: usize) -> String {
    format!("10.213.0.{}", server + 1)
}

/// The namespaces; they go with this.
pub struct Network {
    holders: Vec<Child>,
}

impl Network {
    /// Makes them.
    pub fn make() -> Network {
        ip(&["link", "set", "lo", "up"]);
        ip(&["link", "add", "bridge", "type", "bridge"]);
        ip(&["address", "add", "10.213.0.254/24", "dev", "bridge"]);
        ip(&["link", "set", "bridge", "up"]);
        let own = std::fs::read_link("/proc/self/ns/net").expect("this process has a network namespace");
        let mut network = Network { holders: Vec::new() };
        for server in 0..SERVERS {
            let mut holder = Command::new("unshare");
            let holder = holder.args(["--net", "sleep", "infinity"]).spawn().expect("run unshare");
            let namespace = format!("/proc/{}/ns/net", holder.id());
            while std::fs::read_link(&namespace).is_ok_and(|other| other == own) {
                std::thread::yield_now();
            }
            let (id, port) = (holder.id().to_string(), format!("port{server}"));
            network.holders.push(holder);
            ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &id]);
            ip(&["link", "set", &port, "master", "bridge", "up"]);
            network.ip(server, &["address", "add", &format!("{}/24", address(server)), "dev", "eth0"]);
            network.ip(server, &["link", "set", "eth0", "up"]);
            network.ip(server, &["link", "set", "lo", "up"]);
        }
        network
    }

    /// A command that runs where `server` is; it becomes the process that is started.
    pub fn command(&self, server: usize, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holders[server].id())).arg(program);
        command
    }

    fn ip(&self, server: usize, words: &[&str]) {
        run(self.command(server, Path::new("ip")).args(words));
    }

    /// Loses what `from` sends to `to`.
    pub fn cut(&self, from: usize, to: usize) {
        self.ip(from, &["neighbour", "replace", &address(to), "lladdr", NOBODY, "dev", "eth0", "nud", "permanent"]);
    }

    /// Loses it no more.
    pub fn mend(&self, from: usize, to: usize) {
        self.ip(from, &["neighbour", "delete", &address(to), "dev", "eth0"]);
    }

    /// Makes slow what `server` sends.
    pub fn slow(&self, server: usize) {
        let tc = |words: &[&str]| {
            let mut command = self.command(server, Path::new("tc"));
            command.args(["qdisc", "replace", "dev", "eth0", "root"]).args(words);
            crate::output(&mut command).status.success()
        };
        assert!(tc(LATE) || tc(NARROW), "tc knows neither netem nor tbf here: leave out the fault `slow`");
    }

    /// Slow no more.
    pub fn fast(&self, server: usize) {
        run(self.command(server, Path::new("tc")).args(["qdisc", "delete", "dev", "eth0", "root"]));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for holder in &mut self.holders {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

fn ip(words: &[&str]) {
    run(Command::new("ip").args(words));
}
