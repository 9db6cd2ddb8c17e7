//! `/healthz`, `/livez`, `/readyz`: is this server well, and which part of it is not.

use std::fmt::Write;

use axum::response::Response;
use coracle_keyspace::Alarm;
use tokio_util::sync::CancellationToken;

use crate::answer::respond;
use crate::cluster::Cluster;
use crate::request::call::Call;

/// The checks of a page, by the names that tools know.
fn checks(cluster: &Cluster, stopping: bool, page: &str) -> Vec<(&'static str, bool)> {
    let data = cluster.store.keyspace.status().leader.is_some();
    let mut checks = vec![("ping", true), ("log", true), ("etcd", data)];
    if page == "readyz" {
        checks.push(("etcd-readiness", data));
        checks.push(("informer-sync", true));
        // Writes are refused, or will be soon; `coracle status` says why.
        checks.push((
            "storage-space",
            !cluster.store.keyspace.alarms().iter().any(|alarm| matches!(alarm, Alarm::NoRoom(_))),
        ));
    }
    checks.push(("poststarthook/start-system-namespaces-controller", true));
    if page == "readyz" {
        checks.push(("shutdown", !stopping));
    }
    checks
}

pub(crate) fn answer(
    cluster: &Cluster,
    stopping: &CancellationToken,
    call: &Call,
    page: &str,
    check: Option<&str>,
) -> Response {
    let checks = checks(cluster, stopping.is_cancelled(), page);
    if let Some(name) = check {
        return match checks.iter().find(|(known, _)| *known == name) {
            Some((_, true)) => respond::text(200, "ok"),
            Some((_, false)) => respond::text(500, format!("internal server error: {name} failed: reason withheld\n")),
            None => respond::text(404, "404 page not found\n"),
        };
    }
    let excluded: Vec<&str> = call.query.all("exclude").collect();
    let mut failed = false;
    let mut text = String::new();
    // Writing to a string cannot fail.
    for (name, well) in checks {
        let _ = if excluded.contains(&name) {
            writeln!(text, "[+]{name} excluded: ok")
        } else if well {
            writeln!(text, "[+]{name} ok")
        } else {
            failed = true;
            writeln!(text, "[-]{name} failed: reason withheld")
        };
    }
    if failed {
        return respond::text(500, format!("{text}{page} check failed\n"));
    }
    match call.query.get("verbose") {
        Some(_) => respond::text(200, format!("{text}{page} check passed\n")),
        None => respond::text(200, "ok"),
    }
}
