//! Pull secrets: `.dockerconfigjson` and `.dockercfg`, and which entries belong to a registry.

use std::collections::BTreeMap;

use base64::Engine as _;
use oci_client::Reference;
use serde::Deserialize;

/// How one shows oneself to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// Not at all.
    Anonymous,
    /// User name and password, which the registry may want to be turned into a token.
    Basic(String, String),
    /// A token that is shown as it is.
    Bearer(String),
}

/// User name and password for one registry or a part of it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credential {
    /// Registry host with optional port and path; a host label may be `*`.
    pub registry: String,
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("registry", &self.registry).field("username", &self.username).finish()
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

impl Credential {
    /// Reads the content of a `kubernetes.io/dockerconfigjson` secret.
    pub fn from_docker_config_json(bytes: &[u8]) -> Result<Vec<Self>, serde_json::Error> {
        Ok(Self::from_entries(serde_json::from_slice::<DockerConfig>(bytes)?.auths))
    }

    /// Reads the content of a `kubernetes.io/dockercfg` secret, the older form without `auths`.
    pub fn from_docker_cfg(bytes: &[u8]) -> Result<Vec<Self>, serde_json::Error> {
        Ok(Self::from_entries(serde_json::from_slice(bytes)?))
    }

    fn from_entries(entries: BTreeMap<String, Entry>) -> Vec<Self> {
        entries
            .into_iter()
            .filter_map(|(registry, entry)| {
                let (username, password) = match entry.auth.is_empty() {
                    true => (entry.username, entry.password),
                    false => {
                        let decoded = base64::engine::general_purpose::STANDARD.decode(entry.auth.trim()).ok()?;
                        let text = String::from_utf8(decoded).ok()?;
                        let (username, password) = text.split_once(':')?;
                        (username.to_owned(), password.trim_end_matches('\0').to_owned())
                    }
                };
                let registry = registry.trim_start_matches("https://").trim_start_matches("http://");
                let registry = registry.trim_end_matches('/');
                let registry = registry.strip_suffix("/v1").or(registry.strip_suffix("/v2")).unwrap_or(registry);
                let registry = match registry {
                    "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
                    other => other.to_owned(),
                };
                Some(Self { registry, username, password })
            })
            .collect()
    }

    /// Whether this credential is for the image: its host matches label by label (`*` matches one label),
    /// its path is a prefix of the repository.
    fn matches(&self, image: &Reference) -> bool {
        let (host, path) = self.registry.split_once('/').unwrap_or((&self.registry, ""));
        let wanted: Vec<&str> = host.split('.').collect();
        let actual: Vec<&str> = image.registry().split('.').collect();
        wanted.len() == actual.len()
            && wanted.iter().zip(&actual).all(|(want, have)| *want == "*" || want == have)
            && image
                .repository()
                .strip_prefix(path)
                .is_some_and(|rest| path.is_empty() || rest.is_empty() || rest.starts_with('/'))
    }

    /// The credentials to try for an image, the most specific first; none at all only where there is no other: who names one for a registry
    /// does not ask it as nobody.
    pub(crate) fn for_image(all: &[Self], image: &Reference) -> Vec<Auth> {
        let mut matching: Vec<&Self> = all.iter().filter(|credential| credential.matches(image)).collect();
        matching.sort_by_key(|credential| std::cmp::Reverse(credential.registry.len()));
        let mut auths: Vec<Auth> = matching
            .into_iter()
            .map(|credential| Auth::Basic(credential.username.clone(), credential.password.clone()))
            .collect();
        if auths.is_empty() {
            auths.push(Auth::Anonymous);
        }
        auths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms_of_pull_secrets() {
        let json = br#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"reg.io:5000/team":{"username":"a","password":"b"}}}"#;
        let read = Credential::from_docker_config_json(json).unwrap();
        let expect = |registry: &str, username: &str, password: &str| Credential {
            registry: registry.into(),
            username: username.into(),
            password: password.into(),
        };
        assert_eq!(read, [expect("docker.io", "u", "p"), expect("reg.io:5000/team", "a", "b")]);
        assert_eq!(Credential::from_docker_cfg(br#"{"x.io":{"auth":"dTpw"}}"#).unwrap(), [expect("x.io", "u", "p")]);
        assert!(Credential::from_docker_config_json(b"no").is_err());
    }

    #[test]
    fn chooses_the_most_specific_credential() {
        let credential =
            |registry: &str| Credential { registry: registry.into(), username: registry.into(), password: "p".into() };
        let all = ["reg.io", "reg.io/team", "*.reg.io", "other.io"].map(credential);
        for (image, users) in [
            ("reg.io/team/app:1", vec!["reg.io/team", "reg.io"]),
            ("reg.io/teamwork/app:1", vec!["reg.io"]),
            ("eu.reg.io/app:1", vec!["*.reg.io"]),
            ("a.eu.reg.io/app:1", vec![]),
        ] {
            let chosen: Vec<String> = Credential::for_image(&all, &image.parse().unwrap())
                .into_iter()
                .filter_map(|auth| match auth {
                    Auth::Basic(user, _) => Some(user),
                    _ => None,
                })
                .collect();
            assert_eq!(chosen, users, "{image}");
        }
    }
}
