//! A request falls downstairs: each module names only those below it.

use std::path::Path;

/// From the ground up; modules of one line may name each other.
const STAIRS: &[&[&str]] = &[
    &["apart", "current", "identity", "limits"],
    &["outward"],
    &["request"],
    &["audit"],
    &["config"],
    &["hooks"],
    &["policies"],
    &["fairness"],
    &["aggregation", "shown"],
    &["catalog"],
    &["store"],
    &["roles"],
    &["cluster"],
    &["nodes"],
    &["callout"],
    &["conversion"],
    &["answer"],
    &["authz"],
    &["authn"],
    &["admission"],
    &["verbs"],
    &["subresources"],
    &["usage"],
    &["mesh"],
    &["relay"],
    &["discovery"],
    &["openapi", "health", "layers"],
    &["server"],
    &["duties"],
    &["apiservices", "flowschemas"],
    &["bootstrap", "definitions", "router", "typechecks"],
    &["in_process"],
    &["lib"],
];

fn step(module: &str) -> usize {
    STAIRS.iter().position(|names| names.contains(&module)).unwrap_or_else(|| panic!("{module} stands on no step"))
}

fn sources(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("the sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn modules_name_only_what_is_below_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let (mut arrows, mut wrong) = (0, Vec::new());
    for file in files {
        let below = file.strip_prefix(&root).expect("a source");
        let first = below.iter().next().and_then(|name| name.to_str()).expect("a name").trim_end_matches(".rs");
        let text = std::fs::read_to_string(&file).expect("a source");
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for (at, _) in line.match_indices("crate::") {
                let named = line[at + 7..].split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
                // Several at once, or what the crate itself shows.
                if named.is_empty() || named.starts_with(char::is_uppercase) || first == "lib" {
                    continue;
                }
                arrows += 1;
                if step(named) > step(first) || named != first && step(named) == step(first) {
                    wrong.push(format!("{}: {named}", below.display()));
                }
            }
        }
    }
    assert!(arrows > 100, "the arrows are found");
    assert_eq!(wrong, Vec::<String>::new());
}
