//! A server that a file of this machine names, outside the cluster: where it is, and by what each proves who it is.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, Uri};

use super::authorities::Bundle;
use super::dial;
use super::{CallError, Client, Nodes, Target, Way};

/// What it answers is not read beyond this.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Bytes of a token; a file that is longer has none.
const TOKEN_BYTES_MAX: u64 = 1 << 20;

/// A certificate that is shown, and its key (PKCS #8). Both are PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Shown {
    /// The certificate, and those that it follows from.
    pub certificate: String,
    /// The key.
    pub key: String,
}

/// Without the key.
impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").finish_non_exhaustive()
    }
}

/// What this server says of itself with each request.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A bearer token.
    Token(String),
    /// The one that is in this file whenever something is sent: others may write it anew.
    TokenFile(PathBuf),
    /// A name and a password.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
}

/// Without what nobody else may know.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Login::Token(_) => "Token",
            Login::TokenFile(_) => "TokenFile",
            Login::Basic { .. } => "Basic",
        })
    }
}

/// A server, as a context of a kubeconfig says it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// `https://…`, or `http://…` for one that proves nothing; its path is the one that is asked.
    pub url: String,
    /// The name that is in its certificate, where that is not the URL's.
    pub name: Option<String>,
    /// Whose certificates are believed (PEM); the machine's authorities when empty.
    pub authorities: Vec<u8>,
    /// It has to prove nothing.
    pub is_unproven: bool,
    /// What it is shown.
    pub shown: Option<Arc<Shown>>,
    /// What it is told.
    pub login: Option<Login>,
}

impl Endpoint {
    /// Looks whether it can be called, as far as that is known before it is.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn check(&self) -> Result<(), String> {
        self.target()?;
        if !self.is_unproven && !self.authorities.trim_ascii().is_empty() {
            Bundle::read(&self.authorities, Arc::new(rustls::crypto::ring::default_provider()))?;
        }
        let Some(shown) = &self.shown else { return Ok(()) };
        let (chain, key) = dial::certified(shown)?;
        let pair = rustls::sign::CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider());
        pair.map(drop).map_err(|error| format!("the certificate that it is to be shown and its key: {error}"))
    }

    fn target(&self) -> Result<Target, String> {
        let uri: Uri = self.url.parse().map_err(|error| format!("server {:?}: {error}", self.url))?;
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| format!("server {:?} has no host", self.url))?.to_owned();
        let way = match uri.scheme_str() {
            Some("https") => Way::Direct { host: host.clone(), port: uri.port_u16().unwrap_or(443) },
            Some("http") => Way::Plain { host: host.clone(), port: uri.port_u16().unwrap_or(80) },
            _ => return Err(format!("server {:?} is no https:// or http:// URL", self.url)),
        };
        // Who reads a request on the way would have it.
        if matches!(way, Way::Plain { .. }) && self.login.is_some() {
            return Err(format!("server {:?}: no token and no password goes over http", self.url));
        }
        if uri.query().is_some() {
            return Err(format!("server {:?}: a query is not served for webhooks", self.url));
        }
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err("the server's URL says who asks: that is for the fields of its user".to_owned());
        }
        Ok(Target {
            way,
            path: uri.path().to_owned(),
            host: authority.to_owned(),
            name: self.name.clone().unwrap_or(host),
            url: self.url.clone(),
        })
    }
}

/// A client of one endpoint, which keeps its connections.
pub(crate) struct Caller {
    client: Client,
    nodes: Nodes,
    target: Target,
    login: Option<Login>,
}

impl Caller {
    /// Calls nobody yet.
    ///
    /// # Errors
    /// Why it cannot be called, in words.
    pub fn new(endpoint: Endpoint, agent: &'static str) -> Result<Caller, String> {
        endpoint.check()?;
        let target = endpoint.target()?;
        Ok(Caller { client: Client::of(&endpoint, agent), nodes: Nodes::new(None), target, login: endpoint.login })
    }

    /// Posts JSON, and reads what is answered.
    pub async fn post(&self, body: Bytes) -> Result<(StatusCode, Bytes), CallError> {
        let failed = |why: String| CallError::Failed { url: self.target.url.clone(), why };
        let login = match &self.login {
            Some(login) => Some(header(login).await.map_err(failed)?),
            None => None,
        };
        self.client.post_as(&self.nodes, &self.target, login.as_ref(), body, ANSWER_BYTES_MAX).await
    }
}

async fn header(login: &Login) -> Result<HeaderValue, String> {
    let text = match login {
        Login::Token(token) => format!("Bearer {token}"),
        Login::TokenFile(path) => {
            use tokio::io::AsyncReadExt as _;
            let failed = |error: std::io::Error| format!("read the token in {}: {error}", path.display());
            let mut token = String::new();
            let file = tokio::fs::File::open(path).await.map_err(failed)?;
            file.take(TOKEN_BYTES_MAX).read_to_string(&mut token).await.map_err(failed)?;
            format!("Bearer {}", token.trim())
        }
        Login::Basic { user, password } => format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))),
    };
    let mut value = HeaderValue::try_from(text).map_err(|_| "the token or password cannot be sent".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_called_is_told_at_once() {
        let caller = |url: &str, login: Option<Login>| {
            let endpoint = Endpoint { url: url.to_owned(), login, ..Endpoint::default() };
            Caller::new(endpoint, "test").map(|caller| (caller.target.path, caller.target.host))
        };
        let token = || Some(Login::Token("t".to_owned()));
        let pair = |path: &str, host: &str| Ok((path.to_owned(), host.to_owned()));
        assert_eq!(caller("https://a.example:8443/audit/events", token()), pair("/audit/events", "a.example:8443"));
        assert_eq!(caller("http://[::1]:80", None), pair("/", "[::1]:80"));
        for (url, login, why) in [
            ("a.example:443", None, "is no https:// or http:// URL"),
            ("/audit", None, "has no host"),
            ("ftp://a", None, "is no https:// or http:// URL"),
            ("http://a", token(), "no token and no password goes over http"),
            ("https://u:p@a", None, "says who asks"),
            ("https://a/audit?key=x", None, "a query is not served"),
        ] {
            let refused = caller(url, login).unwrap_err();
            assert!(refused.contains(why), "{url}: {refused}");
        }
    }

    #[tokio::test]
    async fn a_token_is_read_when_it_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let login = Login::TokenFile(dir.path().join("token"));
        assert!(header(&login).await.unwrap_err().contains("read the token"));
        for token in ["one", "two\n"] {
            std::fs::write(dir.path().join("token"), token).unwrap();
            assert_eq!(header(&login).await.unwrap(), format!("Bearer {}", token.trim()));
        }
        let basic = Login::Basic { user: "u".to_owned(), password: "p".to_owned() };
        assert_eq!(header(&basic).await.unwrap(), "Basic dTpw");
    }
}
