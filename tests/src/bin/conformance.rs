//! Runs Kubernetes' own end-to-end specs against a cluster of this build, and prints what each said.
//!
//! ```console
//! $ cargo run --package coracle-tests --bin conformance                       # the specs of tests/conformance/specs.txt
//! $ cargo run --package coracle-tests --bin conformance -- --focus 'Garbage collector'
//! $ cargo run --package coracle-tests --bin conformance -- --kubeconfig FILE --registry HOST:PORT
//! ```
//!
//! The specs are linked from Kubernetes' Go module (`tests/conformance`), which takes some minutes the first time. Their pods
//! name images for which `examples/standin` stands in. The exit code is 0 when every spec passed and none was missing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use coracle_tests::{Cluster, go_program, kubectl, root};
use serde_json::Value;

/// The images of the suite, each served by `examples/standin`.
const IMAGES: &[&str] = &[
    "e2e-test-images/agnhost:2.55",
    "e2e-test-images/agnhost:2.66.1",
    "e2e-test-images/busybox:1.37.0-2",
    "e2e-test-images/nginx:1.27.0-2",
    "e2e-test-images/nginx:1.28.0-2",
    "e2e-test-images/nonroot:1.5",
    "library/pause:3.10.2",
];

/// Where the suite looks for its images: its names of registries, and the folders we keep them in.
const REGISTRIES: &[(&str, &str)] = &[
    ("promoterE2eRegistry", "e2e-test-images"),
    ("gcRegistry", "library"),
    ("dockerLibraryRegistry", "docker-library"),
    ("privateRegistry", "k8s-authenticated-test"),
    ("sigStorageRegistry", "sig-storage"),
];

#[derive(Default)]
struct Arguments {
    kubeconfig: Option<PathBuf>,
    registry: Option<String>,
    focus: Option<String>,
    names: Option<PathBuf>,
    processes: Option<String>,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments::default();
    let mut given = std::env::args().skip(1);
    while let Some(flag) = given.next() {
        let mut value = || given.next().ok_or(format!("{flag} needs a value"));
        match flag.as_str() {
            "--kubeconfig" => parsed.kubeconfig = Some(PathBuf::from(value()?)),
            "--registry" => parsed.registry = Some(value()?),
            "--focus" => parsed.focus = Some(value()?),
            "--names" => parsed.names = Some(PathBuf::from(value()?)),
            "--procs" => parsed.processes = Some(value()?),
            other => {
                return Err(format!(
                    "{other}: there are --focus REGEX, --names FILE, --procs N, --kubeconfig FILE with --registry HOST:PORT"
                ));
            }
        }
    }
    Ok(parsed)
}

/// The names of the specs of a file, one a line.
fn names(file: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// A regular expression of Go that matches `text` alone.
fn escape(text: &str) -> String {
    text.chars().flat_map(|c| (!c.is_alphanumeric() && c != ' ').then_some('\\').into_iter().chain([c])).collect()
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(wrong) => {
            eprintln!("conformance: {wrong}");
            return ExitCode::from(2);
        }
    };
    let suite = go_program("conformance", "e2e.test", &["test", "-c", "-ldflags", "-s -w"], ".");
    let ginkgo =
        go_program("conformance", "ginkgo", &["build", "-ldflags", "-s -w"], "github.com/onsi/ginkgo/v2/ginkgo");
    let own = arguments.kubeconfig.is_none().then(Cluster::start);
    if let Some(cluster) = &own {
        for image in IMAGES {
            cluster.push("standin", image);
        }
    }
    let kubeconfig = own.as_ref().map(Cluster::kubeconfig).or(arguments.kubeconfig).expect("one of both");
    let registry = arguments.registry.or_else(|| own.as_ref().map(Cluster::registry));

    let work = tempfile::tempdir().expect("a temporary directory");
    let wanted = match (&arguments.focus, arguments.names) {
        (Some(_), None) => BTreeSet::new(),
        (_, Some(file)) => names(&file),
        (None, None) => names(&root().join("tests/conformance/specs.txt")),
    };
    let focus = arguments.focus.unwrap_or_else(|| {
        format!("^(?:.*{})", wanted.iter().map(|name| escape(name)).collect::<Vec<_>>().join("|.*"))
    });
    let mut command = Command::new(ginkgo);
    command.arg(format!("--procs={}", arguments.processes.as_deref().unwrap_or("4")));
    command.args(["--timeout=60m", "--no-color", "--keep-going", "--json-report=report.json"]);
    command.arg(format!("--output-dir={}", work.path().display()));
    command.arg(format!("--focus={focus}")).arg(suite).arg("--");
    command.arg(format!("--kubeconfig={}", kubeconfig.display())).arg("--provider=skeleton");
    command.arg(format!("--kubectl-path={}", kubectl().display()));
    command.args(["--node-schedulable-timeout=30s", "--system-pods-startup-timeout=30s"]);
    command.env("KUBECONFIG", &kubeconfig).current_dir(work.path());
    if let Some(registry) = registry {
        let file = work.path().join("registries.yaml");
        let lines: String = REGISTRIES.iter().map(|(name, folder)| format!("{name}: {registry}/{folder}\n")).collect();
        std::fs::write(&file, lines).expect("write the registries");
        command.env("KUBE_TEST_REPO_LIST", file);
    }
    let log = std::fs::File::create(work.path().join("log")).expect("a log");
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log")).stderr(log);
    command.status().expect("run ginkgo");
    report(work.path(), &wanted)
}

/// Prints the result of every spec; a spec that was asked for and did not run has failed.
fn report(work: &Path, wanted: &BTreeSet<String>) -> ExitCode {
    let Ok(text) = std::fs::read(work.join("report.json")) else {
        eprintln!("the suite did not run:\n{}", std::fs::read_to_string(work.join("log")).unwrap_or_default());
        return ExitCode::FAILURE;
    };
    let suites: Value = serde_json::from_slice(&text).expect("ginkgo writes JSON");
    let mut results: BTreeMap<String, (String, String)> = BTreeMap::new();
    for spec in suites[0]["SpecReports"].as_array().into_iter().flatten() {
        let state = spec["State"].as_str().unwrap_or_default();
        let ran = !matches!(state, "skipped" | "pending" | "");
        if !ran || (spec["LeafNodeType"] != "It" && state == "passed") {
            continue;
        }
        let mut name: Vec<&str> =
            spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        name.push(spec["LeafNodeText"].as_str().unwrap_or_default());
        let message = spec["Failure"]["Message"].as_str().unwrap_or_default();
        results.insert(name.join(" "), (state.to_owned(), message.to_owned()));
    }
    for name in wanted {
        results.entry(name.clone()).or_insert_with(|| ("missing".to_owned(), "no such spec ran".to_owned()));
    }
    for (name, (state, message)) in &results {
        println!("{state:8} {name}");
        if state != "passed" {
            println!("         {}", message.replace('\n', "\n         "));
        }
    }
    let passed = results.values().filter(|(state, _)| state == "passed").count();
    let failed = results.len() - passed;
    println!("{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
