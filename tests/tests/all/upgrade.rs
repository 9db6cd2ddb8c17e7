//! From one version to another: servers and nodes begin anew, one after the other, and whoever asks one server alone, as kubectl does,
//! notices nothing.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coracle_sdk::Remote;
use coracle_tests::{Cluster, WEB, eventually_answers, http_get};
use k8s_openapi::api::core::v1::ConfigMap;

use crate::servers::{create, created, voters};

/// A program that says that it is another version, and is the one that there was.
const NEXT: &str = "#!/bin/sh
[ \"$1\" = version ] && { echo '{\"version\": \"9.9.9\", \"formats\": {\"oldest\": 1, \"newest\": 99}}'; exit; }
exec CORACLE \"$@\"
";

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Creates through this server alone, one after the other, until `stop`; what was acknowledged. Whatever is refused or breaks fails the
/// test, but for a word to come again, which client libraries follow by themselves.
async fn write_on(server: &Remote, prefix: &str, stop: &AtomicBool) -> BTreeSet<String> {
    let mut acknowledged = BTreeSet::new();
    while !stop.load(Ordering::Relaxed) {
        let name = format!("{prefix}-{}", acknowledged.len());
        match create(server, &name).await {
            Ok(()) => drop(acknowledged.insert(name)),
            Err(kube::Error::Api(status)) if status.code == 503 => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => panic!("{name}: {error:?}"),
        }
    }
    acknowledged
}

#[test]
fn servers_and_nodes_begin_anew_and_no_request_fails() {
    let mut first = Cluster::server("one");
    let (mut second, mut third) = (first.join_server("two"), first.join_server("three"));
    voters(&third, 3);
    let worker = second.join("worker");
    second.push("standin", "standin");
    second.apply(WEB);
    second.kubectl("rollout status deployment/web --timeout=120s");
    let url = format!("http://{}:{}/hostname", worker.node_port_address(), second.node_port("web"));
    eventually_answers(&url);

    let idle = second.coracle(&["upgrade"]);
    assert!(idle.status.success() && text(&idle).contains("nothing to do"), "{}", text(&idle));
    // One that would not come back stops it before anything has ended; what runs goes on compiling.
    for server in [&first, &second] {
        server.replace_program(NEXT);
    }
    third.replace_program("#!/bin/sh\nexit 1\n");
    let refused = second.coracle(&["upgrade"]);
    let said = text(&refused);
    assert!(!refused.status.success() && said.contains("server three (3) would not start again"), "{said}");
    assert!(said.contains("9.9.9 at ") && !first.log().contains("beginning anew"), "{said}");
    worker.replace_program("#!/bin/sh\nexit 1\n");
    second.push("probe", "probe");
    second.kubectl("run probe --image=probe --restart=Never");
    second.kubectl("wait --for=condition=Ready pod/probe --timeout=120s");

    third.replace_program(NEXT);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let remotes = [&first, &second, &third]
        .map(|server| runtime.block_on(Remote::connect_once(&server.kubeconfig())).expect("connect"));
    worker.replace_program(NEXT);
    let members: serde_json::Value =
        serde_json::from_str(&second.kubectl("get --raw /coracle/v1/members")).expect("members");
    let leads = members["members"].as_array().into_iter().flatten().find(|member| member["leads"] == true);
    let leads = leads.and_then(|member| member["name"].as_str()).expect("one leads").to_owned();
    let (stop, url, runtime) = (&AtomicBool::new(false), url.as_str(), &runtime);
    let before = second.kubectl("get pods -l app=web -o jsonpath={.items[*].status.containerStatuses[*].containerID}");
    let (upgraded, acknowledged, asked) = std::thread::scope(|scope| {
        let writers: Vec<_> = remotes
            .iter()
            .zip(["a", "b", "c"])
            .map(|(server, prefix)| scope.spawn(move || runtime.block_on(write_on(server, prefix, stop))))
            .collect();
        let asking = scope.spawn(move || {
            let mut answers = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                answers.push(http_get(url).map(|(code, _)| code));
                std::thread::sleep(Duration::from_millis(5));
            }
            answers
        });
        let upgraded = second.coracle(&["upgrade"]);
        stop.store(true, Ordering::Relaxed);
        let acknowledged: Vec<BTreeSet<String>> =
            writers.into_iter().map(|writer| writer.join().expect("no write failed")).collect();
        (upgraded, acknowledged, asking.join().expect("it asks"))
    });
    let said = text(&upgraded);
    assert!(upgraded.status.success(), "{said}");
    let order: Vec<&str> = said.lines().filter_map(|line| line.split_once(" runs ")).map(|(title, _)| title).collect();
    assert_eq!(order.len(), 4, "{said}");
    assert!(order[2].contains(&format!("server {leads} (")), "who leads, {leads}, is the last server: {said}");
    assert_eq!(order[3], "node worker", "{said}");
    for (server, acknowledged) in [&mut first, &mut second, &mut third].into_iter().zip(&acknowledged) {
        assert!(server.is_running() && server.log().contains("beginning anew"), "{}", server.log());
        assert!(acknowledged.len() > 10, "{acknowledged:?}");
        assert!(acknowledged.is_subset(&created(server)), "an acknowledged write is lost");
    }
    // While servers begin anew the pods serve; the node's own ports are closed for a moment when its turn comes.
    let failed = asked.iter().position(|answer| *answer != Some(200)).unwrap_or(asked.len());
    let back = asked.iter().rposition(|answer| *answer != Some(200)).unwrap_or_default();
    println!("{} requests to the node, {failed} before its turn, {} after it", asked.len(), asked.len() - back);
    assert!(failed > 50, "{asked:?}");
    eventually_answers(url);
    let after = second.kubectl("get pods -l app=web -o jsonpath={.items[*].status.containerStatuses[*].containerID}");
    assert_ne!(before, after, "they run in another life");
    let ready = second.kubectl("get deployment web -o jsonpath={.status.readyReplicas}");
    assert_eq!(ready, "2", "the node is well only with its pods");
}

/// A cluster in the background; it ends with this.
struct Background(PathBuf);

impl Background {
    fn coracle(&self, program: &Path, words: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(words).env("CORACLE_DATA_DIR", &self.0).env_remove("KUBECONFIG").output().expect("run coracle")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.coracle(coracle_tests::coracle(), &["down"]);
    }
}

#[test]
fn what_was_called_by_a_link_begins_anew_with_what_that_leads_to_and_applies_nothing_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let [link, other, next, file] = ["coracle", "other", "next", "map.yaml"].map(|name| dir.path().join(name));
    std::os::unix::fs::symlink(coracle_tests::coracle(), &link).expect("make a link");
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: map}\ndata: {says: what the file says}\n";
    std::fs::write(&file, map).expect("write a manifest");
    let cluster = Background(dir.path().join("data"));
    let ports = ["--api-port", "0", "--registry-port", "0", "--http-port", "off", "--https-port", "off"];
    let words = [&["up", "-d", "-f", file.to_str().expect("a path in words")][..], &ports].concat();
    let begun = cluster.coracle(&link, &words);
    assert!(begun.status.success(), "{}", text(&begun));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let remote = runtime.block_on(Remote::connect_once(&cluster.0.join("kubeconfig"))).expect("connect");
    let maps = kube::Api::<ConfigMap>::default_namespaced(remote.client().clone());
    let patch = kube::api::Patch::Merge(serde_json::json!({"data": {"says": "what somebody says"}}));
    runtime.block_on(maps.patch("map", &kube::api::PatchParams::default(), &patch)).expect("it is there");
    std::fs::remove_file(&file).expect("remove the manifest");
    // Another version is put beside the one that runs, and the link is led there.
    let script = NEXT.replace("CORACLE", &coracle_tests::coracle().display().to_string());
    std::fs::write(&next, script).expect("write the program");
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o755)).expect("have it be executable");
    std::os::unix::fs::symlink(&next, &other).expect("make a link");
    std::fs::rename(&other, &link).expect("lead the link elsewhere");
    let upgraded = cluster.coracle(coracle_tests::coracle(), &["upgrade"]);
    let said = text(&upgraded);
    assert!(upgraded.status.success() && said.contains(&format!("9.9.9 at {}", link.display())), "{said}");
    let found = runtime.block_on(maps.get("map")).expect("it is there still");
    assert_eq!(found.data.expect("it has data")["says"], "what somebody says");
}
