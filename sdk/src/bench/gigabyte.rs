//! A gigabyte of objects on three servers: how fast one that was away has them, and how long one takes to start with them.

use std::path::Path;
use std::time::Instant;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use super::servers::{NAMES, Servers, stop};
use super::{Error, Figure};

/// Objects, and the bytes of each: nearly the largest that there are.
const OBJECTS: usize = 1_000;
const OBJECT_BYTES: usize = 1_000_000;
/// Those that are written at a time.
const WRITERS: usize = 8;

/// Runs it.
pub async fn run(program: &Path, report: &mut impl FnMut(Figure), doing: &mut impl FnMut(String)) -> Result<(), Error> {
    doing("three servers start".to_owned());
    let mut servers = Servers::start(program).await?;
    let away = (servers.whole_leader().await? + 1) % NAMES.len();
    stop([&mut servers.all[away].child]).await?;
    doing(format!("{OBJECTS} objects of {OBJECT_BYTES} bytes are written while one server is away"));
    let maps: Api<ConfigMap> = Api::default_namespaced(servers.all[(away + 1) % NAMES.len()].remote.client().clone());
    let content = "x".repeat(OBJECT_BYTES);
    let (maps, content) = (&maps, &content);
    let mut written = futures::stream::iter(0..OBJECTS)
        .map(|at| async move {
            let map: ConfigMap = serde_json::from_value(
                json!({"metadata": {"name": format!("large-{at}")}, "data": {"content": content}}),
            )?;
            maps.create(&PostParams::default(), &map).await?;
            Ok::<(), Error>(())
        })
        .buffer_unordered(WRITERS);
    let begun = Instant::now();
    while let Some(done) = written.next().await {
        done?;
    }
    drop(written);
    let megabytes = (OBJECTS * OBJECT_BYTES) as f64 / 1e6;
    report(Figure::new("gigabyte.written", megabytes / begun.elapsed().as_secs_f64(), "MB/s"));
    doing("the server that was away catches up".to_owned());
    let begun = Instant::now();
    servers.restart(away).await?;
    servers.whole_leader().await?;
    report(Figure::new("gigabyte.caught_up", begun.elapsed().as_secs_f64(), "s"));
    report(Figure::new("gigabyte.catch_up", megabytes / begun.elapsed().as_secs_f64(), "MB/s"));
    doing("it starts again".to_owned());
    stop([&mut servers.all[away].child]).await?;
    let begun = Instant::now();
    servers.restart(away).await?;
    report(Figure::new("gigabyte.restart", begun.elapsed().as_secs_f64(), "s"));
    servers.stop().await
}
