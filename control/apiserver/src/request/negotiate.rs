//! Which form an answer takes (kubernetes-api §4): the first clause of `Accept` that can be served wins.

use coracle_api::status::Status;

pub(crate) const JSON: &str = "application/json";
pub(crate) const YAML: &str = "application/yaml";
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// How bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Yaml,
    Protobuf,
}

/// What is shown of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All of it.
    Whole,
    /// A row of a table; `beta` is the group's older version.
    Table { beta: bool },
    /// Its metadata.
    Metadata { beta: bool },
    /// The metadata of the objects of a list.
    MetadataList { beta: bool },
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    pub format: Format,
    pub shape: Shape,
    pub pretty: bool,
}

impl Form {
    /// Plain JSON.
    pub const JSON: Form = Form { format: Format::Json, shape: Shape::Whole, pretty: false };
}

/// What an endpoint can answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Objects of a stored kind: tables and metadata too.
    Stored,
    /// Lists of such objects.
    List,
    /// Other objects.
    Plain,
    /// A stream of events.
    Watch,
}

/// One clause of an Accept header.
struct Clause<'a> {
    kind: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Clause<'a> {
        let mut parts = text.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let mut clause = Clause { kind, parameters: Vec::new(), quality: 1.0 };
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match key.trim() {
                "q" => clause.quality = value.trim().parse().unwrap_or(1.0),
                key => clause.parameters.push((key, value.trim().trim_matches('"'))),
            }
        }
        clause
    }

    fn parameter(&self, key: &str) -> &'a str {
        self.parameters.iter().find(|(k, _)| *k == key).map_or("", |(_, v)| v)
    }

    fn format(&self) -> Option<Format> {
        match self.kind {
            "*/*" | "application/*" | "*" | JSON => Some(Format::Json),
            YAML => Some(Format::Yaml),
            PROTOBUF => Some(Format::Protobuf),
            _ => None,
        }
    }

    fn shape(&self) -> Option<Shape> {
        let beta = match (self.parameter("as"), self.parameter("g"), self.parameter("v")) {
            ("", _, _) => return Some(Shape::Whole),
            (_, "meta.k8s.io", "v1") => false,
            (_, "meta.k8s.io", "v1beta1") => true,
            _ => return None,
        };
        match self.parameter("as") {
            "Table" => Some(Shape::Table { beta }),
            "PartialObjectMetadata" => Some(Shape::Metadata { beta }),
            "PartialObjectMetadataList" => Some(Shape::MetadataList { beta }),
            _ => None,
        }
    }
}

/// Chooses the form for `accept`.
pub(crate) fn choose(accept: Option<&str>, offer: Offer, pretty: bool) -> Result<Form, Status> {
    choose_of(accept, offer, pretty, true)
}

/// The same of objects that may have no protobuf form.
pub(crate) fn choose_of(accept: Option<&str>, offer: Offer, pretty: bool, has_protobuf: bool) -> Result<Form, Status> {
    let accept = accept.map(str::trim).filter(|text| !text.is_empty()).unwrap_or("*/*");
    let mut clauses: Vec<Clause<'_>> = accept.split(',').map(|text| Clause::parse(text.trim())).collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    for clause in &clauses {
        let (Some(format), Some(shape)) = (clause.format(), clause.shape()) else { continue };
        let possible = match (offer, shape) {
            (_, Shape::Whole) if format == Format::Protobuf && !has_protobuf => false,
            (_, Shape::Whole) => offer != Offer::Watch || format != Format::Yaml || clause.kind == YAML,
            (Offer::Plain, _) => false,
            (Offer::Watch, Shape::MetadataList { .. }) => false,
            // Tables have no protobuf form of their own.
            (_, Shape::Table { .. }) => format != Format::Protobuf,
            _ => true,
        };
        if possible {
            let pretty = pretty || matches!(clause.parameter("pretty"), "1" | "true");
            return Ok(Form { format, shape, pretty });
        }
    }
    if clauses.iter().any(|clause| clause.format().is_some()) {
        let all = [JSON, YAML, PROTOBUF];
        return Err(Status::not_acceptable(if has_protobuf { &all } else { &all[..2] }));
    }
    // Types that nothing here is written in are refused before anybody looks at what is asked for.
    let mut message = "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, \
         application/vnd.kubernetes.protobuf"
        .to_owned();
    if matches!(offer, Offer::List | Offer::Watch) {
        message.push_str(", application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch");
    }
    Err(Status::generic(406, &message))
}

/// The format of a body; nothing said means JSON.
pub(crate) fn body_format(content_type: Option<&str>) -> Result<Format, Status> {
    match content_type.map_or(JSON, essence) {
        JSON => Ok(Format::Json),
        YAML => Ok(Format::Yaml),
        PROTOBUF => Ok(Format::Protobuf),
        _ => Err(Status::unsupported_media_type(&[JSON, YAML, PROTOBUF])),
    }
}

/// A media type without its parameters.
pub(crate) fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_clause_that_can_be_served_wins() {
        let table = Shape::Table { beta: false };
        for (accept, offer, expected) in [
            ("", Offer::Stored, Some((Format::Json, Shape::Whole))),
            ("*/*", Offer::Plain, Some((Format::Json, Shape::Whole))),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                Offer::Stored,
                Some((Format::Protobuf, Shape::Whole)),
            ),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
                Offer::Stored,
                Some((Format::Json, table)),
            ),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
                Offer::Plain,
                Some((Format::Json, Shape::Whole)),
            ),
            ("application/json;as=Table;v=v1;g=meta.k8s.io", Offer::Plain, None),
            (
                "application/json;as=Poem;v=v1;g=meta.k8s.io, application/json",
                Offer::Stored,
                Some((Format::Json, Shape::Whole)),
            ),
            ("application/json;q=0.5, application/yaml", Offer::Stored, Some((Format::Yaml, Shape::Whole))),
            (
                "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1;g=meta.k8s.io",
                Offer::Stored,
                Some((Format::Json, table)),
            ),
            ("text/html", Offer::Stored, None),
            ("application/cbor", Offer::Watch, None),
        ] {
            let chosen = choose(Some(accept), offer, false).ok().map(|form| (form.format, form.shape));
            assert_eq!(chosen, expected, "{accept}");
        }
    }
}
