//! `coracle tap`: requests as they are answered.

use anyhow::{Context as _, bail};
use coracle_sdk::{TapLine, Tapped};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use kube::Api;

use crate::cluster::Which;
use crate::output::{self, tell};

/// Show requests to Services as they are answered
///
/// One line a request: when, who has asked, the Service, the pod that has answered, method and path (without what follows a question
/// mark), status, and how long it took to the head of the answer. What comes faster than it can be shown is lost, and how much that
/// was is said. Who may `get` `services/tap` in a namespace may look there.
#[derive(clap::Args)]
pub struct Arguments {
    /// A Service; all of the namespace when absent
    service: Option<String>,
    /// Namespace of the Services [default: the context's]
    #[arg(short, long)]
    namespace: Option<String>,
    /// Services of all namespaces
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "service"])]
    all_namespaces: bool,
    /// End after so many requests
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,
    /// `json`: each request as a JSON object, as nodes tell of it
    #[arg(short, long, value_name = "json", value_parser = ["json"])]
    output: Option<String>,
    #[command(flatten)]
    which: Which,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let remote = arguments.which.connect().await?;
    let own = arguments.namespace.as_deref().unwrap_or(remote.client().default_namespace());
    let namespace = (!arguments.all_namespaces).then_some(own);
    if let Some(name) = &arguments.service {
        // Who may look at requests need not be one who may look at Services.
        let services: Api<Service> = Api::namespaced(remote.client().clone(), own);
        if let Ok(None) = services.get_opt(name).await {
            tell!("note: there is no Service {name} in namespace {own} yet");
        }
    }
    let lines = remote.tap(namespace, arguments.service.as_deref()).await.context("look at requests")?;
    let mut lines = std::pin::pin!(lines);
    let mut left = arguments.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(line) = lines.next().await else { bail!("the cluster tells no more") };
        let (text, line) = line.context("look at requests")?;
        let line = match line {
            TapLine::Request(_) if arguments.output.is_some() => text,
            TapLine::Request(tapped) => shown(&tapped),
            TapLine::Lost { lost, node } => {
                tell!("{lost} requests on node {node} came too fast to be shown");
                continue;
            }
            TapLine::Failed { node, error } => {
                tell!("node {}: {error}", node.unwrap_or_default());
                continue;
            }
            _ => continue,
        };
        if !output::line(line)? {
            return Ok(());
        }
        left -= 1;
    }
    Ok(())
}

/// Control characters that somebody put into a path do nothing to a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

fn shown(tapped: &Tapped) -> String {
    let time = tapped.at.split_once('T').map_or(&*tapped.at, |(_, time)| time);
    let answered = tapped.pod.as_deref().or(tapped.endpoint.as_deref()).unwrap_or("-");
    let status = match (&tapped.status, &tapped.error) {
        (Some(status), _) => status.to_string(),
        (None, Some(error)) => plain(error),
        (None, None) => "-".to_owned(),
    };
    let millis = tapped.latency_micros as f64 / 1e3;
    let again = if tapped.attempts > 1 { format!(" ({} tries)", tapped.attempts) } else { String::new() };
    format!(
        "{time} {} -> {}/{}:{} {answered} {} {} {status} {millis:.2} ms{again}",
        tapped.source,
        tapped.namespace,
        tapped.service,
        tapped.port,
        plain(&tapped.method),
        plain(&tapped.path)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_line() {
        let text = r#"{"at": "2026-01-01T10:00:00.000001Z", "source": "node port 30080", "namespace": "n", "service": "web",
            "port": 80, "endpoint": "10.244.0.5:8080", "pod": "n/web-1", "method": "GET", "path": "/a\u001b[31m", "status": 200,
            "error": null, "latencyMicros": 1234, "attempts": 2, "node": "boat"}"#;
        let TapLine::Request(tapped) = serde_json::from_str(text).unwrap() else { panic!("it is a request") };
        let expected = "10:00:00.000001Z node port 30080 -> n/web:80 n/web-1 GET /a\u{fffd}[31m 200 1.23 ms (2 tries)";
        assert_eq!(shown(&tapped), expected);
        let lost = serde_json::from_str(r#"{"lost": 7, "node": "boat"}"#).unwrap();
        assert!(matches!(lost, TapLine::Lost { lost: 7, .. }));
        let failed = serde_json::from_str(r#"{"node": "boat", "error": "it has ended"}"#).unwrap();
        assert!(matches!(failed, TapLine::Failed { .. }));
    }
}
