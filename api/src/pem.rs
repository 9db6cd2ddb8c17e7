//! PEM text, read in one way by everybody who checks what is in it or acts on it: what was checked is what is used.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Label of requests for certificates (PKCS #10).
const REQUEST: &str = "CERTIFICATE REQUEST";
const CERTIFICATE: &str = "CERTIFICATE";
const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";

/// The request for a certificate in a PEM text (DER, not looked into), or what is wrong with the text. It is the only block there;
/// words may stand before and after it.
pub fn request(text: &[u8]) -> Result<Vec<u8>, &'static str> {
    match blocks(text).as_deref_mut() {
        Some([(REQUEST, der)]) => Ok(std::mem::take(der)),
        Some([(REQUEST, _), ..]) => Err("there is more than one PEM block"),
        _ => Err("PEM block type must be CERTIFICATE REQUEST"),
    }
}

/// A certificate (DER) as PEM text.
pub fn certificate(der: &[u8]) -> String {
    let mut text = format!("{BEGIN}{CERTIFICATE}-----\n");
    let body = STANDARD.encode(der);
    let mut rest = body.as_str();
    while !rest.is_empty() {
        // RFC 7468, section 2: lines of 64 characters.
        let (line, after) = rest.split_at(rest.len().min(64));
        text.extend([line, "\n"]);
        rest = after;
    }
    text.extend([END, CERTIFICATE, "-----\n"]);
    text
}

/// Whether the blocks of a PEM text are certificates, of which there is one at least.
pub fn is_certificates(text: &[u8]) -> bool {
    certificates(text).is_some_and(|certificates| !certificates.is_empty())
}

/// The certificates (DER, not looked into) of a PEM text in their order; none at all when a block is something else.
pub fn certificates(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let one = |(label, content): (&str, Vec<u8>)| (label == CERTIFICATE).then_some(content);
    blocks(text)?.into_iter().map(one).collect()
}

/// The blocks of a text in their order, by label and content (RFC 7468, section 3: whitespace among the base64 is no matter,
/// headers are); none at all when something begins as one and is none.
fn blocks(text: &[u8]) -> Option<Vec<(&str, Vec<u8>)>> {
    let (mut blocks, mut rest) = (Vec::new(), std::str::from_utf8(text).ok()?);
    while let Some((_, begun)) = rest.split_once(BEGIN) {
        let (label, content, after) = block(begun)?;
        blocks.push((label, content));
        rest = after;
    }
    Some(blocks)
}

/// Label and content of the block whose label this text begins with, and what follows it.
fn block(text: &str) -> Option<(&str, Vec<u8>, &str)> {
    let (label, rest) = text.split_once("-----")?;
    let (body, rest) = rest.split_once(END)?;
    let after = rest.strip_prefix(label)?.strip_prefix("-----")?;
    let body: String = body.split_ascii_whitespace().collect();
    Some((label, STANDARD.decode(body).ok()?, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(label: &str, body: &str) -> String {
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    }

    #[test]
    fn one_request_is_in_a_text_or_none() {
        let (a, b) = (block(REQUEST, "AAAA"), block(REQUEST, "AQEB"));
        let (several, other) =
            (Err("there is more than one PEM block"), Err("PEM block type must be CERTIFICATE REQUEST"));
        for (text, expected) in [
            (a.clone(), Ok(vec![0, 0, 0])),
            (format!("Certificate Request:\n    Data:\n{a}\nthat was it\n"), Ok(vec![0, 0, 0])),
            (a.replace('\n', "\r\n"), Ok(vec![0, 0, 0])),
            (block(REQUEST, "AA\n\tAA"), Ok(vec![0, 0, 0])),
            (format!("{a}{b}"), several),
            // What one reader passes over, and another does not.
            (format!("{a}-----BEGIN X"), other.clone()),
            (format!("{}{b}", a.replace("AAAA", "AA*A")), other.clone()),
            (format!("{}{b}", a.replace("-----END", "----END")), other.clone()),
            (format!("{}{b}", block("CERTIFICATE", "AAAA")), other.clone()),
            (block(REQUEST, "AAAA").replace("END CERTIFICATE", "END"), other.clone()),
            (block(REQUEST, "Proc-Type: 4\n\nAAAA"), other.clone()),
            (block(REQUEST, "AAB="), other.clone()),
            (block("NEW CERTIFICATE REQUEST", "AAAA"), other.clone()),
            ("AAAA".to_owned(), other.clone()),
            (String::new(), other),
        ] {
            assert_eq!(request(text.as_bytes()), expected, "{text}");
        }
        assert!(request(b"\xff").is_err());
    }

    #[test]
    fn a_text_of_beginnings_is_read_once() {
        let begun = std::time::Instant::now();
        assert!(request("-----BEGIN A-----".repeat(1 << 17).as_bytes()).is_err());
        assert!(begun.elapsed() < std::time::Duration::from_secs(2));
    }

    #[test]
    fn certificates_stand_alone() {
        let one = block("CERTIFICATE", "AAAA");
        let long = certificate(&[7; 100]);
        assert!(is_certificates(long.as_bytes()) && long.lines().all(|line| line.len() <= 64), "{long}");
        assert_eq!(certificate(&[0; 3]), one);
        assert!(is_certificates(one.as_bytes()) && is_certificates(format!("{one}\n{one}").as_bytes()));
        for text in [String::new(), block(REQUEST, "AAAA"), format!("{one}{}", block("PRIVATE KEY", "AAAA"))] {
            assert!(!is_certificates(text.as_bytes()), "{text}");
        }
    }
}
