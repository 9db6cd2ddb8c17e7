//! A rule of an HTTPRoute or a GRPCRoute, read once: what it is for, and what is done then. What is not supported is an error that says
//! so. What a GRPCRoute says of services and methods ([`crate::grpc`]) becomes what an HTTPRoute says of paths: behind this one there is
//! one kind of rule.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value, json};

use crate::grpc;
use crate::kinds::{self, RouteKind};
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
    /// What comes behind the first segment of its path, which is all there is: the name of a gRPC method, of any service.
    pub call: Option<Arc<str>>,
}

/// How much conditions want.
pub type Rank = (usize, bool, usize, usize);

impl Conditions {
    /// Whether any request does.
    pub fn are_none(&self) -> bool {
        *self == Conditions::default()
    }

    /// Who goes first where two are for the same path: the greater.
    pub fn rank(&self) -> Rank {
        let call = self.call.as_ref().map_or(0, |call| call.len());
        (call, self.method.is_some(), self.headers.len(), self.query.len())
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
    /// Who gets a copy of it.
    pub mirrors: Vec<Mirror>,
}

/// Who gets copies of requests, and answers them in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Who.
    pub target: Target,
    /// How often.
    pub share: Share,
}

/// So many of so many, which are not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// These,
    pub numerator: u32,
    /// of these.
    pub denominator: u32,
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
    timeouts: Option<Timeouts>,
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
pub(crate) struct TextSpec {
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

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct MirrorSpec {
    backend_ref: BackendSpec,
    percent: Option<u32>,
    fraction: Option<FractionSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FractionSpec {
    numerator: u32,
    denominator: Option<u32>,
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
pub(crate) fn matches(kind: RouteKind, spec: &Value) -> Matches {
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
        let read = match kind {
            RouteKind::Http => read_as(spec).and_then(|spec: MatchSpec| read_match(&spec)),
            RouteKind::Grpc => read_as(spec).and_then(|spec: grpc::MatchSpec| spec.read()),
        };
        match read {
            Ok(read) => all.push(read),
            // The others stay the rule's: what they are for must not become another rule's.
            Err(why) => drop(unsupported.get_or_insert(why)),
        }
    }
    Matches { all, unsupported }
}

fn read_as<T: DeserializeOwned>(spec: &Value) -> Result<T, String> {
    T::deserialize(spec).map_err(|error| format!("a match cannot be read: {error}"))
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
        let method = &of["method"];
        let path = of["path"]["value"].as_str().unwrap_or("/");
        let texts = ["headers", "queryParams"].iter().flat_map(|name| of[*name].as_array().into_iter().flatten());
        let is_expression = |of: &Value| of["type"] == "RegularExpression";
        // A GRPCRoute's method is an object, and becomes one path; an HTTPRoute's is a word.
        cost.expressions += usize::from(is_expression(&of["path"])) + usize::from(is_expression(method));
        let mut bytes = path.len();
        bytes += ["service", "method"].iter().filter_map(|name| method[*name].as_str()).map(str::len).sum::<usize>();
        for text in texts {
            cost.expressions += usize::from(is_expression(text));
            bytes += ["name", "value"].iter().filter_map(|name| text[*name].as_str()).map(str::len).sum::<usize>();
        }
        let is_prefix = of["path"]["type"].as_str().is_none_or(|kind| kind == "PathPrefix");
        let inner = path.strip_prefix('/').unwrap_or(path);
        let inner = inner.strip_suffix('/').unwrap_or(inner);
        let segments = if is_prefix && !inner.is_empty() { inner.matches('/').count() + 1 } else { 0 };
        let segments = segments + usize::from(method["service"].is_string());
        cost.places += 1 + segments.max(bytes / PLACE_BYTES);
    }
    // One without a match is for everything.
    cost.places = cost.places.max(1);
    cost
}

/// A route that refers to Services.
pub(crate) struct Referring<'a> {
    pub kind: RouteKind,
    pub namespace: &'a Arc<str>,
    /// Whether it may refer to a Service of another namespace.
    pub may_refer: &'a dyn Fn(&Target) -> bool,
}

/// Reads a rule that is for these. One that is not supported matches as it says, as far as that can be read, and is answered 500.
pub(crate) fn read(of_route: &Referring<'_>, spec: &Value, of: &Matches) -> Read {
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
    match of_route.read_whole(&matches, whole, &mut broken) {
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
    let headers = read_headers(&spec.headers)?;
    let mut query = Vec::new();
    let mut names = HashSet::new();
    for spec in &spec.query_params {
        let text = TextMatch::read(spec.kind.as_deref(), spec.value.as_deref().unwrap_or_default())?;
        if names.insert(spec.name.clone()) {
            query.push((spec.name.clone(), text));
        }
    }
    Ok(Match { path, conditions: Conditions { method, headers, query, call: None } })
}

/// What headers must be like. Of entries for one name the first counts.
pub(crate) fn read_headers(specs: &[TextSpec]) -> Result<Vec<(HeaderName, TextMatch)>, String> {
    let (mut headers, mut names) = (Vec::new(), HashSet::new());
    for spec in specs {
        let name = header_name(&spec.name)?;
        let text = TextMatch::read(spec.kind.as_deref(), spec.value.as_deref().unwrap_or_default())?;
        if names.insert(name.clone()) {
            headers.push((name, text));
        }
    }
    Ok(headers)
}

impl Referring<'_> {
    fn read_whole(
        &self,
        matches: &[Match],
        spec: RuleSpec,
        broken: &mut Vec<Broken>,
    ) -> Result<(Filters, Action, Option<Duration>), String> {
        if let Some(name) = kinds::first(&spec.others) {
            return Err(format!("{name} is not supported"));
        }
        let timeouts = match spec.timeouts {
            Some(_) if self.kind == RouteKind::Grpc => return Err("timeouts is not supported".to_owned()),
            other => other.unwrap_or_default(),
        };
        let (filters, redirect) = self.read_filters(&spec.filters, matches, broken)?;
        let mut timeout: Option<Duration> = None;
        for text in [&timeouts.request, &timeouts.backend_request].into_iter().flatten() {
            // 0 is no bound.
            let read = duration(text).ok_or_else(|| format!("{text:?} is no duration"))?;
            timeout = [timeout, Some(read).filter(|read| !read.is_zero())].into_iter().flatten().min();
        }
        let mut forward = Vec::new();
        for backend in spec.backend_refs {
            let target = self.target(&backend).map_err(|why: Broken| {
                let words = Arc::<str>::from(why.1.as_str());
                broken.push(why);
                words
            });
            let (filters, redirects) = self.read_filters(&backend.filters, matches, broken)?;
            if redirects.is_some() || filters.rewrite != Rewrite::default() || has_mirror(&backend.filters) {
                return Err("filters of a backend other than modifiers of headers are not supported".to_owned());
            }
            forward.push(Forward { weight: backend.weight.unwrap_or(1), target, filters: Arc::new(filters) });
        }
        let action = match redirect {
            Some(_) if !forward.is_empty() => return Err("a rule that redirects has backends".to_owned()),
            Some(_) if filters.rewrite != Rewrite::default() => {
                return Err("RequestRedirect and URLRewrite are not for one rule".to_owned());
            }
            Some(_) if has_mirror(&spec.filters) => {
                return Err("RequestRedirect and RequestMirror are not for one rule".to_owned());
            }
            Some(redirect) => Action::Redirect(redirect),
            None if forward.iter().all(|forward| forward.weight == 0) => Action::Fail("its rule has no backend".into()),
            None => Action::Forward(forward),
        };
        Ok((filters, action, timeout))
    }

    fn target(&self, spec: &BackendSpec) -> Result<Target, Broken> {
        let (group, kind) = (spec.group.as_deref().unwrap_or_default(), spec.kind.as_deref().unwrap_or("Service"));
        if (group, kind) != ("", "Service") {
            return Err(("InvalidKind", format!("backend {kind} {} is no Service", spec.name)));
        }
        let of = spec.namespace.as_deref().map_or_else(|| self.namespace.clone(), Arc::from);
        let Some(port) = spec.port.filter(|port| *port != 0) else {
            return Err(("BackendNotFound", format!("backend {of}/{} has no port", spec.name)));
        };
        let target = Target { namespace: of, name: spec.name.as_str().into(), port };
        if target.namespace != *self.namespace && !(self.may_refer)(&target) {
            let why = format!("no ReferenceGrant of namespace {} permits backend {}", target.namespace, target.name);
            return Err(("RefNotPermitted", why));
        }
        Ok(target)
    }

    fn read_filters(
        &self,
        specs: &[Value],
        matches: &[Match],
        broken: &mut Vec<Broken>,
    ) -> Result<(Filters, Option<Redirect>), String> {
        let (mut filters, mut redirect) = (Filters::default(), None);
        let mut seen = HashSet::new();
        for spec in specs {
            // What other kinds of filters have is not looked at.
            let kind = spec["type"].as_str().unwrap_or_default();
            if !seen.insert(kind) && kind != MIRROR {
                return Err(format!("filter {kind} is there twice"));
            }
            match kind {
                "RequestHeaderModifier" => filters.request = changes(&part(spec, "requestHeaderModifier")?)?,
                "ResponseHeaderModifier" => filters.response = changes(&part(spec, "responseHeaderModifier")?)?,
                "URLRewrite" if self.kind == RouteKind::Http => {
                    let RewriteSpec { hostname, path } = part(spec, "urlRewrite")?;
                    let hostname = hostname.as_deref().map(Arc::from);
                    filters.rewrite = Rewrite { hostname, path: path_change(path.as_ref(), matches)? };
                }
                "RequestRedirect" if self.kind == RouteKind::Http => {
                    redirect = Some(read_redirect(&part(spec, "requestRedirect")?, matches)?);
                }
                MIRROR => {
                    let spec: MirrorSpec = part(spec, "requestMirror")?;
                    let share = read_share(&spec)?;
                    if spec.backend_ref.weight.is_some() || !spec.backend_ref.filters.is_empty() {
                        return Err("the backend of a mirror has no weight and no filters".to_owned());
                    }
                    // One that is not there is told, and the others stay.
                    match self.target(&spec.backend_ref) {
                        Ok(target) => filters.mirrors.push(Mirror { target, share }),
                        Err(why) => broken.push(why),
                    }
                }
                _ => return Err(format!("filter {kind} is not supported")),
            }
        }
        Ok((filters, redirect))
    }
}

/// The filter that has requests copied. It alone may be there several times.
const MIRROR: &str = "RequestMirror";

fn has_mirror(specs: &[Value]) -> bool {
    specs.iter().any(|spec| spec["type"] == MIRROR)
}

/// Of how many requests copies are made: of all, where nothing is said.
fn read_share(spec: &MirrorSpec) -> Result<Share, String> {
    let share = match (spec.percent, &spec.fraction) {
        (Some(_), Some(_)) => return Err("a mirror has percent or fraction, not both".to_owned()),
        (Some(percent), None) => Share { numerator: percent, denominator: 100 },
        (None, Some(of)) => Share { numerator: of.numerator, denominator: of.denominator.unwrap_or(100) },
        (None, None) => Share { numerator: 1, denominator: 1 },
    };
    match share.denominator > 0 && share.numerator <= share.denominator {
        true => Ok(share),
        false => Err(format!("a mirror cannot have {} of {} requests", share.numerator, share.denominator)),
    }
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

    fn of_kind(kind: RouteKind, spec: &Value) -> Read {
        let referring = Referring { kind, namespace: &"n".into(), may_refer: &|target| &*target.name == "granted" };
        read(&referring, spec, &matches(kind, spec))
    }

    fn of(spec: Value) -> Read {
        of_kind(RouteKind::Http, &spec)
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
        assert_eq!(conditions.rank(), (0, true, 1, 1), "of one name the first entry counts");
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
                json!({"filters": [{"type": "RequestMirror", "requestMirror": {"later": 1}}]}),
                "requestMirror of a filter cannot be read: unknown field `later`",
            ),
            (
                json!({"filters": [{"type": "RequestMirror", "requestMirror": {"percent": 1, "fraction": {"numerator": 1}}}]}),
                "a mirror has percent or fraction, not both",
            ),
            (
                json!({"filters": [{"type": "RequestMirror", "requestMirror": {"percent": 101}}]}),
                "a mirror cannot have 101 of 100 requests",
            ),
            (
                json!({"filters": [{"type": "RequestMirror", "requestMirror": {"fraction": {"numerator": 0, "denominator": 0}}}]}),
                "a mirror cannot have 0 of 0 requests",
            ),
            (
                json!({"filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "a", "port": 1, "weight": 2}}}]}),
                "the backend of a mirror has no weight and no filters",
            ),
            (
                json!({"filters": [{"type": "RequestRedirect"},
                    {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "a", "port": 1}}}]}),
                "RequestRedirect and RequestMirror are not for one rule",
            ),
            (
                json!({"backendRefs": [{"name": "a", "port": 1, "filters": [{"type": "RequestMirror",
                    "requestMirror": {"backendRef": {"name": "b", "port": 1}}}]}]}),
                "filters of a backend other than modifiers of headers are not supported",
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

    #[test]
    fn a_mirror_says_who_gets_copies_of_how_many_requests() {
        let mirror = |more: Value| {
            let mut spec = json!({"backendRef": {"name": "copy", "port": 80}});
            spec.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
            json!({"type": "RequestMirror", "requestMirror": spec})
        };
        let to =
            |namespace: &str, name: &str| json!({"backendRef": {"name": name, "namespace": namespace, "port": 80}});
        for (filters, shares, reason) in [
            (json!([mirror(json!({}))]), vec![(1, 1)], None),
            (json!([mirror(json!({"percent": 0})), mirror(json!({"percent": 42}))]), vec![(0, 100), (42, 100)], None),
            (json!([mirror(json!({"fraction": {"numerator": 1}}))]), vec![(1, 100)], None),
            (json!([mirror(json!({"fraction": {"numerator": 3, "denominator": 1000}}))]), vec![(3, 1000)], None),
            (json!([mirror(to("other", "granted"))]), vec![(1, 1)], None),
            // The others stay, and so does the rule.
            (json!([mirror(to("other", "web")), mirror(json!({}))]), vec![(1, 1)], Some("RefNotPermitted")),
            (json!([mirror(json!({"backendRef": {"name": "x", "kind": "Bucket"}}))]), vec![], Some("InvalidKind")),
        ] {
            for kind in [RouteKind::Http, RouteKind::Grpc] {
                let spec = json!({"filters": filters, "backendRefs": [{"name": "web", "port": 80}]});
                let read = of_kind(kind, &spec);
                assert_eq!(read.broken.first().map(|(reason, _)| *reason), reason, "{filters}");
                assert!(read.unsupported.is_none() && matches!(read.rule.action, Action::Forward(_)), "{filters}");
                let mirrors = &read.rule.filters.mirrors;
                let found: Vec<_> = mirrors.iter().map(|of| (of.share.numerator, of.share.denominator)).collect();
                assert_eq!(found, shares, "{filters}");
            }
        }
    }

    #[test]
    fn a_rule_of_a_grpc_route_has_fewer_fields() {
        for (spec, words) in [
            (json!({"timeouts": {"request": "1s"}}), "timeouts is not supported"),
            (json!({"sessionPersistence": {}}), "sessionPersistence is not supported"),
            (json!({"filters": [{"type": "URLRewrite", "urlRewrite": {}}]}), "filter URLRewrite is not supported"),
            (json!({"filters": [{"type": "RequestRedirect"}]}), "filter RequestRedirect is not supported"),
            (json!({"filters": [{"type": "ExtensionRef"}]}), "filter ExtensionRef is not supported"),
            (json!({"matches": [{"path": {"value": "/a"}}]}), "a match cannot be read: unknown field `path`"),
        ] {
            let why = of_kind(RouteKind::Grpc, &spec).unsupported.unwrap_or_default();
            assert!(why.starts_with(words), "{spec}: {why}");
        }
        let filters = json!([{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["a"]}}]);
        let spec = json!({"name": "r", "filters": filters, "backendRefs": [{"name": "web", "port": 80, "weight": 2}]});
        let read = of_kind(RouteKind::Grpc, &spec);
        assert!(read.unsupported.is_none() && read.rule.filters.request.remove.len() == 1);
    }
}
