//! `coracle logs`: what the pods of a workload print.

use anyhow::{Context, bail};
use futures::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, Stream, StreamExt as _, stream};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{DynamicObject, ListParams, LogParams};
use kube::core::Selector;
use kube::discovery::ApiResource;
use kube::{Api, Client, ResourceExt};

use crate::cluster::Which;
use crate::output::{self, tell};

/// Most pods whose logs are shown side by side.
const PODS_MAX: usize = 50;
/// Bytes of a line that are held at once.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Show what a workload's pods print
#[derive(clap::Args)]
pub struct Arguments {
    /// A Deployment, StatefulSet, DaemonSet, ReplicaSet or Job (also as `sts/NAME`), a pod, or a value of the label `app`; all pods of
    /// the namespace when absent
    workload: Option<String>,
    /// Namespace of the workload [default: the context's]
    #[arg(short, long)]
    namespace: Option<String>,
    /// Go on with what they print from now
    #[arg(short, long)]
    follow: bool,
    /// Lines of each container to begin with
    #[arg(long, value_name = "LINES")]
    tail: Option<i64>,
    #[command(flatten)]
    which: Which,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let client = arguments.which.connect().await?.client().clone();
    let namespace = arguments.namespace.as_deref().unwrap_or(client.default_namespace());
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = find(&client, &pods, namespace, arguments.workload.as_deref()).await?;
    if found.is_empty() {
        tell!("there are no such pods in namespace {namespace}");
    }
    let containers: Vec<(String, String)> = found.iter().take(PODS_MAX).flat_map(containers).collect();
    if found.len() > PODS_MAX {
        tell!("showing {PODS_MAX} of {} pods", found.len());
    }
    let width = containers.iter().map(|(pod, container)| pod.len() + container.len() + 1).max().unwrap_or(0);
    let alone = containers.len() == 1;
    let follow = arguments.follow;
    let lines = containers.into_iter().map(|(pod, container)| {
        let (pods, tail) = (pods.clone(), arguments.tail);
        let label = format!("{pod}/{container}");
        async move {
            let params = LogParams { container: Some(container), follow, tail_lines: tail, ..LogParams::default() };
            match pods.log_stream(&pod, &params).await {
                Ok(log) => lines(Box::pin(log)).map(move |line| (label.clone(), line)).left_stream(),
                Err(error) => {
                    let error = coracle_sdk::AskError::from(error);
                    stream::iter([(label, Err(std::io::Error::other(error.to_string())))]).right_stream()
                }
            }
        }
    });
    let all = stream::iter(lines).map(|log| stream::once(log).flatten().boxed());
    if follow {
        print(all.flatten_unordered(None), width, alone).await
    } else {
        print(all.flatten(), width, alone).await
    }
}

/// What a container prints, in whatever bytes: without the end of each line, and a longer one in pieces. Nothing comes after an error.
fn lines(log: impl AsyncBufRead + Unpin) -> impl Stream<Item = std::io::Result<Vec<u8>>> {
    stream::try_unfold(log, |mut log| async move {
        let mut line = Vec::new();
        (&mut log).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await?;
        let is_end = line.is_empty();
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        Ok((!is_end).then_some((line, log)))
    })
}

async fn print(
    mut lines: impl Stream<Item = (String, std::io::Result<Vec<u8>>)> + Unpin,
    width: usize,
    alone: bool,
) -> anyhow::Result<()> {
    let mut failed = false;
    while let Some((label, line)) = lines.next().await {
        let is_read = match line {
            Ok(line) if alone => output::line(line)?,
            Ok(line) => output::line([format!("{label:width$} | ").as_bytes(), &line].concat())?,
            Err(error) => {
                tell!("{label}: {error}");
                failed = true;
                continue;
            }
        };
        if !is_read {
            return Ok(());
        }
    }
    if failed { bail!("not every log could be read") } else { Ok(()) }
}

/// Names of a pod's containers, each with the pod's.
fn containers(pod: &Pod) -> Vec<(String, String)> {
    let spec = pod.spec.iter().flat_map(|spec| &spec.containers);
    spec.map(|container| (pod.name_any(), container.name.clone())).collect()
}

/// Kinds that have pods, with the names that kubectl knows them by.
fn workloads() -> [(ApiResource, [&'static str; 3]); 5] {
    [
        (ApiResource::erase::<Deployment>(&()), ["deployments", "deployment", "deploy"]),
        (ApiResource::erase::<StatefulSet>(&()), ["statefulsets", "statefulset", "sts"]),
        (ApiResource::erase::<DaemonSet>(&()), ["daemonsets", "daemonset", "ds"]),
        (ApiResource::erase::<ReplicaSet>(&()), ["replicasets", "replicaset", "rs"]),
        (ApiResource::erase::<Job>(&()), ["jobs", "job", "job"]),
    ]
}

/// A pod alone.
const POD: [&str; 3] = ["pods", "pod", "po"];

/// Whether a kind that somebody has named is one of those.
fn check(kind: &str) -> anyhow::Result<()> {
    let known: Vec<&str> = workloads().iter().flat_map(|(_, names)| *names).chain(POD).collect();
    if kind.is_empty() || known.contains(&kind) {
        return Ok(());
    }
    let known: Vec<&str> = workloads().iter().map(|(_, names)| names[1]).chain([POD[1]]).collect();
    bail!("{kind} is no kind whose logs are shown: {}", known.join(", "))
}

async fn find(client: &Client, pods: &Api<Pod>, namespace: &str, name: Option<&str>) -> anyhow::Result<Vec<Pod>> {
    let list = |labels: Option<String>| async move {
        let params = labels.map_or_else(ListParams::default, |labels| ListParams::default().labels(&labels));
        pods.list(&params).await.map(|list| list.items).map_err(coracle_sdk::AskError::from).context("list the pods")
    };
    let Some(name) = name else { return list(None).await };
    let (kind, name) = name.split_once('/').unwrap_or(("", name));
    check(kind)?;
    if name.is_empty() {
        bail!("no workload is named: say it as NAME or KIND/NAME");
    }
    let ask = coracle_sdk::AskError::from;
    for (resource, _) in workloads().iter().filter(|(_, names)| kind.is_empty() || names.contains(&kind)) {
        let workloads: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
        let found = workloads.get_opt(name).await.map_err(ask);
        if let Some(workload) = found.with_context(|| format!("find the {}", resource.kind))? {
            let selector: LabelSelector = serde_json::from_value(workload.data["spec"]["selector"].clone())
                .with_context(|| format!("read the selector of the {}", resource.kind))?;
            let selector =
                Selector::try_from(selector).with_context(|| format!("read the selector of the {}", resource.kind))?;
            return list(Some(selector.to_string())).await;
        }
    }
    if (kind.is_empty() || POD.contains(&kind))
        && let Some(pod) = pods.get_opt(name).await.map_err(ask).context("find the pod")?
    {
        return Ok(vec![pod]);
    }
    let labelled = if kind.is_empty() { list(Some(format!("app={name}"))).await? } else { Vec::new() };
    if labelled.is_empty() {
        let kinds: Vec<String> = workloads().into_iter().map(|(resource, _)| resource.kind).collect();
        match kind {
            "" => bail!(
                "there is no {} or Pod {name} in namespace {namespace}, and no pod with the label app={name}",
                kinds.join(", ")
            ),
            kind => bail!("there is no {kind} {name} in namespace {namespace}"),
        }
    }
    Ok(labelled)
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    #[test]
    fn a_kind_without_logs_is_told_with_those_that_have_them() {
        for kind in ["", "deploy", "sts", "job", "jobs", "po"] {
            check(kind).unwrap();
        }
        let said = check("service").unwrap_err().to_string();
        assert!(said.starts_with("service is no kind") && said.ends_with("replicaset, job, pod"), "{said}");
    }

    #[tokio::test]
    async fn lines_are_bytes() {
        let long = vec![b'x'; LINE_BYTES_MAX as usize + 1];
        let log = [&b"caf\xe9\n\nb\r\n"[..], &long, b"\nend"].concat();
        let lines: Vec<Vec<u8>> = lines(futures::io::Cursor::new(log)).try_collect().await.unwrap();
        let (begin, rest) = long.split_at(LINE_BYTES_MAX as usize);
        assert!(lines == [&b"caf\xe9"[..], b"", b"b\r", begin, rest, b"end"]);
    }
}
