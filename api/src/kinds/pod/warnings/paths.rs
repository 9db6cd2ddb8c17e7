//! Files in one volume whose paths overlap: one would hide the other, or be both file and directory.

use std::collections::BTreeMap;

use serde_json::Value;

use super::WARNINGS_MAX;

use crate::kinds::value::Read;
use crate::meta::text::quote;

pub(super) fn overlapping(volumes: &[Value], warnings: &mut Vec<String>) {
    for volume in volumes {
        let name = quote(volume["name"].text());
        let kinds = [
            ("configMap", format!("ConfigMap {}", quote(volume["configMap"]["name"].text()))),
            ("secret", format!("Secret {}", quote(volume["secret"]["secretName"].text()))),
            ("downwardAPI", "DownwardAPI".to_owned()),
        ];
        for (kind, shown) in kinds.iter().filter(|(kind, _)| volume[*kind]["items"].is_set()) {
            let mut files = Files::default();
            for item in volume[*kind]["items"].items() {
                add(&mut files, item["path"].text(), "", |body| {
                    warnings.push(format!("volume {name} ({shown}): overlapping paths: {body}"));
                });
            }
        }
        let mut files = Files::default();
        for source in volume["projected"]["sources"].items() {
            if source.is_empty() {
                warnings.push(format!("volume {name} (Projected) has no sources provided"));
            }
            for (path, origin) in paths(source) {
                add(&mut files, path, &origin, |body| {
                    warnings.push(format!("volume {name} (Projected): overlapping paths: {body}"));
                });
            }
        }
    }
}

/// The files that a source of a projected volume brings, with where each comes from.
fn paths(source: &Value) -> Vec<(&str, String)> {
    let items = |kind: &str, origin: String| {
        let items = source[kind]["items"].items().iter();
        items.map(|item| (item["path"].text(), origin.clone())).collect()
    };
    if source["configMap"]["items"].is_set() {
        items("configMap", format!("ConfigMap {}", quote(source["configMap"]["name"].text())))
    } else if source["secret"]["items"].is_set() {
        items("secret", format!("Secret {}", quote(source["secret"]["name"].text())))
    } else if source["downwardAPI"]["items"].is_set() {
        items("downwardAPI", "DownwardAPI".to_owned())
    } else if source["serviceAccountToken"].is_set() {
        vec![(source["serviceAccountToken"]["path"].text(), "ServiceAccountToken".to_owned())]
    } else if source["clusterTrustBundle"].is_set() {
        let bundle = &source["clusterTrustBundle"];
        let name = if bundle["name"].is_set() { &bundle["name"] } else { &bundle["signerName"] };
        vec![(bundle["path"].text(), format!("ClusterTrustBundle {}", quote(name.text())))]
    } else {
        [
            ("certificateChainPath", "PodCertificate chain"),
            ("keyPath", "PodCertificate key"),
            ("credentialBundlePath", "PodCertificate credential bundle"),
        ]
        .into_iter()
        .map(|(field, origin)| (source["podCertificate"][field].text(), origin.to_owned()))
        .filter(|(path, _)| !path.is_empty())
        .collect()
    }
}

/// The files of a volume so far.
#[derive(Default)]
struct Files {
    /// Path and origin, in their order.
    all: Vec<(String, String)>,
    /// Where the files of a path stand. Every file below a directory is between `directory/` and `directory0`.
    by_path: BTreeMap<String, Vec<usize>>,
    told: usize,
}

impl Files {
    /// The files that are this path, above it or below it, in their order.
    fn overlapping(&self, path: &str, most: usize) -> Vec<usize> {
        let above = path.match_indices('/').filter_map(|(at, _)| self.by_path.get(&path[..at]));
        let same = self.by_path.get(path);
        let below = self.by_path.range(format!("{path}/")..format!("{path}0")).map(|(_, list)| list);
        let mut found: Vec<usize> = above.chain(same).chain(below).flatten().copied().take(most).collect();
        found.sort_unstable();
        found
    }
}

fn add(files: &mut Files, path: &str, origin: &str, mut warn: impl FnMut(String)) {
    let path = path.trim_end_matches('/');
    let shown = |path: &str, origin: &str| match origin {
        "" => quote(path),
        origin => format!("{} ({origin})", quote(path)),
    };
    if path.is_empty() {
        return;
    }
    for other in files.overlapping(path, WARNINGS_MAX - files.told.min(WARNINGS_MAX)) {
        let (other, its_origin) = &files.all[other];
        warn(format!("{} with {}", shown(path, origin), shown(other, its_origin)));
        files.told += 1;
    }
    files.by_path.entry(path.to_owned()).or_default().push(files.all.len());
    files.all.push((path.to_owned(), origin.to_owned()));
}
