//! Links, as RFC 3986 reads them.

/// The scheme of a link and what is behind its colon; none for one that is relative (§4.2). A colon in the path, the query or the
/// fragment of that is a letter like others.
pub fn scheme(link: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = link.split_once(':')?;
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
    is_scheme.then_some((scheme, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_link_begins_with_is_its_scheme() {
        for (link, expected) in [
            ("http://a/b", Some(("http", "//a/b"))),
            ("mailto:x", Some(("mailto", "x"))),
            ("/login?next=http://a", None),
            ("?next=http://a", None),
            ("#http://a", None),
            ("//a:80/", None),
            ("a/b:c", None),
            ("1a:b", None),
            (":b", None),
            ("", None),
        ] {
            assert_eq!(scheme(link), expected, "{link}");
        }
    }
}
