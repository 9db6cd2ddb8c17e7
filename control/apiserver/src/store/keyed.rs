//! Watches of one object, or of the pods of one node: a thousand of them do not look at each other's events.
//!
//! One task follows a collection for all of them and puts an event into the queues of those whose key it has, before or
//! after the change. A queue is short: whoever does not empty it reads for itself what it missed, as it does with what
//! was before it subscribed. So nothing is lost, and a slow watch costs no memory.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use coracle_keyspace::{Batch, Compacted, Event, Keyspace, Record, Revision, WatchEnded, Watcher};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Seen;
use crate::catalog::Resource;

/// The field by which watches of many objects have a key.
pub(crate) const NODE: &str = "spec.nodeName";
/// Most events that wait for one watch, and most bytes of them; one alone may be larger.
const QUEUE_EVENTS: usize = 64;
const QUEUE_BYTES: usize = 256 << 10;

/// What a watch is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// The record of this name.
    Name(Arc<str>),
    /// Those that have this value in [`NODE`].
    Node(Arc<str>),
}

/// Followers by collection; there are as many as built-in kinds at most.
#[derive(Default)]
pub(crate) struct Keyed {
    followers: Mutex<HashMap<String, Arc<Follower>>>,
}

/// Follows a collection for all who subscribed.
struct Follower {
    keyspace: Keyspace,
    resource: Arc<Resource>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Everything up to here is in the queues.
    position: Revision,
    ended: Option<WatchEnded>,
    next: u64,
    by_key: HashMap<Key, Vec<u64>>,
    /// Subscriptions that are by node.
    nodes: usize,
    queues: HashMap<u64, Queue>,
}

struct Queue {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// It was full: what is in it is not all.
    lost: bool,
    told: Arc<Notify>,
}

impl Queue {
    fn push(&mut self, event: &Arc<Event>) {
        let bytes = event.record.bytes.len();
        let full = self.events.len() >= QUEUE_EVENTS || self.bytes + bytes > QUEUE_BYTES && !self.events.is_empty();
        if full || self.lost {
            return self.lose();
        }
        self.bytes += bytes;
        self.events.push_back(event.clone());
        self.told.notify_one();
    }

    /// Whoever waits has to read for itself.
    fn lose(&mut self) {
        (self.lost, self.bytes) = (true, 0);
        self.events.clear();
        self.told.notify_one();
    }
}

impl Keyed {
    /// Events of `key` after `after`. The first who subscribes to a collection starts a task.
    pub fn subscribe(
        &self,
        keyspace: &Keyspace,
        resource: &Arc<Resource>,
        key: Key,
        after: Revision,
        tasks: (&TaskTracker, &CancellationToken),
    ) -> Result<Subscription, Compacted> {
        // What was before the subscription it reads itself; that this is possible is known at once.
        let watcher = keyspace.watch(resource.row.collection(), after)?;
        let follower = self.follower(keyspace, resource, tasks)?;
        let told = Arc::new(Notify::new());
        let mut inner = follower.inner.lock();
        let number = inner.next;
        inner.next += 1;
        inner.nodes += usize::from(matches!(key, Key::Node(_)));
        inner.by_key.entry(key.clone()).or_default().push(number);
        let queue = Queue { events: VecDeque::new(), bytes: 0, lost: false, told: told.clone() };
        inner.queues.insert(number, queue);
        let catching_up = Some((watcher, inner.position));
        drop(inner);
        Ok(Subscription { follower, number, key, told, catching_up, revision: after })
    }

    fn follower(
        &self,
        keyspace: &Keyspace,
        resource: &Arc<Resource>,
        (tasks, stopping): (&TaskTracker, &CancellationToken),
    ) -> Result<Arc<Follower>, Compacted> {
        let mut followers = self.followers.lock();
        // One that has fallen behind for good is replaced: the next watch is not to blame.
        let goes_on =
            |follower: &&Arc<Follower>| !matches!(follower.inner.lock().ended, Some(WatchEnded::Compacted(_)));
        if let Some(follower) = followers.get(resource.row.collection()).filter(goes_on) {
            return Ok(follower.clone());
        }
        let position = keyspace.revision();
        let watcher = keyspace.watch(resource.row.collection(), position)?;
        let inner = Inner { position, ended: None, next: 0, by_key: HashMap::new(), nodes: 0, queues: HashMap::new() };
        let follower =
            Arc::new(Follower { keyspace: keyspace.clone(), resource: resource.clone(), inner: Mutex::new(inner) });
        tasks.spawn(follow(follower.clone(), watcher, stopping.clone()));
        followers.insert(resource.row.collection().to_owned(), follower.clone());
        Ok(follower)
    }
}

/// Puts the events of a collection into queues, until the keyspace or the server stops.
async fn follow(follower: Arc<Follower>, mut watcher: Watcher, stopping: CancellationToken) {
    loop {
        let batch = tokio::select! {
            batch = watcher.next() => batch,
            () = stopping.cancelled() => Err(WatchEnded::Stopped),
        };
        match batch {
            Ok(batch) => follower.take(&batch),
            Err(WatchEnded::Stopped) => return follower.end(WatchEnded::Stopped),
            // It fell behind itself: everybody reads what is missing.
            Err(WatchEnded::Compacted(_)) => {
                let now = follower.keyspace.revision();
                match follower.keyspace.watch(follower.resource.row.collection(), now) {
                    Ok(new) => watcher = new,
                    Err(compacted) => return follower.end(compacted.into()),
                }
                follower.lose(now);
            }
        }
    }
}

impl Follower {
    fn take(&self, batch: &Batch) {
        // Reading a new pod takes a moment: not under the lock.
        let by_node = self.inner.lock().nodes > 0;
        let node = |record: &Arc<Record>| Seen::new(&self.resource, record).field(NODE).map(Arc::<str>::from);
        let nodes = |event: &Arc<Event>| {
            let (now, before) = (node(&event.record), event.previous.as_ref().and_then(node));
            let moved = before.filter(|before| now.as_ref() != Some(before));
            [now, moved].into_iter().flatten().map(Key::Node).collect::<Vec<_>>()
        };
        let nodes: Vec<Vec<Key>> = batch.events.iter().filter(|_| by_node).map(nodes).collect();
        let mut inner = self.inner.lock();
        let Inner { by_key, queues, .. } = &mut *inner;
        for (at, event) in batch.events.iter().enumerate() {
            let name = Key::Name(event.record.key.name.clone());
            for key in nodes.get(at).into_iter().flatten().chain([&name]) {
                for number in by_key.get(key).into_iter().flatten() {
                    if let Some(queue) = queues.get_mut(number) {
                        queue.push(event);
                    }
                }
            }
        }
        // Who subscribed by node meanwhile has not heard of these.
        if !by_node && inner.nodes > 0 {
            let Inner { by_key, queues, .. } = &mut *inner;
            let new = by_key.iter().filter(|(key, _)| matches!(key, Key::Node(_))).flat_map(|(_, numbers)| numbers);
            new.for_each(|number| queues.get_mut(number).into_iter().for_each(Queue::lose));
        }
        inner.position = batch.revision;
    }

    /// Whoever waits has to read what comes until `now` itself.
    fn lose(&self, now: Revision) {
        let mut inner = self.inner.lock();
        inner.position = now;
        inner.queues.values_mut().for_each(Queue::lose);
    }

    fn end(&self, why: WatchEnded) {
        let mut inner = self.inner.lock();
        inner.ended = Some(why);
        inner.queues.values().for_each(|queue| queue.told.notify_one());
    }
}

/// The events of one key.
pub(crate) struct Subscription {
    follower: Arc<Follower>,
    number: u64,
    key: Key,
    told: Arc<Notify>,
    /// What is read without the queue, up to where the queue begins.
    catching_up: Option<(Watcher, Revision)>,
    /// Everything up to here was given.
    revision: Revision,
}

impl Subscription {
    /// The next events: some that are not of this key may be among them. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Batch, WatchEnded> {
        loop {
            if let Some((watcher, upto)) = &mut self.catching_up {
                let upto = *upto;
                let batch = watcher.there().await?;
                let done = batch.revision >= upto;
                let given = self.give(batch.events.into_iter().filter(|event| event.record.revision <= upto));
                let revision = batch.revision.min(upto).max(self.revision);
                self.revision = revision;
                if done {
                    self.catching_up = None;
                }
                if !given.is_empty() {
                    return Ok(Batch { events: given, revision });
                }
                continue;
            }
            let batch = self.queued()?;
            if !batch.events.is_empty() {
                return Ok(batch);
            }
            if self.catching_up.is_none() {
                self.told.notified().await;
            }
        }
    }

    /// What there is now, without waiting; without events it says how far there are none.
    pub fn pending(&mut self) -> Result<Batch, WatchEnded> {
        let batch = if self.catching_up.is_none() { self.queued()? } else { self.nothing() };
        if !batch.events.is_empty() || self.catching_up.is_some() {
            return Ok(batch);
        }
        // The follower hears of a quiet collection no more than anybody else: it is asked how far that is.
        let mut ahead = self.follower.keyspace.watch(self.follower.resource.row.collection(), self.revision)?;
        let further = ahead.pending()?;
        if further.events.is_empty() {
            self.revision = self.revision.max(further.revision);
        }
        Ok(self.nothing())
    }

    /// Whether it begins after a revision that has not come yet.
    pub fn is_ahead(&self) -> bool {
        self.revision > self.follower.keyspace.revision()
    }

    fn nothing(&self) -> Batch {
        Batch { events: Vec::new(), revision: self.revision }
    }

    /// Those that were not given yet.
    fn give(&self, events: impl Iterator<Item = Arc<Event>>) -> Vec<Arc<Event>> {
        events.filter(|event| event.record.revision > self.revision).collect()
    }

    /// Empties the queue; when it was full, reading begins where it was left.
    fn queued(&mut self) -> Result<Batch, WatchEnded> {
        let (events, position) = {
            let mut inner = self.follower.inner.lock();
            let (position, ended) = (inner.position, inner.ended);
            let Some(queue) = inner.queues.get_mut(&self.number) else { return Err(WatchEnded::Stopped) };
            if std::mem::take(&mut queue.lost) {
                drop(inner);
                let collection = self.follower.resource.row.collection();
                self.catching_up = Some((self.follower.keyspace.watch(collection, self.revision)?, position));
                return Ok(self.nothing());
            }
            queue.bytes = 0;
            let events = std::mem::take(&mut queue.events);
            if let Some(why) = ended.filter(|_| events.is_empty()) {
                return Err(why);
            }
            (events, position)
        };
        let events = self.give(events.into_iter());
        self.revision = self.revision.max(position);
        Ok(Batch { events, revision: self.revision })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut inner = self.follower.inner.lock();
        inner.queues.remove(&self.number);
        inner.nodes -= usize::from(matches!(self.key, Key::Node(_)));
        if let Some(numbers) = inner.by_key.get_mut(&self.key) {
            numbers.retain(|number| *number != self.number);
            if numbers.is_empty() {
                inner.by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};

    use coracle_keyspace::{EventKind, Guard, Key as RecordKey, Op, Value};

    use super::*;
    use crate::catalog::Catalog;

    struct Counting(AtomicUsize);

    impl Wake for Counting {
        fn wake(self: Arc<Counting>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    struct Pods {
        keyspace: Keyspace,
        pods: Arc<Resource>,
        keyed: Keyed,
        tasks: TaskTracker,
        _dir: tempfile::TempDir,
    }

    impl Pods {
        async fn new() -> Pods {
            let dir = tempfile::tempdir().unwrap();
            let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
            let pods = Catalog::new().named("", "pods").unwrap().clone();
            Pods { keyspace, pods, keyed: Keyed::default(), tasks: TaskTracker::new(), _dir: dir }
        }

        fn op(&self, name: &str, node: &str) -> Op {
            let text = format!("{{\"metadata\":{{\"resourceVersion\":\"\"}},\"spec\":{{\"nodeName\":\"{node}\"}}}}");
            let revision_at = text.find("\"\"").unwrap() + 1;
            let value = Value { bytes: text.into(), revision_at };
            Op::Put { key: RecordKey::new(self.pods.row.collection(), name), value, guard: Guard::None }
        }

        async fn put(&self, name: &str, node: &str) -> Revision {
            self.keyspace.transact(vec![self.op(name, node)]).await.unwrap().revision
        }

        fn subscribe(&self, key: Key, after: Revision) -> Subscription {
            self.keyed
                .subscribe(&self.keyspace, &self.pods, key, after, (&self.tasks, &CancellationToken::new()))
                .unwrap()
        }

        /// Until the follower has seen `revision`.
        async fn followed(&self, revision: Revision) {
            let follower = self.keyed.followers.lock()[self.pods.row.collection()].clone();
            while follower.inner.lock().position < revision {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn read(subscription: &mut Subscription, count: usize) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        while found.len() < count {
            let batch = tokio::time::timeout(std::time::Duration::from_secs(10), subscription.next()).await;
            for event in batch.expect("more is told").unwrap().events {
                assert_eq!(event.kind, EventKind::Put);
                found.push((event.record.key.name.to_string(), event.record.revision.get()));
            }
        }
        found
    }

    #[tokio::test]
    async fn nobody_is_woken_for_what_is_not_its_own() {
        let all = Pods::new().await;
        let start = all.put("ns/a", "one").await;
        let mut by_name = all.subscribe(Key::Name("ns/a".into()), start);
        let mut by_node = all.subscribe(Key::Node("one".into()), start);
        all.followed(start).await;
        let woken = Arc::new(Counting(AtomicUsize::new(0)));
        let waker = Waker::from(woken.clone());
        let last = {
            let (mut name, mut node) = (Box::pin(by_name.next()), Box::pin(by_node.next()));
            assert!(name.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            assert!(node.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            let mut last = start;
            for number in 0..100 {
                last = all.put(&format!("ns/other{number}"), "two").await;
            }
            all.followed(last).await;
            last
        };
        assert_eq!(woken.0.load(Ordering::SeqCst), 0);
        assert_eq!(by_name.pending().unwrap().revision, last, "a bookmark goes on");
        // A pod that comes to a node and one that leaves it are both its own.
        let came = all.put("ns/b", "one").await;
        let left = all.put("ns/a", "two").await;
        let expected = [("ns/b".to_owned(), came.get()), ("ns/a".to_owned(), left.get())];
        assert_eq!(read(&mut by_node, 2).await, expected);
        assert_eq!(read(&mut by_name, 1).await, expected[1..]);
        all.keyspace.shutdown().await;
        assert_eq!(by_name.next().await.unwrap_err(), WatchEnded::Stopped);
    }

    #[tokio::test]
    async fn nothing_is_lost_or_told_twice_by_whoever_comes_late_or_is_slow() {
        let all = Pods::new().await;
        let mut expected = Vec::new();
        let start = all.put("ns/first", "x").await;
        let mut put = async |count: usize| {
            for number in 0..count {
                let revision = all.put("ns/a", &format!("n{number}")).await;
                expected.push(("ns/a".to_owned(), revision.get()));
                all.put("ns/b", "x").await;
            }
        };
        put(10).await;
        // From the past, then a queue that overflows before anybody reads, then what comes while it is read.
        let mut late = all.subscribe(Key::Name("ns/a".into()), start);
        put(3 * QUEUE_EVENTS).await;
        all.followed(all.keyspace.revision()).await;
        let mut found = read(&mut late, 20).await;
        put(2 * QUEUE_EVENTS).await;
        all.followed(all.keyspace.revision()).await;
        put(5).await;
        // What it reads for itself has others' events, too.
        let own =
            |found: &[(String, u64)]| found.iter().filter(|(name, _)| name == "ns/a").cloned().collect::<Vec<_>>();
        while own(&found).len() < expected.len() {
            found.extend(read(&mut late, 1).await);
        }
        assert_eq!(own(&found), expected);
        all.keyspace.shutdown().await;
    }
}
