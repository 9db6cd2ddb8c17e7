//! Descriptions of table columns, as the reference gives them (facts asked of Kubernetes 1.37).

use std::collections::HashMap;
use std::sync::LazyLock;

/// `group/resource` and a tab, column and a tab, description with `\n` written out; one a line.
const TEXT: &str = include_str!("../../data/columns.txt");

type Descriptions = HashMap<(&'static str, &'static str), &'static str>;

static DESCRIPTIONS: LazyLock<Descriptions> = LazyLock::new(|| {
    let line = |line: &'static str| {
        let mut parts = line.splitn(3, '\t');
        Some(((parts.next()?, parts.next()?), parts.next()?))
    };
    TEXT.lines().filter_map(line).collect()
});

/// What a column of a resource means; empty when nothing is known.
pub(crate) fn description(group: &str, resource: &str, column: &str) -> String {
    let name = format!("{group}/{resource}");
    let found = DESCRIPTIONS.get(&(name.as_str(), column)).or_else(|| DESCRIPTIONS.get(&("*", column)));
    found.map(|text| text.replace("\\n", "\n")).unwrap_or_default()
}
