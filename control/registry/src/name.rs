//! Names of repositories, tags and digests: checked once, when they come in. What is checked is safe in a path.

use std::fmt;
use std::str::FromStr;

/// Longest name of a repository (distribution specification, "Pulling manifests").
const NAME_BYTES_MAX: usize = 255;
/// Longest tag (same place).
const TAG_BYTES_MAX: usize = 128;

/// Why a name cannot be one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// Of a repository.
    #[error("a repository is named by lower-case letters and digits, separated by '.', '_', '__', '-' or '/'")]
    Repository,
    /// Of a tag.
    #[error("a tag has at most 128 letters, digits, '_', '.' and '-', and begins with none of the last two")]
    Tag,
    /// Of a digest.
    #[error("a digest is \"sha256:\" and 64 lower-case hexadecimal digits; no other algorithm is supported")]
    Digest,
}

/// A repository.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Name(String);

impl Name {
    /// It, as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        let good = text.len() <= NAME_BYTES_MAX && text.split('/').all(is_component);
        good.then(|| Name(text.to_owned())).ok_or(NameError::Repository)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !text.starts_with(plain) || !text.ends_with(plain) {
        return false;
    }
    let separators = text.split(plain).filter(|separator| !separator.is_empty());
    separators.into_iter().all(|s| matches!(s, "." | "_" | "__") || s.chars().all(|c| c == '-'))
}

/// A SHA-256 digest.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Digest(String);

impl Digest {
    /// The digest that `hash` has computed.
    pub fn of(hash: &[u8]) -> Digest {
        use fmt::Write;
        let mut hex = String::with_capacity(64);
        for byte in hash {
            let _ = write!(hex, "{byte:02x}");
        }
        Digest(hex)
    }

    /// The one written as `hex`, if it is one.
    pub fn from_hex(hex: &str) -> Option<Digest> {
        let good = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        good.then(|| Digest(hex.to_owned()))
    }

    /// Its 64 digits.
    pub fn hex(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Digest, NameError> {
        text.strip_prefix("sha256:").and_then(Digest::from_hex).ok_or(NameError::Digest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// How a manifest is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reference {
    /// By a name that may move.
    Tag(String),
    /// By what it is.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Reference, NameError> {
        if text.contains(':') {
            return text.parse().map(Reference::Digest);
        }
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let good = text.len() <= TAG_BYTES_MAX
            && text.starts_with(word)
            && text.chars().all(|c| word(c) || c == '.' || c == '-');
        good.then(|| Reference::Tag(text.to_owned())).ok_or(NameError::Tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_good_names_are_names() {
        for good in ["a", "app", "my.app/web_1", "a__b/c--d", "0/1/2", "registry.k8s.io/pause", "x/blobs/uploads"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let long = "a".repeat(256);
        for bad in ["", "A", "a/", "/a", "a//b", "..", "a/../b", "_a", "a_", "a___b", "a._b", "a.b.", "a b", "ä", &long]
        {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_reference_is_a_tag_or_a_digest() {
        let hex = "0123456789abcdef".repeat(4);
        assert!(matches!(format!("sha256:{hex}").parse(), Ok(Reference::Digest(_))));
        for good in ["latest", "v1.2-rc", "_x", &"t".repeat(128)] {
            assert_eq!(good.parse(), Ok(Reference::Tag(good.to_owned())));
        }
        let upper = format!("sha256:{}", hex.to_uppercase());
        for bad in ["", ".", "..", "-x", "a/b", "a b", "sha256:", "sha512:00", &upper, &"t".repeat(129)] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
