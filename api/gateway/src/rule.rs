//! A rule of an HTTPRoute, read once: what it is for, and what is done then. What is not supported is an error that says so.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value, json};

use crate::kinds;
use crate::text::{Pattern, TextMatch};

/// Bytes of a path, as of an Ingress.
const PATH_BYTES_MAX: usize = 4096;
/// Bytes of a match that are one place of a table.
const PLACE_BYTES: usize = 256;

/// A rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// What it is for: any of these.
    pub matches: Vec<Match>,
    /// What is changed of requests and answers.
    pub filters: Arc<Filters>,
    /// What is done.
    pub action: Action,
    /// How long an answer may take to begin.
    pub timeout: Option<Duration>,
}

/// A kind of request.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    /// Its path.
    pub path: PathMatch,
    /// What else it must be like.
    pub conditions: Conditions,
}

/// How a path is compared: as it was sent.
#[derive(Debug, Clone, PartialEq)]
pub enum PathMatch {
    /// To the byte.
    Exact(Arc<str>),
    /// By segments from the first on.
    Prefix(Arc<str>),
    /// By an expression.
    Pattern(Pattern),
}

/// What a request must be like beside its path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conditions {
    /// Its method.
    pub method: Option<Method>,
    /// Its headers. Of one that is there more than once, one must do.
    pub headers: Vec<(HeaderName, TextMatch)>,
    /// Parameters of its query. Of one that is there more than once, the first must do.
    pub query: Vec<(String, TextMatch)>,
}

impl Conditions {
    /// Whether any request does.
    pub fn are_none(&self) -> bool {
        *self == Conditions::default()
    }

    /// Who goes first where two are for the same path: the greater.
    pub fn rank(&self) -> (bool, usize, usize) {
        (self.method.is_some(), self.headers.len(), self.query.len())
    }
}

/// What is changed of requests and answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filters {
    /// Of a request's headers.
    pub request: HeaderChanges,
    /// Of an answer's headers.
    pub response: HeaderChanges,
    /// Of whom it asks for what.
    pub rewrite: Rewrite,
}

impl Filters {
    /// Whether nothing is changed.
    pub fn are_none(&self) -> bool {
        *self == Filters::default()
    }
}

/// Changes of headers, in this order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeaderChanges {
    /// These are so, and no others of their names are there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// These come to those that are there.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// These go.
    pub remove: Vec<HeaderName>,
}

/// Another host or path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rewrite {
    /// Its host.
    pub hostname: Option<Arc<str>>,
    /// Its path.
    pub path: Option<PathChange>,
}

/// Another path.
#[derive(Debug, Clone, PartialEq)]
pub enum PathChange {
    /// This one.
    Full(Arc<str>),
    /// The part that was compared ([`PathMatch::Prefix`], `from`) becomes another.
    Prefix {
        /// What was compared.
        from: Arc<str>,
        /// What it becomes.
        to: Arc<str>,
    },
}

impl PathChange {
    /// The path after the change.
    pub fn apply(&self, path: &str) -> String {
        match self {
            PathChange::Full(path) => match path.starts_with('/') {
                true => path.to_string(),
                false => format!("/{path}"),
            },
            PathChange::Prefix { from, to } => {
                // By whole segments, as it is compared: a slash at an end says nothing.
                let (from, to) = (from.trim_end_matches('/'), to.trim_end_matches('/'));
                let rest = path.strip_prefix(from).unwrap_or_default();
                match format!("{to}{rest}") {
                    path if path.starts_with('/') => path,
                    path => format!("/{path}"),
                }
            }
        }
    }
}

/// What is done with a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// One of these answers, by their weights.
    Forward(Vec<Forward>),
    /// It is to be asked elsewhere.
    Redirect(Redirect),
    /// It is answered 500: the rule cannot be honoured.
    Fail(Arc<str>),
}

/// Who may answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// How often, of the sum of all.
    pub weight: u32,
    /// Who; or what is wrong with it, which is answered 500.
    pub target: Result<Target, Arc<str>>,
    /// What is changed beside the rule's own.
    pub filters: Arc<Filters>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The port.
    pub port: u16,
}

/// Where else to ask.
#[derive(Debug, Clone, PartialEq)]
pub struct Redirect {
    /// `http` or `https`; the request's own otherwise.
    pub scheme: Option<&'static str>,
    /// The request's own otherwise.
    pub hostname: Option<Arc<str>>,
    /// The request's own otherwise.
    pub path: Option<PathChange>,
    /// By the scheme otherwise; where there is none, the listener's.
    pub port: Option<u16>,
    /// The answer's status.
    pub status: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuleSpec {
    filters: Vec<Value>,
    backend_refs: Vec<BackendSpec>,
    timeouts: Timeouts,
    /// Read by themselves.
    name: IgnoredAny,
    matches: IgnoredAny,
    /// What else is there, as `retry`.
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct MatchSpec {
    path: TextSpec,
    headers: Vec<TextSpec>,
    query_params: Vec<TextSpec>,
    method: Option<String>,
}

/// A text to be compared.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TextSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: String,
    value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Timeouts {
    request: Option<String>,
    backend_request: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct BackendSpec {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<u16>,
    weight: Option<u32>,
    filters: Vec<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HeadersSpec {
    set: Vec<TextSpec>,
    add: Vec<TextSpec>,
    remove: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct RedirectSpec {
    scheme: Option<String>,
    hostname: Option<String>,
    path: Option<PathSpec>,
    port: Option<u16>,
    status_code: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RewriteSpec {
    hostname: Option<String>,
    path: Option<PathSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct PathSpec {
    #[serde(rename = "type")]
    kind: String,
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
}

/// What is wrong with a reference to a backend: the condition's reason, and words.
pub(crate) type Broken = (&'static str, String);

/// A rule as it is read.
pub(crate) struct Read {
    pub rule: Rule,
    /// What of it is not supported.
    pub unsupported: Option<String>,
    /// What is wrong with its backends.
    pub broken: Vec<Broken>,
}

/// What a rule is for, as far as that can be read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Matches {
    pub all: Vec<Match>,
    /// What is not supported.
    pub unsupported: Option<String>,
}

/// Reads what a rule is for.
pub(crate) fn matches(spec: &Value) -> Matches {
    let (mut all, mut unsupported) = (Vec::new(), None);
    let everything = [json!({})];
    let specs = match &spec["matches"] {
        Value::Null => &everything[..],
        Value::Array(specs) if specs.is_empty() => &everything,
        Value::Array(specs) => specs,
        _ => {
            unsupported = Some("a rule cannot be read: its matches are no list".to_owned());
            &[]
        }
    };
    for spec in specs {
        let read = MatchSpec::deserialize(spec).map_err(|error| format!("a match cannot be read: {error}"));
        match read.and_then(|spec| read_match(&spec)) {
            Ok(read) => all.push(read),
            // The others stay the rule's: what they are for must not become another rule's.
            Err(why) => drop(unsupported.get_or_insert(why)),
        }
    }
    Matches { all, unsupported }
}

/// What a rule takes of memory and time, before anything of it is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Of a table, each of a few hundred bytes: one for each match, and one for each segment of its path, or for 256 bytes.
    pub places: usize,
    /// Regular expressions.
    pub expressions: usize,
}

/// What a rule costs for one host.
pub(crate) fn cost(spec: &Value) -> Cost {
    let mut cost = Cost::default();
    let matches = spec["matches"].as_array().map(Vec::as_slice).unwrap_or_default();
    for of in matches {
        let path = of["path"]["value"].as_str().unwrap_or("/");
        let texts = ["headers", "queryParams"].iter().flat_map(|name| of[*name].as_array().into_iter().flatten());
        let is_expression = |of: &Value| of["type"] == "RegularExpression";
        cost.expressions += usize::from(is_expression(&of["path"]));
        let mut bytes = path.len();
        for text in texts {
            cost.expressions += usize::from(is_expression(text));
            bytes += ["name", "value"].iter().filter_map(|name| text[*name].as_str()).map(str::len).sum::<usize>();
        }
        let is_prefix = of["path"]["type"].as_str().is_none_or(|kind| kind == "PathPrefix");
        let inner = path.strip_prefix('/').unwrap_or(path);
        let inner = inner.strip_suffix('/').unwrap_or(inner);
        let segments = if is_prefix && !inner.is_empty() { inner.matches('/').count() + 1 } else { 0 };
        cost.places += 1 + segments.max(bytes / PLACE_BYTES);
    }
    // One without a match is for everything.
    cost.places = cost.places.max(1);
    cost
}

/// Reads a rule that is for these. `may_refer` says whether a Service of another namespace may be referred to. One that is not supported
/// matches as it says, as far as that can be read, and is answered 500.
pub(crate) fn read(namespace: &Arc<str>, spec: &Value, of: &Matches, may_refer: &dyn Fn(&Target) -> bool) -> Read {
    let matches = of.all.clone();
    if let Some(why) = &of.unsupported {
        return unsupported(matches, why.clone());
    }
    let whole = RuleSpec::deserialize(spec).map_err(|error| format!("a rule cannot be read: {error}"));
    let whole = match whole {
        Ok(whole) => whole,
        Err(why) => return unsupported(matches, why),
    };
    let mut broken = Vec::new();
    match read_whole(namespace, &matches, whole, may_refer, &mut broken) {
        Ok((filters, action, timeout)) => {
            let rule = Rule { matches, filters: Arc::new(filters), action, timeout };
            Read { rule, unsupported: None, broken }
        }
        Err(why) => Read { broken, ..unsupported(matches, why) },
    }
}

fn unsupported(matches: Vec<Match>, why: String) -> Read {
    let action = Action::Fail(why.as_str().into());
    Read {
        rule: Rule { matches, filters: Arc::default(), action, timeout: None },
        unsupported: Some(why),
        broken: Vec::new(),
    }
}

fn read_match(spec: &MatchSpec) -> Result<Match, String> {
    let value: Arc<str> = spec.path.value.as_deref().unwrap_or("/").into();
    if value.len() > PATH_BYTES_MAX {
        return Err(format!("a path has more than {PATH_BYTES_MAX} bytes"));
    }
    let path = match spec.path.kind.as_deref().unwrap_or("PathPrefix") {
        "Exact" => PathMatch::Exact(value),
        "PathPrefix" => PathMatch::Prefix(value),
        "RegularExpression" => PathMatch::Pattern(Pattern::parse(&value)?),
        other => return Err(format!("type {other:?} of a path is not supported")),
    };
    let method = match &spec.method {
        Some(method) => Some(Method::from_bytes(method.as_bytes()).map_err(|_| format!("{method:?} is no method"))?),
        None => None,
    };
    let (mut headers, mut query) = (Vec::new(), Vec::new());
    // Of entries for one name the first counts.
    let mut names = HashSet::new();
    for spec in &spec.headers {
        let name = header_name(&spec.name)?;
        let text = TextMatch::read(spec.kind.as_deref(), spec.value.as_deref().unwrap_or_default())?;
        if names.insert(name.clone()) {
            headers.push((name, text));
        }
    }
    let mut names = HashSet::new();
    for spec in &spec.query_params {
        let text = TextMatch::read(spec.kind.as_deref(), spec.value.as_deref().unwrap_or_default())?;
        if names.insert(spec.name.clone()) {
            query.push((spec.name.clone(), text));
        }
    }
    Ok(Match { path, conditions: Conditions { method, headers, query } })
}

fn read_whole(
    namespace: &Arc<str>,
    matches: &[Match],
    spec: RuleSpec,
    may_refer: &dyn Fn(&Target) -> bool,
    broken: &mut Vec<Broken>,
) -> Result<(Filters, Action, Option<Duration>), String> {
    if let Some(name) = kinds::first(&spec.others) {
        return Err(format!("{name} is not supported"));
    }
    let (filters, redirect) = read_filters(&spec.filters, matches)?;
    let mut timeout: Option<Duration> = None;
    for text in [&spec.timeouts.request, &spec.timeouts.backend_request].into_iter().flatten() {
        // 0 is no bound.
        let read = duration(text).ok_or_else(|| format!("{text:?} is no duration"))?;
        timeout = [timeout, Some(read).filter(|read| !read.is_zero())].into_iter().flatten().min();
    }
    let mut forward = Vec::new();
    for backend in spec.backend_refs {
        let target = target(namespace, &backend, may_refer).map_err(|why: Broken| {
            let words = Arc::<str>::from(why.1.as_str());
            broken.push(why);
            words
        });
        let (filters, redirects) = read_filters(&backend.filters, matches)?;
        if redirects.is_some() || filters.rewrite != Rewrite::default() {
            return Err("filters of a backend other than modifiers of headers are not supported".to_owned());
        }
        forward.push(Forward { weight: backend.weight.unwrap_or(1), target, filters: Arc::new(filters) });
    }
    let action = match redirect {
        Some(_) if !forward.is_empty() => return Err("a rule that redirects has backends".to_owned()),
        Some(_) if filters.rewrite != Rewrite::default() => {
            return Err("RequestRedirect and URLRewrite are not for one rule".to_owned());
        }
        Some(redirect) => Action::Redirect(redirect),
        None if forward.iter().all(|forward| forward.weight == 0) => Action::Fail("its rule has no backend".into()),
        None => Action::Forward(forward),
    };
    Ok((filters, action, timeout))
}

fn target(namespace: &Arc<str>, spec: &BackendSpec, may_refer: &dyn Fn(&Target) -> bool) -> Result<Target, Broken> {
    let (group, kind) = (spec.group.as_deref().unwrap_or_default(), spec.kind.as_deref().unwrap_or("Service"));
    if (group, kind) != ("", "Service") {
        return Err(("InvalidKind", format!("backend {kind} {} is no Service", spec.name)));
    }
    let of = spec.namespace.as_deref().map_or_else(|| namespace.clone(), Arc::from);
    let Some(port) = spec.port.filter(|port| *port != 0) else {
        return Err(("BackendNotFound", format!("backend {of}/{} has no port", spec.name)));
    };
    let target = Target { namespace: of, name: spec.name.as_str().into(), port };
    if target.namespace != *namespace && !may_refer(&target) {
        let why = format!("no ReferenceGrant of namespace {} permits backend {}", target.namespace, target.name);
        return Err(("RefNotPermitted", why));
    }
    Ok(target)
}

fn read_filters(specs: &[Value], matches: &[Match]) -> Result<(Filters, Option<Redirect>), String> {
    let (mut filters, mut redirect) = (Filters::default(), None);
    let mut seen = HashSet::new();
    for spec in specs {
        // What other kinds of filters have is not looked at.
        let kind = spec["type"].as_str().unwrap_or_default();
        if !seen.insert(kind) {
            return Err(format!("filter {kind} is there twice"));
        }
        match kind {
            "RequestHeaderModifier" => filters.request = changes(&part(spec, "requestHeaderModifier")?)?,
            "ResponseHeaderModifier" => filters.response = changes(&part(spec, "responseHeaderModifier")?)?,
            "URLRewrite" => {
                let RewriteSpec { hostname, path } = part(spec, "urlRewrite")?;
                let hostname = hostname.as_deref().map(Arc::from);
                filters.rewrite = Rewrite { hostname, path: path_change(path.as_ref(), matches)? };
            }
            "RequestRedirect" => redirect = Some(read_redirect(&part(spec, "requestRedirect")?, matches)?),
            _ => return Err(format!("filter {kind} is not supported")),
        }
    }
    Ok((filters, redirect))
}

/// What a filter says of its kind.
fn part<T: DeserializeOwned + Default>(spec: &Value, name: &str) -> Result<T, String> {
    let read = Option::deserialize(&spec[name]).map(Option::unwrap_or_default);
    read.map_err(|error| format!("{name} of a filter cannot be read: {error}"))
}

fn read_redirect(spec: &RedirectSpec, matches: &[Match]) -> Result<Redirect, String> {
    let scheme = match spec.scheme.as_deref() {
        None => None,
        Some("http") => Some("http"),
        Some("https") => Some("https"),
        Some(other) => return Err(format!("scheme {other:?} of a redirect is not supported")),
    };
    let status = spec.status_code.unwrap_or(302);
    if ![301, 302, 303, 307, 308].contains(&status) {
        return Err(format!("status code {status} of a redirect is not supported"));
    }
    let path = path_change(spec.path.as_ref(), matches)?;
    Ok(Redirect { scheme, hostname: spec.hostname.as_deref().map(Arc::from), path, port: spec.port, status })
}

fn path_change(spec: Option<&PathSpec>, matches: &[Match]) -> Result<Option<PathChange>, String> {
    let Some(spec) = spec else { return Ok(None) };
    let text = |value: &Option<String>| Arc::<str>::from(value.as_deref().unwrap_or_default());
    let change = match spec.kind.as_str() {
        "ReplaceFullPath" => PathChange::Full(text(&spec.replace_full_path)),
        "ReplacePrefixMatch" => match matches {
            [Match { path: PathMatch::Prefix(from), .. }] => {
                PathChange::Prefix { from: from.clone(), to: text(&spec.replace_prefix_match) }
            }
            _ => return Err("ReplacePrefixMatch is for a rule with one match, by PathPrefix".to_owned()),
        },
        other => return Err(format!("type {other:?} of a path's change is not supported")),
    };
    let is_path = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte));
    let (PathChange::Full(to) | PathChange::Prefix { to, .. }) = &change;
    if is_path(to) { Ok(Some(change)) } else { Err(format!("{to:?} is no path")) }
}

/// Headers that say where a message begins and ends, and whom it is for: changing them would make another message of it.
const FRAMING: [&str; 6] = ["content-length", "transfer-encoding", "connection", "upgrade", "te", "host"];

fn changes(spec: &HeadersSpec) -> Result<HeaderChanges, String> {
    let name = |text: &str| {
        let name = header_name(text)?;
        if FRAMING.contains(&name.as_str()) {
            return Err(format!("header {name} may not be changed"));
        }
        Ok(name)
    };
    let pair = |spec: &TextSpec| {
        let value = spec.value.as_deref().unwrap_or_default();
        let value = HeaderValue::from_str(value).map_err(|_| format!("{value:?} is no value of a header"))?;
        Ok::<_, String>((name(&spec.name)?, value))
    };
    Ok(HeaderChanges {
        set: spec.set.iter().map(pair).collect::<Result<_, _>>()?,
        add: spec.add.iter().map(pair).collect::<Result<_, _>>()?,
        remove: spec.remove.iter().map(|text| name(text)).collect::<Result<_, _>>()?,
    })
}

fn header_name(text: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("{text:?} is no name of a header"))
}

/// A duration of Gateway API (GEP-2257): up to four of `h`, `m`, `s` and `ms`, each with up to five digits.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let (mut all, mut parts) = (Duration::ZERO, 0);
    while !rest.is_empty() {
        let end = rest.find(|sign: char| !sign.is_ascii_digit()).filter(|end| (1..=5).contains(end))?;
        let number: u64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|sign: char| sign.is_ascii_digit()).unwrap_or(rest.len());
        let unit_ms = match &rest[..end] {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1000,
            "ms" => 1,
            _ => return None,
        };
        rest = &rest[end..];
        (all, parts) = (all + Duration::from_millis(number * unit_ms), parts + 1);
    }
    (1..=4).contains(&parts).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: Value) -> Read {
        read(&"n".into(), &spec, &matches(&spec), &|target| &*target.name == "granted")
    }

    #[test]
    fn durations_are_those_of_gateway_api() {
        for (text, millis) in [
            ("0s", Some(0)),
            ("10s", Some(10_000)),
            ("1h30m", Some(5_400_000)),
            ("2s500ms", Some(2500)),
            ("", None),
            ("10", None),
            ("s", None),
            ("1.5s", None),
            ("123456s", None),
            ("1h1m1s1ms1ms", None),
            ("-1s", None),
            ("1d", None),
        ] {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
        }
    }

    /// The table in the description of `ReplacePrefixMatch`.
    #[test]
    fn a_prefix_is_replaced_by_whole_segments() {
        for (path, from, to, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "/", "/xyz", "/xyz/foo"),
            ("/", "/", "/xyz", "/xyz/"),
        ] {
            let change = PathChange::Prefix { from: from.into(), to: to.into() };
            assert_eq!(change.apply(path), expected, "{path} {from} {to}");
        }
        assert_eq!(PathChange::Full("/a".into()).apply("/b"), "/a");
        assert_eq!(PathChange::Full("".into()).apply("/b"), "/");
    }

    #[test]
    fn a_rule_is_read_whole() {
        let read = of(json!({
            "matches": [{"path": {"type": "PathPrefix", "value": "/a"}, "method": "GET",
                "headers": [{"name": "X-One", "value": "1"}, {"name": "x-one", "value": "2"}],
                "queryParams": [{"type": "RegularExpression", "name": "q", "value": "[0-9]+"}]}],
            "filters": [
                {"type": "RequestHeaderModifier", "requestHeaderModifier":
                    {"set": [{"name": "a", "value": "1"}], "add": [{"name": "b", "value": "2"}], "remove": ["c"]}},
                {"type": "URLRewrite", "urlRewrite":
                    {"hostname": "h", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"}}},
            ],
            "backendRefs": [{"name": "web", "port": 80, "weight": 3}, {"name": "other", "port": 81}],
            "timeouts": {"request": "10s", "backendRequest": "2s"},
        }));
        assert_eq!((&read.unsupported, read.broken.len()), (&None, 0));
        let Match { path, conditions } = &read.rule.matches[0];
        assert_eq!(*path, PathMatch::Prefix("/a".into()));
        assert_eq!(conditions.rank(), (true, 1, 1), "of one name the first entry counts");
        assert_eq!(read.rule.timeout, Some(Duration::from_secs(2)));
        assert_eq!(read.rule.filters.request.set[0].0, "a");
        let change = PathChange::Prefix { from: "/a".into(), to: "/b".into() };
        assert_eq!(read.rule.filters.rewrite.path, Some(change));
        let Action::Forward(forward) = &read.rule.action else { panic!("{:?}", read.rule.action) };
        let shares: Vec<_> = forward.iter().map(|one| (one.weight, one.target.as_ref().unwrap().port)).collect();
        assert_eq!(shares, [(3, 80), (1, 81)]);
        let nothing = of(json!({}));
        assert_eq!(nothing.rule.matches[0].path, PathMatch::Prefix("/".into()));
        assert!(matches!(nothing.rule.action, Action::Fail(_)) && nothing.unsupported.is_none(), "500, as it says");
    }

    #[test]
    fn what_is_not_supported_says_so_and_fails_its_requests() {
        let prefix = json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"});
        for (spec, words) in [
            (
                json!({"filters": [{"type": "RequestMirror", "requestMirror": {}}]}),
                "filter RequestMirror is not supported",
            ),
            (
                json!({"filters": [{"type": "ExtensionRef", "extensionRef": {}}]}),
                "filter ExtensionRef is not supported",
            ),
            (json!({"filters": [{"type": "CORS"}]}), "filter CORS is not supported"),
            (json!({"filters": [{"type": "URLRewrite"}, {"type": "URLRewrite"}]}), "filter URLRewrite is there twice"),
            (json!({"retry": {"attempts": 3}}), "retry is not supported"),
            (json!({"sessionPersistence": {}}), "sessionPersistence is not supported"),
            (json!({"matches": [{"later": 1}]}), "a match cannot be read: unknown field `later`"),
            (json!({"timeouts": {"later": "1s"}}), "a rule cannot be read: unknown field `later`"),
            (
                json!({"backendRefs": [{"name": "a", "port": 80, "later": 1}]}),
                "a rule cannot be read: unknown field `later`",
            ),
            (json!({"comesLater": 1}), "comesLater is not supported"),
            (
                json!({"matches": [{"path": {"type": "Glob", "value": "/"}}]}),
                "type \"Glob\" of a path is not supported",
            ),
            (
                json!({"matches": [{"headers": [{"type": "X", "name": "a", "value": ""}]}]}),
                "type \"X\" of a match is not supported",
            ),
            (
                json!({"matches": [{"path": {"type": "RegularExpression", "value": "("}}]}),
                "\"(\" is no regular expression",
            ),
            (
                json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"scheme": "ftp"}}]}),
                "scheme \"ftp\" of a redirect is not supported",
            ),
            (
                json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 404}}]}),
                "status code 404 of a redirect is not supported",
            ),
            (
                json!({"filters": [{"type": "RequestRedirect"}], "backendRefs": [{"name": "a", "port": 1}]}),
                "a rule that redirects has backends",
            ),
            (
                json!({"matches": [{"path": {"type": "Exact", "value": "/a"}}], "filters": [{"type": "URLRewrite", "urlRewrite": {"path": prefix}}]}),
                "ReplacePrefixMatch is for a rule with one match, by PathPrefix",
            ),
            (
                json!({"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["Content-Length"]}}]}),
                "header content-length may not be changed",
            ),
            (json!({"timeouts": {"request": "soon"}}), "\"soon\" is no duration"),
            (
                json!({"backendRefs": [{"name": "a", "port": 1, "filters": [{"type": "URLRewrite"}, {"type": "RequestRedirect"}]}]}),
                "filters of a backend other than modifiers of headers are not supported",
            ),
            (json!({"matches": 7}), "a rule cannot be read: "),
        ] {
            let read = of(spec.clone());
            let why = read.unsupported.unwrap_or_default();
            assert!(why.starts_with(words), "{spec}: {why}");
            assert!(matches!(read.rule.action, Action::Fail(_)), "{spec}");
        }
    }

    #[test]
    fn a_match_that_cannot_be_read_takes_none_of_the_others_away() {
        let path = |value: &str| json!({"path": {"type": "Exact", "value": value}});
        for odd in [
            json!({"path": {"type": "RegularExpression", "value": "("}}),
            json!({"path": 7}),
            json!({"headers": [{"name": "no name", "value": ""}]}),
        ] {
            let read = of(json!({"matches": [path("/a"), odd, path("/b")]}));
            let paths: Vec<_> = read.rule.matches.iter().map(|of| of.path.clone()).collect();
            assert_eq!(paths, ["/a", "/b"].map(|path| PathMatch::Exact(path.into())), "{odd}");
            assert!(read.unsupported.is_some() && matches!(read.rule.action, Action::Fail(_)), "{odd}");
        }
        // Nor does what else of a rule cannot be read.
        let read = of(json!({"matches": [path("/a")], "backendRefs": 7}));
        assert!(read.unsupported.is_some() && read.rule.matches.len() == 1);
    }

    #[test]
    fn what_is_wrong_with_a_backend_is_told_and_the_others_stay() {
        for (backend, reason) in [
            (json!({"name": "web", "port": 80}), None),
            (json!({"name": "granted", "namespace": "other", "port": 80}), None),
            (json!({"name": "web", "namespace": "other", "port": 80}), Some("RefNotPermitted")),
            (json!({"name": "web", "kind": "Bucket", "group": "x", "port": 80}), Some("InvalidKind")),
            (json!({"name": "web"}), Some("BackendNotFound")),
        ] {
            let read = of(json!({"backendRefs": [backend, {"name": "good", "port": 80}]}));
            assert_eq!(read.broken.first().map(|(reason, _)| *reason), reason, "{backend}");
            let Action::Forward(forward) = &read.rule.action else { panic!("{:?}", read.rule.action) };
            assert_eq!([forward[0].target.is_ok(), forward[1].target.is_ok()], [reason.is_none(), true]);
        }
    }
}
