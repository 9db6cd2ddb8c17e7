//! What others have acknowledged to this member as their leader. Whoever lacks some of it later has lost it: an older copy of its data
//! was put back while it was down, or its disk lies. Its word may have been what made a majority, so nothing it says is taken for
//! progress any more, and people are told; openraft takes for granted that it does not happen.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::types::{MemberId, Vote};

/// What is known of the others, in one term of this leader.
#[derive(Default)]
pub struct Acknowledged(Mutex<BTreeMap<MemberId, One>>);

struct One {
    /// The leader's vote: in another term others may have led meanwhile, and cut what they found.
    under: Vote,
    upto: u64,
    lost: bool,
}

impl Acknowledged {
    /// Notes that `member` has all entries up to `upto`.
    pub fn note(&self, member: MemberId, under: &Vote, upto: u64) {
        let mut all = self.0.lock();
        match all.get_mut(&member).filter(|known| known.under == *under) {
            Some(known) => known.upto = known.upto.max(upto),
            None => drop(all.insert(member, One { under: *under, upto, lost: false })),
        }
    }

    /// Whether `member`, which says that it lacks the entry at `index`, has acknowledged it; notes it, and says so the first time.
    pub fn is_lost(&self, member: MemberId, under: &Vote, index: u64) -> bool {
        let mut all = self.0.lock();
        let Some(known) = all.get_mut(&member).filter(|known| known.under == *under && index <= known.upto) else {
            return false;
        };
        if !std::mem::replace(&mut known.lost, true) {
            let acknowledged = known.upto;
            tracing::error!(member, index, acknowledged, "{}", lost(member));
        }
        true
    }

    /// Who has lost something, to this member's knowledge. Whoever is in the group no more is forgotten: its number never comes back,
    /// and nothing is left to be done about it.
    pub fn lost(&self, is_member: impl Fn(MemberId) -> bool) -> Vec<MemberId> {
        let mut all = self.0.lock();
        all.retain(|member, _| is_member(*member));
        all.iter().filter(|(_, known)| known.lost).map(|(member, _)| *member).collect()
    }
}

/// What is to be done about a member that has lost what it acknowledged.
pub fn lost(member: MemberId) -> String {
    format!(
        "member {member} lacks what it has acknowledged: an older copy of its data was put back, or its disk does not keep what it says it \
         has kept. It is sent nothing more; `coracle member remove` it, `coracle reset` there, and join again"
    )
}

#[cfg(test)]
mod tests {
    use super::super::types::LeaderId;
    use super::*;

    #[test]
    fn who_lacks_what_it_acknowledged_has_lost_it_and_who_is_behind_has_not() {
        let vote = |term| Vote { leader_id: LeaderId { term, node_id: 1 }, committed: true };
        let (all, first, next) = (Acknowledged::default(), vote(1), vote(2));
        all.note(2, &first, 10);
        all.note(2, &first, 7);
        assert!(!all.is_lost(2, &first, 11), "it is behind");
        assert!(!all.is_lost(3, &first, 5), "it has acknowledged nothing");
        assert!(!all.is_lost(2, &next, 5), "another may have led meanwhile");
        assert_eq!(all.lost(|_| true), Vec::<MemberId>::new());
        assert!(all.is_lost(2, &first, 10));
        assert_eq!(all.lost(|_| true), [2]);
        all.note(2, &next, 3);
        assert_eq!(all.lost(|_| true), Vec::<MemberId>::new(), "it was sent everything again");
    }

    #[test]
    fn whoever_was_removed_is_no_alarm_any_more() {
        let vote = Vote { leader_id: LeaderId { term: 1, node_id: 1 }, committed: true };
        let all = Acknowledged::default();
        for member in [2, 3] {
            all.note(member, &vote, 10);
            assert!(all.is_lost(member, &vote, 10));
        }
        assert_eq!(all.lost(|member| member != 2), [3]);
        assert_eq!(all.0.lock().len(), 1, "nor is it remembered");
    }
}
