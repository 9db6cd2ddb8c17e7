//! `webhook`: an admission webhook that allows, denies and changes by what objects say.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::options::Options;
use super::{failed, log};
use crate::http::{Request, Response};
use crate::server::{Answer, Server};
use crate::tls;

/// What is answered to a review.
enum Verdict {
    Allowed,
    /// With what changes the object.
    Patched(Value),
    Denied {
        message: Option<String>,
        reason: Option<&'static str>,
    },
    /// The request is not one of this path.
    Wrong(String),
    Late(Duration),
    Never,
}

pub fn run(options: &Options) -> Result<u8, String> {
    let file = |name| options.get(name).ok_or(format!("--{name} is needed"));
    let config = tls::server(Some((Path::new(file("tls-cert-file")?), Path::new(file("tls-private-key-file")?))))?;
    let sidecar = options.get("sidecar-image").unwrap_or_default().to_owned();
    let mut server = Server::default();
    server
        .https(options.number("port", 443)?, config, move |request| serve(request, &sidecar))
        .map_err(failed("HTTPS"))?;
    Ok(server.run())
}

fn serve(request: &Request, sidecar: &str) -> Answer {
    if request.path == "/readyz" {
        return Response::text("ok").into();
    }
    if request.header("content-type") != Some("application/json") {
        return Response::new(200, "").into();
    }
    let review: Value = match serde_json::from_slice(&request.body) {
        Ok(review) => review,
        Err(error) => return Response::error(400, &format!("Request could not be decoded: {error}")).into(),
    };
    let version = review["apiVersion"].as_str().unwrap_or_default();
    if review["kind"] != "AdmissionReview" || !["admission.k8s.io/v1", "admission.k8s.io/v1beta1"].contains(&version) {
        return Response::error(400, &format!("Unsupported group version kind: {version} {}", review["kind"])).into();
    }
    let asked = &review["request"];
    log(&format!("calling {}", request.path));
    let verdict = match request.path.as_str() {
        "/always-allow-delay-5s" => Verdict::Late(Duration::from_secs(5)),
        "/always-deny" => denied("this webhook denies all requests"),
        "/add-label" => add_label(&asked["object"]),
        "/pods" => pods(asked),
        "/pods/attach" => attach(asked),
        "/mutating-pods" => mutate_pods(&asked["object"]),
        "/mutating-pods-sidecar" => add_sidecar(&asked["object"], sidecar),
        "/configmaps" => content(
            asked,
            "the configmap contains unwanted key and value",
            "the configmap cannot be deleted because it contains unwanted key and value",
        ),
        "/custom-resource" => content(
            asked,
            "the custom resource contains unwanted data",
            "the custom resource cannot be deleted because it contains unwanted key and value",
        ),
        "/mutating-configmaps" | "/mutating-custom-resource" => mutate(&asked["object"]),
        "/crd" => match asked["object"]["metadata"]["labels"]["webhook-e2e-test"] == "webhook-disallow" {
            true => denied("the crd contains unwanted label"),
            false => Verdict::Allowed,
        },
        _ => return Response::error(404, "404 page not found").into(),
    };
    let answer = |allowed: bool, rest: Value| {
        let mut response = json!({"uid": asked["uid"], "allowed": allowed});
        for (name, value) in rest.as_object().into_iter().flatten() {
            response[name] = value.clone();
        }
        Response::json(&json!({"apiVersion": version, "kind": "AdmissionReview", "response": response}))
    };
    match verdict {
        Verdict::Allowed => answer(true, json!({})).into(),
        Verdict::Patched(patch) => {
            answer(true, json!({"patchType": "JSONPatch", "patch": base64(patch.to_string().as_bytes())})).into()
        }
        Verdict::Denied { message, reason } => {
            let mut status = json!({"metadata": {}});
            if let Some(message) = message {
                status["message"] = message.into();
            }
            if let Some(reason) = reason {
                status["reason"] = reason.into();
            }
            answer(false, json!({"status": status})).into()
        }
        Verdict::Wrong(message) => answer(false, json!({"status": {"metadata": {}, "message": message}})).into(),
        Verdict::Late(delay) => Answer::After(
            delay,
            answer(true, json!({"status": {"metadata": {}, "message": "this webhook allows all requests"}})),
        ),
        Verdict::Never => Answer::Never,
    }
}

fn denied(message: &str) -> Verdict {
    Verdict::Denied { message: Some(message.to_owned()), reason: None }
}

fn add_label(object: &Value) -> Verdict {
    let labels = object["metadata"]["labels"].as_object().filter(|labels| !labels.is_empty());
    let patch = match (labels, labels.and_then(|labels| labels.get("added-label"))) {
        (None, _) => json!([{"op": "add", "path": "/metadata/labels", "value": {"added-label": "yes"}}]),
        (_, None) => json!([{"op": "add", "path": "/metadata/labels/added-label", "value": "yes"}]),
        (_, Some(value)) if value != "yes" => {
            json!([{"op": "replace", "path": "/metadata/labels/added-label", "value": "yes"}])
        }
        _ => return Verdict::Allowed,
    };
    Verdict::Patched(patch)
}

fn is_of(asked: &Value, resource: &str) -> Result<(), Verdict> {
    let of = &asked["resource"];
    match of["group"] == "" && of["version"] == "v1" && of["resource"] == resource {
        true => Ok(()),
        false => Err(Verdict::Wrong(format!("expect resource to be {{ v1 {resource}}}"))),
    }
}

fn pods(asked: &Value) -> Verdict {
    if let Err(verdict) = is_of(asked, "pods") {
        return verdict;
    }
    let pod = &asked["object"];
    let mut why = String::new();
    match pod["metadata"]["labels"]["webhook-e2e-test"].as_str() {
        Some("webhook-disallow") => why.push_str("the pod contains unwanted label; "),
        Some("wait-forever") => return Verdict::Never,
        _ => {}
    }
    for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
        if container["name"].as_str().is_some_and(|name| name.contains("webhook-disallow")) {
            why.push_str("the pod contains unwanted container name; ");
        }
    }
    if why.is_empty() { Verdict::Allowed } else { denied(why.trim()) }
}

fn attach(asked: &Value) -> Verdict {
    if asked["name"] != "to-be-attached-pod" {
        return Verdict::Allowed;
    }
    if let Err(verdict) = is_of(asked, "pods") {
        return verdict;
    }
    if asked["subResource"] != "attach" {
        return Verdict::Wrong(format!("expect subresource to be attach, got {}", asked["subResource"]));
    }
    let options = &asked["object"];
    match options["stdin"] == true && options["container"] == "container1" {
        true => denied("attaching to pod 'to-be-attached-pod' is not allowed"),
        false => Verdict::Allowed,
    }
}

fn has_container(list: &Value, name: &str) -> bool {
    list.as_array().into_iter().flatten().any(|container| container["name"] == name)
}

fn mutate_pods(pod: &Value) -> Verdict {
    let wanted = pod["metadata"]["name"] == "webhook-to-be-mutated"
        && !has_container(&pod["spec"]["initContainers"], "webhook-added-init-container");
    match wanted {
        true => Verdict::Patched(json!([{"op": "add", "path": "/spec/initContainers", "value": [
            {"image": "webhook-added-image", "name": "webhook-added-init-container", "resources": {}}
        ]}])),
        false => Verdict::Allowed,
    }
}

fn add_sidecar(pod: &Value, image: &str) -> Verdict {
    if image.is_empty() {
        return denied("No image specified by the sidecar-image parameter");
    }
    match has_container(&pod["spec"]["containers"], "webhook-added-sidecar") {
        true => Verdict::Allowed,
        false => Verdict::Patched(json!([{"op": "add", "path": "/spec/containers/-", "value":
            {"image": image, "name": "webhook-added-sidecar", "resources": {}}
        }])),
    }
}

fn content(asked: &Value, unwanted: &'static str, kept: &'static str) -> Verdict {
    let operation = asked["operation"].as_str().unwrap_or_default();
    let object = if operation == "DELETE" { &asked["oldObject"] } else { &asked["object"] };
    let reason = match (object["data"]["webhook-e2e-test"].as_str(), operation) {
        (Some("webhook-disallow"), "CREATE" | "UPDATE") => unwanted,
        (Some("webhook-nondeletable"), "DELETE") => kept,
        _ => return Verdict::Allowed,
    };
    Verdict::Denied { message: None, reason: Some(reason) }
}

fn mutate(object: &Value) -> Verdict {
    let is = |key: &str| object["data"][key] == "yes";
    let stage = match (is("mutation-stage-1"), is("mutation-start")) {
        (true, _) => "/data/mutation-stage-2",
        (_, true) => "/data/mutation-stage-1",
        _ => return Verdict::Allowed,
    };
    Verdict::Patched(json!([{"op": "add", "path": stage, "value": "yes"}]))
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for part in bytes.chunks(3) {
        let number = part.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte)) << (8 * (3 - part.len()));
        for at in 0..4 {
            let letter = LETTERS[(number >> (18 - 6 * at)) as usize & 63];
            out.push(if at <= part.len() { char::from(letter) } else { '=' });
        }
    }
    out
}
