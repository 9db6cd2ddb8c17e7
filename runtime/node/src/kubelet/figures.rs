//! What pods use, as the metrics server asks for it: `/metrics/resource` (Prometheus text) and `/stats/summary` (JSON).

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use coracle_engine::Usage;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::json_response;
use crate::machine;
use crate::pod::{Pods, Slot};

/// One container.
struct Used {
    name: Arc<str>,
    usage: Usage,
    /// Seconds since 1970, to the millisecond.
    started: f64,
}

fn used(slot: &Slot) -> Vec<Used> {
    let now = Timestamp::now().as_millisecond();
    let running = slot.running().into_iter().map(|(name, handle, since)| {
        let life_ms = i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX);
        Used { name, usage: handle.usage(), started: now.saturating_sub(life_ms) as f64 / 1_000.0 }
    });
    running.collect()
}

/// Processor time of this process: all guests, the node, and whatever else runs in it.
fn process_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command's name is in parentheses and may hold anything; user and system time are fields 14 and 15.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// `/metrics/resource`.
pub async fn resource(State(pods): State<Arc<Pods>>) -> Response {
    let mut text = String::new();
    let now = Timestamp::now().as_millisecond();
    let mut family = |name: &str, kind: &str, help: &str, rows: &[(String, f64)]| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in rows {
            let _ = writeln!(text, "{name}{labels} {value} {now}");
        }
    };
    let (mut container_cpu, mut container_memory, mut container_start) = (Vec::new(), Vec::new(), Vec::new());
    let (mut pod_cpu, mut pod_memory) = (Vec::new(), Vec::new());
    for slot in pods.all() {
        let (mut cpu, mut memory) = (0.0, 0.0);
        let all = used(&slot);
        for Used { name, usage, started } in &all {
            let labels = format!("{{container={name:?},namespace={:?},pod={:?}}}", slot.namespace, slot.name);
            cpu += usage.cpu.as_secs_f64();
            memory += usage.memory_bytes as f64;
            container_cpu.push((labels.clone(), usage.cpu.as_secs_f64()));
            container_memory.push((labels.clone(), usage.memory_bytes as f64));
            container_start.push((labels, *started));
        }
        if !all.is_empty() {
            let labels = format!("{{namespace={:?},pod={:?}}}", slot.namespace, slot.name);
            pod_cpu.push((labels.clone(), cpu));
            pod_memory.push((labels, memory));
        }
    }
    let node = |value: f64| [(String::new(), value)];
    family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        &container_cpu,
    );
    family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        &container_memory,
    );
    family(
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
        &container_start,
    );
    family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        &node(process_cpu().as_secs_f64()),
    );
    family(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
        &node(machine::resident_bytes().unwrap_or(0) as f64),
    );
    family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
        &pod_cpu,
    );
    family("pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes", &pod_memory);
    family(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
        &node(0.0),
    );
    (StatusCode::OK, [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// `/stats/summary`.
pub async fn summary(State(pods): State<Arc<Pods>>) -> Response {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let figures = |cpu: Duration, memory: u64| {
        json!({
            "cpu": {"time": now, "usageCoreNanoSeconds": u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX)},
            "memory": {"time": now, "workingSetBytes": memory, "usageBytes": memory},
        })
    };
    let pod = |slot: &Arc<Slot>| {
        let all = used(slot);
        let cpu = all.iter().map(|used| used.usage.cpu).sum();
        let mut shown = figures(cpu, all.iter().map(|used| used.usage.memory_bytes).sum());
        shown["podRef"] = json!({"name": &*slot.name, "namespace": &*slot.namespace, "uid": &*slot.uid});
        let start = slot.pod().status.as_ref().and_then(|status| status.start_time.clone());
        shown["startTime"] = json!(start);
        let containers = all.iter().map(|used| {
            let mut shown = figures(used.usage.cpu, used.usage.memory_bytes);
            shown["name"] = json!(&*used.name);
            shown
        });
        shown["containers"] = containers.collect();
        shown
    };
    let all: Vec<Value> = pods.all().iter().map(pod).collect();
    let mut node = figures(process_cpu(), machine::resident_bytes().unwrap_or(0));
    node["nodeName"] = json!(pods.context.config.name);
    if let Some((total, free)) = machine::storage(&pods.context.config.data_dir) {
        node["fs"] = json!({"time": now, "capacityBytes": total, "availableBytes": free});
        node["runtime"] = json!({"imageFs": {"time": now, "usedBytes": pods.context.images.total_bytes()}});
    }
    json_response(StatusCode::OK, &json!({"node": node, "pods": all}))
}
