//! Files in one volume whose paths overlap: one would hide the other, or be both file and directory.

use serde_json::Value;

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
            let mut files = Vec::new();
            for item in volume[*kind]["items"].items() {
                add(&mut files, item["path"].text(), "", |body| {
                    warnings.push(format!("volume {name} ({shown}): overlapping paths: {body}"));
                });
            }
        }
        let mut files = Vec::new();
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

fn add(files: &mut Vec<(String, String)>, path: &str, origin: &str, mut warn: impl FnMut(String)) {
    let path = path.trim_end_matches('/');
    let is_below =
        |path: &str, other: &str| path == other || path.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
    let shown = |path: &str, origin: &str| match origin {
        "" => quote(path),
        origin => format!("{} ({origin})", quote(path)),
    };
    for (other, its_origin) in files.iter() {
        if !path.is_empty() && !other.is_empty() && (is_below(path, other) || is_below(other, path)) {
            warn(format!("{} with {}", shown(path, origin), shown(other, its_origin)));
        }
    }
    files.push((path.to_owned(), origin.to_owned()));
}
