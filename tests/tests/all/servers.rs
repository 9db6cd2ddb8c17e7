//! Three servers and a node, each a process of its own: what was acknowledged outlives any of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use coracle_sdk::Remote;
use coracle_tests::{Cluster, DEADLINE};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;

/// Waits until this server sees so many voters.
pub fn voters(server: &Cluster, count: usize) {
    server.eventually("get --raw /coracle/v1/members", |text| text.matches("\"role\":\"voter\"").count() == count);
}

pub async fn create(server: &Remote, name: &str) -> Result<(), kube::Error> {
    let api: Api<ConfigMap> = Api::default_namespaced(server.client().clone());
    let object = serde_json::json!({"metadata": {"name": name, "labels": {"of": "servers"}}, "data": {"name": name}});
    let object = serde_json::from_value(object).expect("a ConfigMap");
    api.create(&PostParams::default(), &object).await.map(drop)
}

/// The objects that were created, as this server lists them.
pub fn created(server: &Cluster) -> BTreeSet<String> {
    let listed = server.kubectl("get configmaps -l of=servers -o name");
    listed.lines().filter_map(|line| line.strip_prefix("configmap/")).map(str::to_owned).collect()
}

#[test]
fn three_servers_lose_nothing_and_each_can_be_replaced() {
    let mut first = Cluster::server("one");
    // Who does not belong is not let in, and told why.
    let (url, token) = first.token(&[]);
    let join = ["server", "--bind", "127.0.0.1", "--name", "two", "--join", &url, "--token", &token];
    let said = Cluster::launched(&join).err().expect("a node's token admits no server");
    assert!(said.contains("this token is for nodes"), "{said}");
    let (_, token) = first.token(&["--server"]);
    let join = |name: &'static str, peer: &'static str| {
        let words = [
            "server",
            "--bind",
            "127.0.0.1",
            "--name",
            name,
            "--join",
            &url,
            "--token",
            &token,
            "--peer-address",
            peer,
        ];
        Cluster::launched(&words).err().expect("it is not admitted")
    };
    assert!(join("one", "127.0.0.1").contains("there is a server one already"));
    let said = join("two", "127.0.0.1:1");
    assert!(said.contains("cannot reach the new one at 127.0.0.1:1"), "{said}");

    let (second, mut third) = (first.join_server("two"), first.join_server("three"));
    voters(&third, 3);
    let worker = second.join("worker");
    second.push("standin", "standin");
    second.kubectl("config get-contexts coracle-three -o name");

    // The first leads. It is killed while others write through the two that are left.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let remotes =
        [&second, &third].map(|server| runtime.block_on(Remote::connect(&server.kubeconfig())).expect("connect"));
    let (mut acknowledged, mut killed) = (BTreeSet::new(), None);
    let begun = Instant::now();
    for at in 0.. {
        let name = format!("c{at}");
        if runtime.block_on(create(&remotes[at % 2], &name)).is_ok() {
            acknowledged.insert(name);
            match killed {
                None if acknowledged.len() >= 40 => {
                    first.kill();
                    killed = Some(Instant::now());
                }
                Some(killed) if acknowledged.len() == 41 => {
                    println!("leader killed, next write after {:?}", killed.elapsed())
                }
                _ => {}
            }
        }
        if acknowledged.len() >= 80 {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "{} writes were acknowledged", acknowledged.len());
    }
    for server in [&second, &third] {
        assert!(acknowledged.is_subset(&created(server)), "an acknowledged write is lost");
    }
    third.kubectl("create deployment web --image=standin --replicas=2");
    third.kubectl("rollout status deployment/web --timeout=120s");

    // It comes back, and has what it missed.
    first.restart();
    voters(&first, 3);
    assert!(acknowledged.is_subset(&created(&first)));

    // One is removed, ends by itself, and says why when it is started again. An empty one takes its place.
    // The leader hears of the one that came back a moment later; until then it takes no other away.
    let begun = Instant::now();
    loop {
        let removed = first.coracle(&["member", "remove", "three"]);
        let said = String::from_utf8_lossy(&removed.stderr);
        if removed.status.success() {
            break;
        }
        assert!(said.contains("cannot be reached") && begun.elapsed() < DEADLINE, "{said}");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(third.ended(), Some(1), "{}", third.log());
    assert!(third.log().contains("was removed from this cluster"), "{}", third.log());
    let said = third.restart_fails();
    assert!(said.matches("coracle reset").count() >= 2, "{said}");
    let third = first.join_server("three");
    voters(&third, 3);
    assert!(acknowledged.is_subset(&created(&third)));
    let status = third.coracle(&["status"]);
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(said.contains("leader") && said.contains("two") && !said.contains("to do:"), "{said}");
    drop(worker);
}

#[test]
fn servers_that_all_begin_anew_at_once_find_each_other() {
    let first = Cluster::server("one");
    let mut all = [first.join_server("two"), first.join_server("three"), first];
    all.iter().for_each(|server| voters(server, 3));
    all[2].kubectl("create configmap kept --from-literal=a=b");
    all.iter_mut().for_each(Cluster::kill);
    all.iter_mut().for_each(Cluster::begin_restart);
    for server in &all {
        server.eventually("get configmap kept -o jsonpath={.data.a}", |data| data == "b");
    }
    all[0].kubectl("delete configmap kept");
}
