//! What is named: which blobs, manifests and tags a repository has. It is not kept here: whoever runs the registry has a place for
//! small texts that is the same on every server, and lends it as a [`Catalog`].
//!
//! ```text
//! repository NAME                          nothing; its version changes with everything below that names or takes away
//! layer NAME DIGEST                        the blob belongs to this repository: its size, and when it was pushed
//! manifest NAME DIGEST                     the manifest does: type, size, what it names and what it refers to, as JSON
//! tag NAME TAG                             a digest
//! referrer NAME SUBJECT DIGEST             the manifest DIGEST refers to SUBJECT
//! ```
//! Names, tags and digests have no blanks. What is added because something else is there, and what is taken away because nothing
//! needs it, both carry the repository's version as their condition and change it: so neither happens behind the other's back,
//! on whichever server.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::manifest::Checked;
use crate::name::{Digest, Name};
use crate::sightings::Sightings;

/// How often a change that meets another one is tried again.
const TRIES_MAX: usize = 32;
/// Changes that go in one transaction.
const CHANGES_MAX: usize = 256;

/// A place for small texts under names, in their order; the same one on every server of a group. Clients of any server see
/// what was changed through any other once they have waited for [`Catalog::current`].
pub trait Catalog: Send + Sync + 'static {
    /// Waits until what is read here is at least what was there when this was called.
    fn current(&self) -> BoxFuture<'_, Result<(), CatalogError>>;
    /// The entry of this name.
    fn get(&self, key: &str) -> Option<Entry>;
    /// All entries whose names begin so, in order.
    fn list(&self, prefix: &str) -> Vec<(String, Entry)>;
    /// The names of at most `most` entries, in order: those that begin with `prefix` and come after `after`.
    fn names(&self, prefix: &str, after: &str, most: usize) -> Vec<String>;
    /// Does all of `changes`, or none: they are durable when this returns, and seen by [`Catalog::get`] here. What names a content that is
    /// `counted` to be on a majority of an [electorate](crate::Electorate) of that version is done only as long as it is that.
    fn change(&self, changes: Vec<Change>, counted: Option<u64>) -> BoxFuture<'_, Result<(), CatalogError>>;
    /// Waits until something may have changed since the last call of this, by one caller, returned.
    fn changed(&self) -> BoxFuture<'_, ()>;
}

/// A text in a catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The text, one line.
    pub text: String,
    /// Never the same after a change.
    pub version: u64,
}

/// A change of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub key: String,
    /// Under which condition all is done.
    pub only: Only,
    /// What becomes of it.
    pub to: To,
}

/// A condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// None.
    Always,
    /// It is not there.
    Absent,
    /// It is there in this version.
    Version(u64),
}

/// What becomes of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// It has this text.
    Text(String),
    /// It is not there any more.
    Gone,
    /// It stays: only its condition counts.
    Same,
}

/// Why a catalog does not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// A condition does not hold; nothing was done.
    #[error("others change the same repository at the same time: try again")]
    Condition,
    /// Others count by now than those who were asked to hold it; nothing was done.
    #[error("the servers that count change at this time: try again")]
    Recounted,
    /// It is more than goes in at once; nothing was done.
    #[error("it names more than can be kept")]
    TooLarge,
    /// There is no room for it; nothing was done.
    #[error("{0}")]
    NoRoom(String),
    /// Nothing was done.
    #[error("{0}")]
    Unavailable(String),
    /// It may be done, now or later.
    #[error("it is not known whether this was done: look, or do it again")]
    Unknown,
    /// An entry does not say what it should.
    #[error("the entry {0:?} of the registry's catalog cannot be read")]
    Damaged(String),
}

type Result<T, E = CatalogError> = std::result::Result<T, E>;

/// A manifest as it is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// What its author called it.
    pub media_type: String,
    /// Its length.
    pub size: u64,
    /// What it needs.
    names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
}

/// What became of a manifest that was to be added.
#[derive(Debug, PartialEq, Eq)]
pub enum Added {
    /// It is there.
    Yes,
    /// It needs this, which the repository lacks.
    Lacks(Digest),
}

/// The entries of a catalog, in the registry's words. Reads are of what is known here; whoever needs more waits for
/// [`Names::current`] before.
#[derive(Clone)]
pub struct Names(Arc<dyn Catalog>, Arc<Loose>);

/// Layers that no manifest names, by their entries, as of versions.
type Loose = Sightings<String, u64>;

fn repository(name: &Name) -> String {
    format!("repository {name}")
}

fn layer(name: &Name, digest: &Digest) -> String {
    format!("layer {name} {digest}")
}

fn manifest(name: &Name, digest: &Digest) -> String {
    format!("manifest {name} {digest}")
}

fn tag(name: &Name, tag: &str) -> String {
    format!("tag {name} {tag}")
}

fn put(key: String, only: Only, text: String) -> Change {
    Change { key, only, to: To::Text(text) }
}

fn gone(key: String, only: Only) -> Change {
    Change { key, only, to: To::Gone }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The size that an entry of a layer says; the time is for whoever reads it.
fn parse_layer(key: &str, text: &str) -> Result<u64> {
    let parts = text.split_once(' ').filter(|(_, at)| at.parse::<u64>().is_ok());
    parts.and_then(|(size, _)| size.parse().ok()).ok_or_else(|| CatalogError::Damaged(key.to_owned()))
}

fn parse_manifest(key: &str, text: &str) -> Result<Manifest> {
    serde_json::from_str(text).map_err(|_| CatalogError::Damaged(key.to_owned()))
}

fn parse_digest(key: &str, text: &str) -> Result<Digest> {
    text.parse().map_err(|_| CatalogError::Damaged(key.to_owned()))
}

impl Names {
    pub fn new(catalog: Arc<dyn Catalog>) -> Names {
        Names(catalog, Arc::default())
    }

    pub async fn current(&self) -> Result<()> {
        self.0.current().await
    }

    pub async fn changed(&self) {
        self.0.changed().await;
    }

    /// What `look` finds; where it finds nothing here, what it finds once everything is known here.
    pub async fn find<T>(&self, look: impl Fn(&Names) -> Result<Option<T>>) -> Result<Option<T>> {
        match look(self)? {
            None => {
                self.current().await?;
                look(self)
            }
            found => Ok(found),
        }
    }

    /// The length of a blob of this repository; a manifest is one, too.
    pub fn blob(&self, name: &Name, digest: &Digest) -> Result<Option<u64>> {
        let key = layer(name, digest);
        match self.0.get(&key) {
            Some(entry) => Ok(Some(parse_layer(&key, &entry.text)?)),
            None => Ok(self.manifest(name, digest)?.map(|manifest| manifest.size)),
        }
    }

    pub fn manifest(&self, name: &Name, digest: &Digest) -> Result<Option<Manifest>> {
        let key = manifest(name, digest);
        self.0.get(&key).map(|entry| parse_manifest(&key, &entry.text)).transpose()
    }

    /// What a tag stands for.
    pub fn tag(&self, name: &Name, word: &str) -> Result<Option<Digest>> {
        let key = tag(name, word);
        self.0.get(&key).map(|entry| parse_digest(&key, &entry.text)).transpose()
    }

    /// At most `most` tags after `last`, in order; `None` when there is no such repository.
    pub fn tags(&self, name: &Name, last: Option<&str>, most: usize) -> Option<Vec<String>> {
        self.0.get(&repository(name))?;
        Some(self.some(&tag(name, ""), last, most))
    }

    /// At most `most` manifests that refer to `subject`, in the order of their digests: those after `last`.
    pub fn referrers(&self, name: &Name, subject: &Digest, last: Option<&str>, most: usize) -> Result<Vec<Digest>> {
        let prefix = format!("referrer {name} {subject} ");
        self.some(&prefix, last, most).iter().map(|text| parse_digest(&prefix, text)).collect()
    }

    /// At most `most` repositories after `last`, in order.
    pub fn repositories(&self, last: Option<&str>, most: usize) -> Vec<String> {
        self.some("repository ", last, most)
    }

    /// What follows `prefix` in the names of at most `most` entries, after `last`.
    fn some(&self, prefix: &str, last: Option<&str>, most: usize) -> Vec<String> {
        let after = format!("{prefix}{}", last.unwrap_or_default());
        let names = self.0.names(prefix, &after, most);
        names.iter().filter_map(|name| name.strip_prefix(prefix)).map(str::to_owned).collect()
    }

    /// The change that goes with every one that adds or takes away, and the repository's version before it.
    fn touched(&self, name: &Name) -> Change {
        let key = repository(name);
        let only = self.0.get(&key).map_or(Only::Absent, |entry| Only::Version(entry.version));
        put(key, only, String::new())
    }

    /// The change with which a repository begins, if it is not there.
    fn begun(&self, name: &Name) -> Option<Change> {
        Some(self.touched(name)).filter(|change| change.only == Only::Absent)
    }

    /// Does what `look` says until no other change comes between; nothing when it says `None`, with what it found.
    async fn settle<T>(&self, look: impl Fn(&Names) -> Result<(T, Vec<Change>)>) -> Result<T> {
        self.settle_counted(None, look).await
    }

    /// The same for what is `counted` to be on a majority.
    async fn settle_counted<T>(
        &self,
        counted: Option<u64>,
        look: impl Fn(&Names) -> Result<(T, Vec<Change>)>,
    ) -> Result<T> {
        for _ in 0..TRIES_MAX {
            let (found, changes) = look(self)?;
            if changes.is_empty() {
                return Ok(found);
            }
            match self.0.change(changes, counted).await {
                Ok(()) => return Ok(found),
                // Somebody else was faster, here or elsewhere.
                Err(CatalogError::Condition) => self.current().await?,
                Err(error) => return Err(error),
            }
        }
        Err(CatalogError::Condition)
    }

    /// Names a blob that a majority of the electorate `counted` holds.
    pub async fn add_layer(&self, name: &Name, digest: &Digest, size: u64, counted: u64) -> Result<()> {
        self.settle_counted(Some(counted), |names| {
            let mut changes = vec![put(layer(name, digest), Only::Always, format!("{size} {}", seconds_now()))];
            changes.extend(names.begun(name));
            Ok(((), changes))
        })
        .await
    }

    /// Makes a blob of `from` one of `name` too, if it is there.
    pub async fn mount(&self, name: &Name, digest: &Digest, from: &Name) -> Result<bool> {
        self.current().await?;
        self.settle(|names| {
            let keys = [layer(from, digest), manifest(from, digest)];
            let found = keys.into_iter().find_map(|key| names.0.get(&key).map(|entry| (key, entry.version)));
            let (Some(size), Some((key, version))) = (names.blob(from, digest)?, found) else {
                return Ok((false, Vec::new()));
            };
            let own = layer(name, digest);
            // What it comes from is there still, be it itself.
            let only = if key == own { Only::Version(version) } else { Only::Always };
            let mut changes = vec![put(own.clone(), only, format!("{size} {}", seconds_now()))];
            if key != own {
                changes.push(Change { key, only: Only::Version(version), to: To::Same });
            }
            changes.extend(names.begun(name));
            Ok((true, changes))
        })
        .await
    }

    /// Takes an entry away, and does with it what `more` says; whether it was there.
    async fn delete(&self, key: String, more: impl Fn(&Names) -> Option<Change> + Send + Sync) -> Result<bool> {
        self.current().await?;
        self.settle(|names| {
            let Some(entry) = names.0.get(&key) else { return Ok((false, Vec::new())) };
            let gone = gone(key.clone(), Only::Version(entry.version));
            Ok((true, more(names).into_iter().chain([gone]).collect()))
        })
        .await
    }

    /// Takes a blob away from `name`; whether it was there.
    pub async fn delete_layer(&self, name: &Name, digest: &Digest) -> Result<bool> {
        self.delete(layer(name, digest), |names| Some(names.touched(name))).await
    }

    /// What of `checked` the repository lacks.
    fn lacks(&self, name: &Name, checked: &Checked) -> Result<Option<Digest>> {
        for needed in &checked.blobs {
            if self.blob(name, needed)?.is_none() {
                return Ok(Some(needed.clone()));
            }
        }
        for needed in &checked.manifests {
            if self.manifest(name, needed)?.is_none() {
                return Ok(Some(needed.clone()));
            }
        }
        Ok(None)
    }

    /// Looks whether everything is there that a manifest needs, before anything is done for it.
    pub async fn is_complete(&self, name: &Name, checked: &Checked) -> Result<Added> {
        let lacks = self.lacks(name, checked)?;
        if lacks.is_none() {
            return Ok(Added::Yes);
        }
        self.current().await?;
        Ok(self.lacks(name, checked)?.map_or(Added::Yes, Added::Lacks))
    }

    /// Names a manifest that a majority of the electorate `counted` holds, and the tag that now stands for it.
    pub async fn add_manifest(
        &self,
        name: &Name,
        word: Option<&str>,
        digest: &Digest,
        checked: &Checked,
        (size, counted): (u64, u64),
    ) -> Result<Added> {
        let entry = Manifest {
            media_type: checked.media_type.clone(),
            size,
            names: checked.blobs.iter().chain(&checked.manifests).map(Digest::to_string).collect(),
            subject: checked.subject.as_ref().map(Digest::to_string),
        };
        let entry = serde_json::to_string(&entry).map_err(|_| CatalogError::TooLarge)?;
        self.settle_counted(Some(counted), |names| {
            // Its version first: what is looked for below is there as long as it stays.
            let mut changes = vec![names.touched(name)];
            if let Some(lacking) = names.lacks(name, checked)? {
                return Ok((Added::Lacks(lacking), Vec::new()));
            }
            changes.push(put(manifest(name, digest), Only::Always, entry.clone()));
            if let Some(subject) = &checked.subject {
                changes.push(put(format!("referrer {name} {subject} {digest}"), Only::Always, String::new()));
            }
            if let Some(word) = word {
                changes.push(put(tag(name, word), Only::Always, digest.to_string()));
            }
            Ok((Added::Yes, changes))
        })
        .await
    }

    /// Takes a tag away; whether it was there.
    pub async fn delete_tag(&self, name: &Name, word: &str) -> Result<bool> {
        self.delete(tag(name, word), |_| None).await
    }

    /// Takes a manifest away, and all tags that stand for it; whether it was there.
    pub async fn delete_manifest(&self, name: &Name, digest: &Digest) -> Result<bool> {
        self.current().await?;
        loop {
            let text = digest.to_string();
            let done = self.settle(|names| {
                let key = manifest(name, digest);
                let Some(entry) = names.0.get(&key) else { return Ok((Some(false), Vec::new())) };
                let mut changes = vec![names.touched(name)];
                let tags = names.0.list(&tag(name, "")).into_iter().filter(|(_, entry)| entry.text == text);
                changes.extend(tags.take(CHANGES_MAX).map(|(key, entry)| gone(key, Only::Version(entry.version))));
                if changes.len() > CHANGES_MAX {
                    return Ok((None, changes));
                }
                if let Some(subject) = parse_manifest(&key, &entry.text)?.subject {
                    let referrer = format!("referrer {name} {subject} {digest}");
                    let entry = names.0.get(&referrer);
                    changes.extend(entry.map(|entry| gone(referrer, Only::Version(entry.version))));
                }
                changes.push(gone(key, Only::Version(entry.version)));
                Ok((Some(true), changes))
            });
            if let Some(was_there) = done.await? {
                return Ok(was_there);
            }
        }
    }

    /// Takes away the blobs that no manifest of their repository names, and that this process has seen so, and not pushed again, for
    /// `age`. What their entries say of when they were pushed is by whatever clock the server had that wrote it.
    pub async fn drop_loose(&self, age: Duration) -> Result<()> {
        self.drop_loose_at(age, Instant::now()).await
    }

    async fn drop_loose_at(&self, age: Duration, now: Instant) -> Result<()> {
        self.current().await?;
        let mut loose = HashSet::new();
        for name in self.repositories(None, usize::MAX) {
            let Ok(name) = name.parse::<Name>() else { return Err(CatalogError::Damaged(name)) };
            // Those that meet another change are left to the next time.
            loop {
                let mut changes = vec![self.touched(&name)];
                let mut named = HashSet::new();
                for (key, entry) in self.0.list(&format!("manifest {name} ")) {
                    named.extend(parse_manifest(&key, &entry.text)?.names);
                }
                let prefix = format!("layer {name} ");
                for (key, entry) in self.0.list(&prefix) {
                    if named.contains(&key[prefix.len()..]) {
                        continue;
                    }
                    let is_old = self.1.see(key.clone(), entry.version, now) >= age;
                    loose.insert(key.clone());
                    if is_old && changes.len() < CHANGES_MAX {
                        changes.push(gone(key, Only::Version(entry.version)));
                    }
                }
                let (any, all) = (changes.len() > 1, changes.len() < CHANGES_MAX);
                match if any { self.0.change(changes, None).await } else { Ok(()) } {
                    Ok(()) if all => break,
                    Ok(()) => (),
                    Err(CatalogError::Condition) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        self.1.retain(|key| loose.contains(key));
        Ok(())
    }

    /// Which repository names which content, in order.
    pub fn named(&self) -> Result<Vec<(String, Digest)>> {
        let mut named = Vec::new();
        for (key, _) in self.0.list("manifest ").into_iter().chain(self.0.list("layer ")) {
            let mut words = key.split(' ').skip(1);
            let (name, digest) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            named.push((name.to_owned(), parse_digest(&key, digest)?));
        }
        named.sort();
        Ok(named)
    }

    /// The contents that are named, by any repository, and how long they are.
    pub fn contents(&self) -> Result<Vec<(Digest, u64)>> {
        let mut contents = std::collections::HashMap::new();
        // In this order: a layer may be mounted from a manifest that goes between the two looks, never the other way round.
        for (key, entry) in self.0.list("manifest ") {
            let digest = parse_digest(&key, key.rsplit(' ').next().unwrap_or_default())?;
            contents.insert(digest, parse_manifest(&key, &entry.text)?.size);
        }
        for (key, entry) in self.0.list("layer ") {
            let digest = parse_digest(&key, key.rsplit(' ').next().unwrap_or_default())?;
            contents.insert(digest, parse_layer(&key, &entry.text)?);
        }
        Ok(contents.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use parking_lot::Mutex;

    use super::*;
    use crate::memory::Memory;
    use crate::name::Algorithm;

    type Other = Box<dyn FnOnce(&Names) + Send>;

    /// A catalog that another server changes just before the first change that is asked of it here.
    struct Between {
        catalog: Arc<Memory>,
        other: Mutex<Option<Other>>,
    }

    impl Catalog for Between {
        fn current(&self) -> BoxFuture<'_, Result<()>> {
            self.catalog.current()
        }

        fn get(&self, key: &str) -> Option<Entry> {
            self.catalog.get(key)
        }

        fn list(&self, prefix: &str) -> Vec<(String, Entry)> {
            self.catalog.list(prefix)
        }

        fn names(&self, prefix: &str, after: &str, most: usize) -> Vec<String> {
            self.catalog.names(prefix, after, most)
        }

        fn change(&self, changes: Vec<Change>, counted: Option<u64>) -> BoxFuture<'_, Result<()>> {
            let other = self.other.lock().take();
            if let Some(other) = other {
                other(&Names::new(Arc::new(self.catalog.beside())));
            }
            self.catalog.change(changes, counted)
        }

        fn changed(&self) -> BoxFuture<'_, ()> {
            self.catalog.changed()
        }
    }

    #[test]
    fn what_is_loose_goes_when_it_was_seen_so_for_long_whatever_clocks_say() {
        let name: Name = "app".parse().unwrap();
        let digest = Algorithm::Sha256.digest(b"layer");
        let catalog = Arc::<Memory>::default();
        let names = Names::new(catalog.clone());
        let (age, begun) = (Duration::from_secs(3600), Instant::now());
        let key = layer(&name, &digest);
        let collected = |after: u32| {
            names.drop_loose_at(age, begun + age * after / 2).now_or_never().unwrap().unwrap();
            names.blob(&name, &digest).unwrap().is_none()
        };
        // One whose clock is behind has written it, or this one's was set ahead; and one whose clock is ahead.
        for at in [0, u64::MAX] {
            names.add_layer(&name, &digest, 1, 0).now_or_never().unwrap().unwrap();
            let change = put(key.clone(), Only::Always, format!("1 {at}"));
            catalog.change(vec![change], None).now_or_never().unwrap().unwrap();
            assert!(!collected(0) && !collected(1), "{at}: it was seen for half an hour");
            assert!(collected(2), "{at}");
        }
        // Whoever pushes it again has all the time again.
        names.add_layer(&name, &digest, 1, 0).now_or_never().unwrap().unwrap();
        assert!(!collected(3) && !collected(4));
        names.add_layer(&name, &digest, 1, 0).now_or_never().unwrap().unwrap();
        assert!(!collected(5) && !collected(6) && collected(7));
    }

    #[test]
    fn a_push_and_a_collection_on_two_servers_exclude_each_other() {
        let name: Name = "app".parse().unwrap();
        let [layer, image] = [b"layer", b"image"].map(|content| Algorithm::Sha256.digest(content));
        let checked = Checked {
            media_type: crate::manifest::IMAGE.into(),
            blobs: vec![layer.clone()],
            manifests: vec![],
            subject: None,
        };
        let push =
            |names: &Names| names.add_manifest(&name, Some("v1"), &image, &checked, (1, 0)).now_or_never().unwrap();
        let collect = |names: &Names| names.drop_loose(Duration::ZERO).now_or_never().unwrap();
        let meeting = |other: Other| {
            let catalog = Arc::<Memory>::default();
            let names = Names::new(catalog.clone());
            names.add_layer(&name, &layer, 1, 0).now_or_never().unwrap().unwrap();
            let between = Between { catalog, other: Mutex::new(Some(other)) };
            (names, Names::new(Arc::new(between)))
        };
        // It was loose when it was looked at, and is needed when it would go.
        let (to, of, what) = (name.clone(), image.clone(), checked.clone());
        let pushed = move |names: &Names| {
            let added = names.add_manifest(&to, Some("v1"), &of, &what, (1, 0)).now_or_never().unwrap();
            assert_eq!(added, Ok(Added::Yes));
        };
        let (names, met) = meeting(Box::new(pushed));
        assert_eq!(collect(&met), Ok(()));
        assert_eq!(names.blob(&name, &layer), Ok(Some(1)));
        // It was there when it was looked at, and is gone when it would be named.
        let (names, met) = meeting(Box::new(|names| names.drop_loose(Duration::ZERO).now_or_never().unwrap().unwrap()));
        assert_eq!(push(&met), Ok(Added::Lacks(layer.clone())));
        assert_eq!((names.tag(&name, "v1"), names.contents()), (Ok(None), Ok(Vec::new())));
    }
}
