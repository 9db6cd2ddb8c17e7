//! Certificates of Gateways' listeners, kept as the Secrets that they name are now: so many of them ([`super::named`]).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use coracle_discovery::SecretKey;
use coracle_gateway::Key;
use coracle_proxy::GatewayRoutes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::follow::{Changed, certificate};
use super::named::{Bounds, Named};
use crate::objects::{self, Content, Kind, ObjectKey, Objects, ReadError};

/// A Secret that was read.
type Read = (SecretKey, Result<Option<Arc<Content>>, ReadError>);

/// Keeps certificates as the Secrets of listeners are now.
pub(super) struct Follower {
    objects: Objects,
    of: GatewayRoutes,
    broken: watch::Sender<BTreeSet<Key>>,
    named: Named,
    /// Why one cannot be read, as it was told last.
    told: HashMap<SecretKey, String>,
    changed: Arc<Changed>,
    reads: FuturesUnordered<BoxFuture<'static, Read>>,
}

/// Who uses a Secret: itself, so that a change is told of it alone. Neither name has a `/` in it.
fn user(secret: &SecretKey) -> Arc<str> {
    format!("{}/{}", secret.namespace, secret.name).into()
}

fn used_by(user: &str) -> Option<SecretKey> {
    let (namespace, name) = user.split_once('/')?;
    Some(SecretKey { namespace: namespace.into(), name: name.into() })
}

fn object(secret: &SecretKey) -> ObjectKey {
    ObjectKey { kind: Kind::Secret, namespace: secret.namespace.clone(), name: secret.name.clone() }
}

impl Follower {
    /// Follows nothing before [`Follower::run`]; no Secret is followed any more when `shutdown` is cancelled.
    pub fn new(
        client: kube::Client,
        of: GatewayRoutes,
        broken: watch::Sender<BTreeSet<Key>>,
        shutdown: CancellationToken,
    ) -> Follower {
        let changed: Arc<Changed> = Arc::default();
        let telling = changed.clone();
        let on_change = Arc::new(move |user: &str| telling.add(user));
        Follower {
            objects: Objects::new(client, objects::Bounds::GATEWAYS, shutdown, on_change),
            of,
            broken,
            named: Named::new(Bounds::NODE),
            told: HashMap::new(),
            changed,
            reads: FuturesUnordered::new(),
        }
    }

    /// Until shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut generations = self.of.routes.subscribe();
        // What is known already is not told again.
        self.follow_routes();
        loop {
            // Everything here only waits.
            tokio::select! {
                changed = generations.changed() => match changed {
                    Ok(()) => self.follow_routes(),
                    Err(_) => return,
                },
                Some((secret, read)) = self.reads.next() => self.take(secret, read),
                changed = self.changed.next() => changed.iter().for_each(|user| self.read_again(user)),
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn follow_routes(&mut self) {
        let routes = self.of.routes.ports();
        self.follow(routes.all_secrets());
    }

    /// Follows the Secrets that listeners name now, as far as there is room for them, and no others.
    fn follow<'a>(&mut self, secrets: impl Iterator<Item = &'a SecretKey>) {
        let gone = self.named.set(secrets);
        for secret in &gone {
            self.let_go(secret);
            self.told.remove(secret);
        }
        self.begin();
        let named = &self.named;
        self.broken.send_if_modified(|broken| {
            let mut is_new = false;
            for secret in gone {
                is_new |= broken.remove(&(secret.namespace, secret.name));
            }
            for secret in named.left_out() {
                is_new |= broken.insert((secret.namespace.clone(), secret.name.clone()));
            }
            is_new
        });
    }

    /// Reads those for which there is room.
    fn begin(&mut self) {
        for secret in self.named.begin() {
            self.reads.push(self.reading(secret));
        }
    }

    /// Somebody has changed it.
    fn read_again(&self, user: &str) {
        if let Some(secret) = used_by(user).filter(|secret| self.named.is_followed(secret)) {
            self.reads.push(self.reading(secret));
        }
    }

    fn reading(&self, secret: SecretKey) -> BoxFuture<'static, Read> {
        let objects = self.objects.clone();
        Box::pin(async move {
            let read = objects.read(&object(&secret), &user(&secret)).await;
            (secret, read)
        })
    }

    fn let_go(&self, secret: &SecretKey) {
        self.of.certificates.set(secret, None);
        self.objects.let_go(&object(secret), &user(secret));
    }

    fn take(&mut self, secret: SecretKey, read: Result<Option<Arc<Content>>, ReadError>) {
        if !self.named.is_followed(&secret) {
            // The read may have begun anew what was let go of.
            return self.let_go(&secret);
        }
        let is_shown = match read {
            Ok(content) => {
                self.told.remove(&secret);
                if self.named.found(&secret, content.is_some()) {
                    self.show(&secret, content.as_deref())
                } else {
                    self.let_go(&secret);
                    false
                }
            }
            // Nobody would tell when it is there.
            Err(ReadError::TimedOut(_)) => return self.reads.push(self.reading(secret)),
            Err(error) => {
                self.tell(&secret, error.to_string());
                false
            }
        };
        self.is_broken(&secret, !is_shown);
        self.begin();
    }

    /// Shows what a Secret holds; says whether that is a certificate.
    fn show(&self, secret: &SecretKey, content: Option<&Content>) -> bool {
        let Some(content) = content else {
            self.of.certificates.set(secret, None);
            return false;
        };
        match certificate(content) {
            Ok(certificate) => {
                self.of.certificates.set(secret, Some(certificate));
                true
            }
            // What was there before it was changed is better than nothing.
            Err(why) => {
                tracing::debug!(namespace = %secret.namespace, secret = %secret.name, why, "a secret has no certificate");
                false
            }
        }
    }

    /// Says once why it cannot be read.
    fn tell(&mut self, secret: &SecretKey, error: String) {
        if self.told.get(secret) != Some(&error) {
            tracing::warn!(namespace = %secret.namespace, secret = %secret.name, error, "a certificate of a Gateway cannot be read");
            self.told.insert(secret.clone(), error);
        }
    }

    fn is_broken(&self, secret: &SecretKey, is_broken: bool) {
        let key = (secret.namespace.clone(), secret.name.clone());
        self.broken.send_if_modified(|all| if is_broken { all.insert(key) } else { all.remove(&key) });
    }
}

#[cfg(test)]
mod tests {
    use coracle_discovery::Gateways;
    use coracle_proxy::{Certificate, Certificates};
    use serde_json::{Value, json};

    use super::super::super::follow::tests::{pair, secret};
    use super::*;
    use crate::tests::PATIENCE;
    use crate::tests::api::Api;

    fn certificates() -> Arc<Certificates> {
        let (certificate, key) = pair("default.invalid");
        Arc::new(Certificates::new(Certificate::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()))
    }

    fn follower(api: &Api, routes: Gateways) -> Follower {
        let of = GatewayRoutes { routes, certificates: certificates() };
        Follower::new(api.client(), of, watch::Sender::default(), CancellationToken::new())
    }

    fn key(name: &str) -> SecretKey {
        SecretKey { namespace: "default".into(), name: name.into() }
    }

    fn put(api: &Api, name: &str) {
        let (certificate, private) = pair(name);
        api.put_object("secrets", name, secret(&certificate, &private));
    }

    impl Follower {
        fn names(&mut self, names: &[&str]) {
            let keys: Vec<SecretKey> = names.iter().map(|name| key(name)).collect();
            self.follow(keys.iter());
        }

        /// Takes all that is being read; says how much that was.
        async fn take_all(&mut self) -> usize {
            let mut taken = 0;
            while let Some((secret, read)) = self.reads.next().await {
                self.take(secret, read);
                taken += 1;
            }
            taken
        }

        /// Which of these have a certificate, and which are told to have none.
        fn states(&self, names: &[&str]) -> (Vec<bool>, Vec<String>) {
            let broken = self.broken.borrow().iter().map(|(_, name)| name.to_string()).collect();
            (names.iter().map(|name| self.of.certificates.has(&key(name))).collect(), broken)
        }
    }

    #[tokio::test]
    async fn a_secret_that_changes_is_read_alone_and_what_nobody_names_is_let_go() {
        let api = Api::default();
        put(&api, "a");
        let mut follower = follower(&api, Gateways::new(api.client()));
        let all = ["a", "b", "c"];
        follower.names(&all);
        assert_eq!(follower.take_all().await, 3);
        assert_eq!(follower.states(&all), (vec![true, false, false], vec!["b".to_owned(), "c".to_owned()]));
        put(&api, "c");
        let changed = follower.changed.next().await;
        assert_eq!(changed.iter().map(|user| &**user).collect::<Vec<_>>(), ["default/c"]);
        changed.iter().for_each(|user| follower.read_again(user));
        assert_eq!(follower.take_all().await, 1);
        assert_eq!(follower.states(&all), (vec![true, false, true], vec!["b".to_owned()]));
        follower.names(&["c"]);
        assert_eq!((follower.take_all().await, follower.states(&all)), (0, (vec![false, false, true], vec![])));
        assert!(!follower.objects.is_used_by("default/a") && follower.objects.is_used_by("default/c"));
    }

    /// Also of one that could have been followed the moment before.
    #[tokio::test]
    async fn a_read_that_comes_late_begins_nothing() {
        let api = Api::default();
        put(&api, "a");
        let mut follower = follower(&api, Gateways::new(api.client()));
        follower.names(&["a"]);
        follower.names(&[]);
        assert_eq!(follower.take_all().await, 1);
        assert_eq!(follower.states(&["a"]), (vec![false], vec![]));
        assert!(!follower.objects.is_used_by("default/a"));
    }

    #[tokio::test]
    async fn a_secret_that_cannot_be_read_is_told_once_for_each_reason() {
        let api = Api::default();
        let mut follower = follower(&api, Gateways::new(api.client()));
        follower.names(&["a"]);
        let refused = |message: &str| Err(ReadError::Refused { key: object(&key("a")), message: message.to_owned() });
        for message in ["no", "no", "never"] {
            follower.take(key("a"), refused(message));
            assert!(follower.told[&key("a")].ends_with(message));
        }
        follower.take(key("a"), Ok(None));
        assert!(follower.told.is_empty(), "the next is new");
    }

    /// Gateways may be known before anybody follows them.
    #[tokio::test]
    async fn what_is_known_from_the_beginning_is_followed() {
        let api = Api::default();
        put(&api, "a");
        for kind in ["gatewayclasses", "gateways", "httproutes", "referencegrants"] {
            let versions = ["v1", "v1beta1"].map(|name| json!({"name": name, "served": true}));
            let name = format!("{kind}.gateway.networking.k8s.io");
            api.put_object("customresourcedefinitions", &name, json!({"spec": {"versions": versions}}));
        }
        api.put_object("gatewayclasses", "c", json!({"spec": {"controllerName": "coracle.dev/gateway"}}));
        let tls = json!({"certificateRefs": [{"name": "a"}]});
        let listener: Value = json!({"name": "l", "port": 443, "protocol": "HTTPS", "tls": tls});
        api.put_object("gateways", "g", json!({"spec": {"gatewayClassName": "c", "listeners": [listener]}}));
        let (routes, stop) = (Gateways::new(api.client()), CancellationToken::new());
        tokio::spawn(routes.clone().run(stop.clone()));
        let mut generations = routes.subscribe();
        let known = async {
            while routes.ports().all_secrets().next().is_none() {
                generations.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, known).await.expect("the Gateway is known");
        // No more than what is known now.
        let follower = follower(&api, routes);
        let shown = follower.of.certificates.clone();
        tokio::spawn(follower.run(stop.clone()));
        crate::tests::until("its certificate is shown", || shown.has(&key("a"))).await;
        stop.cancel();
    }
}
