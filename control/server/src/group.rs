//! This server among the others: the link to them, and what a new one is given.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_keyspace::{Admission, Called, ClusterId, GroupError, Keyspace, MemberId, PeerTls, Peers};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::authority::{Authority, SharedKeys, Subject};
use crate::tls::Certificates;
use crate::{Error, founding, listener};

/// In a data directory: the port that a server was given which took any.
const PORT_FILE: &str = "peer-port";

/// Where other servers reach this one.
#[derive(Debug)]
pub struct Peering {
    listener: TcpListener,
    address: String,
    places: Vec<String>,
}

impl Peering {
    /// Listens for other servers at `listen`. They reach that at `address`, `HOST` or `HOST:PORT`: where there is none, at
    /// the address that is listened at, or the one that leads out of this machine. At any port (0) it is the one that the server of
    /// `data_dir` had before, if that is free: the others look for it there, and where all begin anew nobody leads who could be told another.
    pub async fn listen(listen: SocketAddr, address: Option<&str>, data_dir: &Path) -> Result<Peering, Error> {
        let bind = |port| listener::bind(SocketAddr::new(listen.ip(), port), None, "other servers", "--peer-port");
        let before = if listen.port() == 0 { port_before(data_dir) } else { None };
        let listener = match bind(before.unwrap_or(listen.port())).await {
            // Whatever is wrong with that one, another is as good.
            Err(_) if before.is_some() => bind(0).await?,
            bound => bound?,
        };
        let bound = listener.local_addr();
        let bound = bound.map_err(|source| Error::File { path: Path::new("listener").into(), source })?;
        let address = match address {
            None => SocketAddr::new(crate::advertised(bound.ip()), bound.port()).to_string(),
            Some(address) => with_port(address, bound.port()),
        };
        Ok(Peering { listener, address, places: Vec::new() })
    }

    /// Has it look for others at `places`, each `HOST:PORT`, when they are not where they were: all servers may have moved at once.
    pub fn looking_at(self, places: Vec<String>) -> Peering {
        Peering { places, ..self }
    }

    /// `HOST:PORT` at which others reach it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Keeps its port for the next start of the server of `data_dir`. Where that cannot be done, a full disk say, another port is no reason
    /// not to start.
    pub(crate) fn remember(&self, data_dir: &Path) {
        let path = data_dir.join(PORT_FILE);
        let port = self.listener.local_addr().map(|bound| bound.port());
        let kept = port.and_then(|port| match port_before(data_dir) == Some(port) {
            true => Ok(()),
            false => founding::write(&path, format!("{port}\n").as_bytes()),
        });
        if let Err(error) = kept {
            tracing::error!(path = %path.display(), %error, "the port for other servers is not kept: the next start may take another one");
        }
    }
}

/// The port that [`Peering::remember`] kept; without, or where it is none, any is as good.
fn port_before(data_dir: &Path) -> Option<u16> {
    std::fs::read_to_string(data_dir.join(PORT_FILE)).ok()?.trim().parse().ok()
}

/// `HOST` or `HOST:PORT` with a port.
fn with_port(address: &str, port: u16) -> String {
    if let Ok(ip) = address.parse() {
        return SocketAddr::new(ip, port).to_string();
    }
    match address.rsplit_once(':') {
        Some((_, digits)) if digits.parse::<u16>().is_ok() => address.to_owned(),
        _ => format!("{address}:{port}"),
    }
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

impl Joining {
    /// As it is sent.
    pub fn to_json(&self) -> Value {
        json!({"admission": self.admission, "keys": {
            "authority": self.keys.authority, "authorityKey": self.keys.authority_key, "tokenKey": self.keys.token_key,
        }})
    }

    /// What was sent; `None` when it is something else.
    pub fn from_json(value: &Value) -> Option<Joining> {
        let key = |name: &str| value["keys"][name].as_str().map(str::to_owned);
        Some(Joining {
            admission: serde_json::from_value(value["admission"].clone()).ok()?,
            keys: SharedKeys {
                authority: key("authority")?,
                authority_key: key("authorityKey")?,
                token_key: key("tokenKey")?,
            },
        })
    }
}

impl std::fmt::Debug for Joining {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joining").field("admission", &self.admission).finish_non_exhaustive()
    }
}

/// How often a server whose record is another one meanwhile says again what it is called.
const INTRODUCTIONS_TRIED: usize = 16;
/// How often a server that waits for a majority of the servers says so.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Waits until this server has everything that was ever answered; a single one has. It waits for as long as the others take: how it
/// is, and what to do when they are lost, is told meanwhile ([`crate::door`]).
pub(crate) async fn caught_up(keyspace: &Keyspace) -> Result<(), Error> {
    let mut say_at = Instant::now() + SAY_EVERY;
    loop {
        let asked = Instant::now();
        tokio::select! {
            confirmed = keyspace.barrier() => if confirmed.is_ok() {
                return Ok(());
            },
            alarm = keyspace.removed() => return Err(Error::Removed(alarm.to_string())),
        }
        if Instant::now() >= say_at {
            let others = others(keyspace);
            tracing::warn!(others, "waiting for a majority of the servers; `coracle status` says what to do");
            say_at = Instant::now() + SAY_EVERY;
        }
        // It waits by itself while nobody leads; where it does not, this is no busy loop.
        tokio::time::sleep_until((asked + Duration::from_millis(100)).into()).await;
    }
}

/// Has the others know what this server is called, when it has what they have. Others that go away just then are no reason not to start, nor
/// is a full disk.
pub(crate) async fn introduced(keyspace: &Keyspace, name: &str, api_names: &[String]) -> Result<(), Error> {
    let mut tried = 0;
    loop {
        match keyspace.introduce(name, api_names).await {
            Err(error @ GroupError::NoRoom(_)) => {
                tracing::error!(%error, "what this server is called is not told");
                return Ok(());
            }
            // Telling it twice is nothing.
            Err(GroupError::Unknown | GroupError::Unavailable) => caught_up(keyspace).await?,
            // Who was removed just now hears so, in words.
            Err(GroupError::Changed) if tried < INTRODUCTIONS_TRIED => {
                tried += 1;
                caught_up(keyspace).await?;
            }
            introduced => return Ok(introduced?),
        }
    }
}

/// All but this server, in words; nothing while it knows of none.
pub(crate) fn others(keyspace: &Keyspace) -> String {
    let others = keyspace.members().into_iter().filter(|member| member.member != keyspace.member());
    let others: Vec<String> = others.map(|other| in_words(other.member, &other.name, &other.address)).collect();
    others.join(", ")
}

/// `member 2 two at HOST:PORT`; a name and an address that are not known are left out.
pub(crate) fn in_words(member: MemberId, name: &str, address: &str) -> String {
    let mut words = format!("member {member}");
    for (before, word) in [(" ", name), (" at ", address)] {
        if !word.is_empty() {
            words.push_str(before);
            words.push_str(word);
        }
    }
    words
}

/// The listener for other servers, and this one's certificate towards them.
pub(crate) fn peers(
    Peering { listener, address, places }: Peering,
    authority: &Authority,
    certificates: &Certificates,
    (cluster, member): (ClusterId, MemberId),
    streams: mpsc::Sender<Called>,
) -> Result<Peers, Error> {
    let shown = certificates.issue(
        authority,
        Subject {
            file: "member".into(),
            user: format!("coracle:member:{member}"),
            groups: vec!["coracle:members".into()],
            hosts: vec![cluster.certificate_name(member)],
            addresses: vec![],
        },
    )?;
    let tls = PeerTls { server: Arc::new(shown.peers(authority)?), client: shown.client(authority)? };
    Ok(Peers { listener, address, places, tls, streams })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;
    use std::net::{IpAddr, Ipv4Addr};

    use coracle_keyspace::{Formats, Role};
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};
    use sha2::Digest as _;

    use super::*;
    use crate::encryption::tests::{ENCODED, PLAIN, SECRETS, holding};
    use crate::{Config, Duties, Listeners, MASTERS, Server};

    const LIMIT: Duration = Duration::from_secs(60);

    pub async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
        let tries = async {
            loop {
                if let Some(done) = done().await {
                    return done;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, tries).await.unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"))
    }

    async fn start(dir: &Path, joining: Option<Joining>) -> Server {
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let config = Config {
            data_dir: dir.to_owned(),
            api: any,
            registry: any.ip(),
            registry_port: Some(0),
            hosts: Vec::new(),
            stored_max: 6 << 30,
            name: dir.file_name().unwrap().to_string_lossy().into_owned(),
            node: None,
            peers: Some(Peering::listen(any, None, dir).await.unwrap()),
            joining,
            program: None,
            listeners: Listeners::default(),
            audit: None,
            duties: Duties::default(),
        };
        Server::start(config).await.unwrap()
    }

    async fn ask(server: &Server, method: &str, path: &str, body: Option<Value>) -> Result<Value, kube::Error> {
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
        server.client("tester", &[MASTERS]).request(request.body(body).unwrap()).await
    }

    async fn registry(server: &Server, method: http::Method, path: &str, body: Vec<u8>) -> (u16, bytes::Bytes) {
        let request = http::Request::builder().method(method).uri(path).body(axum::body::Body::from(body)).unwrap();
        let router = coracle_registry::router(server.registry().clone());
        let answer = tower::ServiceExt::oneshot(router, request).await.unwrap();
        (answer.status().as_u16(), answer.into_body().collect().await.unwrap().to_bytes())
    }

    const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
    const REPLICA_SETS: &str = "/apis/apps/v1/namespaces/default/replicasets";

    fn deployment(name: &str) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": {
                "metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "app", "image": "app:v1"}]},
            }},
        })
    }

    /// Waits until `server` has a ReplicaSet of the Deployment `name`.
    async fn is_reconciled(server: &Server, name: &str) {
        let path = format!("{REPLICA_SETS}?labelSelector=app%3D{name}");
        until(&format!("a ReplicaSet of {name}"), async || {
            let list = ask(server, "GET", &path, None).await.ok()?;
            (list["items"].as_array()?.len() == 1).then_some(())
        })
        .await;
    }

    #[test]
    fn a_member_is_named_by_what_is_known_of_it() {
        assert_eq!(in_words(2, "two", "192.0.2.1:7"), "member 2 two at 192.0.2.1:7");
        assert_eq!(in_words(1, "", "192.0.2.1:7"), "member 1 at 192.0.2.1:7");
        assert_eq!(in_words(3, "three", ""), "member 3 three");
    }

    #[tokio::test]
    async fn a_server_that_takes_any_port_takes_the_one_that_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let listen = async || Peering::listen(any, None, dir.path()).await.unwrap();
        let first = listen().await;
        first.remember(dir.path());
        let had = first.address().to_owned();
        // Somebody has it: another is as good.
        assert_ne!(listen().await.address(), had);
        drop(first);
        assert_eq!(listen().await.address(), had);
        std::fs::write(dir.path().join(PORT_FILE), "no port").unwrap();
        listen().await;
    }

    #[test]
    fn an_address_for_others_has_a_port() {
        for (given, expected) in [
            ("192.0.2.1", "192.0.2.1:7"),
            ("192.0.2.1:9", "192.0.2.1:9"),
            ("boat.example", "boat.example:7"),
            ("boat.example:9", "boat.example:9"),
            ("2001:db8::1", "[2001:db8::1]:7"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
        ] {
            assert_eq!(with_port(given, 7), expected);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_without_a_record_is_not_introduced_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir.path())).await.unwrap();
        let record = coracle_keyspace::Key::new("coracle group", "member 1");
        let gone = coracle_keyspace::Op::Delete { key: record, guard: coracle_keyspace::Guard::Present };
        keyspace.transact(vec![gone]).await.unwrap();
        let told = tokio::time::timeout(LIMIT, introduced(&keyspace, "one", &["one.example".to_owned()])).await;
        let told = told.expect("it ends").unwrap_err();
        assert!(matches!(told, Error::Group(GroupError::Changed)), "{told}");
        keyspace.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn three_servers_are_one_cluster_and_duties_follow_the_leader() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut servers = vec![start(dirs[0].path(), None).await];
        // An image that is there before there are others.
        let older = vec![b'o'; 1 << 20];
        let hex =
            |blob: &[u8]| -> String { sha2::Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect() };
        let path = format!("/v2/app/blobs/uploads/?digest=sha256:{}", hex(&older));
        assert_eq!(registry(&servers[0], http::Method::POST, &path, older.clone()).await.0, 201);
        for (dir, name) in dirs[1..].iter().zip(["second", "third"]) {
            let joining = until("it has an address", async || servers[0].admit(name, Formats::OWN).await.ok()).await;
            servers.push(start(dir.path(), Some(joining)).await);
        }
        until("three voters", async || {
            let members = servers[2].keyspace().members();
            (members.iter().filter(|member| member.role == Role::Voter).count() == 3).then_some(())
        })
        .await;
        // They count only with what was there before them.
        let hex_older = hex(&older);
        for dir in &dirs {
            let path = dir.path().join("registry/blobs/sha256").join(&hex_older[..2]).join(&hex_older);
            assert!(path.exists(), "{}", path.display());
        }
        assert!(servers.iter().all(|server| !server.keyspace().waits()));
        // An image is pushed at one, and is at all; it comes over their own listeners, at which nobody else is heard.
        let blob = vec![b'x'; 1 << 20];
        let hex = hex(&blob);
        let path = format!("/v2/app/blobs/uploads/?digest=sha256:{hex}");
        let (status, why) = registry(&servers[1], http::Method::POST, &path, blob.clone()).await;
        assert_eq!(status, 201, "{why:?}");
        for server in &servers {
            let path = format!("/v2/app/blobs/sha256:{hex}");
            let (status, pulled) = registry(server, http::Method::GET, &path, Vec::new()).await;
            assert!(status == 200 && pulled == blob, "{status}");
        }
        // An account of one server, and its token, are good at another at once.
        for number in 0..8 {
            let account = format!("/api/v1/namespaces/default/serviceaccounts/a{number}");
            let object =
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": format!("a{number}")}});
            ask(&servers[0], "POST", account.rsplit_once('/').unwrap().0, Some(object)).await.unwrap();
            let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
            let told = ask(&servers[0], "POST", &format!("{account}/token"), Some(asked)).await.unwrap();
            let shown = format!("Bearer {}", told["status"]["token"].as_str().unwrap());
            let request = http::Request::get("/apis").header("authorization", shown).body(axum::body::Body::empty());
            let answer = tower::ServiceExt::oneshot(servers[2].router.clone(), request.unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200);
        }
        // Written at one, done by the leader, read at another; tokens and certificates are the same everywhere.
        ask(&servers[1], "POST", DEPLOYMENTS, Some(deployment("first"))).await.unwrap();
        is_reconciled(&servers[2], "first").await;
        // A Secret of each: all have the key that the founder made, and read it.
        for (at, server) in servers.iter().enumerate() {
            let secret = json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("s{at}")}, "stringData": {"password": PLAIN},
            });
            ask(server, "POST", SECRETS, Some(secret)).await.unwrap();
            let told = crate::encryption::told(server.keyspace());
            assert_eq!((&told["key"], &told["unreadableCount"]), (&json!(1), &json!(0)));
        }
        for server in &servers {
            server.keyspace().barrier().await.unwrap();
            let found = ask(server, "GET", SECRETS, None).await.unwrap();
            let found: Vec<&Value> =
                found["items"].as_array().unwrap().iter().map(|item| &item["data"]["password"]).collect();
            assert_eq!(found, [ENCODED; 3]);
            server.keyspace().flush_history().await;
        }
        let addresses: BTreeSet<u16> = until("the API's endpoints are all servers", async || {
            let found = ask(&servers[2], "GET", "/api/v1/namespaces/default/endpoints/kubernetes", None).await.ok()?;
            let ports = found["subsets"].as_array()?.iter().filter_map(|subset| subset["ports"][0]["port"].as_u64());
            let ports: BTreeSet<u16> = ports.filter_map(|port| u16::try_from(port).ok()).collect();
            (ports.len() == 3).then_some(ports)
        })
        .await;
        assert_eq!(addresses, servers.iter().map(|server| server.api_address.port()).collect());
        // The leader stops: another one leads, and does what it did. Whoever asks meanwhile waits, and is not refused.
        let first = servers.remove(0);
        let began = Instant::now();
        let (created, ()) =
            tokio::join!(ask(&servers[0], "POST", DEPLOYMENTS, Some(deployment("second"))), first.shutdown());
        created.unwrap();
        is_reconciled(&servers[1], "second").await;
        println!("handed over, created and reconciled after {:?}", began.elapsed());
        // It comes back as who it was.
        let first = start(dirs[0].path(), None).await;
        assert_eq!((first.keyspace().member(), first.keyspace().cluster()), (1, servers[0].keyspace().cluster()));
        is_reconciled(&first, "second").await;
        servers.push(first);
        for server in servers {
            server.shutdown().await;
        }
        for dir in &dirs {
            assert!(!holding(dir.path(), "rollingUpdate").is_empty(), "it is looked at");
            assert_eq!([holding(dir.path(), PLAIN), holding(dir.path(), ENCODED)].concat(), Vec::<String>::new());
        }
    }
}
