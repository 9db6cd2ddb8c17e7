//! From objects to what is served and what is said of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::attach::{self, Namespaces};
use crate::kinds::{self, Class, Gateway, Meta, Route, RouteKind};
use crate::listener::{self, Ports, Protocol};
use crate::rivals::{self, Wanted};
use crate::rule::{self, Broken, Cost, Referring, Rule, Target};
use crate::{Grant, Hostname, Key, Verdict, grant};

/// Places of all matches together, for each of their hosts, that are served ([`rule::Cost`]); those of the newest routes are left out
/// beyond it. A namespace has half of them at most.
const PLACES_MAX: usize = 100_000;
/// The same of regular expressions: each takes up to half a megabyte, and a request is compared with those of its host.
const EXPRESSIONS_MAX: usize = 500;

/// The objects as they are known. Those that cannot be read are not among them.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// By name.
    pub classes: BTreeMap<Arc<str>, Class>,
    /// Gateways.
    pub gateways: BTreeMap<Key, Gateway>,
    /// HTTPRoutes.
    pub routes: BTreeMap<Key, Route>,
    /// GRPCRoutes.
    pub grpc_routes: BTreeMap<Key, Route>,
    /// ReferenceGrants.
    pub grants: BTreeMap<Key, Grant>,
    /// Labels of namespaces.
    pub namespaces: BTreeMap<Arc<str>, BTreeMap<String, String>>,
}

/// What they say together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resolved {
    /// Gateways of our classes, the older ones first.
    pub gateways: Vec<GatewayState>,
    /// Routes of all kinds with a parent among them, the older ones first.
    pub routes: Vec<RouteState>,
}

/// A Gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewayState {
    /// Its metadata.
    pub meta: Meta,
    /// Whether it can be served at all.
    pub accepted: Verdict,
    /// The addresses that it asks for.
    pub addresses: Vec<String>,
    /// Its listeners, in its own order.
    pub listeners: Vec<ListenerState>,
}

/// A listener.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenerState {
    /// Its name.
    pub name: Arc<str>,
    /// Its port.
    pub port: u16,
    /// What is spoken; `None` for what is not supported.
    pub protocol: Option<Protocol>,
    /// For which hosts it is.
    pub hostname: Hostname,
    /// Secrets of certificates that it may show.
    pub secrets: Vec<Key>,
    /// Kinds of routes that it is for.
    pub kinds: Vec<RouteKind>,
    /// Whether routes of these may be attached to it.
    pub has_routes: bool,
    /// The condition `Accepted`.
    pub accepted: Verdict,
    /// The condition `Conflicted`.
    pub conflicted: Verdict,
    /// The condition `ResolvedRefs`.
    pub resolved: Verdict,
    /// The routes that are attached, by their place in [`Resolved::routes`], and for which hosts.
    pub attached: Vec<(usize, Vec<Hostname>)>,
}

impl ListenerState {
    /// Whether it can be, as far as the objects say.
    pub fn is_valid(&self) -> bool {
        self.accepted.holds && !self.conflicted.holds
    }

    /// Whether routes of a kind may be attached to it.
    pub fn lets_in(&self, kind: RouteKind) -> bool {
        self.has_routes && self.kinds.contains(&kind)
    }

    /// Whether it can be served: one with TLS needs a certificate that may be shown.
    pub fn is_served(&self) -> bool {
        self.is_valid() && (self.protocol != Some(Protocol::Https) || !self.secrets.is_empty())
    }
}

/// A route.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteState {
    /// Of which kind it is.
    pub kind: RouteKind,
    /// Its metadata.
    pub meta: Meta,
    /// Its rules, as they are served.
    pub rules: Vec<Rule>,
    /// What is said of it to each parent of ours, in its own order.
    pub parents: Vec<ParentState>,
}

/// A parent of a route.
#[derive(Debug, Clone, PartialEq)]
pub struct ParentState {
    /// As the route names it.
    pub written: serde_json::Value,
    /// The condition `Accepted`.
    pub accepted: Verdict,
    /// The condition `ResolvedRefs`.
    pub resolved: Verdict,
    /// The condition `PartiallyInvalid`, while some rules are not supported and others are.
    pub partially: Option<Verdict>,
}

/// What is wrong with a Service that routes of a kind lead to, as far as whoever asks knows.
pub type Missing<'a> = &'a dyn Fn(RouteKind, &Target) -> Option<(&'static str, String)>;

impl Objects {
    /// Whether a class is ours, and its Gateways can be served.
    fn is_ours(&self, class: &str) -> bool {
        self.classes.get(class).is_some_and(|class| class.is_ours && !class.has_parameters)
    }

    /// Whether a grant of the namespace permits it.
    fn permits(&self, reference: grant::Reference<'_>) -> bool {
        let namespace = reference.to.1;
        let of_namespace = self.grants.range((Arc::from(namespace), Arc::from(""))..);
        let mut of_namespace = of_namespace.take_while(|((of, _), _)| **of == *namespace);
        of_namespace.any(|(_, grant)| grant.permits(reference))
    }

    /// What is said of a class of ours.
    pub fn accepts(&self, class: &Class) -> Verdict {
        match class.has_parameters {
            true => Verdict::no("InvalidParameters", "spec.parametersRef is not supported: a class has no parameters"),
            false => Verdict::yes("Accepted"),
        }
    }

    /// Makes of all objects what they say together. `missing` says what is wrong with a Service.
    pub fn resolve(&self, missing: Missing<'_>) -> Resolved {
        let mut resolved = Resolved::default();
        let mut gateways: Vec<&Gateway> =
            self.gateways.values().filter(|gateway| self.is_ours(&gateway.spec.gateway_class_name)).collect();
        gateways.sort_by(|a, b| a.meta.age().cmp(&b.meta.age()));
        let mut ports = Ports::default();
        for gateway in &gateways {
            let accepted = accepts(gateway);
            let mut listeners = listener::all(gateway, &|reference| self.permits(reference));
            for listener in &mut listeners {
                if accepted.holds {
                    ports.take(&gateway.meta.key(), listener);
                } else {
                    listener.has_routes = false;
                }
            }
            let addresses = gateway.spec.addresses.iter().map(|address| address.value.clone());
            let addresses = addresses.filter(|address| !address.is_empty()).collect();
            resolved.gateways.push(GatewayState { meta: gateway.meta.clone(), accepted, addresses, listeners });
        }
        let at: HashMap<Key, usize> =
            gateways.iter().enumerate().map(|(at, gateway)| (gateway.meta.key(), at)).collect();
        let known = Parents { gateways: &gateways, at: &at, namespaces: &self.namespaces };
        let mut budget = Budget::default();
        let mut routes: Vec<&Route> = self.routes.values().chain(self.grpc_routes.values()).collect();
        routes.sort_by(|a, b| a.meta.age().cmp(&b.meta.age()));
        let drafts =
            routes.into_iter().filter_map(|route| self.draft(route, &known, &resolved.gateways, missing, &mut budget));
        let mut drafts: Vec<Draft<'_>> = drafts.collect();
        settle_rivals(&mut drafts, &resolved.gateways);
        drafts.into_iter().for_each(|draft| draft.put(&mut resolved));
        resolved
    }

    /// What a route is by itself; `None` for one without a parent of ours.
    fn draft<'a>(
        &self,
        route: &'a Route,
        known: &Parents<'_>,
        gateways: &[GatewayState],
        missing: Missing<'_>,
        budget: &mut Budget,
    ) -> Option<Draft<'a>> {
        let parents =
            route.spec.parent_refs.iter().filter_map(|written| Some((written, known.parent(route, written)?)));
        let parents: Vec<_> = parents.collect();
        if parents.is_empty() {
            return None;
        }
        let (kind, own) = (route.kind, &route.meta.namespace);
        // Who lets it in is asked first, and whether there is room: what nobody serves costs nothing.
        let costs = route.spec.rules.iter().map(rule::cost);
        let cost = costs.reduce(|all, one| Cost {
            places: all.places + one.places,
            expressions: all.expressions + one.expressions,
        });
        let cost = cost.unwrap_or(Cost { places: 1, expressions: 0 });
        let mut attached: Vec<Result<Attached, Verdict>> = Vec::new();
        for (_, (at, parent)) in &parents {
            let gateway = &gateways[*at];
            attached.push(match gateway.accepted.holds {
                false => Err(Verdict::no("Pending", "the Gateway is not accepted")),
                true => attach::attach(known.gateways[*at], &gateway.listeners, route, parent, known.namespaces),
            });
        }
        let hosts: usize = attached.iter().flatten().flatten().map(|(_, hosts)| hosts.len()).sum();
        if hosts > 0
            && let Err(why) = budget.charge(own, cost, hosts)
        {
            attached.iter_mut().filter(|attached| attached.is_ok()).for_each(|attached| *attached = Err(why.clone()));
        }
        let is_attached = attached.iter().any(Result::is_ok);
        let may_refer = |target: &Target| {
            let to = ("Service", &*target.namespace, &*target.name);
            self.permits(grant::Reference { from: (kind.name(), own), to })
        };
        let referring = Referring { kind, namespace: own, may_refer: &may_refer };
        // A route without rules is for all requests, and has nobody who answers them. Of one that is not served only backends are looked at.
        let nothing = [serde_json::json!({})];
        let specs = if route.spec.rules.is_empty() { &nothing[..] } else { &route.spec.rules };
        let everything = rule::matches(kind, &nothing[0]);
        let matches = if is_attached { route.matches() } else { &[] };
        let (mut rules, mut unsupported, mut broken) = (Vec::new(), Vec::new(), Vec::<Broken>::new());
        for (at, spec) in specs.iter().enumerate() {
            let read = rule::read(&referring, spec, matches.get(at).unwrap_or(&everything));
            unsupported.extend(read.unsupported);
            broken.extend(read.broken);
            broken.extend(targets(&read.rule).filter_map(|target| missing(kind, target)));
            rules.push(read.rule);
        }
        let refs = broken
            .first()
            .map_or_else(|| Verdict::yes("ResolvedRefs"), |(reason, message)| Verdict::no(reason, message.clone()));
        let is_lost = !unsupported.is_empty() && unsupported.len() == rules.len();
        if !is_attached {
            rules.clear();
        }
        let parents = parents.into_iter().zip(attached);
        let parents = parents.map(|((written, (gateway, _)), attached)| Parent {
            written,
            gateway,
            attached,
            note: String::new(),
        });
        Some(Draft { route, parents: parents.collect(), rules, refs, unsupported, is_lost })
    }
}

/// A route in the making.
struct Draft<'a> {
    route: &'a Route,
    parents: Vec<Parent<'a>>,
    rules: Vec<Rule>,
    /// The condition `ResolvedRefs`.
    refs: Verdict,
    /// What of its rules is not supported.
    unsupported: Vec<String>,
    /// Whether that is all of them.
    is_lost: bool,
}

/// A parent of it.
struct Parent<'a> {
    written: &'a serde_json::Value,
    /// By its place.
    gateway: usize,
    /// To which listeners it is attached; or why to none.
    attached: Result<Attached, Verdict>,
    /// What is said of one that is accepted.
    note: String,
}

impl Draft<'_> {
    /// Attaches it, and says how that went.
    fn put(self, resolved: &mut Resolved) {
        let Draft { route, parents, rules, refs, unsupported, is_lost } = self;
        let answer = match route.kind {
            RouteKind::Http => "500",
            RouteKind::Grpc => "UNAVAILABLE",
        };
        let partially = (!unsupported.is_empty() && !is_lost).then(|| Verdict {
            holds: true,
            reason: "UnsupportedValue",
            message: format!("Dropped Rule: {}: its requests are answered {answer}", unsupported.join("; ")),
        });
        let place = resolved.routes.len();
        let mut states = Vec::new();
        let mut taken = HashSet::new();
        for Parent { written, gateway, attached, note } in parents {
            let accepted = match attached {
                Err(why) => why,
                Ok(_) if is_lost => Verdict::no("UnsupportedValue", unsupported.join("; ")),
                Ok(attached) => {
                    for (listener, hosts) in attached {
                        // Two parents may be one listener.
                        if taken.insert((gateway, listener)) {
                            resolved.gateways[gateway].listeners[listener].attached.push((place, hosts));
                        }
                    }
                    Verdict { message: note, ..Verdict::yes("Accepted") }
                }
            };
            let partially = partially.clone().filter(|_| accepted.holds);
            states.push(ParentState { written: written.clone(), accepted, resolved: refs.clone(), partially });
        }
        resolved.routes.push(RouteState { kind: route.kind, meta: route.meta.clone(), rules, parents: states });
    }
}

/// Has routes leave the listeners at which an older one of another kind has hosts of theirs.
fn settle_rivals(drafts: &mut [Draft<'_>], gateways: &[GatewayState]) {
    let at = |gateway: usize, listener: usize| {
        let listener = &gateways[gateway].listeners[listener];
        (listener.port, &listener.hostname)
    };
    // One that is not served keeps nobody out.
    let mut order: Vec<usize> = (0..drafts.len()).filter(|place| !drafts[*place].is_lost).collect();
    order.sort_by(|a, b| drafts[*a].route.meta.precedence(&drafts[*b].route.meta));
    let wanted = order.iter().flat_map(|place| {
        let draft = &drafts[*place];
        draft.parents.iter().flat_map(move |parent| {
            let attached = parent.attached.iter().flatten();
            attached.map(move |(listener, hosts)| Wanted {
                route: *place,
                kind: draft.route.kind,
                at: at(parent.gateway, *listener),
                hosts,
            })
        })
    });
    let losers = rivals::losers(&wanted.collect::<Vec<_>>());
    let words: HashMap<(usize, rivals::At<'_>), String> = losers
        .into_iter()
        .map(|(lost, holder)| {
            let Route { kind, meta, .. } = drafts[holder].route;
            let (_, (port, _)) = lost;
            let words = format!(
                "{} {}/{}, which goes before, has a hostname at port {port} that one of the route's meets",
                kind.name(),
                meta.namespace,
                meta.name
            );
            (lost, words)
        })
        .collect();
    for (place, draft) in drafts.iter_mut().enumerate().filter(|_| !words.is_empty()) {
        for parent in &mut draft.parents {
            let Ok(attached) = &mut parent.attached else { continue };
            attached.retain(|(listener, _)| match words.get(&(place, at(parent.gateway, *listener))) {
                Some(words) => {
                    parent.note.clone_from(words);
                    false
                }
                None => true,
            });
            if attached.is_empty() {
                parent.attached = Err(Verdict::no("HostnameConflict", std::mem::take(&mut parent.note)));
            }
        }
    }
}

/// Listeners, by their places, and the hosts for which a route is attached to them.
type Attached = Vec<(usize, Vec<Hostname>)>;

/// What routes have taken: all together, and by their namespaces.
#[derive(Default)]
struct Budget {
    all: Cost,
    namespaces: HashMap<Arc<str>, Cost>,
}

impl Budget {
    /// Charges a route that is for so many hosts, if there is room for it.
    fn charge(&mut self, namespace: &Arc<str>, cost: Cost, hosts: usize) -> Result<(), Verdict> {
        let own = self.namespaces.entry(namespace.clone()).or_default();
        let places = cost.places.saturating_mul(hosts);
        for (what, taken, of_own, wanted, max) in [
            ("places for matches", self.all.places, own.places, places, PLACES_MAX),
            ("regular expressions", self.all.expressions, own.expressions, cost.expressions, EXPRESSIONS_MAX),
        ] {
            // One that wants none is kept out by nobody.
            if wanted > 0 && (taken.saturating_add(wanted) > max || of_own.saturating_add(wanted) > max / 2) {
                let words = format!(
                    "all routes together may have {max} {what}, those of a namespace half of them; it has {wanted}"
                );
                return Err(Verdict::no("UnsupportedValue", words));
            }
        }
        for taken in [&mut self.all, own] {
            taken.places += places;
            taken.expressions += cost.expressions;
        }
        Ok(())
    }
}

/// What routes are attached to.
struct Parents<'a> {
    gateways: &'a [&'a Gateway],
    at: &'a HashMap<Key, usize>,
    namespaces: &'a Namespaces,
}

impl Parents<'_> {
    /// The Gateway of ours that a parent is.
    fn parent(&self, route: &Route, written: &serde_json::Value) -> Option<(usize, crate::kinds::ParentRef)> {
        let (key, parent) = attach::parent(route, written)?;
        self.at.get(&key).map(|at| (*at, parent))
    }
}

fn targets(rule: &Rule) -> impl Iterator<Item = &Target> {
    let forward = match &rule.action {
        rule::Action::Forward(forward) => &forward[..],
        rule::Action::Redirect(_) | rule::Action::Fail(_) => &[],
    };
    let forward = forward.iter().filter_map(|forward| forward.target.as_ref().ok());
    forward.chain(rule.filters.mirrors.iter().map(|mirror| &mirror.target))
}

/// Whether a Gateway can be served, as far as it says itself.
fn accepts(gateway: &Gateway) -> Verdict {
    let spec = &gateway.spec;
    if !spec.infrastructure.parameters_ref.is_null() {
        return Verdict::no("InvalidParameters", "spec.infrastructure.parametersRef is not supported");
    }
    let mut types = spec.addresses.iter().map(|address| address.kind.as_deref().unwrap_or("IPAddress"));
    if let Some(kind) = types.find(|kind| *kind != "IPAddress") {
        return Verdict::no("UnsupportedAddress", format!("addresses of type {kind} are not supported"));
    }
    // Certificates of clients, listeners elsewhere, and what comes in later versions: passed over, each would be a hole.
    match kinds::first(&spec.others) {
        Some(name) => Verdict::no("Invalid", format!("spec.{name} is not supported")),
        None => Verdict::yes("Accepted"),
    }
}
