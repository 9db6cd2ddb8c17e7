//! A key, and what it seals: AES-256-GCM under a key that is used once.
//!
//! ```text
//! frame: "\0SEALED1" · id of the key (8, little-endian) · salt (32) · ciphertext · tag (16)
//! ```
//! Each frame has a salt of its own, which with the key gives the frame's key (HKDF-SHA256, RFC 5869): a nonce cannot come
//! twice, however much is sealed, and the nonce itself is zero. The head is authenticated, and so is what the frame
//! belongs to: in another place it cannot be opened. No object and no text that is stored begins with a zero byte.

use std::fmt::{self, Write as _};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::rand::{SecureRandom, SystemRandom};

/// How a frame begins.
const MAGIC: &[u8; 8] = b"\0SEALED1";
const SALT: usize = 32;
/// Bytes before the ciphertext.
const HEAD: usize = MAGIC.len() + 8 + SALT;
const TAG: usize = 16;
/// Bytes of a key.
const KEY: usize = 32;

/// 256 bits that nobody guesses.
#[derive(Clone)]
pub struct SecretKey([u8; KEY]);

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

/// Length of a key that is derived.
struct Derived;

impl KeyType for Derived {
    fn len(&self) -> usize {
        KEY
    }
}

impl SecretKey {
    /// A new one.
    pub fn generate() -> SecretKey {
        SecretKey(random())
    }

    /// The one that this secret is for this purpose; of either nothing can be learned from those for others.
    pub fn derive(secret: &[u8], purpose: &str) -> SecretKey {
        let mut key = [0; KEY];
        let derived = Salt::new(HKDF_SHA256, &[]).extract(secret);
        let filled = derived.expand(&[purpose.as_bytes()], Derived).map(|bytes| bytes.fill(&mut key));
        filled.and_then(|filled| filled).expect("a key is shorter than HKDF gives");
        SecretKey(key)
    }

    /// As it is written.
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }

    /// What was written; `None` when it is no key.
    pub fn from_hex(text: &str) -> Option<SecretKey> {
        Some(SecretKey(from_hex(text)?.try_into().ok()?))
    }

    /// By what it is told from others; says nothing of it.
    pub fn fingerprint(&self) -> String {
        hex(&SecretKey::derive(&self.0, "coracle fingerprint").0[..8])
    }

    /// Seals `plain` as what `context` says, under this key, which is called `id`.
    pub fn seal(&self, id: u64, context: &[&str], plain: &[u8]) -> Vec<u8> {
        let salt: [u8; SALT] = random();
        let mut frame = Vec::with_capacity(HEAD + plain.len() + TAG);
        frame.extend_from_slice(MAGIC);
        frame.extend_from_slice(&id.to_le_bytes());
        frame.extend_from_slice(&salt);
        let said = Aad::from(said(&frame, context));
        frame.extend_from_slice(plain);
        let sealed = self.once(&salt).seal_in_place_separate_tag(nonce(), said, &mut frame[HEAD..]);
        let tag = sealed.expect("AES-GCM takes more than a transaction may have");
        frame.extend_from_slice(tag.as_ref());
        frame
    }

    /// What was sealed as what `context` says; `None` when the frame is not that, or of another key.
    pub fn open(&self, context: &[&str], frame: &[u8]) -> Option<Vec<u8>> {
        let (head, rest) = frame.split_at_checked(HEAD)?;
        let (cipher, tag) = rest.split_at_checked(rest.len().checked_sub(TAG)?)?;
        sealed_by(frame)?;
        let tag = Tag::try_from(tag).ok()?;
        let mut plain = cipher.to_vec();
        let said = Aad::from(said(head, context));
        let opened = self.once(&head[HEAD - SALT..]).open_in_place_separate_tag(nonce(), said, tag, &mut plain, 0..);
        opened.is_ok().then_some(plain)
    }

    /// The key of a frame.
    fn once(&self, salt: &[u8]) -> LessSafeKey {
        let derived = Salt::new(HKDF_SHA256, salt).extract(&self.0);
        let key = derived.expand(&[&b"coracle sealed 1"[..]], &AES_256_GCM).map(UnboundKey::from);
        LessSafeKey::new(key.expect("a key is shorter than HKDF gives"))
    }
}

/// Under which key these bytes are sealed; `None` when they are not sealed.
pub fn sealed_by(bytes: &[u8]) -> Option<u64> {
    let id = bytes.strip_prefix(MAGIC)?.first_chunk()?;
    Some(u64::from_le_bytes(*id))
}

/// What is authenticated beside the ciphertext. Each part stands behind its length, so that none can end in the next.
fn said(head: &[u8], context: &[&str]) -> Vec<u8> {
    let mut said = head.to_vec();
    for part in context {
        said.extend_from_slice(&(part.len() as u64).to_le_bytes());
        said.extend_from_slice(part.as_bytes());
    }
    said
}

/// Each key is used once.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system has random numbers once it is up");
    bytes
}

/// In lower case.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_is_opened_in_its_place_by_its_key_and_whole() {
        let key = SecretKey::generate();
        let place = ["secrets", "default/db"];
        let frame = key.seal(7, &place, b"hunter2");
        assert_eq!((sealed_by(&frame), frame.len()), (Some(7), HEAD + 7 + TAG));
        assert_eq!(key.open(&place, &frame).as_deref(), Some(&b"hunter2"[..]));
        assert_eq!(key.open(&place, &key.seal(7, &place, b"")).as_deref(), Some(&b""[..]));
        for other in [["secrets", "default/db2"], ["configmaps", "default/db"], ["secretsd", "efault/db"]] {
            assert_eq!(key.open(&other, &frame), None, "{other:?}");
        }
        assert_eq!(SecretKey::generate().open(&place, &frame), None);
        for at in 0..frame.len() {
            let mut wrong = frame.clone();
            wrong[at] ^= 1;
            assert_eq!(key.open(&place, &wrong), None, "a bit of byte {at}");
            assert_eq!(key.open(&place, &frame[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn the_same_twice_is_not_the_same() {
        let key = SecretKey::generate();
        let (one, two) = (key.seal(1, &["a"], &[0; 64]), key.seal(1, &["a"], &[0; 64]));
        assert!(one[16..].chunks(16).zip(two[16..].chunks(16)).all(|(one, two)| one != two));
    }

    /// A frame of today: whoever changes this makes a new version (docs/formats.md).
    #[test]
    fn the_frame_is_that_of_version_1() {
        let key = SecretKey::derive(b"secret", "purpose");
        assert_eq!(key.to_hex(), "eced7de97c6f9dd8c7c842b5a550832f39290b6fa8c17658b4eea5226819c4c0");
        let frame = from_hex(
            "005345414c4544310201000000000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\
             8d4df2211a6b73dd7ec13b2723b57087d2ecdea57db592",
        )
        .unwrap();
        assert_eq!(key.open(&["secrets", "default/db"], &frame).as_deref(), Some(&b"hunter2"[..]));
        assert_eq!(sealed_by(&frame), Some(0x0102));
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        let key = SecretKey::generate();
        let again = SecretKey::from_hex(&key.to_hex()).unwrap();
        assert_eq!(again.fingerprint(), key.fingerprint());
        assert!(!key.to_hex().contains(&key.fingerprint()));
        for wrong in ["", "00", &key.to_hex()[1..], &key.to_hex().replace(&key.to_hex()[..1], "g")] {
            assert!(SecretKey::from_hex(wrong).is_none(), "{wrong}");
        }
        assert!(!format!("{key:?}").contains(&key.to_hex()[..8]));
    }
}
