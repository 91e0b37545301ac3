//! Questions as they come and answers as they go: DNS messages, and nothing of where names or
//! answers come from.

use std::net::IpAddr;

use hickory_resolver::proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::names::{Found, Names, Place};

/// Seconds for which the workload may keep an answer of ours, as Istio's.
const TTL: u32 = 30;
/// Longest answer over UDP to one who does not say what it can take. RFC 1035 4.2.1.
pub(super) const UDP_MIN: usize = 512;
/// Longest answer over UDP whatever is said.
pub(super) const UDP_MAX: usize = 4096;
/// What we say we can take over UDP.
const UDP_OURS: u16 = 1232;
/// Bytes of a message's header.
pub(super) const HEADER: usize = 12;

/// One question that can be answered or passed on.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) message: Message,
    /// Lower case, without the last dot.
    pub(super) name: String,
    /// Longest answer in bytes.
    pub(super) longest: usize,
}

/// What a message was.
pub(super) enum Asked {
    Question(Box<Question>),
    /// Nothing we answer: this instead.
    Refused(Vec<u8>),
    /// No question at all, or not even a header: silence.
    Nothing,
}

/// Reads one message.
pub(super) fn read(bytes: &[u8], udp: bool) -> Asked {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Asked::Nothing };
    // QR: never answer an answer, or two of us could talk for ever.
    if header[2] & 0x80 != 0 {
        return Asked::Nothing;
    }
    let id = u16::from_be_bytes([header[0], header[1]]);
    let Ok(message) = Message::from_vec(bytes) else {
        return refusal(&Message::error_msg(id, OpCode::Query, ResponseCode::FormErr));
    };
    let code = match (message.metadata.op_code, &message.queries[..]) {
        (OpCode::Query, [query]) if query.query_class() == DNSClass::IN => None,
        (OpCode::Query, [_]) => Some(ResponseCode::Refused),
        (OpCode::Query, _) => Some(ResponseCode::FormErr),
        _ => Some(ResponseCode::NotImp),
    };
    if let Some(code) = code {
        return refusal(&Message::error_msg(id, message.metadata.op_code, code));
    }
    let name = message.queries[0].name().to_lowercase().to_ascii();
    let name = name.trim_end_matches('.').to_owned();
    let said = message.edns.as_ref().map_or(UDP_MIN, |edns| usize::from(edns.max_payload()));
    let longest = if udp { said.clamp(UDP_MIN, UDP_MAX) } else { usize::from(u16::MAX) };
    Asked::Question(Box::new(Question { message, name, longest }))
}

fn refusal(message: &Message) -> Asked {
    message.to_vec().map_or(Asked::Nothing, Asked::Refused)
}

impl Question {
    pub(super) fn query_type(&self) -> RecordType {
        self.message.queries[0].query_type()
    }

    /// The answer of the mesh; `None` when it is not the mesh's to give. A name that has addresses
    /// of the other IP version only is there, it has none of this one.
    pub(super) fn of_mesh(&self, names: &Names, place: &Place, turn: usize) -> Option<Message> {
        let ty = self.query_type();
        // Service bindings would name addresses past those we answer with.
        let is_ours =
            matches!(ty, RecordType::A | RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB);
        let found = names.find(&self.name, place).filter(|_| is_ours)?;
        let mut answer = self.reply(ResponseCode::NoError);
        answer.metadata.authoritative = true;
        answer.answers = records(self.message.queries[0].name(), &found, ty, turn);
        Some(answer)
    }

    /// An answer without records.
    pub(super) fn reply(&self, code: ResponseCode) -> Message {
        let asked = &self.message;
        let mut reply = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
        reply.metadata = Metadata::response_from_request(&asked.metadata);
        reply.metadata.recursion_available = true;
        reply.metadata.response_code = code;
        reply.queries.clone_from(&asked.queries);
        if asked.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_OURS);
            reply.edns = Some(edns);
        }
        reply
    }

    /// The bytes of an answer, cut to what the client can take. `None`: it cannot be written.
    pub(super) fn encode(&self, mut answer: Message) -> Option<Vec<u8>> {
        loop {
            let bytes = answer.to_vec().ok()?;
            if bytes.len() <= self.longest {
                return Some(bytes);
            }
            answer.metadata.truncation = true;
            answer.authorities.clear();
            answer.additionals.clear();
            if answer.answers.is_empty() {
                return None;
            }
            answer.answers.truncate(answer.answers.len() / 2);
        }
    }
}

/// Addresses begin with another one each time, so that clients that take the first spread.
fn records(asked: &Name, found: &Found<'_>, ty: RecordType, turn: usize) -> Vec<Record> {
    let mut ips: Vec<IpAddr> = match ty {
        RecordType::A => found.host.v4.iter().copied().map(IpAddr::V4).collect(),
        RecordType::AAAA => found.host.v6.iter().copied().map(IpAddr::V6).collect(),
        _ => Vec::new(),
    };
    if !ips.is_empty() {
        let first = turn % ips.len();
        ips.rotate_left(first);
    }
    let alias =
        found.alias_of.as_deref().and_then(|name| Name::from_ascii(format!("{name}.")).ok());
    let owner = alias.as_ref().unwrap_or(asked);
    let alias = alias
        .iter()
        .map(|name| Record::from_rdata(asked.clone(), TTL, RData::CNAME(CNAME(name.clone()))));
    let addresses = ips.into_iter().map(|ip| {
        let data = match ip {
            IpAddr::V4(v4) => RData::A(A(v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
        };
        Record::from_rdata(owner.clone(), TTL, data)
    });
    alias.chain(addresses).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hickory_resolver::proto::op::Query;
    use weft_xds::nds::{NameInfo, NameTable};

    use super::*;

    fn question(name: &str, ty: RecordType) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), ty));
        message.to_vec().unwrap()
    }

    fn names(ips: usize) -> Names {
        let ips = (0..ips).map(|n| format!("10.0.{}.{}", n / 256, n % 256)).collect();
        let info = NameInfo { ips, ..NameInfo::default() };
        Names::new(NameTable { table: BTreeMap::from([("api.example.com".into(), info)]) })
    }

    fn ask(names: &Names, name: &str, ty: RecordType, turn: usize) -> Option<Message> {
        let Asked::Question(question) = read(&question(name, ty), true) else { panic!("{name}") };
        let place = Place::new("shop", "shop.svc.cluster.local", Some("shop.svc.cluster.local"));
        let answer = question.of_mesh(names, &place, turn)?;
        Some(Message::from_vec(&question.encode(answer).unwrap()).unwrap())
    }

    #[test]
    fn addresses_of_both_versions_and_of_one() {
        let names = names(2);
        let a = ask(&names, "API.example.com.", RecordType::A, 0).unwrap();
        assert!(a.metadata.authoritative && a.metadata.recursion_desired && !a.metadata.truncation);
        assert_eq!((a.metadata.id, a.answers.len(), a.answers[0].ttl), (7, 2, 30));
        assert_eq!(a.answers[0].data.to_string(), "10.0.0.0");
        assert_eq!(a.answers[0].name.to_ascii(), "API.example.com.", "as it was asked");
        let turned = ask(&names, "api.example.com.", RecordType::A, 1).unwrap();
        assert_eq!(turned.answers[0].data.to_string(), "10.0.0.1");
        for other in [RecordType::AAAA, RecordType::HTTPS] {
            let none = ask(&names, "api.example.com.", other, 0).unwrap();
            assert_eq!(none.metadata.response_code, ResponseCode::NoError, "{other}");
            assert!(none.answers.is_empty(), "{other}");
        }
        assert!(ask(&names, "api.example.com.", RecordType::MX, 0).is_none());
        assert!(ask(&names, "other.example.com.", RecordType::A, 0).is_none());
        let alias = "api.example.com.shop.svc.cluster.local.";
        let alias = ask(&names, alias, RecordType::A, 0).unwrap();
        assert_eq!(alias.answers[0].data.to_string(), "api.example.com.");
        assert_eq!(alias.answers[1].name.to_ascii(), "api.example.com.");
    }

    #[test]
    fn a_long_answer_is_cut_and_says_so() {
        let cut = ask(&names(600), "api.example.com.", RecordType::A, 0).unwrap();
        assert!(cut.metadata.truncation);
        assert!(!cut.answers.is_empty() && cut.to_vec().unwrap().len() <= UDP_MIN);
    }

    #[test]
    fn what_is_no_question_is_refused_or_left_alone() {
        let code = |bytes: &[u8]| match read(bytes, true) {
            Asked::Refused(bytes) => {
                Some(Message::from_vec(&bytes).unwrap().metadata.response_code)
            }
            Asked::Nothing => None,
            Asked::Question(_) => panic!("a question"),
        };
        let good = question("a.", RecordType::A);
        assert_eq!(code(&good[..8]), None);
        assert_eq!(code(&good[..14]), Some(ResponseCode::FormErr));
        let mut answer = good.clone();
        answer[2] |= 0x80;
        assert_eq!(code(&answer), None, "answers are not answered");
        let mut update = good.clone();
        update[2] |= 5 << 3;
        assert!(matches!(code(&update), Some(ResponseCode::NotImp | ResponseCode::FormErr)));
        let mut chaos = good.clone();
        *chaos.last_mut().unwrap() = 3;
        assert_eq!(code(&chaos), Some(ResponseCode::Refused));
        let empty = Message::new(1, MessageType::Query, OpCode::Query).to_vec().unwrap();
        assert_eq!(code(&empty), Some(ResponseCode::FormErr));
    }
}
