//! What a request asks, as routes look at it.

use std::cell::{Cell, OnceCell};
use std::collections::HashMap;

use coracle_gateway::{Conditions, Pattern, TextMatch};
use http::{HeaderMap, Method};

/// Bytes of one request that are compared with regular expressions, all of them together: a host may have hundreds of them, and a
/// request many thousands of bytes. With 500 expressions a path has 2,000 bytes still.
pub const MATCHED_BYTES_MAX: usize = 1 << 20;

/// It is not known who answers: more of the request would be compared than [`MATCHED_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

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
    /// Bytes that may still be compared with expressions; `None` when there were too many.
    left: Cell<Option<usize>>,
}

impl<'a> Asked<'a> {
    /// Of the parts of a request.
    pub fn new(path: &'a str, query: Option<&'a str>, method: &'a Method, headers: &'a HeaderMap) -> Asked<'a> {
        let left = Cell::new(Some(MATCHED_BYTES_MAX));
        Asked { path, query, method, headers, parameters: OnceCell::new(), left }
    }

    /// Whether an expression is for a text of this request. From the moment on at which it would be too much, none is for any.
    pub(crate) fn matches(&self, pattern: &Pattern, text: &str) -> bool {
        self.left.set(self.left.get().and_then(|left| left.checked_sub(text.len())));
        self.left.get().is_some() && pattern.is_match(text)
    }

    /// What was found by all of these comparisons, unless they were too many.
    pub(crate) fn found<T>(&self, found: T) -> Result<T, TooLong> {
        self.left.get().map(|_| found).ok_or(TooLong)
    }

    fn is_match(&self, wanted: &TextMatch, text: &str) -> bool {
        match wanted {
            TextMatch::Exact(value) => value == text,
            TextMatch::Pattern(pattern) => self.matches(pattern, text),
        }
    }

    /// Whether it is what a route wants.
    pub(crate) fn meets(&self, conditions: &Conditions) -> bool {
        conditions.method.as_ref().is_none_or(|method| method == self.method)
            && conditions.call.as_deref().is_none_or(|call| self.call() == Some(call))
            && conditions.headers.iter().all(|(name, text)| {
                let mut values = self.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
                values.any(|value| self.is_match(text, value))
            })
            && conditions
                .query
                .iter()
                .all(|(name, text)| self.parameters().get(name).is_some_and(|value| self.is_match(text, value)))
    }

    /// The method of a call of gRPC: what comes behind the first segment, where that is one more.
    fn call(&self) -> Option<&str> {
        let (service, method) = self.path.strip_prefix('/')?.split_once('/')?;
        (!service.is_empty() && !method.contains('/')).then_some(method)
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
        let call = Conditions { call: Some("Get".into()), ..Conditions::default() };
        for (path, expected) in [
            ("/a.B/Get", true),
            ("/a.B/Set", false),
            ("/a.B/C/Get", false),
            ("//Get", false),
            ("/Get", false),
            ("a.B/Get", false),
        ] {
            assert_eq!(Asked::new(path, None, &Method::POST, &headers).meets(&call), expected, "{path}");
        }
        assert_eq!(decoded("%zz%4"), "%zz%4");
    }

    #[test]
    fn so_much_is_compared_with_expressions_and_no_more() {
        let headers = HeaderMap::new();
        let path = "/".repeat(MATCHED_BYTES_MAX / 4);
        let asked = Asked::new(&path, None, &Method::GET, &headers);
        let pattern = Pattern::parse("/*").unwrap();
        let matched: Vec<bool> = (0..6).map(|_| asked.matches(&pattern, asked.path)).collect();
        assert_eq!(matched, [true, true, true, true, false, false]);
        assert_eq!((asked.matches(&pattern, "/"), asked.found(1)), (false, Err(TooLong)));
        assert_eq!(Asked::new("/", None, &Method::GET, &headers).found(1), Ok(1));
    }
}
