//! The duties of membership: whoever leads says so in the log, finishes changes that were cut and promotes learners, and gives way when it
//! commits nothing; whoever has an address tells the leader.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::group::{Lead, MemberStatus, Peer};
use crate::raft::{ALONE_AFTER, Answer, Ask, Call, Change, LOOKS_AFTER, Member, Refusal, Told};

/// How often a leader looks whether learners have caught up, and whether it still leads; a change of leader is seen at once.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long after it could not say that it leads a leader tries again.
const SAY_AGAIN: Duration = Duration::from_millis(200);
/// How often a member looks whether the others know its address.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(10);
/// The same while they do not.
const ANNOUNCE_AGAIN: Duration = Duration::from_millis(500);
/// How long a peer may take to answer an announcement.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(10);

/// Keeps `lead` true, until `stopped` says so.
pub(crate) async fn run(member: Arc<Member>, lead: watch::Sender<Option<Lead>>, mut stopped: watch::Receiver<bool>) {
    let work = async {
        loop {
            member.tick_for_others();
            let term = member.leading();
            let said = lead.borrow().map(|lead| lead.term);
            let mut patience = LOOK_EVERY;
            if term != said {
                // Whoever has duties ends them first, also when this member leads again in another term.
                lead.send_if_modified(|lead| lead.take().is_some());
                member.machine().renewals.forget();
                if term.is_some() {
                    match member.take_lead().await {
                        Some(taken) => drop(lead.send_replace(Some(taken))),
                        None => {
                            // What says so may be what the disk has no room for.
                            member.make_room();
                            patience = SAY_AGAIN;
                        }
                    }
                }
            } else if term.is_some() {
                member.tend();
                member.make_room();
                member.raise_format().await;
                member.begin_sealing().await;
            }
            member.leader_changes(patience).await;
        }
    };
    // What is cut is asked again by the next leader.
    tokio::select! {
        () = work => (),
        _ = stopped.wait_for(|stopped| *stopped) => (),
    }
    lead.send_replace(None);
}

/// Looks whether what should move does, and says in `alone` when this member has been without a majority for [`ALONE_AFTER`], until
/// `stopped` says so. Apart from what writes: that may wait for a majority, and for ever.
pub(crate) async fn watch_over(member: Arc<Member>, alone: watch::Sender<bool>, mut stopped: watch::Receiver<bool>) {
    let work = async {
        loop {
            member.look_at_stills();
            let is_alone = member.alone_for() >= ALONE_AFTER;
            alone.send_if_modified(|alone| std::mem::replace(alone, is_alone) != is_alone);
            member.leader_changes(LOOK_EVERY).await;
        }
    };
    // It only looks.
    tokio::select! {
        () = work => (),
        _ = stopped.wait_for(|stopped| *stopped) => (),
    }
}

/// Has the others know that this member is reached at `address`, until `stopped` says so. Those that are not where they were are looked for
/// at `places`.
pub(crate) async fn announce(
    member: Arc<Member>,
    address: String,
    places: Vec<String>,
    mut stopped: watch::Receiver<bool>,
) {
    let work = async {
        let mut refused = None;
        loop {
            let known = member.address_of(member.id()).is_some_and(|known| known == address);
            // Whoever does not hear of its leader may have been removed: that one says so, or the others do.
            let is_alone = member.alone_for() >= LOOKS_AFTER;
            if known && !is_alone && member.leading().is_some() {
                ask_missing(&member, &address).await;
            }
            if is_alone && !places.is_empty() {
                member.look_for_others(&places).await;
            }
            if !known || is_alone {
                match tell(&member, &address).await {
                    Ok(_) => refused = None,
                    Err(why) if refused.as_ref() == Some(&why) => (),
                    Err(why) => {
                        tracing::warn!(
                            member = member.id(),
                            why,
                            "tell the others where this member is; it is tried again"
                        );
                        refused = Some(why);
                    }
                }
            }
            let patience = if known && !is_alone { ANNOUNCE_EVERY } else { ANNOUNCE_AGAIN };
            member.leader_changes(patience).await;
        }
    };
    // What is cut is asked again at the next start.
    tokio::select! {
        () = work => (),
        _ = stopped.wait_for(|stopped| *stopped) => (),
    }
}

/// Who leads tells members that take no entries where it is: one of them may have gone on without it ([`crate::Survivor`]), and says
/// that it is no member any more.
async fn ask_missing(member: &Member, address: &str) {
    let ask = Ask::Change(Change::Announce { member: member.id(), address: address.to_owned() });
    let is_missing = |known: &MemberStatus| known.heard.is_none_or(|heard| heard >= ANNOUNCE_EVERY);
    let asked = member.members().into_iter().filter(is_missing).map(|missing| {
        let call = member.transport().call(missing.member, &missing.address, Call::Ask(ask.clone()));
        tokio::time::timeout(ANNOUNCE_TIMEOUT, call)
    });
    // At the same time: each may be one that lets it wait.
    for told in futures::future::join_all(asked).await {
        if let Ok(Ok(Answer::Told(Err(Refusal::Removed(_))))) = told {
            member.note_removed();
        }
    }
}

/// Tells the leader. Who knows of none, or of one that does not answer, tells everybody it knows: the leader may look for
/// this member where it was before.
async fn tell(member: &Arc<Member>, address: &str) -> Result<(), String> {
    let ask = Ask::Change(Change::Announce { member: member.id(), address: address.to_owned() });
    if member.leader().is_some() {
        match tokio::time::timeout(ANNOUNCE_TIMEOUT, member.ask(ask.clone())).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(Refusal::Refused(why))) => return Err(why),
            Ok(Err(Refusal::Removed(removed))) => return Err(crate::raft::removed(removed)),
            Ok(Err(_)) | Err(_) => (),
        }
    }
    let members = member
        .members()
        .into_iter()
        .map(|known| Peer { member: known.member, address: member.reached_at(known.member).unwrap_or(known.address) });
    let others = members.chain(member.owner().peers.iter().cloned()).filter(|peer| peer.member != member.id());
    let mut why = "no other server can be reached".to_owned();
    for Peer { member: peer, address } in others {
        let call = member.transport().call(peer, &address, Call::Ask(ask.clone()));
        let told = tokio::time::timeout(ANNOUNCE_TIMEOUT, call).await;
        if matches!(told, Ok(Ok(_))) {
            member.hear_from(peer);
        }
        match told {
            Ok(Ok(Answer::Told(Ok(Told::Changed)))) => return Ok(()),
            Ok(Ok(Answer::Told(Err(Refusal::Removed(removed))))) => {
                member.note_removed();
                return Err(crate::raft::removed(removed));
            }
            Ok(Ok(Answer::Told(Err(Refusal::Refused(refused))))) => why = refused,
            // It passes on what it is told, where it knows of a leader that it reaches.
            Ok(Ok(_)) => why = format!("member {peer} answers, and reaches no leader"),
            Ok(Err(_)) | Err(_) => (),
        }
    }
    Err(why)
}
