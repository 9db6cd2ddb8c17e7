//! Services as people reach them: policies of traffic on two nodes, and load balancers.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Instant;

use coracle_tests::{Cluster, DEADLINE, WEB, free_port, http_get};

/// Waits until something holds; the last words of what did not are shown.
fn until(mut holds: impl FnMut() -> Result<(), String>) {
    let begun = Instant::now();
    while let Err(last) = holds() {
        assert!(begun.elapsed() < DEADLINE, "{last}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Who answers so many requests, and how else they end.
fn heard(url: &str) -> BTreeSet<String> {
    let ask = |_| match http_get(url) {
        Some((200, name)) => name.trim().to_owned(),
        Some((code, _)) => code.to_string(),
        None => "nothing".to_owned(),
    };
    (0..16).map(ask).collect()
}

/// Waits until exactly these answer.
fn answer(url: &str, expected: &BTreeSet<String>) {
    until(|| {
        let heard = heard(url);
        if heard == *expected { Ok(()) } else { Err(format!("{url}: {heard:?} and not {expected:?}")) }
    });
}

/// Names of pods with this label, on a node or on all.
fn pods(cluster: &Cluster, node: &str) -> BTreeSet<String> {
    let on = if node.is_empty() { String::new() } else { format!("--field-selector=spec.nodeName={node}") };
    let names = cluster.kubectl(&format!("get pods -l app=web {on} -o jsonpath={{.items[*].metadata.name}}"));
    names.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn local_traffic_stays_on_its_node() {
    let cluster = Cluster::start();
    let first = cluster.kubectl("get nodes -o jsonpath={.items[0].metadata.name}");
    let worker = cluster.join("worker");
    cluster.kubectl("wait --for=condition=Ready node/worker --timeout=60s");
    cluster.push("standin", "standin");
    cluster.push("probe", "probe");
    let web = WEB.replace("replicas: 2", "replicas: 4");
    let applied = cluster.kubectl_with(
        "apply",
        &web.replace(
            "type: NodePort",
            "type: NodePort\n  externalTrafficPolicy: Local\n  internalTrafficPolicy: Local",
        ),
    );
    let said = String::from_utf8_lossy(&applied.stderr).into_owned();
    assert!(applied.status.success() && !said.contains("Warning"), "{said}");
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    let (here, there) = (pods(&cluster, &first), pods(&cluster, "worker"));
    assert!(!here.is_empty() && !there.is_empty(), "{here:?} {there:?}");
    let port = cluster.node_port("web");
    let at = |address: Ipv4Addr| format!("http://{address}:{port}/hostname");
    answer(&at(cluster.node_port_address()), &here);
    answer(&at(worker.node_port_address()), &there);

    // From a guest of each node, over HTTP.
    let mut guests = Vec::new();
    for (name, node, own) in [("asks-here", first.as_str(), &here), ("asks-there", "worker", &there)] {
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  nodeName: {node}\n  containers:\n  - \
             {{name: main, image: probe, ports: [{{containerPort: 8080}}]}}\n"
        ));
        cluster.kubectl(&format!("wait --for=condition=Ready pod/{name} --timeout=60s"));
        cluster.kubectl(&format!("expose pod {name} --type=NodePort --port=8080"));
        let ask = format!("{}/get?http://web/hostname", cluster.service_url(name));
        answer(&ask, own);
        guests.push(ask);
    }

    // The worker has none any more: what comes in there, or is asked there, is refused, and not sent to the others.
    cluster.kubectl(
        "patch deployment web --type=merge -p {\"spec\":{\"template\":{\"spec\":{\"nodeName\":\"FIRST\"}}}}"
            .replace("FIRST", &first)
            .as_str(),
    );
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    answer(&at(worker.node_port_address()), &BTreeSet::from(["503".to_owned()]));
    // What the guest says of a call that failed.
    answer(&guests[1], &BTreeSet::from(["502".to_owned()]));
    // Both policies are Cluster again: all answer everywhere.
    let cluster_wide = "{\"spec\":{\"externalTrafficPolicy\":\"Cluster\",\"internalTrafficPolicy\":\"Cluster\"}}";
    cluster.kubectl(&format!("patch service web --type=merge -p {cluster_wide}"));
    let all = pods(&cluster, "");
    answer(&at(worker.node_port_address()), &all);
    answer(&guests[1], &all);
}

/// EXTERNAL-IP, as kubectl shows it.
fn external_ip(cluster: &Cluster, service: &str) -> String {
    let row = cluster.kubectl(&format!("get service {service} --no-headers"));
    row.split_whitespace().nth(3).unwrap_or_default().to_owned()
}

fn balancer(name: &str, port: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  type: LoadBalancer\n  selector: {{app: web}}\n  ports: [{{port: {port}, \
         targetPort: 8080}}]\n{more}"
    )
}

#[test]
fn nodes_are_the_balancers_of_services_of_type_load_balancer() {
    let cluster = Cluster::start();
    let first = cluster.kubectl("get nodes -o jsonpath={.items[0].metadata.name}");
    let worker = cluster.join("worker");
    cluster.kubectl("wait --for=condition=Ready node/worker --timeout=60s");
    cluster.push("standin", "standin");
    cluster.apply(WEB);
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    let port = free_port();
    cluster.apply(&balancer("lb", &port, "  allocateLoadBalancerNodePorts: false\n"));
    let own = cluster.node_port_address().to_string();
    let machines = [cluster.node_port_address(), worker.node_port_address()];
    let mut both = machines.map(|address| address.to_string());
    // As kubectl shows them: by their text.
    both.sort_unstable();
    let both = both.join(",");
    until(|| {
        let shown = external_ip(&cluster, "lb");
        if shown == both { Ok(()) } else { Err(format!("{shown} and not {both}")) }
    });
    assert!(!cluster.kubectl("get service lb -o jsonpath={.spec.ports[0]}").contains("nodePort"));
    let condition = "get service lb -o jsonpath={.status.conditions[0].type}={.status.conditions[0].status}";
    assert_eq!(cluster.kubectl(condition), "LoadBalancerPortsError=False");
    let all = pods(&cluster, "");
    for address in machines {
        answer(&format!("http://{address}:{port}/hostname"), &all);
    }

    // Another Service wants the port, and another program has one: no address is pending, and people are told why.
    cluster.apply(&balancer("late", &port, ""));
    until(|| match external_ip(&cluster, "late") {
        shown if shown == both => Ok(()),
        shown => Err(shown),
    });
    cluster.eventually("describe service late", |text| {
        text.contains(&format!("port {port}/TCP is that of service default/lb"))
    });
    let error = "get service late -o jsonpath={.status.loadBalancer.ingress[0].ports[0].error}";
    assert_eq!(cluster.kubectl(error), "coracle.dev/PortUnavailable");
    let held = std::net::TcpListener::bind("0.0.0.0:0").expect("a port");
    let taken = held.local_addr().expect("its address").port().to_string();
    cluster.apply(&balancer("taken", &taken, ""));
    let by = format!("it is that of process {}", std::process::id());
    cluster.eventually("describe service taken", |text| text.contains("PortUnavailable") && text.contains(&by));
    drop(held);
    until(|| match cluster.kubectl("get service taken -o jsonpath={.status.loadBalancer.ingress}") {
        point if point.contains(&own) && !point.contains("error") => Ok(()),
        point => Err(point),
    });
    answer(&format!("http://{own}:{taken}/hostname"), &all);

    // The first goes, the second gets its port.
    cluster.kubectl("delete service lb");
    until(|| match cluster.kubectl("get service late -o jsonpath={.status.loadBalancer.ingress}") {
        point if point.contains(&own) && !point.contains("error") => Ok(()),
        point => Err(point),
    });
    answer(&format!("http://{own}:{port}/hostname"), &all);

    // Of another class it is somebody else's; of another type it has no address.
    let other = free_port();
    cluster.apply(&balancer("other", &other, "  loadBalancerClass: example.com/own\n"));
    cluster.kubectl("patch service taken --type=merge -p {\"spec\":{\"type\":\"ClusterIP\"}}");
    until(|| match external_ip(&cluster, "taken") {
        shown if shown == "<none>" && http_get(&format!("http://{own}:{taken}/")).is_none() => Ok(()),
        shown => Err(shown),
    });
    cluster.eventually("get service taken -o jsonpath={.status}", |status| !status.contains("LoadBalancerPortsError"));
    assert_eq!(external_ip(&cluster, "other"), "<pending>");
    assert!(http_get(&format!("http://{own}:{other}/")).is_none());

    // Ranges keep others out, at the balancer's port alone.
    let patch = |range: &str| {
        cluster.kubectl(&format!(
            "patch service late --type=merge -p {{\"spec\":{{\"loadBalancerSourceRanges\":[\"{range}\"]}}}}"
        ));
    };
    patch("192.0.2.0/24");
    answer(&format!("http://{own}:{port}/hostname"), &BTreeSet::from(["nothing".to_owned()]));
    let node_port = cluster.node_port("late");
    answer(&format!("http://{own}:{node_port}/hostname"), &all);
    patch("127.0.0.0/8");
    answer(&format!("http://{own}:{port}/hostname"), &all);

    // Local: only the node with an endpoint is listed, and says that it is healthy.
    cluster.kubectl("scale deployment web --replicas=1");
    cluster.kubectl(&format!(
        "patch deployment web --type=merge -p {{\"spec\":{{\"template\":{{\"spec\":{{\"nodeName\":\"{first}\"}}}}}}}}"
    ));
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    cluster.kubectl("patch service late --type=merge -p {\"spec\":{\"externalTrafficPolicy\":\"Local\"}}");
    until(|| match external_ip(&cluster, "late") {
        shown if shown == own => Ok(()),
        shown => Err(shown),
    });
    let check = cluster.kubectl("get service late -o jsonpath={.spec.healthCheckNodePort}");
    for (address, code, count) in [(machines[0], 200, 1), (machines[1], 503, 0)] {
        until(|| match http_get(&format!("http://{address}:{check}/healthz")) {
            Some((found, body)) if found == code => {
                let body: serde_json::Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
                let expected = serde_json::json!({"service": {"namespace": "default", "name": "late"}, "localEndpoints": count,
                    "serviceProxyHealthy": true});
                if body == expected { Ok(()) } else { Err(body.to_string()) }
            }
            other => Err(format!("{address}: {other:?}")),
        });
    }
}
