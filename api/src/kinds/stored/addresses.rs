//! What is said of the addresses of Services: each address, and the ranges they are taken from.

use serde_json::Value;

use super::rules::{Check, Rule};
use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors, internal, network};
use crate::meta::field::{Path, Printed};

pub(super) const ADDRESS: &[Rule] = &[
    Rule("spec.parentRef", Check::Set),
    Rule("spec.parentRef?.group", Check::Subdomain),
    Rule("spec.parentRef?.resource", Check::Required("")),
    Rule("spec.parentRef?.resource", Check::PathSegment),
    Rule("spec.parentRef?.name", Check::Required("")),
    Rule("spec.parentRef?.name", Check::PathSegment),
    Rule("spec.parentRef?.namespace", Check::PathSegment),
];

const RANGES: Path<'static> = Path::new("spec.cidrs");

/// An address is named as it is, in its one form.
pub(super) fn name(name: &str, _is_prefix: bool) -> Vec<String> {
    network::ip_problems(name)
}

/// At most one range of each family.
pub(super) fn check_ranges(object: &Value, errors: &mut FieldErrors) {
    let ranges = object["spec"]["cidrs"].items();
    if ranges.is_empty() {
        errors.push(FieldError::required(RANGES, "at least one CIDR required"));
        return;
    }
    if ranges.len() > 2 {
        let shown = internal::text("ServiceCIDRSpec", &object["spec"]);
        errors.push(FieldError::invalid(RANGES, Printed(&shown), "may only hold up to 2 values"));
        return;
    }
    for (index, range) in ranges.iter().enumerate() {
        network::validate_cidr(&RANGES.index(index), range.text(), errors);
    }
    let families: Vec<_> =
        ranges.iter().filter_map(|range| network::parse_cidr(range.text())).map(|(ip, _)| ip.is_ipv4()).collect();
    if let [first, second] = families[..]
        && first == second
    {
        let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.push(FieldError::invalid(RANGES, &object["spec"]["cidrs"], detail));
    }
}

/// A range stays; one of the other family may be added.
pub(super) fn check_ranges_change(object: &Value, old: &Value, errors: &mut FieldErrors) {
    const IMMUTABLE: &str = "field is immutable";
    let (new, old) = (object["spec"]["cidrs"].items(), old["spec"]["cidrs"].items());
    if new.len() != old.len() && (old.len(), new.len()) != (1, 2) {
        errors.push(FieldError::invalid(RANGES, &object["spec"]["cidrs"], IMMUTABLE));
        return;
    }
    if new.len() > old.len() {
        check_ranges(object, errors);
    }
    for (index, (new, _)) in new.iter().zip(old).enumerate().filter(|(_, (new, old))| new != old) {
        errors.push(FieldError::invalid(RANGES.index(index), new, IMMUTABLE));
    }
}
