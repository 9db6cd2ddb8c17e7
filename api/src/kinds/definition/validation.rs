//! Checks definitions, as apiextensions' `validation` package does.

use std::collections::HashSet;

use serde_json::Value;

use super::schema::{self, Tightened};
use crate::custom::names::{APPROVED, Approval, approval, is_protected};
use crate::custom::{ESTABLISHED, Structural};
use crate::kinds::admission::callee;
use crate::kinds::value::Read;
use crate::kinds::{FieldError, FieldErrors};
use crate::meta::field::Path;
use crate::meta::{condition, names, text};

const SPEC: Path<'static> = Path::new("spec");
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
/// Most fields that selectors may ask for.
const SELECTABLE_MAX: usize = 8;
/// Longest words about a deprecated version.
const DEPRECATION_MAX: usize = 256;

/// Checks a new definition, or one that is to replace `old`.
pub(super) fn definition(object: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    let spec = &object["spec"];
    let name = object["metadata"]["name"].text();
    // One without a name is refused for that.
    if old.is_none()
        && !name.is_empty()
        && name != format!("{}.{}", spec["names"]["plural"].text(), spec["group"].text())
    {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", name, detail));
    }
    let established = old.is_some_and(|old| condition::is_true(old, ESTABLISHED));
    specification(spec, (old.map(|old| &old["spec"]), established), errors);
    if let Some(old) = old {
        let before = &old["spec"];
        let mut fixed = |path: &[&str]| {
            let at = |spec: &Value| path.iter().fold(spec.clone(), |value, field| value[*field].clone());
            let (new, old) = (at(spec), at(before));
            if new != old {
                let field = format!("spec.{}", path.join("."));
                errors.push(FieldError::invalid(field, &new, "field is immutable"));
            }
        };
        if condition::is_true(old, ESTABLISHED) {
            fixed(&["scope"]);
            fixed(&["names", "kind"]);
        }
        fixed(&["group"]);
        fixed(&["names", "plural"]);
    }
    status(object, errors);
    stored_versions(object, errors);
    approved(object, old, errors);
    if spec["preserveUnknownFields"].flag() && old.is_none_or(|old| !old["spec"]["preserveUnknownFields"].flag()) {
        let detail =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid(SPEC.child("preserveUnknownFields"), true, detail));
    }
}

/// Checks the status.
pub(super) fn status(object: &Value, errors: &mut FieldErrors) {
    kind_names(&object["status"]["acceptedNames"], &Path::new("status.acceptedNames"), errors);
}

fn approved(object: &Value, old: Option<&Value>, errors: &mut FieldErrors) {
    if !is_protected(object["spec"]["group"].text()) {
        return;
    }
    let (state, annotations) = (approval(object), Path::new("metadata.annotations"));
    if old.is_some_and(|old| std::mem::discriminant(&approval(old)) == std::mem::discriminant(&state)) {
        return;
    }
    let field = annotations.key(APPROVED);
    match state {
        Approval::Given(_) | Approval::Bypassed(_) => {}
        Approval::Missing(reason) => errors.push(FieldError::required(field, &reason)),
        Approval::Invalid(reason) => {
            let given = crate::meta::annotation(object, APPROVED).unwrap_or_default();
            errors.push(FieldError::invalid(field, given, &reason));
        }
    }
}

fn stored_versions(object: &Value, errors: &mut FieldErrors) {
    let (stored, path) = (&object["status"]["storedVersions"], Path::new("status.storedVersions"));
    if stored.is_empty() {
        return errors.push(FieldError::invalid(path, stored, "must have at least one stored version"));
    }
    let versions = object["spec"]["versions"].items();
    let known: HashSet<&str> = versions.iter().map(|version| version["name"].text()).collect();
    for version in versions.iter().filter(|version| version["storage"].flag()) {
        let name = version["name"].text();
        if stored.items().iter().all(|stored| stored.text() != name) {
            errors.push(FieldError::invalid(path, stored, &format!("must have the storage version {name}")));
        }
    }
    for (at, name) in stored.items().iter().map(Read::text).enumerate().filter(|(_, name)| !known.contains(name)) {
        let detail = format!(
            "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a \
             storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
        );
        errors.push(FieldError::invalid(path.index(at), name, &detail));
    }
}

fn specification(spec: &Value, (old, established): Before<'_>, errors: &mut FieldErrors) {
    let (group, at_group) = (spec["group"].text(), SPEC.child("group"));
    if group.is_empty() {
        errors.push(FieldError::required(at_group, ""));
    } else {
        let wrong = names::dns_subdomain(group);
        if !wrong.is_empty() {
            errors.push(FieldError::invalid(at_group, group, &wrong.join(",")));
        } else if !group.contains('.') {
            errors.push(FieldError::invalid(at_group, group, "should be a domain with at least one dot"));
        }
    }
    match spec["scope"].text() {
        "" => errors.push(FieldError::required(SPEC.child("scope"), "")),
        "Cluster" | "Namespaced" => {}
        other => errors.push(FieldError::not_supported(SPEC.child("scope"), other, &["Cluster", "Namespaced"])),
    }
    let at_versions = SPEC.child("versions");
    let versions = spec["versions"].items();
    for (at, version) in versions.iter().enumerate() {
        if !version["schema"]["openAPIV3Schema"].is_object() {
            errors.push(FieldError::required(at_versions.index(at).child("schema.openAPIV3Schema"), ""));
        }
    }
    let tightened = Tightened::since(old);
    let shared = shared_fields(versions);
    let mut work = schema::Work::default();
    let mut seen = HashSet::new();
    let mut unique = true;
    for (at, version) in versions.iter().enumerate() {
        let path = at_versions.index(at);
        let name = version["name"].text();
        unique &= seen.insert(name);
        let wrong = names::dns_1035_label(name);
        if !wrong.is_empty() {
            errors.push(FieldError::invalid(path.child("name"), name, &wrong.join(",")));
            // The first was once named here.
            if at == 0 && !name.is_empty() {
                errors.push(FieldError::invalid(SPEC.child("version"), name, &wrong.join(",")));
            }
        }
        // What was accepted as it is stays accepted.
        let before =
            old.and_then(|old| old["versions"].items().iter().find(|before| before["name"] == version["name"]));
        let places = Places { path: &path, is_first: at == 0, shared: &shared };
        check_version(version, before, &places, &tightened, &mut work, errors);
    }
    if !unique {
        errors.push(FieldError::invalid(at_versions, &spec["versions"], "must contain unique version names"));
    }
    if versions.iter().filter(|version| version["storage"].flag()).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid(at_versions, &spec["versions"], detail));
    }
    let at_names = SPEC.child("names");
    for field in ["plural", "singular", "kind", "listKind"] {
        if spec["names"][field].is_empty() {
            errors.push(FieldError::required(at_names.child(field), ""));
        }
    }
    kind_names(&spec["names"], &at_names, errors);
    conversion(&spec["conversion"], (old, established), errors);
}

/// The specification that there was, and whether its names were established.
type Before<'a> = (Option<&'a Value>, bool);

/// The webhook that converts.
fn webhook(webhook: &Value, path: &Path<'_>, (old, established): Before<'_>, errors: &mut FieldErrors) {
    let (config, at) = (&webhook["clientConfig"], path.child("webhookClientConfig"));
    if config.is_null() {
        errors.push(FieldError::required(at, "required when strategy is set to Webhook"));
    } else {
        callee::client_config(config, &at, errors);
        // What is no certificate may be put right later, while nobody relies on it.
        let relied = established
            && old.is_some_and(|old| callee::is_bundle(&old["conversion"]["webhook"]["clientConfig"]["caBundle"]));
        if relied && !callee::is_bundle(&config["caBundle"]) {
            let why = "unable to load root certificates: unable to parse bytes as PEM block";
            errors.push(FieldError::invalid(at.child("caBundle"), &config["caBundle"], why));
        }
    }
    let before = old.map(|old| &old["conversion"]["webhook"]["conversionReviewVersions"]);
    let is_known = before.is_none_or(|versions| versions.is_empty() || callee::has_known_version(versions));
    let versions = path.child("conversionReviewVersions");
    callee::review_versions(&webhook["conversionReviewVersions"], &versions, is_known, "", errors);
}

fn conversion(conversion: &Value, old: Before<'_>, errors: &mut FieldErrors) {
    let path = SPEC.child("conversion");
    match conversion["strategy"].text() {
        "" if conversion.is_null() => {}
        "" => errors.push(FieldError::required(path.child("strategy"), "")),
        "None" => {
            for (field, name) in
                [("webhook", "webhookClientConfig"), ("conversionReviewVersions", "conversionReviewVersions")]
            {
                let given = &conversion[field];
                let given = if field == "webhook" { &given["clientConfig"] } else { given };
                if given.is_set() && !given.is_empty() {
                    let detail = "should not be set when strategy is not set to Webhook";
                    errors.push(FieldError::forbidden(path.child(name), detail));
                }
            }
        }
        "Webhook" => webhook(&conversion["webhook"], &path, old, errors),
        other => errors.push(FieldError::not_supported(path.child("strategy"), other, &["None", "Webhook"])),
    }
}

fn kind_names(given: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    for field in ["plural", "singular"] {
        let name = given[field].text();
        let wrong = names::dns_1035_label(name);
        if !name.is_empty() && !wrong.is_empty() {
            errors.push(FieldError::invalid(path.child(field), name, &wrong.join(",")));
        }
    }
    for field in ["kind", "listKind"] {
        let name = given[field].text();
        let wrong = names::dns_1035_label(&name.to_lowercase());
        if !name.is_empty() && !wrong.is_empty() {
            let detail = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
            errors.push(FieldError::invalid(path.child(field), name, &detail));
        }
    }
    let mut list = |field: &str| {
        for (at, name) in given[field].items().iter().map(Read::text).enumerate() {
            let wrong = names::dns_1035_label(name);
            if !wrong.is_empty() {
                errors.push(FieldError::invalid(path.child(field).index(at), name, &wrong.join(",")));
            }
        }
    };
    list("shortNames");
    list("categories");
    let kind = given["kind"].text();
    if !kind.is_empty() && kind == given["listKind"].text() {
        let detail = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(path.child("listKind"), kind, detail));
    }
}

/// Where the parts of a version are, in words. What is the same in all versions the reference keeps once, beside them, and
/// speaks of it there.
struct Places<'a> {
    path: &'a Path<'a>,
    is_first: bool,
    shared: &'a [&'static str],
}

impl<'a> Places<'a> {
    /// The place of a field of the version, which is called `shared` where all have the same; `None` where the first has
    /// spoken of it.
    fn of(&self, field: &'a str, shared: &'a str) -> Option<Path<'a>> {
        match (self.shared.contains(&field), self.is_first) {
            (false, _) => Some(self.path.child(field)),
            (true, true) => Some(SPEC.child(shared)),
            (true, false) => None,
        }
    }
}

/// Fields that all versions have the same in. Each version is compared with the first alone: there may be many.
fn shared_fields(versions: &[Value]) -> Vec<&'static str> {
    let is_shared = |field: &&str| versions.iter().skip(1).all(|version| version[*field] == versions[0][*field]);
    ["schema", "subresources", "additionalPrinterColumns", "selectableFields"].into_iter().filter(is_shared).collect()
}

fn check_version(
    version: &Value,
    before: Option<&Value>,
    places: &Places<'_>,
    tightened: &Tightened,
    work: &mut schema::Work,
    errors: &mut FieldErrors,
) {
    deprecation(version, places.path, errors);
    let parts = &version["subresources"];
    let written = &version["schema"]["openAPIV3Schema"];
    if let Some(at) = places.of("schema", "validation").filter(|_| written.is_object()) {
        let unchanged = before.is_some_and(|before| before["schema"] == version["schema"]);
        schema::check(written, parts["status"].is_object(), unchanged, &at, tightened, work, errors);
    }
    if let Some(at) = places.of("subresources", "subresources") {
        scale(&parts["scale"], &at, errors);
    }
    if let Some(list) = places.of("additionalPrinterColumns", "additionalPrinterColumns") {
        for (at, column) in version["additionalPrinterColumns"].items().iter().enumerate() {
            printer_column(column, &list.index(at), errors);
        }
    }
    if let Some(at) = places.of("selectableFields", "selectableFields") {
        selectable(version, before, written, &at, errors);
    }
}

fn deprecation(version: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let Some(words) = version["deprecationWarning"].as_str() else { return };
    let field = path.child("deprecationWarning");
    let mut wrong = |detail: &str| errors.push(FieldError::invalid(field, words, detail));
    if !version["deprecated"].flag() {
        return wrong("can only be set for deprecated versions");
    }
    if words.len() > DEPRECATION_MAX {
        wrong("must be <= 256 characters long");
    }
    if words.is_empty() {
        wrong("must not be an empty string");
    }
    if let Some((at, _)) = words.char_indices().find(|(_, c)| !text::is_print(*c)) {
        wrong(&format!("must only contain printable UTF-8 characters; non-printable character found at index {at}"));
    }
}

fn scale(scale: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if !scale.is_object() {
        return;
    }
    let rows: [(&str, &[&str], &str); 3] = [
        ("specReplicasPath", &[".spec."], "should be a json path under .spec"),
        ("statusReplicasPath", &[".status."], "should be a json path under .status"),
        ("labelSelectorPath", &[".spec.", ".status."], "should be a json path under either .spec or .status"),
    ];
    for (field, roots, detail) in rows {
        let given = scale[field].text();
        let name = format!("scale.{field}");
        let at = path.child(&name);
        if given.is_empty() {
            if field != "labelSelectorPath" {
                errors.push(FieldError::required(at, ""));
            }
        } else if !given.starts_with('.') {
            errors.push(FieldError::invalid(at, given, "must be a simple json path starting with ."));
        } else if roots.iter().all(|root| !given.starts_with(root)) {
            errors.push(FieldError::invalid(at, given, detail));
        }
    }
}

fn printer_column(column: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    if column["name"].is_empty() {
        errors.push(FieldError::required(path.child("name"), ""));
    }
    let one_of = |words: &[&str]| format!("must be one of {}", words.join(","));
    match column["type"].text() {
        "" => errors.push(FieldError::required(path.child("type"), &one_of(&COLUMN_TYPES))),
        ty if !COLUMN_TYPES.contains(&ty) => {
            errors.push(FieldError::invalid(path.child("type"), ty, &one_of(&COLUMN_TYPES)));
        }
        _ => {}
    }
    let format = column["format"].text();
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        errors.push(FieldError::invalid(path.child("format"), format, &one_of(&COLUMN_FORMATS)));
    }
    let given = column["jsonPath"].text();
    if given.is_empty() {
        errors.push(FieldError::required(path.child("JSONPath"), ""));
    } else if !given.starts_with('.') {
        let detail = "must be a simple json path starting with .";
        errors.push(FieldError::invalid(path.child("JSONPath"), given, detail));
    }
}

fn selectable(version: &Value, before: Option<&Value>, written: &Value, path: &Path<'_>, errors: &mut FieldErrors) {
    let given = version["selectableFields"].items();
    if given.is_empty() {
        return;
    }
    if !written.is_object() {
        let detail = "may only be set when validations.schema is included";
        return errors.push(FieldError::invalid(path, "", detail));
    }
    let schema = Structural::read(written);
    let mut seen = HashSet::new();
    for (at, field) in given.iter().enumerate() {
        let index = path.index(at);
        let (given, at) = (field["jsonPath"].text(), index.child("jsonPath"));
        if given.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        match schema::field_of(given, &schema) {
            Err(why) => {
                errors.push(FieldError::invalid(at, given, &format!("is an invalid path: {why}")));
                continue;
            }
            Ok(found) => {
                if given.starts_with(".metadata") {
                    errors.push(FieldError::invalid(at, given, "must not point to fields in metadata"));
                }
                if !schema::is_selectable(found) {
                    let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
                    errors.push(FieldError::invalid(at, given, detail));
                }
            }
        }
        if !seen.insert(given) {
            errors.push(FieldError::duplicate(at, given));
        }
    }
    let unchanged = before.is_some_and(|before| before["selectableFields"] == version["selectableFields"]);
    if seen.len() > SELECTABLE_MAX && !unchanged {
        errors.push(FieldError::too_many(path, seen.len(), SELECTABLE_MAX));
    }
}
