//! `$(NAME)` in commands, arguments and values (`k8s.io/kubernetes/third_party/forked/golang/expansion`).

/// Replaces `$(NAME)` by what `lookup` knows; `$$` is a dollar, an unknown name stays as it is written. `None` when that would
/// have more than `bytes_max`: values are made of values, and double with each that names another twice.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>, bytes_max: usize) -> Option<String> {
    let mut out = String::new();
    let mut put = |part: &str| {
        let fits = part.len() <= bytes_max - out.len();
        fits.then(|| out.push_str(part))
    };
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        put(&rest[..at])?;
        let after = &rest[at + 1..];
        if let Some(escaped) = after.strip_prefix('$') {
            put("$")?;
            rest = escaped;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            put(lookup(name).unwrap_or(&rest[at..rest.len() - tail.len()]))?;
            rest = tail;
        } else {
            put("$")?;
            rest = after;
        }
    }
    put(rest)?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_kubernetes_rules() {
        let lookup = |name: &str| (name == "A").then_some("x");
        for (text, expected) in [
            ("", ""),
            ("$(A)", "x"),
            ("a$(A)b$(A)", "axbx"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$x"),
            ("$(B)", "$(B)"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("100$", "100$"),
        ] {
            assert_eq!(expand(text, lookup, expected.len()).as_deref(), Some(expected), "{text}");
            if let Some(less) = expected.len().checked_sub(1) {
                assert_eq!(expand(text, lookup, less), None, "{text}");
            }
        }
    }
}
