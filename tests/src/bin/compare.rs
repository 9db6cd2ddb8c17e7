//! Asks Kubernetes' own API server and ours the same, about every kind and every field of it, and prints where the answers differ.
//!
//! ```console
//! $ cargo run --package coracle-tests --bin compare                                  # builds the reference first, some minutes, once
//! $ cargo run --package coracle-tests --bin compare -- --reference KUBECONFIG        # takes one that runs
//! $ cargo run --package coracle-tests --bin compare -- --only 'v1 Pod: create'
//! ```
//!
//! The reference is linked from Kubernetes' Go module (`tests/reference`). What is meant to differ is listed in
//! `tests/requests/differences.txt`. The exit code is 0 when nothing else differs and the list has no line too many.

use std::process::ExitCode;

use coracle_tests::compare::{self, Options};

fn options() -> Result<Options, String> {
    let mut options = Options::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--reference" => options.reference = Some(value()?.into()),
            "--only" => options.only = value()?,
            _ => return Err(format!("{word:?} is not known; there are --reference KUBECONFIG and --only TEXT")),
        }
    }
    Ok(options)
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(wrong) => {
            eprintln!("compare: {wrong}");
            return ExitCode::from(2);
        }
    };
    let outcome = compare::run(&options).await;
    for difference in &outcome.different {
        println!("### {}\n{}", difference.title, difference.text);
    }
    for line in &outcome.stale {
        println!("differences.txt has a line that nothing differs by: {line}");
    }
    let (same, meant, different) = (outcome.same, outcome.meant, outcome.different.len());
    println!("{same} the same, {meant} meant to differ, {different} differ");
    if different == 0 && outcome.stale.is_empty() && same > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
