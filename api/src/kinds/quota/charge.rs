//! What a write adds to quotas, or why it may not be done (`CheckRequest`).

use jiff::Timestamp;
use serde_json::Value;

use super::{Amounts, Way, is_in_scope, pods, tracks, usage};
use crate::kinds::pod::amounts::add;
use crate::meta::Quantity;

/// A quota, as it is enforced.
#[derive(Debug, Clone)]
pub struct Quota<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its `spec`, for its scopes.
    pub spec: &'a Value,
    /// Its limits, of its status: a quota holds from when its controller has counted what is there.
    pub hard: Amounts,
    /// What is used of it.
    pub used: Amounts,
}

/// A write that may count.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// Of the kind.
    pub group: &'a str,
    /// As `pods`.
    pub resource: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// As it will be.
    pub object: &'a Value,
    /// As it was; `None` of a new one.
    pub old: Option<&'a Value>,
}

impl Write<'_> {
    /// Whether it can change what is used of any quota.
    pub fn counts(&self) -> bool {
        match (Way::of(self.group, self.resource), self.subresource, self.old) {
            (None, ..) => false,
            (Some(Way::Pod), "", Some(old)) => pods::is_terminating(old) != pods::is_terminating(self.object),
            (Some(Way::Pod), "resize", Some(_)) => true,
            (Some(Way::Pod), subresource, old) => subresource.is_empty() && old.is_none(),
            (Some(Way::Service), ..) => true,
            (Some(Way::Claim), subresource, _) => matches!(subresource, "" | "status"),
            (Some(Way::Devices), subresource, _) => subresource.is_empty(),
            (Some(Way::Each), subresource, old) => subresource.is_empty() && old.is_none(),
        }
    }

    /// The limits of a quota that are about such objects.
    fn about<'a>(&self, quota: &'a Quota<'_>) -> Vec<&'a str> {
        let names = quota.hard.keys().map(String::as_str);
        names.filter(|name| tracks(self.group, self.resource, name)).collect()
    }

    fn is_about(&self, quota: &Quota<'_>, object: &Value) -> bool {
        is_in_scope(quota.spec, self.group, self.resource, object) && !self.about(quota).is_empty()
    }
}

/// What is added to a quota.
#[derive(Debug, Clone, PartialEq)]
pub struct Charge {
    /// Which of the quotas.
    pub quota: usize,
    /// What is added.
    pub added: Amounts,
    /// What is used of it then, with all that was used before.
    pub used: Amounts,
}

/// What a write adds to the quotas of its namespace; the error is why it is forbidden.
pub fn charge(quotas: &[Quota<'_>], write: &Write<'_>, now: Timestamp) -> Result<Vec<Charge>, String> {
    if !write.counts() {
        return Ok(Vec::new());
    }
    let mut about = Vec::new();
    for (index, quota) in quotas.iter().enumerate() {
        if !write.is_about(quota, write.object) {
            continue;
        }
        let names = write.about(quota);
        if Way::of(write.group, write.resource) == Some(Way::Pod)
            && let Some(lacks) = pods::lacks(write.object, &names)
        {
            return Err(format!("failed quota: {}: {lacks}", quota.name));
        }
        if names.iter().any(|name| !quota.used.contains_key(*name)) {
            return Err(format!("status unknown for quota: {}, resources: {}", quota.name, names.join(",")));
        }
        about.push(index);
    }
    if about.is_empty() {
        return Ok(Vec::new());
    }
    let usage_of = |object: &Value| usage(write.group, write.resource, object, now);
    let whole = usage_of(write.object);
    let negative: Vec<&str> =
        whole.iter().filter(|(_, amount)| amount.signum() < 0).map(|(name, _)| name.as_str()).collect();
    if !negative.is_empty() {
        return Err(format!("quota usage is negative for resource(s): {}", negative.join(",")));
    }
    let more = write.old.map(|old| (old, grown(&whole, &usage_of(old))));
    let mut charges = Vec::new();
    for index in about {
        let quota = &quotas[index];
        // An object that the quota was not about before is new to it.
        let taken = match &more {
            Some((old, more)) if write.is_about(quota, old) => more,
            _ => &whole,
        };
        let counts = |(name, amount): &(&String, &Quantity)| !amount.is_zero() && quota.hard.contains_key(*name);
        let added: Amounts = taken.iter().filter(counts).map(|(name, amount)| (name.clone(), amount.clone())).collect();
        if added.is_empty() {
            continue;
        }
        let mut used = quota.used.clone();
        for (name, amount) in &added {
            add(&mut used, name, amount);
        }
        // What a volume was given is told, and not asked for.
        if write.subresource != "status" {
            let exceeded: Vec<&String> = added.keys().filter(|name| used[*name] > quota.hard[*name]).collect();
            if !exceeded.is_empty() {
                return Err(format!(
                    "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                    quota.name,
                    show(&added, &exceeded),
                    show(&quota.used, &exceeded),
                    show(&quota.hard, &exceeded),
                ));
            }
        }
        charges.push(Charge { quota: index, added, used });
    }
    Ok(charges)
}

/// What is more than before; what is less is found by the next count.
fn grown(now: &Amounts, before: &Amounts) -> Amounts {
    let more = |(name, amount): (&String, &Quantity)| {
        let more = before.get(name).map_or_else(|| amount.clone(), |before| amount - before);
        (more.signum() > 0).then(|| (name.clone(), more))
    };
    now.iter().filter_map(more).collect()
}

fn show(amounts: &Amounts, names: &[&String]) -> String {
    let amount = |name: &&String| amounts.get(*name).map(|amount| format!("{name}={amount}"));
    names.iter().filter_map(amount).collect::<Vec<_>>().join(",")
}
