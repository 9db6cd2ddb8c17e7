//! `metrics.k8s.io`: how much pods and nodes use now, in the words of Kubernetes' metrics-server.
//!
//! ```text
//! get, list ─► Usages::refresh ─► collect ─► /metrics/resource of each node ─► Sample ─┐
//!     └─────────────────────────── two samples of a node are a rate ◄──────────────────┘
//! ```
//! Nothing is collected but when somebody asks, and then once for all who ask at the same time. What is kept are the last two
//! samples of each node, of pods that there are, in the memory of the server that was asked; nothing of it is written.

mod collect;
mod sample;
mod show;

use std::sync::Arc;

use axum::response::Response;
use coracle_api::status::Status;
use coracle_keyspace::Record;

use crate::answer::table::Include;
use crate::catalog::Resource;
use crate::cluster::Cluster;
use crate::request::call::Call;
use crate::request::negotiate::{Offer, Shape};
use crate::store::{self, Seen, warm};
use crate::verbs::list;
use crate::verbs::selection::ListOptions;
use collect::Samples;
pub(crate) use collect::{Usages, collect};
use sample::Used;

const GROUP: &str = "metrics.k8s.io";
/// Of one shape; the second is what metrics-server serves, and what clients before kubectl 1.37 ask for.
const VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// Whose use is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Of {
    version: &'static str,
    /// `pods` or `nodes`: the resource of the core group.
    pub resource: &'static str,
}

/// What is asked for at a path.
pub(crate) fn find(group: &str, version: &str, resource: &str) -> Option<Of> {
    let version = VERSIONS.into_iter().find(|known| group == GROUP && *known == version)?;
    let resource = ["pods", "nodes"].into_iter().find(|known| *known == resource)?;
    Some(Of { version, resource })
}

impl Of {
    /// Whether it is of what lives in a namespace.
    pub fn is_namespaced(self) -> bool {
        self.resource == "pods"
    }

    fn kind(self) -> &'static str {
        if self.is_namespaced() { "PodMetrics" } else { "NodeMetrics" }
    }

    /// 404 of one of which nothing is known: metrics-server has words of its own for it.
    fn unknown(self, record_name: &str) -> Status {
        Status::not_found(GROUP, if self.is_namespaced() { "podmetrics" } else { "nodemetrics" }, record_name)
    }
}

/// Answers from what was collected.
pub(crate) async fn answer(cluster: &Cluster, usages: &Usages, call: &Call, of: Of) -> Result<Response, Status> {
    let objects = cluster.catalog.named("", of.resource).ok_or_else(Status::path_not_found)?;
    // What is shown of metadata alone is shown whole.
    let form = call.form(Offer::List)?;
    let form = if matches!(form.shape, Shape::Whole | Shape::Table { .. }) { form } else { call.form(Offer::Plain)? };
    let include = Include::of(&call.query)?;
    let samples = usages.samples();
    if call.target.name.is_some() {
        let name = objects.record_name(call.namespace(), call.name());
        let record = cluster.store.read(objects, &name).await?.ok_or_else(|| objects.not_found(call.name()))?;
        let found = item(objects, &samples, of, &record).ok_or_else(|| of.unknown(&name))?;
        return Ok(show::one(form, of, &found, include));
    }
    let options = ListOptions::of(call, objects, false)?;
    let page = list::page(cluster, call, objects, &options, store::check_opened).await?;
    learn(objects, &page.records).await;
    let items: Vec<show::Item<'_>> =
        page.records.iter().filter_map(|record| item(objects, &samples, of, record)).collect();
    Ok(show::list(form, of, &items, page.next.map(|next| next.encode()), include))
}

/// One object, if it is known what it uses.
fn item<'a>(objects: &'a Resource, samples: &Samples, of: Of, record: &'a Arc<Record>) -> Option<show::Item<'a>> {
    let seen = Seen::new(objects, record);
    Some(show::Item { used: samples.used(&seen, of.is_namespaced())?, seen })
}

/// Where pods run, and what labels they have, is looked up once for each.
async fn learn(objects: &Arc<Resource>, records: &[Arc<Record>]) {
    warm(objects, records, |seen: &Seen<'_>| seen.learn()).await;
}

/// What one object uses: of a node one entry without a name, of a pod one for each container.
type Uses = Vec<(Arc<str>, Used)>;
