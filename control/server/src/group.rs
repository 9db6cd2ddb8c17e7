//! This server among the others: the link to them, what a new one is given, and duties that only one has.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use coracle_apiserver::{ApiServer, Identity};
use coracle_keyspace::{Admission, ClusterId, Lead, MemberId, PeerTls, Peers};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::authority::{Authority, SharedKeys, Subject};
use crate::{Error, MASTERS, client_tls, listener, roots};

/// Where other servers reach this one.
#[derive(Clone, Debug)]
pub struct Peering {
    /// Where it listens for them.
    pub listen: SocketAddr,
    /// `HOST:PORT` at which they reach that, where it is not the address that is listened at.
    pub address: Option<String>,
}

/// All that a new server needs to be one of a cluster's ([`Server::admit`](crate::Server::admit)). It is as secret as the
/// cluster's keys, which are in it: it goes to a machine that proved that it may join, over TLS, and into no log.
#[derive(Clone)]
pub struct Joining {
    /// Its place among the members.
    pub admission: Admission,
    /// What all servers of the cluster have in common.
    pub keys: SharedKeys,
}

impl std::fmt::Debug for Joining {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joining").field("admission", &self.admission).finish_non_exhaustive()
    }
}

/// The listener for other servers, and this one's certificate towards them.
pub(crate) async fn peers(
    peering: &Peering,
    authority: &Authority,
    cluster: ClusterId,
    member: MemberId,
) -> Result<Peers, Error> {
    let listener = listener::bind(peering.listen, "other servers").await?;
    let bound = listener.local_addr().map_err(|source| Error::File { path: Path::new("listener").into(), source })?;
    let address = peering.address.clone().unwrap_or_else(|| bound.to_string());
    let pair = authority.issue(&Subject {
        file: "member",
        user: &format!("coracle:member:{member}"),
        groups: &["coracle:members"],
        hosts: vec![cluster.certificate_name(member)],
        addresses: vec![],
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let callers = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority)?), provider.clone())
        .build()
        .map_err(|e| Error::Tls(e.into()))?;
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| builder.with_client_cert_verifier(callers).with_single_cert(pair.chain(), pair.private_key()))
        .map_err(|e| Error::Tls(e.into()))?;
    let tls = PeerTls { server: Arc::new(server), client: client_tls(authority, &pair)? };
    Ok(Peers { listener, address, tls })
}

/// Runs controllers and scheduler for as long as this server leads, and again whenever it does, until `stop`.
pub(crate) async fn duties(
    api: ApiServer,
    root_ca: String,
    mut lead: watch::Receiver<Option<Lead>>,
    stop: CancellationToken,
) {
    loop {
        let mine = tokio::select! {
            lead = lead.wait_for(Option::is_some) => lead.ok().and_then(|lead| *lead),
            () = stop.cancelled() => return,
        };
        let Some(mine) = mine else { return };
        tracing::info!(term = mine.term, "this server leads: controllers and scheduler run here");
        let (until, tasks) = (stop.child_token(), TaskTracker::new());
        let client = |user: &str| {
            let identity = Identity::authenticated(user, vec![MASTERS.to_owned()]);
            kube::Client::new(api.in_process(identity).under(mine), "default")
        };
        let config =
            coracle_controllers::Config { root_ca: root_ca.clone(), ..coracle_controllers::Config::default() };
        tasks.spawn(coracle_controllers::run(client("system:kube-controller-manager"), config, until.clone()));
        let config = coracle_scheduler::Config::default();
        tasks.spawn(coracle_scheduler::run(client("system:kube-scheduler"), config, until.clone()));
        tokio::select! {
            _ = lead.wait_for(|lead| *lead != Some(mine)) => tracing::info!("this server leads no more"),
            () = stop.cancelled() => (),
        }
        until.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
