//! Endpoints that somebody made by hand, for a Service without a selector, as EndpointSlices (the reference's
//! EndpointSliceMirroring controller).
//!
//! A slice's name is made of what it shows, so that one whose creation has an unknown outcome, or that the cache does not show
//! yet, is not made twice.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::Error;
use crate::client::{self, Client, DeleteOptions, ENDPOINT_SLICES};
use crate::events::{Record, Recorder, Subject};
use crate::informer::{Index, Informer, Key, Object as _, Store};
use crate::queue::{Next, Queue, Reconciler};
use crate::workload::{self, Created};

/// Between reconciliations of one object in a storm.
const SPACING: Duration = Duration::from_millis(20);
const COMPONENT: &str = "endpoint-slice-mirroring-controller";

/// The controller of mirrored slices. Its keys are those of Services, and of the Endpoints of the same names.
pub(crate) struct Controller {
    client: Client,
    recorder: Recorder,
    queue: Queue<Key>,
    services: Arc<Store<Service>>,
    endpoints: Arc<Store<Endpoints>>,
    slices: Arc<Store<EndpointSlice>>,
}

impl Controller {
    pub(crate) fn new(
        client: Client,
        recorder: Recorder,
        services: &mut Informer<Service>,
        endpoints: &mut Informer<Endpoints>,
        slices: &mut Informer<EndpointSlice>,
    ) -> Arc<Self> {
        let queue: Queue<Key> = Queue::new(SPACING);
        services.on_change({
            let queue = queue.clone();
            move |change| {
                if change.before().is_none_or(|before| has_selector(before) != has_selector(change.object())) {
                    queue.add(&change.object().key());
                }
            }
        });
        endpoints.on_change({
            let (queue, services) = (queue.clone(), services.store());
            move |change| {
                let key = change.object().key();
                // The endpoints of most Services are made of pods.
                if services.get(&key).is_none_or(|service| !has_selector(&service)) {
                    queue.add(&key);
                }
            }
        });
        slices.on_change({
            let queue = queue.clone();
            move |change| {
                let now_or_before = [Some(change.object()), change.before()];
                for service in now_or_before.into_iter().flatten().filter_map(|slice| service_of(slice)) {
                    queue.add(&service);
                }
            }
        });
        let (services, endpoints, slices) = (services.store(), endpoints.store(), slices.store());
        Arc::new(Self { client, recorder, queue, services, endpoints, slices })
    }
}

impl Reconciler for Controller {
    type Key = Key;
    const NAME: &'static str = "endpointslicemirroring";
    const WORKERS: usize = 4;

    fn queue(&self) -> &Queue<Key> {
        &self.queue
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, Error> {
        let mut existing = self.slices.by(Index::Service, &key.name);
        existing.retain(|slice| service_of(slice).as_ref() == Some(&key));
        let service = self.services.get(&key).filter(|service| !has_selector(service));
        let endpoints = self.endpoints.get(&key).filter(|endpoints| plan::is_mirrored(endpoints));
        let plan = match (service, endpoints) {
            (Some(_), Some(endpoints)) => {
                let plan = plan::plan(&endpoints, existing);
                self.tell(&endpoints, &plan);
                plan
            }
            _ => plan::Plan { delete: existing, ..plan::Plan::default() },
        };
        match self.write(&key, plan).await {
            // Everything is going with the namespace.
            Err(Error::Api { source, .. }) if client::is_namespace_terminating(&source) => Ok(Next::OnEvent),
            other => other.map(|()| Next::OnEvent),
        }
    }
}

impl Controller {
    async fn write(&self, key: &Key, plan: plan::Plan) -> Result<(), Error> {
        for slice in &plan.update {
            let written = self.client.replace(ENDPOINT_SLICES, &slice.key(), slice).await;
            written.map_err(Error::api("write a mirrored EndpointSlice"))?;
        }
        for slice in &plan.create {
            match workload::create_named(&self.client, ENDPOINT_SLICES, &key.namespace, slice).await {
                Created::Made(_) => {}
                // By ourselves, as a rule: its event comes.
                Created::Taken(_) => return Err(Error::Stale("a new EndpointSlice is not in the cache yet")),
                Created::Unknown(source) | Created::Refused(source) => {
                    return Err(Error::Api { what: "create a mirrored EndpointSlice", source });
                }
            }
        }
        for slice in plan.delete {
            let deleted = self.client.delete(ENDPOINT_SLICES, &slice.key(), &DeleteOptions::of(slice.uid())).await;
            deleted.map_err(Error::api("delete a mirrored EndpointSlice"))?;
        }
        Ok(())
    }

    /// What is not shown is said, in the reference's words.
    fn tell(&self, endpoints: &Endpoints, plan: &plan::Plan) {
        let (max, surplus, invalid) = (plan::ADDRESSES_MAX, plan.surplus, plan.invalid);
        if invalid > 0 {
            let message = format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
            self.record(endpoints, "InvalidIPAddress", message);
        }
        if surplus > 0 {
            let message = format!(
                "A max of {max} addresses can be mirrored to EndpointSlices per Endpoints subset. {surplus} addresses were skipped"
            );
            self.record(endpoints, "TooManyAddressesToMirror", message);
        }
    }

    fn record(&self, endpoints: &Endpoints, reason: &'static str, message: String) {
        let (key, uid) = (endpoints.key(), endpoints.uid().into());
        let subject = Subject { api_version: "v1".into(), kind: "Endpoints".into(), key, uid };
        self.recorder.record(Record { subject, component: COMPONENT, warning: true, reason, message });
    }
}

fn has_selector(service: &Service) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| !selector.is_empty())
}

/// The Service whose mirrored slice it is.
fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let labels = slice.metadata.labels.as_ref()?;
    labels.get(plan::MANAGED_BY).filter(|manager| *manager == plan::MANAGER)?;
    Some(Key::new(slice.metadata.namespace.as_deref().unwrap_or_default(), labels.get(plan::SERVICE_NAME)?))
}
