//! The forms that names, keys and values must have, in apimachinery's words (`util/validation`, `api/validate/content`).
//!
//! Each function gives the messages about what is wrong; none means well. They are written by hand because every write
//! runs them over every label: no regular expression is interpreted.

const LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const KEY_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const KEY_WORDS: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// How names of a kind are checked: the name, and whether random characters will follow it (`generateName`).
pub type NameCheck = fn(name: &str, is_prefix: bool) -> Vec<String>;

/// A DNS label (RFC 1123), at most 63 characters.
pub fn dns_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > 63 {
        errors.push(too_long(63));
    }
    if !is_dns_label(value) {
        errors.push(if is_dns_subdomain(value) {
            "must not contain dots".to_owned()
        } else {
            regex(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
                 and end with an alphanumeric character",
                LABEL_FMT,
                &["my-name", "123-abc"],
            )
        });
    }
    errors
}

/// A DNS subdomain (RFC 1123), at most 253 characters.
pub fn dns_subdomain(value: &str) -> Vec<String> {
    subdomain(value, "characters")
}

fn subdomain(value: &str, unit: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > 253 {
        errors.push(format!("must be no more than 253 {unit}"));
    }
    if !is_dns_subdomain(value) {
        errors.push(regex(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character",
            SUBDOMAIN_FMT,
            &["example.com"],
        ));
    }
    errors
}

/// What is said of a text that is no DNS subdomain in either case.
pub fn any_case_dns_subdomain() -> String {
    regex(
        "an RFC 1123 subdomain must consist of alphanumeric characters, '-' or '.', and must start and end with an \
         alphanumeric character",
        SUBDOMAIN_FMT,
        &["Example.com"],
    )
}

/// The reason of a condition.
pub fn condition_reason(value: &str) -> Vec<String> {
    let is_within = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b',' | b':');
    let is_valid = value.starts_with(|c: char| c.is_ascii_alphabetic())
        && value.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && value.bytes().all(is_within);
    if is_valid {
        return Vec::new();
    }
    vec![regex(
        "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric \
         characters or '_,:', and must end with an alphanumeric character or '_'",
        "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
        &["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"],
    )]
}

/// A DNS label that starts with a letter (RFC 1035).
pub fn dns_1035_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > 63 {
        errors.push(too_long(63));
    }
    if !(is_dns_label(value) && value.starts_with(|c: char| c.is_ascii_lowercase())) {
        errors.push(regex(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    errors
}

/// `*.` before a DNS subdomain.
pub fn wildcard_dns_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > 253 {
        errors.push(too_long(253));
    }
    if !value.strip_prefix("*.").is_some_and(is_dns_subdomain) {
        errors.push(regex(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist \
             of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            "\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
            &["*.example.com"],
        ));
    }
    errors
}

/// A qualified name: a key of labels, annotations, resources, a finalizer, a condition's type. `[prefix/]name`.
pub fn qualified_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let name = match value.split_once('/') {
        None => value,
        Some((_, rest)) if rest.contains('/') => {
            let text = regex(&format!("a valid label key {KEY_WORDS}"), KEY_FMT, &["MyName", "my.name", "123-abc"]);
            return vec![format!("{text} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")];
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(subdomain(prefix, "bytes").into_iter().map(|message| format!("prefix part {message}")));
            }
            name
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        errors.push("name part must be no more than 63 bytes".to_owned());
    }
    if !is_key_name(name) {
        errors.push(format!("name part {}", regex(KEY_WORDS, KEY_FMT, &["MyName", "my.name", "123-abc"])));
    }
    errors
}

/// A label's value.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > 63 {
        errors.push("must be no more than 63 bytes".to_owned());
    }
    if !(value.is_empty() || is_key_name(value)) {
        errors.push(regex(
            &format!("a valid label must be an empty string or {}", &KEY_WORDS[5..]),
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

/// The name of a port (IANA service name), at most 15 characters.
pub fn port_name(value: &str) -> Vec<String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let checks = [
        (value.len() > 15, "must be no more than 15 characters"),
        (
            value.is_empty() || !value.bytes().all(allowed),
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        ),
        (!value.bytes().any(|b| b.is_ascii_lowercase()), "must contain at least one letter (a-z)"),
        (value.contains("--"), "must not contain consecutive hyphens"),
        (value.starts_with('-') || value.ends_with('-'), "must not begin or end with a hyphen"),
    ];
    checks.into_iter().filter(|(wrong, _)| *wrong).map(|(_, words)| words.to_owned()).collect()
}

/// A number of a port.
pub fn port_number(value: i64) -> Vec<String> {
    in_range(value, 1, 65_535)
}

/// A number between two, both included.
pub fn in_range(value: i64, least: i64, most: i64) -> Vec<String> {
    match (least..=most).contains(&value) {
        true => Vec::new(),
        false => vec![format!("must be between {least} and {most}, inclusive")],
    }
}

/// A name that is one segment of a path: no `/`, no `%`, not `.` or `..`.
pub fn path_segment(value: &str) -> Vec<String> {
    match value {
        "." | ".." => vec![format!("may not be '{value}'")],
        _ => path_segment_prefix(value),
    }
}

fn path_segment_prefix(value: &str) -> Vec<String> {
    let illegal = ['/', '%'].into_iter().filter(|c| value.contains(*c));
    illegal.map(|c| format!("may not contain '{c}'")).collect()
}

/// A key of a ConfigMap or Secret.
pub fn config_key(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > 253 {
        errors.push(too_long(253));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if value.is_empty() || !value.bytes().all(allowed) {
        errors.push(regex(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match value {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        _ if value.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
    errors
}

/// The name of an environment variable: printable ASCII but `=`.
pub fn env_name(value: &str) -> Vec<String> {
    if value.is_empty() {
        return vec!["environment variable name must be non-empty".to_owned()];
    }
    match value.bytes().all(|b| (b == b' ' || b.is_ascii_graphic()) && b != b'=') {
        true => Vec::new(),
        false => vec![
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        ],
    }
}

/// The name of an HTTP header.
pub fn http_header_name(value: &str) -> Vec<String> {
    match !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        true => Vec::new(),
        false => vec![regex(
            "a valid HTTP header must consist of alphanumeric characters or '-'",
            "[-A-Za-z0-9]+",
            &["X-Header-Name"],
        )],
    }
}

/// An identifier of C.
pub fn c_identifier(value: &str) -> Vec<String> {
    let first = value.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    match first && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        true => Vec::new(),
        false => vec![regex(
            "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
             characters or '_'",
            "[A-Za-z_][A-Za-z0-9_]*",
            &["my_name", "MY_NAME", "MyName"],
        )],
    }
}

/// A percentage, as `25%`.
pub fn percent(value: &str) -> Vec<String> {
    let digits = value.strip_suffix('%').unwrap_or("");
    match !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        true => Vec::new(),
        false => vec![regex(
            "a valid percent string must be a numeric string followed by an ending '%'",
            "[0-9]+%",
            &["1%", "93%"],
        )],
    }
}

/// [`NameCheck`] of most kinds: a DNS subdomain.
pub fn name_is_dns_subdomain(name: &str, is_prefix: bool) -> Vec<String> {
    dns_subdomain(&masked(name, is_prefix))
}

/// [`NameCheck`] of namespaces and services' selectors: a DNS label.
pub fn name_is_dns_label(name: &str, is_prefix: bool) -> Vec<String> {
    dns_label(&masked(name, is_prefix))
}

/// [`NameCheck`] of RFC 1035 labels.
pub fn name_is_dns_1035_label(name: &str, is_prefix: bool) -> Vec<String> {
    dns_1035_label(&masked(name, is_prefix))
}

/// [`NameCheck`] of RBAC and all that need only fit in a path.
pub fn name_is_path_segment(name: &str, is_prefix: bool) -> Vec<String> {
    if is_prefix { path_segment_prefix(name) } else { path_segment(name) }
}

/// A prefix may end with a dash: what follows makes it a name.
fn masked(name: &str, is_prefix: bool) -> std::borrow::Cow<'_, str> {
    match name.strip_suffix('-') {
        // The character before the dash goes too, as in the reference.
        Some(rest) if is_prefix && !rest.is_empty() => {
            let end = rest.char_indices().last().map_or(0, |(at, _)| at);
            format!("{}a", &rest[..end]).into()
        }
        _ => name.into(),
    }
}

/// Whether it is a DNS label, apart from its length.
pub fn is_dns_label(value: &str) -> bool {
    let bytes = value.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
}

/// Whether it is a DNS subdomain, apart from its length.
pub fn is_dns_subdomain(value: &str) -> bool {
    value.split('.').all(is_dns_label)
}

/// Whether it is the name part of a key, apart from its length.
fn is_key_name(value: &str) -> bool {
    let bytes = value.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn too_long(characters: usize) -> String {
    format!("must be no more than {characters} characters")
}

/// What a value must be, with examples and the expression (`validation.RegexError`).
pub fn regex(words: &str, expression: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{words} (regex used for validation is '{expression}')");
    }
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{words} (e.g. {}regex used for validation is '{expression}')", examples.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_good_names_from_bad_ones() {
        type Check = fn(&str) -> Vec<String>;
        let long = "a".repeat(64);
        let table: &[(Check, &[&str], &[&str])] = &[
            (dns_label, &["a", "a-b", "1"], &["", "A", "-a", "a-", "a.b", "a_b", &long]),
            (dns_subdomain, &["a", "a.b-c.1", &long], &["", ".", "a..b", "a.-b", "A"]),
            (dns_1035_label, &["a1"], &["1a", ""]),
            (qualified_name, &["a", "A_b.c", "x.y/Z"], &["", "/a", "a/", "a/b/c", "X/a", "a b", &long]),
            (label_value, &["", "a", "A.b_c-1"], &["-a", "a b", &long]),
            (port_name, &["http", "a-1"], &["", "1", "a--b", "-a", "UP", "longer-than-fifteen"]),
            (config_key, &["a", ".a", "A_b"], &["", ".", "..", "..a", "a b"]),
            (env_name, &["A", "a.b", "1 x"], &["", "a=b", "é"]),
            (path_segment, &["a:b", ""], &[".", "..", "a/b", "%"]),
            (wildcard_dns_subdomain, &["*.a"], &["*", "*.*.a", "a"]),
            (percent, &["1%"], &["%", "1", "-1%"]),
        ];
        for (check, good, bad) in table {
            for value in *good {
                assert_eq!(check(value), Vec::<String>::new(), "{value}");
            }
            for value in *bad {
                assert_ne!(check(value), Vec::<String>::new(), "{value}");
            }
        }
    }

    #[test]
    fn words_them_as_apimachinery_does() {
        for (messages, expected) in [
            (dns_label("a.b"), "must not contain dots"),
            (
                dns_label("A"),
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            ),
            (
                qualified_name("a b"),
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            ),
            (
                label_value("a b"),
                "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
        ] {
            assert_eq!(messages, [expected]);
        }
        assert_eq!(name_is_dns_subdomain("web-", true), Vec::<String>::new());
        assert_ne!(name_is_dns_subdomain("web-", false), Vec::<String>::new());
    }
}
