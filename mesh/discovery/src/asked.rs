//! What a request asks, as routes look at it.

use std::cell::OnceCell;
use std::collections::HashMap;

use coracle_gateway::Conditions;
use http::{HeaderMap, Method};

/// What is asked, beside the host.
#[derive(Debug, Clone)]
pub struct Asked<'a> {
    /// The path, as it was sent.
    pub path: &'a str,
    /// The query, as it was sent.
    pub query: Option<&'a str>,
    /// The method.
    pub method: &'a Method,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// Parameters of the query, decoded for the first route that looks at them: the first of each name.
    parameters: OnceCell<HashMap<String, String>>,
}

impl<'a> Asked<'a> {
    /// Of the parts of a request.
    pub fn new(path: &'a str, query: Option<&'a str>, method: &'a Method, headers: &'a HeaderMap) -> Asked<'a> {
        Asked { path, query, method, headers, parameters: OnceCell::new() }
    }

    /// Whether it is what a route wants.
    pub(crate) fn meets(&self, conditions: &Conditions) -> bool {
        conditions.method.as_ref().is_none_or(|method| method == self.method)
            && conditions.headers.iter().all(|(name, text)| {
                let mut values = self.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
                values.any(|value| text.is_match(value))
            })
            && conditions
                .query
                .iter()
                .all(|(name, text)| self.parameters().get(name).is_some_and(|value| text.is_match(value)))
    }

    /// As the URL standard's `application/x-www-form-urlencoded` has them.
    fn parameters(&self) -> &HashMap<String, String> {
        self.parameters.get_or_init(|| {
            let mut all = HashMap::new();
            for pair in self.query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                all.entry(decoded(name)).or_insert_with(|| decoded(value));
            }
            all
        })
    }
}

/// A text without escapes; what is no escape stays as it is.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let escaped = digit(at + 1).zip(digit(at + 2)).filter(|_| *byte == b'%');
        match (escaped, byte) {
            (Some((high, low)), _) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                at += 3;
                continue;
            }
            (None, b'+') => out.push(b' '),
            (None, byte) => out.push(*byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use coracle_gateway::{Pattern, TextMatch};

    use super::*;

    fn exact(text: &str) -> TextMatch {
        TextMatch::Exact(text.to_owned())
    }

    #[test]
    fn conditions_are_met_together() {
        let headers: HeaderMap = [("x-one", "1"), ("x-many", "a"), ("x-many", "b")].into_iter().fold(
            HeaderMap::new(),
            |mut all, (name, value)| {
                all.append(name, value.parse().unwrap());
                all
            },
        );
        let asked = Asked::new("/", Some("q=a%20b&q=c&flag&p=1+2"), &Method::GET, &headers);
        let name = |name: &'static str| http::HeaderName::from_static(name);
        let query =
            |name: &str, text: TextMatch| Conditions { query: vec![(name.to_owned(), text)], ..Conditions::default() };
        let header = |of, text: TextMatch| Conditions { headers: vec![(name(of), text)], ..Conditions::default() };
        for (conditions, expected) in [
            (Conditions::default(), true),
            (Conditions { method: Some(Method::GET), ..Conditions::default() }, true),
            (Conditions { method: Some(Method::POST), ..Conditions::default() }, false),
            (header("x-one", exact("1")), true),
            (header("x-one", exact("2")), false),
            (header("x-many", exact("b")), true),
            (header("x-none", exact("")), false),
            (header("x-one", TextMatch::Pattern(Pattern::parse("[0-9]").unwrap())), true),
            (query("q", exact("a b")), true),
            // The first of a name counts.
            (query("q", exact("c")), false),
            (query("p", exact("1 2")), true),
            (query("flag", exact("")), true),
            (query("none", exact("")), false),
            (
                Conditions {
                    headers: vec![(name("x-one"), exact("1"))],
                    query: vec![("p".to_owned(), exact("x"))],
                    ..Conditions::default()
                },
                false,
            ),
        ] {
            assert_eq!(asked.meets(&conditions), expected, "{conditions:?}");
        }
        assert_eq!(decoded("%zz%4"), "%zz%4");
    }
}
