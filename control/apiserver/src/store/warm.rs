//! What is computed of many records at once is computed aside: tens of microseconds a record would hold up whoever else is
//! served by the thread that lists.

use std::sync::Arc;

use coracle_keyspace::{Record, spawn_blocking};

use super::Seen;
use crate::catalog::Resource;

/// Fewer records than this, of fewer bytes, are not worth a thread.
const RECORDS_MIN: usize = 256;
const BYTES_MIN: usize = 256 << 10;
/// Most threads for one request.
const THREADS_MAX: usize = 4;

/// Has `compute` make what it needs of each of `records`; it stays with them for a while.
pub(crate) async fn warm(
    resource: &Arc<Resource>,
    records: &[Arc<Record>],
    compute: impl Fn(&Seen<'_>) + Clone + Send + 'static,
) {
    let small =
        records.len() < RECORDS_MIN && records.iter().map(|record| record.bytes.len()).sum::<usize>() < BYTES_MIN;
    if small || records.is_empty() {
        return;
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let parts = records.chunks(records.len().div_ceil(threads)).map(|part| {
        let (part, resource, compute) = (part.to_vec(), resource.clone(), compute.clone());
        spawn_blocking(move || part.iter().for_each(|record| compute(&Seen::new(&resource, record))))
    });
    // What one that failed did not make is made when it is needed.
    for part in parts.collect::<Vec<_>>() {
        let _ = part.await;
    }
}
