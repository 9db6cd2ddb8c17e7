//! How much of each resource the containers of a pod take together.

use std::collections::BTreeMap;

use serde_json::Value;

use super::qos;
use crate::kinds::value::Read;
use crate::meta::Quantity;

/// How much of each resource.
pub type Amounts = BTreeMap<String, Quantity>;

/// The amounts of a list of resources; what is no quantity is left out.
pub(in crate::kinds) fn read(list: &Value) -> Amounts {
    let amount = |(name, value): (&String, &Value)| Some((name.clone(), Quantity::from_json(value).ok()?));
    list.entries().filter_map(amount).collect()
}

/// What all containers together ask for: `requests` or `limits`.
pub(in crate::kinds) fn sum(spec: &Value, list: &str) -> Amounts {
    sum_by(spec, |container| &container["resources"][list])
}

/// The same of what `wanted` says of each: regular containers and sidecars run at once, other init containers one by one
/// beside the sidecars before them.
pub(in crate::kinds) fn sum_by<'a>(spec: &'a Value, wanted: impl Fn(&'a Value) -> &'a Value) -> Amounts {
    let (mut total, mut sidecars, mut most) = (Amounts::new(), Amounts::new(), Amounts::new());
    for container in spec["containers"].items() {
        add_list(&mut total, wanted(container));
    }
    for container in spec["initContainers"].items() {
        let wanted = wanted(container);
        if container["restartPolicy"] == "Always" {
            add_list(&mut total, wanted);
            add_list(&mut sidecars, wanted);
        } else {
            for (resource, quantity) in wanted.entries() {
                let mut together = qos::amount(quantity);
                if let Some(beside) = sidecars.get(resource) {
                    together += beside;
                }
                raise(&mut most, resource, &together);
            }
        }
    }
    // Sidecars only become more, so that what they ask for alone is most at the end.
    raise_all(&mut most, &sidecars);
    raise_all(&mut total, &most);
    total
}

fn add_list(sum: &mut Amounts, list: &Value) {
    for (resource, quantity) in list.entries() {
        add(sum, resource, &qos::amount(quantity));
    }
}

/// Adds to one resource.
pub(in crate::kinds) fn add(sum: &mut Amounts, resource: &str, quantity: &Quantity) {
    match sum.get_mut(resource) {
        Some(before) => *before += quantity,
        None => drop(sum.insert(resource.to_owned(), quantity.clone())),
    }
}

/// Of each resource the greater amount.
pub(in crate::kinds) fn raise_all(most: &mut Amounts, others: &Amounts) {
    for (resource, quantity) in others {
        raise(most, resource, quantity);
    }
}

fn raise(most: &mut Amounts, resource: &str, quantity: &Quantity) {
    match most.get_mut(resource) {
        Some(before) if *before >= *quantity => {}
        Some(before) => *before = quantity.clone(),
        None => drop(most.insert(resource.to_owned(), quantity.clone())),
    }
}
