//! No object makes the server work out of proportion to its size: every check is run on long lists of every kind that the
//! checks compare with themselves, eight times, and once on lists eight times as long. Linear work takes as long, work with the
//! square eight times. Both are measured in one run, in time that this thread was on a processor, which the system counts in
//! milliseconds.

#[path = "../src/spent.rs"]
mod spent;

use std::time::Duration;

use coracle_api::codec::{json, yaml};
use coracle_api::kinds::{self, FieldErrors};
use coracle_api::meta::field::{ERROR_BYTES_MAX, ERRORS_MAX};
use coracle_api::schema;
use coracle_api::status::Status;
use serde_json::{Map, Value, json};

const FEW: usize = 500;
const TIMES: usize = 8;
/// Between 1 and 8, with room for caches and noise.
const MOST: f64 = 3.25;
/// Of what is out of proportion, before it is said to be.
const MEASUREMENTS: usize = 8;
/// What takes less for the long list cannot be told from noise, and is well.
const NOTHING: Duration = Duration::from_millis(40);

fn time(work: impl Fn()) -> Duration {
    let start = spent::now();
    work();
    spent::now() - start
}

/// The smallest of several measurements of both, taken in turn, until they are in proportion: a neighbour on the same core makes
/// one longer, never shorter.
fn assert_linear(name: &str, work: impl Fn(usize)) {
    let (mut few, mut many) = (Duration::MAX, Duration::MAX);
    for _ in 0..MEASUREMENTS {
        many = many.min(time(|| work(FEW * TIMES)));
        if many < NOTHING {
            return;
        }
        few = few.min(time(|| (0..TIMES).for_each(|_| work(FEW)))).max(Duration::from_millis(1));
        if many.as_secs_f64() < few.as_secs_f64() * MOST {
            return;
        }
    }
    let ratio = many.as_secs_f64() / few.as_secs_f64();
    panic!("{name}: {ratio:.1} times the work when {TIMES} lists are one ({few:?}, {many:?})");
}

fn list(count: usize, item: impl Fn(usize) -> Value) -> Value {
    (0..count).map(item).collect()
}

fn map(count: usize, key: impl Fn(usize) -> String, value: &Value) -> Value {
    Value::Object((0..count).map(|n| (key(n), value.clone())).collect::<Map<_, _>>())
}

fn pod(spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "n"},
        "spec": {
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
            "containers": [container("c", json!({}))],
        },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][field] = value.clone();
    }
    pod
}

fn container(name: &str, more: Value) -> Value {
    let mut container = json!({
        "name": name, "image": "i", "imagePullPolicy": "Always", "terminationMessagePath": "/t",
        "terminationMessagePolicy": "File",
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        container[field] = value.clone();
    }
    container
}

fn with_container(more: Value) -> Value {
    pod(json!({"containers": [container("c", more)]}))
}

type Make = fn(usize) -> Value;
/// Text of so many parts.
type Text = fn(usize) -> String;

/// Objects whose lists are as long as asked: valid, all wrong, all the same.
fn cases() -> Vec<(&'static str, &'static str, &'static str, Make)> {
    vec![
        (
            "bad keys",
            "",
            "configmaps",
            |n| json!({"metadata": {"name": "x", "namespace": "n"}, "data": map(n, |n| format!("!{n}"), &json!("v"))}),
        ),
        (
            "bad labels",
            "",
            "configmaps",
            |n| json!({"metadata": {"name": "x", "namespace": "n", "labels": map(n, |n| format!("!{n}"), &json!("!"))}}),
        ),
        ("owners", "", "configmaps", |n| {
            let owner =
                |n| json!({"apiVersion": "v1", "kind": "A", "name": "a", "uid": format!("{n}"), "controller": true});
            json!({"metadata": {"name": "x", "namespace": "n", "ownerReferences": list(n, owner)}})
        }),
        (
            "finalizers",
            "",
            "configmaps",
            |n| json!({"metadata": {"name": "x", "namespace": "n", "finalizers": list(n, |n| json!(format!("f{n}")))}}),
        ),
        ("managers", "", "configmaps", |n| {
            let entry = |n| json!({"manager": format!("m\u{1}{n}"), "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1"});
            json!({"metadata": {"name": "x", "namespace": "n", "managedFields": list(n, entry)}})
        }),
        ("mounts and devices", "", "pods", |n| {
            with_container(json!({
                "volumeMounts": list(n, |n| json!({"name": format!("v{n}"), "mountPath": format!("/m{n}")})),
                "volumeDevices": list(n, |n| json!({"name": format!("d{n}"), "devicePath": format!("/e{n}")})),
            }))
        }),
        ("mounts with their volumes", "", "pods", |n| {
            let mut pod = with_container(json!({
                "volumeMounts": list(n, |n| json!({"name": format!("v{n}"), "mountPath": format!("/m{n}")})),
            }));
            pod["spec"]["volumes"] = list(n, |n| json!({"name": format!("v{n}"), "emptyDir": {}}));
            pod
        }),
        ("claims of volumes", "", "pods", |n| {
            pod(
                json!({"volumes": list(n, |n| json!({"name": format!("v{n}"), "persistentVolumeClaim": {"claimName": format!("x-{n}")}}))}),
            )
        }),
        ("equal volumes", "", "pods", |n| pod(json!({"volumes": list(n, |_| json!({"name": "v", "emptyDir": {}}))}))),
        ("containers", "", "pods", |n| pod(json!({"containers": list(n, |n| container(&format!("c{n}"), json!({})))}))),
        ("init containers", "", "pods", |n| {
            let wants = |n: usize| json!({"restartPolicy": "Always", "resources": {"limits": {format!("example.com/r{n}"): "1"}}});
            pod(json!({"initContainers": list(n, |n| container(&format!("i{n}"), wants(n)))}))
        }),
        ("ephemeral containers", "", "pods", |n| {
            pod(
                json!({"ephemeralContainers": list(n, |n| container(&format!("e{n}"), json!({"targetContainerName": "z"})))}),
            )
        }),
        ("container ports", "", "pods", |n| {
            with_container(
                json!({"ports": list(n, |n| json!({"name": format!("p{n}"), "containerPort": 80, "protocol": "TCP", "hostPort": n + 1, "hostIP": format!("10.0.{}.{}", n / 250, n % 250)}))}),
            )
        }),
        ("equal ports", "", "pods", |n| {
            with_container(json!({"ports": list(n, |_| json!({"name": "p", "containerPort": 80, "protocol": "TCP"}))}))
        }),
        ("one port at many addresses", "", "pods", |n| {
            with_container(
                json!({"ports": list(n, |n| json!({"containerPort": 80, "protocol": "TCP", "hostPort": 80, "hostIP": format!("10.0.{}.{}", n / 250, n % 250)}))}),
            )
        }),
        ("variables", "", "pods", |n| {
            with_container(json!({"env": list(n, |n| json!({"name": format!("V{}", n / 2), "value": "v"}))}))
        }),
        ("variables of files", "", "pods", |n| {
            let file = |n: usize| json!({"name": format!("V{n}"), "valueFrom": {"fileKeyRef": {"volumeName": format!("v{n}"), "path": "p", "key": "k"}}});
            let mut pod = with_container(json!({"env": list(n, file)}));
            pod["spec"]["volumes"] = list(n, |n| json!({"name": format!("v{n}"), "emptyDir": {}}));
            pod
        }),
        ("claims", "", "pods", |n| {
            let mut pod = with_container(
                json!({"resources": {"claims": list(n, |n| json!({"name": format!("z{n}"), "request": "r"}))}}),
            );
            pod["spec"]["resourceClaims"] = list(n, |n| json!({"name": format!("c{n}"), "resourceClaimName": "x"}));
            pod
        }),
        ("resize policies", "", "pods", |n| {
            with_container(
                json!({"resizePolicy": list(n, |n| json!({"resourceName": format!("r{n}"), "restartPolicy": "NotRequired"}))}),
            )
        }),
        ("files in volumes", "", "pods", |n| {
            pod(json!({"volumes": [{"name": "v", "projected": {"sources": [
                {"configMap": {"name": "m", "items": list(n, |n| json!({"key": format!("k{n}"), "path": format!("d{}/f{}", n / 50, n / 2)}))}},
            ]}}]}))
        }),
        ("tolerations", "", "pods", |n| {
            pod(json!({"tolerations": list(n, |n| json!({"key": format!("k{n}"), "operator": "Exists"}))}))
        }),
        ("gates", "", "pods", |n| pod(json!({"schedulingGates": list(n, |n| json!({"name": format!("g{}", n / 2)}))}))),
        ("sysctls", "", "pods", |n| {
            pod(
                json!({"securityContext": {"sysctls": list(n, |n| json!({"name": format!("net.a{}", n / 2), "value": "1"}))}}),
            )
        }),
        ("label keys", "", "pods", |n| {
            pod(json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
                "topologyKey": "z", "labelSelector": {"matchExpressions": list(n, |n| json!({"key": format!("k{n}"), "operator": "Exists"}))},
                "matchLabelKeys": list(n, |n| json!(format!("k{n}"))), "mismatchLabelKeys": list(n, |n| json!(format!("k{n}"))),
            }]}}}))
        }),
        ("spread", "", "pods", |n| {
            pod(json!({"topologySpreadConstraints": [{
                "maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchExpressions": list(n, |n| json!({"key": format!("k{n}"), "operator": "Exists"}))},
                "matchLabelKeys": list(n, |n| json!(format!("k{n}"))),
            }]}))
        }),
        ("spread over many keys", "", "pods", |n| {
            let constraint = |n: usize| json!({"maxSkew": 1, "topologyKey": format!("k{}", n / 2 * 2), "whenUnsatisfiable": "DoNotSchedule"});
            pod(json!({"topologySpreadConstraints": list(n, constraint)}))
        }),
        ("conditions and gates", "", "pods", |n| {
            let mut pod = pod(json!({
                "readinessGates": list(n, |n| json!({"conditionType": format!("t{n}")})),
                "initContainers": list(n, |n| container(&format!("i{n}"), json!({"restartPolicy": "Always"}))),
            }));
            let ended = json!({"terminated": {"exitCode": 0}});
            pod["status"] = json!({
                "conditions": list(n, |n| json!({"type": format!("t{n}"), "status": "True", "observedGeneration": n})),
                "initContainerStatuses": list(n, |n| json!({"name": format!("i{n}"), "state": ended})),
            });
            pod
        }),
        ("secrets and aliases", "", "pods", |n| {
            pod(
                json!({"imagePullSecrets": list(n, |n| json!({"name": format!("s{n}")})), "hostAliases": list(n, |n| json!({"ip": format!("10.0.{}.{}", n / 250, n % 250), "hostnames": ["!"]}))}),
            )
        }),
        ("service ports", "", "services", |n| {
            json!({"metadata": {"name": "x", "namespace": "n"}, "spec": {"type": "NodePort", "sessionAffinity": "None", "ports": list(n, |n| {
                json!({"name": format!("p{n}"), "port": n + 1, "targetPort": 80, "protocol": "TCP", "nodePort": n + 1})
            })}})
        }),
        ("families and ranges", "", "services", |n| {
            json!({"metadata": {"name": "x", "namespace": "n"}, "spec": {"type": "LoadBalancer", "sessionAffinity": "None", "ports": [],
                "ipFamilies": list(n, |_| json!("IPv4")), "externalIPs": list(n, |_| json!("1.1.1.1")),
                "loadBalancerSourceRanges": list(n, |n| json!(format!("10.0.{}.0/33", n)))}})
        }),
        ("taints and addresses", "", "nodes", |n| {
            json!({"metadata": {"name": "x"}, "spec": {"taints": list(n, |n| json!({"key": format!("k{n}"), "effect": "NoSchedule"}))},
                "status": {"addresses": list(n, |n| json!({"type": "InternalIP", "address": format!("{n}")}))}})
        }),
        ("template of a deployment", "apps", "deployments", |n| {
            let pod = with_container(
                json!({"volumeMounts": list(n, |n| json!({"name": format!("v{n}"), "mountPath": format!("/m{n}")}))}),
            );
            json!({"metadata": {"name": "x", "namespace": "n"}, "spec": {
                "replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "strategy": {"type": "Recreate"},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod["spec"]},
            }})
        }),
        (
            "subsets",
            "",
            "endpoints",
            |n| json!({"metadata": {"name": "x", "namespace": "n"}, "subsets": list(n, |n| json!({"addresses": [{"ip": format!("z{n}")}], "ports": [{"port": 0, "protocol": "TCP"}]}))}),
        ),
    ]
}

#[test]
fn checks_are_linear() {
    for (name, group, resource, make) in cases() {
        let row = kinds::by_resource(group, resource).expect("a kind");
        let objects = [FEW, FEW * TIMES].map(make);
        let of = |count: usize| &objects[usize::from(count > FEW)];
        assert_linear(&format!("{resource}: {name}, new"), |count| {
            let (object, mut errors) = (of(count), FieldErrors::new());
            kinds::validate_metadata(row, object, &mut errors);
            row.strategy.validate(object, &mut errors);
            let warnings = kinds::warnings(row, object, None);
            assert!(warnings.len() <= 1_010, "{name}: {}", warnings.len());
            let bytes: usize = errors.iter().map(|error| error.field.len() + error.message.len()).sum();
            assert!(errors.iter().count() <= ERRORS_MAX && bytes <= ERROR_BYTES_MAX, "{name}: {bytes}");
            let status = Status::invalid(group, row.kind, "x", errors);
            let size = serde_json::to_vec(&status).expect("JSON").len();
            assert!(size < 4 * ERROR_BYTES_MAX, "{name}: an answer of {size} bytes");
        });
        assert_linear(&format!("{resource}: {name}, changed"), |count| {
            let (object, mut errors) = (of(count), FieldErrors::new());
            kinds::validate_metadata_update(row, object, object, &mut errors);
            let mut changed = object.clone();
            row.strategy.prepare_update(&mut changed, object);
            row.strategy.validate_update(&changed, object, &mut errors);
            row.strategy.validate_status_update(object, object, &mut errors);
            for part in ["ephemeralcontainers", "resize"] {
                row.strategy.validate_subresource_update(part, object, object, &mut errors);
            }
        });
        // Of a status that tells its conditions in another order.
        let reversed = objects.clone().map(|mut object| {
            object["status"]["conditions"].as_array_mut().into_iter().for_each(|list| list.reverse());
            object
        });
        assert_linear(&format!("{resource}: {name}, status"), |count| {
            let mut changed = reversed[usize::from(count > FEW)].clone();
            row.strategy.prepare_status_update(&mut changed, of(count));
        });
        assert_linear(&format!("{resource}: {name}, shown"), |count| drop(row.strategy.cells(of(count))));
    }
}

#[test]
fn defaults_are_linear() {
    for (name, group, resource, make) in cases() {
        let row = kinds::by_resource(group, resource).expect("a kind");
        let schema = schema::named(row.schema).expect("a type");
        let objects = [FEW, FEW * TIMES].map(make);
        assert_linear(&format!("{resource}: {name}, defaults"), |count| {
            let mut object = objects[usize::from(count > FEW)].clone();
            schema::apply_defaults(&mut object, &schema).unwrap();
            row.strategy.default(&mut object);
            row.strategy.prepare_create(&mut object);
        });
    }
}

#[test]
fn decoders_are_linear() {
    let pods = schema::named("io.k8s.api.core.v1.Pod").expect("a type");
    let texts: [(&str, Text); 5] = [
        ("doubled keys", |n| format!("{{{}\"z\":1}}", "\"a\":1,".repeat(n))),
        ("unknown keys", |n| format!("{{{}\"z\":1}}", (0..n).map(|n| format!("\"k{n}\":1,")).collect::<String>())),
        ("doubled nulls", |n| format!("{{{}\"z\":1}}", "\"spec\":null,".repeat(n))),
        ("long text", |n| format!("{{\"kind\":\"{}\"}}", "\\u00fc".repeat(10 * n))),
        ("long list", |n| format!("{{\"metadata\":{{\"finalizers\":[{}\"z\"]}}}}", "\"a\",".repeat(n))),
    ];
    for (name, make) in texts {
        let texts = [FEW, FEW * TIMES].map(make);
        assert_linear(&format!("JSON: {name}"), |count| {
            let text = texts[usize::from(count > FEW)].as_bytes();
            let _ = json::decode(text, &pods);
            let _ = json::decode_any(text);
            let _ = json::parse(text);
            let _ = json::type_of(text);
        });
    }
    let texts: [(&str, Text); 4] = [
        ("keys", |n| (0..n).map(|n| format!("k{n}: v\n")).collect()),
        ("doubled keys", |n| "k: v\n".repeat(n)),
        ("flow", |n| format!("[{}z]", "a, ".repeat(n))),
        ("anchors", |n| (0..n).map(|n| format!("a{n}: &a{n} v\nb{n}: *a{n}\n")).collect()),
    ];
    for (name, make) in texts {
        let texts = [FEW, FEW * TIMES].map(make);
        assert_linear(&format!("YAML: {name}"), |count| {
            let _ = yaml::to_json(texts[usize::from(count > FEW)].as_bytes());
        });
    }
}
