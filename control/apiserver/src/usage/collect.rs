//! Asks the nodes, and keeps what they said last.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use coracle_api::meta::condition;
use coracle_keyspace::Record;
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt as _, StreamExt as _, stream};
use http_body_util::{BodyExt as _, Limited};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::Uses;
use super::sample::Sample;
use crate::cluster::Cluster;
use crate::limits::{Class, Flow};
use crate::nodes::{self, Endpoint, Nodes};
use crate::store::Seen;

/// What was said so lately is said again. Who asks every 15 s, as an autoscaler, hears something new each time.
const FRESH: Duration = Duration::from_secs(10);
/// What was said before that says nothing about now.
const OLD: Duration = Duration::from_secs(60);
/// Between two samples where there is none that is recent.
const PAIR: Duration = Duration::from_secs(1);
/// How long a node may take to answer, and all of them together: what is not heard by then is missing.
const ANSWER_MAX: Duration = Duration::from_secs(3);
const COLLECTION_MAX: Duration = Duration::from_secs(8);
/// One that took longer is not waited for again before this is over.
const LATE: Duration = Duration::from_secs(30);
/// Longest answer: some ten thousand containers.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Nodes that are asked at a time.
const ASKED_MAX: usize = 128;
/// Whose streams from the nodes these are.
const FLOW: Flow<'static> = Flow { class: Class::Own, name: "system:metrics" };

/// What nodes said. Bounded by the nodes that there are, and by [`ANSWER_BYTES_MAX`] of pods that there are for each.
#[derive(Default)]
pub(crate) struct Usages(Mutex<State>);

#[derive(Default)]
struct State {
    /// When all nodes were asked last.
    asked: Option<Instant>,
    samples: Arc<Samples>,
    under_way: Option<(AbortHandle, Shared<BoxFuture<'static, ()>>)>,
}

/// The samples of all nodes, by their names.
#[derive(Default)]
pub(super) struct Samples(HashMap<Arc<str>, Node>);

#[derive(Clone)]
struct Node {
    /// As it was when it was read.
    record: Arc<Record>,
    /// Where it listens; of one that is not heard of it does not matter.
    to: Option<Endpoint>,
    earlier: Option<(Instant, Arc<Sample>)>,
    latest: Option<(Instant, Arc<Sample>)>,
    /// When it was waited for in vain.
    late: Option<Instant>,
}

/// What came of asking a node.
enum Said {
    Sample(Sample),
    Nothing,
    /// It was waited for in vain.
    Late,
}

impl Node {
    fn read(seen: &Seen<'_>) -> Node {
        let record = seen.record.clone();
        let object = seen.value_or_nothing();
        let is_silent = condition::status(&object, "Ready") == Some("Unknown");
        let to = nodes::endpoint_of(&object).filter(|_| !is_silent);
        Node { record, to, earlier: None, latest: None, late: None }
    }

    /// Where to ask it, if it is worth while.
    fn asked(&self, now: Instant) -> Option<Endpoint> {
        self.to.clone().filter(|_| self.late.is_none_or(|late| now.duration_since(late) >= LATE))
    }

    fn keep(&mut self, said: Said, now: Instant) {
        if let Some(latest) = self.latest.take() {
            self.earlier = Some(latest);
        }
        self.earlier = self.earlier.take().filter(|(at, _)| now.duration_since(*at) < OLD);
        match said {
            Said::Sample(sample) => (self.latest, self.late) = (Some((now, Arc::new(sample))), None),
            Said::Nothing => {}
            Said::Late => self.late = Some(now),
        }
    }
}

impl Samples {
    /// What a pod uses that runs, or a node. A node is believed about its own pods.
    pub fn used(&self, seen: &Seen<'_>, is_pod: bool) -> Option<Uses> {
        let name = &*seen.record.key.name;
        let node = if is_pod { seen.field("spec.nodeName")? } else { name };
        let Node { earlier, latest, .. } = self.0.get(node)?;
        let (latest, earlier) = (&latest.as_ref()?.1, earlier.as_ref().map(|(_, sample)| &**sample));
        match is_pod {
            true if seen.field("status.phase") != Some("Running") => None,
            true => latest.pod(earlier, name),
            false => latest.node(earlier),
        }
    }
}

impl Usages {
    /// Waits until what is kept is of now. `collect` is done in a task of its own, once for all who wait.
    pub async fn refresh<F>(&self, tasks: &TaskTracker, collect: impl FnOnce() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let under_way = {
            let mut state = self.0.lock();
            match &state.under_way {
                // It ends also when all who waited have left, and then nobody has seen its end.
                Some((task, under_way)) if !task.is_finished() => under_way.clone(),
                _ if state.asked.is_some_and(|at| at.elapsed() < FRESH) => return,
                _ => {
                    let task = tasks.spawn(collect());
                    let handle = task.abort_handle();
                    let under_way = task.map(drop).boxed().shared();
                    state.under_way = Some((handle, under_way.clone()));
                    under_way
                }
            }
        };
        under_way.await;
    }

    pub(super) fn samples(&self) -> Arc<Samples> {
        self.0.lock().samples.clone()
    }

    /// Whether nothing is known that the next sample could be compared with.
    fn is_old(&self) -> bool {
        self.0.lock().asked.is_none_or(|at| at.elapsed() >= OLD)
    }

    fn keep(&self, samples: Samples) {
        let mut state = self.0.lock();
        state.samples = Arc::new(samples);
        state.asked = Some(Instant::now());
    }
}

/// Asks all nodes how much they have used so far: twice where nothing is known of before.
pub(crate) async fn collect(cluster: &Cluster, nodes: &Nodes, usages: &Usages) {
    let is_old = usages.is_old();
    once(cluster, nodes, usages).await;
    if is_old {
        tokio::time::sleep(PAIR).await;
        once(cluster, nodes, usages).await;
    }
}

async fn once(cluster: &Cluster, nodes: &Nodes, usages: &Usages) {
    let Some(resource) = cluster.catalog.named("", "nodes") else { return };
    let (before, begun) = (usages.samples(), Instant::now());
    let records = cluster.store.keyspace.snapshot(resource.row.collection()).records;
    // A node's object seldom changes; what it says of itself is read when it has.
    let one = |(name, record): (&Arc<str>, &Arc<Record>)| {
        let known = before.0.get(name);
        let node = match known {
            Some(known) if Arc::ptr_eq(&known.record, record) => known.clone(),
            _ => {
                let node = Node::read(&Seen::new(resource, record));
                let (earlier, latest) = known.map(|old| (old.earlier.clone(), old.latest.clone())).unwrap_or_default();
                Node { earlier, latest, ..node }
            }
        };
        (name.clone(), node)
    };
    let mut all: HashMap<Arc<str>, Node> = records.iter().map(one).collect();
    let to: Vec<(Arc<str>, Endpoint)> =
        all.iter().filter_map(|(name, node)| Some((name.clone(), node.asked(begun)?))).collect();
    let mut waiting: HashSet<Arc<str>> = to.iter().map(|(name, _)| name.clone()).collect();
    let asked = to.into_iter().map(|(name, to)| async move { (name, ask(cluster, nodes, &to).await) });
    let mut said: HashMap<Arc<str>, Said> = HashMap::new();
    {
        let mut answers = std::pin::pin!(stream::iter(asked).buffer_unordered(ASKED_MAX));
        while let Ok(Some((name, answer))) = tokio::time::timeout_at(begun + COLLECTION_MAX, answers.next()).await {
            waiting.remove(&name);
            said.insert(name, answer);
        }
    }
    let now = Instant::now();
    for (name, node) in &mut all {
        let late = || if waiting.contains(name) { Said::Late } else { Said::Nothing };
        node.keep(said.remove(name).unwrap_or_else(late), now);
    }
    usages.keep(Samples(all));
}

/// What a node says; one that does not answer in time says nothing.
async fn ask(cluster: &Cluster, nodes: &Nodes, to: &Endpoint) -> Said {
    let failed = |why: &dyn std::fmt::Display| tracing::debug!(node = to.node, error = %why, "a node's metrics");
    let answered = async {
        let _place = nodes.stream(to, FLOW).inspect_err(|status| failed(&status.message)).ok()?;
        let request = http::Request::get("/metrics/resource").header(http::header::HOST, to.node.as_str());
        let request = request.body(nodes::empty()).inspect_err(|error| failed(error)).ok()?;
        let response = nodes.send(to, request).await.inspect_err(|status| failed(&status.message)).ok()?;
        if !response.status().is_success() {
            failed(&response.status());
            return None;
        }
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        body.inspect_err(|error| failed(error)).ok()
    };
    let bytes = match tokio::time::timeout(ANSWER_MAX, answered).await {
        Ok(Some(answered)) => answered.to_bytes(),
        Ok(None) => return Said::Nothing,
        Err(late) => {
            failed(&late);
            return Said::Late;
        }
    };
    let Some(pods) = cluster.catalog.named("", "pods") else { return Said::Nothing };
    // By the name that the store has of it, which is there once.
    let known = |name: &str| cluster.store.get(pods, name).map(|record| record.key.name.clone());
    Said::Sample(Sample::read(&String::from_utf8_lossy(&bytes), Timestamp::now().as_millisecond(), known))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn what_ended_when_nobody_waited_any_more_is_not_the_answer_of_later() {
        let (usages, tasks, times) = (Usages::default(), TaskTracker::new(), Arc::new(AtomicUsize::new(0)));
        let collect = || {
            let times = times.clone();
            async move {
                times.fetch_add(1, Ordering::Relaxed);
            }
        };
        assert!(usages.refresh(&tasks, collect).now_or_never().is_none(), "who asked leaves");
        while !tasks.is_empty() {
            tokio::task::yield_now().await;
        }
        usages.refresh(&tasks, collect).await;
        assert_eq!(times.load(Ordering::Relaxed), 2);
    }
}
