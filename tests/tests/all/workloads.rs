//! What runs: services and commands as pods, how they end, and what a person is told when they cannot run.

use coracle_tests::{Cluster, eventually_answers, http_get, root};

/// A pod of the example command with these arguments.
fn command(name: &str, restart: &str, arguments: &[&str], more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: {restart}\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: probe-command\n    args: {arguments:?}\n{more}"
    )
}

#[test]
fn an_ordinary_manifest_runs_unchanged_and_heals_itself() {
    let cluster = Cluster::start();
    cluster.push("standin", "myregistry/fastapi-app:latest");
    cluster.kubectl(&format!("apply -f {}", root().join("examples/manifests/fastapi-app.yaml").display()));
    cluster.kubectl("rollout status deployment/fastapi-app --timeout=120s");
    let url = cluster.service_url("fastapi-app");
    assert!(eventually_answers(&url).contains("fastapi-app-"), "the pod says its name");
    let names = cluster.kubectl("get pods -l app=fastapi-app -o name");
    assert_eq!(names.lines().count(), 3, "{names}");

    let victim = names.lines().next().unwrap();
    cluster.kubectl(&format!("delete {victim}"));
    cluster.eventually("get pods -l app=fastapi-app -o name", |now| now.lines().count() == 3 && !now.contains(victim));
    cluster.kubectl("wait --for=condition=Ready pods -l app=fastapi-app --timeout=60s");
    eventually_answers(&url);

    cluster.kubectl("delete deployment,service fastapi-app");
    cluster.eventually("get pods -o name", |pods| pods.trim().is_empty());
    assert!(http_get(&url).is_none(), "nothing listens at the port of a Service that is gone");
}

#[test]
fn environment_comes_from_config_maps_secrets_and_the_pod_itself() {
    let cluster = Cluster::start();
    cluster.push("greeter", "greeter");
    cluster.kubectl(&format!("apply -f {}", root().join("examples/manifests/demo.yaml").display()));
    cluster.kubectl("-n demo rollout status deployment/hello --timeout=120s");
    let text = eventually_answers(&cluster.service_url("hello -n demo"));
    assert!(text.starts_with("Ahoy from pod hello-") && text.ends_with(", with a secret\n"), "{text}");
}

#[test]
fn commands_end_as_their_restart_policy_says() {
    let cluster = Cluster::start();
    cluster.push("probe-command", "probe-command");
    cluster.apply(&command("good", "Never", &["echo", "one", "warn", "two"], ""));
    cluster.apply(&command("bad", "Never", &["exit", "1"], ""));
    cluster.apply(&command("trap", "Never", &["crash"], ""));
    cluster.apply(&command("again", "OnFailure", &["echo", "once more", "exit", "1"], ""));
    cluster.apply(&command(
        "greedy",
        "Never",
        &["alloc", "256"],
        "    resources: {limits: {memory: 64Mi}, requests: {memory: 16Mi}}\n",
    ));
    cluster.apply(&command("endless", "Never", &["spin"], "    resources: {limits: {cpu: 200m}}\n"));

    cluster.eventually("get pod good -o jsonpath={.status.phase}", |phase| phase == "Succeeded");
    let log = cluster.kubectl("logs good");
    assert!(log.contains("one\n") && log.contains("two\n"), "{log}");
    cluster.eventually("get pod bad -o jsonpath={.status.phase}", |phase| phase == "Failed");
    let code = cluster.kubectl("get pod bad -o jsonpath={.status.containerStatuses[0].state.terminated.exitCode}");
    assert_eq!(code, "1");
    cluster.eventually("get pod trap -o jsonpath={.status.phase}", |phase| phase == "Failed");
    assert!(cluster.kubectl("logs trap").contains("asked to"), "the panic's message is in the log");
    cluster.eventually("get pod greedy", |row| row.contains("OOMKilled"));
    cluster.eventually("get pod again", |row| row.contains("CrashLoopBackOff") || row.contains("Error"));
    cluster.eventually("get pod again -o jsonpath={.status.containerStatuses[0].restartCount}", |count| {
        count.parse::<u32>().is_ok_and(|count| count >= 1)
    });
    assert!(cluster.kubectl("logs again --previous").contains("once more"));

    // A guest that never waits is still stopped, within its grace.
    cluster.eventually("get pod endless -o jsonpath={.status.phase}", |phase| phase == "Running");
    cluster.kubectl("delete pod endless --timeout=30s");
}

#[test]
fn jobs_end_and_cron_jobs_start_them() {
    let cluster = Cluster::start();
    cluster.push("probe-command", "worker:latest");
    cluster.kubectl("create job once --image=worker -- worker echo done");
    cluster.kubectl("wait --for=condition=complete job/once --timeout=120s");
    assert!(cluster.kubectl("logs job/once").contains("done\n"));
    let row = cluster.kubectl("get job once");
    assert!(row.contains("Complete") && row.contains("1/1"), "{row}");

    cluster.kubectl(&format!("apply -f {}", root().join("examples/manifests/jobs.yaml").display()));
    cluster.kubectl("wait --for=condition=complete job/report --timeout=120s");
    assert_eq!(cluster.kubectl("get job report -o jsonpath={.status.completedIndexes}"), "0-2");
    let log = cluster.kubectl("logs -l job-name=report --prefix=false");
    let mut parts: Vec<&str> = log.split_whitespace().filter(|word| *word != "part").collect();
    parts.sort_unstable();
    assert_eq!(parts, ["0", "1", "2"], "each part knows its index");
    let hosts = cluster.kubectl("get pods -l job-name=report -o jsonpath={.items[*].spec.hostname}");
    assert!(hosts.contains("report-2"), "{hosts}");

    let fails = |name: &str, spec: &str| {
        format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec:\n{spec}  template:\n    spec:\n      \
             restartPolicy: Never\n      containers: [{{name: c, image: worker, args: [exit, \"1\"]}}]\n"
        )
    };
    cluster.apply(&fails("bad", "  backoffLimit: 0\n  ttlSecondsAfterFinished: 2\n"));
    let rule = "    rules: [{action: FailJob, onExitCodes: {operator: In, values: [1]}}]\n";
    cluster.apply(&fails("policy", &format!("  podFailurePolicy:\n{rule}")));
    cluster.kubectl("wait --for=condition=failed job/policy --timeout=120s");
    let text = cluster.kubectl("describe job policy");
    assert!(text.contains("failed with exit code 1 matching FailJob rule at index 0"), "{text}");
    cluster.eventually("get jobs -o name", |jobs| !jobs.contains("job.batch/bad"));

    cluster.kubectl("create job by-hand --from=cronjob/nightly");
    cluster.kubectl("wait --for=condition=complete job/by-hand --timeout=120s");
    let refused = cluster.kubectl_fails("patch cronjob nightly -p {\"spec\":{\"timeZone\":\"Mars/Base\"}}");
    assert!(refused.contains("unknown time zone Mars/Base"), "{refused}");
    cluster.kubectl("patch cronjob nightly -p {\"spec\":{\"schedule\":\"@every\\u00201s\"}}");
    cluster.eventually("get jobs -o name", |jobs| jobs.contains("job.batch/nightly-"));
    cluster.eventually("get cronjob nightly -o jsonpath={.status.lastSuccessfulTime}", |time| !time.is_empty());

    // Their pods go with them, though each was held until it was counted.
    cluster.kubectl("delete cronjob nightly");
    cluster.kubectl("delete jobs --all --timeout=60s");
    cluster.eventually("get pods -o name", |pods| pods.trim().is_empty());
}

#[test]
fn what_cannot_run_says_why_where_people_look() {
    let cluster = Cluster::start();
    cluster.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: nowhere}\nspec: {containers: [{name: c, image: \"nobody/nothing:v1\"}]}\n");
    let row =
        cluster.eventually("get pod nowhere", |row| row.contains("ErrImagePull") || row.contains("ImagePullBackOff"));
    assert!(row.contains("0/1"), "{row}");
    let text = cluster.eventually("describe pod nowhere", |text| text.contains("Failed to pull image"));
    assert!(text.contains("nobody/nothing:v1"), "{text}");

    // Too large for any node: it waits, and says for what.
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: huge}\nspec: {containers: [{name: c, image: x, resources: {requests: {cpu: \"1000\"}}}]}\n",
    );
    let text = cluster.eventually("describe pod huge", |text| text.contains("FailedScheduling"));
    assert!(text.contains("Insufficient cpu"), "{text}");

    cluster.push("probe-command", "probe-command");
    cluster.apply(&command("unconfigured", "Never", &["echo"], "    envFrom: [{configMapRef: {name: missing}}]\n"));
    cluster.eventually("get pod unconfigured", |row| row.contains("CreateContainerConfigError"));
    cluster.kubectl("create configmap missing --from-literal=a=b");
    cluster.eventually("get pod unconfigured -o jsonpath={.status.phase}", |phase| phase == "Succeeded");
}

#[test]
fn probes_decide_who_gets_traffic_and_who_is_restarted() {
    let cluster = Cluster::start();
    cluster.push("probe-command", "probe-command");
    let listens = "    readinessProbe: {tcpSocket: {port: 8000}, periodSeconds: 1}\n";
    cluster.apply(&command("listens", "Always", &["serve", "8000"], listens));
    cluster.kubectl("wait --for=condition=Ready pod/listens --timeout=60s");
    let deaf = "    readinessProbe: {tcpSocket: {port: 8000}, periodSeconds: 1}\n";
    cluster.apply(&command("deaf", "Always", &["sleep", "1000000"], deaf));
    let sick = "    livenessProbe: {tcpSocket: {port: 8000}, periodSeconds: 1, failureThreshold: 1}\n";
    cluster.apply(&command("sick", "Always", &["sleep", "1000000"], sick));
    cluster.eventually("describe pod sick", |text| text.contains("failed liveness probe, will be restarted"));
    cluster.eventually("get pod deaf", |row| row.contains("Running") && row.contains("0/1"));
    cluster.eventually("describe pod deaf", |text| text.contains("Readiness probe failed"));
}

/// A service whose requests compute, so that its pod is busy.
#[test]
fn a_busy_service_gets_another_pod_and_top_shows_what_it_uses() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let cluster = Cluster::start();
    cluster.push("probe", "probe");
    cluster.kubectl("create deployment busy --image=probe --port=80");
    cluster.kubectl("set resources deployment busy --requests=cpu=20m");
    cluster.kubectl("expose deployment busy --type=NodePort --port=80");
    cluster.kubectl("rollout status deployment/busy --timeout=120s");
    let url = cluster.service_url("busy");
    eventually_answers(&format!("{url}/healthz"));
    let over = Arc::new(AtomicBool::new(false));
    let load = std::thread::spawn({
        let (url, over) = (format!("{url}/spin?20"), over.clone());
        move || {
            while !over.load(Ordering::Relaxed) {
                http_get(&url);
            }
        }
    });
    cluster.kubectl("autoscale deployment busy --cpu=50% --min=1 --max=2");
    cluster.eventually("get deployment busy -o jsonpath={.spec.replicas}", |replicas| replicas == "2");
    cluster.kubectl("wait --for=jsonpath={.status.readyReplicas}=2 deployment/busy --timeout=60s");
    let top = cluster.eventually("top pods", |text| text.lines().filter(|line| line.starts_with("busy-")).count() == 2);
    let cores = |line: &str| line.split_whitespace().nth(1)?.strip_suffix('m')?.parse::<u32>().ok();
    assert!(top.lines().filter_map(cores).sum::<u32>() > 10, "{top}");
    let top = cluster.kubectl("top nodes");
    assert!(top.lines().count() == 2 && top.contains("Mi") && top.contains('%'), "{top}");
    let shown = cluster.eventually("get hpa busy", |text| text.contains("%/50%"));
    assert!(shown.contains("cpu: "), "{shown}");
    let said = cluster.kubectl("describe hpa busy");
    assert!(said.contains("SuccessfulRescale") && said.contains("ValidMetricFound"), "{said}");
    over.store(true, Ordering::Relaxed);
    load.join().expect("the load ends");
}
