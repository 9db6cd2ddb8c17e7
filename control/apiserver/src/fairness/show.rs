//! What is seen of seats and queues: on the metrics page, and on the debug pages of the reference.

use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};

use super::Fairness;
use super::configured::Flow;
use super::counters::{BUCKETS, Counters, REASONS, Times};
use super::dispatch::Shown;
use super::present::{About, Present, Stands};
use super::schema::Distinguisher;
use crate::request::path::{self, ResourcePath, Route};
use crate::request::query::Query;

/// The path above the debug pages.
pub(crate) const DEBUG: &str = "/debug/api_priority_and_fairness/";

/// A metric of levels: name, help, and what it says of one.
type OfLevel = (&'static str, &'static str, fn(&Shown) -> u64);
/// The same of schemas.
type OfFlow = (&'static str, &'static str, fn(&Counters) -> &AtomicI64);

const LEVELS: [OfLevel; 4] = [
    (
        "apiserver_flowcontrol_nominal_limit_seats",
        "Nominal number of execution seats configured for each priority level",
        |level| level.nominal,
    ),
    (
        "apiserver_flowcontrol_lower_limit_seats",
        "Configured lower bound on number of execution seats available to each priority level",
        |level| level.lower,
    ),
    (
        "apiserver_flowcontrol_upper_limit_seats",
        "Configured upper bound on number of execution seats available to each priority level",
        |level| level.upper,
    ),
    (
        "apiserver_flowcontrol_current_limit_seats",
        "current derived number of execution seats available to each priority level",
        |level| level.current,
    ),
];

const FLOWS: [OfFlow; 4] = [
    (
        "apiserver_flowcontrol_current_inqueue_requests",
        "Number of requests currently pending in queues of the API Priority and Fairness subsystem",
        |counters| &counters.waiting,
    ),
    (
        "apiserver_flowcontrol_current_inqueue_seats",
        "Number of seats currently pending in queues of the API Priority and Fairness subsystem",
        |counters| &counters.waiting_seats,
    ),
    (
        "apiserver_flowcontrol_current_executing_requests",
        "Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem",
        |counters| &counters.executing,
    ),
    (
        "apiserver_flowcontrol_current_executing_seats",
        "Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem",
        |counters| &counters.seats,
    ),
];

fn head(page: &mut String, name: &str, help: &str, kind: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn labels(flow: &Flow) -> String {
    format!("flow_schema=\"{}\",priority_level=\"{}\"", flow.name, flow.level_name)
}

impl Fairness {
    /// Adds to the metrics page.
    pub fn render(&self, page: &mut String) {
        let levels = self.seats.with(|dispatcher| (dispatcher.show(), Vec::new()));
        let configured = self.current.last();
        for (name, help, of) in LEVELS {
            head(page, name, help, "gauge");
            for level in &levels {
                let _ = writeln!(page, "{name}{{priority_level=\"{}\"}} {}", level.name, of(level));
            }
        }
        for (name, help, of) in FLOWS {
            head(page, name, help, "gauge");
            for flow in &configured.flows {
                let _ = writeln!(page, "{name}{{{}}} {}", labels(flow), of(&flow.counters).load(Ordering::Relaxed));
            }
        }
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let name = "apiserver_flowcontrol_dispatched_requests_total";
        head(page, name, "Number of requests executed by API Priority and Fairness subsystem", "counter");
        for flow in &configured.flows {
            let _ = writeln!(page, "{name}{{{}}} {}", labels(flow), get(&flow.counters.dispatched));
        }
        let name = "apiserver_flowcontrol_rejected_requests_total";
        head(page, name, "Number of requests rejected by API Priority and Fairness subsystem", "counter");
        for flow in &configured.flows {
            for ((_, reason), count) in REASONS.iter().zip(&flow.counters.rejected) {
                let _ = writeln!(page, "{name}{{{},reason=\"{reason}\"}} {}", labels(flow), get(count));
            }
        }
        let name = "apiserver_flowcontrol_work_estimated_seats";
        head(page, name, "Number of estimated seats associated with requests in API Priority and Fairness", "summary");
        for flow in &configured.flows {
            let _ = writeln!(page, "{name}_sum{{{}}} {}", labels(flow), get(&flow.counters.seats_sum));
            let _ = writeln!(page, "{name}_count{{{}}} {}", labels(flow), get(&flow.counters.dispatched));
        }
        let name = "apiserver_flowcontrol_request_wait_duration_seconds";
        head(page, name, "Length of time a request spent waiting in its queue", "histogram");
        for flow in &configured.flows {
            times(page, name, &format!("{},execute=\"true\"", labels(flow)), &flow.counters.waits);
        }
        let name = "apiserver_flowcontrol_request_execution_seconds";
        let help = "Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution in the API Priority and Fairness subsystem";
        head(page, name, help, "histogram");
        for flow in &configured.flows {
            times(page, name, &labels(flow), &flow.counters.lasted);
        }
    }

    /// The requests that wait or have a seat; with what each is for, where that is wanted.
    fn requests(&self, with_details: bool) -> Vec<Vec<String>> {
        let mut present = self.seats.present();
        // What has moved in between stands nowhere.
        let standing = self.seats.with(|dispatcher| (dispatcher.standing(), Vec::new()));
        present.sort_by(|a, b| {
            let key = |of: &Present| (of.flow.level_name.clone(), of.flow.name.clone(), of.arrived);
            key(a).cmp(&key(b))
        });
        let mut head: Vec<&str> = vec![
            "PriorityLevelName",
            "FlowSchemaName",
            "QueueIndex",
            "RequestIndexInQueue",
            "FlowDistingsher",
            "ArriveTime",
            "InitialSeats",
            "FinalSeats",
            "AdditionalLatency",
            "StartTime",
        ];
        if with_details {
            head.extend(["UserName", "Verb", "APIPath", "Namespace", "Name", "APIVersion", "Resource", "SubResource"]);
        }
        let mut rows = vec![head.into_iter().map(str::to_owned).collect()];
        let now = Timestamp::now();
        let time = |at: Instant| (now - SignedDuration::try_from(at.elapsed()).unwrap_or_default()).to_string();
        for Present { flow, about, width, arrived, stands } in present {
            let (queue, place, started) = match stands {
                Stands::Waiting(number) => match standing.get(&number) {
                    Some((queue, place)) => (i64::from(*queue), *place as i64, NEVER.to_owned()),
                    None => continue,
                },
                Stands::Seated(queue, since) => (queue.map_or(-1, i64::from), -1, time(since)),
            };
            let details = about.as_deref().map(details).unwrap_or_default();
            let distinguisher = match (flow.distinguisher, &about) {
                (Distinguisher::User, Some(about)) => about.identity.user.clone(),
                (Distinguisher::Namespace, Some(_)) => details[3].clone(),
                _ => String::new(),
            };
            let mut row = vec![
                flow.level_name.to_string(),
                flow.name.to_string(),
                queue.to_string(),
                place.to_string(),
                distinguisher,
                time(arrived),
                width.to_string(),
                "0".to_owned(),
                "0s".to_owned(),
                started,
            ];
            if with_details {
                row.extend(details);
            }
            rows.push(row);
        }
        rows
    }

    /// A debug page, by its name; `None` when there is none of that name.
    pub fn dump(&self, page: &str, query: &Query) -> Option<String> {
        let levels = self.seats.with(|dispatcher| (dispatcher.show(), Vec::new()));
        let mut rows: Vec<Vec<String>> = Vec::new();
        let head = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
        match page {
            "dump_priority_levels" => {
                rows.push(head(&[
                    "PriorityLevelName",
                    "ActiveQueues",
                    "IsIdle",
                    "IsQuiescing",
                    "WaitingRequests",
                    "ExecutingRequests",
                    "DispatchedRequests",
                    "RejectedRequests",
                    "TimedoutRequests",
                    "CancelledRequests",
                ]));
                let configured = self.current.last();
                for level in levels {
                    let of = |count: &dyn Fn(&Counters) -> u64| {
                        let flows = configured.flows.iter().filter(|flow| flow.level_name == level.name);
                        flows.map(|flow| count(&flow.counters)).sum::<u64>().to_string()
                    };
                    let rejected = |at: usize| of(&|counters| counters.rejected[at].load(Ordering::Relaxed));
                    let turned_away =
                        of(&|counters| counters.rejected[..2].iter().map(|count| count.load(Ordering::Relaxed)).sum());
                    let active = level.queues.iter().filter(|(_, waiting, ..)| *waiting > 0).count();
                    rows.push(vec![
                        level.name.to_string(),
                        active.to_string(),
                        (level.executing + level.waiting == 0).to_string(),
                        level.retired.to_string(),
                        level.waiting.to_string(),
                        level.executing.to_string(),
                        of(&|counters| counters.dispatched.load(Ordering::Relaxed)),
                        turned_away,
                        rejected(2),
                        rejected(3),
                    ]);
                }
            }
            "dump_queues" => {
                rows.push(head(&[
                    "PriorityLevelName",
                    "Index",
                    "PendingRequests",
                    "ExecutingRequests",
                    "SeatsInUseOrPending",
                    "NextDispatchR",
                ]));
                for level in levels {
                    for (number, waiting, executing, work, start) in level.queues {
                        rows.push(vec![
                            level.name.to_string(),
                            number.to_string(),
                            waiting.to_string(),
                            executing.to_string(),
                            work.to_string(),
                            format!("{:.8}ss", start as f64 / 1e9),
                        ]);
                    }
                }
            }
            "dump_requests" => {
                rows = self.requests(query.get("includeRequestDetails").is_some_and(|said| !said.is_empty()));
            }
            _ => return None,
        }
        Some(table(&rows))
    }
}

/// When a request started that has not (Go's).
const NEVER: &str = "0001-01-01T00:00:00Z";

/// What a request is for: user, verb, path, namespace, name, version, resource and subresource.
fn details(about: &About) -> [String; 8] {
    let path = about.uri.path();
    let target = match Route::parse(path) {
        Route::Resource(target) => target,
        _ => ResourcePath::default(),
    };
    let verb = match target.resource.is_empty() {
        true => "",
        false => path::verb(&about.method, &target, &Query::parse(about.uri.query().unwrap_or_default())),
    };
    let verb = if verb.is_empty() { about.method.as_str().to_ascii_lowercase() } else { verb.to_owned() };
    let version = match target.group.is_empty() {
        true => target.version,
        false => format!("{}/{}", target.group, target.version),
    };
    [
        about.identity.user.clone(),
        verb,
        path.to_owned(),
        target.namespace.unwrap_or_default(),
        target.name.unwrap_or_default(),
        version,
        target.resource,
        target.subresource.unwrap_or_default(),
    ]
}

/// A histogram of one series.
fn times(page: &mut String, name: &str, labels: &str, times: &Times) {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut sum = 0;
    for (count, end) in times.buckets.iter().zip(BUCKETS) {
        sum += get(count);
        let _ = writeln!(page, "{name}_bucket{{{labels},le=\"{end}\"}} {sum}");
    }
    let (count, micros) = (get(&times.count), get(&times.micros));
    let _ = writeln!(page, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
    let _ = writeln!(page, "{name}_sum{{{labels}}} {}", micros as f64 / 1e6);
    let _ = writeln!(page, "{name}_count{{{labels}}} {count}");
}

/// Rows in columns, as Go's `tabwriter` sets them: each cell ends with a comma, but the last.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.len() + 2).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default().max(8)).collect();
    let mut page = String::new();
    for row in rows {
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let text = if at + 1 == row.len() { cell.clone() } else { format!("{cell},") };
            let _ = match at + 1 == row.len() {
                true => writeln!(page, "{text}"),
                false => write!(page, "{text:<width$}"),
            };
        }
    }
    page
}
