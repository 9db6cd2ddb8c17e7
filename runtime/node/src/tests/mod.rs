//! A whole node against a scripted API server ([`api`]): pods really run, requests really go over TLS.

pub(crate) mod api;
mod caller;
mod kubelet;
mod pods;
mod policies;
mod registry;
mod tls;
mod volumes;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::api::Api;
use self::caller::Certificates;
use crate::{Capacity, Config, Node};

/// A test that waits longer than this has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The component of a package in `examples/`, built when it is first asked for.
fn built(package: &'static str) -> PathBuf {
    static BUILT: LazyLock<Mutex<HashMap<&'static str, PathBuf>>> = LazyLock::new(Mutex::default);
    let mut built = BUILT.lock().unwrap();
    let build = || {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").canonicalize().unwrap();
        let target = examples.join("target");
        let status = Command::new("cargo")
            .args(["build", "--release", "--locked", "--quiet", "--target", "wasm32-wasip2", "--package", package])
            .arg("--target-dir")
            .arg(&target)
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .current_dir(examples)
            .status()
            .expect("cargo runs");
        assert!(status.success(), "build {package}; is the target installed? rustup target add wasm32-wasip2");
        let names = [package.to_owned(), package.replace('-', "_")];
        let files = names.map(|name| target.join("wasm32-wasip2/release").join(format!("{name}.wasm")));
        files.into_iter().find(|path| path.exists()).unwrap()
    };
    built.entry(package).or_insert_with(build).clone()
}

/// A command that computes for ever before it has begun:
/// `(module (memory (export "memory") 1) (func $spin (loop (br 0))) (start $spin) (func (export "_start")))`.
const SPINS: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x03\x02\0\0\x05\x03\x01\0\x01\
    \x07\x13\x02\x06memory\x02\0\x06_start\0\x01\x08\x01\0\
    \x0a\x0c\x02\x07\0\x03\x40\x0c\0\x0b\x0b\x02\0\x0b";

/// A running node with its world.
struct World {
    api: Api,
    certificates: Arc<Certificates>,
    registry: String,
    dir: tempfile::TempDir,
    /// What the next node is told to leave free of the disk.
    min_free_bytes: u64,
    node: Option<Running>,
}

struct Running {
    node: Node,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), crate::Error>>,
}

impl World {
    /// A Ready node; its registry has `hello`, `probe`, `probe-command` and `spins`.
    async fn start() -> Self {
        let packages = ["hello", "probe", "probe-command"];
        let images =
            tokio::task::spawn_blocking(move || packages.map(|name| (name, std::fs::read(built(name)).unwrap())));
        let mut images: Vec<_> = images.await.unwrap().into();
        images.push(("spins", SPINS.to_vec()));
        let registry = registry::serve(images).await;
        let mut world = Self {
            api: Api::default(),
            certificates: Arc::new(Certificates::new()),
            registry,
            dir: tempfile::tempdir().unwrap(),
            min_free_bytes: 1 << 20,
            node: None,
        };
        world.start_node().await;
        world
    }

    async fn start_node(&mut self) {
        self.launch_node().await;
        let ready = self.node.as_ref().expect("it was launched").node.ready();
        tokio::time::timeout(PATIENCE, ready).await.expect("the node becomes ready");
    }

    /// The same without waiting for it.
    async fn launch_node(&mut self) {
        let config = Config {
            registry: Some(self.registry.clone()),
            capacity: Capacity { pods: Some(50), ..Capacity::default() },
            stop_grace: Duration::from_secs(5),
            min_free_bytes: self.min_free_bytes,
            ..Config::new("n1", self.dir.path(), [127, 0, 0, 1].into(), self.certificates.node())
        };
        let node = Node::new(self.api.client(), config).await.unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(node.clone().run(stop.clone()));
        self.node = Some(Running { node, stop, task });
    }

    async fn stop_node(&mut self) {
        let node = self.node.take().unwrap();
        node.stop.cancel();
        tokio::time::timeout(PATIENCE, node.task).await.expect("the node stops").unwrap().unwrap();
    }

    /// The pods of the running node, and what they share.
    fn pods(&self) -> std::sync::Arc<crate::pod::Pods> {
        self.node.as_ref().expect("a node runs").node.pods().clone()
    }

    /// The port of the node's endpoint, as its object says.
    fn port(&self) -> u16 {
        let node = self.api.node();
        u16::try_from(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap()).unwrap()
    }

    /// Binds a pod of one container to the node.
    fn run(&self, name: &str, container: Value) {
        self.run_spec(name, json!({"containers": [container]}));
    }

    fn run_spec(&self, name: &str, spec: Value) {
        self.run_annotated(name, json!({}), spec);
    }

    fn run_annotated(&self, name: &str, annotations: Value, mut spec: Value) {
        spec["nodeName"] = json!("n1");
        for list in ["initContainers", "containers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                if list == "containers" {
                    container["name"] = json!("c");
                }
                container["imagePullPolicy"] = json!("IfNotPresent");
            }
        }
        self.api.create(name, annotations, spec);
    }

    async fn status(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.api.status(name, what, wanted).await
    }

    /// A connection to a port of a pod, by port-forward: channel 0 of its WebSocket as a stream.
    async fn forward(&self, name: &str, port: u16) -> tokio::io::DuplexStream {
        kubelet::forward(self, name, port).await
    }

    /// The control plane takes the node for gone; returns when the node has said that it is not.
    async fn give_up(&self) {
        self.api.modify_node(|node| {
            for condition in node["status"]["conditions"].as_array_mut().unwrap() {
                condition["status"] = json!("Unknown");
                condition["reason"] = json!("NodeStatusUnknown");
            }
        });
        let back = self.api.node_is(|node| is_ready(&node["status"]));
        tokio::time::timeout(PATIENCE, back).await.expect("the node says that it is ready");
    }

    async fn ready(&self, name: &str) -> Value {
        self.status(name, "Ready", is_ready).await
    }
}

fn is_ready(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.clone().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Looks until it is so.
pub(crate) async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let looked = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looked).await.unwrap_or_else(|_| panic!("{what}"));
}

/// A command that does these steps.
fn command(steps: &[&str]) -> Value {
    json!({"image": "probe-command:1", "args": steps})
}
