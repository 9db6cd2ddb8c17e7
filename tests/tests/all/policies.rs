//! NetworkPolicies of two machines: what is allowed goes through and what is not does not, whichever way it comes, and a change is
//! felt by who is at it.

use std::time::Instant;

use coracle_tests::{Background, Cluster, DEADLINE, eventually_answers, http_get};

fn pod(name: &str, node: &str, labels: &str, main: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{name: {name}, {labels}}}}}\nspec:\n  nodeName: {node}\n  \
         restartPolicy: Never\n  terminationGracePeriodSeconds: 1\n  containers:\n  - {{name: main, {main}}}\n---\n"
    )
}

fn policy(name: &str, spec: &str) -> String {
    format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

/// Asks until the answer has this status; then a second time, which has it too.
fn becomes(url: &str, status: u16) {
    let begun = Instant::now();
    loop {
        let found = http_get(url).map(|(code, _)| code);
        if found == Some(status) {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "{url}: {found:?} is not {status}");
    }
    assert_eq!(http_get(url).map(|(code, _)| code), Some(status), "{url}");
}

#[test]
fn policies_hold_on_both_machines_in_both_directions_and_change_at_once() {
    let cluster = Cluster::start();
    let first = cluster.kubectl("get nodes -o jsonpath={.items[0].metadata.name}");
    let _worker = cluster.join("worker");
    cluster.kubectl("wait --for=condition=Ready node/worker --timeout=60s");
    for image in ["standin", "probe", "probe-command"] {
        cluster.push(image, image);
    }
    let places = [("here", first.as_str()), ("there", "worker")];
    let mut all = String::new();
    for (place, node) in places {
        let http = "ports: [{containerPort: 8080}], readinessProbe: {httpGet: {path: /, port: 8080}}";
        all += &pod(&format!("db-{place}"), node, "app: db", &format!("image: standin, {http}"));
        for role in ["friend", "stranger"] {
            all += &pod(
                &format!("{role}-{place}"),
                node,
                &format!("role: {role}"),
                "image: probe, ports: [{containerPort: 8080}]",
            );
        }
        let listens = "image: probe-command, args: [listen, \"9000\"], readinessProbe: {tcpSocket: {port: 9000}}";
        all += &pod(&format!("sql-{place}"), node, "app: sql", listens);
    }
    cluster.apply(&all);
    cluster.kubectl("wait --for=condition=Ready pod --all --timeout=120s");
    let url = |name: &str| {
        cluster.kubectl(&format!("expose pod {name} --type=NodePort --port=80 --target-port=8080"));
        cluster.service_url(name)
    };
    let urls: Vec<String> = places.iter().map(|(place, _)| url(&format!("db-{place}"))).collect();
    // What one pod is answered by another, over HTTP.
    let mut asks = Vec::new();
    for role in ["friend", "stranger"] {
        for (from, _) in places {
            let own = url(&format!("{role}-{from}"));
            for (to, _) in places {
                asks.push((role, from, to, format!("{own}/get?http://db-{to}/hostname")));
            }
        }
    }
    asks.iter().for_each(|(.., url)| becomes(url, 200));

    // Both are shut but for friends.
    cluster.apply(&policy(
        "db",
        "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]}",
    ));
    for (role, .., url) in &asks {
        becomes(url, if *role == "friend" { 200 } else { 502 });
    }
    urls.iter().for_each(|url| becomes(&format!("{url}/hostname"), 403));
    // Not for a person who has the right, and not for probes.
    for (place, _) in places {
        let proxied =
            cluster.kubectl(&format!("get --raw /api/v1/namespaces/default/pods/db-{place}:8080/proxy/hostname"));
        assert_eq!(proxied.trim(), format!("db-{place}"));
        let forward = Background::start(cluster.kubectl_command(&format!("port-forward pod/db-{place} :8080")));
        let line = forward.line(|line| line.starts_with("Forwarding from 127.0.0.1:"));
        let local = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).expect("a port");
        eventually_answers(&format!("http://127.0.0.1:{local}/hostname"));
    }
    let rows = cluster.kubectl("get netpol --no-headers");
    assert!(rows.starts_with("db ") && rows.contains("app=db"), "{rows}");

    // Friends may go to one of the two only.
    let out = "{podSelector: {matchLabels: {role: friend}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {place: there}}}]}]}";
    cluster.apply(&policy("friends", out));
    asks.iter().filter(|(role, ..)| *role == "friend").for_each(|(.., url)| becomes(url, 502));
    // A label is all that it takes.
    cluster.kubectl("label pod db-there place=there");
    for (_, _, to, url) in asks.iter().filter(|(role, ..)| *role == "friend") {
        becomes(url, if *to == "there" { 200 } else { 502 });
    }
    cluster.kubectl("delete netpol --all");
    asks.iter().for_each(|(.., url)| becomes(url, 200));
    urls.iter().for_each(|url| becomes(&format!("{url}/hostname"), 200));

    // Sockets: a guest that listens, from both machines.
    cluster.apply(&policy("sql", "{podSelector: {matchLabels: {app: sql}}, ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}], ports: [{port: 9000}]}]}"));
    cluster.apply(&policy("shut", "{podSelector: {matchLabels: {app: db}}}"));
    // Who is shut by the newer one knows the older one, too.
    asks.iter().for_each(|(.., url)| becomes(url, 502));
    for (to, _) in places {
        let address = cluster.kubectl(&format!("get pod sql-{to} -o jsonpath={{.status.podIP}}"));
        for (from, node) in places {
            for (role, phase) in [("friend", "Succeeded"), ("stranger", "Failed")] {
                let name = format!("{role}-{from}-to-{to}");
                let main = format!("image: probe-command, args: [send, \"{address}:9000\", hello]");
                cluster.apply(&pod(&name, node, &format!("role: {role}"), &main));
                let over = |phase: &str| ["Succeeded", "Failed"].contains(&phase);
                let found = cluster.eventually(&format!("get pod {name} -o jsonpath={{.status.phase}}"), over);
                let log = cluster.kubectl(&format!("logs {name}"));
                assert_eq!(found, phase, "{name}: {log}");
                assert_eq!(log.contains("HELLO"), phase == "Succeeded", "{name}: {log}");
            }
        }
    }
    cluster.eventually("get events --field-selector reason=PolicyDenied -o name", |events| !events.is_empty());
}
