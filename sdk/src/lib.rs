//! Coracle in a Rust program: start a cluster, deploy to it, stop it; reach one that runs elsewhere, or join it as a node.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use coracle_sdk::{Cluster, Options};
//!
//! let cluster = Cluster::start(Options::new("data")).await?;
//! cluster.ready().await?;
//! let remote = cluster.remote();
//! coracle_sdk::push(remote.client(), "app.wasm".as_ref(), "myregistry/app:latest").await?;
//! let objects = coracle_sdk::manifests::read(&["app.yaml".into()])?;
//! coracle_sdk::manifests::apply(remote.client(), &objects, |applied| println!("{applied}")).await?;
//! cluster.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! This crate is the only one with a stability promise; what the others offer may change with every version.

// They panic in whichever program this is part of when its standard error has no reader or its disk is full.
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod backup;
mod build;
mod cluster;
mod duties;
mod encryption;
mod failover;
mod kubeconfig;
mod members;
mod mesh;
mod push;
mod recover;
mod remote;
mod tokens;
mod unreachable;
mod upgrade;
mod worker;

pub mod bench;
pub mod manifests;

pub use backup::{BackupError, restore};
pub use build::{BuildError, component};
pub use cluster::{Cluster, Compiler, IngressPort, IngressPorts, Options, StartError, close_new_files, compile_worker};
pub use coracle_node::{NoOtlpEndpoint, Otlp, OtlpEndpoint, Unfit};
pub use coracle_server::backup::{Contents, RestoreError, Restored};
pub use coracle_server::{
    Audit, Duties, Formats, Listeners, Log, Mode, Next, Preparation, Program, Running, SecretKey, Sending, Throttle,
    Truncate, Version, Webhook,
};
pub use duties::run_duties;
pub use encryption::{Encryption, HeldBack, Unreadable};
pub use failover::Moved;
pub use kubeconfig::{Elsewhere, ElsewhereError};
pub use members::{Certificate, Member};
pub use mesh::{RoutesOf, TapLine, Tapped};
pub use push::{Error as PushError, Pushed, compiled, push};
pub use recover::{Lost, RecoverError, Recovery};
pub use remote::{AskError, ConnectError, Count, NotReady, Remote, Status};
pub use tokens::{NotAToken, TOKEN_TTL_MAX, Token, TokenInfo, TokenRole};
pub use unreachable::is_unreachable;
pub use upgrade::{How, Part, Told, UpgradeError};
pub use worker::{IdentityError, Join, Worker, WorkerError, WorkerOptions};

/// The Kubernetes client this crate speaks through, so that a program needs no version of its own to match.
pub use kube;
