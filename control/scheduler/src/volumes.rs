//! What the volumes of pods ask of a node: a volume that is bound pins its pods to where it can be had, and a claim that waits for
//! its first consumer gets its volume where the pod goes.
//!
//! [`Volumes`] knows claims, volumes and classes, and the pods without a node that have claims. What they ask for ([`Wanted`]) is
//! part of their shape, and made anew when one of those changes. The claims of a pod are matched with volumes together, so that no
//! two count on one; where a pod can go and what is written when it goes there is found by the same search ([`Wanted::assign`]).
//! Nothing is remembered of a choice but what the API has: the
//! claim's annotation, or the volume's `claimRef`.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use coracle_api::meta::Quantity;
use coracle_api::volumes::{Asked, BOUND_BY_CONTROLLER, CLASS, Claimant, Fit, Offered, SELECTED_NODE, fit};
use serde_json::{Value, json};

use crate::class::selects;
use crate::filter::{Reason, matches_term};
use crate::view::{ClusterView, NodeState, Uid};
use crate::wire::{Claim, Labels, NodeSelector, NodeTerm, Pod, Requirement, StorageClass, Volume};

/// Annotation of a claim that has been bound.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Of classes of which people make the volumes.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const ONCE_POD: &str = "ReadWriteOncePod";
/// The label of nodes by which local volumes are pinned.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Namespace and name.
pub(crate) type Key = (Arc<str>, Arc<str>);

/// What the volumes of a pod ask of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Wanted {
    /// Why no node at all can take it.
    pub blocked: Option<Arc<str>>,
    /// Pods on nodes of which each has one of its claims for itself alone.
    pub users: Vec<Uid>,
    /// Where volumes are that it has.
    pub bound: Vec<Bound>,
    /// Where volumes can be that it is to have; those who ask for least choose first, as in the reference.
    pub unbound: Vec<Unbound>,
}

/// A volume that is bound.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Bound {
    pub claim: Arc<str>,
    pub volume: Arc<str>,
    /// Whether there is such a volume.
    pub exists: bool,
    /// Where it can be had; anywhere, if it says nothing.
    pub places: Option<NodeSelector>,
}

/// A claim whose volume is found when its pod has a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Unbound {
    pub claim: Arc<str>,
    /// Those that it may have, the smallest first: of each place as many as the pod has claims.
    pub volumes: Vec<Candidate>,
    /// Where one can be made.
    pub made: Made,
}

/// A volume that a claim may have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Candidate {
    pub volume: Arc<str>,
    /// Where it can be had; anywhere, if it says nothing.
    pub places: Option<NodeSelector>,
}

/// Where a volume can be made for a claim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Made {
    /// Nobody makes any.
    Nowhere,
    Anywhere,
    At(NodeSelector),
}

/// What a claim is to have on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice<'a> {
    Volume(&'a str),
    /// One that is made there.
    New,
}

impl Wanted {
    /// How much it is to remember, as [`crate::class::Class::weight`].
    pub(crate) fn weight(&self) -> usize {
        let candidates = self.unbound.iter().flat_map(|unbound| &unbound.volumes);
        let places = self.bound.iter().map(|bound| &bound.places).chain(candidates.clone().map(|it| &it.places));
        let made = self.unbound.iter().filter_map(|unbound| match &unbound.made {
            Made::At(places) => Some(places),
            Made::Nowhere | Made::Anywhere => None,
        });
        let terms = places.flatten().chain(made).flat_map(|places| &places.node_selector_terms);
        let values = terms.flat_map(|term| term.match_expressions.iter().chain(&term.match_fields));
        let named = self.users.len() + self.bound.len() + self.unbound.len() + candidates.count();
        named + values.map(|it| 1 + it.values.len()).sum::<usize>()
    }

    /// Whether a node has what the volumes ask for, and nobody else has it.
    pub(crate) fn check(&self, node: &NodeState) -> Result<(), Reason> {
        if !self.users.is_empty() {
            return Err(Reason::VolumeInUse);
        }
        self.check_places(node)
    }

    /// Whether a node has what the volumes ask for, whoever uses it.
    pub(crate) fn check_places(&self, node: &NodeState) -> Result<(), Reason> {
        if self.bound.iter().any(|bound| !bound.exists) {
            return Err(Reason::VolumeGone);
        }
        if self.bound.iter().any(|bound| !is_at(bound.places.as_ref(), node)) {
            return Err(Reason::VolumeElsewhere);
        }
        self.assign(node).map(drop).ok_or(Reason::NoVolume)
    }

    /// What each claim without a volume is to have on a node; nothing, when one of them would have none.
    fn assign(&self, node: &NodeState) -> Option<Vec<Choice<'_>>> {
        let mut choices: Vec<Choice<'_>> = Vec::with_capacity(self.unbound.len());
        for unbound in &self.unbound {
            let is_free = |candidate: &&Candidate| {
                !choices.contains(&Choice::Volume(&candidate.volume)) && is_at(candidate.places.as_ref(), node)
            };
            let choice = match (unbound.volumes.iter().find(is_free), &unbound.made) {
                (Some(candidate), _) => Choice::Volume(&candidate.volume),
                (None, Made::Anywhere) => Choice::New,
                (None, Made::At(places)) if is_at(Some(places), node) => Choice::New,
                (None, Made::At(_) | Made::Nowhere) => return None,
            };
            choices.push(choice);
        }
        Some(choices)
    }

    /// Where its volumes are, in words, for whoever asks why it waits.
    pub(crate) fn whereabouts(&self, view: &ClusterView) -> String {
        let mut words = String::new();
        for bound in &self.bound {
            let terms = bound.places.iter().flat_map(|places| &places.node_selector_terms);
            let named = terms.flat_map(|term| &term.match_expressions).filter(|it| it.key == HOSTNAME);
            let nodes: Vec<&str> = named.flat_map(|it| &it.values).map(String::as_str).collect();
            if nodes.is_empty() {
                continue;
            }
            let (claim, volume, at) = (&bound.claim, &bound.volume, nodes.join(", "));
            words.push_str(&format!(" The volume of claim {claim:?} ({volume}) is on node {at}"));
            words.push_str(match nodes.iter().any(|node| view.named(node).is_some()) {
                true => ".",
                false => ", which is not in the cluster.",
            });
        }
        words
    }
}

/// Whether a node is one of those places; where nothing is said, it is.
fn is_at(places: Option<&NodeSelector>, node: &NodeState) -> bool {
    let Some(places) = places else { return true };
    places.node_selector_terms.iter().any(|term| matches_term(term, &node.labels, &node.name))
}

/// What is known of claims, volumes and classes.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    claims: HashMap<Key, Claim>,
    volumes: HashMap<Arc<str>, Volume>,
    /// Those that are kept for nobody, by class; others by the claim that they are kept for. Of thousands of volumes a claim
    /// looks at those alone that it may have.
    free: HashMap<Arc<str>, HashSet<Arc<str>>>,
    kept: HashMap<Key, HashSet<Arc<str>>>,
    classes: HashMap<Arc<str>, StorageClass>,
    /// Pods without a node that have claims.
    waiting: HashMap<Uid, Pod>,
    /// Those by the claims they have.
    by_claim: HashMap<Key, HashSet<Uid>>,
    /// Pods on nodes, by the claims they have.
    users: HashMap<Key, HashSet<Uid>>,
    /// The claims of those.
    used: HashMap<Uid, Vec<Key>>,
}

/// What is not as it was: pods that wait may ask for something else.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    claims: HashSet<Key>,
    /// Those that claims may name.
    volumes: HashSet<Arc<str>>,
    /// Those of which claims may get a volume, or get one otherwise.
    classes: HashSet<Arc<str>>,
}

/// The claims that a pod has, and whether each is made for it.
fn claims_of(pod: &Pod) -> Vec<(Key, bool)> {
    let namespace: Arc<str> = pod.metadata.namespace.as_deref().unwrap_or_default().into();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let claim = |volume: &crate::wire::PodVolume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(((namespace.clone(), source.claim_name.as_str().into()), false)),
        (None, Some(_)) => Some(((namespace.clone(), format!("{name}-{}", volume.name).into()), true)),
        (None, None) => None,
    };
    // Two of its volumes may be one claim.
    let mut known = HashSet::new();
    pod.spec.volumes.iter().filter_map(claim).filter(|(key, _)| known.insert(key.clone())).collect()
}

impl Volumes {
    /// The pod waits for a node.
    pub(crate) fn wait(&mut self, uid: &Uid, pod: &Pod) {
        let claims = claims_of(pod);
        self.forget(uid);
        if claims.is_empty() {
            return;
        }
        for (claim, _) in claims {
            self.by_claim.entry(claim).or_default().insert(uid.clone());
        }
        self.waiting.insert(uid.clone(), pod.clone());
    }

    /// The pod is on a node. Returns pods that wait and have its claims.
    pub(crate) fn place(&mut self, uid: &Uid, pod: &Pod) -> HashSet<Uid> {
        self.stop_waiting(uid);
        self.take(uid, claims_of(pod).into_iter().map(|(claim, _)| claim).collect())
    }

    /// The pod that waits will be on a node. Returns others that wait and have its claims.
    pub(crate) fn assume(&mut self, uid: &Uid) -> HashSet<Uid> {
        let claims = self.waiting.get(uid).map(claims_of).unwrap_or_default();
        let mut concerned = self.take(uid, claims.into_iter().map(|(claim, _)| claim).collect());
        concerned.remove(uid);
        concerned
    }

    fn take(&mut self, uid: &Uid, claims: Vec<Key>) -> HashSet<Uid> {
        if claims.is_empty() || self.used.get(uid).is_some_and(|used| *used == claims) {
            return HashSet::new();
        }
        self.release(uid);
        for claim in &claims {
            self.users.entry(claim.clone()).or_default().insert(uid.clone());
        }
        let concerned = self.waiting_for(&claims);
        self.used.insert(uid.clone(), claims);
        concerned
    }

    /// The pod is on no node. Returns pods that wait and have its claims.
    pub(crate) fn release(&mut self, uid: &str) -> HashSet<Uid> {
        let used = self.used.remove(uid).unwrap_or_default();
        used.iter().for_each(|claim| leave(&mut self.users, claim, uid));
        self.waiting_for(&used)
    }

    fn stop_waiting(&mut self, uid: &str) {
        if let Some(pod) = self.waiting.remove(uid) {
            for (claim, _) in claims_of(&pod) {
                leave(&mut self.by_claim, &claim, uid);
            }
        }
    }

    /// Nothing is known of the pod any more. Returns pods that wait and have its claims.
    pub(crate) fn forget(&mut self, uid: &str) -> HashSet<Uid> {
        self.stop_waiting(uid);
        self.release(uid)
    }

    /// Pods that wait and have any of these claims: each once, however many they have in common.
    fn waiting_for<'a>(&self, claims: impl IntoIterator<Item = &'a Key>) -> HashSet<Uid> {
        claims.into_iter().filter_map(|claim| self.by_claim.get(claim)).flatten().cloned().collect()
    }

    /// The pod as it waits.
    pub(crate) fn waiting(&self, uid: &str) -> Option<&Pod> {
        self.waiting.get(uid)
    }

    /// A claim is as told, or gone.
    pub(crate) fn put_claim(&mut self, key: Key, claim: Option<Claim>, changed: &mut Changed) {
        match claim {
            Some(claim) => drop(self.claims.insert(key.clone(), claim)),
            None => drop(self.claims.remove(&key)),
        }
        changed.claims.insert(key);
    }

    /// A volume is as told, or gone.
    pub(crate) fn put_volume(&mut self, name: Arc<str>, volume: Option<Volume>, changed: &mut Changed) {
        changed.volumes.insert(name.clone());
        if let Some(before) = self.volumes.remove(&name) {
            match before.claim() {
                Some(claim) => {
                    leave(&mut self.kept, &claim, &name);
                    changed.claims.insert(claim);
                }
                None => {
                    leave(&mut self.free, before.class(), &name);
                    changed.classes.insert(before.class().into());
                }
            }
        }
        let Some(volume) = volume else { return };
        match volume.claim() {
            Some(claim) => {
                self.kept.entry(claim.clone()).or_default().insert(name.clone());
                changed.claims.insert(claim);
            }
            None => {
                self.free.entry(volume.class().into()).or_default().insert(name.clone());
                changed.classes.insert(volume.class().into());
            }
        }
        self.volumes.insert(name, volume);
    }

    /// A class is as told, or gone.
    pub(crate) fn put_class(&mut self, name: Arc<str>, class: Option<StorageClass>, changed: &mut Changed) {
        match class {
            Some(class) => drop(self.classes.insert(name.clone(), class)),
            None => drop(self.classes.remove(&name)),
        }
        changed.classes.insert(name);
    }

    /// The pods that wait and may ask for something else by what has changed; it goes once over the claims that they have.
    pub(crate) fn concerned(&self, changed: &Changed) -> HashSet<Uid> {
        let mut concerned = self.waiting_for(&changed.claims);
        if changed.volumes.is_empty() && changed.classes.is_empty() {
            return concerned;
        }
        for (key, waiting) in &self.by_claim {
            let Some(claim) = self.claims.get(key) else { continue };
            let is_concerned = match claim.spec.volume_name.as_deref().filter(|name| !name.is_empty()) {
                Some(volume) => changed.volumes.contains(volume),
                None => changed.classes.contains(claim.class()),
            };
            if is_concerned {
                concerned.extend(waiting.iter().cloned());
            }
        }
        concerned
    }

    pub(crate) fn claim_keys(&self) -> HashSet<Key> {
        self.claims.keys().cloned().collect()
    }

    pub(crate) fn volume_names(&self) -> HashSet<Arc<str>> {
        self.volumes.keys().cloned().collect()
    }

    pub(crate) fn class_names(&self) -> HashSet<Arc<str>> {
        self.classes.keys().cloned().collect()
    }

    /// What the volumes of a pod ask for.
    pub(crate) fn wanted(&self, uid: &str, pod: &Pod) -> Wanted {
        let mut wanted = Wanted::default();
        let (claims, mut unbound) = (claims_of(pod), Vec::new());
        for (key, is_own) in &claims {
            match self.want(key, *is_own, uid, pod, &mut wanted) {
                Ok(None) => {}
                Ok(Some((claim, class))) => {
                    let asked = size(claim.spec.resources.requests.get("storage"));
                    unbound.push((asked, self.unbound(key, claim, class, claims.len())));
                }
                Err(why) => return Wanted { blocked: Some(why.into()), ..Wanted::default() },
            }
        }
        unbound.sort_by(|(one, _), (other, _)| one.cmp(other));
        wanted.unbound = unbound.into_iter().map(|(_, unbound)| unbound).collect();
        wanted
    }

    /// Adds what a claim asks for; one without a volume is returned, with its class.
    fn want(
        &self,
        key: &Key,
        is_own: bool,
        uid: &str,
        pod: &Pod,
        wanted: &mut Wanted,
    ) -> Result<Option<(&Claim, &StorageClass)>, String> {
        let (namespace, name) = key;
        let Some(claim) = self.claims.get(key) else {
            return Err(match is_own {
                true => {
                    format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}")
                }
                false => format!("persistentvolumeclaim {name:?} not found"),
            });
        };
        let volume: Arc<str> = claim.spec.volume_name.as_deref().unwrap_or_default().into();
        if claim.status.phase.as_deref() == Some("Lost") {
            return Err(format!("persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        let mut owners = claim.metadata.owner_references.iter().flatten();
        if is_own && !owners.any(|owner| owner.controller == Some(true) && owner.uid == uid) {
            let pod = pod.metadata.name.as_deref().unwrap_or_default();
            return Err(format!("PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"));
        }
        if claim.spec.access_modes.iter().any(|mode| mode == ONCE_POD) {
            let others = self.users.get(key).into_iter().flatten().filter(|user| ***user != *uid);
            wanted.users.extend(others.cloned());
            // Whatever order they came in, those who ask for the same are alike.
            wanted.users.sort_unstable();
            wanted.users.dedup();
        }
        if !volume.is_empty() && claim.is_annotated(BIND_COMPLETED) {
            let known = self.volumes.get(&volume);
            let places = known.and_then(|volume| volume.places().cloned());
            wanted.bound.push(Bound { claim: name.clone(), volume, exists: known.is_some(), places });
            return Ok(None);
        }
        let class = self.classes.get(claim.class()).filter(|class| class.waits_for_consumer());
        match class.filter(|_| volume.is_empty()) {
            Some(class) => Ok(Some((claim, class))),
            None => Err("pod has unbound immediate PersistentVolumeClaims".to_owned()),
        }
    }

    /// What a claim without a volume can have, of a pod that has so many claims.
    fn unbound(&self, key: &Key, claim: &Claim, class: &StorageClass, claims: usize) -> Unbound {
        let (made, name) = (class.made(), key.1.clone());
        if let Some(node) = claim.selected_node().filter(|_| made != Made::Nowhere) {
            let named = Requirement {
                key: "metadata.name".to_owned(),
                operator: "In".to_owned(),
                values: vec![node.to_owned()],
            };
            let term = NodeTerm { match_fields: vec![named], ..NodeTerm::default() };
            let made = Made::At(NodeSelector { node_selector_terms: vec![term] });
            return Unbound { claim: name, volumes: Vec::new(), made };
        }
        let mut fitting: Vec<(Fit, &Arc<str>, &Volume)> = self.fitting(key, claim).collect();
        let candidate =
            |volume: &Arc<str>, known: &Volume| Candidate { volume: volume.clone(), places: known.places().cloned() };
        // The controller binds what is kept for the claim, and nothing else.
        if let Some((_, volume, known)) = fitting.iter().find(|(fit, ..)| *fit == Fit::Kept) {
            return Unbound { claim: name, volumes: vec![candidate(volume, known)], made: Made::Nowhere };
        }
        fitting.sort_by_cached_key(|(_, name, known)| (known.size(), (*name).clone()));
        // However many volumes there are at one place: other claims of the pod take some of them, and no more than that.
        let mut counts: HashMap<Option<&NodeSelector>, usize> = HashMap::new();
        fitting.retain(|(_, _, known)| {
            let count = counts.entry(known.places()).or_default();
            *count += 1;
            *count <= claims
        });
        let volumes = fitting.into_iter().map(|(_, volume, known)| candidate(volume, known)).collect();
        Unbound { claim: name, volumes, made }
    }

    /// The volumes that a claim may have.
    fn fitting<'a>(&'a self, key: &'a Key, claim: &'a Claim) -> impl Iterator<Item = (Fit, &'a Arc<str>, &'a Volume)> {
        let asked = claim.asked(key);
        let names = self.kept.get(key).into_iter().chain(self.free.get(claim.class())).flatten();
        names.filter_map(move |name| {
            let volume = self.volumes.get(name)?;
            let selected = match (&claim.spec.selector, &volume.metadata.labels) {
                (None, _) => true,
                (selector, Some(labels)) => selects(selector.as_ref(), labels),
                (selector, None) => selects(selector.as_ref(), &Labels::new()),
            };
            match fit(&asked, &volume.offered(), selected) {
                Fit::No => None,
                fit => Some((fit, name, volume)),
            }
        })
    }

    /// What is to be written so that the pod's claims get their volumes on this node: paths with merge patches. What is written
    /// already is not among it.
    pub(crate) fn choose(&self, uid: &str, wanted: &Wanted, node: &NodeState) -> Vec<(String, Value)> {
        let namespace = self.waiting.get(uid).and_then(|pod| pod.metadata.namespace.as_deref());
        let (Some(namespace), Some(choices)) = (namespace, wanted.assign(node)) else { return Vec::new() };
        let namespace: Arc<str> = namespace.into();
        let mut patches = Vec::new();
        for (unbound, choice) in wanted.unbound.iter().zip(choices) {
            let key = (namespace.clone(), unbound.claim.clone());
            let Some(claim) = self.claims.get(&key) else { continue };
            match choice {
                Choice::Volume(name) => {
                    let free = self.volumes.get(name).filter(|volume| volume.claim().is_none());
                    patches.extend(free.map(|volume| keep(volume, &key, claim)));
                }
                Choice::New if claim.selected_node().is_none() => patches.push(select(&key, claim, &node.name)),
                Choice::New => {}
            }
        }
        patches
    }
}

/// Keeps a volume for a claim.
fn keep(volume: &Volume, key: &Key, claim: &Claim) -> (String, Value) {
    let (namespace, name) = key;
    let path = format!("/api/v1/persistentvolumes/{}", volume.metadata.name.as_deref().unwrap_or_default());
    let metadata = json!({
        "uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version,
        "annotations": {BOUND_BY_CONTROLLER: "yes"},
    });
    let reference = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": &**namespace, "name": &**name,
        "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version,
    });
    (path, json!({"metadata": metadata, "spec": {"claimRef": reference}}))
}

/// Selects the node on which the volume of a claim is made.
fn select((namespace, name): &Key, claim: &Claim, node: &str) -> (String, Value) {
    let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}");
    let metadata = json!({
        "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version,
        "annotations": {SELECTED_NODE: node},
    });
    (path, json!({ "metadata": metadata }))
}

fn leave<K: Borrow<Q> + Eq + Hash, Q: Eq + Hash + ?Sized>(
    index: &mut HashMap<K, HashSet<Arc<str>>>,
    entry: &Q,
    name: &str,
) {
    if let Some(names) = index.get_mut(entry) {
        names.remove(name);
        if names.is_empty() {
            index.remove(entry);
        }
    }
}

impl Claim {
    fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    fn is_annotated(&self, name: &str) -> bool {
        self.annotation(name).is_some()
    }

    fn class(&self) -> &str {
        self.annotation(CLASS).or(self.spec.storage_class_name.as_deref()).unwrap_or_default()
    }

    fn selected_node(&self) -> Option<&str> {
        self.annotation(SELECTED_NODE).filter(|node| !node.is_empty())
    }

    fn asked<'a>(&'a self, (namespace, name): &'a Key) -> Asked<'a> {
        let uid = self.metadata.uid.as_deref().unwrap_or_default();
        Asked {
            claim: Claimant { namespace, name, uid },
            size: size(self.spec.resources.requests.get("storage")),
            access_modes: &self.spec.access_modes,
            class: self.class(),
            volume_mode: self.spec.volume_mode.as_deref().unwrap_or("Filesystem"),
            attributes_class: self.spec.volume_attributes_class_name.as_deref().unwrap_or_default(),
        }
    }
}

impl Volume {
    /// Where it can be had.
    fn places(&self) -> Option<&NodeSelector> {
        self.spec.node_affinity.required.as_ref()
    }

    fn size(&self) -> Quantity {
        size(self.spec.capacity.get("storage"))
    }

    /// The claim that it is kept for.
    fn claim(&self) -> Option<Key> {
        let kept = self.spec.claim_ref.as_ref()?;
        Some((kept.namespace.as_str().into(), kept.name.as_str().into()))
    }

    /// The name of its class; empty for none.
    fn class(&self) -> &str {
        let noted = self.metadata.annotations.as_ref().and_then(|annotations| annotations.get(CLASS));
        noted.or(self.spec.storage_class_name.as_ref()).map(String::as_str).unwrap_or_default()
    }

    fn offered(&self) -> Offered<'_> {
        Offered {
            claim: self.spec.claim_ref.as_ref().map(|kept| Claimant {
                namespace: &kept.namespace,
                name: &kept.name,
                uid: &kept.uid,
            }),
            size: self.size(),
            access_modes: &self.spec.access_modes,
            class: self.class(),
            volume_mode: self.spec.volume_mode.as_deref().unwrap_or("Filesystem"),
            attributes_class: self.spec.volume_attributes_class_name.as_deref().unwrap_or_default(),
            is_available: self.status.phase.as_deref() == Some("Available"),
            is_deleting: self.metadata.deletion_timestamp.is_some(),
        }
    }
}

impl StorageClass {
    fn waits_for_consumer(&self) -> bool {
        self.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
    }

    /// Where volumes of the class are made.
    fn made(&self) -> Made {
        if self.provisioner == NO_PROVISIONER {
            return Made::Nowhere;
        }
        let terms = self.allowed_topologies.iter().map(|topology| {
            let within = topology.match_label_expressions.iter().map(|it| Requirement {
                key: it.key.clone(),
                operator: "In".to_owned(),
                values: it.values.clone(),
            });
            NodeTerm { match_expressions: within.collect(), ..NodeTerm::default() }
        });
        match self.allowed_topologies.is_empty() {
            true => Made::Anywhere,
            false => Made::At(NodeSelector { node_selector_terms: terms.collect() }),
        }
    }
}

/// How much. Validation lets no amount in that cannot be read.
fn size(amount: Option<&String>) -> Quantity {
    amount.and_then(|amount| Quantity::parse(amount).ok()).unwrap_or(Quantity::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_with_thousands_of_claims_keeps_nobody_waiting() {
        let volume = |index: usize| json!({"name": "v", "persistentVolumeClaim": {"claimName": format!("c{index}")}});
        let volumes: Value = (0..30_000).chain(0..3).map(volume).collect();
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"volumes": volumes}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let begun = std::time::Instant::now();
        assert_eq!(claims_of(&pod).len(), 30_000, "each once");
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    fn volumes() -> Volumes {
        let mut volumes = Volumes::default();
        for (name, provisioner, mode) in [
            ("local", "coracle.dev/local", "WaitForFirstConsumer"),
            ("hand", NO_PROVISIONER, "WaitForFirstConsumer"),
            ("now", "coracle.dev/local", "Immediate"),
        ] {
            let class = json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
            volumes.put_class(name.into(), Some(serde_json::from_value(class).unwrap()), &mut Changed::default());
        }
        volumes
    }

    fn claim(volumes: &mut Volumes, name: &str, class: &str, more: Value) {
        let mut claim = json!({
            "metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            for (name, value) in value.as_object().into_iter().flatten() {
                claim[field][name] = value.clone();
            }
        }
        let claim = Some(serde_json::from_value(claim).unwrap());
        volumes.put_claim(("n".into(), name.into()), claim, &mut Changed::default());
    }

    fn volume(volumes: &mut Volumes, name: &str, class: &str, size: &str, node: &str) {
        let volume = json!({
            "metadata": {"name": name, "uid": name, "resourceVersion": "7"},
            "spec": {
                "storageClassName": class, "accessModes": ["ReadWriteOnce"], "capacity": {"storage": size},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [node]}]},
                ]}},
            },
            "status": {"phase": "Available"},
        });
        let volume = Some(serde_json::from_value(volume).unwrap());
        volumes.put_volume(name.into(), volume, &mut Changed::default());
    }

    fn pod(claims: &[&str]) -> Pod {
        let volumes: Vec<Value> =
            claims.iter().map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}})).collect();
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "p"}, "spec": {"volumes": volumes}});
        serde_json::from_value(pod).unwrap()
    }

    fn node(name: &str) -> ClusterView {
        let node = json!({
            "metadata": {"name": name, "labels": {HOSTNAME: name}},
            "status": {"allocatable": {"pods": "5"}, "conditions": [{"type": "Ready", "status": "True"}]},
        });
        let mut view = ClusterView::default();
        view.put_node(serde_json::from_value(node).unwrap());
        view
    }

    fn check(volumes: &Volumes, claims: &[&str], at: &str) -> Result<(), Reason> {
        volumes.wanted("p", &pod(claims)).check(node(at).named(at).unwrap())
    }

    #[test]
    fn a_pod_goes_where_its_volumes_are_or_can_be() {
        let mut volumes = volumes();
        let bound = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}, "spec": {"volumeName": "here"}});
        claim(&mut volumes, "bound", "hand", bound);
        claim(&mut volumes, "new", "local", json!({}));
        claim(&mut volumes, "hand", "hand", json!({}));
        let selected = json!({"metadata": {"annotations": {SELECTED_NODE: "a"}}});
        claim(&mut volumes, "selected", "local", selected);
        assert_eq!(check(&volumes, &["bound"], "a"), Err(Reason::VolumeGone));
        volume(&mut volumes, "here", "hand", "2Gi", "a");
        for (claims, at, expected) in [
            (&["bound"][..], "a", Ok(())),
            (&["bound"], "b", Err(Reason::VolumeElsewhere)),
            (&["new"], "b", Ok(())),
            (&["hand"], "a", Ok(())),
            (&["hand"], "b", Err(Reason::NoVolume)),
            (&["selected"], "a", Ok(())),
            (&["new", "selected"], "b", Err(Reason::NoVolume)),
        ] {
            assert_eq!(check(&volumes, claims, at), expected, "{claims:?} at {at}");
        }
        let words = volumes.wanted("p", &pod(&["bound"])).whereabouts(&node("b"));
        assert_eq!(words, " The volume of claim \"bound\" (here) is on node a, which is not in the cluster.");
    }

    #[test]
    fn what_keeps_a_pod_from_every_node_is_said() {
        let mut volumes = volumes();
        claim(&mut volumes, "now", "now", json!({}));
        claim(&mut volumes, "going", "local", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        claim(&mut volumes, "lost", "local", json!({"spec": {"volumeName": "v"}, "status": {"phase": "Lost"}}));
        claim(&mut volumes, "p-own", "local", json!({}));
        for (name, expected) in [
            ("none", "persistentvolumeclaim \"none\" not found"),
            ("now", "pod has unbound immediate PersistentVolumeClaims"),
            ("going", "persistentvolumeclaim \"going\" is being deleted"),
            ("lost", "persistentvolumeclaim \"lost\" bound to non-existent persistentvolume \"v\""),
        ] {
            assert_eq!(volumes.wanted("p", &pod(&[name])).blocked.as_deref(), Some(expected));
        }
        let own = |volume: &str| {
            let mut pod = pod(&[]);
            let volume = json!({"name": volume, "ephemeral": {"volumeClaimTemplate": {}}});
            pod.spec.volumes = vec![serde_json::from_value(volume).unwrap()];
            volumes.wanted("p", &pod).blocked.unwrap().to_string()
        };
        assert_eq!(own("own"), "PVC n/p-own was not created for pod n/p (pod is not owner)");
        assert!(own("other").starts_with("waiting for ephemeral volume controller to create"));
    }

    #[test]
    fn a_claim_of_one_pod_is_no_others_until_that_one_has_gone() {
        let mut volumes = volumes();
        let once = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}},
            "spec": {"volumeName": "v", "accessModes": [ONCE_POD]}});
        claim(&mut volumes, "c", "local", once);
        volume(&mut volumes, "v", "local", "1Gi", "a");
        let (first, second): (Uid, Uid) = ("first".into(), "p".into());
        volumes.wait(&second, &pod(&["c", "d"]));
        assert_eq!(check(&volumes, &["c"], "a"), Ok(()));
        assert_eq!(volumes.place(&first, &pod(&["c", "d"])), HashSet::from([second.clone()]), "once");
        assert_eq!(check(&volumes, &["c"], "a"), Err(Reason::VolumeInUse));
        assert_eq!(volumes.forget(&first), HashSet::from([second]));
        assert_eq!(check(&volumes, &["c"], "a"), Ok(()));
    }

    #[test]
    fn the_smallest_volume_here_is_kept_or_one_is_made_here() {
        let mut volumes = volumes();
        claim(&mut volumes, "one", "hand", json!({}));
        claim(&mut volumes, "two", "hand", json!({}));
        claim(&mut volumes, "new", "local", json!({}));
        for (name, size, node) in
            [("large", "3Gi", "a"), ("small", "2Gi", "a"), ("there", "1Gi", "b"), ("tiny", "1Mi", "a")]
        {
            volume(&mut volumes, name, "hand", size, node);
        }
        let (uid, pod) = (Uid::from("p"), pod(&["one", "two", "new"]));
        volumes.wait(&uid, &pod);
        let wanted = volumes.wanted("p", &pod);
        let view = node("a");
        let chosen = volumes.choose("p", &wanted, view.named("a").unwrap());
        let paths: Vec<&str> = chosen.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "/api/v1/persistentvolumes/small",
                "/api/v1/persistentvolumes/large",
                "/api/v1/namespaces/n/persistentvolumeclaims/new",
            ]
        );
        assert_eq!(
            (&chosen[0].1["spec"]["claimRef"]["name"], &chosen[0].1["metadata"]["resourceVersion"]),
            (&json!("one"), &json!("7"))
        );
        assert_eq!(chosen[2].1["metadata"]["annotations"], json!({SELECTED_NODE: "a"}));
        let selected = json!({"metadata": {"annotations": {SELECTED_NODE: "a"}}});
        claim(&mut volumes, "new", "local", selected);
        assert_eq!(volumes.choose("p", &wanted, view.named("a").unwrap()).len(), 2, "it is written already");
    }

    #[test]
    fn no_two_claims_of_a_pod_count_on_one_volume() {
        let mut volumes = volumes();
        claim(&mut volumes, "large", "hand", json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}));
        claim(&mut volumes, "small", "hand", json!({}));
        claim(&mut volumes, "third", "hand", json!({}));
        for (name, size, node) in [("a1", "2Gi", "a"), ("b1", "3Gi", "b"), ("b2", "1Gi", "b"), ("b3", "5Gi", "b")] {
            volume(&mut volumes, name, "hand", size, node);
        }
        for (claims, at, expected) in [
            (&["large"][..], "a", Ok(())),
            (&["small"], "a", Ok(())),
            (&["large", "small"], "a", Err(Reason::NoVolume)),
            (&["large", "small"], "b", Ok(())),
            (&["large", "small", "third"], "b", Ok(())),
        ] {
            assert_eq!(check(&volumes, claims, at), expected, "{claims:?} at {at}");
        }
        // What is written is what was counted on, and nobody is asked to make a volume who makes none.
        let uid = Uid::from("p");
        for (claims, at, expected) in [
            (&["large", "small"][..], "b", &["small in b2", "large in b1"][..]),
            (&["large", "small", "third"], "b", &["small in b2", "third in b1", "large in b3"]),
            (&["large", "small"], "a", &[]),
        ] {
            let pod = pod(claims);
            volumes.wait(&uid, &pod);
            let view = node(at);
            let chosen = volumes.choose("p", &volumes.wanted("p", &pod), view.named(at).unwrap());
            let kept: Vec<String> = chosen
                .iter()
                .map(|(path, patch)| {
                    let claim = patch["spec"]["claimRef"]["name"].as_str().unwrap_or(path);
                    format!("{claim} in {}", path.rsplit('/').next().unwrap_or_default())
                })
                .collect();
            assert_eq!(kept, expected, "{claims:?} at {at}");
        }
    }

    #[test]
    fn what_is_kept_for_a_claim_is_all_that_it_can_have() {
        let mut volumes = volumes();
        claim(&mut volumes, "c", "local", json!({}));
        volume(&mut volumes, "free", "local", "1Gi", "a");
        volume(&mut volumes, "kept", "local", "1Gi", "b");
        let mut kept = volumes.volumes[&Arc::<str>::from("kept")].clone();
        let reference = json!({"namespace": "n", "name": "c", "uid": "c"});
        kept.spec.claim_ref = Some(serde_json::from_value(reference).unwrap());
        volumes.put_volume("kept".into(), Some(kept), &mut Changed::default());
        assert_eq!((check(&volumes, &["c"], "a"), check(&volumes, &["c"], "b")), (Err(Reason::NoVolume), Ok(())));
        let (uid, pod) = (Uid::from("p"), pod(&["c"]));
        volumes.wait(&uid, &pod);
        let view = node("b");
        assert!(volumes.choose("p", &volumes.wanted("p", &pod), view.named("b").unwrap()).is_empty(), "it is written");
    }

    #[test]
    fn what_changes_concerns_those_who_may_ask_for_something_else_and_no_others() {
        let mut volumes = volumes();
        claim(&mut volumes, "hand", "hand", json!({}));
        claim(&mut volumes, "local", "local", json!({}));
        claim(&mut volumes, "named", "now", json!({"spec": {"volumeName": "v"}}));
        for name in ["hand", "local", "named"] {
            volumes.wait(&name.into(), &pod(&[name]));
        }
        volume(&mut volumes, "v", "other", "1Gi", "a");
        volume(&mut volumes, "free", "hand", "1Gi", "a");
        let free = volumes.volumes[&Arc::<str>::from("free")].clone();
        let mut kept = free.clone();
        let reference = json!({"namespace": "n", "name": "local", "uid": "local"});
        kept.spec.claim_ref = Some(serde_json::from_value(reference).unwrap());
        let concerned = |volumes: &mut Volumes, name: &str, volume: Option<Volume>| {
            let mut changed = Changed::default();
            volumes.put_volume(name.into(), volume, &mut changed);
            let mut concerned: Vec<String> = volumes.concerned(&changed).iter().map(|uid| uid.to_string()).collect();
            concerned.sort();
            concerned.join(" ")
        };
        assert_eq!(concerned(&mut volumes, "free", Some(free.clone())), "hand", "one of their class");
        assert_eq!(concerned(&mut volumes, "free", Some(kept)), "hand local", "taken from all, kept for one");
        assert_eq!(check(&volumes, &["hand"], "a"), Err(Reason::NoVolume));
        assert_eq!(concerned(&mut volumes, "free", None), "local");
        assert_eq!(concerned(&mut volumes, "v", None), "named");
        assert_eq!((volumes.free.len(), volumes.kept.len()), (0, 0), "nothing is left of what is gone");
        let mut changed = Changed::default();
        volumes.put_class("local".into(), None, &mut changed);
        volumes.put_claim(("n".into(), "hand".into()), None, &mut changed);
        assert_eq!(volumes.concerned(&changed).len(), 2, "once for all that has changed");
    }
}
