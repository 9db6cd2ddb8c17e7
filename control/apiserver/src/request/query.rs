//! Query strings as the API reads them: repeated keys, Go's booleans, unknown parameters ignored.

use coracle_api::status::Status;

/// The parameters of a request, decoded, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|part| !part.is_empty()).map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(key, true), decode(value, true))
        });
        Query(pairs.collect())
    }

    /// Says `value` of `key`, and nothing else of it.
    pub fn set(&mut self, key: &str, value: &str) {
        self.0.retain(|(known, _)| known != key);
        self.0.push((key.to_owned(), value.to_owned()));
    }

    /// The first value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The first value of `key` unless it is empty.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|value| !value.is_empty())
    }

    /// Every value of `key`.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A boolean as apimachinery converts it: only `false` and `0` are false, also `maybe` is true.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).map(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    /// A whole number; the message is Go's.
    pub fn integer(&self, key: &str) -> Result<Option<i64>, Status> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let number = text.parse().map_err(|_| {
            Status::bad_request(format!(
                "strconv.ParseInt: parsing {}: invalid syntax",
                coracle_api::meta::text::quote(text)
            ))
        })?;
        Ok(Some(number))
    }
}

/// A segment of a path, percent-encoded where RFC 3986 asks for it; `;` too, which some take for the beginning of parameters.
pub(crate) fn encode(segment: &str) -> String {
    let mut encoded = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        match byte {
            byte if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte) => encoded.push(byte.into()),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

/// Undoes percent-encoding; what is no encoding stays, and bytes that are no UTF-8 become replacement characters.
pub(crate) fn decode(text: &str, plus_is_space: bool) -> String {
    if !text.bytes().any(|b| b == b'%' || b == b'+') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| (*b as char).to_digit(16));
        match bytes[at] {
            b'%' if hex(at + 1).is_some() && hex(at + 2).is_some() => {
                out.push((hex(at + 1).unwrap_or(0) * 16 + hex(at + 2).unwrap_or(0)) as u8);
                at += 3;
            }
            b'+' if plus_is_space => {
                out.push(b' ');
                at += 1;
            }
            byte => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let query = Query::parse("labelSelector=a%20in%20(b,c)&watch&limit=5&x=1&x=2+3&bad=%zz");
        assert_eq!(query.get("labelSelector"), Some("a in (b,c)"));
        assert_eq!(query.flag("watch"), Some(true));
        assert_eq!(query.integer("limit").unwrap(), Some(5));
        assert_eq!(query.all("x").collect::<Vec<_>>(), ["1", "2 3"]);
        assert_eq!(query.get("bad"), Some("%zz"));
        assert!(query.integer("labelSelector").is_err());
    }

    #[test]
    fn only_false_and_0_are_false() {
        for (text, expected) in
            [("false", false), ("0", false), ("true", true), ("1", true), ("maybe", true), ("", true)]
        {
            assert_eq!(Query::parse(&format!("watch={text}")).flag("watch"), Some(expected), "{text}");
        }
    }
}
