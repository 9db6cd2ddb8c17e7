//! Counting anew what is used of a quota.

use jiff::Timestamp;
use serde_json::Value;

use super::{Amounts, count_name, is_in_scope, number, tracks, usage};
use crate::kinds::pod::amounts::add;
use crate::kinds::value::Read;
use crate::meta::Format;
use crate::meta::Quantity;

/// A count under way.
#[derive(Debug, Clone)]
pub struct Count<'a> {
    spec: &'a Value,
    used: Amounts,
}

impl<'a> Count<'a> {
    /// Nothing is counted yet of what a quota's `spec` limits.
    pub fn new(spec: &'a Value) -> Self {
        Self { spec, used: Amounts::new() }
    }

    /// The limits that objects of a kind count for, if any; they are nothing from now on, or what was counted already.
    pub fn begin(&mut self, group: &str, resource: &str) -> Vec<&'a str> {
        let names = self.spec["hard"].entries().map(|(name, _)| name.as_str());
        let names: Vec<&str> = names.filter(|name| tracks(group, resource, name)).collect();
        for name in &names {
            self.used.entry((*name).to_owned()).or_insert(const { Quantity::from_units(0, Format::DecimalSi) });
        }
        names
    }

    /// Adds what an object takes.
    pub fn add(&mut self, group: &str, resource: &str, object: &Value, now: Timestamp) {
        if !is_in_scope(self.spec, group, resource, object) {
            return;
        }
        for (name, amount) in usage(group, resource, object, now) {
            if self.used.contains_key(&name) {
                add(&mut self.used, &name, &amount);
            }
        }
    }

    /// Adds so many objects of a kind of which each is like the other.
    pub fn add_plain(&mut self, group: &str, resource: &str, count: i64) {
        // They are in no scope.
        if !self.spec["scopes"].is_empty() || !self.spec["scopeSelector"]["matchExpressions"].is_empty() {
            return;
        }
        let alias = group.is_empty().then_some(resource);
        for name in [Some(count_name(group, resource).as_str()), alias].into_iter().flatten() {
            if self.used.contains_key(name) {
                add(&mut self.used, name, &number(count));
            }
        }
    }

    /// What is used: of each limit that something counted for, and of no other.
    pub fn used(self) -> Amounts {
        self.used
    }
}
