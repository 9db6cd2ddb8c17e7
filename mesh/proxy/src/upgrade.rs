//! Connections that change their protocol: from then on bytes are passed on both ways, whatever they mean.

use std::io;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

/// Passes bytes between two connections as soon as both have changed, until both ends have said all.
pub async fn tunnel(one: OnUpgrade, other: OnUpgrade) -> io::Result<()> {
    let (one, other) = tokio::try_join!(one, other).map_err(io::Error::other)?;
    tokio::io::copy_bidirectional(&mut TokioIo::new(one), &mut TokioIo::new(other)).await.map(|_| ())
}
