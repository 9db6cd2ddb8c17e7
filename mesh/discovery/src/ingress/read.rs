//! An Ingress as it was written, read once: what it routes, the Secrets it names, and what is odd about it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::networking::v1 as networking;

use super::options::{self, Said};
use super::{Problem, SecretKey};
use crate::routes::{self, Backend, Compare, Host, Options, Origin, PortName, Route};

/// The annotation that named a class before there was a field for it.
const CLASS: &str = "kubernetes.io/ingress.class";
/// Bytes that a path may have. A request's head has no more than some ten times as many.
const PATH_BYTES_MAX: usize = 4096;
/// Secrets that one may name: each is a watch of every node.
const SECRETS_MAX: usize = 64;
/// What stands in patterns and hardly ever in paths.
const PATTERN: [&str; 7] = ["(", "[", "\\", "^", "|", "$", ".*"];

/// Who goes first where two want the same: by the second in which it was made, then by uid, which nobody chooses, and for those without
/// one by namespace and name.
pub(super) type Age = (i64, Arc<str>, Arc<str>, Arc<str>);

/// An Ingress.
#[derive(Debug, PartialEq)]
pub struct Ingress {
    /// To name it.
    pub origin: Arc<Origin>,
    pub(super) age: Age,
    pub(super) class: Option<Arc<str>>,
    /// Every route it has, by host; a host may be there more than once.
    pub(super) rules: Vec<(Host, Vec<Rule>)>,
    /// What takes all that its rules do not.
    pub(super) default: Option<Arc<Route>>,
    pub(super) tls: Vec<(Arc<[Host]>, Option<SecretKey>)>,
    /// What of both is about each host, by its name.
    by_host: HashMap<Host, About>,
    /// Entries of `tls` that name no host, and are for those of all rules: the first of each Secret.
    tls_of_rules: Vec<usize>,
    /// What it says that has no effect.
    pub(super) problems: Vec<Problem>,
}

/// What is about a host, by its places.
#[derive(Debug, Default, PartialEq)]
struct About {
    rules: Vec<usize>,
    /// Those that name it and a Secret.
    tls: Vec<usize>,
}

impl About {
    /// And what of `tls` is about the `hosts` of all rules. That is not noted with each of them: an object has room for tens of thousands
    /// of both.
    fn all(
        rules: &[(Host, Vec<Rule>)],
        tls: &[(Arc<[Host]>, Option<SecretKey>)],
        hosts: &Arc<[Host]>,
    ) -> (HashMap<Host, About>, Vec<usize>) {
        let mut by_host: HashMap<Host, About> = HashMap::new();
        for (at, (host, _)) in rules.iter().enumerate() {
            by_host.entry(host.clone()).or_default().rules.push(at);
        }
        let (mut of_rules, mut known) = (Vec::new(), HashSet::new());
        for (at, (named, secret)) in tls.iter().enumerate() {
            let Some(secret) = secret else { continue };
            if !Arc::ptr_eq(named, hosts) {
                named.iter().for_each(|host| by_host.entry(host.clone()).or_default().tls.push(at));
            } else if known.insert(secret) {
                of_rules.push(at);
            }
        }
        (by_host, of_rules)
    }
}

/// A path.
#[derive(Debug, PartialEq)]
pub(super) struct Rule {
    pub compare: Compare,
    pub path: Arc<str>,
    pub route: Arc<Route>,
}

impl Ingress {
    pub(super) fn read(object: networking::Ingress) -> Ingress {
        let metadata = object.metadata;
        let text = |value: Option<String>| Arc::<str>::from(value.unwrap_or_default());
        let (namespace, name) = (text(metadata.namespace), text(metadata.name));
        let created = metadata.creation_timestamp.map_or(i64::MAX, |time| time.0.as_second());
        let uid = text(metadata.uid);
        let age = (created, uid.clone(), namespace.clone(), name.clone());
        let origin = Arc::new(Origin { kind: "Ingress", namespace: namespace.clone(), name, uid });
        let mut problems = Vec::new();
        let annotations = metadata.annotations.unwrap_or_default();
        let said = options::read(&annotations, &mut problems);
        let spec = object.spec.unwrap_or_default();
        let class =
            spec.ingress_class_name.as_ref().or_else(|| annotations.get(CLASS)).map(|name| name.as_str().into());
        let rules = spec.rules.unwrap_or_default();
        let hosts: Arc<[Host]> =
            rules.iter().map(|rule| Host::parse(rule.host.as_deref().unwrap_or_default())).collect();
        let (mut secrets, mut left_out) = (HashSet::new(), 0);
        let tls = spec.tls.unwrap_or_default().into_iter().map(|tls| {
            let named: Arc<[Host]> = tls.hosts.iter().flatten().map(|host| Host::parse(host)).collect();
            let secret = tls.secret_name.filter(|name| !name.is_empty());
            let secret = secret.map(|name| SecretKey { namespace: namespace.clone(), name: name.into() });
            let secret = secret.filter(|secret| {
                let has_room = secrets.len() < SECRETS_MAX || secrets.contains(secret);
                match has_room {
                    true => drop(secrets.insert(secret.clone())),
                    false => left_out += 1,
                }
                has_room
            });
            // One that names no host is for those of the rules.
            (if named.is_empty() { hosts.clone() } else { named }, secret)
        });
        let tls: Vec<_> = tls.collect();
        if left_out > 0 {
            let message = format!(
                "it names more than {SECRETS_MAX} secrets: the certificates of {left_out} entries of its tls are left out"
            );
            problems.push(Problem { reason: "TooManySecrets", message });
        }
        let of_rules = tls.iter().any(|(named, _)| Arc::ptr_eq(named, &hosts)).then_some(&hosts);
        let named = tls.iter().map(|(named, _)| named).filter(|named| !Arc::ptr_eq(named, &hosts));
        let of_tls = named.chain(of_rules).flat_map(|hosts| hosts.iter()).collect();
        let reader = Reader { origin: origin.clone(), options: Arc::new(said.options.clone()), said, of_tls };
        let default = spec.default_backend.map(|backend| reader.route(&Host::Any, backend, &mut problems));
        let rules = hosts.iter().cloned().zip(rules).map(|(host, rule)| {
            let paths = rule.http.map(|http| http.paths).unwrap_or_default();
            let paths = paths.into_iter().filter_map(|path| reader.rule(&host, path, &mut problems)).collect();
            (host, paths)
        });
        let rules: Vec<_> = rules.collect();
        let (by_host, tls_of_rules) = About::all(&rules, &tls, &hosts);
        Ingress { origin, age, class, rules, default, tls, by_host, tls_of_rules, problems }
    }

    /// What it costs: the places of its paths and its hosts, each as often as it is named.
    pub(super) fn cost(&self) -> usize {
        let paths = self.rules.iter().flat_map(|(_, paths)| paths);
        let paths: usize = paths.map(|rule| routes::places(rule.compare, &rule.path)).sum();
        // One that names no host is there, too.
        let tls: usize = self.tls.iter().map(|(hosts, _)| hosts.len().max(1)).sum();
        paths + self.rules.len() + tls
    }

    /// All hosts that it says something about.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.rules.iter().map(|(host, _)| host).chain(self.tls.iter().flat_map(|(hosts, _)| hosts.iter()))
    }

    /// The paths that it has for a host, by its rules; none where it has no rule for it.
    pub(super) fn rules_of(&self, host: &Host) -> impl Iterator<Item = &[Rule]> {
        let about = self.by_host.get(host).into_iter().flat_map(|about| &about.rules);
        about.map(|at| &self.rules[*at].1[..])
    }

    /// The Secrets that it names for a host.
    pub(super) fn secrets_of(&self, host: &Host) -> impl Iterator<Item = &SecretKey> {
        let about = self.by_host.get(host);
        let of_rules = about.filter(|about| !about.rules.is_empty()).into_iter().flat_map(|_| &self.tls_of_rules);
        let mut all: Vec<usize> = about.into_iter().flat_map(|about| &about.tls).chain(of_rules).copied().collect();
        // As they are written: the first one's certificate is the host's.
        all.sort_unstable();
        all.into_iter().filter_map(|at| self.tls[at].1.as_ref())
    }

    /// The Secrets that it names.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretKey> {
        self.tls.iter().filter_map(|(_, secret)| secret.as_ref())
    }

    /// Who is to answer, each once as a rule.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        let routes = self.rules.iter().flat_map(|(_, paths)| paths).map(|rule| &rule.route);
        routes.chain(&self.default).map(|route| &route.backend)
    }
}

struct Reader<'a> {
    origin: Arc<Origin>,
    options: Arc<Options>,
    said: Said,
    /// Hosts that have TLS.
    of_tls: HashSet<&'a Host>,
}

impl Reader<'_> {
    fn route(&self, host: &Host, backend: networking::IngressBackend, problems: &mut Vec<Problem>) -> Arc<Route> {
        let has_tls = || host.covered_by().any(|host| self.of_tls.contains(&host));
        let is_secure_only = self.said.force_ssl_redirect || self.said.ssl_redirect.unwrap_or(true) && has_tls();
        let backend = self.backend(backend, problems);
        let (origin, options) = (self.origin.clone(), self.options.clone());
        Arc::new(Route { origin, backend, is_secure_only, options, conditions: None })
    }

    fn backend(&self, backend: networking::IngressBackend, problems: &mut Vec<Problem>) -> Backend {
        if let Some(service) = backend.service {
            let port = service.port.unwrap_or_default();
            let number = port.number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0);
            let port = match number {
                Some(number) => PortName::Number(number),
                None => PortName::Name(port.name.unwrap_or_default().into()),
            };
            return Backend::Service { key: (self.origin.namespace.clone(), service.name.into()), port };
        }
        let resource = backend.resource.unwrap_or_default();
        let what: Arc<str> = format!("{} {}", resource.kind, resource.name).into();
        let message = format!("backend {what} is not supported: backends are Services; its requests are answered 503");
        problems.push(Problem { reason: "UnsupportedBackend", message });
        Backend::Other(what)
    }

    fn rule(&self, host: &Host, path: networking::HTTPIngressPath, problems: &mut Vec<Problem>) -> Option<Rule> {
        let text = path.path.filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
        if text.len() > PATH_BYTES_MAX {
            let message = format!("a path of host {host} has more than {PATH_BYTES_MAX} bytes: it is left out");
            problems.push(Problem { reason: "UnsupportedPath", message });
            return None;
        }
        let is_specific = path.path_type == "ImplementationSpecific";
        if is_specific && PATTERN.iter().any(|sign| text.contains(sign)) {
            let message = format!(
                "path {text:?} of host {host} is compared as text: regular expressions are not supported, and pathType \
                 ImplementationSpecific means Prefix"
            );
            problems.push(Problem { reason: "UnsupportedPath", message });
        }
        let compare = if path.path_type == "Exact" { Compare::Exact } else { Compare::Prefix };
        Some(Rule { compare, path: text.into(), route: self.route(host, path.backend, problems) })
    }
}
