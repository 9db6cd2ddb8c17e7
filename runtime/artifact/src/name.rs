//! Image names as Kubernetes users write them: `[registry/]repository[:tag][@digest]`.

use oci_client::{ParseError, Reference};

use crate::PullError;

const DOCKER_HUB: &str = "docker.io";

/// A parsed image name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageName {
    registry: Option<String>,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl ImageName {
    /// Parses a name; a missing tag means `latest`.
    pub fn parse(name: &str) -> Result<Self, PullError> {
        let invalid = |message: &str| PullError::InvalidName { name: name.to_owned(), message: message.to_owned() };
        if name.trim() != name || name.is_empty() {
            return Err(invalid("invalid reference format"));
        }
        let reference: Reference = name.parse().map_err(|error: ParseError| invalid(&error.to_string()))?;
        // oci-client fills in docker.io and "library/"; whether the user wrote a host is seen in the text.
        let head = name.split('/').next().filter(|_| name.contains('/'));
        let registry =
            head.filter(|host| host.contains('.') || host.contains(':') || *host == "localhost").map(str::to_owned);
        let repository = match &registry {
            Some(_) => reference.repository().to_owned(),
            None => reference
                .repository()
                .strip_prefix("library/")
                .filter(|_| !name.starts_with("library/"))
                .unwrap_or(reference.repository())
                .to_owned(),
        };
        Ok(Self {
            registry,
            repository,
            tag: reference.tag().map(str::to_owned),
            digest: reference.digest().map(str::to_owned),
        })
    }

    /// The registry host, if the name has one.
    pub fn registry(&self) -> Option<&str> {
        self.registry.as_deref()
    }

    /// The digest, if the name pins one.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The tag, if the name has one (or neither tag nor digest, then `latest`).
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Name without tag and digest, as `imageID` shows it before the `@`.
    pub fn base(&self) -> String {
        match &self.registry {
            Some(registry) => format!("{registry}/{}", self.repository),
            None => self.repository.clone(),
        }
    }

    /// The whole name with its tag made explicit.
    pub fn canonical(&self) -> String {
        let mut whole = self.base();
        if let Some(tag) = &self.tag {
            whole.push(':');
            whole.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            whole.push('@');
            whole.push_str(digest);
        }
        whole
    }

    /// The reference under which the embedded registry at `address` may have it.
    ///
    /// A name with a registry host is kept there under `host/repository`, so that images of other registries can be
    /// mirrored under their full names; a host with a port cannot be a repository's name and is not mirrored.
    pub(crate) fn embedded(&self, address: &str) -> Option<Reference> {
        let repository = match &self.registry {
            None => self.repository.clone(),
            Some(host) if host == address => self.repository.clone(),
            Some(host) if host == DOCKER_HUB => {
                self.repository.strip_prefix("library/").unwrap_or(&self.repository).to_owned()
            }
            Some(host) if host.contains(':') => return None,
            Some(host) => format!("{host}/{}", self.repository),
        };
        Some(self.reference(address.to_owned(), repository))
    }

    /// The reference in the registry that the name itself says, docker.io when it says none.
    pub(crate) fn remote(&self) -> Reference {
        match &self.registry {
            Some(host) => self.reference(host.clone(), self.repository.clone()),
            None => {
                let repository = match self.repository.contains('/') {
                    true => self.repository.clone(),
                    false => format!("library/{}", self.repository),
                };
                self.reference(DOCKER_HUB.to_owned(), repository)
            }
        }
    }

    fn reference(&self, registry: String, repository: String) -> Reference {
        match (&self.tag, &self.digest) {
            (_, Some(digest)) => Reference::with_digest(registry, repository, digest.clone()),
            (Some(tag), None) => Reference::with_tag(registry, repository, tag.clone()),
            (None, None) => Reference::with_tag(registry, repository, "latest".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_names_to_the_embedded_registry_and_to_their_own() {
        let embedded = "127.0.0.1:5000";
        for (name, canonical, mirror, remote) in [
            ("busybox", "busybox:latest", Some("127.0.0.1:5000/busybox:latest"), "docker.io/library/busybox:latest"),
            (
                "myregistry/fastapi-app:latest",
                "myregistry/fastapi-app:latest",
                Some("127.0.0.1:5000/myregistry/fastapi-app:latest"),
                "docker.io/myregistry/fastapi-app:latest",
            ),
            (
                "registry.k8s.io/pause:3.10",
                "registry.k8s.io/pause:3.10",
                Some("127.0.0.1:5000/registry.k8s.io/pause:3.10"),
                "registry.k8s.io/pause:3.10",
            ),
            (
                "docker.io/library/nginx",
                "docker.io/library/nginx:latest",
                Some("127.0.0.1:5000/nginx:latest"),
                "docker.io/library/nginx:latest",
            ),
            ("localhost:9/a/b:1", "localhost:9/a/b:1", None, "localhost:9/a/b:1"),
            ("127.0.0.1:5000/a:1", "127.0.0.1:5000/a:1", Some("127.0.0.1:5000/a:1"), "127.0.0.1:5000/a:1"),
        ] {
            let image = ImageName::parse(name).unwrap();
            assert_eq!(image.canonical(), canonical);
            assert_eq!(image.embedded(embedded).map(|r| r.whole()).as_deref(), mirror, "{name}");
            assert_eq!(image.remote().whole(), remote, "{name}");
        }
    }

    /// Mutations of names, the same with every run: what is taken is the same name when it is read again, and stays within its
    /// registry.
    #[test]
    fn any_text_is_a_name_or_refused() {
        let corpus = ["busybox", "a/b:v1", "registry.k8s.io/pause:3.10", "localhost:9/a/b@sha256:", "[::1]:5000/a:1"];
        let alphabet: Vec<char> = "ab/:@.-_[]\0 %?#\\é0".chars().collect();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % below as u64) as usize
        };
        let mut taken = 0;
        for round in 0..20_000 {
            let mut text: Vec<char> = corpus[round % corpus.len()].chars().collect();
            for _ in 0..=next(3) {
                let at = next(text.len() + 1);
                match next(3) {
                    0 if at < text.len() => drop(text.remove(at)),
                    1 if at < text.len() => text[at] = alphabet[next(alphabet.len())],
                    _ => text.insert(at, alphabet[next(alphabet.len())]),
                }
            }
            let text: String = text.into_iter().collect();
            let Ok(name) = ImageName::parse(&text) else { continue };
            taken += 1;
            let canonical = name.canonical();
            let again = ImageName::parse(&canonical).unwrap_or_else(|error| panic!("{text:?} {canonical:?}: {error}"));
            assert_eq!(again.canonical(), canonical, "{text:?}");
            let repository = name.remote().repository().to_owned();
            assert!(!repository.split('/').any(|part| part.is_empty() || part == "." || part == ".."), "{text:?}");
        }
        assert!(taken > 1_000, "{taken}");
        assert!(ImageName::parse(&"a".repeat(1 << 20)).is_err());
    }

    #[test]
    fn refuses_what_is_not_a_name() {
        for name in ["", " a", "Upper/Case:x", "a b", "a@sha256:12", "http://x/y", "a:"] {
            let error = ImageName::parse(name).unwrap_err();
            assert_eq!(error.reason(), "InvalidImageName", "{name:?} {error}");
        }
    }
}
