//! Kubernetes' own API server with its etcd, built from their Go modules (`tests/reference`).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{DEADLINE, STAMP, free_port, go_program, root};

/// One of Kubernetes' programs.
pub fn program(name: &str) -> PathBuf {
    go_program("reference", name, &["build", "-ldflags", STAMP], &format!("k8s.io/kubernetes/cmd/{name}"))
}

/// The administrator's token.
const TOKEN: &str = "compare";

/// A running API server. Dropping it kills both processes and removes their directory.
pub struct Reference {
    children: Vec<Child>,
    folder: TempDir,
    port: String,
}

impl Reference {
    /// Builds (some minutes, once) and starts it.
    pub fn start() -> Reference {
        let words = ["build", "-ldflags", "-s -w"];
        let etcd = go_program("reference", "etcd", &words, "go.etcd.io/etcd/server/v3");
        let apiserver = program("kube-apiserver");

        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut reference = Reference { children: Vec::new(), folder, port: free_port() };
        let (client, peer) = (format!("http://127.0.0.1:{}", free_port()), format!("http://127.0.0.1:{}", free_port()));
        let (client, peer) = (client.as_str(), peer.as_str());
        let mut command = Command::new(etcd);
        command.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
        command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
        command.args(["--initial-cluster", &format!("default={peer}"), "--log-level", "warn"]);
        reference.run(command.arg("--data-dir").arg(reference.folder.path().join("etcd")), "etcd.log");

        // It reads the public half of no private key of this form.
        let key = |name: &str| root().join("control/apiserver/tests").join(name);
        let tokens = reference.folder.path().join("tokens.csv");
        std::fs::write(&tokens, format!("{TOKEN},admin,,system:masters\n")).expect("write the token");
        let mut command = Command::new(apiserver);
        command.args(["--etcd-servers", client, "--secure-port", &reference.port, "--bind-address", "127.0.0.1"]);
        command.args(["--service-account-issuer", "https://kubernetes.default.svc"]);
        command.args(["--service-cluster-ip-range", "10.96.0.0/16", "--endpoint-reconciler-type", "none"]);
        command.args(["--authorization-mode", "Node,RBAC", "--allow-privileged=true"]);
        // As we write it: the flag is there for who knows sooner that a node is gone.
        command.arg("--default-unreachable-toleration-seconds=12");
        command.arg("--cert-dir").arg(reference.folder.path().join("certificates"));
        command.arg("--token-auth-file").arg(&tokens);
        command.arg("--service-account-key-file").arg(key("token.pub"));
        command.arg("--service-account-signing-key-file").arg(key("token.key"));
        reference.run(&mut command, "kube-apiserver.log");
        reference
    }

    fn run(&mut self, command: &mut Command, log: &str) {
        let log = std::fs::File::create(self.folder.path().join(log)).expect("a log");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.children.push(child.unwrap_or_else(|e| panic!("{command:?}: {e}")));
    }

    /// How to reach it as its administrator, when it is ready.
    pub async fn config(&mut self) -> kube::Config {
        let address = format!("https://127.0.0.1:{}", self.port).parse().expect("an address");
        let mut config = kube::Config::new(address);
        // It made its own certificate, and listens on loopback alone.
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(TOKEN.into());
        let begun = Instant::now();
        loop {
            let client = kube::Client::try_from(config.clone()).expect("a client");
            let ask = http::Request::get("/readyz").body(Vec::new()).expect("a request");
            if client.request_text(ask).await.is_ok() {
                return config;
            }
            let has_ended = self.children.iter_mut().any(|child| matches!(child.try_wait(), Ok(Some(_)) | Err(_)));
            let is_late = begun.elapsed() > DEADLINE;
            assert!(!has_ended && !is_late, "the reference does not start:\n{}", log(self.folder.path()));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The same for programs.
    pub fn kubeconfig(&self) -> PathBuf {
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "reference",
            "clusters": [{"name": "reference", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port), "insecure-skip-tls-verify": true,
            }}],
            "users": [{"name": "admin", "user": {"token": TOKEN}}],
            "contexts": [{"name": "reference", "context": {"cluster": "reference", "user": "admin"}}],
        });
        let file = self.folder.path().join("kubeconfig");
        std::fs::write(&file, kubeconfig.to_string()).expect("write the kubeconfig");
        file
    }
}

fn log(folder: &Path) -> String {
    let log = std::fs::read_to_string(folder.join("kube-apiserver.log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

impl Drop for Reference {
    fn drop(&mut self) {
        // The API server first: without its etcd it would only complain.
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
