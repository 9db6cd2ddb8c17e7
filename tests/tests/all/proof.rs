//! A short proof with real processes (`tests/src/proof`): three servers under faults.

use std::process::Command;

#[test]
fn three_servers_under_faults_keep_what_they_promise() {
    // In namespaces of its own: it makes a network.
    let mut proof = Command::new(env!("CARGO_BIN_EXE_proof"));
    let output = proof.args(["--seconds", "20", "--seed", "8"]).output().expect("run the proof");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(output.status.success() && said.contains("nothing was wrong"), "{}: {said}", output.status);
}
