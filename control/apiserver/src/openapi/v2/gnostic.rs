//! OpenAPI v2 as gnostic's protobuf (`openapiv2/OpenAPIv2.proto` of google/gnostic-models): what client-go asks for.
//!
//! Only what [`super::document`] writes is put into messages; extensions travel as text of YAML, of which JSON is a part.

use serde_json::{Map, Value};

/// A message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, message: Message) {
        self.bytes(field, &message.0);
    }

    fn text(&mut self, field: u64, value: &Value) {
        if let Some(text) = value.as_str() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u64, value: &Value) {
        for text in value.as_array().into_iter().flatten() {
            self.text(field, text);
        }
    }

    fn flag(&mut self, field: u64, value: &Value) {
        if value == true {
            self.varint(field << 3);
            self.varint(1);
        }
    }

    /// `repeated NamedAny` of every `x-…` key.
    fn extensions(&mut self, field: u64, object: &Value) {
        for (name, value) in fields(object).filter(|(name, _)| name.starts_with("x-")) {
            self.message(field, named(name, any(value)));
        }
    }
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn named(name: &str, value: Message) -> Message {
    let mut message = Message::default();
    message.bytes(1, name.as_bytes());
    message.message(2, value);
    message
}

fn any(value: &Value) -> Message {
    let mut message = Message::default();
    message.bytes(2, value.to_string().as_bytes());
    message
}

fn wrapped(field: u64, inner: Message) -> Message {
    let mut message = Message::default();
    message.message(field, inner);
    message
}

/// The document.
pub(crate) fn document(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, &document["swagger"]);
    let mut info = Message::default();
    info.text(1, &document["info"]["title"]);
    info.text(2, &document["info"]["version"]);
    out.message(2, info);
    let mut paths = Message::default();
    for (path, item) in fields(&document["paths"]) {
        paths.message(2, named(path, path_item(item)));
    }
    out.message(8, paths);
    let mut definitions = Message::default();
    for (name, definition) in fields(&document["definitions"]) {
        definitions.message(1, named(name, schema(definition)));
    }
    out.message(9, definitions);
    for requirement in document["security"].as_array().into_iter().flatten() {
        let mut message = Message::default();
        for (name, scopes) in fields(requirement) {
            let mut list = Message::default();
            list.texts(1, scopes);
            message.message(1, named(name, list));
        }
        out.message(12, message);
    }
    let mut security = Message::default();
    for (name, definition) in fields(&document["securityDefinitions"]) {
        let mut key = Message::default();
        for (field, name) in [(1, "type"), (2, "name"), (3, "in"), (4, "description")] {
            key.text(field, &definition[name]);
        }
        security.message(1, named(name, wrapped(2, key)));
    }
    out.message(13, security);
    out.0
}

fn path_item(item: &Value) -> Message {
    let mut out = Message::default();
    for (field, method) in
        [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")]
    {
        if item[method].is_object() {
            out.message(field, operation(&item[method]));
        }
    }
    for parameter in item["parameters"].as_array().into_iter().flatten() {
        out.message(9, parameter_item(parameter));
    }
    out.extensions(10, item);
    out
}

fn operation(operation: &Value) -> Message {
    let mut out = Message::default();
    out.texts(1, &operation["tags"]);
    out.text(3, &operation["description"]);
    out.text(5, &operation["operationId"]);
    out.texts(6, &operation["produces"]);
    out.texts(7, &operation["consumes"]);
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        out.message(8, parameter_item(parameter));
    }
    let mut responses = Message::default();
    for (code, response) in fields(&operation["responses"]) {
        let mut message = Message::default();
        message.text(1, &response["description"]);
        if response["schema"].is_object() {
            message.message(2, wrapped(1, schema(&response["schema"])));
        }
        responses.message(1, named(code, wrapped(1, message)));
    }
    out.message(9, responses);
    out.texts(10, &operation["schemes"]);
    out.extensions(13, operation);
    out
}

/// A ParametersItem: a body parameter, or one of the query or the path.
fn parameter_item(parameter: &Value) -> Message {
    let mut out = Message::default();
    if parameter["in"] == "body" {
        for (field, name) in [(1, "description"), (2, "name"), (3, "in")] {
            out.text(field, &parameter[name]);
        }
        out.flag(4, &parameter["required"]);
        out.message(5, schema(&parameter["schema"]));
        return wrapped(1, wrapped(1, out));
    }
    let in_path = parameter["in"] == "path";
    out.flag(1, &parameter["required"]);
    for (field, name) in [(2, "in"), (3, "description"), (4, "name")] {
        out.text(field, &parameter[name]);
    }
    let (kind, unique, sub) = if in_path { (5, 19, 4) } else { (6, 20, 3) };
    out.text(kind, &parameter["type"]);
    out.flag(unique, &parameter["uniqueItems"]);
    wrapped(1, wrapped(2, wrapped(sub, out)))
}

fn schema(schema_: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, &schema_["$ref"]);
    out.text(2, &schema_["format"]);
    out.text(4, &schema_["description"]);
    if !schema_["default"].is_null() {
        out.message(5, any(&schema_["default"]));
    }
    out.texts(19, &schema_["required"]);
    for value in schema_["enum"].as_array().into_iter().flatten() {
        out.message(20, any(value));
    }
    match &schema_["additionalProperties"] {
        Value::Bool(flag) => {
            let mut item = Message::default();
            item.varint(2 << 3);
            item.varint(u64::from(*flag));
            out.message(21, item);
        }
        Value::Object(_) => out.message(21, wrapped(1, schema(&schema_["additionalProperties"]))),
        _ => {}
    }
    if schema_["type"].is_string() {
        let mut kind = Message::default();
        kind.text(1, &schema_["type"]);
        out.message(22, kind);
    }
    if schema_["items"].is_object() {
        out.message(23, wrapped(1, schema(&schema_["items"])));
    }
    for part in schema_["allOf"].as_array().into_iter().flatten() {
        out.message(24, schema(part));
    }
    if schema_["properties"].is_object() {
        let mut properties = Message::default();
        for (name, property) in fields(&schema_["properties"]) {
            properties.message(1, named(name, schema(property)));
        }
        out.message(25, properties);
    }
    out.extensions(31, schema_);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages_have_gnostics_numbers() {
        let bytes = schema(&json!({"$ref": "#/a", "type": "object", "x-k": true})).0;
        let expected = [
            &[0x0a, 3][..],
            b"#/a",
            &[0xb2, 1, 8, 0x0a, 6],
            b"object",
            &[0xfa, 1, 13, 0x0a, 3],
            b"x-k",
            &[0x12, 6, 0x12, 4],
            b"true",
        ];
        assert_eq!(bytes, expected.concat());
    }
}
