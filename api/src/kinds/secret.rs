//! Secret.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::configmap::{DATA_MAX, decoded_len, immutable_data};
use super::value::{Read, child, default_when_zero, fields, or};
use super::{AGE, Cell, FieldError, FieldErrors, Kind, NAME, Strategy, VERBS, checks, column, table};
use crate::codec::json::decode_any;
use crate::meta::field::Path;
use crate::meta::names;

pub(super) static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Secret",
    resource: "secrets",
    singular: "secret",
    short_names: &[],
    categories: &[],
    namespaced: true,
    schema: "io.k8s.api.core.v1.Secret",
    collection: "secrets",
    verbs: VERBS,
    has_status: false,
    has_scale: false,
    subresources: &[],
    selectable: &["type"],
    columns: &[NAME, column("Type", "string"), column("Data", "string"), AGE],
    strategy: &Secret,
};

/// How every PEM block begins.
const PEM: &[u8] = b"-----BEGIN ";

const ACCOUNT_TOKEN: &str = "kubernetes.io/service-account-token";
const NOT_FILLED: &str = "type: no controller fills a secret of type kubernetes.io/service-account-token; ask for a token with \
                          `kubectl create token`, which can be bound to it";

struct Secret;

impl Strategy for Secret {
    /// Also folds `stringData`, which is for writing only, into `data`.
    fn default(&self, object: &mut Value) {
        if let Some(Value::Object(texts)) = fields(object).remove("stringData") {
            let data = fields(child(object, "data"));
            for (key, text) in texts {
                data.insert(key, STANDARD.encode(text.text()).into());
            }
        }
        default_when_zero(object, "type", "Opaque");
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        default_when_zero(object, "type", or(old["type"].text(), "Opaque"));
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        match object["type"].text() {
            "kubernetes.io/tls" => {}
            ACCOUNT_TOKEN if object["data"]["token"].is_empty() => return vec![NOT_FILLED.to_owned()],
            _ => return Vec::new(),
        }
        // Whether key and certificate fit together is not looked at.
        let has_pem = |key: &str| {
            let bytes = STANDARD.decode(object["data"][key].text()).unwrap_or_default();
            bytes.windows(PEM.len()).any(|part| part == PEM)
        };
        let missing = [("tls.crt", "certificate"), ("tls.key", "key")].into_iter().find(|(key, _)| !has_pem(key));
        missing.map(|(_, what)| format!("tls: failed to find any PEM data in {what} input")).into_iter().collect()
    }

    fn field(&self, object: &Value, path: &str) -> Option<String> {
        (path == "type").then(|| object["type"].text().to_owned())
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let (data, path) = (&object["data"], Path::new("data"));
        let mut bytes = 0;
        for (key, value) in data.entries() {
            checks::invalid(&path.key(key), key, names::config_key(key), errors);
            bytes += decoded_len(value.text());
        }
        if bytes > DATA_MAX {
            errors.push(FieldError::too_long(path, DATA_MAX));
        }
        content(object, errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut FieldErrors) {
        checks::immutable(&Path::new("type"), &object["type"], &old["type"], errors);
        immutable_data(object, old, &["data"], errors);
        self.validate(object, errors);
    }

    fn cells(&self, object: &Value) -> Vec<Cell> {
        let count = object["data"].count() as i64;
        vec![table::name(object), object["type"].text().into(), count.into(), table::age(object)]
    }
}

/// Checks that a secret has what its type promises.
fn content(secret: &Value, errors: &mut FieldErrors) {
    let (data, path) = (&secret["data"], Path::new("data"));
    let mut require = |keys: &[&str]| {
        errors.extend(keys.iter().map(|key| FieldError::required(path.key(key), "")));
    };
    match secret["type"].text() {
        ACCOUNT_TOKEN => {
            let key = "kubernetes.io/service-account.name";
            if secret["metadata"]["annotations"][key].is_empty() {
                errors.push(FieldError::required(Path::new("metadata.annotations").key(key), ""));
            }
        }
        "kubernetes.io/dockercfg" => docker_config(data, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => docker_config(data, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" if data.get("username").is_none() && data.get("password").is_none() => {
            require(&["username", "password"]);
        }
        "kubernetes.io/ssh-auth" if data["ssh-privatekey"].is_empty() => require(&["ssh-privatekey"]),
        "kubernetes.io/tls" => {
            let missing = ["tls.crt", "tls.key"].into_iter().filter(|key| data.get(key).is_none());
            require(&missing.collect::<Vec<_>>());
        }
        _ => {}
    }
}

/// A registry's credentials: JSON.
fn docker_config(data: &Value, key: &str, errors: &mut FieldErrors) {
    let path = Path::new("data");
    let Some(encoded) = data.get(key) else {
        errors.push(FieldError::required(path.key(key), ""));
        return;
    };
    let bytes = STANDARD.decode(encoded.text()).unwrap_or_default();
    let problem = match serde_json::from_slice::<Value>(&bytes) {
        Ok(Value::Object(_) | Value::Null) => return,
        Ok(other) => {
            let kind = match other {
                Value::Array(_) => "array",
                Value::String(_) => "string",
                Value::Bool(_) => "bool",
                _ => "number",
            };
            format!("json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}")
        }
        Err(_) => match decode_any(&bytes) {
            // What is wrong with the text comes last; before it stands what it was read for.
            Err(error) => error.to_string().rsplit("json parse error: ").next().unwrap_or_default().to_owned(),
            Ok(_) => return,
        },
    };
    errors.push(FieldError::invalid(path.key(key), "<secret contents redacted>", &problem));
}
