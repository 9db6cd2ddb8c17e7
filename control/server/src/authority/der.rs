//! Subjects of certificates as they are encoded. What writes certificates (`rcgen`) holds one value of each type in a name, and a
//! subject may have several organizations: so a certificate gets its subject when it is written, and is signed anew.

use rcgen::{KeyPair, SigningKey as _};
use x509_parser::asn1_rs::{Any, FromDer as _};

const BIT_STRING: u8 = 0x03;
const UTF8_STRING: u8 = 0x0c;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `id-at-commonName` and `id-at-organizationName` (2.5.4.3 and 2.5.4.10).
const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];
const ORGANIZATION: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x0a];
/// Where the subject is among the parts of what is signed of a certificate of version 3 (RFC 5280, section 4.1).
const SUBJECT: usize = 5;

/// The name of a user who has these groups.
pub(super) fn name(user: &str, groups: &[String]) -> Vec<u8> {
    let attribute = |kind: [u8; 5], text: &str| {
        let text = value(UTF8_STRING, text.as_bytes());
        value(SET, &value(SEQUENCE, &[&kind[..], &text].concat()))
    };
    let groups = groups.iter().map(|group| attribute(ORGANIZATION, group));
    value(SEQUENCE, &std::iter::once(attribute(COMMON_NAME, user)).chain(groups).collect::<Vec<_>>().concat())
}

/// Whether a name says nothing.
pub(super) fn is_empty(name: &[u8]) -> bool {
    name == value(SEQUENCE, &[])
}

/// A certificate with this subject in place of its own, signed with the key that signed it before. `None` is of what is no
/// certificate.
pub(super) fn with_subject(certificate: &[u8], subject: &[u8], key: &KeyPair) -> Option<Result<Vec<u8>, rcgen::Error>> {
    resigned(certificate, SUBJECT, subject, key)
}

/// A request for a certificate with this subject in place of its own, signed with its key.
#[cfg(test)]
pub(super) fn request_with_subject(request: &[u8], subject: &[u8], key: &KeyPair) -> Option<Vec<u8>> {
    resigned(request, 1, subject, key)?.ok()
}

/// What is signed (a sequence of what is to be signed, an algorithm and the signature) with one part of it replaced.
fn resigned(signed: &[u8], part: usize, by: &[u8], key: &KeyPair) -> Option<Result<Vec<u8>, rcgen::Error>> {
    let [to_be_signed, algorithm, _]: [&[u8]; 3] = parts(signed)?.try_into().ok()?;
    let mut fields = parts(to_be_signed)?;
    *fields.get_mut(part)? = by;
    let to_be_signed = value(SEQUENCE, &fields.concat());
    Some(key.sign(&to_be_signed).map(|signature| {
        // All its bits are used.
        let signature = value(BIT_STRING, &[&[0][..], &signature].concat());
        value(SEQUENCE, &[&to_be_signed[..], algorithm, &signature].concat())
    }))
}

/// The values in a sequence.
fn parts(sequence: &[u8]) -> Option<Vec<&[u8]>> {
    let (mut parts, mut rest) = (Vec::new(), Any::from_der(sequence).ok()?.1.data);
    while !rest.is_empty() {
        let (after, _) = Any::from_der(rest).ok()?;
        parts.push(&rest[..rest.len() - after.len()]);
        rest = after;
    }
    Some(parts)
}

/// A value with its tag and its length (X.690, section 10.1).
fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = &length[length.iter().position(|byte| *byte != 0).unwrap_or(length.len() - 1)..];
    let mut value = vec![tag];
    if content.len() >= 0x80 {
        value.push(0x80 | length.len() as u8);
    }
    value.extend_from_slice(length);
    value.extend_from_slice(content);
    value
}
