//! More than one machine: nodes join over the network, and a pod is reached the same way wherever it runs. The machines are
//! processes on loopback, with a directory and ports of their own.

use std::collections::BTreeSet;
use std::time::Instant;

use coracle_tests::{Background, Cluster, DEADLINE, WEB, eventually_answers, http_get, output};

/// A command of the example `probe-command` on a node.
fn command(name: &str, node: &str, restart: &str, arguments: &[&str]) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  nodeName: {node}\n  \
         restartPolicy: {restart}\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    \
         image: probe-command\n    args: {arguments:?}\n"
    )
}

/// The pods of the Deployment, by node.
fn placed(cluster: &Cluster) -> Vec<(String, String)> {
    let fields =
        "jsonpath={range .items[*]}{.metadata.name},{.spec.nodeName},{.metadata.deletionTimestamp}{\"\\n\"}{end}";
    let mut command = cluster.kubectl_command("get pods -l app=web -o");
    let text = String::from_utf8(output(command.arg(fields)).stdout).expect("text");
    let fields = |line: &str| line.splitn(3, ',').map(str::to_owned).collect::<Vec<_>>();
    let rows = text.lines().map(fields).filter(|row| row.len() == 3 && row[2].is_empty());
    rows.map(|row| (row[0].clone(), row[1].clone())).collect()
}

/// Asks until each of these pods has answered, and nobody else. From the first answer on, every request has one: a port may be
/// opened a moment after its node is ready.
fn all_answer(url: &str, expected: &BTreeSet<String>) {
    let (begun, mut seen) = (Instant::now(), BTreeSet::new());
    while &seen != expected {
        assert!(begun.elapsed() < DEADLINE, "{url}: of {expected:?} only {seen:?} have answered");
        match http_get(&format!("{url}hostname")) {
            Some((200, name)) => drop(seen.insert(name.trim().to_owned())),
            other => assert!(seen.is_empty(), "{url}: {other:?} after {seen:?}"),
        }
        assert!(seen.is_subset(expected), "{url}: {seen:?} are not all of {expected:?}");
    }
}

#[test]
fn a_second_machine_takes_its_share_and_is_reached_like_the_first() {
    let cluster = Cluster::start();
    let first = cluster.kubectl("get nodes -o jsonpath={.items[0].metadata.name}");
    let mut worker = cluster.join("worker");
    cluster.kubectl("wait --for=condition=Ready node/worker --timeout=60s");
    cluster.push("standin", "standin");
    cluster.push("probe-command", "probe-command");
    cluster.apply(&WEB.replace("replicas: 2", "replicas: 4"));
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    let pods = placed(&cluster);
    let on = |node: &str| pods.iter().filter(|(_, at)| at == node).count();
    assert_eq!((on(&first), on("worker")), (2, 2), "{pods:?}");

    // A Service answers from the pods of both, at a port of either.
    let names: BTreeSet<String> = pods.iter().map(|(name, _)| name.clone()).collect();
    let port = cluster.node_port("web");
    for address in [cluster.node_port_address(), worker.node_port_address()] {
        all_answer(&format!("http://{address}:{port}/"), &names);
    }

    // What kubectl does with a pod, on the second machine.
    let (theirs, _) = pods.iter().find(|(_, node)| node == "worker").expect("a pod of the worker");
    let forward = Background::start(cluster.kubectl_command(&format!("port-forward pod/{theirs} :8080")));
    let line = forward.line(|line| line.starts_with("Forwarding from 127.0.0.1:"));
    let local = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).expect("a port");
    assert_eq!(eventually_answers(&format!("http://127.0.0.1:{local}/hostname")).trim(), theirs);
    let proxied = cluster.kubectl(&format!("get --raw /api/v1/namespaces/default/pods/{theirs}:8080/proxy/hostname"));
    assert_eq!(proxied.trim(), theirs);
    let refused = cluster.kubectl_fails(&format!("exec {theirs} -- ls"));
    assert!(refused.contains("which answers requests and runs no commands"), "{refused}");
    cluster.apply(&command("ticker", "worker", "Always", &["tick", "100"]));
    cluster.kubectl("wait --for=condition=Ready pod/ticker --timeout=60s");
    Background::start(cluster.kubectl_command("logs -f ticker")).line(|line| line == "tick 5");
    Background::start(cluster.kubectl_command("attach ticker")).line(|line| line.starts_with("tick "));
    assert_eq!(cluster.kubectl("exec ticker -- probe echo inside"), "inside\n");
    let figures = cluster.kubectl("get --raw /api/v1/nodes/worker/proxy/stats/summary");
    assert!(figures.contains("\"ticker\""), "{figures}");

    // From a guest to a Service, over HTTP: pods of both machines answer the guests of both.
    cluster.push("probe", "probe");
    for (caller, at) in [("here", first.as_str()), ("there", "worker")] {
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {caller}, labels: {{app: {caller}}}}}\nspec:\n  nodeName: {at}\n  containers:\n  - {{name: main, \
             image: probe, ports: [{{containerPort: 8080}}]}}\n"
        ));
        cluster.kubectl(&format!("wait --for=condition=Ready pod/{caller} --timeout=60s"));
        cluster.kubectl(&format!("expose pod {caller} --type=NodePort --port=8080"));
        let ask = format!("{}/get?http://web/hostname", cluster.service_url(caller));
        let (begun, mut seen) = (Instant::now(), BTreeSet::new());
        while seen != names {
            assert!(begun.elapsed() < DEADLINE, "{caller}: of {names:?} only {seen:?} have answered");
            seen.extend(http_get(&ask).filter(|(code, _)| *code == 200).map(|(_, name)| name.trim().to_owned()));
        }
    }

    // From guest to guest, over TCP, both ways, by name and by the pod's own address.
    for (server, at, from) in [("east", first.as_str(), "worker"), ("west", "worker", first.as_str())] {
        cluster.apply(&command(server, at, "Always", &["listen", "9000"]));
        cluster.kubectl(&format!("expose pod {server} --port=9000"));
        cluster.kubectl(&format!("wait --for=condition=Ready pod/{server} --timeout=60s"));
        let own = cluster.kubectl(&format!("get pod {server} -o jsonpath={{.status.podIP}}"));
        let service = cluster.kubectl(&format!("get service {server} -o jsonpath={{.spec.clusterIP}}"));
        // Whoever asks a Service of another node's pod has that for its peer.
        let ways = [(format!("{server}:9000"), &service), (format!("{own}:9000"), &own)];
        for (index, (address, peer)) in ways.iter().enumerate() {
            let caller = format!("to-{server}-{index}");
            cluster.apply(&command(&caller, from, "OnFailure", &["send", address, "over the link"]));
            cluster
                .eventually(&format!("get pod {caller} -o jsonpath={{.status.phase}}"), |phase| phase == "Succeeded");
            let log = cluster.kubectl(&format!("logs {caller}"));
            assert!(log.contains("OVER THE LINK") && log.contains(&format!(" to {peer}")), "{log}");
        }
    }

    // The machine dies: Services stop sending there, and its pods are replaced on the other.
    worker.kill();
    let killed = Instant::now();
    let ready = "jsonpath={range .items[*].endpoints[?(@.conditions.ready==true)]}{.nodeName}{\"\\n\"}{end}";
    loop {
        let mut command = cluster.kubectl_command("get endpointslices -l kubernetes.io/service-name=web -o");
        let nodes = String::from_utf8(output(command.arg(ready)).stdout).expect("text");
        if !nodes.is_empty() && nodes.lines().all(|node| node == first) {
            break;
        }
        assert!(killed.elapsed() < DEADLINE, "endpoints of the dead node stay: {nodes}");
    }
    let gone = killed.elapsed();
    assert!(cluster.kubectl("get node worker").contains("NotReady"));
    let replaced = loop {
        let now = placed(&cluster);
        if now.len() == 4 && now.iter().all(|(_, node)| *node == first) {
            break now;
        }
        assert!(killed.elapsed() < DEADLINE, "the pods are not replaced: {now:?}");
    };
    cluster.eventually("get deployment web -o jsonpath={.status.readyReplicas}", |ready| ready == "4");
    println!("node killed: endpoints gone after {gone:.1?}, pods ready elsewhere after {:.1?}", killed.elapsed());
    let names: BTreeSet<String> = replaced.iter().map(|(name, _)| name.clone()).collect();
    all_answer(&format!("http://{}:{port}/", cluster.node_port_address()), &names);

    // It comes back without a token, and ends what was replaced: nobody hears of those pods again.
    worker.start(&[]);
    cluster.kubectl("wait --for=condition=Ready node/worker --timeout=60s");
    cluster.eventually("get pods -l app=web -o name", |pods| {
        pods.lines().filter_map(|line| line.strip_prefix("pod/")).collect::<BTreeSet<_>>()
            == names.iter().map(String::as_str).collect()
    });
    all_answer(&format!("http://{}:{port}/", worker.node_port_address()), &names);
    assert_eq!(worker.terminate(), Some(0), "SIGTERM drains and exits 0\n{}", worker.log());
    drop(forward);
}

#[test]
fn who_does_not_belong_does_not_join_and_leaves_nothing_behind() {
    let (cluster, other) = (Cluster::start(), Cluster::start());
    let line = |cluster: &Cluster, arguments: &[&str]| {
        let made = cluster.coracle(arguments);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8(made.stdout).expect("text").trim().to_owned()
    };
    let words = |line: &str| -> (String, String) {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(
            (words[..3].join(" ").as_str(), words[4], words.len()),
            ("coracle node --join", "--token", 6),
            "{line}"
        );
        (words[3].to_owned(), words[5].to_owned())
    };
    let (server, token) = words(&line(&cluster, &["token", "create"]));
    let (_, foreign) = words(&line(&other, &["token", "create"]));
    let (_, short) = words(&line(&cluster, &["token", "create", "--ttl", "1s"]));
    let (_, deleted) = words(&line(&cluster, &["token", "create"]));
    line(&cluster, &["token", "delete", deleted.split('.').nth(1).expect("an id")]);
    let secrets = cluster.kubectl("-n kube-system get secrets -o yaml");
    for made in [&token, &short] {
        let secret = made.split('.').nth(2).expect("a secret");
        assert!(!secrets.contains(secret) && !cluster.log().contains(secret), "the secret is kept nowhere");
    }
    let wrong = token.replacen(token.split('.').nth(2).expect("a secret"), &"0".repeat(32), 1);
    let listed = line(&cluster, &["token", "list"]);
    assert!(listed.contains(token.split('.').nth(1).expect("an id")) && !listed.contains(&token), "{listed}");
    let first = cluster.kubectl("get nodes -o jsonpath={.items[0].metadata.name}");

    let temp = tempfile::tempdir().expect("a temporary directory");
    let dir = temp.path().join("node");
    let join = |token: &str, name: &str| {
        let mut command = std::process::Command::new(coracle_tests::coracle());
        command
            .args(["node", "--port", "0", "--join", &server, "--token", token, "--name", name, "--data-dir"])
            .arg(&dir);
        let output = output(&mut command);
        assert!(!dir.exists(), "{name} left something behind");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let begun = Instant::now();
    while !line(&cluster, &["token", "list"]).contains("(over)") {
        assert!(begun.elapsed() < DEADLINE);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    for (token, name, expected) in [
        ("rubbish", "worker", "not a whole token"),
        (&wrong, "worker", "not one of this cluster's"),
        (&deleted, "worker", "not one of this cluster's"),
        (&short, "worker", "the token ended at 20"),
        (&foreign, "worker", "not of the cluster that the token was made for"),
        (&token, first.as_str(), "belongs to a server itself"),
        (&token, "kubernetes.default.svc", "belongs to a server itself"),
        (&token, "10.96.0.1", "no name for a machine"),
        (&token, "No_Name", "no name for a machine"),
    ] {
        let (code, text) = join(token, name);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(expected), "{name}: {text}");
        assert!(!text.contains(token.split('.').nth(2).unwrap_or("rubbish-secret")), "no secret in a message: {text}");
    }
    assert_eq!(cluster.kubectl("get nodes -o name").lines().count(), 1, "nobody has come");

    // A name that a live node has is not given again; its own machine comes back as it likes.
    let mut worker = cluster.join("worker");
    let (code, text) = join(&token, "worker");
    assert!(code == Some(1) && text.contains("there is a node worker that is alive"), "{text}");
    assert_eq!(worker.terminate(), Some(0));
    worker.start(&[]);
    cluster.kubectl("wait --for=condition=Ready node/worker --timeout=60s");
}
