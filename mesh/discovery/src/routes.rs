//! Which backend a request is for, by its host and path: a table that knows nothing of where its routes come from.
//!
//! A table is one immutable value. What a host's routes are is one part of it, so that whoever changes a host makes a new table that
//! shares all other hosts with the one before; a look-up costs a hash of the host and one of each segment of the path, however many
//! routes there are.
//!
//! A route may want more of a request than its host and path ([`Conditions`]): those of one path are in the order in which they are asked,
//! and where none of them wants the request, a shorter path's are asked.
//!
//! Of all routes whose host and path match, the one with the most precise host is taken (a name before a wildcard before none), of
//! these the one with the longest path, and an exact path before a prefix (Kubernetes' page on Ingress, "Multiple matches"). What is
//! compared is the path as it was sent: nothing is decoded, collapsed or resolved.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use coracle_gateway::{Conditions, Filters, Forward, Hostname, Pattern, Rank, Redirect};

use crate::asked::{Asked, TooLong};

/// Bytes of a text that are one place of a table.
const PLACE_BYTES: usize = 256;
/// Bytes that a name has at most (RFC 1035 §2.3.4, as text). Each of its parents is looked up: of a longer one, which may have
/// tens of thousands, none is.
const NAME_BYTES_MAX: usize = 253;

/// Hosts that routes are for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Host {
    /// All.
    Any,
    /// One, in lower case.
    Name(Arc<str>),
    /// Those with one label more than this.
    Below(Arc<str>),
    /// Those with one label more than this, or with several.
    Under(Arc<str>),
}

impl From<&Hostname> for Host {
    fn from(host: &Hostname) -> Host {
        match host {
            Hostname::Any => Host::Any,
            Hostname::Name(name) => Host::Name(name.clone()),
            Hostname::Below(parent) => Host::Under(parent.clone()),
        }
    }
}

impl Host {
    /// From `example.com`, `*.example.com` or nothing.
    pub fn parse(text: &str) -> Host {
        let text = text.to_ascii_lowercase();
        match text.strip_prefix("*.") {
            _ if text.is_empty() => Host::Any,
            Some(parent) => Host::Below(parent.into()),
            None => Host::Name(text.into()),
        }
    }

    /// Those of [`Host::parse`] for which it is that are for all of it: it, and less precise ones.
    pub fn covered_by(&self) -> impl Iterator<Item = Host> {
        let parent = match self {
            Host::Name(name) => parent_of(name).map(|parent| Host::Below(parent.into())),
            _ => None,
        };
        [Some(self.clone()), parent, Some(Host::Any)].into_iter().flatten()
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Any => f.write_str("*"),
            Host::Name(name) => f.write_str(name),
            Host::Below(parent) | Host::Under(parent) => write!(f, "*.{parent}"),
        }
    }
}

/// What somebody has hosts by. Of two for one name the one whose hosts are more precise has it, then the older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The greater, the more precise.
    rank: usize,
    /// Since when, in seconds since 1970.
    since: i64,
}

impl Claim {
    pub(crate) fn of(host: &Host, since: i64) -> Claim {
        let rank = match host {
            Host::Any => 0,
            Host::Below(parent) | Host::Under(parent) => 1 + parent.len(),
            Host::Name(_) => usize::MAX,
        };
        Claim { rank, since }
    }

    /// In seconds since 1970.
    pub(crate) fn since(self) -> i64 {
        self.since
    }

    /// Whether it goes before another one for the same name.
    pub fn is_before(self, other: Claim) -> bool {
        self.rank > other.rank || self.rank == other.rank && self.since < other.since
    }
}

/// A name without its first label.
fn parent_of(name: &str) -> Option<&str> {
    name.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, parent)| parent)
}

/// By hosts: the value for the most precise one that has any is first.
#[derive(Debug, Clone)]
pub(crate) struct ByHost<T> {
    names: imbl::HashMap<Arc<str>, T>,
    parents: imbl::HashMap<Arc<str>, T>,
    /// Of any depth.
    above: imbl::HashMap<Arc<str>, T>,
    any: Option<T>,
}

impl<T> Default for ByHost<T> {
    fn default() -> ByHost<T> {
        ByHost { names: imbl::HashMap::new(), parents: imbl::HashMap::new(), above: imbl::HashMap::new(), any: None }
    }
}

impl<T: Clone> ByHost<T> {
    pub fn set(&mut self, host: &Host, value: Option<T>) {
        let (map, key) = match host {
            Host::Any => return self.any = value,
            Host::Name(name) => (&mut self.names, name),
            Host::Below(parent) => (&mut self.parents, parent),
            Host::Under(parent) => (&mut self.above, parent),
        };
        match value {
            Some(value) => map.insert(key.clone(), value),
            None => map.remove(key),
        };
    }

    /// All there is.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        let named = [&self.names, &self.parents, &self.above];
        named.into_iter().flat_map(|map| map.values()).chain(&self.any)
    }

    /// What there is for this name, in lower case: the most precise first.
    pub fn get(&self, name: &str) -> impl Iterator<Item = &T> {
        let exact = self.names.get(name);
        let wildcard = parent_of(name).and_then(|parent| self.parents.get(parent));
        // The longest first.
        let first = parent_of(name).filter(|_| !self.above.is_empty() && name.len() <= NAME_BYTES_MAX);
        let parents = std::iter::successors(first, |name: &&str| parent_of(name));
        let above = parents.filter_map(|parent| self.above.get(parent));
        exact.into_iter().chain(wildcard).chain(above).chain(&self.any)
    }
}

/// The object that a route is from, to name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// As `Ingress` or `HTTPRoute`.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its uid.
    pub uid: Arc<str>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Where requests go.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Whose it is.
    pub origin: Arc<Origin>,
    /// Who answers.
    pub backend: Backend,
    /// Whether a request that came without TLS is sent to come with it.
    pub is_secure_only: bool,
    /// What else is done with requests and answers.
    pub options: Arc<Options>,
    /// What else a request must be like.
    pub conditions: Option<Arc<Conditions>>,
}

impl Route {
    fn wants(&self, asked: Option<&Asked<'_>>) -> bool {
        match (&self.conditions, asked) {
            (None, _) => true,
            (Some(conditions), Some(asked)) => asked.meets(conditions),
            (Some(_), None) => false,
        }
    }

    /// Who goes first where two have one path: the greater.
    fn rank(&self) -> Rank {
        self.conditions.as_ref().map(|conditions| conditions.rank()).unwrap_or_default()
    }
}

/// Who answers the requests of a route.
#[derive(Debug, Clone, PartialEq)]
pub enum Backend {
    /// A port of a Service.
    Service {
        /// Namespace and name.
        key: (Arc<str>, Arc<str>),
        /// Which port.
        port: PortName,
    },
    /// Something that is not supported: what it is.
    Other(Arc<str>),
    /// One of these, by their weights.
    Split(Arc<[Forward]>),
    /// Somebody elsewhere.
    Redirect(Arc<Redirect>),
    /// Nobody can: why.
    Nobody(Arc<str>),
}

/// A Service's port, as a route names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortName {
    /// By its number.
    Number(u16),
    /// By its name.
    Name(Arc<str>),
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortName::Number(number) => number.fmt(f),
            PortName::Name(name) => f.write_str(name),
        }
    }
}

/// What is done with the requests and answers of a route.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// `Strict-Transport-Security` of answers that go out with TLS.
    pub hsts: Option<Arc<str>>,
    /// Bytes that a request's body may have.
    pub body_bytes_max: Option<u64>,
    /// How long nothing may come from the backend, and nothing go there, while it is waited for.
    pub silence_max: Option<Duration>,
    /// How long an answer may take to begin.
    pub answer_max: Option<Duration>,
    /// What is changed of requests and answers.
    pub filters: Arc<Filters>,
}

/// How a path is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    /// The whole path, to the byte.
    Exact,
    /// By segments, from the first on; a slash at the end says nothing.
    Prefix,
}

/// The routes of one host.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    exact: HashMap<Box<str>, Vec<Arc<Route>>>,
    /// Asked between the two.
    patterns: Vec<(Pattern, Arc<Route>)>,
    /// A tree of segments, the root first: in a list, so that one of any depth is dropped without recursion.
    segments: Vec<Segment>,
    /// What takes the requests of this host that nothing else does.
    default: Option<Arc<Route>>,
    /// Whether a route may want more than its path.
    has_conditions: bool,
}

#[derive(Debug, Default)]
struct Segment {
    routes: Vec<Arc<Route>>,
    below: HashMap<Box<str>, usize>,
}

/// The segments of an absolute path. One that is empty at the end says nothing; any other empty one is a segment.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let segments = path.strip_suffix('/').unwrap_or(path).split('/');
    segments.skip(usize::from(path.is_empty()))
}

/// How many places of a table a path takes, each of a few hundred bytes: its own, one for each segment that is kept by itself, and
/// those of a long text.
pub(crate) fn places(compare: Compare, path: &str) -> usize {
    let kept = match compare {
        Compare::Exact => 0,
        Compare::Prefix => segments(path).count(),
    };
    1 + kept.max(path.len() / PLACE_BYTES)
}

impl Paths {
    /// Adds a route; the one that has that place keeps it, and is told.
    pub fn add(&mut self, compare: Compare, path: &str, route: &Arc<Route>) -> Result<(), Arc<Route>> {
        let place = self.place(compare, path);
        match place.first() {
            Some(older) if !Arc::ptr_eq(older, route) => Err(older.clone()),
            Some(_) => Ok(()),
            None => {
                place.push(route.clone());
                Ok(())
            }
        }
    }

    /// Adds a route behind those of its path that want as much of a request, or more.
    pub fn add_among(&mut self, compare: Compare, path: &str, route: &Arc<Route>) {
        self.has_conditions |= route.conditions.is_some();
        let place = self.place(compare, path);
        let at = place.partition_point(|other| other.rank() >= route.rank());
        place.insert(at, route.clone());
    }

    /// The same of one whose paths are those of an expression.
    pub fn add_pattern(&mut self, pattern: &Pattern, route: &Arc<Route>) {
        self.has_conditions |= route.conditions.is_some();
        let at = self.patterns.partition_point(|(_, other)| other.rank() >= route.rank());
        self.patterns.insert(at, (pattern.clone(), route.clone()));
    }

    fn place(&mut self, compare: Compare, path: &str) -> &mut Vec<Arc<Route>> {
        match compare {
            Compare::Exact => self.exact.entry(path.into()).or_default(),
            Compare::Prefix => &mut self.segment(path).routes,
        }
    }

    /// The place of a prefix in the tree, made when it is not there.
    fn segment(&mut self, path: &str) -> &mut Segment {
        if self.segments.is_empty() {
            self.segments.push(Segment::default());
        }
        let mut at = 0;
        for segment in segments(path) {
            let next = self.segments.len();
            at = *self.segments[at].below.entry(segment.into()).or_insert(next);
            if at == next {
                self.segments.push(Segment::default());
            }
        }
        &mut self.segments[at]
    }

    /// Takes what no other route of the host does, unless one has that place.
    pub fn add_default(&mut self, route: &Arc<Route>) {
        self.default.get_or_insert_with(|| route.clone());
    }

    pub fn is_empty(&self) -> bool {
        let has_none = self.exact.is_empty() && self.patterns.is_empty() && self.segments.is_empty();
        has_none && self.default.is_none()
    }

    fn find(&self, path: &str, asked: Option<&Asked<'_>>) -> Option<&Arc<Route>> {
        let first = |routes: &'_ [Arc<Route>]| routes.iter().position(|route| route.wants(asked));
        if let Some(routes) = self.exact.get(path)
            && let Some(at) = first(routes)
        {
            return routes.get(at);
        }
        let is_match = |pattern: &Pattern| asked.is_some_and(|asked| asked.matches(pattern, path));
        let mut patterns = self.patterns.iter().filter(|(pattern, route)| route.wants(asked) && is_match(pattern));
        if let Some((_, route)) = patterns.next() {
            return Some(route);
        }
        // What is no path (`*`) has no segments.
        if !path.starts_with('/') {
            return None;
        }
        let mut at = self.segments.first()?;
        // The shorter ones are asked only where the longest may not want it.
        let (mut longest, mut shorter) = (&at.routes, Vec::new());
        for segment in segments(path) {
            let Some(next) = at.below.get(segment) else { break };
            at = &self.segments[*next];
            if at.routes.is_empty() {
                continue;
            }
            if self.has_conditions {
                shorter.push(longest);
            }
            longest = &at.routes;
        }
        let mut all = std::iter::once(longest).chain(shorter.into_iter().rev());
        all.find_map(|routes| routes.get(first(routes)?))
    }
}

/// All routes at one moment.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    hosts: ByHost<Arc<Paths>>,
    default: Option<Arc<Route>>,
}

impl RouteTable {
    /// The route of a request. `host` is in lower case, without a port.
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        self.look(host, path, None)
    }

    /// The same, of what is asked.
    pub fn find_for(&self, host: &str, asked: &Asked<'_>) -> Result<Option<&Arc<Route>>, TooLong> {
        asked.found(self.look(host, asked.path, Some(asked)))
    }

    fn look(&self, host: &str, path: &str, asked: Option<&Asked<'_>>) -> Option<&Arc<Route>> {
        let matched = self.hosts.get(host).find_map(|paths| paths.find(path, asked));
        let default = || self.hosts.get(host).find_map(|paths| paths.default.as_ref());
        matched.or_else(default).or(self.default.as_ref())
    }

    pub(crate) fn set(&mut self, host: &Host, paths: Paths) {
        self.hosts.set(host, (!paths.is_empty()).then(|| Arc::new(paths)));
    }

    pub(crate) fn set_default(&mut self, route: Option<Arc<Route>>) {
        self.default = route;
    }

    #[cfg(test)]
    pub(crate) fn paths(&self, host: &str) -> Option<Arc<Paths>> {
        self.hosts.get(host).next().cloned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A route that is known by its name.
    fn route(name: &str) -> Arc<Route> {
        let text: Arc<str> = name.into();
        let origin = Origin { kind: "Ingress", namespace: "n".into(), name: text.clone(), uid: text.clone() };
        let backend = Backend::Service { key: ("n".into(), text), port: PortName::Number(80) };
        Arc::new(Route {
            origin: Arc::new(origin),
            backend,
            is_secure_only: false,
            options: Arc::default(),
            conditions: None,
        })
    }

    fn table(routes: &[(&str, Compare, &str)]) -> RouteTable {
        let mut hosts: HashMap<Host, Paths> = HashMap::new();
        for (host, compare, path) in routes {
            let name = format!("{host} {compare:?} {path}");
            let _ = hosts.entry(Host::parse(host)).or_default().add(*compare, path, &route(&name));
        }
        let mut table = RouteTable::default();
        hosts.into_iter().for_each(|(host, paths)| table.set(&host, paths));
        table
    }

    fn found<'a>(table: &'a RouteTable, host: &str, path: &str) -> &'a str {
        table.find(host, path).map_or("none", |route| &route.origin.name)
    }

    use Compare::{Exact, Prefix};

    /// The table of examples on Kubernetes' page on Ingress.
    #[test]
    fn paths_match_as_kubernetes_says() {
        for (rules, request, matched) in [
            (&[(Prefix, "/")][..], "/any/path", Some(0)),
            (&[(Exact, "/foo")], "/foo", Some(0)),
            (&[(Exact, "/foo")], "/bar", None),
            (&[(Exact, "/foo")], "/foo/", None),
            (&[(Exact, "/foo/")], "/foo", None),
            (&[(Prefix, "/foo")], "/foo", Some(0)),
            (&[(Prefix, "/foo")], "/foo/", Some(0)),
            (&[(Prefix, "/foo/")], "/foo", Some(0)),
            (&[(Prefix, "/foo/")], "/foo/", Some(0)),
            (&[(Prefix, "/aaa/bb")], "/aaa/bbb", None),
            (&[(Prefix, "/aaa/bbb")], "/aaa/bbb", Some(0)),
            (&[(Prefix, "/aaa/bbb/")], "/aaa/bbb", Some(0)),
            (&[(Prefix, "/aaa/bbb")], "/aaa/bbb/", Some(0)),
            (&[(Prefix, "/aaa/bbb")], "/aaa/bbb/ccc", Some(0)),
            (&[(Prefix, "/aaa/bbb")], "/aaa/bbbxyz", None),
            (&[(Prefix, "/"), (Prefix, "/aaa")], "/aaa/ccc", Some(1)),
            (&[(Prefix, "/"), (Prefix, "/aaa"), (Prefix, "/aaa/bbb")], "/aaa/bbb", Some(2)),
            (&[(Prefix, "/"), (Prefix, "/aaa"), (Prefix, "/aaa/bbb")], "/ccc", Some(0)),
            (&[(Prefix, "/aaa")], "/ccc", None),
            (&[(Prefix, "/foo"), (Exact, "/foo")], "/foo", Some(1)),
            // And what the page does not say: paths are compared as they were sent.
            (&[(Prefix, "/foo")], "/foobar", None),
            (&[(Prefix, "/foo")], "//foo", None),
            (&[(Prefix, "/foo")], "/foo//bar", Some(0)),
            (&[(Prefix, "/foo")], "/foo%2Fbar", None),
            (&[(Prefix, "/foo")], "/Foo", None),
            (&[(Prefix, "/")], "//", Some(0)),
            (&[(Prefix, "/"), (Exact, "/foo/")], "/foo/", Some(1)),
            (&[(Prefix, "/")], "*", None),
        ] {
            let rules: Vec<_> = rules.iter().map(|(compare, path)| ("", *compare, *path)).collect();
            let expected = matched.map_or("none".to_owned(), |at| format!(" {:?} {}", rules[at].1, rules[at].2));
            assert_eq!(found(&table(&rules), "a.example", request), expected, "{rules:?} {request}");
        }
    }

    #[test]
    fn a_name_goes_before_a_wildcard_and_that_before_none() {
        let table = table(&[
            ("a.example.com", Prefix, "/own"),
            ("*.example.com", Prefix, "/"),
            ("", Prefix, "/own/longer"),
            ("", Prefix, "/"),
        ]);
        for (host, path, expected) in [
            ("a.example.com", "/own/longer", "a.example.com Prefix /own"),
            // The host alone does not decide: a rule is for a host and a path.
            ("a.example.com", "/other", "*.example.com Prefix /"),
            ("b.example.com", "/own/longer", "*.example.com Prefix /"),
            ("x.y.example.com", "/", " Prefix /"),
            ("example.com", "/", " Prefix /"),
            (".example.com", "/", " Prefix /"),
            ("", "/own/longer", " Prefix /own/longer"),
        ] {
            assert_eq!(found(&table, host, path), expected, "{host}{path}");
        }
    }

    #[test]
    fn a_name_has_as_many_parents_as_a_name_may_have() {
        let mut by_host = ByHost::default();
        by_host.set(&Host::Under("x".into()), Some("below x"));
        by_host.set(&Host::Any, Some("any"));
        for (labels, expected) in [(126, "below x"), (127, "any"), (30_000, "any")] {
            let name = "a.".repeat(labels) + "x";
            assert_eq!(by_host.get(&name).next(), Some(&expected), "{} bytes", name.len());
        }
    }

    #[test]
    fn defaults_take_what_is_left_the_host_s_own_first() {
        let mut table = table(&[("a.example", Exact, "/x"), ("", Prefix, "/any")]);
        let mut paths = Paths::default();
        paths.add(Exact, "/x", &route("x")).unwrap();
        paths.add_default(&route("own"));
        paths.add_default(&route("late"));
        table.set(&Host::parse("a.example"), paths);
        table.set_default(Some(route("all")));
        for (host, path, expected) in [
            ("a.example", "/x", "x"),
            ("a.example", "/y", "own"),
            ("a.example", "/any", " Prefix /any"),
            ("b.example", "/y", "all"),
            ("b.example", "*", "all"),
        ] {
            assert_eq!(found(&table, host, path), expected, "{host}{path}");
        }
    }

    #[test]
    fn who_was_first_keeps_a_path() {
        let mut paths = Paths::default();
        let (old, new) = (route("old"), route("new"));
        for (compare, path, same) in [(Exact, "/a", "/a"), (Prefix, "/a", "/a/"), (Prefix, "/", "/")] {
            assert!(paths.add(compare, path, &old).is_ok());
            assert_eq!(paths.add(compare, same, &new).unwrap_err().origin.name, old.origin.name, "{path}");
        }
        assert!(paths.add(Exact, "/a/", &new).is_ok());
    }

    #[test]
    fn a_path_of_any_depth_costs_no_stack() {
        let deep = "/a".repeat(1 << 19);
        let table = table(&[("", Prefix, &deep)]);
        assert_ne!(found(&table, "h", &format!("{deep}/b")), "none");
        assert_eq!(found(&table, "h", "/a/a"), "none");
    }

    /// Whether a rule is for a request, and how precisely: by the words of the page, one rule at a time.
    fn oracle(rule: &(String, Compare, String), host: &str, path: &str) -> Option<(u8, usize, bool)> {
        let (rule_host, compare, rule_path) = rule;
        let host_rank = match rule_host.as_str() {
            "" => 0,
            wildcard if wildcard.starts_with("*.") => {
                let label = host.strip_suffix(&wildcard[1..])?;
                (!label.is_empty() && !label.contains('.')).then_some(1)?
            }
            name => (name == host).then_some(2)?,
        };
        let elements = |path: &str| -> Vec<String> {
            let mut all: Vec<String> = path[1..].split('/').map(str::to_owned).collect();
            if all.last().is_some_and(String::is_empty) {
                all.pop();
            }
            all
        };
        match compare {
            Exact => (rule_path == path).then_some((host_rank, usize::MAX, true)),
            Prefix => {
                let (rule, request) = (elements(rule_path), elements(path));
                request.starts_with(&rule).then_some((host_rank, rule.len(), false))
            }
        }
    }

    fn a_path() -> impl Strategy<Value = String> {
        proptest::collection::vec(prop_oneof!["a", "b", "ab", ""], 0..5)
            .prop_map(|parts| format!("/{}", parts.join("/")))
    }

    fn a_host() -> impl Strategy<Value = String> {
        prop_oneof!["[ab]\\.x", "[ab]\\.[ab]\\.x", Just("x".to_owned())]
    }

    proptest! {
        #[test]
        fn it_finds_what_a_look_at_every_rule_finds(
            rules in proptest::collection::vec(
                (
                    prop_oneof![a_host(), Just(String::new()), a_host().prop_map(|host| format!("*.{host}"))],
                    prop_oneof![Just(Exact), Just(Prefix)],
                    a_path(),
                ),
                0..24,
            ),
            host in a_host(),
            path in a_path(),
        ) {
            let borrowed: Vec<_> = rules.iter().map(|(host, compare, path)| (&**host, *compare, &**path)).collect();
            let table = table(&borrowed);
            let ranks = rules.iter().filter_map(|rule| Some((oracle(rule, &host, &path)?, rule)));
            // Of equals the first: `max_by` would take the last.
            let best = ranks.reduce(|best, other| if other.0 > best.0 { other } else { best });
            let expected = best.map_or("none".to_owned(), |(_, (host, compare, path))| format!("{host} {compare:?} {path}"));
            prop_assert_eq!(found(&table, &host, &path), expected);
        }
    }
}
