//! What every member says happened, followed over its restarts.

use std::sync::Arc;
use std::time::Duration;

use coracle_keyspace::{MemberId, Revision, WatchEnded};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::World;
use crate::heard::Span;
use crate::plants::Plant;

impl World {
    /// Follows one member until the storm is over.
    pub async fn watch(self: Arc<World>, member: MemberId) {
        let mut after = Revision::default();
        let mut lost = StdRng::seed_from_u64(self.seed ^ member);
        while !self.is_over() {
            let keyspace = self.members.read().await[&member].keyspace.clone();
            let watcher = keyspace.map(|keyspace| keyspace.watch("things", after).map_err(|error| error.0));
            let mut watcher = match watcher {
                Some(Ok(watcher)) => watcher,
                Some(Err(compacted)) => {
                    // It would list now; what it heard before still counts.
                    after = compacted;
                    continue;
                }
                None => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let began = after;
            let mut heard = Vec::new();
            let ended = loop {
                match tokio::time::timeout(Duration::from_millis(50), watcher.next()).await {
                    Ok(Ok(batch)) => {
                        for event in batch.events {
                            let revision = event.record.revision;
                            if revision <= after {
                                self.is_wrong(format!("member {member} says {revision} after {after}"));
                            }
                            after = revision;
                            if self.plant == Plant::SkippedEvents && lost.random_ratio(1, 50) {
                                continue;
                            }
                            let text = String::from_utf8_lossy(&event.record.bytes).into_owned();
                            heard.push((revision.get(), (event.record.key.name.to_string(), text)));
                        }
                    }
                    Ok(Err(ended)) => break ended,
                    Err(_) if self.is_over() => break WatchEnded::Stopped,
                    Err(_) => (),
                }
            };
            let span = Span { by: member, after: began.get(), upto: after.get() };
            let wrong = self.heard.lock().takes("things", span, heard);
            self.judges("watches", if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) });
            if let WatchEnded::Compacted(compacted) = ended {
                after = after.max(compacted.0);
            }
        }
    }
}
