//! Names of the cluster (`dns-specification.md` of kubernetes/dns), as the resolver of a pod would complete them.

use std::net::{IpAddr, Ipv4Addr};

/// The cluster's domain.
const DOMAIN: &str = "cluster.local";

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    Service {
        host: Option<&'a str>,
        service: &'a str,
        namespace: &'a str,
    },
    /// `first.second`: a host of a Service of the pod's own namespace (`web-0.web`), else a Service of another (`db.prod`).
    Either {
        first: &'a str,
        second: &'a str,
    },
    Pod(IpAddr),
}

/// Whether a full name is one of the cluster's domain.
pub(crate) fn is_within(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let start = name.len().checked_sub(DOMAIN.len()).and_then(|at| name.split_at_checked(at));
    start.is_some_and(|(before, domain)| before.ends_with('.') && domain.eq_ignore_ascii_case(DOMAIN))
}

/// What `host` means to a pod of `from_namespace`; `None` when it cannot be a name of the cluster.
pub(crate) fn parse<'a>(host: &'a str, from_namespace: &'a str) -> Option<Name<'a>> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let short = host.strip_suffix(DOMAIN).and_then(|rest| rest.strip_suffix('.'));
    let parts: Vec<&str> = short.unwrap_or(host).split('.').collect();
    if parts.iter().any(|part| part.is_empty()) {
        return None;
    }
    let service = |host, service, namespace| Some(Name::Service { host, service, namespace });
    match *parts.as_slice() {
        [name, namespace, "svc"] => service(None, name, namespace),
        [host, name, namespace, "svc"] => service(Some(host), name, namespace),
        [address, _namespace, "pod"] => {
            address.replace('-', ".").parse::<Ipv4Addr>().ok().map(|ip| Name::Pod(ip.into()))
        }
        // The search path of a pod: `<ns>.svc.cluster.local svc.cluster.local cluster.local`.
        [name] if short.is_none() => service(None, name, from_namespace),
        [first, second] if short.is_none() => Some(Name::Either { first, second }),
        [host, name, namespace] if short.is_none() => service(Some(host), name, namespace),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_by_a_pods_resolver() {
        let service = |host, service, namespace| Some(Name::Service { host, service, namespace });
        for (text, expected) in [
            ("db", service(None, "db", "here")),
            ("db.prod", Some(Name::Either { first: "db", second: "prod" })),
            ("web-0.web.prod", service(Some("web-0"), "web", "prod")),
            ("db.prod.svc", service(None, "db", "prod")),
            ("db.prod.svc.cluster.local", service(None, "db", "prod")),
            ("db.prod.svc.cluster.local.", service(None, "db", "prod")),
            ("web-0.web.prod.svc.cluster.local", service(Some("web-0"), "web", "prod")),
            ("10-244-0-7.prod.pod.cluster.local", Some(Name::Pod("10.244.0.7".parse().unwrap()))),
            ("a.b.c.d.example.com", None),
            ("a.cluster.local", None),
            ("", None),
            ("a..svc", None),
        ] {
            assert_eq!(parse(text, "here"), expected, "{text}");
        }
    }
}
