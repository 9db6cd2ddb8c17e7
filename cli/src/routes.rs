//! `coracle routes`: where a request would go, and why.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use coracle_sdk::RoutesOf;
use serde_json::Value;

use crate::cluster::Which;
use crate::output::{self, say, tell};

/// Show where a request would go, as each node sees it
///
/// For a host (and a path): the rule of the Ingress that takes it, and its Service; for a Service: its ports, and who answers there:
/// ready, or left out because it has not answered; what is under way and how long answers take. Who may `get` `services/routes` in a
/// namespace may look there; for hosts, everywhere.
#[derive(clap::Args)]
pub struct Arguments {
    /// A host, as `app.example` or `app.example/path`, or a Service, as `svc/NAME` (a name without a dot is a Service, too)
    #[arg(value_name = "HOST|SERVICE")]
    what: String,
    /// Namespace of the Service [default: the context's]
    #[arg(short, long)]
    namespace: Option<String>,
    /// `json`: as the nodes tell it
    #[arg(short, long, value_name = "json", value_parser = ["json"])]
    output: Option<String>,
    #[command(flatten)]
    which: Which,
}

/// What a word means.
fn of<'a>(what: &'a str, namespace: &'a str) -> RoutesOf<'a> {
    for kind in ["svc/", "service/", "services/"] {
        if let Some(name) = what.strip_prefix(kind) {
            return RoutesOf::Service { namespace, name };
        }
    }
    let host = what.split_once("://").map_or(what, |(_, rest)| rest);
    let (host, path) = host.split_at(host.find('/').unwrap_or(host.len()));
    // A port says nothing about the rule.
    let host = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(host, _)| host);
    match host.contains('.') || !path.is_empty() || what.contains("://") {
        true => RoutesOf::Host { host, path: if path.is_empty() { "/" } else { path } },
        false => RoutesOf::Service { namespace, name: host },
    }
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let remote = arguments.which.connect().await?;
    let of = of(&arguments.what, arguments.namespace.as_deref().unwrap_or(remote.client().default_namespace()));
    let said = remote.routes(&of).await.context("ask where requests go")?;
    let is_json = arguments.output.is_some();
    if is_json {
        say!("{}", serde_json::to_string_pretty(&said)?)?;
    }
    let nodes = said["nodes"].as_object().filter(|nodes| !nodes.is_empty());
    let Some(nodes) = nodes else { bail!("no node is heard of") };
    let (mut found, mut told) = (false, false);
    for (node, said) in nodes {
        found |= !said["rule"].is_null() || !said["service"].is_null();
        told |= said["error"].is_null();
        if !is_json {
            output::line(shown(node, said).trim_end_matches('\n'))?;
        }
    }
    if let Some(beyond) = said["notAsked"].as_u64().filter(|beyond| *beyond > 0) {
        tell!("{beyond} further nodes were not asked");
    }
    match of {
        _ if found => Ok(()),
        _ if !told => bail!("no node tells where requests go"),
        RoutesOf::Host { host, path } => bail!("no Ingress has a rule for host {host} and path {path}"),
        RoutesOf::Service { namespace, name } => bail!("there is no Service {namespace}/{name}"),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// As a node tells it.
fn shown(node: &str, said: &Value) -> String {
    let mut out = format!("node {node}\n");
    // Writing to a string cannot fail.
    if let Some(error) = said["error"].as_str() {
        let _ = writeln!(out, "  {error}");
        return out;
    }
    let service = &said["service"];
    if !said["rule"].is_null() {
        rule(&mut out, &said["rule"], service.is_null());
    }
    if service.is_null() {
        return out;
    }
    let address = service["clusterIP"].as_str().map_or_else(String::new, |address| format!(" at {address}"));
    let _ = writeln!(out, "  service {}/{}{address}", text(&service["namespace"]), text(&service["name"]));
    if let Some(name) = service["externalName"].as_str() {
        let _ = writeln!(out, "    stands for {name}, outside of the cluster");
    }
    if service["scaledByDemand"] == true {
        let _ = writeln!(out, "    its pods are scaled by what is asked: a request waits where there is none");
    }
    service["ports"].as_array().into_iter().flatten().for_each(|found| port(&mut out, found));
    out
}

fn rule(out: &mut String, rule: &Value, is_missing: bool) {
    let secure = if rule["secureOnly"] == true { ", redirected to TLS" } else { "" };
    let _ = writeln!(out, "  rule of {}{secure}", text(&rule["from"]));
    for (field, what) in [("bodyBytesMax", "bytes of a body"), ("silenceSeconds", "seconds of silence")] {
        if let Some(most) = rule[field].as_u64() {
            let _ = writeln!(out, "    at most {most} {what}");
        }
    }
    let backend = &rule["backend"];
    let _ = match backend["other"].as_str() {
        Some(other) => writeln!(out, "    leads to {other}, which is no Service"),
        None => writeln!(
            out,
            "    leads to port {} of service {}/{}{}",
            text(&backend["port"]),
            text(&backend["namespace"]),
            text(&backend["service"]),
            if is_missing { ", which does not exist" } else { "" }
        ),
    };
}

fn port(out: &mut String, port: &Value) {
    let node_port = port["nodePort"].as_u64().map_or_else(String::new, |number| format!(", node port {number}"));
    let _ = writeln!(out, "    port {}/{}{node_port}", port["port"], text(&port["protocol"]));
    if let Some(held) = port["held"].as_u64().filter(|held| *held > 0) {
        let _ = writeln!(out, "      {held} wait for a pod");
    }
    let endpoints = port["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
    if endpoints.is_empty() {
        let _ = writeln!(out, "      no endpoint is ready");
    }
    for endpoint in endpoints {
        let state = match endpoint["leftOutMillis"].as_u64() {
            None => "ready".to_owned(),
            Some(left) => format!("left out for {:.1} s", left as f64 / 1e3),
        };
        let at = endpoint["node"].as_str().map_or_else(String::new, |node| format!(" on {node}"));
        let latency = endpoint["latencyMicros"].as_f64().unwrap_or_default() / 1e3;
        let (address, under_way) = (text(&endpoint["address"]), &endpoint["underWay"]);
        let _ = writeln!(out, "      {address}{at}: {state}, {under_way} under way, {latency:.2} ms");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_word_is_a_host_or_a_service() {
        let host = |host, path| RoutesOf::Host { host, path };
        let service = |name| RoutesOf::Service { namespace: "n", name };
        for (what, expected) in [
            ("app.example", host("app.example", "/")),
            ("app.example:8080/a/b", host("app.example", "/a/b")),
            ("https://app.example/x", host("app.example", "/x")),
            ("localhost/", host("localhost", "/")),
            ("web", service("web")),
            ("svc/web", service("web")),
        ] {
            assert_eq!(of(what, "n"), expected, "{what}");
        }
    }

    #[test]
    fn what_a_node_sees_is_readable() {
        let said = json!({
            "rule": {"from": "Ingress n/web", "namespace": "n", "secureOnly": true, "bodyBytesMax": 1024, "silenceSeconds": null,
                "backend": {"namespace": "n", "service": "web", "port": "80"}},
            "service": {"namespace": "n", "name": "web", "clusterIP": "10.96.0.7", "externalName": null, "scaledByDemand": false,
                "ports": [{"name": "", "port": 80, "protocol": "TCP", "nodePort": 30080, "held": 0, "endpoints": [
                    {"address": "10.244.0.5:8080", "node": "boat", "leftOutMillis": 1500, "underWay": 2, "latencyMicros": 250}]}]},
        });
        let expected = [
            "node boat",
            "  rule of Ingress n/web, redirected to TLS",
            "    at most 1024 bytes of a body",
            "    leads to port 80 of service n/web",
            "  service n/web at 10.96.0.7",
            "    port 80/TCP, node port 30080",
            "      10.244.0.5:8080 on boat: left out for 1.5 s, 2 under way, 0.25 ms",
            "",
        ];
        assert_eq!(shown("boat", &said), expected.join("\n"));
        assert_eq!(shown("other", &json!({"error": "it does not tell"})), "node other\n  it does not tell\n");
    }
}
