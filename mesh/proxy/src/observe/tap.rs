//! Requests as they are answered, for whoever looks at the moment. Where nobody does, a request costs one load; where somebody
//! does who does not read, it loses what does not fit, and hears how much that was.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};
use tokio::sync::mpsc;

use crate::Asker;

/// Who looks at the same time on this node; of them those who look at one namespace, or at all, are half at most.
pub const TAPS_MAX: usize = 32;
/// Requests that wait for one of them: they have about a kilobyte each, and those who look at the same share it.
const QUEUED_MAX: usize = 1024;
/// Bytes of a path that are shown.
const PATH_BYTES_MAX: usize = 512;

/// Which requests somebody looks at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Those to Services of this namespace; of all when absent.
    pub namespace: Option<String>,
    /// Those to the Service of this name.
    pub service: Option<String>,
}

impl Filter {
    fn takes(&self, tapped: &Tapped) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        is(&self.namespace, &tapped.namespace) && is(&self.service, &tapped.service)
    }
}

/// A request with its end. Whatever a client has said of it has an end, too: a line of it is a few kilobytes.
#[derive(Debug, Clone)]
pub struct Tapped {
    /// When it came.
    pub at: SystemTime,
    /// Who has asked.
    pub asker: Asker,
    /// The namespace of the Service that was asked,
    pub namespace: Arc<str>,
    /// its name,
    pub service: Arc<str>,
    /// and its port.
    pub port: u16,
    /// Who has answered, or was asked last.
    pub endpoint: Option<std::net::SocketAddr>,
    /// The request's method,
    pub method: Method,
    /// and its path, without what follows a question mark: people put secrets there.
    pub path: String,
    /// The answer's status; none where nobody has answered.
    pub status: Option<StatusCode>,
    /// Why nobody has.
    pub error: Option<String>,
    /// From its begin to the head of the answer.
    pub took: Duration,
    /// How many endpoints were asked.
    pub attempts: u32,
}

#[derive(Debug)]
struct Tap {
    filter: Filter,
    queue: mpsc::Sender<Arc<Tapped>>,
    lost: Arc<AtomicU64>,
}

/// All who look.
#[derive(Debug, Default)]
pub struct Taps {
    count: AtomicUsize,
    taps: Mutex<Vec<Tap>>,
}

/// What one of them sees; it looks until this is dropped.
#[derive(Debug)]
pub struct Tapping {
    queue: mpsc::Receiver<Arc<Tapped>>,
    lost: Arc<AtomicU64>,
    taps: Arc<Taps>,
}

/// What is seen.
#[derive(Debug)]
pub enum Sight {
    /// A request.
    Request(Arc<Tapped>),
    /// So many were not kept, since nobody read.
    Lost(u64),
}

impl Taps {
    /// Begins to look; `None` when too many do, or too many at the same namespace.
    pub fn open(self: &Arc<Self>, filter: Filter) -> Option<Tapping> {
        let mut taps = self.taps.lock().unwrap_or_else(PoisonError::into_inner);
        taps.retain(|tap| !tap.queue.is_closed());
        let like = taps.iter().filter(|tap| tap.filter.namespace == filter.namespace).count();
        if taps.len() >= TAPS_MAX || like >= TAPS_MAX / 2 {
            return None;
        }
        let (sender, queue) = mpsc::channel(QUEUED_MAX);
        let lost = Arc::<AtomicU64>::default();
        taps.push(Tap { filter, queue: sender, lost: lost.clone() });
        self.count.store(taps.len(), Relaxed);
        Some(Tapping { queue, lost, taps: self.clone() })
    }

    /// Whether anybody looks.
    pub(crate) fn are_open(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    /// Shows a request to those who look at such.
    pub(crate) fn show(&self, tapped: &Arc<Tapped>) {
        let mut taps = self.taps.lock().unwrap_or_else(PoisonError::into_inner);
        taps.retain(|tap| {
            if !tap.filter.takes(tapped) {
                return !tap.queue.is_closed();
            }
            match tap.queue.try_send(tapped.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    tap.lost.fetch_add(1, Relaxed);
                    true
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            }
        });
        self.count.store(taps.len(), Relaxed);
    }
}

impl Tapping {
    /// What comes next. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Sight> {
        // What was lost came before what is in the queue's end, and after its begin: it is told where there is a gap.
        if self.queue.len() < QUEUED_MAX / 2 {
            let lost = self.lost.swap(0, Relaxed);
            if lost > 0 {
                return Some(Sight::Lost(lost));
            }
        }
        self.queue.recv().await.map(Sight::Request)
    }
}

impl Drop for Tapping {
    fn drop(&mut self) {
        self.queue.close();
        let mut taps = self.taps.taps.lock().unwrap_or_else(PoisonError::into_inner);
        taps.retain(|tap| !tap.queue.is_closed());
        self.taps.count.store(taps.len(), Relaxed);
    }
}

/// A path as it is shown.
pub(crate) fn shown(path: &str) -> &str {
    super::cut(path, PATH_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tapped(service: &str) -> Arc<Tapped> {
        Arc::new(Tapped {
            at: SystemTime::UNIX_EPOCH,
            asker: Asker::Node,
            namespace: "n".into(),
            service: service.into(),
            port: 80,
            endpoint: None,
            method: Method::GET,
            path: "/".to_owned(),
            status: None,
            error: None,
            took: Duration::ZERO,
            attempts: 1,
        })
    }

    #[tokio::test]
    async fn who_reads_slowly_loses_and_hears_how_much() {
        let taps = Arc::<Taps>::default();
        assert!(!taps.are_open());
        let filter = Filter { namespace: Some("n".to_owned()), service: Some("web".to_owned()) };
        let mut slow = taps.open(filter).unwrap();
        let mut other = taps.open(Filter { namespace: Some("m".to_owned()), service: None }).unwrap();
        for _ in 0..QUEUED_MAX + 7 {
            taps.show(&tapped("web"));
            taps.show(&tapped("api"));
        }
        let (mut seen, mut lost) = (0, 0);
        while seen < QUEUED_MAX {
            match slow.next().await.unwrap() {
                Sight::Request(tapped) => {
                    assert_eq!(&*tapped.service, "web");
                    seen += 1;
                }
                Sight::Lost(count) => lost += count,
            }
        }
        assert_eq!(lost, 7);
        assert!(futures::FutureExt::now_or_never(other.next()).is_none(), "it is of another namespace");
        drop((slow, other));
        assert!(!taps.are_open());
    }

    #[test]
    fn so_many_look_and_a_place_is_given_back() {
        let taps = Arc::<Taps>::default();
        let of = |namespace: &str| Filter { namespace: Some(namespace.to_owned()), service: None };
        let mut all: Vec<_> = (0..TAPS_MAX / 2).map(|_| taps.open(Filter::default()).unwrap()).collect();
        assert!(taps.open(Filter::default()).is_none(), "those who look at everything have half");
        all.extend((0..TAPS_MAX / 2 - 1).map(|_| taps.open(of("greedy")).unwrap()));
        all.push(taps.open(of("other")).unwrap());
        assert!(taps.open(of("other")).is_none());
        all.pop();
        assert!(taps.open(of("other")).is_some());
        all.truncate(0);
        all.extend((0..TAPS_MAX / 2).map(|_| taps.open(of("greedy")).unwrap()));
        assert!(taps.open(of("greedy")).is_none() && taps.open(of("other")).is_some(), "a tenant has half");
    }

    #[test]
    fn paths_are_cut_between_letters() {
        assert_eq!(shown("/a"), "/a");
        assert_eq!(shown(&"ä".repeat(PATH_BYTES_MAX)).len(), PATH_BYTES_MAX);
        assert_eq!(shown(&format!("/{}", "ä".repeat(PATH_BYTES_MAX))).len(), PATH_BYTES_MAX - 1);
    }
}
