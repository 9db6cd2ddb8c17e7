//! What functions and operators take and give (cel-go's standard library and extensions, and Kubernetes' libraries).
//!
//! A name that begins with a dot is called on its first argument. In a signature `A` and `B` stand for any types.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::types::Ty;

/// One way to call a function.
pub(crate) struct Overload {
    pub takes: Vec<Ty<'static>>,
    pub gives: Ty<'static>,
    /// Variables in it.
    pub vars: usize,
}

const SAME: &[&str] = &["A,A:bool"];
const ORDER: &[&str] = &[
    "bool,bool:bool",
    "int,int:bool",
    "int,double:bool",
    "int,uint:bool",
    "uint,uint:bool",
    "uint,double:bool",
    "uint,int:bool",
    "double,double:bool",
    "double,int:bool",
    "double,uint:bool",
    "string,string:bool",
    "bytes,bytes:bool",
    "timestamp,timestamp:bool",
    "duration,duration:bool",
];
const NUMBERS: &[&str] = &["double,double:double", "int,int:int", "uint,uint:uint"];
const BEST: &[&str] = &[
    "list<int>:int",
    "list<uint>:uint",
    "list<double>:double",
    "list<bool>:bool",
    "list<duration>:duration",
    "list<timestamp>:timestamp",
    "list<string>:string",
    "list<bytes>:bytes",
];
const OF_LIST: &[&str] = &[
    "list<int>:bool",
    "list<uint>:bool",
    "list<double>:bool",
    "list<bool>:bool",
    "list<duration>:bool",
    "list<timestamp>:bool",
    "list<string>:bool",
    "list<bytes>:bool",
];
const SORTED: &[&str] = &[
    "list<int>:list<int>",
    "list<uint>:list<uint>",
    "list<double>:list<double>",
    "list<bool>:list<bool>",
    "list<duration>:list<duration>",
    "list<timestamp>:list<timestamp>",
    "list<string>:list<string>",
    "list<bytes>:list<bytes>",
];
const SIZE: &[&str] = &["string:int", "bytes:int", "list<A>:int", "map<A,B>:int"];
const OF_TIME: &[&str] = &["timestamp:int", "timestamp,string:int"];
const OF_TIMES: &[&str] = &["timestamp:int", "timestamp,string:int", "duration:int"];
const SETS: &[&str] = &["list<A>,list<A>:bool"];
const FORMAT: &[&str] = &[":format"];
const URL: &[&str] = &["url:string"];
const IP: &[&str] = &["ip:bool"];
const CHECK: &[&str] = &["check,string:check"];

/// Operators go by the names that errors give them.
static TABLE: &[(&str, &[&str])] = &[
    ("_==_", SAME),
    ("_!=_", SAME),
    ("_<_", ORDER),
    ("_<=_", ORDER),
    ("_>_", ORDER),
    ("_>=_", ORDER),
    ("@in", &["A,list<A>:bool", "A,map<A,B>:bool"]),
    (
        "_+_",
        &[
            "bytes,bytes:bytes",
            "double,double:double",
            "duration,duration:duration",
            "duration,timestamp:timestamp",
            "timestamp,duration:timestamp",
            "int,int:int",
            "list<A>,list<A>:list<A>",
            "string,string:string",
            "uint,uint:uint",
        ],
    ),
    (
        "_-_",
        &[
            "double,double:double",
            "duration,duration:duration",
            "int,int:int",
            "timestamp,duration:timestamp",
            "timestamp,timestamp:duration",
            "uint,uint:uint",
        ],
    ),
    ("_*_", NUMBERS),
    ("_/_", NUMBERS),
    ("_%_", &["int,int:int", "uint,uint:uint"]),
    ("-_", &["double:double", "int:int"]),
    ("!_", &["bool:bool"]),
    ("_?_:_", &["bool,A,A:A"]),
    ("_[_]", &["list<A>,int:A", "map<A,B>,A:B", "opt<list<A>>,int:opt<A>", "opt<map<A,B>>,A:opt<B>"]),
    ("_[?_]", &["list<A>,int:opt<A>", "opt<list<A>>,int:opt<A>", "map<A,B>,A:opt<B>", "opt<map<A,B>>,A:opt<B>"]),
    ("size", SIZE),
    (".size", SIZE),
    ("type", &["A:type<A>"]),
    ("dyn", &["A:dyn"]),
    ("int", &["int:int", "double:int", "duration:int", "string:int", "timestamp:int", "uint:int"]),
    ("uint", &["uint:uint", "double:uint", "int:uint", "string:uint"]),
    ("double", &["double:double", "int:double", "string:double", "uint:double"]),
    (
        "string",
        &[
            "string:string",
            "bool:string",
            "bytes:string",
            "double:string",
            "duration:string",
            "int:string",
            "timestamp:string",
            "uint:string",
            "ip:string",
            "cidr:string",
        ],
    ),
    ("bytes", &["bytes:bytes", "string:bytes"]),
    ("bool", &["bool:bool", "string:bool"]),
    ("duration", &["duration:duration", "string:duration"]),
    ("timestamp", &["timestamp:timestamp", "int:timestamp", "string:timestamp"]),
    ("matches", &["string,string:bool"]),
    (".matches", &["string,string:bool"]),
    (".contains", &["string,string:bool"]),
    (".startsWith", &["string,string:bool"]),
    (".endsWith", &["string,string:bool"]),
    (".charAt", &["string,int:string"]),
    (".indexOf", &["string,string:int", "string,string,int:int", "list<A>,A:int"]),
    (".lastIndexOf", &["string,string:int", "string,string,int:int", "list<A>,A:int"]),
    (".join", &["list<string>:string", "list<string>,string:string"]),
    (".lowerAscii", &["string:string"]),
    (".upperAscii", &["string:string"]),
    (".replace", &["string,string,string:string", "string,string,string,int:string"]),
    (".split", &["string,string:list<string>", "string,string,int:list<string>"]),
    (".substring", &["string,int:string", "string,int,int:string"]),
    (".trim", &["string:string"]),
    (".format", &["string,list<dyn>:string"]),
    ("strings.quote", &["string:string"]),
    (".find", &["string,string:string"]),
    (".findAll", &["string,string:list<string>", "string,string,int:list<string>"]),
    (".isSorted", OF_LIST),
    (".sum", &["list<int>:int", "list<uint>:uint", "list<double>:double", "list<duration>:duration"]),
    (".min", BEST),
    (".max", BEST),
    (".slice", &["list<A>,int,int:list<A>"]),
    (".flatten", &["list<list<A>>:list<A>", "list<dyn>,int:list<dyn>"]),
    (".sort", SORTED),
    (".distinct", &["list<A>:list<A>"]),
    (".reverse", &["list<A>:list<A>"]),
    (".first", &["list<A>:opt<A>"]),
    (".last", &["list<A>:opt<A>"]),
    ("lists.range", &["int:list<int>"]),
    ("sets.contains", SETS),
    ("sets.equivalent", SETS),
    ("sets.intersects", SETS),
    (".getDate", OF_TIME),
    (".getDayOfMonth", OF_TIME),
    (".getDayOfWeek", OF_TIME),
    (".getDayOfYear", OF_TIME),
    (".getFullYear", OF_TIME),
    (".getMonth", OF_TIME),
    (".getHours", OF_TIMES),
    (".getMinutes", OF_TIMES),
    (".getSeconds", OF_TIMES),
    (".getMilliseconds", OF_TIMES),
    ("optional.of", &["A:opt<A>"]),
    ("optional.ofNonZeroValue", &["A:opt<A>"]),
    ("optional.none", &[":opt<A>"]),
    ("optional.unwrap", &["list<opt<A>>:list<A>"]),
    (".unwrapOpt", &["list<opt<A>>:list<A>"]),
    (".hasValue", &["opt<A>:bool"]),
    (".value", &["opt<A>:A"]),
    (".or", &["opt<A>,opt<A>:opt<A>"]),
    (".orValue", &["opt<A>,A:A"]),
    ("quantity", &["string:quantity"]),
    ("isQuantity", &["string:bool"]),
    (".isInteger", &["quantity:bool"]),
    (".asInteger", &["quantity:int"]),
    (".asApproximateFloat", &["quantity:double"]),
    (".sign", &["quantity:int"]),
    (".add", &["quantity,quantity:quantity", "quantity,int:quantity"]),
    (".sub", &["quantity,quantity:quantity", "quantity,int:quantity"]),
    (".isLessThan", &["quantity,quantity:bool", "semver,semver:bool"]),
    (".isGreaterThan", &["quantity,quantity:bool", "semver,semver:bool"]),
    (".compareTo", &["quantity,quantity:int", "semver,semver:int"]),
    ("semver", &["string:semver", "string,bool:semver"]),
    ("isSemver", &["string:bool", "string,bool:bool"]),
    (".major", &["semver:int"]),
    (".minor", &["semver:int"]),
    (".patch", &["semver:int"]),
    ("url", &["string:url"]),
    ("isURL", &["string:bool"]),
    (".getScheme", URL),
    (".getHost", URL),
    (".getHostname", URL),
    (".getPort", URL),
    (".getEscapedPath", URL),
    (".getQuery", &["url:map<string,list<string>>"]),
    ("ip", &["string:ip"]),
    ("isIP", &["string:bool"]),
    ("ip.isCanonical", &["string:bool"]),
    (".ip", &["cidr:ip"]),
    (".family", &["ip:int"]),
    (".isUnspecified", IP),
    (".isLoopback", IP),
    (".isLinkLocalMulticast", IP),
    (".isLinkLocalUnicast", IP),
    (".isGlobalUnicast", IP),
    ("cidr", &["string:cidr"]),
    ("isCIDR", &["string:bool"]),
    (".containsIP", &["cidr,string:bool", "cidr,ip:bool"]),
    (".containsCIDR", &["cidr,string:bool", "cidr,cidr:bool"]),
    (".prefixLength", &["cidr:int"]),
    (".masked", &["cidr:cidr"]),
    ("format.named", &["string:opt<format>"]),
    ("format.dns1123Label", FORMAT),
    ("format.dns1123Subdomain", FORMAT),
    ("format.dns1035Label", FORMAT),
    ("format.qualifiedName", FORMAT),
    ("format.dns1123LabelPrefix", FORMAT),
    ("format.dns1123SubdomainPrefix", FORMAT),
    ("format.dns1035LabelPrefix", FORMAT),
    ("format.labelValue", FORMAT),
    ("format.uri", FORMAT),
    ("format.uuid", FORMAT),
    ("format.byte", FORMAT),
    ("format.date", FORMAT),
    ("format.datetime", FORMAT),
    (".validate", &["format,string:opt<list<string>>"]),
    (".path", &["authorizer,string:path"]),
    (".group", &["authorizer,string:group"]),
    (".serviceAccount", &["authorizer,string,string:authorizer"]),
    (".resource", &["group,string:check"]),
    (".subresource", CHECK),
    (".namespace", CHECK),
    (".name", CHECK),
    (".fieldSelector", CHECK),
    (".labelSelector", CHECK),
    (".check", &["path,string:decision", "check,string:decision"]),
    (".allowed", &["decision:bool"]),
    (".reason", &["decision:string"]),
    (".errored", &["decision:bool"]),
    (".error", &["decision:string"]),
    (ESCAPE_KEY, &["string:string"]),
];

/// A function of expressions that give patches, and of no others.
pub(crate) const ESCAPE_KEY: &str = "jsonpatch.escapeKey";

pub(crate) const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
pub(crate) const RESOURCE_CHECK: &str = "kubernetes.authorization.ResourceCheck";

type Signatures = HashMap<&'static str, (&'static str, Vec<Overload>)>;

static SIGNATURES: LazyLock<Signatures> = LazyLock::new(|| {
    TABLE.iter().map(|(name, all)| (*name, (*name, all.iter().map(|one| read(one)).collect()))).collect()
});

/// A function or an operator: its name for as long as the program runs, and how it may be called.
pub(crate) fn find(name: &str) -> Option<(&'static str, &'static [Overload])> {
    SIGNATURES.get(name).map(|(name, all)| (*name, all.as_slice()))
}

/// Types that have a name of their own in expressions.
pub(crate) fn type_named(name: &str) -> Option<(&'static str, Ty<'static>)> {
    Some(match name {
        "bool" => ("bool", Ty::Bool),
        "bytes" => ("bytes", Ty::Bytes),
        "double" => ("double", Ty::Double),
        "int" => ("int", Ty::Int),
        "uint" => ("uint", Ty::Uint),
        "string" => ("string", Ty::Text),
        "null_type" => ("null_type", Ty::Null),
        "list" => ("list", Ty::list(Ty::Dyn)),
        "map" => ("map", Ty::map(Ty::Dyn, Ty::Dyn)),
        "optional_type" => ("optional_type", Ty::optional(Ty::Dyn)),
        "type" => ("type", Ty::of_type(Ty::Dyn)),
        "google.protobuf.Duration" => ("google.protobuf.Duration", Ty::Duration),
        "google.protobuf.Timestamp" => ("google.protobuf.Timestamp", Ty::Timestamp),
        "net.IP" => ("net.IP", Ty::Opaque("net.IP")),
        "net.CIDR" => ("net.CIDR", Ty::Opaque("net.CIDR")),
        "kubernetes.Quantity" => ("kubernetes.Quantity", Ty::Opaque("kubernetes.Quantity")),
        "kubernetes.URL" => ("kubernetes.URL", Ty::Opaque("kubernetes.URL")),
        "kubernetes.Semver" => ("kubernetes.Semver", Ty::Opaque("kubernetes.Semver")),
        _ => return None,
    })
}

fn read(text: &str) -> Overload {
    let (takes, gives) = text.rsplit_once(':').unwrap_or(("", text));
    let vars = usize::from(text.contains('A')) + usize::from(text.contains('B'));
    Overload { takes: split(takes).into_iter().map(ty).collect(), gives: ty(gives), vars }
}

/// What stands between commas that are in no brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_usize, 0);
    for (at, sign) in text.char_indices() {
        match sign {
            '<' => depth += 1,
            '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.extend(text.get(start..at));
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.extend(text.get(start..).filter(|rest| !rest.is_empty()));
    parts
}

fn ty(text: &str) -> Ty<'static> {
    if let Some((of, within)) = text.strip_suffix('>').and_then(|text| text.split_once('<')) {
        let mut parts = split(within).into_iter().map(ty);
        let mut next = || parts.next().unwrap_or(Ty::Dyn);
        return match of {
            "list" => Ty::list(next()),
            "opt" => Ty::optional(next()),
            "type" => Ty::of_type(next()),
            _ => Ty::map(next(), next()),
        };
    }
    match text {
        "A" => Ty::Var(0),
        "B" => Ty::Var(1),
        "bool" => Ty::Bool,
        "int" => Ty::Int,
        "uint" => Ty::Uint,
        "double" => Ty::Double,
        "string" => Ty::Text,
        "bytes" => Ty::Bytes,
        "timestamp" => Ty::Timestamp,
        "duration" => Ty::Duration,
        "quantity" => Ty::Opaque("kubernetes.Quantity"),
        "url" => Ty::Opaque("kubernetes.URL"),
        "ip" => Ty::Opaque("net.IP"),
        "cidr" => Ty::Opaque("net.CIDR"),
        "format" => Ty::Opaque("kubernetes.NamedFormat"),
        "semver" => Ty::Opaque("kubernetes.Semver"),
        "authorizer" => Ty::Opaque(AUTHORIZER),
        "path" => Ty::Opaque("kubernetes.authorization.PathCheck"),
        "group" => Ty::Opaque("kubernetes.authorization.GroupCheck"),
        "check" => Ty::Opaque(RESOURCE_CHECK),
        "decision" => Ty::Opaque("kubernetes.authorization.Decision"),
        _ => Ty::Dyn,
    }
}
