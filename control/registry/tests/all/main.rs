//! The registry as its clients see it.

mod clients;
mod memory;
mod protocol;
mod replicas;

use std::sync::Once;

use axum::Router;
use coracle_registry::{
    Catalog, CatalogError, Change, Config, Electorate, Entry, Only, Registry, Replica, Replicas, To,
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A registry in a directory of its own.
struct Server {
    dir: TempDir,
    registry: Registry,
    router: Router,
}

impl Server {
    fn start() -> Server {
        Server::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Config)) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path());
        change(&mut config);
        let registry = memory::alone(config);
        let router = coracle_registry::router(registry.clone());
        Server { dir, registry, router }
    }

    /// Listens on a free port of loopback and says which address that is.
    async fn listen(&self) -> String {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = self.router.clone();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        address
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
