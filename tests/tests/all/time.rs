//! Time may jump: a process that was stopped for a minute, or slept with its machine, is as good as new within ten seconds.

use std::time::{Duration, Instant};

use coracle_tests::{Cluster, eventually_answers, http_get, root};

/// Longer than a Lease is good for, and than the controllers wait before they give a node up.
const STOPPED: Duration = Duration::from_secs(60);
const BACK_WITHIN: Duration = Duration::from_secs(10);

#[test]
fn a_cluster_that_was_stopped_for_a_minute_comes_back_by_itself() {
    let cluster = Cluster::start();
    cluster.push("standin", "myregistry/fastapi-app:latest");
    cluster.kubectl(&format!("apply -f {}", root().join("examples/manifests/fastapi-app.yaml").display()));
    cluster.kubectl("rollout status deployment/fastapi-app --timeout=120s");
    let url = cluster.service_url("fastapi-app");
    eventually_answers(&url);

    cluster.signal("STOP");
    std::thread::sleep(STOPPED);
    cluster.signal("CONT");
    let begun = Instant::now();
    let mut last = String::new();
    let mut good_since: Option<Instant> = None;
    // Ready, and still ready when the controllers have had their say about the minute.
    loop {
        let node = cluster.kubectl(
            "get nodes -o jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}/{.items[*].spec.taints[*].key}",
        );
        let available = cluster.kubectl("get deployment fastapi-app -o jsonpath={.status.availableReplicas}");
        let ready = cluster.kubectl(
            "get pods -l app=fastapi-app -o jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}",
        );
        let answer = http_get(&url).map(|(status, _)| status);
        let seen = format!("node {node}, available {available}, pods {ready}, answer {answer:?}");
        let is_good = node == "True/" && available == "3" && ready == "True True True" && answer == Some(200);
        match (is_good, good_since) {
            (true, None) => good_since = Some(Instant::now()),
            (true, Some(since)) if since.elapsed() > Duration::from_secs(15) => break,
            (true, Some(_)) => {}
            (false, _) => good_since = None,
        }
        if seen != last {
            println!("{:?}: {seen}", begun.elapsed());
            last = seen;
        }
        let lost = good_since.map_or(begun.elapsed(), |since| since - begun);
        assert!(lost < BACK_WITHIN, "after {lost:?}: {last}\nlog:\n{}", cluster.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}
