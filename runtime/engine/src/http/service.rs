//! A service: its bounds, its flights, its warm instances, its counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::{Request, Response};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::RequestError;
use super::answer::Answer;
use super::flight::{Boarded, Flight};
use super::run::{Warm, instantiate};
use crate::component::Pre;
use crate::engine::Inner;
use crate::guest;
use crate::limits::Account;
use crate::meter::{Clock, Metered};
use crate::{Body, Component, Engine, Error, Exit, Spec, Usage};

/// How an HTTP service runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    /// Instances at work at the same time.
    pub concurrency: u32,
    /// Requests that wait for one of them; more are refused.
    pub queue: u32,
    /// From the request to the end of the guest's work on it.
    pub request_timeout: Duration,
    /// Requests that one instance serves, one after the other. 1 is a fresh instance for each request: nothing of one
    /// request can be seen in another, and some languages' guests work no other way.
    pub reuse: u32,
    /// How long an instance waits for its next request.
    pub idle_timeout: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        HttpOptions {
            concurrency: 256,
            queue: 1024,
            request_timeout: Duration::from_secs(300),
            reuse: 1,
            idle_timeout: Duration::from_secs(10),
        }
    }
}

/// What a service has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests asked for.
    pub requests: u64,
    /// Those that had no answer, or one that broke off; refused ones are not among them.
    pub failed: u64,
    /// Failures by a trap or panic of the guest.
    pub traps: u64,
    /// Failures at the memory limit.
    pub out_of_memory: u64,
    /// Refused: too many, or the service was being stopped.
    pub refused: u64,
    /// Under way now.
    pub in_flight: u32,
}

/// A service. Clones are the same service; nothing of it runs while it is not asked.
#[derive(Clone)]
pub struct HttpService(Arc<Service>);

pub(super) struct Service {
    pub(super) engine: Arc<Inner>,
    pub(super) component: Component,
    pub(super) spec: Arc<Spec>,
    pub(super) account: Arc<Account>,
    pub(super) options: HttpOptions,
    permits: Arc<Semaphore>,
    /// How many there are, free and taken.
    permits_count: AtomicU32,
    /// The most memory that one instance has had.
    footprint: AtomicU64,
    waiting: AtomicU32,
    state: AtomicU8,
    pub(super) flights: Mutex<Flights>,
    /// Told when the last flight has ended.
    landed: Notify,
    pub(super) warm: Mutex<Vec<Warm>>,
    pub(super) janitor: AtomicBool,
    /// Whether its requests take long to compute; then they begin on the guests' threads.
    pub(super) is_heavy: AtomicBool,
    failed: watch::Sender<Option<Exit>>,
    requests: AtomicU64,
    failures: AtomicU64,
    traps: AtomicU64,
    out_of_memory: AtomicU64,
    refused: AtomicU64,
}

/// The flights under way. A place that became free is used again.
#[derive(Default)]
pub(super) struct Flights {
    pub(super) places: Vec<Option<Arc<Flight>>>,
    free: Vec<usize>,
}

impl Flights {
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

const OPEN: u8 = 0;
const DRAINING: u8 = 1;

impl Engine {
    /// Starts an HTTP service. Makes one instance to see that it can be made, and keeps nothing running.
    pub async fn start_http(
        &self,
        component: &Component,
        spec: Spec,
        options: HttpOptions,
    ) -> Result<HttpService, Error> {
        if !matches!(component.pre(), Pre::HttpP2(_) | Pre::HttpP3(_)) {
            return Err(Error::WrongWorld { wanted: "service" });
        }
        guest::check_mounts(&spec)?;
        let service = Arc::new(Service {
            engine: self.0.clone(),
            component: component.clone(),
            account: Account::new(&spec),
            spec: Arc::new(spec),
            permits: Arc::new(Semaphore::new(options.concurrency.max(1) as usize)),
            permits_count: AtomicU32::new(options.concurrency.max(1)),
            footprint: AtomicU64::new(0),
            options,
            waiting: AtomicU32::new(0),
            state: AtomicU8::new(OPEN),
            flights: Mutex::default(),
            landed: Notify::new(),
            warm: Mutex::default(),
            janitor: AtomicBool::new(false),
            is_heavy: AtomicBool::new(false),
            failed: watch::Sender::new(None),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            traps: AtomicU64::new(0),
            out_of_memory: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        service.check().await?;
        Ok(HttpService(service))
    }
}

impl Service {
    /// Makes one instance, on the guests' threads: a component may compute while it is instantiated.
    async fn check(self: &Arc<Self>) -> Result<(), Error> {
        let (done, result) = oneshot::channel();
        let service = self.clone();
        let made = Metered::new(self.account.clone(), Clock::Thread, async move {
            let made = instantiate(&service).await;
            if let Ok(warm) = &made {
                service.learn(warm.memory_bytes(), None);
            }
            if service.options.reuse > 1
                && let Ok(warm) = made
            {
                service.keep(warm);
                return Ok(());
            }
            made.map(drop)
        });
        let patience = self.options.request_timeout;
        self.engine.guests().spawn(async move {
            let _ = done.send(tokio::time::timeout(patience, made).await);
        });
        match result.await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Start(format!("took longer than {} s", patience.as_secs()))),
            Err(_) => Err(Error::Start("the engine ends".to_owned())),
        }
    }

    /// Lets a request in, at once or in its turn.
    async fn admit(&self) -> Result<OwnedSemaphorePermit, RequestError> {
        if self.state.load(Relaxed) != OPEN {
            return Err(RequestError::Stopped);
        }
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        if self.waiting.fetch_add(1, Relaxed) >= self.options.queue {
            self.waiting.fetch_sub(1, Relaxed);
            return Err(RequestError::Overloaded);
        }
        let _waiting = Waiting(&self.waiting);
        let turn = self.permits.clone().acquire_owned();
        match tokio::time::timeout(self.options.request_timeout, turn).await {
            Ok(Ok(permit)) if self.state.load(Relaxed) == OPEN => Ok(permit),
            Ok(_) => Err(RequestError::Stopped),
            Err(_) => Err(RequestError::Overloaded),
        }
    }

    /// An instance needs so much memory: no more of them at the same time than fit into the limit, so that many requests
    /// wait for each other and do not end as out of memory. Takes back the permit of the request, or keeps it away.
    pub(super) fn learn(&self, memory_bytes: u64, permit: Option<OwnedSemaphorePermit>) {
        let known = self.footprint.fetch_max(memory_bytes, Relaxed).max(memory_bytes);
        let fit = u32::try_from(self.account.memory_max() / known.max(1)).unwrap_or(u32::MAX).max(1);
        let one_less = |count| (count > fit).then(|| count - 1);
        if let Some(permit) = permit
            && self.permits_count.fetch_update(Relaxed, Relaxed, one_less).is_ok()
        {
            permit.forget();
        }
        while self.permits_count.load(Relaxed) > fit
            && let Ok(permit) = self.permits.try_acquire()
        {
            if self.permits_count.fetch_update(Relaxed, Relaxed, one_less).is_err() {
                return;
            }
            permit.forget();
        }
    }

    pub(super) fn register(self: &Arc<Self>, flight: &Arc<Flight>) {
        let mut flights = self.flights.lock();
        let key = match flights.free.pop() {
            Some(key) => key,
            None => {
                flights.places.push(None);
                flights.places.len() - 1
            }
        };
        flight.key.store(key, Relaxed);
        flights.places[key] = Some(flight.clone());
        drop(flights);
        self.look_after();
    }

    pub(super) fn unregister(&self, key: usize, outcome: &Result<(), RequestError>) {
        if let Err(error) = outcome {
            self.failures.fetch_add(1, Relaxed);
            match error {
                RequestError::Trap(_) => _ = self.traps.fetch_add(1, Relaxed),
                RequestError::OutOfMemory => {
                    self.out_of_memory.fetch_add(1, Relaxed);
                    self.failed.send_replace(Some(Exit::OutOfMemory));
                }
                _ => {}
            }
        }
        let mut flights = self.flights.lock();
        let flight = flights.places.get_mut(key).and_then(Option::take);
        if flight.is_some() {
            flights.free.push(key);
        }
        if flights.len() == 0 {
            self.landed.notify_waiters();
            // What a burst has needed is not kept by a service that rests.
            if flights.places.len() > 64 {
                *flights = Flights::default();
            }
        }
    }

    /// An instance that has served already.
    pub(super) fn warm(&self) -> Option<Warm> {
        if self.options.reuse > 1 { self.warm.lock().pop() } else { None }
    }

    /// Keeps an instance for the next request.
    pub(super) fn keep(self: &Arc<Self>, instance: Warm) {
        if self.state.load(Relaxed) == OPEN {
            self.warm.lock().push(instance);
            self.look_after();
        }
    }

    fn close(&self) {
        self.state.store(DRAINING, Relaxed);
        self.permits.close();
        self.warm.lock().clear();
    }
}

impl HttpService {
    /// Answers a request. Dropping this before the answer ends the guest; dropping the answer's body lets it finish.
    pub async fn handle(&self, request: Request<Body>) -> Result<Response<Body>, RequestError> {
        let service = &self.0;
        service.requests.fetch_add(1, Relaxed);
        let permit = service.admit().await.inspect_err(|_| {
            service.refused.fetch_add(1, Relaxed);
        })?;
        let flight = Flight::launch(service, request, permit);
        let mut boarded = Boarded(Some(flight.clone()));
        let head = flight.head().await;
        boarded.0 = None;
        match head {
            Ok(response) => Ok(Answer::response(response, flight)),
            Err(error) => {
                flight.detach();
                Err(error)
            }
        }
    }

    /// Refuses new requests and returns when those under way are done. Cancel-safe.
    pub async fn drain(&self) {
        self.0.close();
        loop {
            let landed = self.0.landed.notified();
            tokio::pin!(landed);
            landed.as_mut().enable();
            if self.0.flights.lock().len() == 0 {
                return;
            }
            landed.await;
        }
    }

    /// Refuses new requests and ends those under way.
    pub fn kill(&self) {
        self.0.close();
        let flights: Vec<_> = self.0.flights.lock().places.iter().flatten().cloned().collect();
        for flight in flights {
            flight.end(RequestError::Stopped);
        }
    }

    /// What its instances have used so far.
    pub fn usage(&self) -> Usage {
        self.0.account.usage()
    }

    /// What it has done so far.
    pub fn counters(&self) -> Counters {
        let service = &self.0;
        Counters {
            requests: service.requests.load(Relaxed),
            failed: service.failures.load(Relaxed),
            traps: service.traps.load(Relaxed),
            out_of_memory: service.out_of_memory.load(Relaxed),
            refused: service.refused.load(Relaxed),
            in_flight: u32::try_from(service.flights.lock().len()).unwrap_or(u32::MAX),
        }
    }

    /// Waits until an instance reaches the memory limit, as the kernel's OOM killer would end a process.
    pub async fn failed(&self) -> Exit {
        let mut failed = self.0.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or(Exit::OutOfMemory),
            Err(_) => Exit::Killed,
        }
    }
}

impl std::fmt::Debug for HttpService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpService").field("name", &self.0.spec.name).field("counters", &self.counters()).finish()
    }
}

/// One request in the queue.
struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
