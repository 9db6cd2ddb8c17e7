//! An API server alone, without TLS and for anyone: to compare it with a real one, or to look at it with kubectl.
//!
//! `serve DIR PORT` listens at 127.0.0.1:PORT; whoever connects is the administrator.

use std::path::PathBuf;

use axum::extract::Request;
use axum::middleware::{self, Next};
use coracle_apiserver::{ApiServer, Config, Identity, InProcess};
use coracle_keyspace::Keyspace;
use tower::Service as _;

fn admin() -> Identity {
    Identity::authenticated("admin", vec!["system:masters".to_owned()])
}

/// Makes the account `default` of every namespace, as the controller does that is not here.
async fn accounts(keyspace: Keyspace, mut api: InProcess) {
    let Ok(mut watcher) = keyspace.watch("namespaces", keyspace.compacted()) else { return };
    while let Ok(batch) = watcher.next().await {
        for event in batch.events {
            let uri = format!("/api/v1/namespaces/{}/serviceaccounts", event.record.key.name);
            let body = r#"{"metadata": {"name": "default"}}"#.to_owned();
            if let Ok(request) = http::Request::post(uri).body(http_body_util::Full::new(bytes::Bytes::from(body))) {
                let _ = api.call(request).await;
            }
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(dir), Some(port)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: serve DIR PORT");
    };
    let dir = PathBuf::from(dir);
    std::fs::create_dir_all(&dir)?;
    let keyspace = Keyspace::open(coracle_keyspace::Config::new(dir)).await?;
    let config = Config {
        external_url: format!("https://127.0.0.1:{port}"),
        token_key: include_str!("../tests/token.key").to_owned(),
        ..Config::default()
    };
    let keyspace_for_accounts = keyspace.clone();
    let api = ApiServer::start(keyspace, config).await?;
    tokio::spawn(accounts(keyspace_for_accounts, api.in_process(admin())));
    let as_admin = |mut request: Request, next: Next| async move {
        request.extensions_mut().insert(admin());
        next.run(request).await
    };
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    axum::serve(listener, api.router().layer(middleware::from_fn(as_admin))).await?;
    Ok(())
}
