//! Runs Kubernetes' own end-to-end specs against a cluster of this build, and compares what each said with the ledger.
//!
//! ```console
//! $ cargo run --package coracle-tests --bin conformance                       # the fast subset: tests/conformance/specs.txt
//! $ cargo run --package coracle-tests --bin conformance -- --passed           # all that the ledger says to pass
//! $ cargo run --package coracle-tests --bin conformance -- --focus 'Garbage collector' --update
//! $ cargo run --package coracle-tests --bin conformance -- --kubeconfig FILE --registry HOST:PORT
//! ```
//!
//! The specs are linked from Kubernetes' Go module (`tests/conformance`), which takes some minutes the first time; `CORACLE_E2E_TEST`
//! and `CORACLE_GINKGO` name programs that are built already. Their pods name images for which `examples/toolbox` stands in.
//!
//! There is one node beside the server's own, for the specs that want two (`--workers N`).
//!
//! The ledger, `tests/conformance/ledger.txt`, has a line for every spec of the conformance class: `passed`, `failed`,
//! `out of reach: FEATURE` (what of Linux it needs) or `awaits: PART` (what is not built yet). The exit code is 0 when every
//! spec that was asked for ran, and none failed that is not known to: one that did not run has failed, whatever is known of it. `--update` writes what has changed; that a spec which
//! has passed fails is never written, so it stays a failure until somebody has looked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use coracle_tests::ledger::{Ledger, Results, add_ginkgo_results, add_missing};
use coracle_tests::{Cluster, STAMP, go_program, kubectl, root};

/// The images of the suite, each served by `examples/toolbox`.
const IMAGES: &[&str] = &[
    "e2e-test-images/agnhost:2.55",
    "e2e-test-images/agnhost:2.66.1",
    "e2e-test-images/busybox:1.37.0-2",
    "e2e-test-images/glibc-dns-testing:2.1.1",
    "e2e-test-images/kitten:1.8",
    "e2e-test-images/nautilus:1.8",
    "e2e-test-images/nginx:1.27.0-2",
    "e2e-test-images/nginx:1.28.0-2",
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

const USAGE: &str = "there are --passed or --all, --focus REGEX, --names FILE, --procs N, --timeout TIME, --output DIR, --update, --workers N, \
     --kubeconfig FILE with --registry HOST:PORT";

#[derive(Default)]
struct Arguments {
    kubeconfig: Option<PathBuf>,
    registry: Option<String>,
    focus: Option<String>,
    names: Option<PathBuf>,
    processes: Option<String>,
    timeout: Option<String>,
    output: Option<PathBuf>,
    passed: bool,
    all: bool,
    update: bool,
    /// Nodes beside the server's own; one, when it is not said.
    workers: Option<usize>,
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
            "--timeout" => parsed.timeout = Some(value()?),
            "--output" => parsed.output = Some(PathBuf::from(value()?)),
            "--workers" => {
                parsed.workers = Some(value()?.parse().map_err(|e| format!("--workers: {e}"))?);
            }
            "--passed" => parsed.passed = true,
            "--all" => parsed.all = true,
            "--update" => parsed.update = true,
            other => return Err(format!("{other}: {USAGE}")),
        }
    }
    let is_another = parsed.kubeconfig.is_some();
    if is_another != parsed.registry.is_some() || (is_another && parsed.workers.is_some()) {
        return Err(format!("a cluster that runs has nodes of its own, and a registry with the images: {USAGE}"));
    }
    let ways = [parsed.passed, parsed.all, parsed.focus.is_some(), parsed.names.is_some()];
    match ways.iter().filter(|is_given| **is_given).count() {
        0 | 1 => Ok(parsed),
        _ => Err(format!("which specs is said twice: {USAGE}")),
    }
}

/// The names of the specs of a file, one a line.
fn names(file: &Path) -> Result<BTreeSet<String>, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let names: BTreeSet<String> = lines.map(str::to_owned).collect();
    // A focus on none would be one on all.
    if names.is_empty() { Err(format!("{} names no spec", file.display())) } else { Ok(names) }
}

/// A regular expression of Go that matches `text` alone.
fn escape(text: &str) -> String {
    text.chars().flat_map(|c| (!c.is_alphanumeric() && c != ' ').then_some('\\').into_iter().chain([c])).collect()
}

fn ledger() -> Result<Ledger, String> {
    Ledger::read(root().join("tests/conformance/ledger.txt"))
}

/// The special interest group of a spec.
fn group(name: &str) -> &str {
    name.split(']').next().unwrap_or_default().trim_start_matches('[')
}

fn main() -> ExitCode {
    let (arguments, mut ledger) = match arguments().and_then(|arguments| Ok((arguments, ledger()?))) {
        Ok(both) => both,
        Err(wrong) => {
            eprintln!("conformance: {wrong}");
            return ExitCode::from(2);
        }
    };
    let work = tempfile::tempdir().expect("a temporary directory");
    let work = arguments.output.clone().unwrap_or_else(|| work.path().to_owned());
    std::fs::create_dir_all(&work).expect("make the directory for the log");
    let wanted = match (&arguments.focus, &arguments.names) {
        (Some(_), _) => Ok(BTreeSet::new()),
        (None, Some(file)) => names(file),
        (None, None) if arguments.passed => Ok(ledger.passed()),
        (None, None) if arguments.all => Ok(ledger.verdicts.keys().cloned().collect()),
        (None, None) => names(&root().join("tests/conformance/specs.txt")),
    };
    let results = match wanted.and_then(|wanted| run(&arguments, &wanted, &work)) {
        Ok(results) => results,
        Err(wrong) => {
            eprintln!("conformance: {wrong}");
            return ExitCode::FAILURE;
        }
    };
    ledger.judge(&results, arguments.update, group)
}

fn program(variable: &str, name: &str, build: &[&str], package: &str) -> PathBuf {
    std::env::var_os(variable).map(PathBuf::from).unwrap_or_else(|| go_program("conformance", name, build, package))
}

fn run(arguments: &Arguments, wanted: &BTreeSet<String>, work: &Path) -> Result<Results, String> {
    let suite = program("CORACLE_E2E_TEST", "e2e.test", &["test", "-c", "-ldflags", STAMP], ".");
    let package = "github.com/onsi/ginkgo/v2/ginkgo";
    let ginkgo = program("CORACLE_GINKGO", "ginkgo", &["build", "-ldflags", "-s -w"], package);
    let own = arguments.kubeconfig.is_none().then(Cluster::start);
    let workers = own.iter().flat_map(|cluster| {
        (0..arguments.workers.unwrap_or(1)).map(|number| cluster.join(&format!("worker-{number}")))
    });
    let _workers: Vec<_> = workers.collect();
    if let Some(cluster) = &own {
        for image in IMAGES {
            cluster.push("toolbox", image);
        }
    }
    let kubeconfig = own.as_ref().map(Cluster::kubeconfig).or(arguments.kubeconfig.clone()).expect("one of both");
    let registry = arguments.registry.clone().or_else(|| own.as_ref().map(Cluster::registry));
    let focus = arguments.focus.clone().unwrap_or_else(|| {
        format!("^(?:.*{})", wanted.iter().map(|name| escape(name)).collect::<Vec<_>>().join("|.*"))
    });
    let mut command = Command::new(ginkgo);
    command.arg(format!("--procs={}", arguments.processes.as_deref().unwrap_or("4")));
    command.arg(format!("--timeout={}", arguments.timeout.as_deref().unwrap_or("3h")));
    command.args(["--no-color", "--keep-going", "--json-report=report.json"]);
    command.arg(format!("--output-dir={}", work.display()));
    command.args(arguments.focus.is_some().then_some("--label-filter=Conformance"));
    command.arg(format!("--focus={focus}")).arg(suite).arg("--");
    command.arg(format!("--kubeconfig={}", kubeconfig.display())).arg("--provider=skeleton");
    command.arg(format!("--kubectl-path={}", kubectl().display()));
    command.args(["--node-schedulable-timeout=30s", "--system-pods-startup-timeout=30s"]);
    command.env("KUBECONFIG", &kubeconfig).current_dir(work);
    if let Some(registry) = registry {
        let file = work.join("registries.yaml");
        let lines: String = REGISTRIES.iter().map(|(name, folder)| format!("{name}: {registry}/{folder}\n")).collect();
        std::fs::write(&file, lines).expect("write the registries");
        command.env("KUBE_TEST_REPO_LIST", file);
    }
    let report = work.join("report.json");
    forget(&report)?;
    let log = std::fs::File::create(work.join("log")).expect("a log");
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log")).stderr(log);
    command.status().expect("run ginkgo");
    let Ok(text) = std::fs::read(report) else {
        let log = std::fs::read_to_string(work.join("log")).unwrap_or_default();
        return Err(format!("the suite did not run:\n{log}"));
    };
    let mut results = Results::new();
    add_ginkgo_results(&mut results, "", &text);
    add_missing(&mut results, wanted);
    Ok(results)
}

/// Takes away what another run has reported into the same directory: of a suite that does not come to run, nothing is known.
fn forget(report: &Path) -> Result<(), String> {
    match std::fs::remove_file(report) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {error}", report.display())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_knows_every_spec_of_the_fast_subset_to_pass() {
        let ledger = ledger().unwrap();
        let subset = names(&root().join("tests/conformance/specs.txt")).unwrap();
        let passed = ledger.passed();
        let others: Vec<_> = subset.difference(&passed).collect();
        assert!(others.is_empty(), "they do not pass, or there are none such: {others:#?}");
        assert_eq!(ledger.verdicts.len(), 462, "the suite of Kubernetes 1.37 has as many conformance specs");
    }

    #[test]
    fn the_page_has_the_figures_of_the_ledger() {
        let page = std::fs::read_to_string(root().join("docs/conformance.md")).unwrap();
        for (group, [passed, failed, out_of_reach, awaits]) in ledger().unwrap().counts(group) {
            let row = format!("| {group} | {passed} | {failed} | {out_of_reach} | {awaits} |");
            assert!(page.contains(&row), "docs/conformance.md lacks the row\n{row}");
        }
    }

    #[test]
    fn a_file_that_names_nothing_is_not_taken_for_all_specs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# nothing yet\n\n").unwrap();
        assert!(names(file.path()).unwrap_err().ends_with("names no spec"));
        std::fs::write(file.path(), "# one\n [a] one \n").unwrap();
        assert_eq!(names(file.path()), Ok(BTreeSet::from(["[a] one".to_owned()])));
    }

    #[test]
    fn what_another_run_has_reported_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let report = dir.path().join("report.json");
        forget(&report).unwrap();
        std::fs::write(&report, "[]").unwrap();
        forget(&report).unwrap();
        assert!(!report.exists());
        std::fs::create_dir(&report).unwrap();
        assert!(forget(&report).is_err(), "it cannot be taken for this run's");
    }
}
