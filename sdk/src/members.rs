//! The servers of a cluster, as one of them sees them.

use coracle_server::Formats;
use http::Request;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{AskError, Remote, Status};

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
    /// `voter`, or `learner` as long as it does not count, or `absent` when it was given its number and has not come.
    pub role: String,
    /// Which formats of the log it knows.
    #[serde(default = "first")]
    pub formats: Formats,
    /// Whether it leads.
    pub leads: bool,
    /// Up to which revision it has the log; known to the leader.
    pub matched: Option<u64>,
    /// How long ago it was heard of; known to the leader, and to a server that has no majority.
    pub heard_milliseconds: Option<u64>,
    /// Whether it does not count before it has all images.
    #[serde(default)]
    pub waits: bool,
    /// Whether it lacks what it has acknowledged: there is an alarm that says what to do; known to the leader.
    #[serde(default)]
    pub has_lost: bool,
    /// Whose clock keeps the server that was asked from reaching it.
    #[serde(default)]
    pub clock: Option<Clock>,
}

/// Whose clock is wrong, since a certificate is not valid by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Clock {
    /// That of the server that was asked is so many seconds ahead of the end of the other's certificate.
    Ahead(i64),
    /// It is so many seconds behind the beginning of the other's certificate.
    Behind(i64),
    /// That of the other one, which refuses the certificate of the one that was asked.
    Other,
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

    /// The day on which it ends, in UTC, as `2030-01-02`.
    pub fn day(&self) -> String {
        Timestamp::from_second(self.ends).map_or_else(|_| "?".to_owned(), |ends| ends.strftime("%Y-%m-%d").to_string())
    }
}

impl Member {
    /// Whether it was given its number and has not come.
    pub fn is_absent(&self) -> bool {
        self.role == "absent"
    }

    /// Its number and name.
    pub fn title(&self) -> String {
        format!("{} ({})", self.name, self.member)
    }
}

impl Status {
    /// What is wrong and what to do, in words; nothing when all is well.
    pub fn in_words(&self) -> Vec<String> {
        let mut words = match self.alone_milliseconds {
            Some(alone) => vec![without_majority(self, alone)],
            None => servers_in_words(&self.members),
        };
        words.extend(certificates_in_words(&self.certificates));
        words.extend(self.alarms.iter().cloned());
        words.extend(self.encryption.iter().flat_map(crate::Encryption::in_words));
        words
    }
}

/// That no majority is up, who is missing, and what to do.
fn without_majority(status: &Status, alone: u64) -> String {
    let voters = status.members.iter().filter(|member| member.role == "voter");
    let (mut count, mut missing) = (0, Vec::new());
    for voter in voters {
        count += 1;
        // Whom this server never heard of is missing for as long as nobody leads, or longer.
        let silent = voter.heard_milliseconds.unwrap_or(alone);
        if voter.member != status.member && silent >= MISSING_AFTER_MS {
            missing.push(format!("{} at {} for {}", voter.title(), or_unknown(&voter.address), time(silent)));
        }
    }
    let by_clock = status.members.iter().filter_map(|member| match member.clock? {
        Clock::Ahead(by) => Some((member, format!("{} days ahead of", by / 86_400))),
        Clock::Behind(by) => Some((member, format!("{} days behind", by / 86_400))),
        Clock::Other => None,
    });
    // They are up: what is to be done is neither to start nor to give up any of them.
    if let Some((member, by)) = by_clock.max_by_key(|(member, _)| member.member) {
        return format!(
            "this server is without the others for {}: server {} answers, and by the clock of this machine, which says {}, its certificate is \
             not valid; the clock is {by} that, or more: set the clock of this machine, and the servers find each other",
            time(alone),
            member.title(),
            Timestamp::now().strftime("%Y-%m-%d %H:%M UTC")
        );
    }
    let dir = status.data_dir.display();
    if missing.len() * 2 < count {
        return format!(
            "this server has heard of no leader for {}, although it hears of a majority of the {count} servers: they elect one within \
             seconds, or one leads that does not reach this server; their logs say more",
            time(alone)
        );
    }
    format!(
        "a majority of the {count} servers is missing, so that nothing can be written and no read is certain; pods run on. Missing: {}. \
         Start them; where they run, at other addresses than these, start each but one again with `--peer HOST:PORT` of another one. Only if they \
         are lost for good: stop this server, run `coracle recover --data-dir {dir}` on its machine, and start \
         it again; it goes on alone then, with what it has",
        missing.join(", ")
    )
}

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { "an unknown address" } else { text }
}

fn time(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// What is wrong with servers of which one leads.
fn servers_in_words(members: &[Member]) -> Vec<String> {
    let voters: Vec<&Member> = members.iter().filter(|member| member.role == "voter").collect();
    let mut words = Vec::new();
    if !members.is_empty() && !members.iter().any(|member| member.leads) {
        words.push("no server leads at this moment: an election takes a second or two".to_owned());
    }
    // Only the leader knows; one of whom it never heard has been away since it began to lead.
    let is_leader_asked = members.iter().any(|member| member.leads && member.heard_milliseconds.is_some());
    let is_missing = |member: &Member| member.heard_milliseconds.is_none_or(|heard| heard >= MISSING_AFTER_MS);
    for member in members.iter().filter(|member| member.is_absent()) {
        words.push(format!(
            "server {} was given a place and has not come: if its start has failed, `coracle member remove {}` and let it join again",
            member.title(),
            member.member
        ));
    }
    let members: Vec<&Member> = members.iter().filter(|member| !member.is_absent()).collect();
    // Whoever has lost what it has acknowledged is not to be started: its alarm says what is to be done.
    for member in members.iter().filter(|member| is_leader_asked && is_missing(member) && !member.has_lost) {
        if member.clock == Some(Clock::Other) {
            words.push(format!(
                "server {} at {} answers, and refuses the certificates of the others by the clock of its machine: set that clock",
                member.title(),
                member.address
            ));
            continue;
        }
        words.push(format!(
            "server {} at {} is missing: start it; if it is gone for good, `coracle member remove {}` and let another join",
            member.title(),
            member.address,
            member.member
        ));
    }
    for member in members.iter().filter(|member| member.role == "learner" && member.waits) {
        words.push(format!("server {} fetches images, and counts when it has all", member.title()));
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
fn certificates_in_words(certificates: &[Certificate]) -> Vec<String> {
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
            waits: false,
            has_lost: false,
            clock: None,
        }
    }

    #[test]
    fn without_a_majority_it_is_said_who_is_missing_since_when_and_what_to_do() {
        let mut status: Status = serde_json::from_value(serde_json::json!({
            "apiUrl": "", "registry": "", "dataDir": "/data", "version": "", "revision": 1, "term": 1, "member": 1,
            "diskBytes": 0, "memoryBytes": null, "processId": 1, "aloneMilliseconds": 90_000,
        }))
        .unwrap();
        let voter = |number: u64, heard: Option<u64>| member(number, "voter", false, heard);
        status.members =
            vec![voter(1, Some(0)), voter(2, Some(7_500_000)), voter(3, None), member(4, "learner", false, None)];
        let words = status.in_words();
        assert_eq!(words.len(), 1, "{words:?}");
        for part in ["s2 (2) at h2:1 for 2 h, s3 (3) at h3:1 for 90 s.", "`coracle recover --data-dir /data`"] {
            assert!(words[0].contains(part), "{part}: {}", words[0]);
        }
        assert!(!words[0].contains("s1") && !words[0].contains("s4"), "{}", words[0]);
        // Those that answer are not lost.
        let others = status.members.clone();
        status.members[1].clock = Some(Clock::Ahead(40 * 86_400 + 5));
        let words = status.in_words();
        assert!(words[0].contains("40 days ahead of") && words[0].contains("s2 (2)"), "{}", words[0]);
        assert!(!words[0].contains("coracle recover"), "{}", words[0]);
        status.members = others;
        // With two of three there is nothing to recover.
        status.members[1] = voter(2, Some(100));
        assert!(!status.in_words()[0].contains("coracle recover"));
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
            (vec![leader.clone(), well(2), Member { has_lost: true, ..member(3, "voter", false, None) }], None),
            (
                vec![leader.clone(), well(2), Member { clock: Some(Clock::Other), ..member(3, "voter", false, None) }],
                Some("set that clock"),
            ),
            (vec![leader.clone(), well(2)], Some("2 voters are no safer than 1")),
            (vec![leader.clone(), learner], Some("1 of the servers do not count yet")),
            (vec![leader, member(4, "absent", false, None)], Some("coracle member remove 4")),
            (vec![well(2), well(3), well(5)], Some("no server leads at this moment")),
        ] {
            let words = servers_in_words(&members);
            match expected {
                None => assert_eq!(words, Vec::<String>::new()),
                Some(part) => assert!(words.len() == 1 && words[0].contains(part), "{words:?}"),
            }
        }
    }
}
