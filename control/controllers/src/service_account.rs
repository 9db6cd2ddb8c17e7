//! What every namespace has: ServiceAccount `default` and ConfigMap `kube-root-ca.crt` (recreated and repaired).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use serde_json::json;

use crate::Error;
use crate::client::{self, CONFIG_MAPS, Client, SERVICE_ACCOUNTS};
use crate::informer::{Informer, Key, Object as _, Store};
use crate::queue::{Next, Queue, Reconciler};

/// The account of pods that name none.
pub(crate) const ACCOUNT: &str = "default";
/// Where pods find the cluster's certificate authority.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
const ROOT_CA_KEY: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
                                endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
                                guaranteed across distributions of Kubernetes clusters.";

/// Furnishes namespaces.
pub(crate) struct Controller {
    client: Client,
    root_ca: String,
    queue: Queue<Key>,
    namespaces: Arc<Store<Namespace>>,
    accounts: Arc<Store<ServiceAccount>>,
    config_maps: Arc<Store<ConfigMap>>,
}

impl Controller {
    /// `accounts` and `config_maps` are informers of these names alone.
    pub(crate) fn new(
        client: Client,
        root_ca: String,
        namespaces: &mut Informer<Namespace>,
        accounts: &mut Informer<ServiceAccount>,
        config_maps: &mut Informer<ConfigMap>,
    ) -> Arc<Self> {
        let queue: Queue<Key> = Queue::new(Duration::from_millis(20));
        namespaces.on_change({
            let queue = queue.clone();
            move |change| queue.add(&change.object().key())
        });
        let of = |namespace: Option<&str>| Key::new("", namespace.unwrap_or_default());
        accounts.on_change({
            let queue = queue.clone();
            move |change| queue.add(&of(change.object().metadata.namespace.as_deref()))
        });
        config_maps.on_change({
            let queue = queue.clone();
            move |change| queue.add(&of(change.object().metadata.namespace.as_deref()))
        });
        let (namespaces, accounts, config_maps) = (namespaces.store(), accounts.store(), config_maps.store());
        Arc::new(Self { client, root_ca, queue, namespaces, accounts, config_maps })
    }
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "serviceaccount";
    const WORKERS: usize = 8;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let Some(namespace) = self.namespaces.get(&key) else { return Ok(Next::OnEvent) };
        if namespace.metadata.deletion_timestamp.is_some() {
            return Ok(Next::OnEvent);
        }
        let (account, config_map) = tokio::join!(self.account(&key.name), self.config_map(&key.name));
        account.and(config_map).map(|()| Next::OnEvent)
    }
}

impl Controller {
    async fn account(&self, namespace: &str) -> Result<(), Error> {
        if self.accounts.get(&Key::new(namespace, ACCOUNT)).is_some() {
            return Ok(());
        }
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}});
        tolerate(self.client.create(SERVICE_ACCOUNTS, namespace, &account).await, "create ServiceAccount default")
    }

    async fn config_map(&self, namespace: &str) -> Result<(), Error> {
        if self.root_ca.is_empty() {
            return Ok(());
        }
        let key = Key::new(namespace, ROOT_CA);
        let data = json!({ ROOT_CA_KEY: self.root_ca });
        let annotations = json!({ DESCRIPTION: DESCRIPTION_TEXT });
        let Some(existing) = self.config_maps.get(&key) else {
            let config_map = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": ROOT_CA, "annotations": annotations},
                "data": data,
            });
            return tolerate(self.client.create(CONFIG_MAPS, namespace, &config_map).await, "create kube-root-ca.crt");
        };
        let right =
            existing.data.as_ref().is_some_and(|data| data.len() == 1 && data.get(ROOT_CA_KEY) == Some(&self.root_ca))
                && existing.metadata.annotations.as_ref().is_some_and(|map| map.contains_key(DESCRIPTION));
        if right {
            return Ok(());
        }
        let mut repaired = (*existing).clone();
        repaired.data = Some([(ROOT_CA_KEY.to_owned(), self.root_ca.clone())].into());
        repaired.binary_data = None;
        repaired
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned());
        self.client.replace(CONFIG_MAPS, &key, &repaired).await.map(drop).map_err(Error::api("repair kube-root-ca.crt"))
    }
}

/// What is there already, or is about to go, is no failure.
fn tolerate<T>(outcome: Result<T, kube::Error>, what: &'static str) -> Result<(), Error> {
    match outcome {
        Ok(_) => Ok(()),
        Err(error)
            if client::is_conflict(&error)
                || client::is_not_found(&error)
                || client::is_namespace_terminating(&error) =>
        {
            Ok(())
        }
        Err(source) => Err(Error::Api { what, source }),
    }
}
