//! `crd-conversion-webhook`: between a custom resource with `hostPort` and one with `host` and `port`.

use std::path::Path;

use serde_json::{Value, json};

use super::failed;
use super::options::Options;
use crate::http::{Request, Response};
use crate::server::Server;
use crate::tls;

pub fn run(options: &Options) -> Result<u8, String> {
    let file = |name| options.get(name).ok_or(format!("--{name} is needed"));
    let config = tls::server(Some((Path::new(file("tls-cert-file")?), Path::new(file("tls-private-key-file")?))))?;
    let mut server = Server::default();
    server.https(options.number("port", 443)?, config, |request| serve(request).into()).map_err(failed("HTTPS"))?;
    Ok(server.run())
}

fn serve(request: &Request) -> Response {
    match request.path.as_str() {
        "/readyz" => return Response::text("ok"),
        "/crdconvert" => {}
        _ => return Response::error(404, "404 page not found"),
    }
    let Ok(review) = serde_json::from_slice::<Value>(&request.body) else {
        return Response::error(400, "failed to deserialize body");
    };
    let version = review["apiVersion"].as_str().unwrap_or_default();
    if review["kind"] != "ConversionReview"
        || !["apiextensions.k8s.io/v1", "apiextensions.k8s.io/v1beta1"].contains(&version)
    {
        return Response::error(400, &format!("Unsupported group version kind: {version} {}", review["kind"]));
    }
    let asked = &review["request"];
    let wanted = asked["desiredAPIVersion"].as_str().unwrap_or_default();
    let converted: Result<Vec<Value>, String> =
        asked["objects"].as_array().into_iter().flatten().map(|object| convert(object, wanted)).collect();
    let response = match converted {
        Ok(objects) => {
            json!({"uid": asked["uid"], "convertedObjects": objects, "result": {"metadata": {}, "status": "Success"}})
        }
        Err(message) => {
            json!({"uid": asked["uid"], "convertedObjects": [], "result": {"metadata": {}, "status": "Failure", "message": message}})
        }
    };
    Response::json(&json!({"apiVersion": version, "kind": "ConversionReview", "response": response}))
}

fn convert(object: &Value, to: &str) -> Result<Value, String> {
    let mut converted = object.clone();
    let from = object["apiVersion"].as_str().unwrap_or_default();
    let fields = converted.as_object_mut().ok_or("not an object")?;
    match (from, to) {
        _ if from == to => {
            return Err(format!("conversion from a version to itself should not call the webhook: {to}"));
        }
        ("stable.example.com/v1", "stable.example.com/v2") => {
            if let Some(both) = fields.remove("hostPort") {
                let text = both.as_str().unwrap_or_default();
                let parts: Vec<&str> = text.split(':').collect();
                let [host, port] = parts.as_slice() else { return Err(format!("invalid hostPort value `{text}`")) };
                fields.insert("host".to_owned(), (*host).into());
                fields.insert("port".to_owned(), (*port).into());
            }
        }
        ("stable.example.com/v2", "stable.example.com/v1") => {
            let (host, port) = (fields.remove("host"), fields.remove("port"));
            if host.is_some() || port.is_some() {
                let text = |value: Option<Value>| {
                    value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
                };
                fields.insert("hostPort".to_owned(), format!("{}:{}", text(host), text(port)).into());
            }
        }
        _ => return Err(format!("unexpected conversion version {to:?}")),
    }
    fields.insert("apiVersion".to_owned(), to.into());
    Ok(converted)
}
