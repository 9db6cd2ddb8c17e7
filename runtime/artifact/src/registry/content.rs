//! What a registry sends, read within bounds and compared with its digest.

use bytes::{Bytes, BytesMut};
use sha2::digest::DynDigest;
use sha2::{Sha256, Sha384, Sha512};

use crate::blobs::hex_of;

/// Reads all of an answer, if it has at most `limit` bytes.
pub async fn whole(response: &mut reqwest::Response, limit: usize) -> reqwest::Result<Option<Bytes>> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        if bytes.len() + chunk.len() > limit {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes.freeze()))
}

/// Content on its way, and the digest that it has to have.
pub struct Check {
    hash: Box<dyn DynDigest + Send + Sync>,
    wanted: String,
}

impl Check {
    /// For `algorithm:hex`; nothing for what is no digest, or of an algorithm that nobody registered (OCI image, "Digests").
    pub fn of(digest: &str) -> Option<Self> {
        hex_of(digest)?;
        let hash: Box<dyn DynDigest + Send + Sync> = match digest.split(':').next()? {
            "sha256" => Box::<Sha256>::default(),
            "sha384" => Box::<Sha384>::default(),
            "sha512" => Box::<Sha512>::default(),
            _ => return None,
        };
        Some(Self { hash, wanted: digest.to_owned() })
    }

    /// More of it.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
    }

    /// Compares; the error is the digest that it has.
    pub fn done(self) -> Result<(), String> {
        let algorithm = self.wanted.split(':').next().unwrap_or_default();
        let mut actual = format!("{algorithm}:");
        for byte in self.hash.finalize() {
            use std::fmt::Write as _;
            let _ = write!(actual, "{byte:02x}");
        }
        if actual == self.wanted { Ok(()) } else { Err(actual) }
    }
}
