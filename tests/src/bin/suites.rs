//! Runs suites of client libraries and tools that nobody here wrote against a cluster of this build, and compares what each test
//! says with what is known of it (`tests/suites/NAME.txt`).
//!
//! ```console
//! $ cargo run --package coracle-tests --bin suites -- python CHECKOUT
//! $ cargo run --package coracle-tests --bin suites -- kubectl CHECKOUT --only pod_tests --update
//! ```
//!
//! `CHECKOUT` is a checkout of the suite's repository; the ledger says which, and the commit that was run. It is run as it is, with
//! the Python, Node.js or Go that is there; packages come from their registries.
//!
//! The exit code is 0 when nothing failed that is not known to, and all ran that is known to pass. `--update` writes what passes of
//! which the ledger does not know; what fails somebody has to look at. `--only TEXT` runs the tests that have it in their names
//! (`kubectl`: the one of this name; `controller-runtime`: the packages). `--output DIR` keeps the logs there, where nothing may be yet.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use coracle_tests::ledger::{FAILED, Ledger, PASSED, Results, add, add_ginkgo_results, add_missing};
use coracle_tests::{Cluster, kubectl, root};
use regex::Regex;

struct Suite {
    name: &'static str,
    /// What its pods name, each served by `examples/toolbox`.
    images: &'static [&'static str],
    /// Whether its pods run: some suites expect that there is nobody to run them.
    has_node: bool,
    run: fn(&Run) -> Result<Results, String>,
}

const SUITES: &[Suite] = &[
    Suite { name: "python", images: PYTHON_IMAGES, has_node: true, run: python },
    Suite { name: "javascript", images: &["busybox"], has_node: true, run: javascript },
    Suite { name: "controller-runtime", images: &[], has_node: false, run: controller_runtime },
    Suite { name: "oci", images: &[], has_node: true, run: oci },
    Suite { name: "kubectl", images: &[], has_node: false, run: test_cmd },
];

const PYTHON_IMAGES: &[&str] =
    &["busybox", "k8s.gcr.io/pause:2.0", "nginx", "nginx:1.7.9", "nginx:1.10", "nginx:1.15.4", "python"];

/// What a suite is run with.
struct Run {
    checkout: PathBuf,
    cluster: Cluster,
    /// A directory for logs, and what a suite writes besides.
    work: PathBuf,
    only: Option<String>,
}

impl Run {
    /// A command in a folder of the checkout that finds the cluster.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>, folder: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.checkout.join(folder)).env("KUBECONFIG", self.cluster.kubeconfig());
        command.stdin(Stdio::null());
        command
    }

    /// Whether it succeeded, and what it printed, which the log `name` keeps.
    fn output(&self, command: &mut Command, name: &str) -> Result<(bool, String), String> {
        let path = self.work.join(name.replace('/', "-") + ".log");
        let told = |e: std::io::Error| format!("{}: {e}", path.display());
        let log = std::fs::File::create(&path).map_err(told)?;
        command.stdout(log.try_clone().map_err(told)?).stderr(log);
        let status = command.status().map_err(|e| format!("{command:?}: {e}"))?;
        let text = std::fs::read(&path).map_err(told)?;
        Ok((status.success(), String::from_utf8_lossy(&text).into_owned()))
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }
}

/// Runs what prepares a suite.
fn prepare(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(e) => Err(format!("{command:?}: {e}")),
    }
}

/// Adds a test's result, by whether it passed.
fn told(results: &mut Results, name: &str, has_passed: bool, message: &str) {
    let (state, message) = if has_passed { (PASSED, "") } else { (FAILED, message) };
    add(results, name.to_owned(), state, message);
}

/// The tests of a log, whose lines match: `passed` is the state of one that did, and a line is the message.
fn results(log: &str, line: &str, passed: &str) -> Results {
    let line = Regex::new(line).expect("an expression of ours");
    let mut results = Results::new();
    for (text, found) in log.lines().filter_map(|text| Some((text, line.captures(text)?))) {
        told(&mut results, &found["name"], &found["state"] == passed, text);
    }
    results
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// `kubernetes-client/python`: what it tests against a cluster, also by asyncio and with the dynamic client.
fn python(run: &Run) -> Result<Results, String> {
    let folder = root().join("target/tools/suites-python");
    let python = folder.join("bin/python");
    if !python.is_file() {
        prepare(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    }
    let mut pip = run.command(&python, "");
    pip.args(["-m", "pip", "install", "--quiet", "pytest", "pytest-timeout"]);
    prepare(pip.args(["-r", "requirements.txt", "-r", "requirements-asyncio.txt"]))?;
    // It reads this file only.
    let home = run.work.join("home");
    let config = home.join(".kube/config");
    std::fs::create_dir_all(home.join(".kube")).map_err(|e| format!("{}: {e}", home.display()))?;
    std::fs::copy(run.cluster.kubeconfig(), &config).map_err(|e| format!("{}: {e}", config.display()))?;
    let mut pytest = run.command(&python, "");
    pytest.args(["-m", "pytest", "-rA", "--tb=short", "--timeout=300", "-p", "no:cacheprovider"]).env("HOME", home);
    pytest.args(run.only.iter().flat_map(|only| ["-k", only]));
    pytest.args(["kubernetes/e2e_test", "kubernetes/aio/e2e_test", "kubernetes/base/dynamic/test_client.py"]);
    let (_, log) = run.output(&mut pytest, "pytest")?;
    Ok(results(&log, r"^(?<state>PASSED|FAILED|ERROR) (?<name>\S+\.py\S*)", "PASSED"))
}

/// `kubernetes-client/javascript`: each integration test by itself, since its index ends with the first that fails. Needs Node.js 22.
fn javascript(run: &Run) -> Result<Results, String> {
    if !run.checkout.join("node_modules").is_dir() {
        prepare(run.command("npm", "").args(["ci", "--ignore-scripts"]))?;
    }
    let names = ["patchNamespace", "cpFromPod", "portForward", "watchPods", "informerReconnect"];
    let mut results = Results::new();
    for name in names.into_iter().filter(|name| run.is_wanted(name)) {
        let import = format!("import('./src/test/integration/{name}.js')");
        let script = format!("{import}.then((test) => test.default()).then(() => process.exit(0))");
        let mut tsx = run.command("node_modules/.bin/tsx", "");
        let (has_passed, log) = run.output(tsx.args(["-e", &script]), name)?;
        told(&mut results, name, has_passed, &tail(&log));
    }
    Ok(results)
}

/// `kubernetes-sigs/controller-runtime`: the packages that start an API server.
fn controller_runtime(run: &Run) -> Result<Results, String> {
    let packages = [
        "pkg/builder",
        "pkg/cache",
        "pkg/client",
        "pkg/cluster",
        "pkg/controller",
        "pkg/controller/controllerutil",
        "pkg/handler",
        "pkg/internal/controller",
        "pkg/internal/recorder",
        "pkg/manager",
        "pkg/manager/internal/integration",
        "pkg/metrics/filters",
        "pkg/reconcile",
        "pkg/source",
        "pkg/webhook",
    ];
    let mut results = Results::new();
    for package in packages.into_iter().filter(|package| run.is_wanted(package)) {
        // None cleans up: each takes a cluster for new.
        let cluster = Cluster::server("package");
        let report = run.work.join(package.replace('/', "-") + ".json");
        let mut go = run.command("go", "");
        go.args(["test", "-count=1", "-timeout=20m"]).arg(format!("./{package}")).args(["-args", "-ginkgo.no-color"]);
        go.arg(format!("-ginkgo.json-report={}", report.display()));
        go.env("USE_EXISTING_CLUSTER", "true").env("KUBECONFIG", cluster.kubeconfig());
        let (_, log) = run.output(&mut go, package)?;
        match std::fs::read(&report) {
            Ok(report) => add_ginkgo_results(&mut results, &format!("{package}: "), &report),
            Err(_) => told(&mut results, package, false, &tail(&log)),
        }
    }
    Ok(results)
}

/// `opencontainers/distribution-spec`: its conformance test, by the released specification.
fn oci(run: &Run) -> Result<Results, String> {
    let mut go = run.command("go", "conformance");
    go.args(["run", "-buildvcs=false", "."]).env("OCI_REGISTRY", run.cluster.registry()).env("OCI_TLS", "disabled");
    go.envs([("OCI_VERSION", "1.1"), ("OCI_REPO1", "conformance/repo1"), ("OCI_REPO2", "conformance/repo2")]);
    go.env("OCI_API_BLOBS_UPLOAD_CANCEL", "true").env("OCI_RESULTS_DIR", run.work.join("results"));
    go.envs(run.only.iter().map(|only| ("OCI_FILTER_TEST", only)));
    let (_, log) = run.output(&mut go, "conformance")?;
    let mut results = results(&log, r"^ +(?<name>OCI Conformance Test/.*): (?<state>Pass|FAIL|Error)$", "Pass");
    // A part is what its tests are.
    let names: Vec<String> = results.keys().cloned().collect();
    results.retain(|name, _| {
        !names.iter().any(|other| other.strip_prefix(name).is_some_and(|rest| rest.starts_with('/')))
    });
    Ok(results)
}

/// `kubernetes/kubernetes`, or the Go module `k8s.io/kubernetes`: kubectl's own scripts, `test/cmd`.
fn test_cmd(run: &Run) -> Result<Results, String> {
    let mut script = run.command("bash", "");
    script.arg(root().join("tests/suites/kubectl.sh")).arg(&run.checkout).arg(kubectl());
    script.arg(run.cluster.kubeconfig()).arg(&run.work).args(run.only.iter());
    let (has_ended, log) = run.output(&mut script, "test-cmd")?;
    let mut results = results(&log, "^(?<state>passed|failed) (?<name>.*)$", "passed");
    for (name, (state, message)) in &mut results {
        if state != PASSED {
            *message = tail(&std::fs::read_to_string(run.work.join("logs").join(name)).unwrap_or_default());
        }
    }
    told(&mut results, "what they have in common", has_ended, &tail(&log));
    Ok(results)
}

struct Arguments {
    suite: &'static Suite,
    checkout: PathBuf,
    only: Option<String>,
    output: Option<PathBuf>,
    update: bool,
}

fn arguments() -> Result<Arguments, String> {
    let (mut only, mut output, mut update, mut words) = (None, None, false, Vec::new());
    let mut given = std::env::args().skip(1);
    while let Some(word) = given.next() {
        let mut value = || given.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--only" => only = Some(value()?),
            "--output" => output = Some(PathBuf::from(value()?)),
            "--update" => update = true,
            _ => words.push(word),
        }
    }
    let names: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
    let usage = format!("NAME CHECKOUT [--only TEXT] [--output DIR] [--update]; the names are {}", names.join(", "));
    let [name, checkout] = words.as_slice() else { return Err(usage) };
    let suite = SUITES.iter().find(|suite| suite.name == name).ok_or(usage)?;
    let checkout = Path::new(checkout).canonicalize().map_err(|e| format!("{checkout}: {e}"))?;
    Ok(Arguments { suite, checkout, only, output, update })
}

fn ledger(suite: &Suite) -> Result<Ledger, String> {
    Ledger::read(root().join("tests/suites").join(suite.name).with_extension("txt"))
}

/// The file, package or module that a test is in, where its name says so.
fn group(name: &str) -> &str {
    name.split_once(':').map_or("all", |(group, _)| group)
}

fn main() -> ExitCode {
    match arguments().and_then(|arguments| run(&arguments)) {
        Ok(code) => code,
        Err(wrong) => {
            eprintln!("suites: {wrong}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let suite = arguments.suite;
    let mut ledger = ledger(suite)?;
    let scratch = tempfile::tempdir().map_err(|e| format!("a temporary directory: {e}"))?;
    let work = arguments.output.clone().unwrap_or_else(|| scratch.path().to_owned());
    std::fs::create_dir_all(&work).map_err(|e| format!("{}: {e}", work.display()))?;
    let work = work.canonicalize().map_err(|e| format!("{}: {e}", work.display()))?;
    // What another run has left there would be taken for this one's.
    if std::fs::read_dir(&work).map_err(|e| format!("{}: {e}", work.display()))?.next().is_some() {
        return Err(format!("--output: {} is not empty", work.display()));
    }
    let cluster = if suite.has_node { Cluster::start() } else { Cluster::server("suite") };
    for image in suite.images {
        cluster.push("toolbox", image);
    }
    let run = Run { checkout: arguments.checkout.clone(), cluster, work, only: arguments.only.clone() };
    let mut results = (suite.run)(&run)?;
    if run.only.is_none() {
        add_missing(&mut results, &ledger.passed());
    }
    Ok(ledger.judge(&results, arguments.update, group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_figures_of_every_ledger() {
        let page = std::fs::read_to_string(root().join("docs/conformance.md")).unwrap();
        for suite in SUITES {
            let ledger = ledger(suite).unwrap();
            let [passed, failed, out_of_reach, awaits] = ledger.counts(|_| "all")["all"];
            let row = format!("| {} | {passed} | {failed} | {out_of_reach} | {awaits} |", suite.name);
            assert!(passed > 0 && page.contains(&row), "docs/conformance.md lacks the row\n{row}");
            let mut reasons = std::collections::BTreeMap::<&str, usize>::new();
            for verdict in ledger.verdicts.values().filter(|verdict| *verdict != PASSED) {
                *reasons.entry(verdict).or_default() += 1;
            }
            for (verdict, count) in reasons {
                let row = format!("| {} | {verdict} | {count} |", suite.name);
                assert!(page.contains(&row), "docs/conformance.md lacks the row\n{row}");
            }
        }
    }

    #[test]
    fn of_tests_with_one_name_the_one_that_failed_is_told() {
        let log = "  T/a: Pass\n  T/a: FAIL\n  T/a: Pass\n  T/b: Pass\n  T/c: Skip\n";
        let results = results(log, r"^ +(?<name>T/.*): (?<state>Pass|FAIL|Error)$", "Pass");
        let states: Vec<_> = results.iter().map(|(name, (state, _))| (name.as_str(), state.as_str())).collect();
        assert_eq!(states, [("T/a", FAILED), ("T/b", PASSED)]);
    }
}
