//! The audit log (kubernetes-api §24): who asked for what, by a policy that says how much of which requests is written down.
//!
//! ```text
//! router ─► Auditor::begin (the policy: a plan) ─► Draft (what was sent, what is told, how it ended) ─► Log (a bounded queue) ─► file
//! ```
//! Without a policy nothing of this is done. A body is written down only where a rule asks for it; no request waits for the disk.

mod event;
mod log;
mod policy;

use std::sync::Arc;

use serde_json::Value;

pub(crate) use event::{Draft, Who};
use log::Log;
pub use log::LogFile;
pub(crate) use policy::Asked;
use policy::{Level, Policy};

/// What the audit log is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditConfig {
    /// An `audit.k8s.io/v1` Policy, in YAML or JSON.
    pub policy: Vec<u8>,
    /// Where it is written.
    pub file: LogFile,
}

/// Writes down requests.
pub(crate) struct Auditor {
    policy: Policy,
    log: Log,
}

impl Auditor {
    /// Reads the policy and opens the file.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(config: &AuditConfig) -> Result<Arc<Auditor>, String> {
        let policy = Policy::read(&config.policy).map_err(|why| format!("the audit policy: {why}"))?;
        let log = Log::open(config.file.clone())
            .map_err(|error| format!("the audit log {}: {error}", config.file.path.display()))?;
        Ok(Arc::new(Auditor { policy, log }))
    }

    /// A request that came; `None` when the policy wants nothing of it.
    pub fn begin<'a>(self: &Arc<Self>, asked: &Asked<'_>, who: impl FnOnce() -> Who<'a>) -> Option<Arc<Draft>> {
        let plan = self.policy.plan(asked);
        (plan.level != Level::None).then(|| Draft::begin(self, plan, who()))
    }

    /// How many events were lost.
    pub fn lost(&self) -> u64 {
        self.log.lost()
    }

    fn write(&self, event: &Value) {
        let mut line = event.to_string().into_bytes();
        line.push(b'\n');
        self.log.write(line);
    }
}
