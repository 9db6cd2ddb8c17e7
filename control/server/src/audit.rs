//! What is told of requests, as files of this machine say it: a policy, and for a webhook a kubeconfig.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_apiserver::{AuditLog, Endpoint, Log, Login, Policy, Sending, Shown};
use kube::config::{AuthInfo, Cluster, Kubeconfig};
use serde_json::Value;

use crate::Error;

/// The audit log of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct Audit {
    /// A file with a `Policy` of `audit.k8s.io/v1`, in YAML or JSON: which requests, and how much of them.
    pub policy: PathBuf,
    /// Where it is written, if it is.
    pub log: Option<Log>,
    /// Where it is sent, if it is.
    pub webhook: Option<Webhook>,
}

/// Where an audit log is sent, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Webhook {
    /// A kubeconfig whose current context says where, and by what each proves who it is.
    pub config: PathBuf,
    /// How.
    pub sending: Sending,
}

impl Audit {
    /// Reads the files.
    pub(crate) fn read(self) -> Result<AuditLog, Error> {
        let text = std::fs::read_to_string(&self.policy)
            .map_err(|source| Error::File { path: self.policy.clone(), source })?;
        let policy = Policy::parse(&text).map_err(|source| Error::AuditPolicy { path: self.policy, source })?;
        let webhook = self.webhook.map(Webhook::read).transpose()?;
        Ok(AuditLog { policy, log: self.log, webhook })
    }
}

impl Webhook {
    fn read(self) -> Result<coracle_apiserver::Webhook, Error> {
        let Webhook { config: path, sending } = self;
        let endpoint = endpoint(&path).and_then(|endpoint| endpoint.check().map(|()| endpoint));
        match endpoint {
            Ok(endpoint) => Ok(coracle_apiserver::Webhook { endpoint, sending }),
            Err(why) => Err(Error::AuditWebhook { path, why }),
        }
    }
}

/// What the current context of a kubeconfig names. What it says and nothing here does is refused.
fn endpoint(path: &Path) -> Result<Endpoint, String> {
    let config = Kubeconfig::read_from(path).map_err(|error| coracle_apiserver::why(&error))?;
    let current =
        config.current_context.as_deref().filter(|name| !name.is_empty()).ok_or("there is no current-context")?;
    let context = config.contexts.iter().find(|named| named.name == current).and_then(|named| named.context.as_ref());
    let context = context.ok_or_else(|| format!("there is no context {current:?}"))?;
    let cluster = config.clusters.iter().find(|named| named.name == context.cluster);
    let cluster = cluster.and_then(|named| named.cluster.as_ref());
    let cluster = cluster.ok_or_else(|| format!("there is no cluster {:?}", context.cluster))?;
    let nobody = AuthInfo::default();
    let user = match context.user.as_deref().filter(|user| !user.is_empty()) {
        None => &nobody,
        Some(user) => {
            let named = config.auth_infos.iter().find(|named| named.name == user);
            named.and_then(|named| named.auth_info.as_ref()).ok_or_else(|| format!("there is no user {user:?}"))?
        }
    };
    served(cluster, user)
}

fn served(cluster: &Cluster, user: &AuthInfo) -> Result<Endpoint, String> {
    let refused = [
        ("proxy-url", cluster.proxy_url.is_some()),
        ("exec", user.exec.is_some()),
        ("auth-provider", user.auth_provider.is_some()),
        ("as", user.impersonate.is_some() || user.impersonate_uid.is_some() || user.impersonate_groups.is_some()),
        ("as-user-extra", user.impersonate_user_extra.is_some()),
    ];
    if let Some((field, _)) = refused.iter().find(|(_, is_there)| *is_there) {
        return Err(format!("{field} is not served for webhooks"));
    }
    let is_unproven = cluster.insecure_skip_tls_verify.unwrap_or_default();
    let authority = pem(cluster.certificate_authority_data.as_deref(), cluster.certificate_authority.as_deref())?;
    if is_unproven && authority.is_some() {
        return Err("insecure-skip-tls-verify and certificate-authority exclude each other".to_owned());
    }
    // Secrets are shown by nothing else.
    let said = serde_json::to_value(user).map_err(|error| error.to_string())?;
    let text = |field: &str| said.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let certificate = pem(user.client_certificate_data.as_deref(), user.client_certificate.as_deref())?;
    let key = pem(text("client-key-data").as_deref(), user.client_key.as_deref())?;
    let shown = match (certificate, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(Arc::new(Shown { certificate, key })),
        _ => return Err("client-certificate and client-key are there together, or neither is".to_owned()),
    };
    let login = match (text("tokenFile"), text("token"), text("username")) {
        (Some(file), ..) => Some(Login::TokenFile(file.into())),
        (None, Some(token), _) => Some(Login::Token(token)),
        (None, None, Some(user)) => Some(Login::Basic { user, password: text("password").unwrap_or_default() }),
        (None, None, None) => None,
    };
    Ok(Endpoint {
        url: cluster.server.clone().filter(|server| !server.is_empty()).ok_or("there is no server")?,
        name: cluster.tls_server_name.clone().filter(|name| !name.is_empty()),
        authorities: authority.unwrap_or_default().into_bytes(),
        is_unproven,
        shown,
        login,
    })
}

/// What is written here in base64, or else in a file.
fn pem(data: Option<&str>, file: Option<&str>) -> Result<Option<String>, String> {
    if let Some(data) = data.filter(|data| !data.is_empty()) {
        let decoded = STANDARD.decode(data).map_err(|error| format!("base64 of a certificate or key: {error}"))?;
        return String::from_utf8(decoded).map(Some).map_err(|_| "a certificate or key is no PEM".to_owned());
    }
    let Some(file) = file.filter(|file| !file.is_empty()) else { return Ok(None) };
    std::fs::read_to_string(file).map(Some).map_err(|error| format!("read {file}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dir: &Path, cluster: &str, user: &str) -> Result<Endpoint, String> {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: s, user: u}}}}]\n\
             clusters: [{{name: s, cluster: {{{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
        );
        std::fs::write(dir.join("webhook.yaml"), text).unwrap();
        let webhook = Webhook { config: dir.join("webhook.yaml"), sending: Sending::default() };
        webhook.read().map(|webhook| webhook.endpoint).map_err(|error| error.to_string())
    }

    #[test]
    fn a_kubeconfig_says_where_a_webhook_is_and_who_each_is() {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        std::fs::write(dir.path().join("ca.pem"), &certificate).unwrap();
        let cluster = "server: 'https://a.example/audit', certificate-authority: ca.pem, tls-server-name: a";
        let user = format!(
            "client-certificate-data: {}, client-key-data: {}, tokenFile: token",
            STANDARD.encode(&certificate),
            STANDARD.encode(&key)
        );
        let found = read(dir.path(), cluster, &user).unwrap();
        assert_eq!(found.url, "https://a.example/audit");
        assert_eq!(found.authorities, certificate.as_bytes());
        assert_eq!(found.name.as_deref(), Some("a"));
        assert_eq!(found.shown, Some(Arc::new(Shown { certificate, key })));
        assert_eq!(found.login, Some(Login::TokenFile(dir.path().join("token"))));
        let found = read(dir.path(), "server: 'https://a', insecure-skip-tls-verify: true", "token: t").unwrap();
        assert_eq!((found.is_unproven, found.login), (true, Some(Login::Token("t".to_owned()))));
        let basic = Some(Login::Basic { user: "n".to_owned(), password: "p".to_owned() });
        assert_eq!(read(dir.path(), "server: 'https://a'", "username: n, password: p").unwrap().login, basic);
    }

    #[test]
    fn what_a_webhook_s_kubeconfig_says_and_nothing_does_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = [(); 2].map(|()| rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap());
        let shown = |certificate: String| {
            let key = STANDARD.encode(other.signing_key.serialize_pem());
            format!("client-certificate-data: {}, client-key-data: {key}", STANDARD.encode(certificate))
        };
        let no_pair = shown(one.cert.pem());
        let broken = shown(other.cert.pem() + "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n");
        for (cluster, user, why) in [
            ("server: 'https://a'", no_pair.as_str(), "to be shown and its key"),
            ("server: 'https://a'", broken.as_str(), "the certificate that it is to be shown"),
            ("server: 'https://a/b?c=d'", "", "a query is not served"),
            ("", "", "there is no server"),
            ("server: 'a.example'", "", "is no https:// or http:// URL"),
            ("server: 'https://a', proxy-url: 'http://b'", "", "proxy-url is not served"),
            (
                "server: 'https://a'",
                "exec: {apiVersion: client.authentication.k8s.io/v1, command: x}",
                "exec is not served",
            ),
            ("server: 'https://a'", "as: root", "as is not served"),
            ("server: 'https://a'", "client-certificate-data: eA==", "are there together"),
            ("server: 'https://a', certificate-authority: none.pem", "", "none.pem"),
            ("server: 'https://a', certificate-authority-data: eA==", "", "unable to"),
        ] {
            let refused = read(dir.path(), cluster, user).unwrap_err();
            assert!(refused.contains(why), "{cluster} {user}: {refused}");
            assert!(refused.contains("webhook.yaml"), "{refused}");
        }
    }
}
