//! Tokens of ServiceAccounts: signed by this cluster (ES256), bound to objects that must still exist.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use coracle_api::status::Status;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cluster::Cluster;
use crate::identity::Identity;
use crate::store::Seen;

/// Tokens whose signature is known to be good; forgotten all at once when there are more.
const KNOWN_MAX: usize = 4096;
/// Longest token that is looked at; one of a pod's has about 1.3 KB.
pub(crate) const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Longest token that is remembered: with its claims the 4,096 take 50 MB at most.
const KNOWN_BYTES_MAX: usize = 4 << 10;
/// Most of what was asked for that an error shows.
const SHOWN_BYTES_MAX: usize = 4 << 10;
/// Seconds for which the tokens of an object are good after it was to be gone: what still works at its end may finish.
const DELETED_SECONDS: i64 = 60;
/// Seconds by which clocks may differ.
const LEEWAY_SECONDS: i64 = 10;
/// DER of an uncompressed P-256 point within a key: bit string, 66 bytes, no unused bits, point form 4.
const POINT_HEAD: [u8; 4] = [0x03, 0x42, 0x00, 0x04];

/// What a token says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub iss: String,
    pub sub: String,
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub nbf: i64,
    #[serde(default)]
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Bound,
}

/// What a token is bound to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Bound {
    pub namespace: String,
    pub serviceaccount: Object,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Object>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Object>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Object>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// An object by name and incarnation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Object {
    pub name: String,
    pub uid: String,
}

/// Signs and checks tokens.
pub(crate) struct Tokens {
    signing: EncodingKey,
    checking: DecodingKey,
    /// Name of the key, from its content.
    pub key_id: String,
    /// Coordinates of the public key, as JWKs have them.
    pub x: String,
    pub y: String,
    pub issuer: String,
    known: RwLock<HashMap<[u8; 32], Arc<Known>>>,
}

/// What a token that this cluster signed says, and whose it is.
struct Known {
    claims: Claims,
    identity: Arc<Identity>,
}

/// A token that was found good.
pub(crate) struct Accepted {
    pub identity: Arc<Identity>,
    /// Those of the wanted audiences that it is for.
    pub audiences: Vec<String>,
}

/// Why a token is not accepted.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It is not good, in words.
    Bad(String),
    /// Nobody can say at the moment whether it is.
    Unknown(Status),
}

impl From<String> for Refused {
    fn from(why: String) -> Refused {
        Refused::Bad(why)
    }
}

impl Tokens {
    pub fn new(pem: &str, issuer: &str) -> Result<Tokens, String> {
        let signing = EncodingKey::from_ec_pem(pem.as_bytes()).map_err(|error| error.to_string())?;
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = STANDARD.decode(body.trim()).map_err(|error| error.to_string())?;
        let at = der.windows(4).rposition(|window| window == POINT_HEAD).ok_or("it has no public part")? + 4;
        let point = der.get(at..at + 64).ok_or("its public part is cut short")?;
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[..32]), URL_SAFE_NO_PAD.encode(&point[32..]));
        let checking = DecodingKey::from_ec_components(&x, &y).map_err(|error| error.to_string())?;
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(point));
        Ok(Tokens { signing, checking, key_id, x, y, issuer: issuer.to_owned(), known: RwLock::default() })
    }

    /// A token that says `claims`.
    pub fn sign(&self, claims: &Claims) -> Result<String, String> {
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &self.signing).map_err(|error| error.to_string())
    }

    /// What a token says, if this cluster signed it. Checking a signature takes long beside everything else a small
    /// request does, so that it was good is remembered.
    fn verify(&self, token: &str) -> Result<Arc<Known>, String> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err("the token is too long".to_owned());
        }
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.known.read().get(&digest) {
            return Ok(known.clone());
        }
        // Strangers do not know the key's name, so what they make up costs no look at a signature.
        let header = jsonwebtoken::decode_header(token).map_err(|error| error.to_string())?;
        if header.kid.as_deref() != Some(self.key_id.as_str()) {
            return Err("the token names another key".to_owned());
        }
        let mut rules = Validation::new(Algorithm::ES256);
        // Times and audience depend on when and for whom: they are looked at each time.
        rules.validate_exp = false;
        rules.validate_aud = false;
        rules.required_spec_claims.clear();
        rules.set_issuer(&[&self.issuer]);
        let claims =
            jsonwebtoken::decode::<Claims>(token, &self.checking, &rules).map_err(|error| error.to_string())?.claims;
        let new = Arc::new(Known { identity: Arc::new(identity(&claims)), claims });
        if token.len() > KNOWN_BYTES_MAX {
            return Ok(new);
        }
        let mut known = self.known.write();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(digest, new.clone());
        Ok(new)
    }
}

/// Checks a token: signature, times, audience (the API's own when none is wanted), and that what it is bound to exists and
/// is not on its way out for long.
pub(crate) async fn authenticate(
    cluster: &Cluster,
    tokens: &Tokens,
    token: &str,
    wanted: &[String],
) -> Result<Accepted, Refused> {
    let known = tokens.verify(token)?;
    let claims = &known.claims;
    let now = Timestamp::now().as_second();
    if now > claims.exp + LEEWAY_SECONDS {
        return Err("the token is expired".to_owned().into());
    }
    if now + LEEWAY_SECONDS < claims.nbf {
        return Err("the token is not valid yet".to_owned().into());
    }
    let own = [tokens.issuer.clone()];
    let wanted = if wanted.is_empty() { &own[..] } else { wanted };
    let meant: HashSet<&str> = claims.aud.iter().map(String::as_str).collect();
    let audiences: Vec<String> = wanted.iter().filter(|audience| meant.contains(audience.as_str())).cloned().collect();
    if audiences.is_empty() {
        let mut shown = format!("{wanted:?}");
        shown.truncate(shown.floor_char_boundary(SHOWN_BYTES_MAX));
        let why = format!("token audiences {:?} is invalid for the target audiences {shown}", claims.aud);
        return Err(why.into());
    }
    if stands(cluster, &claims.kubernetes, now).is_err() {
        // What is not here may be with who gave out the token a moment ago: it is looked for once more when that is here.
        cluster.store.barrier().await.map_err(Refused::Unknown)?;
        stands(cluster, &claims.kubernetes, now)?;
    }
    Ok(Accepted { identity: known.identity.clone(), audiences })
}

/// Whether all that a token is bound to is there, as far as it is known here.
fn stands(cluster: &Cluster, bound: &Bound, now: i64) -> Result<(), Refused> {
    let exists = |resource, namespace, object| exists(cluster, resource, namespace, object, now);
    exists("serviceaccounts", Some(bound.namespace.as_str()), &bound.serviceaccount)?;
    if let Some(pod) = &bound.pod {
        exists("pods", Some(bound.namespace.as_str()), pod)?;
    }
    if let Some(secret) = &bound.secret {
        exists("secrets", Some(bound.namespace.as_str()), secret)?;
    }
    // A pod's token says on which node it runs; only one that was asked for a node itself ends with it.
    match bound.node.as_ref().filter(|_| bound.pod.is_none()) {
        Some(node) => exists("nodes", None, node),
        None => Ok(()),
    }
}

fn identity(claims: &Claims) -> Identity {
    let bound = &claims.kubernetes;
    let groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{}", bound.namespace)];
    let mut identity = Identity::authenticated(&claims.sub, groups);
    identity.uid.clone_from(&bound.serviceaccount.uid);
    let mut extra = |key: &str, value: &str| {
        identity.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    };
    if !claims.jti.is_empty() {
        extra("credential-id", &format!("JTI={}", claims.jti));
    }
    if let Some(pod) = &bound.pod {
        extra("pod-name", &pod.name);
        extra("pod-uid", &pod.uid);
    }
    if let Some(node) = &bound.node {
        extra("node-name", &node.name);
        extra("node-uid", &node.uid);
    }
    identity
}

/// A bound object must be there in the same incarnation, also when something keeps it there that is to be gone.
fn exists(
    cluster: &Cluster,
    resource: &'static str,
    namespace: Option<&str>,
    object: &Object,
    now: i64,
) -> Result<(), Refused> {
    let gone = || Refused::Bad(format!("the token is bound to {resource} {} which is gone", object.name));
    let resource = cluster.catalog.named("", resource).ok_or_else(gone)?;
    let record = cluster.store.get(resource, &resource.record_name(namespace, &object.name)).ok_or_else(gone)?;
    let seen = Seen::new(resource, &record);
    let facts = seen.known_facts().map_err(Refused::Unknown)?;
    let was_to_go = facts.deletion.is_some_and(|at| at.as_second() < now - DELETED_SECONDS);
    if facts.uid == object.uid && !was_to_go { Ok(()) } else { Err(gone()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_the_key_that_signed_it() {
        let tokens = Tokens::new(include_str!("../../tests/token.key"), "issuer").unwrap();
        let claims = Claims {
            iss: "issuer".to_owned(),
            sub: "someone".to_owned(),
            aud: Vec::new(),
            exp: i64::MAX,
            iat: 0,
            nbf: 0,
            jti: String::new(),
            kubernetes: Bound::default(),
        };
        assert!(tokens.verify(&tokens.sign(&claims).unwrap()).is_ok());
        let nameless = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &tokens.signing).unwrap();
        assert_eq!(tokens.verify(&nameless).err().as_deref(), Some("the token names another key"));
    }
}
