//! Our checker of histories says what Porcupine says, of histories that happened and of others.

use std::io::Write as _;
use std::process::{Command, Stdio};

use coracle_tests::go_program;
use coracle_tests::linearizability::{Kind, Operation, Outcome, Verdict, check};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

/// Histories of each sort.
const COUNT: u64 = 300;

/// A history that happened: operations of several clients at once, each done at some moment between its call and its return.
/// With a `fault` one of them was not done, or done twice, or told something else.
fn history(seed: u64, fault: bool) -> Vec<Operation> {
    let mut random = StdRng::seed_from_u64(seed);
    let (clients, rounds) = (random.random_range(2..6_usize), random.random_range(3..9_u64));
    let mut operations = Vec::new();
    // Times are apart, so that no two checkers can see another order in them.
    let mut free = vec![0_u64; clients];
    for number in 0..clients as u64 * rounds {
        let client = random.random_range(0..clients);
        let called = free[client] + random.random_range(1..20) * 1_000 + number * 3;
        let at = called + random.random_range(1..20) * 1_000 + 1;
        let returned = at + random.random_range(1..20) * 1_000 + 1;
        free[client] = returned;
        let value = number + 1;
        let kind = match random.random_range(0..10) {
            0..3 => Kind::Create(value),
            3..5 => Kind::Update { expected: random.random_range(0..=number), value },
            5 => Kind::Patch(value),
            6 => Kind::Delete,
            _ => Kind::Get,
        };
        let is_unknown = kind != Kind::Get && random.random_bool(0.15);
        // What is unknown happens at any time, or never.
        let at = match is_unknown {
            true if random.random_bool(0.3) => None,
            true => Some(called + random.random_range(1..200) * 1_000 + 1),
            false => Some(at),
        };
        operations.push((Operation { client, kind, called, returned, outcome: Outcome::Unknown }, at, is_unknown));
    }
    let victim = random.random_range(0..operations.len());
    let kind_of_fault = random.random_range(0..3);
    let mut order: Vec<(u64, usize)> = Vec::new();
    for (number, (operation, at, _)) in operations.iter().enumerate() {
        let Some(at) = at else { continue };
        order.push((*at, number));
        if fault && number == victim && kind_of_fault == 0 {
            // It happens once more, after it has returned.
            order.push((operation.returned + 50_000, number));
        }
    }
    order.sort_unstable();
    let mut state: Option<u64> = None;
    for (_, number) in order {
        let (operation, _, is_unknown) = &mut operations[number];
        let (then, outcome) = match (operation.kind, state) {
            (Kind::Create(value), None) => (Some(value), Outcome::Done),
            (Kind::Create(_), _) => (state, Outcome::Exists),
            (_, None) => (None, Outcome::Missing),
            (Kind::Get, Some(value)) => (state, Outcome::Found(value)),
            (Kind::Update { expected, .. }, Some(there)) if expected != there => (state, Outcome::Conflict),
            (Kind::Update { value, .. } | Kind::Patch(value), _) => (Some(value), Outcome::Done),
            (Kind::Delete, _) => (None, Outcome::Done),
        };
        // One that is acknowledged and lost.
        let is_lost = fault && number == victim && kind_of_fault == 1;
        state = if is_lost { state } else { then };
        if !*is_unknown && operation.outcome == Outcome::Unknown {
            operation.outcome = outcome;
        }
    }
    if fault && kind_of_fault == 2 {
        let told = [Outcome::Done, Outcome::Missing, Outcome::Found(random.random_range(0..20)), Outcome::Exists];
        operations[victim].0.outcome = told[random.random_range(0..told.len())];
        operations[victim].2 = false;
    }
    let end = u64::MAX / 2;
    let all = operations.into_iter().map(|(operation, _, is_unknown)| {
        let returned = if is_unknown { end } else { operation.returned };
        Operation { returned, ..operation }
    });
    all.collect()
}

/// An operation as the Go program reads it.
fn to_json(operation: &Operation) -> Value {
    let (kind, value, expected) = match operation.kind {
        Kind::Create(value) => ("create", value, 0),
        Kind::Update { expected, value } => ("update", value, expected),
        Kind::Patch(value) => ("patch", value, 0),
        Kind::Delete => ("delete", 0, 0),
        Kind::Get => ("get", 0, 0),
    };
    let outcome = match operation.outcome {
        Outcome::Done => "done".to_owned(),
        Outcome::Exists => "exists".to_owned(),
        Outcome::Missing => "missing".to_owned(),
        Outcome::Conflict => "conflict".to_owned(),
        Outcome::Unknown => "unknown".to_owned(),
        Outcome::Found(value) => value.to_string(),
    };
    json!({
        "client": operation.client, "kind": kind, "value": value, "expected": expected,
        "called": operation.called, "returned": operation.returned, "outcome": outcome,
    })
}

/// What Porcupine says of each.
fn porcupine(histories: &[Vec<Operation>]) -> Vec<String> {
    let program = go_program("porcupine", "porcupine", &["build", "-ldflags", "-s -w"], ".");
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("run porcupine");
    let all: Vec<Vec<Value>> = histories.iter().map(|history| history.iter().map(to_json).collect()).collect();
    let mut input = child.stdin.take().expect("piped");
    // It says nothing before it has read everything.
    input.write_all(json!({"histories": all}).to_string().as_bytes()).expect("write the histories");
    drop(input);
    let output = child.wait_with_output().expect("wait for porcupine");
    assert!(output.status.success(), "porcupine: {}", output.status);
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn our_verdicts_are_those_of_porcupine() {
    let good: Vec<_> = (0..COUNT).map(|seed| history(seed, false)).collect();
    let bad: Vec<_> = (0..COUNT).map(|seed| history(seed, true)).collect();
    for (seed, history) in good.iter().enumerate() {
        assert_eq!(check(history), Verdict::Linearizable, "history {seed} happened");
    }
    let all: Vec<_> = good.into_iter().chain(bad).collect();
    let theirs = porcupine(&all);
    assert_eq!(theirs.len(), all.len());
    let mut impossible = 0;
    for (number, (history, theirs)) in all.iter().zip(&theirs).enumerate() {
        let ours = check(history);
        let word = match &ours {
            Verdict::Linearizable => "ok",
            Verdict::Impossible(_) => "illegal",
            Verdict::Undecided => "unknown",
        };
        let lines: Vec<String> = history.iter().map(ToString::to_string).collect();
        assert_eq!(word, theirs, "history {number}: {ours:?}\n{}", lines.join("\n"));
        impossible += u64::from(word == "illegal");
    }
    // Some of what is planted can have happened all the same: a write that is lost and that nobody reads.
    println!("{impossible} of {} histories are impossible", all.len());
    assert!(impossible > COUNT / 4, "{impossible}");
}
