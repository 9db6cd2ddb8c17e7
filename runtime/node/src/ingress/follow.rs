//! What Ingresses need beside their routes: the certificates in the Secrets that they name, kept as they are now; and what is told
//! of them, as events.
//!
//! Each node that serves them tells what it finds, as each replica of an ingress controller does: it is the one that knows.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use coracle_discovery::{
    Backend, Discovery, Ingress, Origin, PortName, Problem, Protocol, SecretKey, ServiceKind, Told,
};
use coracle_proxy::{Certificate, Certificates};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::events::{Record, Recorder};
use crate::objects::{Bounds, Content, Kind, ObjectKey, Objects, ReadError};

/// `type` of Secrets with a certificate, and where it and its key are.
const TLS: &str = "kubernetes.io/tls";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// How long after an Ingress has come its Services may come, without a word.
const SERVICES_WITHIN: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 3 });
/// How long after Services have changed it is looked which ones are missing, at most so often.
const LOOK_AFTER: Duration = Duration::from_secs(30);

/// A Secret that was read for an Ingress.
type Read = (Arc<str>, SecretKey, Result<Option<Arc<Content>>, ReadError>);

/// Follows what is told of Ingresses.
pub struct Follower {
    objects: Objects,
    certificates: Arc<Certificates>,
    recorder: Recorder,
    discovery: Discovery,
    /// By uid.
    served: HashMap<Arc<str>, Arc<Ingress>>,
    /// Who names a Secret.
    users: HashMap<SecretKey, HashSet<Arc<str>>>,
    /// What was told of an Ingress and a Secret, and of its Services.
    of_secrets: HashMap<(Arc<str>, SecretKey), Problem>,
    of_services: HashMap<Arc<str>, BTreeSet<String>>,
    changed: Arc<Changed>,
    reads: FuturesUnordered<BoxFuture<'static, Read>>,
    /// Secrets for which there was no room.
    waiting: HashSet<(Arc<str>, SecretKey)>,
    /// When it is looked for Services: of these Ingresses, or of all.
    look_at: Option<Instant>,
    look_for: HashSet<Arc<str>>,
    look_at_all: Option<Instant>,
}

/// Users of Secrets that have changed.
#[derive(Default)]
pub(super) struct Changed {
    users: Mutex<HashSet<Arc<str>>>,
    more: Notify,
}

impl Changed {
    /// One of this user's has.
    pub fn add(&self, user: &str) {
        self.users.lock().insert(user.into());
        self.more.notify_one();
    }

    /// Those of whom it has not been said yet, once there are some. Cancel-safe.
    pub async fn next(&self) -> HashSet<Arc<str>> {
        self.more.notified().await;
        std::mem::take(&mut *self.users.lock())
    }
}

impl Follower {
    /// Reads nothing before it is told of somebody; no Secret is followed any more when `shutdown` is cancelled.
    pub fn new(
        client: kube::Client,
        certificates: Arc<Certificates>,
        recorder: Recorder,
        discovery: Discovery,
        shutdown: CancellationToken,
    ) -> Self {
        let changed: Arc<Changed> = Arc::default();
        let telling = changed.clone();
        let on_change = Arc::new(move |uid: &str| telling.add(uid));
        Self {
            objects: Objects::new(client, Bounds::INGRESSES, shutdown, on_change),
            certificates,
            recorder,
            discovery,
            served: HashMap::new(),
            users: HashMap::new(),
            of_secrets: HashMap::new(),
            of_services: HashMap::new(),
            changed,
            reads: FuturesUnordered::new(),
            waiting: HashSet::new(),
            look_at: None,
            look_for: HashSet::new(),
            look_at_all: None,
        }
    }

    /// Until shutdown.
    pub async fn run(mut self, mut hears: mpsc::Receiver<Told>, shutdown: CancellationToken) {
        let mut services = self.discovery.subscribe();
        loop {
            let look_at = [self.look_at, self.look_at_all].into_iter().flatten().min();
            let look = async {
                match look_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // Everything here only waits.
            tokio::select! {
                told = hears.recv() => match told {
                    Some(told) => self.hear(told),
                    None => return,
                },
                Some((uid, secret, read)) = self.reads.next() => self.take(&uid, secret, read),
                changed = self.changed.next() => changed.iter().for_each(|uid| self.read(uid)),
                Ok(()) = services.changed() => {
                    self.look_at_all.get_or_insert_with(|| Instant::now() + LOOK_AFTER);
                }
                () = look => self.look(Instant::now()),
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn hear(&mut self, told: Told) {
        match told {
            Told::Served(ingress) => {
                let uid = ingress.origin.uid.clone();
                for secret in ingress.secrets() {
                    self.users.entry(secret.clone()).or_default().insert(uid.clone());
                }
                // What it goes on naming is kept as it is.
                if let Some(before) = self.served.insert(uid.clone(), ingress.clone()) {
                    let named: HashSet<&SecretKey> = ingress.secrets().collect();
                    self.let_go(&uid, before.secrets().filter(|secret| !named.contains(secret)));
                    self.keep_named(&uid);
                }
                self.read(&uid);
                self.look_for.insert(uid);
                self.look_at = Some(Instant::now() + SERVICES_WITHIN);
            }
            Told::Left(origin) => self.leave(&origin.uid),
            Told::Problem(origin, problem) => self.tell(&origin, problem),
        }
    }

    /// Lets go of all that it has.
    fn leave(&mut self, uid: &Arc<str>) {
        let Some(ingress) = self.served.remove(uid) else { return };
        self.let_go(uid, ingress.secrets());
        self.keep_named(uid);
        self.of_services.remove(uid);
    }

    /// It names these Secrets no more.
    fn let_go<'a>(&mut self, uid: &Arc<str>, secrets: impl Iterator<Item = &'a SecretKey>) {
        for secret in secrets {
            let of = (uid.clone(), secret.clone());
            self.of_secrets.remove(&of);
            self.waiting.remove(&of);
            let Some(users) = self.users.get_mut(secret) else { continue };
            users.remove(uid);
            if users.is_empty() {
                self.users.remove(secret);
                self.certificates.set(secret, None);
            }
        }
    }

    /// Follows the Secrets that it names, and no others: then there may be room for those of others.
    fn keep_named(&mut self, uid: &Arc<str>) {
        let named: HashSet<SecretKey> =
            self.served.get(uid).into_iter().flat_map(|ingress| ingress.secrets().cloned()).collect();
        let is_named =
            |key: &ObjectKey| named.contains(&SecretKey { namespace: key.namespace.clone(), name: key.name.clone() });
        if self.objects.keep(uid, is_named) {
            for (uid, secret) in std::mem::take(&mut self.waiting) {
                self.reads.push(self.reading(uid, secret));
            }
        }
    }

    /// Reads its Secrets as they are now.
    fn read(&mut self, uid: &Arc<str>) {
        let Some(ingress) = self.served.get(uid) else { return };
        let secrets: HashSet<&SecretKey> = ingress.secrets().collect();
        for secret in secrets {
            self.reads.push(self.reading(uid.clone(), secret.clone()));
        }
    }

    fn reading(&self, uid: Arc<str>, secret: SecretKey) -> BoxFuture<'static, Read> {
        let objects = self.objects.clone();
        let key = ObjectKey { kind: Kind::Secret, namespace: secret.namespace.clone(), name: secret.name.clone() };
        Box::pin(async move {
            let read = objects.read(&key, &uid).await;
            (uid, secret, read)
        })
    }

    fn take(&mut self, uid: &Arc<str>, secret: SecretKey, read: Result<Option<Arc<Content>>, ReadError>) {
        // It may have gone meanwhile, or name other Secrets.
        let ingress = self.served.get(uid).filter(|ingress| ingress.secrets().any(|named| *named == secret)).cloned();
        let Some(ingress) = ingress else { return self.keep_named(uid) };
        let name = format!("{}/{}", secret.namespace, secret.name);
        let problem = match read {
            Ok(Some(content)) => match certificate(&content) {
                Ok(certificate) => {
                    self.certificates.set(&secret, Some(certificate));
                    None
                }
                // What was there before it was changed is better than nothing.
                Err(why) => {
                    let shown = if self.certificates.has(&secret) {
                        "the certificate before it"
                    } else {
                        "a certificate that nobody trusts"
                    };
                    let message =
                        format!("secret {name} has no certificate that can be shown, {shown} is shown instead: {why}");
                    Some(Problem { reason: "InvalidCertificate", message })
                }
            },
            Ok(None) => {
                self.certificates.set(&secret, None);
                let message = format!(
                    "secret {name} does not exist: a certificate that nobody trusts is shown instead of its own"
                );
                Some(Problem { reason: "MissingSecret", message })
            }
            // Nobody would tell when it is there.
            Err(ReadError::TimedOut(_)) => return self.reads.push(self.reading(uid.clone(), secret)),
            Err(error) => {
                // Nor when there is room.
                if matches!(error, ReadError::Full(..) | ReadError::TooMany(..)) {
                    self.waiting.insert((uid.clone(), secret.clone()));
                }
                Some(Problem { reason: "UnreadableSecret", message: error.to_string() })
            }
        };
        let before = match problem.clone() {
            Some(problem) => self.of_secrets.insert((uid.clone(), secret), problem),
            None => self.of_secrets.remove(&(uid.clone(), secret)),
        };
        if let Some(problem) = problem.filter(|problem| before.as_ref() != Some(problem)) {
            self.tell(&ingress.origin, problem);
        }
    }

    /// Looks which Services are missing, of the Ingresses whose time has come.
    fn look(&mut self, now: Instant) {
        let mut due: HashSet<Arc<str>> = HashSet::new();
        if self.look_at.is_some_and(|at| at <= now) {
            self.look_at = None;
            due.extend(self.look_for.drain());
        }
        if self.look_at_all.is_some_and(|at| at <= now) {
            self.look_at_all = None;
            due.extend(self.served.keys().cloned());
        }
        let snapshot = self.discovery.snapshot();
        for uid in due {
            let Some(ingress) = self.served.get(&uid).cloned() else { continue };
            let missing: BTreeSet<String> =
                ingress.backends().filter_map(|backend| missing(&snapshot, backend)).collect();
            let before = self.of_services.remove(&uid).unwrap_or_default();
            for message in missing.difference(&before) {
                self.tell(&ingress.origin, Problem { reason: "MissingService", message: message.clone() });
            }
            if !missing.is_empty() {
                self.of_services.insert(uid, missing);
            }
        }
    }

    fn tell(&self, origin: &Origin, problem: Problem) {
        self.recorder.record(Record {
            kind: origin.kind,
            namespace: origin.namespace.clone(),
            name: origin.name.clone(),
            uid: origin.uid.clone(),
            field_path: None,
            warning: true,
            reason: problem.reason,
            message: problem.message,
        });
    }
}

/// The certificate in a Secret.
pub(super) fn certificate(content: &Content) -> Result<Certificate, String> {
    if content.secret_type != TLS {
        return Err(format!("it is of type {:?} and not {TLS:?}", content.secret_type));
    }
    let part = |name: &str| content.data.get(name).ok_or_else(|| format!("it has no {name}"));
    Certificate::from_pem(part(CERTIFICATE)?, part(KEY)?).map_err(|error| error.to_string())
}

/// What of a backend does not exist.
fn missing(snapshot: &coracle_discovery::Snapshot, backend: &Backend) -> Option<String> {
    let Backend::Service { key, port } = backend else { return None };
    let name = format!("{}/{}", key.0, key.1);
    let Some(service) = snapshot.by_key(key) else {
        return Some(format!("service {name} does not exist: its requests are answered 503"));
    };
    if service.kind == ServiceKind::ExternalName {
        return Some(format!("service {name} is another name for something outside: its requests are answered 503"));
    }
    let has_port = service.ports.iter().any(|of| {
        of.protocol == Protocol::Tcp
            && match port {
                PortName::Number(number) => of.port == *number,
                PortName::Name(named) => of.name == **named,
            }
    });
    (!has_port).then(|| format!("service {name} has no port {port}: its requests are answered 503"))
}

#[cfg(test)]
pub(super) mod tests {
    use coracle_discovery::Ingresses;
    use serde_json::{Value, json};

    use super::*;
    use crate::tests::api::Api;

    /// A certificate and its key, for a Secret.
    pub fn pair(name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub fn secret(certificate: &str, key: &str) -> Value {
        let encoded = |text: &str| k8s_openapi::ByteString(text.as_bytes().to_vec());
        json!({"type": TLS, "data": {CERTIFICATE: encoded(certificate), KEY: encoded(key)}})
    }

    #[tokio::test]
    async fn what_an_ingress_lacks_is_told_once_and_its_certificate_follows_its_secret() {
        let api = Api::default();
        api.put_object("ingressclasses", "c", json!({"spec": {"controller": "coracle.dev/ingress"}}));
        let backend = |name: &str, port: u16| json!({"service": {"name": name, "port": {"number": port}}});
        let tls = |secret: &str| json!({"hosts": [secret], "secretName": secret});
        let spec = json!({"ingressClassName": "c", "tls": [tls("good"), tls("missing"), tls("mixed"), tls("opaque")],
            "rules": [{"http": {"paths": [
                {"pathType": "Prefix", "path": "/a", "backend": backend("web", 80)},
                {"pathType": "Prefix", "path": "/b", "backend": backend("web", 81)},
                {"pathType": "Prefix", "path": "/c", "backend": backend("none", 80)}]}}]});
        api.put_object("ingresses", "i", json!({"metadata": {"uid": "u"}, "spec": spec}));
        api.put_object("services", "web", json!({"spec": {"ports": [{"port": 80}]}}));
        let ((certificate, key), (other, _)) = (pair("good"), pair("mixed"));
        api.put_object("secrets", "good", secret(&certificate, &key));
        api.put_object("secrets", "mixed", secret(&other, &key));
        let mut opaque = secret(&certificate, &key);
        opaque["type"] = json!("Opaque");
        api.put_object("secrets", "opaque", opaque);
        let (client, stop) = (api.client(), CancellationToken::new());
        let certificates =
            Arc::new(Certificates::new(Certificate::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()));
        let recorder = Recorder::new(client.clone(), "n1".to_owned());
        let discovery = Discovery::new(client.clone());
        let ingresses = Ingresses::new(client.clone());
        let (told, hears) = mpsc::channel(8);
        let follower = Follower::new(client, certificates.clone(), recorder.clone(), discovery.clone(), stop.clone());
        tokio::spawn(discovery.clone().run(stop.clone()));
        tokio::spawn(ingresses.run(told, stop.clone()));
        let token = stop.clone();
        tokio::spawn(async move { recorder.run(token).await });
        tokio::spawn(follower.run(hears, stop.clone()));
        let mut messages = {
            api.first_reasons("i", 5).await;
            api.messages("i")
        };
        messages.sort();
        let instead = "a certificate that nobody trusts is shown instead";
        assert_eq!(
            messages,
            [
                format!("secret default/missing does not exist: {instead} of its own"),
                format!(
                    "secret default/mixed has no certificate that can be shown, {instead}: the certificate does not match the private key"
                ),
                format!(
                    "secret default/opaque has no certificate that can be shown, {instead}: it is of type \"Opaque\" and not \"kubernetes.io/tls\""
                ),
                "service default/none does not exist: its requests are answered 503".to_owned(),
                "service default/web has no port 81: its requests are answered 503".to_owned(),
            ]
        );
        let named = |name: &str| SecretKey { namespace: "default".into(), name: name.into() };
        let shown = ["good", "missing", "mixed", "opaque"].map(|name| certificates.has(&named(name)));
        assert_eq!(shown, [true, false, false, false]);
        let event = api.events("i").remove(0);
        assert_eq!(
            (&event["involvedObject"]["apiVersion"], &event["involvedObject"]["uid"]),
            (&json!("networking.k8s.io/v1"), &json!("u"))
        );
        stop.cancel();
    }

    /// What is told of the Ingress `name` that names these Secrets.
    async fn served(api: &Api, name: &str, secrets: &[&str]) -> Told {
        api.put_object("ingressclasses", "c", json!({"spec": {"controller": "coracle.dev/ingress"}}));
        let tls: Vec<Value> = secrets.iter().map(|secret| json!({"hosts": [secret], "secretName": secret})).collect();
        let spec = json!({"ingressClassName": "c", "tls": tls});
        api.put_object("ingresses", name, json!({"metadata": {"uid": name}, "spec": spec}));
        let (told, mut hears) = mpsc::channel(64);
        tokio::spawn(Ingresses::new(api.client()).run(told, CancellationToken::new()));
        loop {
            match hears.recv().await.unwrap() {
                Told::Served(ingress) if &*ingress.origin.name == name => return Told::Served(ingress),
                _ => {}
            }
        }
    }

    fn follower(api: &Api) -> Follower {
        let (certificate, key) = pair("default.invalid");
        let default = Certificate::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        let client = api.client();
        let recorder = Recorder::new(client.clone(), "n1".to_owned());
        let discovery = Discovery::new(client.clone());
        let certificates = Arc::new(Certificates::new(default));
        Follower::new(client, certificates, recorder, discovery, CancellationToken::new())
    }

    impl Follower {
        /// Takes all that is being read.
        async fn take_all(&mut self) {
            while let Some((uid, secret, read)) = self.reads.next().await {
                self.take(&uid, secret, read);
            }
        }

        /// Which of these have a certificate.
        fn has(&self, names: &[&str]) -> Vec<bool> {
            let key = |name: &&str| SecretKey { namespace: "default".into(), name: (*name).into() };
            names.iter().map(|name| self.certificates.has(&key(name))).collect()
        }
    }

    #[tokio::test]
    async fn an_ingress_that_is_changed_keeps_the_certificates_that_it_still_names() {
        let api = Api::default();
        for name in ["a", "b", "c"] {
            let (certificate, key) = pair(name);
            api.put_object("secrets", name, secret(&certificate, &key));
        }
        let mut follower = follower(&api);
        follower.hear(served(&api, "i", &["a", "b"]).await);
        follower.take_all().await;
        assert_eq!(follower.has(&["a", "b", "c"]), [true, true, false]);
        // What is no certificate any more does not take the place of the last good one, also when the Ingress is changed.
        follower.hear(served(&api, "i", &["a", "c"]).await);
        assert_eq!(follower.has(&["a", "b", "c"]), [true, false, false], "before anything is read");
        let broken = Content { secret_type: TLS.to_owned(), ..Content::default() };
        let a = SecretKey { namespace: "default".into(), name: "a".into() };
        follower.take(&"i".into(), a, Ok(Some(Arc::new(broken))));
        assert_eq!(follower.has(&["a"]), [true]);
        follower.take_all().await;
        assert_eq!(follower.has(&["a", "b", "c"]), [true, false, true]);
        let Told::Served(ingress) = served(&api, "i", &["a", "c"]).await else { unreachable!() };
        follower.hear(Told::Left(ingress.origin.clone()));
        assert_eq!(follower.has(&["a", "b", "c"]), [false; 3]);
        assert!(follower.users.is_empty() && follower.of_secrets.is_empty() && !follower.objects.is_used_by("i"));
    }

    #[tokio::test]
    async fn a_secret_for_which_there_is_no_room_is_read_when_there_is() {
        let api = Api::default();
        for name in ["a", "b", "c"] {
            let (certificate, key) = pair(name);
            api.put_object("secrets", name, secret(&certificate, &key));
        }
        let mut follower = follower(&api);
        follower.objects.may_be(2, 2, 9);
        let first = served(&api, "first", &["a", "b"]).await;
        follower.hear(first.clone());
        follower.take_all().await;
        let second = served(&api, "second", &["c"]).await;
        follower.hear(second);
        follower.take_all().await;
        assert_eq!(follower.has(&["a", "b", "c"]), [true, true, false]);
        let problems: Vec<&str> = follower.of_secrets.values().map(|problem| &*problem.message).collect();
        let message =
            "secret \"c\": the namespace's Ingresses refer to 2 ConfigMaps and Secrets, and may refer to no more";
        assert_eq!(problems, [message]);
        // One is let go of.
        follower.hear(served(&api, "first", &["b"]).await);
        follower.take_all().await;
        assert_eq!(follower.has(&["a", "b", "c"]), [false, true, true]);
        assert!(follower.of_secrets.is_empty() && follower.waiting.is_empty());
    }
}
