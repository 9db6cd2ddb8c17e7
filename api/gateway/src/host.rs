//! Hosts of listeners and routes. A wildcard stands for one label or more.

use std::fmt;
use std::sync::Arc;

/// Hosts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hostname {
    /// All.
    Any,
    /// All below this one, in lower case.
    Below(Arc<str>),
    /// One, in lower case.
    Name(Arc<str>),
}

impl Hostname {
    /// From `example.com`, `*.example.com` or nothing.
    pub fn parse(text: Option<&str>) -> Hostname {
        let text = text.unwrap_or_default().to_ascii_lowercase();
        match text.strip_prefix("*.") {
            _ if text.is_empty() => Hostname::Any,
            Some(parent) => Hostname::Below(parent.into()),
            None => Hostname::Name(text.into()),
        }
    }

    /// The hosts that both are for.
    pub fn with(&self, other: &Hostname) -> Option<Hostname> {
        if self.covers(other) {
            return Some(other.clone());
        }
        other.covers(self).then(|| self.clone())
    }

    /// Whether all that the other one is for is this one's, too.
    fn covers(&self, other: &Hostname) -> bool {
        let is_below = |name: &str, parent: &str| {
            name.strip_suffix(parent).and_then(|rest| rest.strip_suffix('.')).is_some_and(|label| !label.is_empty())
        };
        match (self, other) {
            (Hostname::Any, _) => true,
            (Hostname::Below(parent), Hostname::Name(name)) => is_below(name, parent),
            (Hostname::Below(parent), Hostname::Below(other)) => other == parent || is_below(other, parent),
            _ => self == other,
        }
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hostname::Any => f.write_str("*"),
            Hostname::Below(parent) => write!(f, "*.{parent}"),
            Hostname::Name(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of the field's own description, and some beside.
    #[test]
    fn hosts_of_a_listener_and_a_route_meet_in_the_more_precise() {
        for (listener, route, both) in [
            ("", "", Some("*")),
            ("", "a.example.com", Some("a.example.com")),
            ("test.example.com", "", Some("test.example.com")),
            ("test.example.com", "test.example.com", Some("test.example.com")),
            ("test.example.com", "*.example.com", Some("test.example.com")),
            ("test.example.com", "*.com", Some("test.example.com")),
            ("test.example.com", "example.com", None),
            ("test.example.com", "*.example.net", None),
            ("*.example.com", "*.example.com", Some("*.example.com")),
            ("*.example.com", "test.example.com", Some("test.example.com")),
            ("*.example.com", "foo.test.example.com", Some("foo.test.example.com")),
            ("*.example.com", "*.test.example.com", Some("*.test.example.com")),
            ("*.example.com", "example.com", None),
            ("*.example.com", "*.com", Some("*.example.com")),
            ("*.example.com", "badexample.com", None),
            ("Test.Example.com", "tEST.example.com", Some("test.example.com")),
        ] {
            let met = Hostname::parse(Some(listener)).with(&Hostname::parse(Some(route)));
            assert_eq!(met.map(|host| host.to_string()).as_deref(), both, "{listener} {route}");
        }
    }
}
