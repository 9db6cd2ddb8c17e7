//! Waiting for a process that begins anew: what is waited for is told, what is refused for good ends it, and so does the time.

use std::time::Duration;

use tokio::time::Instant;

use super::{How, Part, UpgradeError};
use crate::AskError;

/// How often it is looked whether what is waited for is so.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long something is waited for before that is told, and how long between two such words.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How long a process may take from being asked until all is well: pods end in grace, and gigabytes are read.
const ANEW_MAX: Duration = Duration::from_secs(600);

/// What is told meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told<'a> {
    /// Whoever starts it by hand may end it now: all that is to be known of it before is known.
    Next,
    /// What it has been waiting for.
    WaitsFor(&'a str),
}

/// Why something is not so yet.
pub(super) enum Why {
    /// In words.
    NotYet(String),
    /// It could not be asked.
    Failed(AskError),
}

impl From<AskError> for Why {
    fn from(error: AskError) -> Why {
        Why::Failed(error)
    }
}

/// Waiting with an end.
pub(super) struct Waits<'a> {
    title: String,
    /// It is a node alone: one that the cluster does not know is gone.
    is_node: bool,
    within: Option<Duration>,
    begun: Instant,
    tell: &'a mut (dyn FnMut(Told<'_>) + Send),
    told: (Instant, String),
}

impl<'a> Waits<'a> {
    pub fn new(part: &Part, how: How, tell: &'a mut (dyn FnMut(Told<'_>) + Send)) -> Waits<'a> {
        let begun = Instant::now();
        Waits {
            title: part.title(),
            is_node: part.member.is_none(),
            within: (how == How::Asked).then_some(ANEW_MAX),
            begun,
            tell,
            told: (begun, String::new()),
        }
    }

    pub fn title(&self) -> String {
        self.title.clone()
    }

    /// Whoever starts it by hand may end it now.
    pub fn tell_next(&mut self) {
        (self.tell)(Told::Next);
    }

    /// Waits a moment for what is not so yet; an error when it is refused for good, or that was long enough.
    pub async fn a_while(&mut self, why: impl Into<Why>) -> Result<(), UpgradeError> {
        let is_over = self.within.is_some_and(|within| self.begun.elapsed() >= within);
        let why = match why.into() {
            Why::Failed(source) if self.is_final(&source) => return Err(self.ask(source)),
            Why::Failed(source @ AskError::Unreachable { .. }) if is_over => return Err(self.ask(source)),
            Why::Failed(error) => error.to_string(),
            Why::NotYet(why) => why,
        };
        if let Some(within) = self.within.filter(|_| is_over) {
            return Err(UpgradeError::NotWell { title: self.title(), why, within });
        }
        let (at, last) = &self.told;
        if *last != why && at.elapsed() >= TELL_EVERY {
            (self.tell)(Told::WaitsFor(&why));
            self.told = (Instant::now(), why);
        }
        tokio::time::sleep(LOOK_EVERY).await;
        Ok(())
    }

    fn ask(&self, source: AskError) -> UpgradeError {
        UpgradeError::Ask { title: self.title(), source }
    }

    /// Whether asking again is of no use: who may not may not later, either.
    fn is_final(&self, error: &AskError) -> bool {
        match error {
            AskError::Refused { code, .. } => matches!(code, 401 | 403) || *code == 404 && self.is_node,
            AskError::Untrusted { .. } | AskError::NotCoracle(_) => true,
            AskError::Unreachable { .. } | AskError::Other(_) => false,
        }
    }
}
