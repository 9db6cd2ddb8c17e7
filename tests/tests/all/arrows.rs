//! The arrows between the packages are the architecture (ARCHITECTURE.md); the manifests must not have others.

use std::collections::BTreeSet;

use coracle_tests::root;

/// Package, folder, and what of ours it may use.
const ARROWS: &[(&str, &str, &[&str])] = &[
    ("api", "api", &[]),
    ("gateway", "api/gateway", &["api"]),
    // How whoever watches reads what it watches.
    ("tolerant", "api/tolerant", &[]),
    ("keyspace", "control/keyspace", &[]),
    ("base2histogram", "control/keyspace/base2histogram", &[]),
    ("apiserver", "control/apiserver", &["api", "gateway", "keyspace"]),
    ("registry", "control/registry", &[]),
    ("scheduler", "control/scheduler", &["api", "scripted", "tolerant"]),
    ("controllers", "control/controllers", &["api", "gateway", "scripted", "tolerant"]),
    // An API server for tests of the two above; nothing but their tests may use it.
    ("scripted", "control/scripted", &[]),
    ("server", "control/server", &["api", "apiserver", "controllers", "keyspace", "registry", "scheduler"]),
    // Tests and nothing else, of the four above.
    ("simulation", "control/simulation", &["apiserver", "keyspace", "server"]),
    ("engine", "runtime/engine", &[]),
    ("artifact", "runtime/artifact", &[]),
    (
        "node",
        "runtime/node",
        &["api", "artifact", "discovery", "dns", "engine", "gateway", "policy", "proxy", "tolerant"],
    ),
    ("policy", "mesh/policy", &["api"]),
    ("dns", "mesh/dns", &["discovery"]),
    ("discovery", "mesh/discovery", &["api", "gateway", "policy"]),
    ("proxy", "mesh/proxy", &["api", "discovery", "policy"]),
    ("sdk", "sdk", &["node", "server"]),
    ("cli", "cli", &["sdk"]),
];

fn manifest(folder: &str) -> String {
    let path = root().join(folder).join("Cargo.toml");
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Names at the beginning of the lines of the sections of dependencies.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut inside = false;
    let mut names = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.contains("dependencies");
        } else if inside {
            names.insert(line.split(['.', '=', ' ']).next().unwrap_or_default().to_owned());
        }
    }
    names
}

#[test]
fn no_package_uses_another_that_the_architecture_does_not_allow() {
    for (package, folder, allowed) in ARROWS {
        let used = dependencies(&manifest(folder));
        let ours: Vec<&str> = used.iter().filter_map(|name| name.strip_prefix("coracle-")).collect();
        for used in ours {
            assert!(allowed.contains(&used), "{package} must not use {used}: see the arrows in ARCHITECTURE.md");
        }
    }
}

#[test]
fn every_package_of_the_workspace_is_among_the_arrows() {
    let root = manifest(".");
    let members = root.split("members = [").nth(1).and_then(|rest| rest.split(']').next()).expect("members");
    for member in members.split('"').skip(1).step_by(2).filter(|member| *member != "tests") {
        assert!(ARROWS.iter().any(|(_, folder, _)| folder == &member), "{member} has no arrows");
    }
}

#[test]
fn a_heavy_dependency_is_known_to_one_package_only() {
    for (dependency, owner) in [
        ("openraft", "keyspace"),
        ("redb", "keyspace"),
        ("wasmtime", "engine"),
        ("oci-client", "artifact"),
        ("simple-dns", "dns"),
    ] {
        for (package, folder, _) in ARROWS.iter().filter(|(package, ..)| *package != owner) {
            let text = manifest(folder);
            // The registry's tests push with a real client.
            let text = text.split("[dev-dependencies]").next().unwrap_or_default();
            assert!(
                !dependencies(text).contains(dependency),
                "{package} must not know {dependency}; only {owner} does"
            );
        }
    }
}

#[test]
fn the_vocabulary_does_no_input_and_output() {
    for folder in ["api", "api/gateway"] {
        let used = dependencies(&manifest(folder));
        for forbidden in ["tokio", "hyper", "axum", "kube", "rand", "tracing"] {
            assert!(!used.contains(forbidden), "{folder} must not use {forbidden}");
        }
    }
}
