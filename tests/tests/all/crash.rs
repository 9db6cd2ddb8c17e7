//! Killed at any moment, started again: nothing that was acknowledged is lost, and what ran runs again. A kill is no power cut:
//! what the kernel has in memory survives it. Power cuts are simulated in the keyspace (`control/keyspace/src/simulation/`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_sdk::Remote;
use coracle_tests::{Cluster, eventually_answers};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, PostParams};

#[test]
fn no_acknowledged_write_is_lost_when_it_is_killed() {
    let mut cluster = Cluster::start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut acknowledged: BTreeMap<String, ConfigMap> = BTreeMap::new();
    for round in 0..3 {
        let remote = runtime.block_on(Remote::connect(&cluster.kubeconfig())).expect("connect");
        let stop = AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            let (remote, stop, runtime) = (&remote, &stop, &runtime);
            let writers: Vec<_> = (0..4)
                .map(|writer| {
                    scope.spawn(move || {
                        let mut done = Vec::new();
                        for at in 0.. {
                            if stop.load(Ordering::Relaxed) {
                                break;
                            }
                            let name = format!("w{round}-{writer}-{at}");
                            match runtime.block_on(create(remote, &name)) {
                                Ok(object) => done.push((name, object)),
                                Err(_) => break,
                            }
                        }
                        done
                    })
                })
                .collect();
            // Some writes are in, others under way.
            while runtime.block_on(count(remote)).unwrap_or(0) < 40 * (round + 1) {
                std::thread::yield_now();
            }
            cluster.kill_and_restart();
            stop.store(true, Ordering::Relaxed);
            writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect::<Vec<_>>()
        });
        assert!(!written.is_empty());
        acknowledged.extend(written);
        let remote = runtime.block_on(Remote::connect(&cluster.kubeconfig())).expect("connect");
        let found = runtime.block_on(all(&remote));
        for (name, object) in &acknowledged {
            assert_eq!(found.get(name), Some(object), "{name} was acknowledged");
        }
    }
}

async fn create(remote: &Remote, name: &str) -> Result<ConfigMap, kube::Error> {
    let api: Api<ConfigMap> = Api::default_namespaced(remote.client().clone());
    let object = serde_json::from_value(serde_json::json!({
        "metadata": {"name": name, "labels": {"of": "crash"}},
        "data": {"content": name.repeat(40)},
    }))
    .expect("a ConfigMap");
    api.create(&PostParams::default(), &object).await
}

async fn count(remote: &Remote) -> Result<usize, kube::Error> {
    let api: Api<ConfigMap> = Api::default_namespaced(remote.client().clone());
    Ok(api.list(&ListParams::default().labels("of=crash")).await?.items.len())
}

async fn all(remote: &Remote) -> BTreeMap<String, ConfigMap> {
    let api: Api<ConfigMap> = Api::default_namespaced(remote.client().clone());
    let list = api.list(&ListParams::default().labels("of=crash")).await.expect("list");
    list.items.into_iter().map(|object| (object.metadata.name.clone().unwrap_or_default(), object)).collect()
}

#[test]
fn pods_run_again_after_a_kill_and_after_an_orderly_stop() {
    let mut cluster = Cluster::start();
    cluster.push("standin", "standin");
    cluster.kubectl("create deployment web --image=standin --replicas=2 --port=8080");
    cluster.kubectl("expose deployment web --type=NodePort");
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    let url = cluster.service_url("web");
    eventually_answers(&url);

    cluster.kill_and_restart();
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    eventually_answers(&url);

    assert_eq!(cluster.terminate(), Some(0), "SIGTERM drains and exits 0");
    cluster.restart();
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    eventually_answers(&url);
    assert_eq!(cluster.kubectl("get pods -o name").lines().count(), 2, "the same pods, not more");
}
