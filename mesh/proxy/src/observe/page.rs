//! What is counted, as Prometheus reads it: with Istio's names where it has one for the same thing, so that dashboards that people
//! have show it, and with names of our own for the rest. A series is there once it is not zero, and [`SERIES_MAX`] of each family
//! at most: what a node says of its mesh has an end, however many Services there are.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use coracle_discovery::Service;

use super::stats::BUCKETS_MS;
use crate::Proxy;
use crate::routes::{Route, Side};

/// Series of one family, the buckets of one histogram taken for one.
const SERIES_MAX: usize = 20_000;

/// The page as far as it is written.
pub(crate) struct Page {
    text: String,
}

/// A family of series.
struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
    left: usize,
}

impl Family<'_> {
    /// A value, if it is any.
    fn say(&mut self, labels: &str, value: u64) {
        if value == 0 || self.left == 0 {
            return;
        }
        self.left -= 1;
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{}{{{labels}}} {value}", self.name);
    }
}

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, help: &str, rows: impl FnOnce(&mut Family<'_>)) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        rows(&mut Family { text: &mut self.text, name, left: SERIES_MAX });
    }

    /// All that is counted by this proxy.
    pub fn of(proxy: &Proxy) -> String {
        let snapshot = proxy.discovery.snapshot();
        let mut services: Vec<&Arc<Service>> = snapshot.services().collect();
        services.sort_unstable_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let routes = services.into_iter().flat_map(|service| {
            let route = move |at| proxy.routes.find(service, at, Side::Gateway);
            (0..service.ports.len()).filter_map(route)
        });
        let routes: Vec<(String, Route)> = routes.map(|route| (labels(&route), route)).collect();
        let mut page = Page { text: String::new() };
        page.requests(&routes);
        page.counters(&routes);
        page.endpoints(&routes);
        page.family(
            "nginx_ingress_controller_requests",
            "counter",
            "Requests answered for an Ingress, by the class of their status.",
            |family| {
                proxy.by_ingress.each(|namespace, ingress, class, count| {
                    family.say(&format!("namespace=\"{namespace}\",ingress=\"{ingress}\",status=\"{class}\""), count);
                })
            },
        );
        page.family(
            "coracle_gateway_mirrors_total",
            "counter",
            "Copies of requests for who is named by RequestMirror, by what has become of them.",
            |family| proxy.mirrors.each(|result, count| family.say(&format!("result=\"{result}\""), count)),
        );
        page.text
    }

    fn requests(&mut self, routes: &[(String, Route)]) {
        let help = "Requests to a Service's port that have ended, as who asked sees it: by the class of their status, 0 without one.";
        self.family("istio_requests_total", "counter", help, |family| {
            for (labels, route) in routes {
                for (class, count) in route.balancer.stats.requests.all() {
                    family.say(&format!("{labels},response_code=\"{class}\""), count);
                }
            }
        });
        let help = "From the begin of a request to the head of its answer.";
        self.family("istio_request_duration_milliseconds", "histogram", help, |family| {
            for (labels, route) in routes {
                let (counts, all, sum) = route.balancer.stats.latencies.read();
                if all == 0 || family.left == 0 {
                    continue;
                }
                family.left -= 1;
                let name = family.name;
                for (end, count) in BUCKETS_MS.iter().zip(counts) {
                    let _ = writeln!(family.text, "{name}_bucket{{{labels},le=\"{end}\"}} {count}");
                }
                let _ = writeln!(family.text, "{name}_bucket{{{labels},le=\"+Inf\"}} {all}");
                let _ = writeln!(family.text, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {all}");
            }
        });
    }

    fn counters(&mut self, routes: &[(String, Route)]) {
        type Counter = fn(&Route) -> u64;
        let all: [(&'static str, &str, &str, Counter); 8] = [
            (
                "istio_tcp_connections_opened_total",
                "counter",
                "Connections to a Service's port that bytes were passed on for.",
                |route| route.balancer.stats.connections.load(Relaxed),
            ),
            (
                "coracle_mesh_sent_bytes_total",
                "counter",
                "Bytes of requests' bodies that were sent to endpoints.",
                |route| route.balancer.stats.sent_bytes.load(Relaxed),
            ),
            (
                "coracle_mesh_received_bytes_total",
                "counter",
                "Bytes of answers' bodies that came from endpoints.",
                |route| route.balancer.stats.received_bytes.load(Relaxed),
            ),
            (
                "coracle_mesh_retries_total",
                "counter",
                "Requests that were sent to another endpoint, since one had not answered.",
                |route| route.balancer.stats.retries.load(Relaxed),
            ),
            (
                "coracle_mesh_ejections_total",
                "counter",
                "How often an endpoint was left out for a while, since it had not answered.",
                |route| route.balancer.stats.ejections.load(Relaxed),
            ),
            (
                "coracle_mesh_held_total",
                "counter",
                "Requests and connections that have waited for a pod, since the Service had none.",
                |route| route.balancer.stats.held.load(Relaxed),
            ),
            ("coracle_mesh_held", "gauge", "Those that wait now, for any port of the Service.", |route| {
                route.demand.held() as u64
            }),
            ("coracle_mesh_in_flight", "gauge", "Requests and connections under way at endpoints.", |route| {
                route.balancer.view().iter().map(|endpoint| u64::from(endpoint.under_way)).sum()
            }),
        ];
        for (name, kind, help, counter) in all {
            self.family(name, kind, help, |family| {
                routes.iter().for_each(|(labels, route)| family.say(labels, counter(route)));
            });
        }
    }

    fn endpoints(&mut self, routes: &[(String, Route)]) {
        let help = "Requests that an endpoint has answered by the class of their status, 0 those that it has not.";
        self.family("coracle_mesh_endpoint_requests_total", "counter", help, |family| {
            for (labels, route) in routes {
                route.balancer.each(|address, classes| {
                    for (class, count) in classes.all() {
                        family.say(&format!("{labels},endpoint=\"{address}\",response_code=\"{class}\""), count);
                    }
                });
            }
        });
        self.family(
            "coracle_mesh_endpoint_in_flight",
            "gauge",
            "Requests and connections under way there.",
            |family| {
                for (labels, route) in routes {
                    for endpoint in route.balancer.view() {
                        let labels = format!("{labels},endpoint=\"{}\"", endpoint.address);
                        family.say(&labels, u64::from(endpoint.under_way));
                    }
                }
            },
        );
        let help = "1 while an endpoint is left out, since it has not answered or has too much to do.";
        self.family("coracle_mesh_endpoint_ejected", "gauge", help, |family| {
            for (labels, route) in routes {
                for endpoint in route.balancer.view().iter().filter(|endpoint| endpoint.left_out.is_some()) {
                    family.say(&format!("{labels},endpoint=\"{}\"", endpoint.address), 1);
                }
            }
        });
    }
}

/// As Istio calls them; names of Kubernetes' objects have nothing in them that would need quoting.
fn labels(route: &Route) -> String {
    let Service { namespace, name, ports, .. } = &*route.service;
    let port = ports[route.at].port;
    format!(
        "reporter=\"source\",destination_service_namespace=\"{namespace}\",destination_service_name=\"{name}\",\
         destination_port=\"{port}\""
    )
}
