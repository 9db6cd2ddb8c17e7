//! openraft's own suite for stores, run against ours.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::Member;
use super::log::Log;
use super::machine::Applier;
use super::types::TypeConfig;
use crate::dir::Dir;
use crate::host::Host;
use crate::{Begin, Config};

struct Builder;

impl StoreBuilder<TypeConfig, Log, Applier, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Log, Applier), StorageError<TypeConfig>> {
        let temp = tempfile::tempdir().unwrap();
        let host = Host::real();
        let mut dir = Dir::open(&host, temp.path(), &Begin::Found).unwrap();
        super::found(&host, &mut dir).unwrap();
        let loaded =
            Member::read(&host, dir, Config::new("").retention, crate::Formats::OWN, None).unwrap().start().unwrap();
        Ok((temp, loaded.log, Applier(loaded.machine)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_keeps_the_contract_of_openraft() {
    Suite::test_all(Builder).await.unwrap();
}
