//! The servers of a cluster, as one of them sees them.

use coracle_server::Formats;
use http::Request;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{AskError, Remote};

/// Who was not heard of for this long is called missing.
const MISSING_AFTER_MS: u64 = 5_000;
/// A certificate that ends within so many days is told of: it should have been issued again long before.
const ENDS_SOON_DAYS: i64 = 30;

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Its number, which no other ever had or will have.
    pub member: u64,
    /// Its name.
    pub name: String,
    /// `HOST:PORT` at which other servers reach it.
    pub address: String,
    /// `HOST:PORT` of its API.
    pub api: String,
    /// `voter`, or `learner` as long as it does not count.
    pub role: String,
    /// Which formats of the log it knows.
    #[serde(default = "first")]
    pub formats: Formats,
    /// Whether it leads.
    pub leads: bool,
    /// Up to which revision it has the log; known to the leader.
    pub matched: Option<u64>,
    /// How long ago it was heard of; known to the leader.
    pub heard_milliseconds: Option<u64>,
}

/// What a server knows that says nothing of it.
fn first() -> Formats {
    Formats::FIRST
}

/// A certificate of the server that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The name of its file.
    pub name: String,
    /// When it ends, Unix time in seconds.
    pub ends: i64,
}

impl Certificate {
    /// Days until it ends.
    pub fn days_left(&self) -> i64 {
        (self.ends - Timestamp::now().as_second()) / 86_400
    }
}

impl Member {
    /// Its number and name.
    pub fn title(&self) -> String {
        format!("{} ({})", self.name, self.member)
    }
}

/// What is wrong with the servers and what to do, in words; nothing when all is well.
pub fn in_words(members: &[Member]) -> Vec<String> {
    let voters: Vec<&Member> = members.iter().filter(|member| member.role == "voter").collect();
    let mut words = Vec::new();
    if !members.is_empty() && !members.iter().any(|member| member.leads) {
        words.push(format!(
            "no server leads: of {} voters a majority must be up and reach each other; start those that are down",
            voters.len()
        ));
    }
    // Only the leader knows; one of whom it never heard has been away since it began to lead.
    let is_leader_asked = members.iter().any(|member| member.leads && member.heard_milliseconds.is_some());
    let is_missing = |member: &Member| member.heard_milliseconds.is_none_or(|heard| heard >= MISSING_AFTER_MS);
    for member in members.iter().filter(|member| is_leader_asked && is_missing(member)) {
        words.push(format!(
            "server {} at {} is missing: start it; if it is gone for good, `coracle member remove {}` and let another join",
            member.title(),
            member.address,
            member.member
        ));
    }
    if voters.len() > 1 && voters.len().is_multiple_of(2) {
        words.push(format!("{} voters are no safer than {}: let one more server join", voters.len(), voters.len() - 1));
    }
    let learners = members.len() - voters.len();
    if learners % 2 == 1 && voters.len() % 2 == 1 {
        words.push(format!(
            "{learners} of the servers do not count yet: voters are an odd number, so let one more server join"
        ));
    }
    words
}

/// The certificates that should have been issued again, in words.
pub fn certificates_in_words(certificates: &[Certificate]) -> Vec<String> {
    let soon = certificates.iter().filter(|certificate| certificate.days_left() < ENDS_SOON_DAYS);
    soon.map(|certificate| {
        format!(
            "the certificate {} ends in {} days: start the server again, and look at its log",
            certificate.name,
            certificate.days_left()
        )
    })
    .collect()
}

#[derive(Deserialize)]
struct List {
    members: Vec<Member>,
}

impl Remote {
    /// The servers of the cluster, as the one that is asked sees them.
    pub async fn members(&self) -> Result<Vec<Member>, AskError> {
        let request = Request::get("/coracle/v1/members").body(Vec::new()).expect("a request of constants");
        Ok(self.client().request::<List>(request).await?.members)
    }

    /// Removes a server: it counts no more, and is heard no more. Refused when those that are left could not go on. Returns who
    /// is left.
    pub async fn remove_member(&self, member: u64) -> Result<Vec<Member>, AskError> {
        let request = Request::delete(format!("/coracle/v1/members/{member}")).body(Vec::new());
        Ok(self.client().request::<List>(request.expect("a path of a number")).await?.members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(number: u64, role: &str, leads: bool, heard: Option<u64>) -> Member {
        Member {
            member: number,
            name: format!("s{number}"),
            address: format!("h{number}:1"),
            api: String::new(),
            role: role.into(),
            formats: Formats::OWN,
            leads,
            matched: None,
            heard_milliseconds: heard,
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let (leader, well) = (member(1, "voter", true, Some(0)), |number| member(number, "voter", false, Some(20)));
        let gone = member(3, "voter", false, Some(60_000));
        let learner = member(4, "learner", false, Some(20));
        for (members, expected) in [
            (vec![leader.clone()], None),
            (vec![leader.clone(), well(2), well(3)], None),
            (vec![leader.clone(), well(2), gone], Some("coracle member remove 3")),
            (vec![leader.clone(), well(2), member(3, "voter", false, None)], Some("coracle member remove 3")),
            (vec![leader.clone(), well(2)], Some("2 voters are no safer than 1")),
            (vec![leader, learner], Some("1 of the servers do not count yet")),
            (vec![well(2), well(3), well(5)], Some("no server leads: of 3 voters")),
        ] {
            let words = in_words(&members);
            match expected {
                None => assert_eq!(words, Vec::<String>::new()),
                Some(part) => assert!(words.len() == 1 && words[0].contains(part), "{words:?}"),
            }
        }
    }
}
