//! A TCP connection to a Service's port, from a client of the node's port or from a guest. It is served as HTTP, each request by an
//! endpoint of its own, when the endpoint picked for it is a component that is called, here or on another node; when that listens
//! itself, bytes are passed on as they are, whatever they mean: HTTP/2, gRPC, WebSocket or no HTTP at all.

use std::sync::Arc;

use coracle_policy::Source;
use http::Request;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::balance::{Picked, Tried};
use crate::endpoint::{Connected, Failure};
use crate::gone::gone;
use crate::observe::Stats;
use crate::retry::{ATTEMPTS_MAX, REFUSALS_MAX};
use crate::routes::Route;
use crate::turns::Turns;
use crate::{Asker, Body, BoxError, Error, Place, Proxy, Stream, Uncertain, serve, spare, upgrade};

/// Where a connection goes, and for whom.
#[derive(Clone)]
pub(crate) struct Way {
    pub proxy: Proxy,
    /// The Service's port as it is now.
    pub route: Arc<dyn Fn() -> Result<Route, Error> + Send + Sync>,
    /// For whom the way to other nodes is used.
    pub asker: Asker,
    /// Nothing more is taken.
    pub drain: CancellationToken,
}

/// Serves one connection of `source`.
pub(crate) async fn connection(way: Way, source: Source, stream: TcpStream, turns: Arc<Turns>) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    spare::keep_alive(&stream)?;
    let connected = connect(&way, &source, &stream).await.inspect_err(|_| {
        // An orderly end would tell who has connected that there is nothing more to hear.
        let _ = stream.set_zero_linger();
    });
    match connected? {
        Some((there, _picked, _place)) => {
            let mut client = Uncertain::new(stream);
            upgrade::pass(&mut client.socket, there, turns.begin()).await?;
            client.whole();
            Ok(())
        }
        None => http(way, stream, source, turns).await,
    }
}

/// A connection to an endpoint that listens itself; `None` when HTTP is to be spoken here: the endpoint is called, or there is
/// none for this client (one that speaks HTTP learns why; any other sees the connection end). An error resets the connection.
async fn connect(
    way: &Way,
    source: &Source,
    client: &TcpStream,
) -> Result<Option<(Box<dyn Stream>, Picked, Option<Place>)>, BoxError> {
    let proxy = &way.proxy;
    let mut route = (way.route)()?;
    let mut asked = Some(route.demand.begin());
    let mut tried = Tried::default();
    let mut failure = None;
    let mut is_renewed = false;
    let (mut attempts, mut refusals) = (0, 0);
    while attempts <= ATTEMPTS_MAX && refusals < REFUSALS_MAX {
        attempts += 1;
        let known = tried.count();
        let Some((mut picked, endpoint)) = proxy.pick(source, &route, &mut tried) else {
            // All that discovery named have just gone.
            if tried.count() > known
                && tried.not_allowed().is_none()
                && !std::mem::replace(&mut is_renewed, true)
                && let Some(renewed) = proxy.renew(&route).await
            {
                route = renewed;
                continue;
            }
            // Who may not connect does not wake it.
            let asleep = route.is_asleep() && tried.not_allowed().is_none();
            if let Some(asked) = asked.as_ref().filter(|_| asleep) {
                let awake = tokio::select! {
                    awake = proxy.awake(&route, asked, 0) => awake,
                    () = gone(client) => return Err("it has gone while it waited for a pod".into()),
                };
                route = match awake {
                    // A client that speaks HTTP is told.
                    Err(Error::Crowded { .. }) => return Ok(None),
                    awake => awake?,
                };
                (tried, is_renewed) = (Tried::default(), false);
                continue;
            }
            break;
        };
        let connected = endpoint.connect(&proxy.guard, way.asker.clone(), source).await;
        if connected.is_ok() {
            picked.asked = asked.take();
        }
        match connected {
            Ok(Connected::CallsOnly) => return Ok(None),
            Ok(Connected::Socket(there)) if !spare::is_spare(&there) => {
                return Err("the process has few descriptors left".into());
            }
            Ok(Connected::Socket(there)) => {
                Stats::one(&route.balancer.stats.connections);
                picked.answered();
                return Ok(Some((Box::new(there), picked, None)));
            }
            Ok(Connected::Elsewhere(there, place)) => {
                Stats::one(&route.balancer.stats.connections);
                picked.answered();
                return Ok(Some((there, picked, Some(place))));
            }
            // Nothing was sent: another may be asked.
            Err(error) => {
                let unseen = Failure::unseen(endpoint.address, error);
                match unseen.is_not_allowed() {
                    true => {
                        tried.add_not_allowed(&picked);
                        (attempts, refusals) = (attempts - 1, refusals + 1);
                    }
                    false => tried.add(&picked),
                }
                unseen.tell(&route.balancer, picked);
                failure = Some(unseen.error).filter(|error| !matches!(error, Error::NotAllowed(_)));
            }
        }
    }
    match (failure, tried.not_allowed()) {
        (Some(error), _) => Err(error.into()),
        // A pod is told as if nobody listened there, whatever it speaks.
        (None, Some(endpoint)) if matches!(way.asker, Asker::Pod(_)) => {
            Err(Error::NotAllowed(endpoint.to_string()).into())
        }
        (None, _) => Ok(None),
    }
}

/// Serves a connection as HTTP: each request takes the route as it is then.
async fn http(way: Way, stream: TcpStream, source: Source, turns: Arc<Turns>) -> Result<(), BoxError> {
    let drain = way.drain.clone();
    // Of the connection: a request that cloned the proxy would count a dozen references up and down.
    let way = Arc::new(way);
    let answer = move |mut request: Request<Body>| {
        request.extensions_mut().insert(way.asker.clone());
        let (way, route, source) = (way.clone(), (way.route)(), way.proxy.guard.now(&source));
        async move { way.proxy.call_route(&source, route?, request).await }
    };
    serve::serve(stream, turns, drain, answer).await
}

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;
    use coracle_discovery::Protocol;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio_util::task::TaskTracker;

    use super::super::Inbound;
    use super::super::wanted::{Purpose, Target};
    use super::*;
    use crate::accept::accept;
    use crate::places::{Bounds, Key, Places};
    use crate::tests::world::{SOON, World, echo, read_head, write};

    const KEY: Key = (80, Protocol::Tcp);
    const WHOLE: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    /// A listener before a component, with so few places.
    async fn web(world: &World, places: usize) -> (Inbound, std::net::SocketAddr) {
        world.start(1, echo().1);
        world.web(&[1]).await;
        let service = world.discovery.snapshot().service("n", "web").unwrap().clone();
        let inbound = Inbound {
            proxy: world.proxy.clone(),
            key: KEY,
            target: Arc::new(ArcSwap::from_pointee(Target { service, at: 0, purpose: Purpose::NodePort })),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            places: Places::new(Bounds { node: places, port: places, shared: 1000 }),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let of = inbound.clone();
        let serve = move |stream, client: std::net::SocketAddr, turns| of.clone().connection(stream, client, turns);
        inbound.tasks.spawn(accept(inbound.door(), listener, serve));
        (inbound, address)
    }

    async fn ask(client: &mut TcpStream) {
        write(client, WHOLE).await;
        let head = tokio::time::timeout(SOON, read_head(client)).await.expect("an answer");
        assert!(head.starts_with("HTTP/1.1 200"), "{head:?}");
    }

    #[tokio::test]
    async fn any_number_of_requests_that_are_half_sent_keep_nobody_out() {
        let world = World::new().await;
        let (inbound, address) = web(&world, 4).await;
        let mut resting = TcpStream::connect(address).await.unwrap();
        ask(&mut resting).await;
        let mut half = Vec::new();
        for _ in 0..40 {
            let mut client = TcpStream::connect(address).await.unwrap();
            write(&mut client, &WHOLE[..10]).await;
            half.push(client);
        }
        let mut late = TcpStream::connect(address).await.unwrap();
        ask(&mut late).await;
        ask(&mut resting).await;
        let ended = tokio::time::timeout(SOON, half[0].read(&mut [0; 1])).await.expect("the first has given way");
        assert!(matches!(ended, Ok(0) | Err(_)));
        // Those that rest give way, too, when there is nobody else.
        let mut more = vec![resting, late];
        for _ in 0..8 {
            let mut client = TcpStream::connect(address).await.unwrap();
            ask(&mut client).await;
            more.push(client);
        }
        let ended = tokio::time::timeout(SOON, more[0].read(&mut [0; 1])).await.expect("it has rested longest");
        assert!(matches!(ended, Ok(0) | Err(_)));
        inbound.stop.cancel();
        inbound.tasks.close();
        inbound.tasks.wait().await;
        assert_eq!(inbound.places.taken(), 0);
    }
}
