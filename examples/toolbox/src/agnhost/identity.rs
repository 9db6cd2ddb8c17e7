//! `test-service-account-issuer-discovery`: checks a token of a service account by what its issuer says of itself (OpenID discovery),
//! as somebody would who knows nothing else of the cluster.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::log;
use super::options::Options;
use crate::clients::{Asked, ask};
use crate::{http, tls};

/// What every pod has of its account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TIMEOUT: Duration = Duration::from_secs(30);

pub fn run(options: &Options) -> Result<u8, String> {
    let path = options.get("token-path").unwrap_or_default();
    let token = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    log("OK: Got token");
    log("validating with in-cluster discovery");
    validate(token.trim(), options.get("audience").unwrap_or_default())?;
    Ok(0)
}

fn validate(token: &str, audience: &str) -> Result<(), String> {
    let (signed, signature) = token.rsplit_once('.').ok_or("the token has no signature")?;
    let (head, claims) = signed.split_once('.').ok_or("the token has no claims")?;
    let (head, claims) = (part(head)?, part(claims)?);
    let issuer = claims["iss"].as_str().unwrap_or_default();
    log(&format!("OK: got issuer {issuer}"));
    log(&format!("Full, not-validated claims: \n{claims}"));

    let provider = fetch(&format!("{issuer}/.well-known/openid-configuration"))?;
    if provider["issuer"] != claims["iss"] {
        return Err(format!("the issuer did not match: expected {issuer:?}, got {}", provider["issuer"]));
    }
    log(&format!("OK: Constructed OIDC provider for issuer {issuer}"));

    if head["alg"] != "ES256" {
        return Err(format!("signed with unsupported algorithm {}", head["alg"]));
    }
    let keys = fetch(provider["jwks_uri"].as_str().unwrap_or_default())?;
    let mut keys = keys["keys"].as_array().into_iter().flatten().filter(|key| key["kid"] == head["kid"]);
    let key = keys.next().ok_or("the issuer has no key of this name")?;
    let coordinate = |name: &str| decoded(key[name].as_str().unwrap_or_default());
    let point = [&[4], coordinate("x")?.as_slice(), coordinate("y")?.as_slice()].concat();
    let signature = decoded(signature)?;
    let (r, s) = signature.split_at_checked(32).filter(|(_, s)| s.len() == 32).ok_or("malformed signature")?;
    if !tls::is_signed(&point, signed.as_bytes(), &der(r, s)) {
        return Err("failed to verify signature".to_owned());
    }
    let audiences = claims["aud"].as_array().cloned().unwrap_or_else(|| vec![claims["aud"].clone()]);
    if !audiences.iter().any(|one| one == audience) {
        return Err(format!("expected audience {audience:?} got {}", claims["aud"]));
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if claims["exp"].as_u64().is_none_or(|end| end <= now) {
        return Err("token is expired".to_owned());
    }
    log("OK: Validated signature on JWT");
    log("OK: Got valid claims from token!");
    log(&format!("Full, validated claims: \n{claims}"));
    Ok(())
}

/// Asks as the pod's account, of the cluster's authority alone.
fn fetch(url: &str) -> Result<Value, String> {
    let failed = |why: String| format!("Get {url:?}: {why}");
    let token = std::fs::read_to_string(format!("{ACCOUNT}/token")).map_err(|error| failed(error.to_string()))?;
    let config = tls::trusting_client(Path::new(&format!("{ACCOUNT}/ca.crt")), None).map_err(failed)?;
    let asked = Asked {
        headers: vec![("authorization".to_owned(), format!("Bearer {}", token.trim()))],
        timeout: Some(TIMEOUT),
        tls: Some(config),
        ..Asked::default()
    };
    let answer = ask(&http::url(url).map_err(failed)?, &asked).map_err(|failure| failed(failure.to_string()))?;
    if answer.status != 200 {
        return Err(failed(format!("{}: {}", answer.status, String::from_utf8_lossy(&answer.body))));
    }
    serde_json::from_slice(&answer.body).map_err(|error| failed(error.to_string()))
}

fn part(text: &str) -> Result<Value, String> {
    serde_json::from_slice(&decoded(text)?).map_err(|error| format!("malformed token: {error}"))
}

/// Base64 for URLs, without its end (RFC 4648, section 5).
fn decoded(text: &str) -> Result<Vec<u8>, String> {
    let (mut bytes, mut bits, mut count) = (Vec::with_capacity(text.len()), 0_u32, 0);
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return Err("malformed token: no base64".to_owned()),
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Ok(bytes)
}

/// The two numbers of a signature as TLS has them: a sequence of integers.
fn der(r: &[u8], s: &[u8]) -> Vec<u8> {
    let integer = |number: &[u8]| {
        let zeros = number.iter().take_while(|byte| **byte == 0).count().min(number.len() - 1);
        let number = &number[zeros..];
        // One that would be negative has a zero before it.
        let padding: &[u8] = if number[0] & 0x80 != 0 { &[0] } else { &[] };
        [&[2, (number.len() + padding.len()) as u8], padding, number].concat()
    };
    let both = [integer(r), integer(s)].concat();
    [&[0x30, both.len() as u8], both.as_slice()].concat()
}
