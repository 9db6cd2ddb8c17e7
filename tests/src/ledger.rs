//! What is known of every test of a suite that nobody here wrote, kept in a file of the tree, and what a run's results are beside it.
//!
//! A line is `VERDICT | NAME`. A verdict is `passed`, `failed`, `out of reach: FEATURE` (what of Linux or of the suite's own cluster
//! it needs) or `awaits: PART` (what is not built yet).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;

/// The state, and the verdict, of a test that passes.
pub const PASSED: &str = "passed";
/// Of one that does not.
pub const FAILED: &str = "failed";

/// The state of a test that was asked for and did not run.
pub const MISSING: &str = "missing";

/// The state of every test that ran, and why it failed.
pub type Results = BTreeMap<String, (String, String)>;

/// A ledger.
pub struct Ledger {
    path: PathBuf,
    head: String,
    /// By the tests' names.
    pub verdicts: BTreeMap<String, String>,
}

impl Ledger {
    /// Reads a ledger's file.
    pub fn read(path: PathBuf) -> Result<Ledger, String> {
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ledger::parse(path, &text)
    }

    fn parse(path: PathBuf, text: &str) -> Result<Ledger, String> {
        let mut ledger = Ledger { path, head: String::new(), verdicts: BTreeMap::new() };
        for line in text.lines() {
            if line.starts_with('#') {
                ledger.head += &format!("{line}\n");
                continue;
            }
            let (verdict, name) = line.split_once(" | ").ok_or(format!("not \"VERDICT | NAME\": {line}"))?;
            let verdict = verdict.trim();
            let is_known = matches!(verdict, PASSED | FAILED)
                || ["out of reach: ", "awaits: "].iter().any(|start| verdict.starts_with(start));
            if !is_known {
                return Err(format!("{verdict:?} is no verdict: {line}"));
            }
            if ledger.verdicts.insert(name.to_owned(), verdict.to_owned()).is_some() {
                return Err(format!("twice: {name}"));
            }
        }
        Ok(ledger)
    }

    /// The tests that pass.
    pub fn passed(&self) -> BTreeSet<String> {
        self.verdicts.iter().filter(|(_, verdict)| *verdict == PASSED).map(|(name, _)| name.clone()).collect()
    }

    /// Whether a test may fail: it is known to.
    fn may_fail(&self, name: &str) -> bool {
        self.verdicts.get(name).is_some_and(|verdict| verdict != PASSED)
    }

    fn text(&self) -> String {
        let lines = self.verdicts.iter().map(|(name, verdict)| format!("{verdict} | {name}\n"));
        self.head.clone() + &lines.collect::<String>()
    }

    /// By the group that `group` finds in a name, and for `all`: how many passed, failed, are out of reach, await a part.
    pub fn counts(&self, group: fn(&str) -> &str) -> BTreeMap<&str, [usize; 4]> {
        let mut counts: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
        for (name, verdict) in &self.verdicts {
            let column = match verdict.split(':').next() {
                Some(PASSED) => 0,
                Some(FAILED) => 1,
                Some("out of reach") => 2,
                _ => 3,
            };
            for group in BTreeSet::from([group(name), "all"]) {
                counts.entry(group).or_default()[column] += 1;
            }
        }
        counts
    }

    /// Prints the result of every test and what it means beside the ledger, then the ledger's figures. It is a success when something
    /// passed and nothing failed that is not known to: what did not run has failed, whatever is known of it. `update` writes what has
    /// changed; that a test which has passed fails is never written, so it stays a failure until somebody has looked.
    pub fn judge(&mut self, results: &Results, update: bool, group: fn(&str) -> &str) -> ExitCode {
        let (mut passed, mut known, mut bad, mut changed) = (0, 0, 0, 0);
        for (name, (state, message)) in results {
            let has_passed = state == PASSED;
            let may_fail = self.may_fail(name) && state != MISSING;
            println!("{state:8} {name}");
            if !has_passed {
                println!("         {}", message.replace('\n', "\n         "));
            }
            match (has_passed, may_fail) {
                (true, _) => {
                    passed += 1;
                    match self.verdicts.insert(name.clone(), PASSED.to_owned()) {
                        Some(verdict) if verdict == PASSED => {}
                        verdict => {
                            changed += 1;
                            println!("         the ledger says: {}", verdict.as_deref().unwrap_or("nothing"));
                        }
                    }
                }
                (false, true) => known += 1,
                (false, false) => bad += 1,
            }
        }
        println!("{passed} passed, {bad} failed, {known} failed that are known to");
        if update && changed > 0 {
            std::fs::write(&self.path, self.text()).expect("write the ledger");
        }
        if changed > 0 {
            let then = if update { ": written" } else { ": see --update" };
            println!("{changed} pass of which the ledger does not know{then}");
        }
        println!("\n{:22}{:>8}{:>8}{:>14}{:>8}", "the ledger", PASSED, FAILED, "out of reach", "awaits");
        for (group, [passed, failed, out_of_reach, awaits]) in self.counts(group) {
            println!("{group:22}{passed:>8}{failed:>8}{out_of_reach:>14}{awaits:>8}");
        }
        if bad == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Adds the result of a test. Of several with one name the one that failed is told.
pub fn add(results: &mut Results, name: String, state: &str, message: &str) {
    let told = results.entry(name).or_default();
    if state != PASSED || told.0.is_empty() {
        *told = (state.to_owned(), message.to_owned());
    }
}

/// Adds what ginkgo's report tells, by the specs' names after `prefix`.
///
/// # Panics
/// When it is not JSON.
pub fn add_ginkgo_results(results: &mut Results, prefix: &str, report: &[u8]) {
    let suites: Value = serde_json::from_slice(report).expect("ginkgo writes JSON");
    for spec in suites[0]["SpecReports"].as_array().into_iter().flatten() {
        let state = spec["State"].as_str().unwrap_or_default();
        let ran = !matches!(state, "skipped" | "pending" | "");
        if !ran || (spec["LeafNodeType"] != "It" && state == PASSED) {
            continue;
        }
        let mut name: Vec<&str> =
            spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        name.push(spec["LeafNodeText"].as_str().unwrap_or_default());
        let message = spec["Failure"]["Message"].as_str().unwrap_or_default();
        add(results, format!("{prefix}{}", name.join(" ")), state, message);
    }
}

/// A test that was asked for and did not run has failed.
pub fn add_missing(results: &mut Results, wanted: &BTreeSet<String>) {
    for name in wanted {
        results.entry(name.clone()).or_insert_with(|| (MISSING.to_owned(), "no such test ran".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passed_and_fails_is_never_written() {
        let parse = |text| Ledger::parse(PathBuf::new(), text);
        let mut ledger =
            parse("# head\npassed | [a] one\nfailed | [a] two\nout of reach: modes | [b] three\n").unwrap();
        let result = |state: &str| (state.to_owned(), String::new());
        let results = |states: [&str; 3]| {
            let names = ["[a] one", "[a] two", "[b] three"].map(str::to_owned);
            names.into_iter().zip(states.map(result)).collect::<Results>()
        };
        let group: fn(&str) -> &str = |_| "a";
        let is = |code: ExitCode| format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS);
        assert!(is(ledger.judge(&results([PASSED, "failed", "failed"]), false, group)));
        assert!(!is(ledger.judge(&results([PASSED, MISSING, "failed"]), false, group)), "it did not run");
        assert!(!is(ledger.judge(&results(["failed", PASSED, "failed"]), false, group)));
        assert_eq!(ledger.text(), "# head\npassed | [a] one\npassed | [a] two\nout of reach: modes | [b] three\n");
        assert_eq!(ledger.counts(group)["all"], [2, 0, 1, 0]);
        assert!(parse("perhaps | [a] one\n").is_err());
    }
}
