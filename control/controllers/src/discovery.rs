//! Which kinds there are: read from the API, kept until CustomResourceDefinitions or APIServices change.

use std::sync::Arc;
use std::time::Duration;

use coracle_api::kinds::is_local_version;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResource, APIResourceList};
use kube::discovery::ApiResource;
use parking_lot::RwLock;
use tokio::time::Instant;

use crate::client::{self, Client};

/// A kind whose objects can be listed, watched and deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    pub group: Arc<str>,
    pub version: Arc<str>,
    pub kind: Arc<str>,
    pub plural: Arc<str>,
    pub namespaced: bool,
    /// Whether a whole collection can be deleted at once.
    pub delete_collection: bool,
}

impl Kind {
    /// `v1`, `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        match &*self.group {
            "" => self.version.to_string(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// Path of an object, or of the collection for an empty name.
    pub(crate) fn path(&self, namespace: &str, name: &str) -> String {
        client::path(&self.api_version(), &self.plural, if self.namespaced { namespace } else { "" }, name)
    }

    pub(crate) fn api_resource(&self) -> ApiResource {
        ApiResource {
            group: self.group.to_string(),
            version: self.version.to_string(),
            api_version: self.api_version(),
            kind: self.kind.to_string(),
            plural: self.plural.to_string(),
        }
    }
}

/// Kinds of a group that another server may serve: each is watched. Those beyond are not known.
const KINDS_MAX: usize = 500;
/// Bytes of each of the names of such a kind: what has more is none.
const NAME_BYTES_MAX: usize = 253;
/// Between two readings for kinds that are not served.
const UNSERVED_FOR: Duration = Duration::from_secs(30);

/// All kinds, and what could not be asked.
#[derive(Debug, Default)]
pub(crate) struct Kinds {
    pub kinds: Vec<Kind>,
    /// Group versions whose resources could not be read.
    pub failures: Vec<String>,
}

/// The kinds as last read. Clones share them.
#[derive(Clone)]
pub(crate) struct Discovery {
    client: Client,
    kinds: Arc<RwLock<Arc<Kinds>>>,
    /// When a kind was looked for last that is not served. Held while asking, so that many ask once.
    looked: Arc<tokio::sync::Mutex<Option<Instant>>>,
}

impl Discovery {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, kinds: Arc::default(), looked: Arc::default() }
    }

    /// As last read; empty before the first time.
    pub(crate) fn kinds(&self) -> Arc<Kinds> {
        self.kinds.read().clone()
    }

    /// The kind, if it is served. For one that is not known the API is asked, but not again and again.
    pub(crate) async fn find(&self, group: &str, kind: &str) -> Result<Option<Kind>, kube::Error> {
        self.look_for(|known| &*known.group == group && &*known.kind == kind).await
    }

    /// The same by the name of its resource, as `pods`.
    pub(crate) async fn find_plural(&self, group: &str, plural: &str) -> Result<Option<Kind>, kube::Error> {
        self.look_for(|known| &*known.group == group && &*known.plural == plural).await
    }

    async fn look_for(&self, is_wanted: impl Fn(&Kind) -> bool) -> Result<Option<Kind>, kube::Error> {
        let known = |kinds: &Kinds| kinds.kinds.iter().find(|kind| is_wanted(kind)).cloned();
        if let Some(found) = known(&self.kinds()) {
            return Ok(Some(found));
        }
        let mut looked = self.looked.lock().await;
        if let Some(found) = known(&self.kinds()) {
            return Ok(Some(found));
        }
        if looked.is_some_and(|at| at.elapsed() < UNSERVED_FOR) {
            return Ok(None);
        }
        let kinds = self.refresh().await?;
        *looked = Some(Instant::now());
        Ok(known(&kinds))
    }

    /// Reads anew: of each group the preferred version, and from the others what that one lacks.
    pub(crate) async fn refresh(&self) -> Result<Arc<Kinds>, kube::Error> {
        let mut kinds = Kinds::default();
        let core: APIResourceList = self.client.get("/api/v1").await?;
        add(&mut kinds.kinds, "", "v1", core.resources);
        let groups: APIGroupList = self.client.get("/apis").await?;
        for group in groups.groups {
            let preferred = group.preferred_version.map(|version| version.group_version);
            let mut versions = group.versions;
            versions.sort_by_key(|version| Some(&version.group_version) != preferred.as_ref());
            for version in versions {
                match self.client.get::<APIResourceList>(&format!("/apis/{}", version.group_version)).await {
                    Ok(list) => add(&mut kinds.kinds, &group.name, &version.version, list.resources),
                    Err(error) => {
                        tracing::debug!(version = version.group_version, %error, "discovery failed");
                        kinds.failures.push(version.group_version);
                    }
                }
            }
        }
        let kinds = Arc::new(kinds);
        *self.kinds.write() = kinds.clone();
        Ok(kinds)
    }
}

fn add(kinds: &mut Vec<Kind>, group: &str, version: &str, resources: Vec<APIResource>) {
    let (group, version): (Arc<str>, Arc<str>) = (group.into(), version.into());
    let is_local = is_local_version(&group, &version);
    let mut room = match is_local {
        true => usize::MAX,
        false => KINDS_MAX.saturating_sub(kinds.iter().filter(|kind| kind.group == group).count()),
    };
    for resource in resources {
        let can = |verb: &str| resource.verbs.iter().any(|known| known == verb);
        let known = kinds.iter().any(|kind| kind.group == group && *kind.plural == *resource.name);
        let is_long = [&resource.name, &resource.kind].into_iter().any(|name| name.len() > NAME_BYTES_MAX);
        if known
            || (is_long && !is_local)
            || resource.name.contains('/')
            || !["delete", "list", "watch"].into_iter().all(can)
        {
            continue;
        }
        if room == 0 {
            tracing::warn!(%group, "a group has more than {KINDS_MAX} kinds");
            return;
        }
        room -= 1;
        kinds.push(Kind {
            delete_collection: can("deletecollection"),
            group: group.clone(),
            version: version.clone(),
            kind: resource.kind.into(),
            plural: resource.name.into(),
            namespaced: resource.namespaced,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_another_server_has_so_many_kinds_and_no_more() {
        let resource = |index: usize| APIResource {
            name: format!("things{index}"),
            verbs: ["delete", "list", "watch"].map(str::to_owned).into(),
            ..APIResource::default()
        };
        let many = || (0..KINDS_MAX).map(resource).collect::<Vec<_>>();
        let mut kinds = Vec::new();
        add(&mut kinds, "apps", "v1", (0..KINDS_MAX + 1).map(resource).collect());
        assert_eq!(kinds.len(), KINDS_MAX + 1, "ours are as they are");
        kinds.clear();
        add(&mut kinds, "other.x", "v1", vec![APIResource { kind: "x".repeat(NAME_BYTES_MAX + 1), ..resource(0) }]);
        assert!(kinds.is_empty(), "nothing is called so");
        add(&mut kinds, "other.x", "v1", many());
        add(&mut kinds, "other.x", "v2", vec![resource(KINDS_MAX)]);
        assert_eq!(kinds.len(), KINDS_MAX);
        add(&mut kinds, "good.x", "v1", many());
        assert_eq!(kinds.len(), 2 * KINDS_MAX);
    }
}
