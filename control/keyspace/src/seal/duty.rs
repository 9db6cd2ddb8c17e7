//! The leader's duty: what is stored and not sealed as it is to be is written anew, and keys that nothing needs any more go.
//!
//! It is woken by a change of the keys, and looks at what there is: so it goes on wherever another one was cut.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tokio::sync::watch;

use super::{KEYS, unsettled};
use crate::group::Lead;
use crate::host;
use crate::raft::{Member, Told, Transaction};
use crate::record::{Guard, Op, Record};

/// Records that are written anew at the same time: they share syncs, and leave room for those who do something.
const TOGETHER: usize = 16;
/// How long after it was hindered it tries again.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// Runs while this member leads, until `stopped` says so. Keys are kept for `remembered` after nothing is stored under them: so
/// long a watch may ask for what was.
pub(crate) async fn run(
    member: Arc<Member>,
    mut lead: watch::Receiver<Option<Lead>>,
    remembered: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    let work = async {
        loop {
            let Ok(Some(mine)) = lead.wait_for(Option::is_some).await.map(|lead| *lead) else { return };
            let mut changed = member.machine().state.write().collection_mut(&Arc::from(KEYS)).changed.subscribe();
            let (mut unused_since, mut is_hindered) = (None, false);
            loop {
                changed.mark_unchanged();
                let again = look(&member, mine, remembered, &mut unused_since, &mut is_hindered).await;
                let rest = async {
                    match again {
                        Some(again) => tokio::time::sleep(again).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    said = lead.wait_for(|lead| *lead != Some(mine)) => match said {
                        Ok(_) => break,
                        Err(_) => return,
                    },
                    // Another snapshot took the place of what was looked at: whoever leads looks again.
                    told = changed.changed() => if told.is_err() {
                        break;
                    },
                    () = rest => (),
                }
            }
        }
    };
    // What is cut is found again by the next look.
    tokio::select! {
        () = work => (),
        _ = stopped.wait_for(|stopped| *stopped) => (),
    }
}

/// Does what there is to do; says when to look again, unless something changes before.
pub(super) async fn look(
    member: &Arc<Member>,
    mine: Lead,
    remembered: Duration,
    unused_since: &mut Option<(u64, Instant)>,
    is_hindered: &mut bool,
) -> Option<Duration> {
    let (keys, collections) = {
        let state = member.machine().state.read();
        (state.keys().clone(), state.all())
    };
    if !keys.has_root() {
        return None;
    }
    let (newest, _) = keys.newest()?;
    // What a full disk still takes is for leases, states and deletions.
    if member.is_short_of_space() {
        return Some(AGAIN);
    }
    let due = unsettled(&keys, &collections);
    if !due.is_empty() {
        *unused_since = None;
        let count = due.len();
        let written = futures::stream::iter(due).map(|record| write_anew(member.clone(), mine, record));
        let hindered = written.buffer_unordered(TOGETHER).filter(|done| std::future::ready(!done)).count().await;
        // Once for all that it is tried again.
        if hindered > 0 && !*is_hindered {
            tracing::warn!(hindered, count, "stored objects could not be encrypted anew; it is tried again");
        }
        *is_hindered = hindered > 0;
        if hindered == 0 {
            tracing::info!(count, key = newest, "stored objects are encrypted anew");
        }
        return Some(if hindered == 0 { Duration::ZERO } else { AGAIN });
    }
    let stored = collections.iter().flat_map(|records| records.values());
    let used: HashSet<u64> = stored.filter_map(|record| record.sealed_by()).collect();
    let unused: Vec<u64> = keys.ids().filter(|id| *id != newest && !used.contains(id)).collect();
    if unused.is_empty() {
        *unused_since = None;
        // What cannot be read holds its key, and nobody says when it goes.
        return keys.ids().any(|id| id != newest).then(|| remembered.max(AGAIN));
    }
    // With another newest one there are others that nothing needs.
    let since = unused_since.take_if(|(before, _)| *before == newest).unwrap_or_else(|| (newest, host::now()));
    *unused_since = Some(since);
    let waited = since.1.elapsed();
    if waited < remembered {
        return Some(remembered - waited);
    }
    for id in unused {
        let Some(mut ops) = keys.drop_key(id) else { continue };
        ops.push(mine.fence());
        match member.write(Transaction::new(ops)).await {
            Ok(Told::Written(_, Ok(_))) => {
                tracing::info!(key = id, "an encryption key that nothing needs any more is gone")
            }
            told => {
                tracing::debug!(?told, key = id, "delete an encryption key; it is tried again");
                return Some(AGAIN);
            }
        }
    }
    *unused_since = None;
    None
}

/// Writes a record as it is, sealed as it is to be. Says whether that is done, by this or by somebody else.
async fn write_anew(member: Arc<Member>, mine: Lead, record: Arc<Record>) -> bool {
    // It may have become so after the first of many.
    if member.is_short_of_space() {
        return false;
    }
    let put = Op::Put { key: record.key.clone(), value: record.value(), guard: Guard::Revision(record.revision) };
    let ops = vec![put, mine.fence()];
    let keys = member.machine().state.read().keys().clone();
    let sealed = match keys.seal(&ops) {
        Ok(sealed) => sealed.unwrap_or(ops),
        Err(why) => {
            tracing::debug!(why, key = ?record.key, "encrypt a stored object anew; it is tried again");
            return false;
        }
    };
    match member.write(Transaction::new(sealed)).await {
        // Whoever changed it sealed it.
        Ok(Told::Written(..)) => true,
        told => {
            tracing::debug!(?told, key = ?record.key, "encrypt a stored object anew; it is tried again");
            false
        }
    }
}
