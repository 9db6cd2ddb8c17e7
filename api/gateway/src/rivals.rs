//! Hosts that routes of two kinds want at one listener: of two such routes one is there, the older one, then the first by name
//! (the description of `GRPCRoute`'s `hostnames`). Routes of one kind share them.

use std::collections::{BTreeMap, HashMap};

use crate::Hostname;
use crate::kinds::RouteKind;

/// A listener, of all Gateways that have it: its port and its hosts.
pub(crate) type At<'a> = (u16, &'a Hostname);

/// What a route wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a, 'h> {
    /// Which it is; of one that comes before another all comes before.
    pub route: usize,
    pub kind: RouteKind,
    pub at: At<'a>,
    pub hosts: &'h [Hostname],
}

/// Which routes are not where they want to be, and which route of the other kind is there instead.
pub(crate) fn losers<'a>(wanted: &[Wanted<'a, '_>]) -> HashMap<(usize, At<'a>), usize> {
    let mut kinds: HashMap<At<'_>, (bool, bool)> = HashMap::new();
    for one in wanted {
        let (has_http, has_grpc) = kinds.entry(one.at).or_default();
        match one.kind {
            RouteKind::Http => *has_http = true,
            RouteKind::Grpc => *has_grpc = true,
        }
    }
    let mut had: HashMap<(RouteKind, At<'_>), Had<'_>> = HashMap::new();
    let mut losers = HashMap::new();
    for one in wanted.iter().filter(|one| kinds[&one.at] == (true, true)) {
        let other = match one.kind {
            RouteKind::Http => RouteKind::Grpc,
            RouteKind::Grpc => RouteKind::Http,
        };
        let of_other = had.get(&(other, one.at));
        match of_other.and_then(|had| one.hosts.iter().find_map(|host| had.holder(host))) {
            Some(holder) => drop(losers.insert((one.route, one.at), holder)),
            None => {
                let own = had.entry((one.kind, one.at)).or_default();
                one.hosts.iter().for_each(|host| own.add(host, one.route));
            }
        }
    }
    losers
}

/// Hosts that routes of a kind have at a listener, and by which route.
#[derive(Default)]
struct Had<'a> {
    any: Option<usize>,
    names: HashMap<&'a str, usize>,
    below: HashMap<&'a str, usize>,
    /// All but the first, from their ends on: those below one have one beginning.
    reversed: BTreeMap<String, usize>,
}

fn reversed(text: &str) -> String {
    text.chars().rev().collect()
}

/// A name's parents, the nearest first.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    let parent = |name: &&'_ str| -> Option<usize> { name.find('.').map(|at| at + 1) };
    std::iter::successors(parent(&name).map(|at| &name[at..]), move |name| parent(name).map(|at| &name[at..]))
}

impl<'a> Had<'a> {
    fn add(&mut self, host: &'a Hostname, route: usize) {
        match host {
            Hostname::Any => drop(self.any.get_or_insert(route)),
            Hostname::Name(name) => {
                self.names.entry(name).or_insert(route);
                self.reversed.entry(reversed(name)).or_insert(route);
            }
            Hostname::Below(parent) => {
                self.below.entry(parent).or_insert(route);
                self.reversed.entry(reversed(parent) + ".").or_insert(route);
            }
        }
    }

    /// Who has a host that this one meets.
    fn holder(&self, host: &Hostname) -> Option<usize> {
        let above = |name: &str| parents(name).find_map(|parent| self.below.get(parent));
        let found = match host {
            Hostname::Any => self.reversed.values().next(),
            Hostname::Name(name) => self.names.get(&**name).or_else(|| above(name)),
            Hostname::Below(parent) => {
                let beginning = reversed(parent) + ".";
                let mut under = self.reversed.range(beginning.clone()..);
                let under = || under.next().filter(|(text, _)| text.starts_with(&beginning)).map(|(_, route)| route);
                above(parent).or_else(under)
            }
        };
        self.any.or(found.copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether hosts meet is what [`Hostname::with`] says.
    #[test]
    fn a_host_is_had_where_it_meets_another() {
        let hosts = ["", "a", "a.x", "b.a.x", "c.b.a.x", "aa.x", "x", "*.x", "*.a.x", "*.b.a.x", "*.aa.x", "*.y", "y"];
        let hosts = hosts.map(|text| Hostname::parse(Some(text)));
        for one in &hosts {
            for other in &hosts {
                let mut had = Had::default();
                had.add(one, 7);
                assert_eq!(had.holder(other).is_some(), one.with(other).is_some(), "{one} {other}");
            }
        }
    }

    #[test]
    fn the_first_of_two_kinds_is_there_and_one_that_is_not_keeps_nobody_out() {
        let hosts = |texts: &[&str]| texts.iter().map(|text| Hostname::parse(Some(text))).collect::<Vec<_>>();
        let (any, a, b, both, wild) =
            (hosts(&[""]), hosts(&["a.x"]), hosts(&["b.x"]), hosts(&["a.x", "b.x"]), hosts(&["*.x"]));
        let (http, grpc) = (RouteKind::Http, RouteKind::Grpc);
        for (wanted, expected) in [
            (vec![(http, &a), (grpc, &a)], vec![(1, 0)]),
            (vec![(grpc, &a), (http, &a)], vec![(1, 0)]),
            (vec![(http, &a), (http, &a), (grpc, &b)], vec![]),
            (vec![(http, &a), (grpc, &wild), (grpc, &b)], vec![(1, 0)]),
            (vec![(grpc, &wild), (http, &both), (http, &a), (grpc, &a)], vec![(1, 0), (2, 0)]),
            // The second does not have `b.x`, so that the third does.
            (vec![(http, &a), (grpc, &both), (http, &b)], vec![(1, 0)]),
            (vec![(http, &a), (grpc, &any), (grpc, &b), (http, &any)], vec![(1, 0), (3, 2)]),
        ] {
            let listener = Hostname::Any;
            let wants: Vec<Wanted<'_, '_>> = wanted
                .iter()
                .enumerate()
                .map(|(route, (kind, hosts))| Wanted { route, kind: *kind, at: (80, &listener), hosts })
                .collect();
            let mut found: Vec<_> = losers(&wants).into_iter().map(|((route, _), holder)| (route, holder)).collect();
            found.sort_unstable();
            assert_eq!(found, expected, "{wanted:?}");
            // At listeners of their own they are no rivals.
            let apart =
                wants.iter().map(|one| Wanted { at: (if one.kind == http { 80 } else { 81 }, &listener), ..*one });
            assert!(losers(&apart.collect::<Vec<_>>()).is_empty());
        }
    }
}
