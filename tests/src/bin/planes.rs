//! Either plane with the other's original: Kubernetes' own controllers and scheduler at our API server, whose pods run on our node;
//! and our controllers and scheduler at Kubernetes' own API server, where a node is played.
//!
//! ```console
//! $ cargo run --package coracle-tests --bin planes      # builds Kubernetes' programs first, some minutes, once
//! ```
//!
//! Each is given the same work, with kubectl; the exit code is 0 when all of it was done.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use coracle_tests::reference::{Reference, program};
use coracle_tests::{Background, Cluster, DEADLINE, coracle, kubectl_command, output};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

/// How often the played node looks, and says that it is there.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const NODE: &str = "played";

/// The work: a manifest, and what of it must come to be. Each line is a kubectl command and what it prints at last.
const WORK: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: work}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: standin, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: work}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: work}
spec: {minAvailable: 2, selector: {matchLabels: {app: web}}}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: all, namespace: work}
spec: {hard: {pods: '50'}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: set, namespace: work}
spec:
  replicas: 2
  serviceName: set
  selector: {matchLabels: {app: set}}
  template:
    metadata: {labels: {app: set}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: standin}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: daemons, namespace: work}
spec:
  selector: {matchLabels: {app: daemons}}
  template:
    metadata: {labels: {app: daemons}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: standin}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: job, namespace: work}
spec:
  completions: 3
  parallelism: 2
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: worker, args: [echo, done]}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: minutely, namespace: work}
spec:
  schedule: '* * * * *'
  successfulJobsHistoryLimit: 1
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: worker, args: [echo, done]}]}}}}
";
const STEPS: [(&str, &str); 16] = [
    ("get serviceaccount default -n work -o jsonpath={.metadata.name}", "default"),
    ("get deployment web -n work -o jsonpath={.status.readyReplicas}", "3"),
    ("get endpointslices -n work -l kubernetes.io/service-name=web -o jsonpath={..conditions.ready}", "true true true"),
    ("get pdb web -n work -o jsonpath={.status.disruptionsAllowed}", "1"),
    ("get statefulset set -n work -o jsonpath={.status.readyReplicas}", "2"),
    ("get daemonset daemons -n work -o jsonpath={.status.numberReady}", "1"),
    ("get job job -n work -o jsonpath={.status.succeeded}", "3"),
    ("get jobs -n work -o jsonpath={.items[?(@.metadata.ownerReferences[0].kind==\"CronJob\")].status.succeeded}", "1"),
    ("set env deployment/web -n work A=b", "deployment.apps/web env updated"),
    (
        "get deployment web -n work -o jsonpath={.status.observedGeneration}.{.status.updatedReplicas}.{.status.replicas}",
        "2.3.3",
    ),
    ("scale deployment web -n work --replicas=5", "deployment.apps/web scaled"),
    ("get deployment web -n work -o jsonpath={.status.readyReplicas}", "5"),
    ("delete statefulset set -n work --cascade=foreground", "statefulset.apps \"set\" deleted from work namespace"),
    ("get pods -n work -l app=set -o name", ""),
    ("delete namespace work --wait=false", "namespace \"work\" deleted"),
    ("get namespace work --ignore-not-found -o name", ""),
];

/// Gives the work and looks until all of it is done.
fn work(who: &str, kubeconfig: &Path, programs: &mut [Background]) {
    println!("{who}");
    let home = tempfile::tempdir().expect("a temporary directory");
    let manifest = home.path().join("work.yaml");
    std::fs::write(&manifest, WORK).expect("write the manifest");
    let ask = |arguments: &str| output(&mut kubectl_command(kubeconfig, home.path(), arguments));
    for arguments in ["create namespace work".to_owned(), format!("apply -f {}", manifest.display())] {
        let said = ask(&arguments);
        assert!(said.status.success(), "kubectl {arguments}: {}", String::from_utf8_lossy(&said.stderr));
    }
    for (arguments, at_last) in STEPS {
        let begun = Instant::now();
        loop {
            let said = ask(arguments);
            let text = String::from_utf8_lossy(&said.stdout).trim().to_owned();
            if said.status.success() && text == at_last {
                break;
            }
            assert!(programs.iter_mut().all(Background::is_running), "one of the programs has ended");
            let (late, wrong) = (begun.elapsed() > DEADLINE, String::from_utf8_lossy(&said.stderr));
            assert!(!late, "kubectl {arguments}: {text:?} instead of {at_last:?} {wrong}");
            std::thread::sleep(LOOK_EVERY);
        }
        println!("  {:>5.1} s  {arguments}", begun.elapsed().as_secs_f64());
    }
}

fn kubernetes_controllers_at_our_server() {
    let (manager, scheduler) = (program("kube-controller-manager"), program("kube-scheduler"));
    let server = Cluster::server_with("one", &["--disable-controllers", "--disable-scheduler"]);
    let _worker = server.join("worker");
    server.push("standin", "standin");
    server.push("probe-command", "worker");
    let mut programs = [manager, scheduler].map(|program| {
        let mut command = Command::new(program);
        command.arg("--kubeconfig").arg(server.kubeconfig()).args(["--leader-elect=false", "--secure-port=0"]);
        Background::start(command)
    });
    work("Kubernetes' controllers and scheduler, our API server and node", &server.kubeconfig(), &mut programs);
}

async fn our_controllers_at_kubernetes_server() {
    let mut reference = Reference::start();
    let client = Client::try_from(reference.config().await).expect("a client");
    let kubeconfig = reference.kubeconfig();
    let mut command = Command::new(coracle());
    command.arg("controllers").arg("--kubeconfig").arg(&kubeconfig);
    let mut programs = [Background::start(command)];
    let node = tokio::spawn(play(client));
    let worked = tokio::task::spawn_blocking(move || {
        work("our controllers and scheduler, Kubernetes' API server", &kubeconfig, &mut programs);
    });
    tokio::select! {
        worked = worked => worked.expect("the work was done"),
        played = node => panic!("the node has ended: {played:?}"),
    }
}

/// A node whose pods are ready at once, and whose Jobs' pods have ended.
async fn play(client: Client) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node =
        json!({"metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux"}}});
    nodes.create(&PostParams::default(), &serde_json::from_value(node).expect("a node")).await?;
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut started = 0_u16;
    for number in 0_u64.. {
        look.tick().await;
        let now = k8s_openapi::jiff::Timestamp::now();
        if number % 25 == 0 {
            let status = json!({"status": {
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}],
                "allocatable": {"cpu": "32", "memory": "64Gi", "pods": "110"}, "capacity": {"cpu": "32", "memory": "64Gi", "pods": "110"},
            }});
            nodes.patch_status(NODE, &PatchParams::default(), &Patch::Strategic(status)).await?;
        }
        let here = ListParams::default().fields(&format!("spec.nodeName={NODE}"));
        for pod in Api::<Pod>::all(client.clone()).list(&here).await? {
            let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
            let done = if pod.metadata.deletion_timestamp.is_some() {
                pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await.map(drop)
            } else if let Some(status) = lives(&pod, started) {
                started += 1;
                let status = Patch::Merge(json!({"status": status}));
                pods.patch_status(&pod.name_any(), &PatchParams::default(), &status).await.map(drop)
            } else {
                Ok(())
            };
            match done {
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
                done => done?,
            }
        }
    }
    Ok(())
}

/// What a pod becomes that has none of it yet, after so many others.
fn lives(pod: &Pod, started: u16) -> Option<Value> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let is_jobs = pod.owner_references().iter().any(|owner| owner.kind == "Job");
    let state = match (phase, is_jobs) {
        (Some("Succeeded" | "Running"), _) => return None,
        (_, true) => {
            json!({"phase": "Succeeded", "containerStatuses": [{"name": "main", "image": "worker", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]})
        }
        (_, false) => {
            let address = format!("10.1.{}.{}", started / 250, started % 250 + 1);
            json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]})
        }
    };
    Some(state)
}

#[tokio::main]
async fn main() {
    tokio::task::spawn_blocking(kubernetes_controllers_at_our_server).await.expect("the work was done");
    our_controllers_at_kubernetes_server().await;
}
