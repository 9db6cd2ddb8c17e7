//! What is planted to see that it is found: faults as the product could have them, each a switch of this harness.

/// A planted fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// None.
    Nothing,
    /// Disks say that they have synced, and have not.
    DroppedSyncs,
    /// The log is purged up to a checkpoint that is on no disk.
    EarlyPurges,
    /// An append is answered before anybody has it.
    EarlyAppends,
    /// A vote is granted before whoever grants it has kept it.
    EarlyVotes,
    /// One of three is a majority: who cannot be reached is counted among those who agree.
    SmallQuorum,
    /// Who lost its disk comes back under its old number.
    ReusedNumber,
    /// Whoever takes itself for the leader answers reads from what it has.
    StaleReads,
    /// Events are lost on their way to whoever watches.
    SkippedEvents,
    /// Bookmarks promise more than was told.
    EarlyBookmarks,
    /// What the leader's duties write is not written under their lead.
    ForgottenFence,
    /// A node that was given up says that it is back before it has ended what was replaced.
    ForgottenNodeFence,
}

impl Plant {
    /// Whether a majority has to lose its power at the same time for it to show.
    pub fn needs_all_disks(self) -> bool {
        matches!(self, Plant::DroppedSyncs | Plant::EarlyPurges)
    }
}
