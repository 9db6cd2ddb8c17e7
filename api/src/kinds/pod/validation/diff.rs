//! What changed in a pod's spec, as a unified diff of its printed form.
//!
//! The reference compares with a port of Python's `difflib`; to show the same lines, this follows its algorithm
//! (longest matching block first, then both sides of it; popular lines are not matched).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;

use serde_json::Value;

use crate::kinds::internal;

/// Lines around a change.
const CONTEXT: usize = 3;
/// From this many lines on, those that make up more than a hundredth are popular.
const POPULAR_FROM: usize = 200;
/// Most comparisons of lines: the algorithm grows with the square of the text and worse. What is left when they are used
/// up is shown as changed.
const COMPARISONS_MAX: usize = 4_000_000;

/// The difference of two structures.
pub(in crate::kinds) fn of(structure: &str, old: &Value, new: &Value) -> String {
    let (old, new) = (internal::pretty(structure, old), internal::pretty(structure, new));
    unified(&old.split('\n').collect::<Vec<_>>(), &new.split('\n').collect::<Vec<_>>())
}

/// A stretch of both texts.
#[derive(Debug, Clone, PartialEq)]
struct Change {
    is_equal: bool,
    old: Range<usize>,
    new: Range<usize>,
}

fn unified(old: &[&str], new: &[&str]) -> String {
    let mut out = String::new();
    for hunk in hunks(changes(old, new)) {
        let (Some(first), Some(last)) = (hunk.first(), hunk.last()) else { continue };
        let (old_range, new_range) = (first.old.start..last.old.end, first.new.start..last.new.end);
        let _ = writeln!(out, "@@ -{} +{} @@", header(&old_range), header(&new_range));
        for change in &hunk {
            let removed = if change.is_equal { ' ' } else { '-' };
            for line in &old[change.old.clone()] {
                let _ = writeln!(out, "{removed}{line}");
            }
            if !change.is_equal {
                for line in &new[change.new.clone()] {
                    let _ = writeln!(out, "+{line}");
                }
            }
        }
    }
    out
}

fn header(range: &Range<usize>) -> String {
    match range.len() {
        1 => format!("{}", range.start + 1),
        0 => format!("{},0", range.start),
        length => format!("{},{length}", range.start + 1),
    }
}

/// Groups changes that are near, with the lines around them.
fn hunks(mut changes: Vec<Change>) -> Vec<Vec<Change>> {
    if let Some(first) = changes.first_mut().filter(|change| change.is_equal) {
        first.old.start = first.old.start.max(first.old.end.saturating_sub(CONTEXT));
        first.new.start = first.new.start.max(first.new.end.saturating_sub(CONTEXT));
    }
    if let Some(last) = changes.last_mut().filter(|change| change.is_equal) {
        last.old.end = last.old.end.min(last.old.start + CONTEXT);
        last.new.end = last.new.end.min(last.new.start + CONTEXT);
    }
    let mut hunks = Vec::new();
    let mut hunk: Vec<Change> = Vec::new();
    for change in changes {
        if change.is_equal && change.old.len() > 2 * CONTEXT {
            let (old, new) = (change.old, change.new);
            hunk.push(Change {
                is_equal: true,
                old: old.start..old.start + CONTEXT,
                new: new.start..new.start + CONTEXT,
            });
            hunks.push(std::mem::take(&mut hunk));
            hunk.push(Change { is_equal: true, old: old.end - CONTEXT..old.end, new: new.end - CONTEXT..new.end });
        } else {
            hunk.push(change);
        }
    }
    hunks.push(hunk);
    hunks.retain(|hunk| hunk.iter().any(|change| !change.is_equal));
    hunks
}

fn changes(old: &[&str], new: &[&str]) -> Vec<Change> {
    let mut changes = Vec::new();
    let (mut i, mut j) = (0, 0);
    let mut matches = matching_blocks(old, new);
    matches.push((old.len(), new.len(), 0));
    for (at_old, at_new, length) in matches {
        if i < at_old || j < at_new {
            changes.push(Change { is_equal: false, old: i..at_old, new: j..at_new });
        }
        if length > 0 {
            changes.push(Change { is_equal: true, old: at_old..at_old + length, new: at_new..at_new + length });
        }
        (i, j) = (at_old + length, at_new + length);
    }
    changes
}

/// Stretches that both have, in order: where in the old text, where in the new, how long. Neighbours are joined.
fn matching_blocks(old: &[&str], new: &[&str]) -> Vec<(usize, usize, usize)> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, line) in new.iter().enumerate() {
        places.entry(line).or_default().push(index);
    }
    if new.len() >= POPULAR_FROM {
        places.retain(|_, indexes| indexes.len() <= new.len() / 100 + 1);
    }
    let mut found = Vec::new();
    let mut left = COMPARISONS_MAX;
    let mut open = vec![(0..old.len(), 0..new.len())];
    while let Some((in_old, in_new)) = open.pop() {
        let (i, j, length) = longest_match(old, new, &places, (&in_old, &in_new), &mut left);
        if length > 0 {
            found.push((i, j, length));
            open.push((in_old.start..i, in_new.start..j));
            open.push((i + length..in_old.end, j + length..in_new.end));
        }
    }
    found.sort_unstable();
    let mut joined: Vec<(usize, usize, usize)> = Vec::new();
    for (i, j, length) in found {
        match joined.last_mut() {
            Some(last) if last.0 + last.2 == i && last.1 + last.2 == j => last.2 += length,
            _ => joined.push((i, j, length)),
        }
    }
    joined
}

fn longest_match(
    old: &[&str],
    new: &[&str],
    places: &HashMap<&str, Vec<usize>>,
    (in_old, in_new): (&Range<usize>, &Range<usize>),
    left: &mut usize,
) -> (usize, usize, usize) {
    let (mut best_i, mut best_j, mut best) = (in_old.start, in_new.start, 0);
    // How long the match is that ends with the line before in the old text and at this line of the new.
    let mut lengths: HashMap<usize, usize> = HashMap::new();
    for i in in_old.clone() {
        let mut next = HashMap::new();
        let candidates = places.get(old[i]).map(Vec::as_slice).unwrap_or_default();
        *left = left.saturating_sub(1 + candidates.len());
        if *left == 0 {
            return (in_old.start, in_new.start, 0);
        }
        for &j in candidates {
            if in_new.contains(&j) {
                let length = j.checked_sub(1).and_then(|before| lengths.get(&before)).copied().unwrap_or(0) + 1;
                next.insert(j, length);
                if length > best {
                    (best_i, best_j, best) = (i + 1 - length, j + 1 - length, length);
                }
            }
        }
        lengths = next;
    }
    // Popular lines extend a match although they start none.
    while best_i > in_old.start && best_j > in_new.start && old[best_i - 1] == new[best_j - 1] {
        (best_i, best_j, best) = (best_i - 1, best_j - 1, best + 1);
    }
    while best_i + best < in_old.end && best_j + best < in_new.end && old[best_i + best] == new[best_j + best] {
        best += 1;
    }
    (best_i, best_j, best)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Would be 10^10 comparisons and more.
    #[test]
    fn a_long_text_without_likeness_ends_soon() {
        let old: Vec<String> = (0..20_000).map(|n| format!("{}", n % 90)).collect();
        let new: Vec<String> = (0..20_000).map(|n| format!("{}", (n * 7 + n / 90) % 89)).collect();
        let lines = |list: &'static [String]| list.iter().map(String::as_str).collect::<Vec<_>>();
        let (old, new) = (lines(old.leak()), lines(new.leak()));
        let mut left = COMPARISONS_MAX;
        let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
        new.iter().enumerate().for_each(|(index, line)| places.entry(line).or_default().push(index));
        let whole = (&(0..old.len()), &(0..new.len()));
        assert_eq!(longest_match(&old, &new, &places, whole, &mut left), (0, 0, 0));
        assert_eq!(left, 0);
        assert!(unified(&old, &new).starts_with("@@ -1,20000 +1,20000 @@\n"));
    }

    #[test]
    fn shows_changes_with_three_lines_around() {
        let old: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let mut new = old.clone();
        new[9] = "nine".to_owned();
        new.push("20".to_owned());
        let lines = |list: &[String]| list.iter().map(|line| line.to_owned()).collect::<Vec<_>>();
        let (old, new) = (lines(&old), lines(&new));
        let text = unified(
            &old.iter().map(String::as_str).collect::<Vec<_>>(),
            &new.iter().map(String::as_str).collect::<Vec<_>>(),
        );
        assert_eq!(
            text,
            "@@ -7,7 +7,7 @@\n 6\n 7\n 8\n-9\n+nine\n 10\n 11\n 12\n@@ -18,3 +18,4 @@\n 17\n 18\n 19\n+20\n"
        );
    }
}
