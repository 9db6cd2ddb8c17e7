//! What is answered: objects, lists and tables as metrics-server has them.

use std::fmt::Write as _;

use axum::response::Response;
use coracle_api::meta::{Format, Quantity, time};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::sample::Used;
use super::{GROUP, Of, Uses};
use crate::answer::table::{self, Include};
use crate::answer::{metadata, respond};
use crate::request::negotiate::{Form, Shape};
use crate::store::Seen;
use crate::store::object::write_json;

/// One object and what it uses.
pub(super) struct Item<'a> {
    pub seen: Seen<'a>,
    /// Never empty.
    pub used: Uses,
}

impl Item<'_> {
    /// Of several containers, the time of the one that was measured first.
    fn time(&self) -> (i64, i64) {
        let earliest = self.used.iter().map(|(_, used)| used).min_by_key(|used| used.at_ms);
        earliest.map_or((0, 0), |used| (used.at_ms, used.window_ms))
    }

    fn object(&self, of: Of) -> Value {
        let (namespace, name) = crate::store::memo::split(&self.seen.record.key.name);
        let mut metadata = json!({"name": name, "creationTimestamp": time::format(Timestamp::now())});
        if !namespace.is_empty() {
            metadata["namespace"] = namespace.into();
        }
        let labels = self.seen.facts().labels();
        if !labels.is_empty() {
            metadata["labels"] = labels.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect();
        }
        let (at, window) = self.time();
        let at = Timestamp::from_millisecond(at).unwrap_or_default();
        let mut object = json!({"metadata": metadata, "timestamp": time::format(at), "window": duration(window)});
        let usage = |used: &Used| json!({"cpu": cpu(used.nanocores), "memory": memory(used.memory_bytes)});
        if of.is_namespaced() {
            let one = |(name, used): &(std::sync::Arc<str>, Used)| json!({"name": &**name, "usage": usage(used)});
            object["containers"] = self.used.iter().map(one).collect();
        } else {
            object["usage"] = self.used.first().map_or(Value::Null, |(_, used)| usage(used));
        }
        object
    }

    fn cells(&self) -> [Value; 4] {
        let (_, name) = crate::store::memo::split(&self.seen.record.key.name);
        let nanocores = self.used.iter().fold(0, |sum: u64, (_, used)| sum.saturating_add(used.nanocores));
        let bytes = self.used.iter().fold(0, |sum: u64, (_, used)| sum.saturating_add(used.memory_bytes));
        [name.into(), cpu(nanocores).into(), memory(bytes).into(), duration(self.time().1).into()]
    }
}

/// One object.
pub(super) fn one(form: Form, of: Of, item: &Item<'_>, include: Include) -> Response {
    if let Shape::Table { beta } = form.shape {
        return table(form, of, std::slice::from_ref(item), &json!({}), include, beta);
    }
    respond::value(form, 200, &whole(of, item))
}

/// A list of them.
pub(super) fn list(form: Form, of: Of, items: &[Item<'_>], next: Option<String>, include: Include) -> Response {
    let mut metadata = json!({});
    if let Some(next) = next {
        metadata["continue"] = next.into();
    }
    if let Shape::Table { beta } = form.shape {
        return table(form, of, items, &metadata, include, beta);
    }
    let items: Vec<Value> = items.iter().map(|item| item.object(of)).collect();
    let list = json!({
        "kind": format!("{}List", of.kind()), "apiVersion": format!("{GROUP}/{}", of.version), "metadata": metadata,
        "items": items,
    });
    respond::value(form, 200, &list)
}

fn whole(of: Of, item: &Item<'_>) -> Value {
    let mut object = item.object(of);
    object["kind"] = of.kind().into();
    object["apiVersion"] = format!("{GROUP}/{}", of.version).into();
    object
}

fn table(form: Form, of: Of, items: &[Item<'_>], list_metadata: &Value, include: Include, beta: bool) -> Response {
    let column = |(name, format, description): (&str, &str, &str)| json!({"name": name, "type": "string", "format": format, "description": description, "priority": 0});
    let columns: Value = [
        ("Name", "name", "Name of the resource"),
        ("cpu", "quantity", ""),
        ("memory", "quantity", ""),
        ("Window", "duration", ""),
    ]
    .map(column)
    .into_iter()
    .collect();
    let mut out = Vec::with_capacity(1024);
    table::begin(&mut out, Some(&columns), list_metadata.to_string().as_bytes(), beta);
    for (at, item) in items.iter().enumerate() {
        out.extend_from_slice(if at > 0 { b",{\"cells\":" } else { b"{\"cells\":" });
        write_json(&mut out, &item.cells());
        out.extend_from_slice(b",\"object\":");
        match include {
            Include::Nothing => out.extend_from_slice(b"null"),
            Include::Metadata => metadata::write(&mut out, &item.object(of)["metadata"].to_string().into(), beta),
            Include::Object => write_json(&mut out, &whole(of, item)),
        }
        out.push(b'}');
    }
    out.extend_from_slice(table::END);
    respond::json_text(form, 200, out)
}

/// Processor time a second.
fn cpu(nanocores: u64) -> String {
    Quantity::from_nanos(i64::try_from(nanocores).unwrap_or(i64::MAX), Format::DecimalSi).to_string()
}

fn memory(bytes: u64) -> String {
    Quantity::from_units(i64::try_from(bytes).unwrap_or(i64::MAX), Format::BinarySi).to_string()
}

/// As Go writes durations: `15.02s`, `1m0.5s`.
fn duration(ms: i64) -> String {
    if (0..1_000).contains(&ms) {
        return if ms == 0 { "0s".to_owned() } else { format!("{ms}ms") };
    }
    let (minutes, rest) = (ms / 60_000, ms % 60_000);
    let mut text = String::new();
    if minutes >= 60 {
        let _ = write!(text, "{}h", minutes / 60);
    }
    if minutes > 0 {
        let _ = write!(text, "{}m", minutes % 60);
    }
    let fraction = format!("{:03}", rest % 1_000);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    let _ = write!(text, "{}{dot}{fraction}s", rest / 1_000);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_kubernetes_writes_them() {
        for (nanocores, expected) in
            [(0, "0"), (250_000_000, "250m"), (1_000_000_000, "1"), (12_345, "12345n"), (12_000, "12u")]
        {
            assert_eq!(cpu(nanocores), expected);
        }
        for (bytes, expected) in
            [(0, "0"), (1_000, "1k"), (2_048, "2Ki"), (3 << 20, "3Mi"), ((1 << 20) + 1024, "1025Ki")]
        {
            assert_eq!(memory(bytes), expected);
        }
        for (ms, expected) in
            [(0, "0s"), (950, "950ms"), (1_000, "1s"), (15_020, "15.02s"), (60_500, "1m0.5s"), (3_600_000, "1h0m0s")]
        {
            assert_eq!(duration(ms), expected);
        }
    }
}
