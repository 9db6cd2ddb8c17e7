//! Names of repositories, tags and digests: checked once, when they come in. What is checked is safe in a path.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

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
    #[error(
        "a digest is \"sha256:\" with 64 or \"sha512:\" with 128 lower-case hexadecimal digits; no other algorithm is supported"
    )]
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

    /// Its first part: repositories that have it in common belong together.
    pub fn owner(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
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

/// The algorithms of digests (image specification, "Registered Algorithms").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Algorithm {
    /// 64 digits.
    Sha256,
    /// 128 digits.
    Sha512,
}

impl Algorithm {
    /// As it stands before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// The digest of `bytes`.
    pub fn digest(self, bytes: &[u8]) -> Digest {
        match self {
            Algorithm::Sha256 => Digest::of(&Sha256::digest(bytes)),
            Algorithm::Sha512 => Digest::of(&Sha512::digest(bytes)),
        }
    }
}

/// A digest in the making.
pub enum Hashing {
    /// By SHA-256.
    Sha256(Sha256),
    /// By SHA-512.
    Sha512(Sha512),
}

impl Hashing {
    /// One by `algorithm`, of nothing yet.
    pub fn new(algorithm: Algorithm) -> Hashing {
        match algorithm {
            Algorithm::Sha256 => Hashing::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hashing::Sha512(Sha512::new()),
        }
    }

    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hashing::Sha256(hash) => hash.update(bytes),
            Hashing::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of all of them.
    pub fn finish(self) -> Digest {
        match self {
            Hashing::Sha256(hash) => Digest::of(&hash.finalize()),
            Hashing::Sha512(hash) => Digest::of(&hash.finalize()),
        }
    }
}

/// A digest: its hexadecimal digits, whose number says the algorithm.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Digest(String);

impl Digest {
    /// The digest that a hash of 32 (SHA-256) or 64 (SHA-512) bytes is.
    pub fn of(hash: &[u8]) -> Digest {
        use fmt::Write;
        let mut hex = String::with_capacity(2 * hash.len());
        for byte in hash {
            let _ = write!(hex, "{byte:02x}");
        }
        Digest(hex)
    }

    /// The one written as `hex`, if it is one.
    pub fn from_hex(hex: &str) -> Option<Digest> {
        let good =
            matches!(hex.len(), 64 | 128) && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        good.then(|| Digest(hex.to_owned()))
    }

    /// Its digits.
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// By which it was computed.
    pub fn algorithm(&self) -> Algorithm {
        if self.0.len() == 64 { Algorithm::Sha256 } else { Algorithm::Sha512 }
    }
}

impl FromStr for Digest {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Digest, NameError> {
        let digest = text
            .split_once(':')
            .and_then(|(algorithm, hex)| Digest::from_hex(hex).filter(|digest| digest.algorithm().name() == algorithm));
        digest.ok_or(NameError::Digest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.0)
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
        assert!(matches!(format!("sha512:{hex}{hex}").parse(), Ok(Reference::Digest(_))));
        for bad in [format!("sha512:{hex}"), format!("sha256:{hex}{hex}"), format!("md5:{hex}")] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
        let upper = format!("sha256:{}", hex.to_uppercase());
        for bad in ["", ".", "..", "-x", "a/b", "a b", "sha256:", "sha512:00", &upper, &"t".repeat(129)] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
