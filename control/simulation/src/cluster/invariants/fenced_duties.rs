//! What the duties of a leader write is written before anybody else begins to lead, or not at all.
//!
//! ARCHITECTURE.md, "Duties are fenced in the log"; the reason is Kleppmann's ("How to do distributed locking", fencing tokens). In
//! Kubernetes nothing holds this: a controller manager that lost its lease may write on for a moment.

use crate::cluster::world::World;

/// Compares what duties were told with who began to lead when.
///
/// A patch that changes nothing is answered with what somebody else has just written: what two say of themselves is not judged.
pub fn judge(world: &World) -> Result<(), String> {
    let leads = world.history.leads.lock();
    let (duties, others) = (world.history.duties.lock(), world.history.others.lock());
    let is_claimed = |term: u64, revision: u64| {
        others.contains(&revision) || duties.iter().any(|(other, at)| *at == revision && *other > term)
    };
    for (term, revision) in duties.iter().filter(|(term, revision)| !is_claimed(*term, *revision)) {
        world.history.judges("fenced duties");
        let later = leads.iter().find(|(began, other)| *began < revision && *other > term);
        if let Some((began, other)) = later {
            return Err(format!(
                "a duty of term {term} wrote revision {revision}, after {began}, where term {other} began"
            ));
        }
    }
    Ok(())
}
