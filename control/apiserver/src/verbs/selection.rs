//! The options of lists and watches: which objects, of when, how many (kubernetes-api §10).

use std::time::Duration;

use coracle_api::kinds::FieldError;
use coracle_api::meta::parse_resource_version;
use coracle_api::meta::selector::{FieldSelector, LabelSelector};
use coracle_api::meta::text::quote;
use coracle_api::status::Status;
use coracle_keyspace::{Records, Revision};

use crate::catalog::Resource;
use crate::request::call::Call;
use crate::store::keyed::{Key, NODE};

/// Longest life of a watch.
const WATCH_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Most terms of a selector: each is looked at for each object.
const TERMS_MAX: usize = 1_000;

/// How `resourceVersion` is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    Exact,
    NotOlderThan,
}

/// The options of a list or watch.
#[derive(Debug, Clone)]
pub(crate) struct ListOptions {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// As it was given; `None` when it was not or empty.
    pub resource_version: Option<String>,
    pub version_match: Option<Match>,
    pub limit: usize,
    pub continue_token: Option<String>,
    pub bookmarks: bool,
    pub initial_events: Option<bool>,
    pub timeout: Option<Duration>,
}

impl ListOptions {
    pub fn of(call: &Call, resource: &Resource, watch: bool) -> Result<ListOptions, Status> {
        let query = &call.query;
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default())
            .map_err(|error| Status::bad_request(error.to_string()))?;
        let mut fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default())
            .map_err(|error| Status::bad_request(error.to_string()))?;
        if labels.requirements().len().max(fields.terms().len()) > TERMS_MAX {
            return Err(Status::bad_request(format!("a selector has at most {TERMS_MAX} terms")));
        }
        check_fields(&mut fields, resource)?;
        if let Some(name) = call.target.name.as_deref() {
            // Only the old watch paths name an object here.
            if fields.exact("metadata.name").is_some_and(|selected| selected != name) {
                return Err(Status::bad_request("fieldSelector metadata.name doesn't match requested name"));
            }
            fields.terms_mut().extend_from_slice(FieldSelector::name(name).terms());
        }
        let options = ListOptions {
            labels,
            fields,
            resource_version: query.text("resourceVersion").map(str::to_owned),
            version_match: None,
            limit: usize::try_from(query.integer("limit")?.unwrap_or(0)).unwrap_or(0),
            continue_token: query.text("continue").map(str::to_owned),
            bookmarks: query.flag("allowWatchBookmarks").unwrap_or(false),
            initial_events: query.flag("sendInitialEvents"),
            // A negative time is over at once; 0 is none, and nobody needs more than a year.
            timeout: query
                .integer("timeoutSeconds")?
                .filter(|seconds| *seconds != 0)
                .map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(WATCH_MAX)),
        };
        options.checked(query.text("resourceVersionMatch"), watch)
    }

    /// The rules of `resourceVersionMatch` and `sendInitialEvents`.
    fn checked(mut self, version_match: Option<&str>, watch: bool) -> Result<ListOptions, Status> {
        const MATCH: &str = "resourceVersionMatch";
        let mut errors = Vec::new();
        let mut forbid = |field, detail: &str| errors.push(FieldError::forbidden(field, detail));
        let continues = self.continue_token.is_some();
        if watch && self.initial_events.is_some() {
            if version_match != Some("NotOlderThan") {
                forbid(MATCH, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
            }
            if version_match.is_some_and(|value| value != "NotOlderThan") {
                errors.push(FieldError::not_supported(MATCH, version_match.unwrap_or_default(), &["NotOlderThan"]));
            }
            if continues {
                errors
                    .push(FieldError::forbidden(MATCH, "resourceVersionMatch is forbidden when continue is provided"));
            }
        } else if watch {
            if version_match.is_some() {
                forbid(MATCH, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
            }
            if version_match.is_some_and(|value| value != "NotOlderThan") {
                errors.push(FieldError::not_supported(MATCH, version_match.unwrap_or_default(), &["NotOlderThan"]));
            }
            if continues {
                errors
                    .push(FieldError::forbidden(MATCH, "resourceVersionMatch is forbidden when continue is provided"));
            }
        } else {
            if version_match.is_some() {
                if self.resource_version.is_none() {
                    forbid(MATCH, "resourceVersionMatch is forbidden unless resourceVersion is provided");
                }
                if continues {
                    forbid(MATCH, "resourceVersionMatch is forbidden when continue is provided");
                }
                match version_match {
                    Some("NotOlderThan") => {}
                    Some("Exact") => {
                        if self.resource_version.as_deref() == Some("0") {
                            forbid(MATCH, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
                        }
                    }
                    other => errors.push(FieldError::not_supported(
                        MATCH,
                        other.unwrap_or_default(),
                        &["Exact", "NotOlderThan", ""],
                    )),
                }
            }
            if self.initial_events.is_some() {
                errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
            }
        }
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", "ListOptions", "", errors));
        }
        self.version_match = match version_match {
            Some("Exact") => Some(Match::Exact),
            Some(_) => Some(Match::NotOlderThan),
            None => None,
        };
        Ok(self)
    }

    /// The revision that was asked for; `None` when nothing was said.
    pub fn revision(&self) -> Result<Option<Revision>, FieldError> {
        let version = self.resource_version.as_deref().map(parse_resource_version).transpose()?;
        Ok(version.map(Revision::new))
    }

    /// The namespace: of the path, or the one that the field selector pins.
    pub fn namespace<'a>(&'a self, call: &'a Call, resource: &Resource) -> Option<&'a str> {
        let pinned = || self.fields.exact("metadata.namespace").filter(|namespace| !namespace.is_empty());
        call.namespace().or_else(pinned).filter(|_| resource.row.namespaced())
    }

    /// The records among which those that are selected must be: one, when it is named.
    pub fn candidates(&self, namespace: Option<&str>, resource: &Resource, records: Records) -> Records {
        let Some(name) = self.fields.exact("metadata.name") else { return records };
        let name = match (namespace, resource.row.namespaced()) {
            (Some(namespace), true) => format!("{namespace}/{name}"),
            (None, true) => return records,
            (_, false) => name.to_owned(),
        };
        let found = records.get_key_value(name.as_str());
        found.map(|(name, record)| Records::unit(name.clone(), record.clone())).unwrap_or_default()
    }

    /// The one name or node that all that is selected has, if there is one.
    pub fn key(&self, namespace: Option<&str>, resource: &Resource) -> Option<Key> {
        // Kinds that go would leave their followers behind.
        resource.row.built_in()?;
        let placed = namespace.is_some() || !resource.row.namespaced();
        if let Some(name) = self.fields.exact("metadata.name").filter(|_| placed) {
            return Some(Key::Name(resource.record_name(namespace, name)));
        }
        let has_node = resource.row.is_selectable(NODE);
        let node = self.fields.exact(NODE).filter(|node| has_node && !node.is_empty())?;
        Some(Key::Node(node.into()))
    }

    /// Whether what is selected depends on more than the names.
    pub fn needs_facts(&self) -> bool {
        let is_name = |field: &str| matches!(field, "metadata.name" | "metadata.namespace");
        !self.labels.is_everything() || self.fields.terms().iter().any(|term| !is_name(&term.field))
    }

    /// What is looked at of a record.
    pub fn terms(&self) -> usize {
        self.labels.requirements().len() + self.fields.terms().len()
    }

    /// Whether everything is selected.
    pub fn selects_all(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }
}

/// Kinds whose fields are renamed on the way in have another wording for a field that they have not.
const CONVERTING: [(&str, &str); 7] = [
    ("", "pods"),
    ("", "nodes"),
    ("", "events"),
    ("", "namespaces"),
    ("", "secrets"),
    ("", "services"),
    ("", "replicationcontrollers"),
];

/// Kinds that have fields of their own, and yet the common wording.
const DECLARING: [(&str, &str); 2] = [("apps", "replicasets"), ("networking.k8s.io", "ipaddresses")];

/// Refuses fields that the kind does not offer.
fn check_fields(fields: &mut FieldSelector, resource: &Resource) -> Result<(), Status> {
    let row = &resource.row;
    for term in fields.terms_mut() {
        if (row.group(), row.resource(), term.field.as_str()) == ("", "pods", "spec.host") {
            term.field = "spec.nodeName".to_owned();
        }
        let known =
            matches!(term.field.as_str(), "metadata.name" | "metadata.namespace") || row.is_selectable(&term.field);
        if known {
            continue;
        }
        let key = (row.group(), row.resource());
        let has_own = row.selectable().next().is_some() || row.custom().is_some();
        let converts = CONVERTING.contains(&key) || has_own && !DECLARING.contains(&key);
        return Err(Status::bad_request(if key == ("batch", "jobs") {
            format!("field label {} not supported for Job", quote(&term.field))
        } else if key == ("resource.k8s.io", "resourceslices") {
            format!("field label not supported for resource.k8s.io/v1, Kind=ResourceSlice: {}", term.field)
        } else if converts {
            format!("field label not supported: {}", term.field)
        } else {
            format!(
                "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                quote(&term.field)
            )
        }));
    }
    Ok(())
}
