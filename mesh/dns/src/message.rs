//! A query's bytes to its answer's.

use std::net::IpAddr;

use simple_dns::rdata::{A, AAAA, CNAME, NS, OPT, PTR, RData, SOA, SRV};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE};

use crate::zone::{Answer, Data, Kind, server};

/// A query has so many bytes at most.
pub(crate) const QUERY_BYTES_MAX: usize = 4096;
/// An answer in a datagram has so many at most, where its client says nothing,
const PLAIN_BYTES: usize = 512;
/// and where it says that it takes more: as many as pass any network in one piece (DNS flag day 2020).
const EDNS_BYTES: u16 = 1232;
/// For so many seconds an answer may be kept, also that there is none.
const TTL: u32 = 5;
/// Records beside the question: EDNS, and what else a client may send with it.
const ADDITIONAL_MAX: u16 = 4;
const HEADER_BYTES: usize = 12;

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Datagram,
    Stream,
}

/// The answer; `None` to what is no query, which whoever sent it is not told: it may be an answer of somebody's.
pub(crate) fn answer(query: &[u8], by: By, ask: impl FnOnce(&[&str], Kind) -> Answer) -> Option<Vec<u8>> {
    let header = query.get(..HEADER_BYTES)?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (id, flags) = (word(0), word(2));
    if flags >> 15 == 1 {
        return None;
    }
    let mut reply = Packet::new_reply(id);
    if flags & PacketFlag::RECURSION_DESIRED.bits() != 0 {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    let refuse = |mut reply: Packet<'_>, code: RCODE| {
        *reply.rcode_mut() = code;
        reply.build_bytes_vec().ok()
    };
    let op = OPCODE::from(flags >> 11 & 0xf);
    if op != OPCODE::StandardQuery {
        // With the number that was asked for: the crate has no name for all of them.
        let mut bytes = refuse(reply, RCODE::NotImplemented)?;
        bytes[2] |= (flags >> 8) as u8 & 0b0111_1000;
        return Some(bytes);
    }
    // One question and nothing that is an answer (RFC 9619).
    if (word(4), word(6), word(8)) != (1, 0, 0) || word(10) > ADDITIONAL_MAX || query.len() > QUERY_BYTES_MAX {
        return refuse(reply, RCODE::FormatError);
    }
    let Ok(asked) = Packet::parse(query) else { return refuse(reply, RCODE::FormatError) };
    let Some(question) = asked.questions.first() else { return refuse(reply, RCODE::FormatError) };
    reply.questions.push(Question::new(question.qname.clone(), question.qtype, question.qclass, false));
    let room = match (by, asked.opt()) {
        (By::Stream, _) => usize::from(u16::MAX),
        (By::Datagram, Some(opt)) => usize::from(opt.udp_packet_size.clamp(PLAIN_BYTES as u16, EDNS_BYTES)),
        (By::Datagram, None) => PLAIN_BYTES,
    };
    if asked.opt().is_some() {
        // Of version 0, which is the only one there is; what the crate takes for a version is in the client's flags.
        *reply.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: EDNS_BYTES, version: 0 });
    }
    let kind = match (question.qclass, question.qtype) {
        (QCLASS::CLASS(CLASS::IN) | QCLASS::ANY, QTYPE::TYPE(of)) => match of {
            TYPE::A => Kind::A,
            TYPE::AAAA => Kind::Aaaa,
            TYPE::SRV => Kind::Srv,
            TYPE::PTR => Kind::Ptr,
            TYPE::CNAME => Kind::Cname,
            TYPE::SOA => Kind::Soa,
            TYPE::NS => Kind::Ns,
            _ => Kind::Other,
        },
        (QCLASS::CLASS(CLASS::IN) | QCLASS::ANY, QTYPE::ANY) => Kind::Any,
        // Another class, or the whole zone.
        _ => return refuse(reply, RCODE::Refused),
    };
    // A name of the cluster is in ASCII and has no dot within a label: what has is none.
    let labels: Option<Vec<&str>> = question.qname.as_bytes().map(plain).collect();
    let answered = labels.map_or(Answer::Refused, |labels| ask(&labels, kind));
    let (records, additional, zone) = match answered {
        Answer::Refused => return refuse(reply, RCODE::Refused),
        Answer::Failed => return refuse(reply, RCODE::ServerFailure),
        Answer::NoName(zone) => {
            *reply.rcode_mut() = RCODE::NameError;
            (Vec::new(), Vec::new(), zone)
        }
        Answer::Records { zone, records, additional } => (records, additional, zone),
    };
    reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
    reply.answers = records.iter().filter_map(|(name, data)| record(name, data, &zone)).collect();
    if reply.answers.is_empty() {
        reply.name_servers.extend(record(&zone, &Data::Soa, &zone));
    }
    reply.additional_records = additional.iter().filter_map(|(name, data)| record(name, data, &zone)).collect();
    let fits = |bytes: &Vec<u8>| bytes.len() <= room;
    if let Some(whole) = reply.build_bytes_vec_compressed().ok().filter(fits) {
        return Some(whole);
    }
    // What was not asked for goes first.
    reply.additional_records.clear();
    if let Some(without) = reply.build_bytes_vec_compressed().ok().filter(fits) {
        return Some(without);
    }
    // Nobody who came by a stream has another way to ask: he gets as many as go into it. They come in no order.
    while by == By::Stream && reply.answers.len() > 1 {
        reply.answers.truncate(reply.answers.len() / 2);
        if let Some(some) = reply.build_bytes_vec_compressed().ok().filter(fits) {
            return Some(some);
        }
    }
    // The client asks again by a stream.
    reply.answers.clear();
    reply.name_servers.clear();
    reply.set_flags(PacketFlag::TRUNCATION);
    reply.build_bytes_vec_compressed().ok()
}

fn plain(label: &[u8]) -> Option<&str> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    label.iter().all(is_plain).then(|| std::str::from_utf8(label).ok()).flatten()
}

/// `None` where a name is none that DNS could say, as somebody may have written one for an ExternalName.
fn record<'a>(name: &'a str, data: &'a Data, zone: &'a str) -> Option<ResourceRecord<'a>> {
    let read = |name: &'a str| Name::new(name).ok();
    let data = match data {
        Data::Address(IpAddr::V4(address)) => RData::A(A::from(*address)),
        Data::Address(IpAddr::V6(address)) => RData::AAAA(AAAA::from(*address)),
        Data::Cname(other) => RData::CNAME(CNAME(read(other)?)),
        Data::Ptr(other) => RData::PTR(PTR(read(other)?)),
        Data::Ns(other) => RData::NS(NS(read(other)?)),
        Data::Srv { port, target } => RData::SRV(SRV { priority: 0, weight: 100, port: *port, target: read(target)? }),
        Data::Soa => RData::SOA(SOA {
            mname: Name::new(&server(zone)).ok()?.into_owned(),
            rname: Name::new(&format!("hostmaster.{zone}")).ok()?.into_owned(),
            // Nobody copies the zone: no number of it has to grow.
            serial: 1,
            refresh: 7200,
            retry: 1800,
            expire: 86_400,
            minimum: TTL,
        }),
    };
    Some(ResourceRecord::new(read(name)?, CLASS::IN, TTL, data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query(name: &str, of: TYPE, room: Option<u16>) -> Vec<u8> {
        let mut query = Packet::new_query(77);
        query.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new(name).unwrap();
        query.questions.push(Question::new(name, of.into(), CLASS::IN.into(), false));
        *query.opt_mut() = room.map(|room| OPT { opt_codes: Vec::new(), udp_packet_size: room, version: 0 });
        query.build_bytes_vec().unwrap()
    }

    /// Says so many addresses of everything.
    fn many(count: u32) -> impl Fn(&[&str], Kind) -> Answer {
        move |labels, _| {
            let name = labels.join(".");
            let address = |n: u32| (name.clone(), Data::Address(IpAddr::from(n.to_be_bytes())));
            let additional = vec![address(count)];
            Answer::Records { zone: "cluster.local".to_owned(), records: (0..count).map(address).collect(), additional }
        }
    }

    #[test]
    fn an_answer_has_the_room_that_its_client_has_or_says_that_it_was_cut() {
        for (by, room, count, kept, has_additional, is_cut) in [
            (By::Datagram, None, 1, 1, true, false),
            // A header, a question, and 16 bytes each.
            (By::Datagram, None, 28, 28, true, false),
            (By::Datagram, None, 29, 29, false, false),
            (By::Datagram, None, 30, 0, false, true),
            (By::Datagram, Some(0), 28, 28, false, false),
            (By::Datagram, Some(0), 29, 0, false, true),
            (By::Datagram, Some(4096), 29, 29, true, false),
            (By::Datagram, Some(4096), 80, 0, false, true),
            (By::Stream, None, 1000, 1000, true, false),
            (By::Stream, Some(512), 1000, 1000, true, false),
            (By::Stream, None, 5000, 2500, false, false),
        ] {
            let query = query("big.n.svc.cluster.local", TYPE::A, room);
            let bytes = answer(&query, by, many(count)).unwrap();
            let reply = Packet::parse(&bytes).unwrap();
            let said = (reply.answers.len(), !reply.additional_records.is_empty());
            let case = format!("{by:?} {room:?} {count}: {} bytes", bytes.len());
            assert_eq!((said, reply.has_flags(PacketFlag::TRUNCATION)), ((kept, has_additional), is_cut), "{case}");
            let most = match (by, room) {
                (By::Stream, _) => usize::from(u16::MAX),
                (By::Datagram, None | Some(0)) => PLAIN_BYTES,
                (By::Datagram, Some(_)) => usize::from(EDNS_BYTES),
            };
            assert!(bytes.len() <= most, "{case}");
            assert!(reply.has_flags(PacketFlag::RESPONSE | PacketFlag::AUTHORITATIVE_ANSWER), "{case}");
            assert!(reply.has_flags(PacketFlag::RECURSION_DESIRED) && reply.id() == 77, "{case}");
            assert!(!reply.has_flags(PacketFlag::RECURSION_AVAILABLE), "nobody is asked for others");
            assert_eq!(reply.opt().is_some(), room.is_some(), "{case}");
        }
    }

    #[test]
    fn what_is_no_question_is_refused_or_not_answered() {
        let plain = query("a.n.svc.cluster.local", TYPE::A, Some(1232));
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = plain.clone();
            change(&mut bytes);
            let answered = answer(&bytes, By::Datagram, many(1))?;
            Some(Packet::parse(&answered).unwrap().rcode())
        };
        assert_eq!(changed(&|_| {}), Some(RCODE::NoError));
        assert_eq!(changed(&|bytes| bytes.truncate(11)), None);
        assert_eq!(changed(&|bytes| bytes[2] |= 0x80), None, "an answer");
        assert_eq!(changed(&|bytes| bytes[2] |= 5 << 3), Some(RCODE::NotImplemented), "an update");
        assert_eq!(changed(&|bytes| bytes[2] |= 15 << 3), Some(RCODE::NotImplemented), "nobody knows what");
        for (at, what) in [(5, "questions"), (7, "answers"), (9, "authorities")] {
            assert_eq!(changed(&|bytes| bytes[at] += 1), Some(RCODE::FormatError), "{what}");
            assert_eq!(changed(&|bytes| bytes[at - 1] = 0xff), Some(RCODE::FormatError), "{what}");
        }
        assert_eq!(changed(&|bytes| bytes[10] = 0xff), Some(RCODE::FormatError), "additional ones");
        assert_eq!(changed(&|bytes| bytes.truncate(20)), Some(RCODE::FormatError), "cut off");
        assert_eq!(changed(&|bytes| bytes[12] = 0xc0), Some(RCODE::FormatError), "a name that points to itself");
        let wants_dnssec = plain.len() - 4;
        assert_eq!(changed(&|bytes| bytes[wants_dnssec] |= 0x80), Some(RCODE::NoError));
        let classed = plain.len() - 12;
        assert_eq!(changed(&|bytes| bytes[classed] = 3), Some(RCODE::Refused), "chaos");
        assert_eq!(changed(&|bytes| bytes[13] = b'.'), Some(RCODE::Refused), "a dot in a label");
        let transfer = query("cluster.local", TYPE::Unknown(252), None);
        let reply = answer(&transfer, By::Stream, many(1)).unwrap();
        assert_eq!(Packet::parse(&reply).unwrap().rcode(), RCODE::Refused, "the zone as a whole");
    }

    proptest! {
        /// Whatever comes, nothing breaks, and an answer has the number of what it answers.
        #[test]
        fn any_bytes_are_answered_or_not(bytes in prop::collection::vec(any::<u8>(), 0..600), is_stream: bool) {
            check(&bytes, is_stream);
        }

        /// The same of what is nearly a query.
        #[test]
        fn a_spoilt_query_is_answered_or_not(
            name in "[a-z_]{1,20}(\\.[a-z0-9-]{1,20}){0,5}", of: u16, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(), is_cut: bool, is_stream: bool,
        ) {
            let mut bytes = query(&name, TYPE::from(of), Some(of));
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if is_cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            check(&bytes, is_stream);
        }
    }

    fn check(bytes: &[u8], is_stream: bool) {
        let by = if is_stream { By::Stream } else { By::Datagram };
        for count in [0, 1, 1000] {
            if let Some(answered) = answer(bytes, by, many(count)) {
                assert!(answered[..2] == bytes[..2] && answered[2] & 0x80 != 0);
                assert!(is_stream || answered.len() <= usize::from(EDNS_BYTES));
                Packet::parse(&answered).unwrap();
            }
        }
    }
}
