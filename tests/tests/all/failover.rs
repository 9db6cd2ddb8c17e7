//! A server is lost, and then a majority of them: nodes and commands go to another, and the one that is left goes on alone.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_sdk::Remote;
use coracle_tests::{Cluster, DEADLINE, Worker, free_port, kubectl, output};

use crate::servers::{create, created, voters};

/// Waits until `holds`; `last` says what was seen last.
fn until<T>(what: &str, mut look: impl FnMut() -> T, holds: impl Fn(&T) -> bool) -> T
where
    T: std::fmt::Debug,
{
    let begun = Instant::now();
    loop {
        let seen = look();
        if holds(&seen) {
            return seen;
        }
        assert!(begun.elapsed() < DEADLINE, "{what}: still {seen:#?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The servers that a node knows.
fn known(worker: &Worker) -> BTreeSet<String> {
    let text = std::fs::read(worker.data_dir().join("servers.json")).unwrap_or_default();
    let kept: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let servers = kept["servers"].as_array().into_iter().flatten();
    servers.filter_map(|server| server.as_str().map(str::to_owned)).collect()
}

/// The pods of `web`: since when each has been ready, and how often it was started again.
fn ready_since(server: &Cluster) -> BTreeMap<String, String> {
    let path = "{range .items[*]}{.metadata.name} {.status.conditions[?(@.type=='Ready')].lastTransitionTime} \
                {.status.containerStatuses[0].restartCount}{'\\n'}{end}";
    let mut command = server.kubectl_command("get pods -l app=web -o");
    let listed = output(command.arg(format!("jsonpath={path}")));
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    text.lines().filter_map(|line| line.split_once(' ')).map(|(name, since)| (name.into(), since.into())).collect()
}

/// Scales `web` through `server`, and waits until all are ready; how long it took.
fn scale(server: &Cluster, replicas: usize) -> Duration {
    let begun = Instant::now();
    // While no server leads it is refused with a word to try again.
    server.eventually(&format!("scale deployment web --replicas={replicas}"), |text| text.contains("scaled"));
    let ready = replicas.to_string();
    server.eventually("get deployment web -o jsonpath={.status.readyReplicas}", |text| text == ready);
    begun.elapsed()
}

#[test]
fn nodes_and_commands_go_to_another_server_when_theirs_is_killed() {
    let mut first = Cluster::server("one");
    let (second, third) = (first.join_server("two"), first.join_server("three"));
    voters(&third, 3);
    let mut worker = first.join("worker");
    second.push("standin", "standin");
    second.kubectl("create deployment web --image=standin --replicas=2");
    second.kubectl("rollout status deployment/web --timeout=120s");
    until("the node knows three servers", || known(&worker), |known| known.len() == 3);
    first.eventually("config get-contexts -o name", |text| {
        text.contains("coracle-two") && text.contains("coracle-three")
    });
    let before = ready_since(&third);
    assert_eq!(before.len(), 2);

    // The server through which the node joined, and which leads, is gone.
    first.kill();
    let took = scale(&third, 3);
    println!("server killed, one more pod ready through another after {took:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    let after = ready_since(&third);
    for (pod, since) in &before {
        assert_eq!(after.get(pod), Some(since), "{pod} was ready all the time, and is");
    }
    let said = worker.log();
    // Its watch broke off, or what it asked next was refused, whichever came first.
    assert!(said.contains("does not answer (") && said.contains("); asking https://"), "{said}");

    // A command that knows the dead server first says whom it asks instead, once.
    let asked = first.coracle(&["status"]);
    let (out, said) = (String::from_utf8_lossy(&asked.stdout), String::from_utf8_lossy(&asked.stderr));
    assert!(asked.status.success() && out.contains("pods        3/3 ready"), "{out}{said}");
    assert!(said.matches("note: server https://").count() == 1 && said.contains("asking https://"), "{said}");

    // The node starts again while the server that it has joined is still gone.
    worker.terminate();
    worker.start(&[]);
    scale(&second, 4);

    // It comes back at another port, and the node hears of it.
    let gone = known(&worker);
    first.restart();
    until("the node knows where the first is now", || known(&worker), |known| *known != gone && known.len() == 3);
}

#[test]
fn the_server_that_is_left_of_three_says_so_and_goes_on_alone_when_told() {
    let ports: Vec<String> = (0..4).map(|_| free_port()).collect();
    let mut first = Cluster::server_with("one", &["--peer-port", &ports[0]]);
    let mut second = first.join_server_with("two", &["--peer-port", &ports[1]]);
    let mut third = first.join_server_with("three", &["--peer-port", &ports[2], "--api-port", &ports[3]]);
    voters(&third, 3);
    let worker = first.join("worker");
    third.push("standin", "standin");
    third.kubectl("create deployment web --image=standin --replicas=2");
    third.kubectl("rollout status deployment/web --timeout=120s");
    until("the node knows three servers", || known(&worker), |known| known.len() == 3);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let remotes =
        [&first, &second].map(|server| runtime.block_on(Remote::connect(&server.kubeconfig())).expect("connect"));
    let mut acknowledged = BTreeSet::new();
    for at in 0..30 {
        let name = format!("c{at}");
        runtime.block_on(create(&remotes[at % 2], &name)).expect("it is acknowledged");
        acknowledged.insert(name);
    }
    assert!(acknowledged.is_subset(&created(&third)));

    // Two are gone. The third says which, since when, and what to do; also after it was started again.
    first.kill();
    second.kill();
    let recover = format!("`coracle recover --data-dir {}`", third.data_dir().display());
    let says_all = |third: &Cluster| {
        let status = third.coracle(&["status"]);
        let (out, said) = (String::from_utf8_lossy(&status.stdout), String::from_utf8_lossy(&status.stderr));
        format!("{out}{said}")
    };
    let is_whole = |said: &String| {
        ["a majority of the 3 servers is missing", "one (1) at", "two (2) at", " for ", &recover, "unknown without"]
            .iter()
            .all(|part| said.contains(part))
    };
    until("it says what is wrong", || says_all(&third), is_whole);
    let refused = third.coracle(&["recover", "--yes"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("in use by another process"), "{said}");
    third.kill();
    third.begin_restart();
    until("it says so while it waits", || says_all(&third), is_whole);
    let said = third.kubectl_fails("get nodes");
    assert!(said.contains("waits for a majority of the servers"), "{said}");
    // Who shows no credentials is told nothing.
    let url = format!("https://127.0.0.1:{}", ports[3]);
    let words = [
        "--kubeconfig",
        "/dev/null",
        "--server",
        &url,
        "--insecure-skip-tls-verify",
        "--token=nobody",
        "get",
        "--raw",
        "/coracle/v1/status",
    ];
    let stranger = output(Command::new(kubectl()).args(words).stdin(Stdio::null()));
    let said = String::from_utf8_lossy(&stranger.stderr) + String::from_utf8_lossy(&stranger.stdout);
    assert!(said.contains("waits for a majority") && !said.contains("dataDir"), "{said}");
    assert_eq!(third.terminate(), Some(0));

    // It goes on alone with everything, and only when somebody said yes.
    let mut asked = Command::new(coracle_tests::coracle());
    asked.args(["recover", "--data-dir"]).arg(third.data_dir()).stdin(Stdio::null());
    let said = String::from_utf8_lossy(&output(&mut asked).stderr).into_owned();
    assert!(said.contains("nothing was changed"), "{said}");
    let recovered = third.coracle(&["recover", "--yes"]);
    let said = String::from_utf8_lossy(&recovered.stderr);
    assert!(recovered.status.success() && said.contains("one (1) at") && said.contains("two (2) at"), "{said}");
    assert!(said.contains("is lost"), "{said}");
    third.restart();
    assert!(acknowledged.is_subset(&created(&third)), "an acknowledged write is lost");
    voters(&third, 1);
    // The node comes to it by itself, and its pods are those of before.
    scale(&third, 3);
    let said = says_all(&third);
    assert!(!said.contains("to do:"), "{said}");

    // The lost ones are strangers, and are told what to do. New ones join.
    for lost in [&mut first, &mut second] {
        let said = lost.restart_fails();
        assert!(said.contains("was removed from this cluster") && said.contains("coracle reset"), "{said}");
    }
    let one = third.join_server("one");
    let two = third.join_server("two");
    voters(&one, 3);
    assert!(acknowledged.is_subset(&created(&two)));
    let again = third.coracle(&["recover", "--yes"]);
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(!again.status.success() && said.contains("is there from an earlier recovery"), "{said}");
}
