//! Groups and whole clusters in one process, under faults that a seed chooses, in simulated time, which jumps to the next timer when
//! everybody waits.
//!
//! * `group/`: three members of a keyspace, their clients and watches;
//! * `cluster/`: three servers (keyspace, API server, controllers and scheduler of whoever leads), agents of nodes without machines,
//!   and clients; what must hold is in `cluster/invariants/`, one file each.
//!
//! What depends on disk and network is played by the keyspace's own (`coracle_keyspace::simulation`); everything else is the product as
//! it is. A seed repeats itself to the letter: time and chance are the world's own (`clock.rs`), so is its process (`apart.rs`), and
//! nothing leaves its thread (`coracle_keyspace::spawn_blocking`). What was planted (`plants.rs`), each a switch of this harness, is found.
//!
//! ```console
//! $ CORACLE_SEED=7 cargo test --locked -p coracle-simulation a_cluster -- --nocapture      # one; with CORACLE_LOG=debug it talks
//! $ CORACLE_SEEDS=100000 cargo test --release --locked -p coracle-simulation whatever -- --nocapture --test-threads 1
//! ```

mod apart;
mod clock;
mod cluster;
mod group;
mod heard;
mod plants;
mod promises;
mod seeds;

use std::ops::Range;

use plants::Plant;
use seeds::Scene;

/// Worlds in the gate.
const GROUPS: u64 = 40;
const CLUSTERS: u64 = 20;
/// Worlds of which one must show what was planted.
const PLANTED: Range<u64> = 0..40;

#[test]
fn whatever_happens_to_a_group_it_keeps_its_promises() {
    Scene::Group.must_hold(GROUPS, &["registers", "the counter", "watches", "sealed", "renewed"]);
}

#[test]
fn whatever_happens_to_a_cluster_it_keeps_its_promises_and_becomes_well() {
    let all = ["registers", "revisions", "watches", "bound once", "replicas", "fenced duties", "a full node"];
    // These are compared between servers.
    let kinds = ["pods", "replicasets", "configmaps"];
    Scene::Cluster.must_hold(CLUSTERS, &[&all[..], &kinds].concat());
}

#[test]
fn a_seed_repeats_itself() {
    Scene::Group.repeats(2);
    Scene::Cluster.repeats(2);
}

/// Signs of something lost, or contradicted; or Raft itself finds that what it was promised is not so, and ends.
const LOST: [&str; 9] =
    ["reads", "the counter says", "differ", "says", "does not say", "does not start", "ended", "not well", "panicked"];

#[test]
fn a_sync_that_is_none_is_found() {
    Scene::Group.finds(Plant::DroppedSyncs, PLANTED, &LOST);
}

#[test]
fn a_purge_before_the_checkpoint_is_durable_is_found() {
    Scene::Group.finds(Plant::EarlyPurges, PLANTED, &LOST);
}

#[test]
fn an_append_that_is_answered_too_early_is_found() {
    Scene::Group.finds(Plant::EarlyAppends, PLANTED, &LOST);
}

#[test]
fn a_vote_that_is_granted_before_it_is_kept_is_found() {
    Scene::Group.finds(Plant::EarlyVotes, PLANTED, &LOST);
}

#[test]
fn a_quorum_that_is_one_too_small_is_found() {
    Scene::Group.finds(Plant::SmallQuorum, PLANTED, &LOST);
}

#[test]
fn a_number_that_is_used_again_is_found() {
    Scene::Group.finds(Plant::ReusedNumber, PLANTED, &LOST);
}

#[test]
fn a_stale_read_from_a_deposed_leader_is_found() {
    Scene::Group.finds(Plant::StaleReads, PLANTED, &["reads"]);
}

#[test]
fn a_skipped_event_is_found() {
    Scene::Group.finds(Plant::SkippedEvents, PLANTED, &["does not say"]);
}

#[test]
fn syncs_of_a_cluster_that_are_none_are_found() {
    Scene::Cluster.finds(Plant::DroppedSyncs, PLANTED, &LOST);
}

#[test]
fn skipped_events_of_a_cluster_are_found() {
    Scene::Cluster.finds(Plant::SkippedEvents, PLANTED, &["does not say"]);
}

#[test]
fn bookmarks_that_promise_too_much_are_found() {
    Scene::Cluster.finds(Plant::EarlyBookmarks, PLANTED, &[" after "]);
}

#[test]
fn a_forgotten_fence_of_duties_is_found() {
    Scene::Cluster.finds(Plant::ForgottenFence, PLANTED, &["a duty of term"]);
}

#[test]
fn a_forgotten_fence_of_nodes_is_found() {
    Scene::Cluster.finds(Plant::ForgottenNodeFence, PLANTED, &["is back and still runs"]);
}
