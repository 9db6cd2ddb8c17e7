//! A service: its bounds, its flights, its warm instances, its counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::{Request, Response};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use super::admission::{Admission, Asker, DEPTH_MAX, Permit, Probe};
use super::answer::Answer;
use super::flight::{Boarded, Flight};
use super::run::{Warm, instantiate};
use super::{RequestError, edge};
use crate::component::Pre;
use crate::engine::Inner;
use crate::guest;
use crate::host::Chain;
use crate::limits::Account;
use crate::meter::Metered;
use crate::slice::Clock;
use crate::{Body, Component, Engine, Error, Exit, OpenSocket, Spec, Usage};

/// How an HTTP service runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    /// Instances at work at the same time; fewer where the memory limit or the engine has no room for as many.
    pub concurrency: u32,
    /// Requests that wait for one of them; more are refused.
    pub queue: u32,
    /// From the request to the end of the guest's work on it.
    pub request_timeout: Duration,
    /// Requests that one instance serves, one after the other. 1 is a fresh instance for each request: nothing of one
    /// request can be seen in another, and some languages' guests work no other way. None: what is known to be safe for
    /// the component ([`Component::reuse`]).
    pub reuse: Option<u32>,
    /// How long the reader of an answer may not read while the guest wants to go on writing.
    pub read_stall: Duration,
    /// How long the rest of a request may be waited for, when its guest does nothing else for its client.
    pub body_stall: Duration,
    /// How long an instance waits for its next request.
    pub idle_timeout: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        HttpOptions {
            concurrency: 256,
            queue: 1024,
            request_timeout: Duration::from_secs(300),
            reuse: None,
            read_stall: Duration::from_secs(45),
            body_stall: Duration::from_secs(45),
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
    /// Failures at the container's memory limit.
    pub out_of_memory: u64,
    /// Refused: too many, or the service was being stopped.
    pub refused: u64,
    /// Under way now.
    pub in_flight: u32,
}

/// A service. Clones are the same service; nothing of it runs while it is not asked.
#[derive(Clone)]
pub struct HttpService(pub(super) Arc<Service>);

pub(super) struct Service {
    pub(super) engine: Arc<Inner>,
    pub(super) component: Component,
    pub(super) spec: Arc<Spec>,
    pub(super) account: Arc<Account>,
    pub(super) options: HttpOptions,
    /// Requests that one instance serves.
    pub(super) reuse: u32,
    pub(super) admission: Admission,
    began: Instant,
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
        let account = self.0.account(&spec);
        let concurrency = options.concurrency.min(self.0.container_max(component));
        let service = Arc::new(Service {
            engine: self.0.clone(),
            component: component.clone(),
            reuse: component.reuse_of(options.reuse),
            admission: Admission::new(concurrency, options.queue, options.request_timeout, account.memory_max()),
            account,
            spec: Arc::new(spec),
            began: Instant::now(),
            options,
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
        let weak = Arc::downgrade(&service);
        service.account.on_kill(move || {
            if let Some(service) = weak.upgrade() {
                let gateway = service.engine.executor.gateway().clone();
                gateway.spawn(async move { service.lose_memory() });
            }
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
            let made = instantiate(&service, false).await;
            if let Ok(warm) = &made {
                service.admission.learn(warm.memory_bytes(), None);
            }
            if service.reuse > 1
                && let Ok(warm) = made
            {
                service.keep(warm);
                return Ok(());
            }
            made.map(drop)
        });
        let patience = self.options.request_timeout;
        let checking = self.engine.executor.spawn(&self.account.lane, async move {
            let _ = done.send(tokio::time::timeout(patience, made).await);
        });
        // Who no longer waits for the start does not want the instance either.
        let mut unwanted = Unwanted(Some(checking));
        let result = result.await;
        unwanted.0 = None;
        match result {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Start(format!("took longer than {} s", patience.as_secs()))),
            Err(_) => Err(Error::Start("the engine ends".to_owned())),
        }
    }

    /// Lets a request in, at once or in its turn.
    async fn admit(&self, asker: Asker) -> Result<Permit, RequestError> {
        if self.state.load(Relaxed) != OPEN {
            return Err(RequestError::Stopped);
        }
        let permit = self.admission.admit(asker).await?;
        if self.state.load(Relaxed) == OPEN { Ok(permit) } else { Err(RequestError::Stopped) }
    }

    /// Milliseconds since it began.
    pub(super) fn age_millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The node wants its memory back.
    fn lose_memory(&self) {
        self.warm.lock().clear();
        self.end_all(&RequestError::OutOfMemory);
        self.failed.send_replace(Some(Exit::OutOfMemory));
        self.account.revive();
    }

    pub(super) fn end_all(&self, reason: &RequestError) {
        let flights: Vec<_> = self.flights.lock().places.iter().flatten().cloned().collect();
        for flight in flights {
            flight.end(reason.clone());
        }
    }

    /// Lists a flight; refused when the service was closed: whoever closes it looks at the list afterwards, so each
    /// flight is seen there or refused here.
    pub(super) fn register(self: &Arc<Self>, flight: &Arc<Flight>) -> Result<(), RequestError> {
        let mut flights = self.flights.lock();
        if self.state.load(Relaxed) != OPEN {
            return Err(RequestError::Stopped);
        }
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
        Ok(())
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
        if self.reuse > 1 { self.warm.lock().pop() } else { None }
    }

    /// Keeps an instance for the next request.
    pub(super) fn keep(self: &Arc<Self>, instance: Warm) {
        let mut warm = self.warm.lock();
        // Under the lock: who closes the service clears the list afterwards.
        if self.state.load(Relaxed) == OPEN {
            // More than can be at work would only hold memory.
            if warm.len() < self.admission.count() as usize {
                warm.push(instance);
            }
            drop(warm);
            self.look_after();
        }
    }

    fn close(&self) {
        self.state.store(DRAINING, Relaxed);
        self.admission.close();
        self.warm.lock().clear();
    }
}

impl HttpService {
    /// Answers a request. Dropping this before the answer ends the guest; dropping the answer's body lets it finish.
    ///
    /// What is for one connection only (`Connection` and what it names) is the caller's affair, both ways.
    ///
    /// A request with [`Probe`] among its extensions does not wait behind the others.
    pub async fn handle(&self, request: Request<Body>) -> Result<Response<Body>, RequestError> {
        let service = &self.0;
        service.requests.fetch_add(1, Relaxed);
        let refused = |_: &RequestError| {
            service.refused.fetch_add(1, Relaxed);
        };
        edge::receive(&request).inspect_err(refused)?;
        let chain = request.extensions().get::<Chain>().cloned().unwrap_or_default();
        if chain.depth() > DEPTH_MAX {
            return Err(RequestError::Loop).inspect_err(refused);
        }
        let asker = if request.extensions().get::<Probe>().is_some() {
            Asker::Probe
        } else if chain.has(&service.account) {
            Asker::Itself
        } else {
            Asker::Client
        };
        let permit = service.admit(asker).await.inspect_err(refused)?;
        let flight = Flight::launch(service, request, permit, chain).inspect_err(refused)?;
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
        self.0.end_all(&RequestError::Killed);
    }

    /// Counts a socket that is opened on its behalf among those of its instances; none when it has as many as it may.
    pub fn open_socket(&self) -> Option<OpenSocket> {
        OpenSocket::take(&self.0.account)
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

    /// Waits until an instance reaches the memory limit, as the kernel's OOM killer would end a process. That the node has no
    /// memory for another instance ends none: whoever asked is told that there is none ([`RequestError::Unavailable`]).
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

/// A task that ends with this.
struct Unwanted(Option<crate::exec::Running>);

impl Drop for Unwanted {
    fn drop(&mut self) {
        if let Some(running) = &self.0 {
            running.cancel();
        }
    }
}
