//! Controllers and scheduler for an API server that runs elsewhere.

use std::path::PathBuf;

use coracle_server::{Duties, DutiesConfig};
use k8s_openapi::ByteString;
use kube::config::Kubeconfig;
use tokio_util::sync::CancellationToken;

use crate::ConnectError;
use crate::remote::{any_kubernetes, merged};

/// Runs controllers and scheduler for the cluster of the current context of `kubeconfigs`, which are merged as kubectl does, until
/// `stop`; returns when what they had begun has ended.
///
/// The API server may be Coracle's or Kubernetes'. Nobody else may run the same for it meanwhile: there is no election. They do not sign
/// certificates, whose key the servers have.
pub async fn run_duties(
    kubeconfigs: &[PathBuf],
    duties: Duties,
    stop: impl Future<Output = ()>,
) -> Result<(), ConnectError> {
    let client = any_kubernetes(kubeconfigs, |moved| tracing::warn!("{moved}")).await?;
    // The client has read the same: what cannot be read has been told.
    let root_ca = authority(&merged(kubeconfigs)?);
    if duties.controllers && root_ca.is_none() {
        tracing::warn!("the kubeconfig names no certificate authority: kube-root-ca.crt is not published");
    }
    let config = DutiesConfig { root_ca: root_ca.unwrap_or_default(), ..DutiesConfig::default() };
    let until = CancellationToken::new();
    let running = duties.run(|_user| client.clone(), config, until.clone());
    tokio::pin!(running);
    tokio::select! {
        () = &mut running => return Ok(()),
        () = stop => until.cancel(),
    }
    running.await;
    Ok(())
}

/// The certificate authority of the current context, in PEM.
fn authority(config: &Kubeconfig) -> Option<String> {
    let name = config.current_context.as_ref()?;
    let context = config.contexts.iter().find(|context| context.name == *name)?.context.as_ref()?;
    let cluster = config.clusters.iter().find(|cluster| cluster.name == context.cluster)?.cluster.as_ref()?;
    match (&cluster.certificate_authority_data, &cluster.certificate_authority) {
        (Some(data), _) => {
            let ByteString(pem) = serde_json::from_value(data.as_str().into()).ok()?;
            String::from_utf8(pem).ok()
        }
        (None, file) => std::fs::read_to_string(file.as_ref()?).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_the_current_contexts_own() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.crt");
        std::fs::write(&file, "of a file").unwrap();
        let config = |current: &str| -> Kubeconfig {
            serde_json::from_value(serde_json::json!({
                "current-context": current,
                "contexts": [
                    {"name": "a", "context": {"cluster": "data", "user": "u"}},
                    {"name": "b", "context": {"cluster": "file", "user": "u"}},
                ],
                "clusters": [
                    {"name": "data", "cluster": {"server": "https://a", "certificate-authority-data": "b2YgZGF0YQ=="}},
                    {"name": "file", "cluster": {"server": "https://b", "certificate-authority": file}},
                ],
            }))
            .unwrap()
        };
        assert_eq!(authority(&config("a")).as_deref(), Some("of data"));
        assert_eq!(authority(&config("b")).as_deref(), Some("of a file"));
        assert_eq!(authority(&config("c")), None);
    }
}
