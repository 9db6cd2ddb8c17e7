//! The harness: real clusters for tests, each in a process, a directory and on ports of its own.
//!
//! A test reads like what a person does: start, push, kubectl, look, stop or kill. Whatever a test waits for is a
//! condition with a deadline; the message of a deadline shows the last thing seen.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Until a condition must hold, on a slow machine with a debug build.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root")
}

/// The `coracle` executable of this build, built when it is not there yet.
pub fn coracle() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let test = std::env::current_exe().expect("this test's own file");
        let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--locked", "--quiet", "--package", "coracle-cli"]).current_dir(root());
        build.arg("--target-dir").arg(profile.parent().expect("target/PROFILE"));
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

/// kubectl, or `None` after one loud line; where `CORACLE_REQUIRE_KUBECTL` is set its absence is a failure.
pub fn kubectl() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| {
            let named = std::env::var_os("CORACLE_KUBECTL").map(PathBuf::from);
            let built = root().join("target/tools/kubectl");
            let found = named
                .into_iter()
                .chain([built])
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).map(|d| d.join("kubectl")))
                .find(|path| path.is_file());
            if found.is_none() {
                let advice =
                    "kubectl is missing: build it with `cd tests/kubectl && go build -o ../../target/tools/kubectl .`";
                assert!(std::env::var_os("CORACLE_REQUIRE_KUBECTL").is_none(), "{advice}");
                eprintln!("NOT TESTED: {advice}");
            }
            found
        })
        .as_deref()
}

/// A running cluster. Dropping it kills the process and removes the directory.
pub struct Cluster {
    child: Child,
    dir: TempDir,
    log: PathBuf,
}

impl Cluster {
    /// Starts an empty cluster on free ports in a directory of its own; returns when it has printed `ready`.
    pub fn start() -> Cluster {
        Cluster::start_with(&[])
    }

    /// The same with further arguments to `coracle up`.
    pub fn start_with(arguments: &[&str]) -> Cluster {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = dir.path().join("log");
        let child =
            launch(dir.path(), &log, arguments).unwrap_or_else(|log| panic!("the cluster did not start:\n{log}"));
        Cluster { child, dir, log }
    }

    /// Where it keeps everything.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("kubeconfig")
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills it with SIGKILL, as a power cut would, and starts it again on the same directory.
    pub fn kill_and_restart(&mut self) {
        self.child.kill().expect("kill our own child");
        self.child.wait().expect("wait for our own child");
        self.child = launch(self.dir.path(), &self.log, &[]).unwrap_or_else(|log| panic!("no second start:\n{log}"));
    }

    /// Asks it to end with SIGTERM; returns its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        run(Command::new("kill").arg(self.child.id().to_string()));
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for our own child") {
                return status.code();
            }
            assert!(begun.elapsed() < DEADLINE, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends its process a signal, as `STOP`.
    pub fn signal(&self, name: &str) {
        run(Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()));
    }

    /// Starts it again after [`Cluster::terminate`].
    pub fn restart(&mut self) {
        self.child = launch(self.dir.path(), &self.log, &[]).unwrap_or_else(|log| panic!("no second start:\n{log}"));
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
        command.output().expect("run coracle")
    }

    /// A kubectl command for this cluster; arguments are separated by spaces.
    pub fn kubectl_command(&self, arguments: &str) -> Command {
        let mut command = Command::new(kubectl().expect("the test has asked for kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(arguments.split_whitespace());
        // No cache that tests could share, no colours, no pager.
        command
            .env("KUBECACHEDIR", self.dir.path().join("cache"))
            .env("HOME", self.dir.path())
            .env_remove("KUBECONFIG");
        command.stdin(Stdio::null());
        command
    }

    /// Runs kubectl and returns its standard output; it must succeed.
    pub fn kubectl(&self, arguments: &str) -> String {
        let output = self.kubectl_command(arguments).output().expect("run kubectl");
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
        let output = self.kubectl_command(arguments).output().expect("run kubectl");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(!output.status.success(), "kubectl {arguments} should fail; it said {}", text(&output.stdout));
        text(&output.stderr)
    }

    /// Runs `kubectl VERB -f -` with `manifest` as its input.
    pub fn kubectl_with(&self, arguments: &str, manifest: &str) -> Output {
        use std::io::Write;
        let mut command = self.kubectl_command(arguments);
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("run kubectl");
        child.stdin.take().expect("its input").write_all(manifest.as_bytes()).expect("write to kubectl");
        child.wait_with_output().expect("wait for kubectl")
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
            let output = self.kubectl_command(arguments).output().expect("run kubectl");
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

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the cluster:\n{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `coracle up` and waits for `ready`; the log when it ends before.
fn launch(dir: &Path, log: &Path, arguments: &[&str]) -> Result<Child, String> {
    let file = std::fs::File::options().create(true).append(true).open(log).expect("open the log");
    let mut child = Command::new(coracle())
        .args(["up", "--api-port", "0", "--registry-port", "0", "--data-dir"])
        .arg(dir.join("data"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(file)
        .spawn()
        .expect("run coracle");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    if lines.by_ref().map_while(Result::ok).any(|line| line == "ready") {
        return Ok(child);
    }
    let status = child.wait().expect("wait for our own child");
    Err(format!("{status}\n{}", std::fs::read_to_string(log).unwrap_or_default()))
}

/// Runs a command that must succeed; returns its output.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
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
    let begun = Instant::now();
    loop {
        let answer = http_get(url);
        if let Some((200, body)) = answer {
            return body;
        }
        assert!(begun.elapsed() < DEADLINE, "{url} still answers {answer:?} after {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A child that is killed when the test ends, with the lines it prints.
pub struct Background {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Background {
    /// Starts `command`.
    pub fn start(mut command: Command) -> Background {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("run it");
        let (send, lines) = std::sync::mpsc::sync_channel(1000);
        let output: Box<dyn Read + Send> = Box::new(child.stdout.take().expect("its output"));
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Background { child, lines }
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
