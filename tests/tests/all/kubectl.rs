//! An unmodified kubectl against a running cluster: what people type all day.

use coracle_tests::{Background, Cluster, eventually_answers, http_get};

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: 'standin:v1', ports: [{name: http, containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
";

#[test]
fn reads_writes_and_explains_objects() {
    let cluster = Cluster::start();
    let version = cluster.kubectl("version");
    assert!(version.contains("Server Version: v1.37.0"), "{version}");
    let resources = cluster.kubectl("api-resources");
    for line in ["deployments", "deploy", "apps/v1", "endpointslices", "leases"] {
        assert!(resources.contains(line), "{line} in\n{resources}");
    }
    assert!(cluster.kubectl("get nodes").contains("Ready"));
    assert!(cluster.kubectl("get namespaces").contains("kube-system"));

    cluster.kubectl("create configmap app --from-literal=colour=blue");
    assert_eq!(cluster.kubectl("get configmap app -o jsonpath={.data.colour}"), "blue");
    cluster.kubectl("label configmap app tier=front");
    assert!(cluster.kubectl("get configmaps -l tier=front").contains("app"));
    assert!(cluster.kubectl("get configmaps -l tier=back -o name").is_empty());
    cluster.kubectl("patch configmap app --type merge -p {\"data\":{\"colour\":\"red\"}}");
    cluster.kubectl("patch configmap app --type json -p [{\"op\":\"add\",\"path\":\"/data/size\",\"value\":\"L\"}]");
    let yaml = cluster.kubectl("get configmap app -o yaml");
    assert!(yaml.contains("colour: red") && yaml.contains("size: L"), "{yaml}");
    cluster.kubectl("annotate configmap app note=hello");
    assert!(cluster.kubectl("describe configmap app").contains("note: hello"));
    cluster.kubectl("create secret generic s --from-literal=password=x");
    assert!(cluster.kubectl("get secret s").contains("Opaque"));

    let mut edit = cluster.kubectl_command("edit configmap app");
    edit.env("KUBE_EDITOR", "sed -i s/red/green/");
    assert!(edit.output().expect("run kubectl").status.success());
    assert_eq!(cluster.kubectl("get configmap app -o jsonpath={.data.colour}"), "green");

    let text = cluster.kubectl("explain deployment.spec.strategy.rollingUpdate");
    assert!(text.contains("maxSurge"), "{text}");
    let text = cluster.kubectl("explain pod.spec.containers");
    assert!(text.contains("imagePullPolicy"), "{text}");
    assert!(cluster.kubectl("get all -A").contains("service/kubernetes"));
    cluster.kubectl("delete configmap app");
    assert!(cluster.kubectl_fails("get configmap app").contains("(NotFound)"));
}

#[test]
fn mistakes_get_the_answers_that_people_know() {
    let cluster = Cluster::start();
    let refuse = |manifest: &str| {
        let output = cluster.kubectl_with("apply", manifest);
        assert!(!output.status.success(), "{manifest}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let pod = |spec: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {spec}\n");
    for (manifest, expected) in [
        (pod("{containers: [{name: c, image: x, imagee: y}]}"), "unknown field \"spec.containers[0].imagee\""),
        (pod("{containers: [{name: c, image: x, ports: [{containerPort: \"a\"}]}]}"), "ports"),
        (pod("{containers: [{name: C_, image: x}]}"), "spec.containers[0].name: Invalid value"),
        (pod("{containers: []}"), "spec.containers: Required value"),
        (pod("{containers: [{name: c, image: x, resources: {limits: {memory: lots}}}]}"), "quantities must match"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: UPPER}\nspec: {containers: [{name: c, image: x}]}\n".into(),
            "metadata.name: Invalid value",
        ),
        ("apiVersion: v1\nkind: Gizmo\nmetadata: {name: g}\n".into(), "no matches for kind \"Gizmo\""),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: none}\n".into(),
            "namespaces \"none\" not found",
        ),
    ] {
        let said = refuse(&manifest);
        assert!(said.contains(expected), "{expected:?} in {said:?}");
    }
    cluster.apply(DEPLOYMENT);
    let said = refuse(
        &DEPLOYMENT
            .replace("matchLabels: {app: web}", "matchLabels: {app: other}")
            .replace("metadata: {labels: {app: web}}\n    spec", "metadata: {labels: {app: other}}\n    spec"),
    );
    assert!(said.contains("field is immutable"), "{said}");
    cluster.kubectl("create configmap twice");
    assert!(cluster.kubectl_fails("create configmap twice").contains("already exists"));
    // 4 MiB are more than a request may have.
    let big =
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: big}}\ndata: {{a: '{}'}}\n", "x".repeat(4 << 20));
    let output = cluster.kubectl_with("create", &big);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.to_lowercase().contains("too large"), "{said}");
    assert!(cluster.kubectl("get --raw /readyz").contains("ok"), "nothing is down");
}

#[test]
fn rolls_out_rolls_back_scales_and_forwards() {
    let cluster = Cluster::start();
    for tag in ["v1", "v2"] {
        cluster.push("standin", &format!("standin:{tag}"));
    }
    cluster.apply(DEPLOYMENT);
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    cluster.kubectl("set image deployment/web web=standin:v2");
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    let image = "get deployment web -o jsonpath={.spec.template.spec.containers[0].image}";
    assert_eq!(cluster.kubectl(image), "standin:v2");
    let history = cluster.kubectl("rollout history deployment/web");
    assert!(history.contains("1 ") && history.contains("2 "), "{history}");
    cluster.kubectl("rollout undo deployment/web");
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    assert_eq!(cluster.kubectl(image), "standin:v1");

    cluster.kubectl("rollout pause deployment/web");
    cluster.kubectl("set image deployment/web web=standin:v2");
    assert!(cluster.kubectl("get deployment web -o jsonpath={.spec.paused}").contains("true"));
    cluster.kubectl("rollout resume deployment/web");
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    cluster.kubectl("rollout restart deployment/web");
    cluster.kubectl("rollout status deployment/web --timeout=120s");

    cluster.kubectl("scale deployment web --replicas=4");
    cluster.kubectl("wait --for=jsonpath={.status.readyReplicas}=4 deployment/web --timeout=60s");
    let wide = cluster.kubectl("get pods -o wide");
    assert!(wide.contains("10.244."), "pods have addresses: {wide}");
    let all = cluster.kubectl("get all");
    assert!(all.contains("deployment.apps/web") && all.contains("replicaset.apps/web-"), "{all}");
    let text = cluster.kubectl("describe deployment web");
    assert!(text.contains("ScalingReplicaSet"), "{text}");
    assert!(cluster.kubectl("events").contains("Started"));
    let endpoints = cluster.eventually("get endpointslices -l kubernetes.io/service-name=web", |text| {
        text.matches("10.244.").count() >= 1
    });
    assert!(endpoints.contains("8080"), "{endpoints}");

    let forward = Background::start(cluster.kubectl_command("port-forward service/web :80"));
    let line = forward.line(|line| line.starts_with("Forwarding from 127.0.0.1:"));
    let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).expect("a port");
    assert!(eventually_answers(&format!("http://127.0.0.1:{port}/")).contains("\"pod\":\"web-"));

    cluster.kubectl("delete deployment web --cascade=foreground --timeout=60s");
    cluster.eventually("get pods -o name", |pods| pods.trim().is_empty());
    drop(forward);
    assert!(http_get(&format!("http://127.0.0.1:{port}/")).is_none());
}

#[test]
fn watches_and_follows() {
    let cluster = Cluster::start();
    cluster.push("probe-command", "probe-command");
    let watch = Background::start(cluster.kubectl_command("get pods -w"));
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: ticker}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - {name: c, image: probe-command, args: [tick, '100']}\n",
    );
    watch.line(|line| line.contains("ticker") && line.contains("Pending"));
    watch.line(|line| line.contains("ticker") && line.contains("Running"));
    let follow = Background::start(cluster.kubectl_command("logs -f ticker"));
    follow.line(|line| line == "tick 5");
    assert_eq!(cluster.kubectl("logs ticker --tail=1").lines().count(), 1);
    assert!(cluster.kubectl("logs ticker --timestamps --tail=1").starts_with("20"));
    // The component once more, with other words; its code is kubectl's.
    assert_eq!(cluster.kubectl("exec ticker -- probe echo inside env HOSTNAME"), "inside\nticker\n");
    let piped = cluster.kubectl_reading("exec -i ticker -- probe copy echo done", "one\ntwo\n");
    assert_eq!(String::from_utf8_lossy(&piped.stdout), "one\ntwo\ndone\n", "{piped:?}");
    let failed = cluster.kubectl_fails("exec ticker -- probe end 42");
    assert!(failed.contains("command terminated with exit code 42"), "{failed}");
    // What a container is started with reads what is typed to who is attached, to its end.
    let run = "run typed -i --rm --quiet --restart=Never --image=probe-command -- copy echo done";
    let typed = cluster.kubectl_reading(run, "one\ntwo\n");
    assert!(String::from_utf8_lossy(&typed.stdout).starts_with("one\ntwo\ndone\n"), "{typed:?}");
    // Another component beside it, while it runs.
    cluster.kubectl("debug ticker --quiet --image=probe-command --container=look -- probe echo looked env HOSTNAME");
    let ended = "get pod ticker -o jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.exitCode}";
    cluster.eventually(ended, |code| code == "0");
    assert_eq!(cluster.kubectl("logs ticker -c look"), "looked\nticker\n");
    // An input that stays open for others: the client's part ends with what it says.
    let debug = "debug ticker -i --quiet --image=probe-command --container=ask -- probe copy";
    for (words, said, shown) in [(debug, "one\n", "one\n"), ("attach ticker -i --quiet -c ask", "two\n", "one\ntwo\n")]
    {
        let typed = cluster.kubectl_reading(words, said);
        assert!(typed.status.success(), "{typed:?}");
        assert_eq!(String::from_utf8_lossy(&typed.stdout), shown, "{typed:?}");
    }
    cluster.kubectl("delete pod ticker --timeout=30s");
    watch.line(|line| line.contains("ticker") && line.contains("Terminating"));
}

const WIDGETS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.size, statusReplicasPath: .status.size}}
    additionalPrinterColumns: [{name: Colour, type: string, jsonPath: .spec.colour}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [colour]
            properties:
              colour: {type: string, description: What it is painted with., enum: [red, green]}
              size: {type: integer, default: 1}
          status: {type: object, properties: {size: {type: integer}}}
";

const WIDGET: &str = "
apiVersion: example.com/v1
kind: Widget
metadata: {name: w}
spec: {colour: red}
";

#[test]
fn kinds_of_definitions_are_kinds_like_others() {
    let cluster = Cluster::start();
    cluster.apply(WIDGETS);
    cluster.kubectl("wait --for=condition=Established crd/widgets.example.com --timeout=60s");
    assert!(cluster.kubectl("api-resources").contains("widgets"));
    cluster.apply(WIDGET);
    cluster.apply(&WIDGET.replace("red", "green"));
    let table = cluster.kubectl("get wd");
    assert!(table.contains("COLOUR") && table.contains("green"), "{table}");
    assert!(cluster.kubectl("get all").contains("widget.example.com/w"));
    let text = cluster.kubectl("explain widget.spec.colour");
    assert!(text.contains("painted"), "{text}");
    cluster.kubectl("scale widget w --replicas=3");
    assert_eq!(cluster.kubectl("get widget w -o jsonpath={.spec.size}"), "3");
    let wrong = cluster.kubectl_with("apply", &WIDGET.replace("red", "blue"));
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(said.contains("spec.colour: Unsupported value: \"blue\": supported values: \"red\", \"green\""), "{said}");
    let unknown = cluster.kubectl_with("apply", &WIDGET.replace("colour: red", "colour: red, shape: round"));
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(said.contains("unknown field \"spec.shape\""), "{said}");

    // What belongs to a custom object goes with it, and a custom object goes with its owner and its namespace.
    let uid = cluster.kubectl("get widget w -o jsonpath={.metadata.uid}");
    let owned = |kind: &str, name: &str, owner: &str| {
        format!("apiVersion: {kind}\nmetadata: {{name: {name}, ownerReferences: [{owner}]}}\n")
    };
    let by_w = format!("{{apiVersion: example.com/v1, kind: Widget, name: w, uid: {uid}}}");
    cluster.apply(&owned("v1\nkind: ConfigMap", "c", &by_w));
    let child = owned("example.com/v1\nkind: Widget\nspec: {colour: red}", "child", &by_w);
    cluster.apply(&child);
    cluster.kubectl("delete widget w --cascade=foreground --timeout=60s");
    cluster.kubectl("wait --for=delete configmap/c widget/child --timeout=60s");
    cluster.kubectl("create namespace other");
    assert!(cluster.kubectl_with("apply -n other", WIDGET).status.success());
    cluster.kubectl("delete namespace other --timeout=60s");

    cluster.apply(WIDGET);
    cluster.kubectl("delete crd widgets.example.com --timeout=60s");
    cluster.kubectl_fails("get widgets");
}

#[test]
fn a_request_for_a_certificate_is_signed_when_it_is_approved() {
    // For `CN=anna, O=crew`; its key is nowhere.
    const REQUEST: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIYU1JR0FBZ0VBTUI0eERUQUxCZ05WQkFvTUJHTnlaWGN4RFRBTEJnTlZCQU1NQkdGdWJtRXdXVEFUQmdjcQpoa2pPUFFJQkJnZ3Foa2pPUFFNQkJ3TkNBQVJ3dFlQdGJUdDlpU2ttdEpWdFI5VkUzM0dwUWdndE51YU44aW5GCkZkN1hWWVYyV3RWUS9LMjR1c2llQzhMVWdrdFZSWVVwY2ZucXNvaDdKVEE3U1ZwYm9BQXdDZ1lJS29aSXpqMEUKQXdJRFNRQXdSZ0loQUxQZHdPeUJ1c1dyOE1FUnFRQUxFQ3UzLzVxVVpkaG9TQXdCRVBuckpiUlFBaUVBbGRFbwp2VE1UZVNvZzVyTktlSWdhdXFOYllJMy9TTi9mL05UZmtMYUlWNkU9Ci0tLS0tRU5EIENFUlRJRklDQVRFIFJFUVVFU1QtLS0tLQo=";
    let cluster = Cluster::start();
    for name in ["anna", "other"] {
        cluster.apply(&format!(
            "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\nspec:\n  request: \
             {REQUEST}\n  signerName: kubernetes.io/kube-apiserver-client\n  expirationSeconds: 3600\n  usages: [client auth]\n"
        ));
    }
    let row = cluster.kubectl("get csr anna --no-headers");
    assert!(
        row.contains("kubernetes.io/kube-apiserver-client") && row.contains("60m") && row.contains("Pending"),
        "{row}"
    );
    cluster.kubectl("certificate approve anna");
    cluster.kubectl("certificate deny other");
    cluster.eventually("get csr anna --no-headers", |row| row.contains("Approved,Issued"));
    cluster.eventually("get csr anna -o jsonpath={.status.certificate}", |text| text.len() > 500);
    let row = cluster.kubectl("get csr other --no-headers");
    assert!(row.contains("Denied") && !row.contains("Issued"), "{row}");
}
