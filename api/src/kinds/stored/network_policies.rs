//! NetworkPolicies: who may connect to the pods that they select, and to whom those may. Checks in the words of Kubernetes
//! (`pkg/apis/networking/validation`).

use serde_json::{Value, json};

use super::show::Show::{Age, Name, Of};
use super::{BLANK, Kind, Stored, Support, row};
use crate::kinds::value::{Read, child, default_to, fields, items_mut};
use crate::kinds::{AGE, Cell, FieldError, FieldErrors, NAME, checks, column, network, table};
use crate::meta::field::Path;
use crate::meta::names;
use crate::meta::selector::validate_label_selector;

pub(super) static ROWS: &[Kind] = &[
    row!(namespaced "networking.k8s.io" "io.k8s.api.networking.v1" "NetworkPolicy" "networkpolicies" "networkpolicy",
        [NAME => Name, column("Pod-Selector", "string") => Of(selected), AGE => Age],
        Stored::new(Support::Honoured).counted().default_by(default).check_by(check_new).checked_once()
            .check_change_by(check_changed).warn_by(warnings),
        short_names: &["netpol"]),
];

const SPEC: Path<'static> = Path::new("spec");
/// The rules of a direction, and whom they name.
const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];
const TYPES: [&str; 2] = ["Ingress", "Egress"];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

fn default(object: &mut Value) {
    let spec = child(object, "spec");
    for (direction, _) in DIRECTIONS {
        for rule in items_mut(spec, direction) {
            for port in items_mut(rule, "ports") {
                default_to(port, "protocol", "TCP");
            }
        }
    }
    if spec["policyTypes"].is_empty() {
        // One that says nothing of it is about what comes in, and about what goes out where it has a rule for that.
        let types = match spec["egress"].is_empty() {
            true => json!(["Ingress"]),
            false => json!(["Ingress", "Egress"]),
        };
        fields(spec).insert("policyTypes".to_owned(), types);
    }
}

fn selected(object: &Value) -> Cell {
    table::selector(&object["spec"]["podSelector"], "<none>", "<error>")
}

fn check_new(object: &Value, errors: &mut FieldErrors) {
    spec(&object["spec"], &[], errors);
}

/// Ranges that the stored object has may stay, whatever is thought of them today.
fn check_changed(object: &Value, old: &Value, errors: &mut FieldErrors) {
    let mut stored = Vec::new();
    each_block(&old["spec"], |_, block| {
        stored.push(block["cidr"].text());
        stored.extend(block["except"].items().iter().map(Read::text));
    });
    spec(&object["spec"], &stored, errors);
}

fn warnings(object: &Value, _old: Option<&Value>) -> Vec<String> {
    let mut warnings = Vec::new();
    each_block(&object["spec"], |path, block| {
        warnings.extend(network::cidr_warnings(&path.child("cidr"), block["cidr"].text()));
        let path = path.child("except");
        for (index, range) in block["except"].items().iter().enumerate() {
            warnings.extend(network::cidr_warnings(&path.index(index), range.text()));
        }
    });
    warnings
}

/// Goes over every `ipBlock`.
fn each_block<'a>(spec: &'a Value, mut found: impl FnMut(&Path<'_>, &'a Value)) {
    for (direction, peers) in DIRECTIONS {
        let path = SPEC.child(direction);
        for (index, rule) in spec[direction].items().iter().enumerate() {
            let path = path.index(index);
            let path = path.child(peers);
            for (index, peer) in rule[peers].items().iter().enumerate() {
                if peer["ipBlock"].is_set() {
                    found(&path.index(index).child("ipBlock"), &peer["ipBlock"]);
                }
            }
        }
    }
}

fn spec(spec: &Value, stored: &[&str], errors: &mut FieldErrors) {
    validate_label_selector(&spec["podSelector"], &SPEC.child("podSelector"), errors);
    for (direction, peers) in DIRECTIONS {
        let path = SPEC.child(direction);
        for (index, rule) in spec[direction].items().iter().enumerate() {
            let path = path.index(index);
            let ports = path.child("ports");
            for (index, port) in rule["ports"].items().iter().enumerate() {
                self::port(&ports.index(index), port, errors);
            }
            let path = path.child(peers);
            for (index, peer) in rule[peers].items().iter().enumerate() {
                self::peer(&path.index(index), peer, stored, errors);
            }
        }
    }
    let (path, types) = (SPEC.child("policyTypes"), &spec["policyTypes"]);
    if types.count() > TYPES.len() {
        return errors.push(FieldError::invalid(path, types, "may not specify more than two policyTypes"));
    }
    for (index, one) in types.items().iter().enumerate() {
        checks::supported(&path.index(index), one, &TYPES, errors);
    }
}

fn port(path: &Path<'_>, port: &Value, errors: &mut FieldErrors) {
    if port["protocol"].is_set() {
        checks::supported(&path.child("protocol"), &port["protocol"], &PROTOCOLS, errors);
    }
    let (end_path, end) = (path.child("endPort"), port["endPort"].maybe_int());
    let path = path.child("port");
    match (&port["port"], end) {
        (Value::Null, None) => {}
        (Value::Null, Some(end)) => {
            errors.push(FieldError::invalid(end_path, end, "may not be specified when `port` is not specified"));
        }
        (Value::String(name), end) => {
            if let Some(end) = end {
                errors.push(FieldError::invalid(end_path, end, "may not be specified when `port` is non-numeric"));
            }
            checks::invalid(&path, name, names::port_name(name), errors);
        }
        (number, end) => {
            checks::port_number(&path, number, errors);
            let Some(end) = end else { return };
            if end < number.int() {
                errors.push(FieldError::invalid(end_path, end, "must be greater than or equal to `port`"));
            }
            checks::port_number(&end_path, &port["endPort"], errors);
        }
    }
}

fn peer(path: &Path<'_>, peer: &Value, stored: &[&str], errors: &mut FieldErrors) {
    let mut kinds = 0;
    for selector in ["podSelector", "namespaceSelector"] {
        if peer[selector].is_set() {
            kinds += 1;
            validate_label_selector(&peer[selector], &path.child(selector), errors);
        }
    }
    let block = &peer["ipBlock"];
    if block.is_set() {
        kinds += 1;
        self::block(&path.child("ipBlock"), block, stored, errors);
    }
    if kinds == 0 {
        errors.push(FieldError::required(path, "must specify a peer"));
    } else if kinds > 1 && block.is_set() {
        errors.push(FieldError::forbidden(path, "may not specify both ipBlock and another peer"));
    }
}

fn block(path: &Path<'_>, block: &Value, stored: &[&str], errors: &mut FieldErrors) {
    let (cidr, path_of_cidr) = (block["cidr"].text(), path.child("cidr"));
    if cidr.is_empty() {
        return errors.push(FieldError::required(path_of_cidr, ""));
    }
    network::validate_legacy_cidr(&path_of_cidr, cidr, stored, errors);
    let Some(range) = network::parse_cidr(cidr) else { return };
    let path = path.child("except");
    for (index, except) in block["except"].items().iter().enumerate() {
        let (path, except) = (path.index(index), except.text());
        network::validate_legacy_cidr(&path, except, stored, errors);
        if let Some(within) = network::parse_cidr(except)
            && !network::is_strictly_within(within, range)
        {
            errors.push(FieldError::invalid(path, except, "must be a strict subset of `cidr`"));
        }
    }
}
