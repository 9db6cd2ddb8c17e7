//! Workloads that are scaled by what is asked of them, with a real component.

use std::time::{Duration, Instant};

use coracle_tests::{Cluster, WEB, http_get};

#[test]
fn a_deployment_goes_to_zero_and_the_next_request_waits_for_its_pod() {
    let cluster = Cluster::start();
    cluster.push("standin", "standin");
    cluster.apply(WEB);
    cluster.kubectl("rollout status deployment web --timeout=120s");
    cluster.kubectl("annotate deployment web autoscaling.coracle.dev/window=6s");
    let url = cluster.service_url("web");
    for round in 0..2 {
        // Nothing is asked of it.
        cluster.eventually("get deployment web", |text| text.contains("0/0"));
        cluster.eventually("get pods", |text| !text.contains("web-"));
        let begun = Instant::now();
        let answers: Vec<_> = (0..8)
            .map(|_| {
                std::thread::spawn({
                    let url = url.clone();
                    move || http_get(&url)
                })
            })
            .collect();
        for answer in answers {
            let answer = answer.join().expect("a client");
            assert_eq!(answer.map(|(status, _)| status), Some(200), "round {round}");
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        eprintln!("zero to eight answers: {:?}", begun.elapsed());
        cluster.eventually("get deployment web", |text| text.contains("1/1"));
    }
    let events = cluster.kubectl("get events --field-selector reason=SuccessfulRescale");
    assert!(events.contains("wait for a pod") && events.contains("nothing was asked for 6s"), "{events}");
    // Who asks no more for it is answered as everywhere.
    cluster.kubectl("annotate deployment web autoscaling.coracle.dev/window-");
    cluster.kubectl("scale deployment web --replicas=0");
    cluster.eventually("get pods", |text| !text.contains("web-"));
    cluster.eventually("get service web -o jsonpath={.metadata.annotations}", |text| !text.contains("activates"));
    let begun = Instant::now();
    while http_get(&url).map(|(status, _)| status) != Some(503) {
        assert!(begun.elapsed() < coracle_tests::DEADLINE, "it is held still");
        std::thread::sleep(Duration::from_millis(20));
    }
}
