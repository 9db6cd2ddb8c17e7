//! Images are on several servers: what was pushed outlives the server that took it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_tests::{Cluster, DEADLINE};

use crate::servers::voters;

/// The contents that the registry of this server has on disk.
fn contents(server: &Cluster) -> BTreeSet<String> {
    fn walk(dir: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => walk(&entry.path(), found),
                _ => drop(found.insert(entry.file_name().to_string_lossy().into_owned())),
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(&server.data_dir().join("registry/blobs"), &mut found);
    found
}

fn has_all(server: &Cluster, all: &BTreeSet<String>) {
    let begun = Instant::now();
    while !contents(server).is_superset(all) {
        assert!(begun.elapsed() < DEADLINE, "{:?} of {all:?}\n{}", contents(server), server.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn an_image_outlives_the_server_that_it_was_pushed_to() {
    let mut first = Cluster::server("one");
    let (second, third) = (first.join_server("two"), first.join_server("three"));
    voters(&third, 3);
    let worker = second.join("worker");
    first.push("standin", "standin");
    let pushed = contents(&first);
    assert!(pushed.len() >= 3, "a manifest, a configuration, a component: {pushed:?}");
    let held = |content: &String| [&second, &third].iter().any(|server| contents(server).contains(content));
    assert!(pushed.iter().all(held), "a push is acknowledged when a majority has it");
    first.kill();

    // The node asks the server that it joined.
    third.kubectl("create deployment web --image=standin --replicas=2");
    third.kubectl("rollout status deployment/web --timeout=120s");
    for server in [&second, &third] {
        has_all(server, &pushed);
    }

    // The dead one is replaced by one that has nothing, and gets everything before it is asked. It takes pushes as well.
    let begun = Instant::now();
    loop {
        let removed = second.coracle(&["member", "remove", "one"]);
        if removed.status.success() {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "{}", String::from_utf8_lossy(&removed.stderr));
        std::thread::sleep(Duration::from_millis(100));
    }
    let fourth = second.join_server("four");
    voters(&fourth, 3);
    has_all(&fourth, &pushed);
    fourth.push("standin", "again");
    second.kubectl("create deployment again --image=again");
    second.kubectl("rollout status deployment/again --timeout=120s");
    let status = fourth.coracle(&["status"]);
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(said.contains("log in format 3") && said.contains("FORMATS"), "{said}");
    drop(worker);
}
