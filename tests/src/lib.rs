//! The harness: real clusters for tests, each in a process, a directory and on ports of its own.
//!
//! A test reads like what a person does: start, push, kubectl, look, stop or kill. Whatever a test waits for is a
//! condition with a deadline; the message of a deadline shows the last thing seen.

pub mod compare;
pub mod ledger;
pub mod linearizability;
pub mod proof;
pub mod reference;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Until a condition must hold, on a slow machine with a debug build.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root")
}

/// Names the `coracle` executable to a program that is not to build one.
pub(crate) const PROGRAM: &str = "CORACLE_PROGRAM";

/// The `coracle` executable: the one that `CORACLE_PROGRAM` names, or of this build, built when it is not there yet.
pub fn coracle() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        if let Some(program) = std::env::var_os(PROGRAM) {
            return PathBuf::from(program);
        }
        let test = std::env::current_exe().expect("this test's own file");
        // target/PROFILE/deps/TEST, or target/PROFILE/PROGRAM.
        let folder = test.parent().expect("a program lies in a directory");
        let profile = if folder.ends_with("deps") { folder.parent().expect("target/PROFILE") } else { folder };
        let mut build = Command::new(env!("CARGO"));
        // With this package, so that it has the features that all were built with (Cargo.toml).
        build.args(["build", "--locked", "--quiet", "--package", "coracle-cli", "--package", "coracle-tests"]);
        build.args(["--bin", "coracle"]).current_dir(root());
        build.arg("--target-dir").arg(profile.parent().expect("target/PROFILE"));
        // What cargo tells a test of its package: ring would be built anew for it, with all that stands on it, and once more by
        // the next cargo that is not told.
        for (name, _) in std::env::vars_os() {
            let name_of = name.to_string_lossy();
            if name_of == "OUT_DIR" || ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|own| name_of.starts_with(own)) {
                build.env_remove(&name);
            }
        }
        if profile.ends_with("release") {
            build.arg("--release");
        }
        let built = build.status().expect("run cargo");
        assert!(built.success(), "coracle does not build");
        profile.join("coracle")
    })
}

/// The component of the example `package`.
pub fn guest(package: &str) -> PathBuf {
    // One at a time: the builds would only wait for each other's lock.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(coracle_sdk::component(&root().join("examples"), package)).unwrap_or_else(|e| panic!("{e}"))
}

/// A program of a Go module of ours, `tests/MODULE`, built into `target/tools` when it is not there yet or older than the module.
/// `build` are the words after `go`, `package` is what is built.
///
/// # Panics
/// When it cannot be built: the message is the command to run.
pub fn go_program(module: &str, name: &str, build: &[&str], package: &str) -> PathBuf {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let program = root().join("target/tools").join(name);
    let folder = root().join("tests").join(module);
    let modified = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    let sources = std::fs::read_dir(&folder).expect("the module").filter_map(|entry| modified(&entry.ok()?.path()));
    if program.is_file() && modified(&program) >= sources.max() {
        return program;
    }
    std::fs::create_dir_all(root().join("target/tools")).expect("make target/tools");
    let mut go = Command::new("go");
    go.args(build)
        .arg("-o")
        .arg(&program)
        .arg(package)
        .current_dir(&folder)
        .env("GOFLAGS", "-buildvcs=false -mod=readonly");
    let command = format!("(cd tests/{module} && go {} -o ../../target/tools/{name} {package})", build.join(" "));
    match go.status() {
        Ok(status) if status.success() => program,
        Ok(status) => panic!("{name} does not build ({status}): {command}"),
        Err(e) => panic!(
            "{name} is needed and is built by Go 1.26, which does not run here ({e}); install it, then: {command}"
        ),
    }
}

/// For the linker of a program of Kubernetes: it is small, and says which version it is. Some look at that themselves.
pub const STAMP: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.37.0 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37";

/// kubectl: the one that `CORACLE_KUBECTL` names, or built from its Go module.
pub fn kubectl() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        std::env::var_os("CORACLE_KUBECTL")
            .map(PathBuf::from)
            .unwrap_or_else(|| go_program("kubectl", "kubectl", &["build", "-ldflags", STAMP], "."))
    })
}

/// A kubectl command for the cluster of `kubeconfig`, which keeps in `home` what it keeps; arguments are separated by spaces.
pub fn kubectl_command(kubeconfig: &Path, home: &Path, arguments: &str) -> Command {
    let mut command = Command::new(kubectl());
    command.arg("--kubeconfig").arg(kubeconfig).args(arguments.split_whitespace());
    // No cache that tests could share, no colours, no pager.
    command.env("KUBECACHEDIR", home.join("cache")).env("HOME", home).env_remove("KUBECONFIG");
    command.stdin(Stdio::null());
    command
}

/// A Deployment of two that says nothing about nodes that are gone, and its NodePort Service.
pub const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: main, image: standin, ports: [{containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

/// A running cluster. Dropping it kills the process and removes the directory.
pub struct Cluster {
    child: Child,
    dir: TempDir,
    log: PathBuf,
    node_port_address: Ipv4Addr,
    /// What it is started with.
    words: Vec<String>,
}

impl Cluster {
    /// Starts an empty cluster on free ports in a directory of its own; returns when it has printed `ready`.
    pub fn start() -> Cluster {
        Cluster::start_with(&[])
    }

    /// The same with further arguments to `coracle up`.
    pub fn start_with(arguments: &[&str]) -> Cluster {
        Cluster::launched(&[&["up"], arguments].concat())
            .unwrap_or_else(|log| panic!("the cluster did not start:\n{log}"))
    }

    /// A server without a node, called `name`, that founds a cluster.
    pub fn server(name: &str) -> Cluster {
        Cluster::server_with(name, &[])
    }

    /// The same with further arguments to `coracle server`.
    pub fn server_with(name: &str, arguments: &[&str]) -> Cluster {
        let words = ["server", "--bind", "127.0.0.1", "--name", name];
        Cluster::launched(&[&words, arguments].concat())
            .unwrap_or_else(|log| panic!("the server did not start:\n{log}"))
    }

    /// One more server of this cluster, in a process of its own.
    pub fn join_server(&self, name: &str) -> Cluster {
        self.join_server_with(name, &[])
    }

    /// The same with further arguments to `coracle server`.
    pub fn join_server_with(&self, name: &str, arguments: &[&str]) -> Cluster {
        let (url, token) = self.token(&["--server"]);
        Cluster::server_with(name, &[&["--join", &url, "--token", &token], arguments].concat())
    }

    /// A cluster that is restored from a backup, with these words to `coracle up`.
    pub fn start_restored(backup: &Path, arguments: &[&str]) -> Cluster {
        let dir = tempfile::tempdir().expect("a temporary directory");
        run(Command::new(coracle()).arg("restore").arg(backup).arg("--data-dir").arg(dir.path().join("data")));
        Cluster::launched_in(dir, &[&["up"], arguments].concat())
            .unwrap_or_else(|log| panic!("the cluster did not start:\n{log}"))
    }

    /// The same with any words to `coracle`; its log when it does not start.
    pub fn launched(words: &[&str]) -> Result<Cluster, String> {
        Cluster::launched_in(tempfile::tempdir().expect("a temporary directory"), words)
    }

    fn launched_in(dir: TempDir, words: &[&str]) -> Result<Cluster, String> {
        let log = dir.path().join("log");
        let node_port_address = own_address();
        let mut words: Vec<String> = words.iter().map(ToString::to_string).collect();
        if words.first().is_some_and(|word| word == "up") {
            words.extend(["--node-port-bind".to_owned(), node_port_address.to_string()]);
        }
        let child = launch(dir.path(), &log, &words)?;
        Ok(Cluster { child, dir, log, node_port_address, words })
    }

    /// A new token: the server that it names, and the token.
    pub fn token(&self, arguments: &[&str]) -> (String, String) {
        let made = self.coracle(&[&["token", "create"], arguments].concat());
        let line = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["coracle", _, "--join", url, "--token", token] => ((*url).to_owned(), (*token).to_owned()),
            _ => panic!("{line}{}", String::from_utf8_lossy(&made.stderr)),
        }
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill our own child");
        self.child.wait().expect("wait for our own child");
    }

    /// Waits until it has ended by itself; its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        wait_for_end(&mut self.child, &self.log)
    }

    /// Starts it again, which must fail; what it says.
    pub fn restart_fails(&mut self) -> String {
        launch(self.dir.path(), &self.log, &self.words).expect_err("it should not start")
    }

    /// Has another program be where its own is: this script, with `CORACLE` for the one that there was.
    pub fn replace_program(&self, script: &str) {
        replace_program(self.dir.path(), script);
    }

    /// Whether its process, which is always the same one, runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("look at our own child").is_none()
    }

    /// Where it keeps everything.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("kubeconfig")
    }

    /// Where its registry answers on this machine, as `HOST:PORT`.
    pub fn registry(&self) -> String {
        let output = self.coracle(&["status", "-o", "json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("status prints JSON");
        status["registry"].as_str().expect("the registry's address").to_owned()
    }

    /// Where NodePort and LoadBalancer services answer on this machine, which no other cluster has.
    pub fn node_port_address(&self) -> Ipv4Addr {
        self.node_port_address
    }

    /// The node port of a service's first port; with `-n NAMESPACE` behind its name when it is elsewhere.
    pub fn node_port(&self, service: &str) -> u16 {
        let text = self.kubectl(&format!("get service {service} -o jsonpath={{.spec.ports[0].nodePort}}"));
        text.parse().unwrap_or_else(|_| panic!("{service} has no node port: {text:?}"))
    }

    /// Where that answers on this machine, without a path.
    pub fn service_url(&self, service: &str) -> String {
        format!("http://{}:{}", self.node_port_address, self.node_port(service))
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills it with SIGKILL and starts it again on the same directory.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.child =
            launch(self.dir.path(), &self.log, &self.words).unwrap_or_else(|log| panic!("no second start:\n{log}"));
    }

    /// Asks it to end with SIGTERM; returns its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        run(Command::new("kill").arg(self.child.id().to_string()));
        wait_for_end(&mut self.child, &self.log)
    }

    /// Sends its process a signal, as `STOP`.
    pub fn signal(&self, name: &str) {
        run(Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()));
    }

    /// Starts it again after [`Cluster::terminate`].
    pub fn restart(&mut self) {
        self.child =
            launch(self.dir.path(), &self.log, &self.words).unwrap_or_else(|log| panic!("no second start:\n{log}"));
    }

    /// Starts it again, and does not wait until it is ready.
    pub fn begin_restart(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).expect("open the log");
        let mut command = command(self.dir.path(), &self.words);
        self.child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("run coracle");
    }

    /// Pushes the example `package` as `image`.
    pub fn push(&self, package: &str, image: &str) {
        let output = self.coracle(&[OsStr::new("push"), guest(package).as_os_str(), OsStr::new(image)]);
        assert!(output.status.success(), "push {image}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs `coracle` for this cluster.
    pub fn coracle<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        let mut command = Command::new(coracle());
        command.args(arguments).env("CORACLE_DATA_DIR", self.data_dir()).env_remove("KUBECONFIG");
        output(&mut command)
    }

    /// A kubectl command for this cluster; arguments are separated by spaces.
    pub fn kubectl_command(&self, arguments: &str) -> Command {
        kubectl_command(&self.kubeconfig(), self.dir.path(), arguments)
    }

    /// Runs kubectl and returns its standard output; it must succeed.
    pub fn kubectl(&self, arguments: &str) -> String {
        let output = output(&mut self.kubectl_command(arguments));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "kubectl {arguments}: {}\n{}{}\nlog:\n{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr),
            self.log()
        );
        text(&output.stdout)
    }

    /// Runs kubectl, which must fail; returns its standard error.
    pub fn kubectl_fails(&self, arguments: &str) -> String {
        let output = output(&mut self.kubectl_command(arguments));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(!output.status.success(), "kubectl {arguments} should fail; it said {}", text(&output.stdout));
        text(&output.stderr)
    }

    /// Runs `kubectl VERB -f -` with `manifest` as its input.
    pub fn kubectl_with(&self, arguments: &str, manifest: &str) -> Output {
        self.kubectl_reading(&format!("{arguments} -f -"), manifest)
    }

    /// Runs kubectl with this as its standard input.
    pub fn kubectl_reading(&self, arguments: &str, input: &str) -> Output {
        use std::io::{Seek, Write};
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(input.as_bytes()).and_then(|()| file.rewind()).expect("write the input");
        output(self.kubectl_command(arguments).stdin(file))
    }

    /// Applies `manifest`, which must succeed.
    pub fn apply(&self, manifest: &str) -> String {
        let output = self.kubectl_with("apply", manifest);
        assert!(output.status.success(), "apply: {}\n{manifest}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until kubectl's output satisfies `holds`.
    pub fn eventually(&self, arguments: &str, holds: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let output = output(&mut self.kubectl_command(arguments));
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            if holds(&text) {
                return text;
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "kubectl {arguments} still says after {DEADLINE:?}:\n{text}\npods:\n{}\nlog:\n{}",
                self.kubectl("get pods,events -A -o wide"),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A node in a process of its own that has joined a cluster. Dropping it kills the process and removes the directory.
pub struct Worker {
    child: Child,
    dir: TempDir,
    log: PathBuf,
    node_port_address: Ipv4Addr,
}

impl Cluster {
    /// A second machine: a process that joins as the node `name`; returns when it has printed `ready`.
    pub fn join(&self, name: &str) -> Worker {
        let (url, token) = self.token(&[]);
        let node_port_address = own_address();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = dir.path().join("log");
        let arguments = ["--join", &url, "--token", &token, "--name", name];
        let child = launch_node(dir.path(), &log, node_port_address, &arguments)
            .unwrap_or_else(|log| panic!("the node did not start:\n{log}"));
        Worker { child, dir, log, node_port_address }
    }
}

impl Worker {
    /// Has another program be where its own is, as [`Cluster::replace_program`].
    pub fn replace_program(&self, script: &str) {
        replace_program(self.dir.path(), script);
    }

    /// Where it keeps everything.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Where NodePort services answer on this machine.
    pub fn node_port_address(&self) -> Ipv4Addr {
        self.node_port_address
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill our own child");
        self.child.wait().expect("wait for our own child");
    }

    /// Asks it to end with SIGTERM; returns its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        run(Command::new("kill").arg(self.child.id().to_string()));
        wait_for_end(&mut self.child, &self.log)
    }

    /// Starts it again on the same directory.
    pub fn start(&mut self, arguments: &[&str]) {
        self.child = launch_node(self.dir.path(), &self.log, self.node_port_address, arguments)
            .unwrap_or_else(|log| panic!("no second start:\n{log}"));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the node:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address of loopback for one machine alone. Ports of Services are the same on all machines of a cluster, and clusters that run at
/// the same time, of other test processes, too, may give out the same ones.
fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    // Neither 127.0.0.0/16, where everything else listens, nor 127.255.255.255.
    Ipv4Addr::new(127, 1 + NEXT.fetch_add(1, Ordering::Relaxed) % 254, high, low)
}

fn wait_for_end(child: &mut Child, log: &Path) -> Option<i32> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait for our own child") {
            return status.code();
        }
        let log = || std::fs::read_to_string(log).unwrap_or_default();
        assert!(begun.elapsed() < DEADLINE, "it does not end:\n{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Starts `coracle node` and waits for `ready`; the log when it ends before.
fn launch_node(dir: &Path, log: &Path, node_ports: Ipv4Addr, arguments: &[&str]) -> Result<Child, String> {
    let node_ports = &node_ports.to_string();
    let mut command = Command::new(program_in(dir));
    command.args(["node", "--port", "0", "--node-port-bind", node_ports, "--data-dir"]).arg(dir.join("data"));
    command.args(["--ingress-bind", node_ports, "--http-port", "0", "--https-port", "0"]);
    until_ready(command.args(arguments), log)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the cluster:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `coracle` with `words` and free ports and waits for `ready`; the log when it ends before.
fn launch(dir: &Path, log: &Path, words: &[String]) -> Result<Child, String> {
    until_ready(&mut command(dir, words), log)
}

/// `coracle` on the machine that `dir` stands for: a link, which can be led elsewhere.
fn program_in(dir: &Path) -> PathBuf {
    let program = dir.join("coracle");
    if !program.exists() {
        std::os::unix::fs::symlink(coracle(), &program).expect("link to the executable");
    }
    program
}

fn replace_program(dir: &Path, script: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let (program, next) = (dir.join("coracle"), dir.join("coracle.next"));
    std::fs::write(&next, script.replace("CORACLE", &coracle().display().to_string())).expect("write the program");
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o755)).expect("have it be executable");
    std::fs::rename(next, program).expect("put it in its place");
}

/// `coracle` with `words`, and free ports where they say none.
fn command(dir: &Path, words: &[String]) -> Command {
    let mut command = Command::new(program_in(dir));
    command.args(words).args(["--registry-port", "0", "--data-dir"]).arg(dir.join("data"));
    if !words.iter().any(|word| word == "--api-port") {
        command.args(["--api-port", "0"]);
    }
    if words.first().is_some_and(|word| word == "up") && !words.iter().any(|word| word == "--http-port") {
        command.args(["--http-port", "0", "--https-port", "0"]);
    }
    command
}

/// A port of loopback that was free a moment ago, for who has to come back at the same one.
pub fn free_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port().to_string()
}

/// Starts it and waits for `ready`; the log when it ends before.
fn until_ready(command: &mut Command, log: &Path) -> Result<Child, String> {
    let file = std::fs::File::options().create(true).append(true).open(log).expect("open the log");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).spawn().expect("run coracle");
    let lines = lines_of(child.stdout.take().expect("its output"));
    let begun = Instant::now();
    while let Some(left) = DEADLINE.checked_sub(begun.elapsed()) {
        match lines.recv_timeout(left) {
            Ok(line) if line == "ready" => return Ok(child),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    let _ = child.kill();
    let status = child.wait().expect("wait for our own child");
    Err(format!("{status}\n{}", std::fs::read_to_string(log).unwrap_or_default()))
}

/// The lines that a child prints, as they come. Nothing is read ahead of a thousand lines that nobody takes.
fn lines_of(output: impl Read + Send + 'static) -> std::sync::mpsc::Receiver<String> {
    let (send, lines) = std::sync::mpsc::sync_channel(1000);
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // Nobody listens any more: go on reading, or the child would block or die on its next line.
            let _ = send.send(line);
        }
    });
    lines
}

/// Runs `command` to its end, which must come within [`DEADLINE`].
pub fn output(command: &mut Command) -> Output {
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let all = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).map(|_| bytes)
        })
    };
    let stdout = all(Box::new(child.stdout.take().expect("piped")));
    let stderr = all(Box::new(child.stderr.take().expect("piped")));
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().expect("wait for our own child") {
            Some(status) => break Some(status),
            None if begun.elapsed() > DEADLINE => break None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let read = |thread: std::thread::JoinHandle<std::io::Result<Vec<u8>>>| {
        thread.join().expect("read").expect("read its output")
    };
    let (stdout, stderr) = (read(stdout), read(stderr));
    let status = status.unwrap_or_else(|| {
        let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
        panic!("{command:?} still runs after {DEADLINE:?}; it said:\n{text}")
    });
    Output { status, stdout, stderr }
}

/// Runs a command that must succeed; returns its output.
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asks `url`; `None` when nothing answers.
pub fn http_get(url: &str) -> Option<(u16, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let answer = runtime.block_on(async { tokio::time::timeout(DEADLINE, coracle_sdk::bench::http_get(url)).await });
    answer.ok()?.ok().map(|answer| (answer.status, answer.body))
}

/// Waits until `url` answers 200; returns the body.
pub fn eventually_answers(url: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(coracle_sdk::bench::http_get_ok(url, DEADLINE)).unwrap_or_else(|e| panic!("{e}"))
}

/// A child that is killed when the test ends, with the lines it prints.
pub struct Background {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Background {
    /// Starts `command`.
    pub fn start(command: Command) -> Background {
        Background::start_telling(command, Stdio::null())
    }

    /// The same with this standard error.
    pub fn start_telling(mut command: Command, error: Stdio) -> Background {
        let mut child = command.stdout(Stdio::piped()).stderr(error).spawn().expect("run it");
        let lines = lines_of(child.stdout.take().expect("its output"));
        Background { child, lines }
    }

    /// Asks it to end, and waits until it has; its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        run(Command::new("kill").arg("-TERM").arg(self.child.id().to_string()));
        let begun = Instant::now();
        while begun.elapsed() < DEADLINE {
            if let Some(status) = self.child.try_wait().expect("wait for our own child") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it still runs after {DEADLINE:?}")
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for a line that satisfies `holds`.
    pub fn line(&self, holds: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        let mut seen = Vec::new();
        while let Some(left) = DEADLINE.checked_sub(begun.elapsed()) {
            match self.lines.recv_timeout(left) {
                Ok(line) if holds(&line) => return line,
                Ok(line) => seen.push(line),
                Err(_) => break,
            }
        }
        panic!("the line did not come; these did: {seen:#?}")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
