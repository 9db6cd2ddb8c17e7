//! `coracle demo`: from the checkout to an answer in the browser.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use coracle_sdk::kube::api::ListParams;
use coracle_sdk::{Cluster, component, manifests, push};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::wait::await_condition;
use kube::{Api, ResourceExt};

use crate::cluster::{Here, Signals, drain};
use crate::output::{Step, say, tell};
use crate::up::announce;

/// Components the demo pushes: package in examples/, image. The second is there for examples/manifests/fastapi-app.yaml.
const COMPONENTS: [(&str, &str); 2] = [("greeter", "greeter:latest"), ("standin", "myregistry/fastapi-app:latest")];
/// How long the demo's pods may take, compilation on a slow machine included.
const ROLLOUT_DEADLINE: Duration = Duration::from_secs(180);
/// How long the node may take to hear that they are ready, and its Service to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Show a whole cluster at work: build, push, deploy, answer
///
/// Builds the example components of this repository (adding rustup's wasm32-wasip2 target when it is missing), starts
/// a one-node cluster, pushes them, applies examples/manifests/demo.yaml and runs until Ctrl-C.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    here: Here,
    /// Leave after showing that it answers
    #[arg(long)]
    exit: bool,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let examples = examples()?;
    let objects = manifests::read(&[examples.join("manifests/demo.yaml")])?;
    let mut signals = Signals::take()?;
    let mut files = Vec::new();
    for (package, image) in COMPONENTS {
        let step = Step::begin(format!("build examples/{package}"));
        let file = tokio::select! {
            built = component(&examples, package) => built?,
            () = signals.received() => return Ok(()),
        };
        files.push((file, image));
        step.done();
    }
    let step = Step::begin("start the cluster");
    let node_ports = arguments.here.node_ports();
    let cluster = tokio::select! {
        cluster = arguments.here.start("coracle-demo", None) => cluster?,
        () = signals.received() => return Ok(()),
    };
    step.done();
    let shown = tokio::select! {
        shown = show(&cluster, node_ports, &files, &objects) => shown,
        () = signals.received() => return drain(cluster, &mut signals).await,
    };
    let url = match shown {
        Ok(url) => url,
        Err(error) => {
            cluster.shutdown().await;
            return Err(error);
        }
    };
    if let Err(error) = try_these(&cluster, &url).and_then(|()| announce(&cluster)) {
        cluster.shutdown().await;
        return Err(error);
    }
    if !arguments.exit {
        tell!("\nrunning until Ctrl-C");
        tokio::select! {
            () = signals.received() => {}
            why = cluster.ended() => {
                cluster.shutdown().await;
                bail!(why)
            }
        }
    }
    drain(cluster, &mut signals).await
}

/// Pushes, applies, waits, asks; returns the URL that answered.
async fn show(
    cluster: &Cluster,
    node_ports: IpAddr,
    files: &[(PathBuf, &str)],
    objects: &[manifests::Manifest],
) -> anyhow::Result<String> {
    let client = cluster.remote().client().clone();
    for (file, image) in files {
        let step = Step::begin(format!("push {image}"));
        push(&client, file, image).await?;
        step.done();
    }
    crate::up::apply(cluster, objects).await?;

    let step = Step::begin("wait for the pods");
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "demo");
    for deployment in deployments.list(&ListParams::default()).await? {
        let wanted = deployment.spec.replicas.unwrap_or(1);
        let name = deployment.name_any();
        let ready = await_condition(deployments.clone(), &name, move |found: Option<&Deployment>| {
            let status = found.and_then(|deployment| deployment.status.as_ref());
            status.and_then(|status| status.available_replicas).unwrap_or(0) >= wanted
        });
        tokio::time::timeout(ROLLOUT_DEADLINE, ready).await.with_context(|| {
            format!(
                "deployment {name} is not ready after {ROLLOUT_DEADLINE:?}; `kubectl -n demo describe pods` says why"
            )
        })??;
    }
    step.done();

    let step = Step::begin("ask the service");
    let services: Api<Service> = Api::namespaced(client, "demo");
    let port = services
        .list(&ListParams::default())
        .await?
        .into_iter()
        .find_map(|service| service.spec?.ports?.into_iter().find_map(|port| port.node_port))
        .context("the demo's manifest has no NodePort service")?;
    let url = format!("http://{}/", SocketAddr::new(node_ports, u16::try_from(port).context("a node port is a port")?));
    // That pods are ready is heard by whoever leads to them a moment later.
    let answer = coracle_sdk::bench::http_get_ok(&url, ANSWER_DEADLINE).await.map_err(anyhow::Error::from_boxed)?;
    step.done();
    say!("{}", answer.trim_end())?;
    Ok(url)
}

fn try_these(cluster: &Cluster, url: &str) -> anyhow::Result<()> {
    say!("\nThree things to try, in another terminal:\n")?;
    say!("  curl {url}")?;
    say!("  export KUBECONFIG={}", quoted(cluster.kubeconfig()))?;
    say!("  kubectl -n demo get all")?;
    say!(
        "  kubectl -n demo scale deployment hello --replicas 50 && kubectl -n demo rollout status deployment hello\n"
    )?;
    Ok(())
}

/// A path as a word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+:@%,".contains(letter);
    if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The repository's examples: of the checkout we are in, else of the one this program was built from.
fn examples() -> anyhow::Result<PathBuf> {
    let fits = |root: &Path| {
        let examples = root.join("examples");
        examples.join("manifests/demo.yaml").exists().then_some(examples)
    };
    let here = std::env::current_dir().context("find the current directory")?;
    here.ancestors()
        .find_map(fits)
        .or_else(|| fits(Path::new(env!("CARGO_MANIFEST_DIR")).parent()?))
        .context("the demo needs a checkout of Coracle's repository: run it there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        for (path, expected) in [
            ("/home/me/.local/share", "/home/me/.local/share"),
            ("/a b", "'/a b'"),
            ("/it's", r"'/it'\''s'"),
            ("/$x", "'/$x'"),
        ] {
            assert_eq!(quoted(Path::new(path)), expected);
        }
    }
}
