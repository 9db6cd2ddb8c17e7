//! oci-client, with the layout that wkg and the node use.

use futures::TryStreamExt;
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::manifest::{OciDescriptor, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};

use crate::{Server, digest};

const ACCEPTED: [&str; 1] = ["application/wasm"];

fn client(monolithic: bool) -> Client {
    Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        use_monolithic_push: monolithic,
        ..ClientConfig::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_in_any_way_is_pulled_as_it_was() {
    let server = Server::start();
    let address = server.listen().await;
    // Several of the client's chunks (4 MiB), the last of them short.
    let content: Vec<u8> = (0..9_000_003_u32).map(|at| (at * 7 % 251) as u8).collect();
    for (monolithic, name) in [(false, "in/chunks"), (true, "at-once")] {
        let client = client(monolithic);
        let reference: Reference = format!("{address}/{name}:v1").parse().unwrap();
        let layer = ImageLayer::new(content.clone(), ACCEPTED[0].into(), None);
        let config = Config::new(&b"{}"[..], "application/vnd.wasm.config.v0+json".into(), None);
        client.push(&reference, &[layer], config, &RegistryAuth::Anonymous, None).await.unwrap();
        let pulled = client.pull(&reference, &RegistryAuth::Anonymous, ACCEPTED.to_vec()).await.unwrap();
        assert!(pulled.layers[0].data == content, "{name}");
        let by_digest = client.fetch_manifest_digest(&reference, &RegistryAuth::Anonymous).await.unwrap();
        assert_eq!(pulled.digest.as_deref(), Some(&*by_digest));
        let tags = client.list_tags(&reference, &RegistryAuth::Anonymous, None, None).await.unwrap();
        assert_eq!(tags.tags, ["v1"]);
    }
    // A part of a blob, and a blob of another repository.
    let client = client(false);
    let source: Reference = format!("{address}/at-once:v1").parse().unwrap();
    let target: Reference = format!("{address}/mounted:v1").parse().unwrap();
    client.auth(&source, &RegistryAuth::Anonymous, RegistryOperation::Push).await.unwrap();
    let descriptor = OciDescriptor { digest: digest(&content), size: content.len() as i64, ..OciDescriptor::default() };
    let part = client.pull_blob_stream_partial(&source, &descriptor, 1000, Some(50)).await.unwrap();
    let part = match part {
        oci_client::client::BlobResponse::Partial(stream) => stream.stream,
        oci_client::client::BlobResponse::Full(_) => panic!("a range was asked for"),
    };
    let part: Vec<u8> = part.map_ok(|bytes| bytes.to_vec()).try_concat().await.unwrap();
    assert_eq!(part, content[1000..1050]);
    assert!(!client.blob_exists(&target, &descriptor.digest).await.unwrap());
    client.mount_blob(&target, &source, &descriptor.digest).await.unwrap();
    assert!(client.blob_exists(&target, &descriptor.digest).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers_are_found_by_what_they_refer_to() {
    let server = Server::start();
    let address = server.listen().await;
    let client = client(false);
    let reference: Reference = format!("{address}/app:v1").parse().unwrap();
    let layer = ImageLayer::new(b"\0asm".to_vec(), ACCEPTED[0].into(), None);
    let config = Config::new(&b"{}"[..], "application/vnd.wasm.config.v0+json".into(), None);
    client.push(&reference, &[layer], config, &RegistryAuth::Anonymous, None).await.unwrap();
    let (manifest, subject) = client.pull_manifest(&reference, &RegistryAuth::Anonymous).await.unwrap();
    let OciManifest::Image(mut image) = manifest else { panic!("an image") };
    image.artifact_type = Some("application/vnd.example.signature".into());
    image.subject = Some(OciDescriptor { digest: subject.clone(), size: 1, ..OciDescriptor::default() });
    let signature: Reference = format!("{address}/app:signature").parse().unwrap();
    client.push_manifest(&signature, &OciManifest::Image(image)).await.unwrap();
    let of: Reference = format!("{address}/app@{subject}").parse().unwrap();
    for (artifact_type, found) in [(None, 1), (Some("application/vnd.example.signature"), 1), (Some("other/type"), 0)] {
        let index = client.pull_referrers(&of, artifact_type).await.unwrap();
        assert_eq!(index.manifests.len(), found, "{artifact_type:?}");
    }
}
