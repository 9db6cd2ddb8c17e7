//! Priorities of group versions, as APIServices say them: of what every server serves, and of definitions.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Facts asked of Kubernetes 1.37, a group version a line.
const LINES: &str = include_str!("../../data/apiservices.txt");
/// Of a group that definitions make, and of its version (Kubernetes').
pub(crate) const OF_DEFINITIONS: (i64, i64) = (1_000, 100);

/// Priorities of the group and of the version, by the names of APIServices (`v1.apps`).
pub(crate) static SERVED: LazyLock<BTreeMap<&'static str, (i64, i64)>> = LazyLock::new(|| {
    let read = |line: &'static str| {
        let mut words = line.split(' ');
        let name = words.next()?;
        let [group, version] = [words.next()?, words.next()?].map(|word| word.parse().ok());
        Some((name, (group?, version?)))
    };
    LINES.lines().filter(|line| !line.starts_with('#')).filter_map(read).collect()
});

/// Priorities of a version of a group that is served here.
pub(super) fn of(group: &str, version: &str) -> (i64, i64) {
    SERVED.get(format!("{version}.{group}").as_str()).copied().unwrap_or(OF_DEFINITIONS)
}
