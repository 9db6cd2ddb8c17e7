//! When a node that was given up says that it is ready again, nothing runs there any more that was replaced meanwhile.
//!
//! ARCHITECTURE.md, "A node that was given up ends what was replaced before it says that it is ready"; Kubernetes' KEP-2268 describes
//! what comes of the contrary.

use crate::cluster::world::World;

/// Compares what ran when nodes came back with what was deleted before they looked.
pub fn judge(world: &World) -> Result<(), String> {
    let deleted = world.history.deleted.lock();
    for back in world.history.returns.lock().iter() {
        world.history.judges("fenced nodes");
        for uid in &back.running {
            if let Some(at) = deleted.get(uid).filter(|at| **at <= back.before) {
                return Err(format!("{} is back and still runs pod {uid}, which was deleted at {at}", back.node));
            }
        }
    }
    Ok(())
}
