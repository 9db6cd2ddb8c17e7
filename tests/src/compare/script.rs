//! The requests, made of one object of each kind: the object as it is, the object with each of its fields absent, empty, of another
//! type, with a value that it cannot have, changed; and everything else that can be asked of an object that is there. What is asked of
//! no kind in particular is written by hand (`others.yaml`).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Ends the title of a request that the reference must take.
pub(super) const TAKEN: &str = "create";

const JSON: (&str, &str) = ("content-type", "application/json");
const TABLE: (&str, &str) = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
const METADATA: (&str, &str) = ("accept", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io");
const METADATA_LIST: (&str, &str) = ("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io");

/// A request. Words in braces are what the server said before: see `keeps`.
pub(super) struct Request {
    pub title: String,
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Option<String>,
    /// What of the answer later requests know: its name, and where it is.
    pub keeps: Vec<(String, String)>,
}

impl Request {
    fn new(
        title: String,
        method: &str,
        path: String,
        mut headers: Vec<(String, String)>,
        body: Option<String>,
    ) -> Request {
        if body.is_some() && !headers.iter().any(|(name, _)| name == JSON.0) {
            headers.push((JSON.0.to_owned(), JSON.1.to_owned()));
        }
        Request { title, method: method.to_owned(), path, headers, body, keeps: Vec::new() }
    }

    fn keep(&mut self, name: &str, at: &str) {
        self.keeps.push((name.to_owned(), at.to_owned()));
    }
}

/// A line of `others.yaml`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// Method and path.
    ask: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<Value>,
    /// In the place of a body that is JSON.
    text: Option<String>,
    #[serde(default)]
    keep: BTreeMap<String, String>,
}

/// Kinds that are made of nothing but what is there already.
const UNMADE: &[(&str, &str)] = &[("v1", "Binding")];

/// A resource as discovery shows it.
#[derive(Clone)]
pub(super) struct Resource {
    pub api_version: String,
    pub kind: String,
    path: String,
    name: String,
    is_namespaced: bool,
    verbs: Vec<String>,
    subresources: Vec<String>,
}

impl Resource {
    /// Of its group's, its version's and its own part of the document.
    pub fn of(group: &str, version: &Value, resource: &Value) -> Resource {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let texts = |value: &Value, of: fn(&Value) -> &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().map(|item| text(of(item))).collect()
        };
        let (version, kind) = (text(&version["version"]), text(&resource["responseKind"]["kind"]));
        let (api_version, path) = match group {
            "" => (version.clone(), format!("/api/{version}")),
            group => (format!("{group}/{version}"), format!("/apis/{group}/{version}")),
        };
        Resource {
            api_version,
            kind,
            path,
            name: text(&resource["resource"]),
            is_namespaced: resource["scope"] == "Namespaced",
            verbs: texts(&resource["verbs"], |verb| verb),
            subresources: texts(&resource["subresources"], |subresource| &subresource["subresource"]),
        }
    }

    fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    /// The path of all of them in a namespace, if they live in one.
    fn list(&self, namespace: &str) -> String {
        match self.is_namespaced {
            true => format!("{}/namespaces/{namespace}/{}", self.path, self.name),
            false => format!("{}/{}", self.path, self.name),
        }
    }
}

/// The requests that are written by hand; each list has a namespace of its own.
///
/// # Panics
/// When the text is not as its head says.
pub(super) fn written(others: &str) -> Vec<Vec<Request>> {
    let lists: BTreeMap<String, Vec<Line>> = serde_yaml_ng::from_str(others).unwrap_or_else(|e| panic!("others: {e}"));
    let mut scripts = Vec::new();
    for (list, lines) in lists {
        let namespace = format!("compare-{list}");
        let mut requests = begin(&list, &namespace);
        for (number, line) in lines.into_iter().enumerate() {
            let (method, path) = line.ask.split_once(' ').unwrap_or_else(|| panic!("{list}: {}", line.ask));
            let title = format!("{list} {}: {}", number + 1, line.ask);
            let body = line.text.or_else(|| line.body.map(|body| body.to_string()));
            let body = body.map(|body| body.replace("{ns}", &namespace));
            let headers = line.headers.into_iter().collect();
            let mut request = Request::new(title, method, path.replace("{ns}", &namespace), headers, body);
            request.keeps = line.keep.into_iter().collect();
            requests.push(request);
        }
        scripts.push(requests);
    }
    scripts
}

/// What the API says of itself.
pub(super) fn documents(resources: &BTreeMap<(String, String), Resource>) -> Vec<Request> {
    let roots: std::collections::BTreeSet<&str> = resources.values().map(|resource| resource.path.as_str()).collect();
    let paths = roots.iter().flat_map(|root| [(*root).to_owned(), format!("/openapi/v3{root}")]);
    let others = [
        "/api",
        "/apis/apps",
        "/apis/none",
        "/apis/apps/v9",
        "/openapi/v3/apis/none/v1",
        "/healthz",
        "/livez",
        "/readyz",
        "/healthz/none",
    ];
    let get = |path: String| Request::new(format!("documents: {path}"), "GET", path, Vec::new(), None);
    others.into_iter().map(str::to_owned).chain(paths).map(get).collect()
}

/// A namespace, and what pods need in it.
fn begin(of: &str, namespace: &str) -> Vec<Request> {
    let made = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}).to_string();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}).to_string();
    let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
    vec![
        Request::new(format!("{of}: its namespace"), "POST", "/api/v1/namespaces".to_owned(), Vec::new(), Some(made)),
        Request::new(format!("{of}: the account of its namespace"), "POST", accounts, Vec::new(), Some(account)),
    ]
}

/// The requests of every kind; each kind's stand on those before them, and have a namespace of their own.
///
/// # Panics
/// When a kind that can be made has no object, or an object has no kind.
pub(super) fn all(objects: &str, resources: &BTreeMap<(String, String), Resource>) -> Vec<Vec<Request>> {
    use serde::Deserialize as _;
    let is_made = |(version, kind): &(String, String)| !UNMADE.contains(&(version.as_str(), kind.as_str()));
    let mut missing: Vec<&(String, String)> =
        resources.iter().filter(|(key, resource)| resource.can("create") && is_made(key)).map(|(key, _)| key).collect();
    let documents = serde_yaml_ng::Deserializer::from_str(objects);
    let scripts = documents
        .enumerate()
        .map(|(number, document)| {
            let object = Value::deserialize(document).unwrap_or_else(|e| panic!("object {number}: {e}"));
            let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
            let key = (text("apiVersion"), text("kind"));
            let resource = resources.get(&key).unwrap_or_else(|| panic!("the reference serves no {key:?}"));
            missing.retain(|known| **known != key);
            let namespace = format!("compare-{number}");
            let object = named(object, &namespace);
            let requests = begin(&format!("{} {}", key.0, key.1), &namespace);
            Script { resource, namespace, object, requests }.written()
        })
        .collect();
    assert!(missing.is_empty(), "kinds without an object in tests/requests/objects.yaml: {missing:?}");
    scripts
}

/// The object with its namespace's name in the place of `{ns}`.
fn named(object: Value, namespace: &str) -> Value {
    let text = object.to_string().replace("{ns}", namespace);
    serde_json::from_str(&text).expect("it was JSON")
}

struct Script<'a> {
    resource: &'a Resource,
    namespace: String,
    object: Value,
    requests: Vec<Request>,
}

impl Script<'_> {
    fn written(mut self) -> Vec<Request> {
        self.creations();
        if self.resource.can("get") {
            self.patches();
            self.updates();
            self.reads();
            self.subresources();
            self.deletions();
        }
        self.requests
    }

    fn add(
        &mut self,
        what: &str,
        method: &'static str,
        path: String,
        headers: &[(&'static str, &'static str)],
        body: Option<Value>,
    ) {
        let title = format!("{} {}: {what}", self.resource.api_version, self.resource.kind);
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let body = body.map(|body| body.to_string());
        self.requests.push(Request::new(title, method, path, headers, body));
    }

    fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    fn list(&self) -> String {
        self.resource.list(&self.namespace)
    }

    fn item(&self) -> String {
        format!("{}/{}", self.list(), self.name())
    }

    /// Fields that are changed: metadata is the same for all kinds, and looked at with the first.
    fn fields(&self) -> Vec<Vec<Step>> {
        let mut found = Vec::new();
        walk(&self.object, &mut Vec::new(), &mut found);
        let skipped = |path: &[Step]| match path {
            [Step::Field(field)] => matches!(field.as_str(), "apiVersion" | "kind" | "metadata"),
            [Step::Field(first), ..] => first == "metadata" && self.resource.kind != "ConfigMap",
            _ => true,
        };
        found.retain(|path| !skipped(path));
        found
    }

    fn creations(&mut self) {
        let (list, object) = (self.list(), self.object.clone());
        let dry = format!("{list}?dryRun=All");
        let head =
            |metadata: Value| json!({"apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": metadata});
        self.add("create, only its name", "POST", dry.clone(), &[], Some(head(json!({"name": self.name()}))));
        self.add("create, nothing", "POST", dry.clone(), &[], Some(json!({})));
        self.add("create, no name", "POST", dry.clone(), &[], Some(with(&object, "metadata", json!({}))));
        self.add(
            "create, a name that cannot be",
            "POST",
            dry.clone(),
            &[],
            Some(with(&object, "metadata", json!({"name": "Not A Name"}))),
        );
        self.add("create, of another kind", "POST", dry.clone(), &[], Some(with(&object, "kind", "Other".into())));
        self.add(
            "create, of another version",
            "POST",
            dry.clone(),
            &[],
            Some(with(&object, "apiVersion", "v9".into())),
        );
        let mut unknown = with(&object, "unknown", 1.into());
        if let Some(spec) = unknown.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("unknown".to_owned(), json!({}));
        }
        for validation in ["Strict", "Warn", "Ignore"] {
            let path = format!("{dry}&fieldValidation={validation}");
            self.add(&format!("create, unknown fields, {validation}"), "POST", path, &[], Some(unknown.clone()));
        }
        for path in self.fields() {
            for (what, changed) in changes(&object, &path, WRONG) {
                self.add(&format!("create, {} {what}", shown(&path)), "POST", dry.clone(), &[], Some(changed));
            }
        }
        self.add("create as a table", "POST", dry, &[TABLE], Some(object.clone()));
        self.add(TAKEN, "POST", list.clone(), &[], Some(object.clone()));
        if let Some(made) = self.requests.last_mut() {
            made.keep("version", "/metadata/resourceVersion");
            made.keep("uid", "/metadata/uid");
        }
        self.add("create again", "POST", list, &[], Some(object));
    }

    fn reads(&mut self) {
        let (list, item) = (self.list(), self.item());
        let only = format!("{list}?fieldSelector=metadata.name%3D{}", self.name());
        self.add("get", "GET", item.clone(), &[], None);
        self.add("get as a table", "GET", item.clone(), &[TABLE], None);
        self.add("get its metadata", "GET", item.clone(), &[METADATA], None);
        self.add("get as a list of metadata", "GET", item, &[METADATA_LIST], None);
        self.add("get another", "GET", format!("{list}/none-such"), &[], None);
        self.add("list", "GET", only.clone(), &[], None);
        self.add("list as a table", "GET", only.clone(), &[TABLE], None);
        self.add("list metadata", "GET", only.clone(), &[METADATA_LIST], None);
        self.add("list by a field that it has not", "GET", format!("{list}?fieldSelector=spec.none%3Da"), &[], None);
        if self.resource.can("watch") {
            let watch = format!("{only}&watch=true&timeoutSeconds=1&resourceVersion=0");
            self.add("watch", "GET", watch.clone(), &[], None);
            self.add("watch as a table", "GET", watch, &[TABLE], None);
        }
    }

    fn patches(&mut self) {
        const MERGE: (&str, &str) = ("content-type", "application/merge-patch+json");
        const STRATEGIC: (&str, &str) = ("content-type", "application/strategic-merge-patch+json");
        const STEPS: (&str, &str) = ("content-type", "application/json-patch+json");
        const APPLY: (&str, &str) = ("content-type", "application/apply-patch+yaml");
        if !self.resource.can("patch") {
            return;
        }
        let (item, object) = (self.item(), self.object.clone());
        let dry = format!("{item}?dryRun=All");
        let labels = json!({"metadata": {"labels": {"patched": "yes"}}});
        self.add("merge a label", "PATCH", dry.clone(), &[MERGE], Some(labels.clone()));
        self.add("merge a label strategically", "PATCH", dry.clone(), &[STRATEGIC], Some(labels));
        self.add("merge nothing", "PATCH", dry.clone(), &[MERGE], Some(json!({})));
        self.add("merge a list", "PATCH", dry.clone(), &[MERGE], Some(json!([])));
        self.add("merge another name", "PATCH", dry.clone(), &[MERGE], Some(json!({"metadata": {"name": "other"}})));
        self.add(
            "merge an unknown field",
            "PATCH",
            format!("{dry}&fieldValidation=Strict"),
            &[MERGE],
            Some(json!({"unknown": 1})),
        );
        self.add(
            "merge labels of another type",
            "PATCH",
            dry.clone(),
            &[MERGE],
            Some(json!({"metadata": {"labels": 1}})),
        );
        self.add(
            "merge an old version",
            "PATCH",
            dry.clone(),
            &[MERGE],
            Some(json!({"metadata": {"resourceVersion": "1"}})),
        );
        let step = |op: &str, path: &str| json!([{"op": op, "path": path, "value": "other"}]);
        self.add("a step that tests", "PATCH", dry.clone(), &[STEPS], Some(step("test", "/kind")));
        self.add("a step into nowhere", "PATCH", dry.clone(), &[STEPS], Some(step("replace", "/none/such")));
        self.add("a step that is none", "PATCH", dry.clone(), &[STEPS], Some(step("jump", "/kind")));
        self.add(
            "a patch of no known kind",
            "PATCH",
            dry.clone(),
            &[("content-type", "application/x-patch")],
            Some(json!({})),
        );
        self.add("patch another", "PATCH", format!("{}/none-such?dryRun=All", self.list()), &[MERGE], Some(json!({})));
        let mine = format!("{dry}&fieldManager=mine");
        self.add("apply it as it is", "PATCH", mine.clone(), &[APPLY], Some(object.clone()));
        self.add("apply without a manager", "PATCH", dry, &[APPLY], Some(object.clone()));
        self.add("apply an unknown field", "PATCH", mine.clone(), &[APPLY], Some(with(&object, "unknown", 1.into())));
        for path in self.fields().into_iter().filter(|path| !path.iter().any(|step| matches!(step, Step::Item(_)))) {
            for (what, changed) in changes(&object, &path, OTHER) {
                self.add(&format!("apply, {} {what}", shown(&path)), "PATCH", mine.clone(), &[APPLY], Some(changed));
            }
        }
    }

    fn updates(&mut self) {
        if !self.resource.can("update") {
            return;
        }
        let mut object = self.object.clone();
        let dry = format!("{}?dryRun=All", self.item());
        self.add("update without a version", "PUT", dry.clone(), &[], Some(object.clone()));
        object["metadata"]["resourceVersion"] = "1".into();
        self.add("update of an old version", "PUT", dry.clone(), &[], Some(object.clone()));
        object["metadata"]["resourceVersion"] = "{version}".into();
        self.add("update with the same", "PUT", dry.clone(), &[], Some(object.clone()));
        let mut other = object.clone();
        other["metadata"]["uid"] = "other".into();
        self.add("update of another uid", "PUT", dry.clone(), &[], Some(other));
        other = object.clone();
        other["metadata"]["name"] = "other".into();
        self.add("update of another name", "PUT", dry.clone(), &[], Some(other));
        for path in self.fields() {
            for (what, changed) in changes(&object, &path, OTHER) {
                self.add(&format!("update, {} {what}", shown(&path)), "PUT", dry.clone(), &[], Some(changed));
            }
        }
    }

    fn subresources(&mut self) {
        let merge = [("content-type", "application/merge-patch+json")];
        let item = self.item();
        for name in
            ["status", "scale"].into_iter().filter(|name| self.resource.subresources.iter().any(|has| has == name))
        {
            let path = format!("{item}/{name}");
            let dry = format!("{path}?dryRun=All");
            self.add(&format!("get its {name}"), "GET", path, &[], None);
            for (what, patch) in [
                ("nothing", json!({})),
                ("an unknown field", json!({"status": {"unknown": 1}})),
                (
                    "a condition",
                    json!({"status": {"conditions": [{"type": "Sample", "status": "True", "reason": "A", "message": "b", "lastTransitionTime": "2001-02-03T03:04:05Z"}]}}),
                ),
                ("a condition of nothing", json!({"status": {"conditions": [{}]}})),
                ("replicas below nothing", json!({"spec": {"replicas": -1}})),
                ("replicas", json!({"spec": {"replicas": 7}})),
                ("a status of another type", json!({"status": 1})),
                ("a label", json!({"metadata": {"labels": {"patched": "yes"}}})),
            ] {
                self.add(&format!("merge {what} into its {name}"), "PATCH", dry.clone(), &merge, Some(patch));
            }
        }
    }

    fn deletions(&mut self) {
        if !self.resource.can("delete") {
            return;
        }
        let (list, item) = (self.list(), self.item());
        let options = |options: Value| {
            let mut options = options;
            options["kind"] = "DeleteOptions".into();
            options["apiVersion"] = "v1".into();
            Some(options)
        };
        self.add("delete another", "DELETE", format!("{list}/none-such"), &[], None);
        self.add(
            "delete of another uid",
            "DELETE",
            item.clone(),
            &[],
            options(json!({"preconditions": {"uid": "other"}})),
        );
        self.add(
            "delete of another version",
            "DELETE",
            item.clone(),
            &[],
            options(json!({"preconditions": {"resourceVersion": "1"}})),
        );
        self.add("delete, dry", "DELETE", format!("{item}?dryRun=All"), &[], None);
        for policy in ["Foreground", "Orphan", "Background"] {
            let path = format!("{item}?dryRun=All&propagationPolicy={policy}");
            self.add(&format!("delete, dry, {policy}"), "DELETE", path, &[], None);
        }
        if self.resource.can("deletecollection") {
            let path = format!("{list}?dryRun=All&fieldSelector=metadata.name%3D{}", self.name());
            self.add("delete all, dry", "DELETE", path, &[], None);
        }
        self.add(
            "delete",
            "DELETE",
            item,
            &[],
            options(json!({"propagationPolicy": "Background", "preconditions": {"uid": "{uid}"}})),
        );
    }
}

/// A step on the way to a field.
#[derive(Clone)]
enum Step {
    Field(String),
    Item(usize),
}

/// All fields and items below a value, those above before those below.
fn walk(value: &Value, path: &mut Vec<Step>, found: &mut Vec<Vec<Step>>) {
    let below: Vec<(Step, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (Step::Field(name.clone()), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(at, value)| (Step::Item(at), value)).collect(),
        _ => return,
    };
    for (step, value) in below {
        path.push(step);
        found.push(path.clone());
        walk(value, path, found);
        path.pop();
    }
}

fn shown(path: &[Step]) -> String {
    path.iter()
        .enumerate()
        .map(|(at, step)| match step {
            Step::Field(name) if at == 0 => name.clone(),
            Step::Field(name) => format!(".{name}"),
            Step::Item(at) => format!("[{at}]"),
        })
        .collect()
}

/// What becomes of a value, and how that is called.
type Change = fn(&Value) -> Option<(&'static str, Value)>;

/// What a new object cannot have, in most places.
const WRONG: &[Change] = &[
    |value| Some(("of another type", if value.is_string() { json!(1) } else { json!("x") })),
    |value| value.is_string().then(|| ("empty", json!(""))),
    |value| value.is_string().then(|| ("not valid", json!("Not_valid!/"))),
    |value| value.is_number().then(|| ("below nothing", json!(-1))),
    |value| value.is_number().then(|| ("very large", json!(2_000_000_000))),
    |value| value.is_array().then(|| ("empty", json!([]))),
    |value| value.is_object().then(|| ("empty", json!({}))),
    |value| {
        let items = value.as_array()?;
        Some(("twice", items.iter().chain(items).cloned().collect()))
    },
];

/// Another value that is as good, in most places.
const OTHER: &[Change] = &[
    |value| value.as_str().map(|text| ("changed", format!("{text}x").into())),
    |value| value.as_i64().map(|number| ("changed", (number + 1).into())),
    |value| value.as_bool().map(|flag| ("changed", (!flag).into())),
];

/// The object with the field at `path` absent, and changed in each of these ways.
fn changes(object: &Value, path: &[Step], ways: &[Change]) -> Vec<(&'static str, Value)> {
    let Some(value) = find(object, path) else { return Vec::new() };
    let mut made: Vec<(&'static str, Value)> = ways
        .iter()
        .filter_map(|change| change(value))
        .filter_map(|(what, value)| {
            let mut object = object.clone();
            *find_mut(&mut object, path)? = value;
            Some((what, object))
        })
        .collect();
    let mut object = object.clone();
    if let Some((Step::Field(name), above)) = path.split_last()
        && let Some(Value::Object(fields)) = find_mut(&mut object, above)
    {
        fields.remove(name);
        made.insert(0, ("absent", object));
    }
    made
}

fn find<'a>(value: &'a Value, path: &[Step]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Field(name) => value.get(name),
        Step::Item(at) => value.get(at),
    })
}

fn find_mut<'a>(value: &'a mut Value, path: &[Step]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Field(name) => value.get_mut(name),
        Step::Item(at) => value.get_mut(at),
    })
}

/// The object with another value in one of its own fields.
fn with(object: &Value, field: &str, value: Value) -> Value {
    let mut fields: Map<String, Value> = object.as_object().cloned().unwrap_or_default();
    fields.insert(field.to_owned(), value);
    fields.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_changed_in_every_way_that_its_type_has() {
        let object = json!({"spec": {"a": "text", "b": [{"c": 1}]}});
        let mut found = Vec::new();
        walk(&object, &mut Vec::new(), &mut found);
        let made: Vec<String> = found
            .iter()
            .flat_map(|path| {
                changes(&object, path, WRONG).into_iter().map(|(what, made)| format!("{} {what}: {made}", shown(path)))
            })
            .collect();
        assert!(made.contains(&r#"spec.a empty: {"spec":{"a":"","b":[{"c":1}]}}"#.to_owned()), "{made:#?}");
        assert!(made.contains(&r#"spec.b twice: {"spec":{"a":"text","b":[{"c":1},{"c":1}]}}"#.to_owned()), "{made:#?}");
        assert!(made.contains(&r#"spec.b[0].c absent: {"spec":{"a":"text","b":[{}]}}"#.to_owned()), "{made:#?}");
        assert_eq!(made.iter().collect::<std::collections::BTreeSet<_>>().len(), made.len());
    }
}
