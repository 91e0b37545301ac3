//! Questions that are not the mesh's: to the name servers of resolv.conf, one after the other, and
//! their answers for as long as they may be kept. Everything is bounded: questions under way, time,
//! answers kept.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{RData, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::answer::{HEADER, Question, UDP_MAX};
use super::serve::Counters;

/// Questions under way at name servers; further ones fail at once.
const PENDING_MAX: usize = 1024;
/// How long one name server may take; then it is the next one's turn.
const SERVER_MAX: Duration = Duration::from_secs(2);
/// How often each name server is asked: datagrams get lost.
const ROUNDS: usize = 2;
/// How long all of them together may take: the C library waits for as long.
const ALL_MAX: Duration = Duration::from_secs(5);
/// Answers kept.
const KEPT_MAX: usize = 1024;
/// The longest an answer is kept, in seconds.
const KEPT_SECONDS_MAX: u32 = 300;

pub(super) struct Forwarder {
    servers: Vec<SocketAddr>,
    pending: Semaphore,
    kept: Mutex<HashMap<Key, Kept>>,
    counters: Counters,
}

/// Answers differ by these alone.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    name: String,
    ty: RecordType,
    dnssec_ok: bool,
    checking_disabled: bool,
}

struct Kept {
    answer: Message,
    since: Instant,
    /// Seconds.
    ttl: u32,
}

impl Forwarder {
    pub(super) fn new(servers: Vec<SocketAddr>, counters: Counters) -> Forwarder {
        let (pending, kept) = (Semaphore::new(PENDING_MAX), Mutex::default());
        Forwarder { servers, pending, kept, counters }
    }

    /// The answer's bytes; `bytes` is the question as it came. A failure of all name servers is an
    /// answer, too.
    pub(super) async fn answer(
        &self,
        question: &Question,
        bytes: &[u8],
        udp: bool,
    ) -> Option<Vec<u8>> {
        if let Some(kept) = self.kept(question) {
            self.counters.kept.inc();
            return question.encode(kept);
        }
        let Ok(_place) = self.pending.try_acquire() else {
            self.counters.overflow.inc();
            return question.encode(question.reply(ResponseCode::ServFail));
        };
        match tokio::time::timeout(ALL_MAX, self.ask_all(question, bytes, udp)).await {
            Ok(Some(answer)) => {
                self.counters.forwarded.inc();
                Some(answer)
            }
            Ok(None) | Err(_) => {
                self.counters.failed.inc();
                question.encode(question.reply(ResponseCode::ServFail))
            }
        }
    }

    /// The first good answer; else what one of them said of its failure.
    async fn ask_all(&self, question: &Question, bytes: &[u8], udp: bool) -> Option<Vec<u8>> {
        let mut failure = None;
        for _ in 0..ROUNDS {
            for server in &self.servers {
                let ask = async {
                    match udp {
                        true => over_udp(*server, bytes).await,
                        false => over_tcp(*server, bytes).await,
                    }
                };
                match tokio::time::timeout(SERVER_MAX, ask).await {
                    Ok(Ok(answer)) if answer.is_failure() => failure = Some(answer.bytes),
                    Ok(Ok(answer)) => {
                        self.keep(question, answer.message);
                        return Some(answer.bytes);
                    }
                    Ok(Err(error)) => tracing::debug!(%server, %error, "name server fails"),
                    Err(_) => tracing::debug!(%server, "name server does not answer"),
                }
            }
            if failure.is_some() {
                return failure;
            }
        }
        None
    }

    fn kept(&self, question: &Question) -> Option<Message> {
        let mut kept = lock(&self.kept);
        let key = Key::of(question);
        let Kept { answer, since, ttl } = kept.get(&key)?;
        let age = u32::try_from(since.elapsed().as_secs()).unwrap_or(u32::MAX);
        if age >= *ttl {
            kept.remove(&key);
            return None;
        }
        let mut answer = answer.clone();
        for record in answer.answers.iter_mut().chain(&mut answer.authorities) {
            record.decrement_ttl(age);
        }
        answer.metadata.id = question.message.metadata.id;
        answer.metadata.recursion_desired = question.message.metadata.recursion_desired;
        // The same name, perhaps in other letters.
        answer.queries.clone_from(&question.message.queries);
        answer.edns = question.reply(ResponseCode::NoError).edns;
        Some(answer)
    }

    fn keep(&self, question: &Question, answer: Option<Message>) {
        let Some((answer, ttl)) =
            answer.and_then(|answer| keepable(&answer).map(|ttl| (answer, ttl)))
        else {
            return;
        };
        let mut kept = lock(&self.kept);
        if kept.len() >= KEPT_MAX {
            kept.retain(|_, kept| kept.since.elapsed().as_secs() < u64::from(kept.ttl));
        }
        if kept.len() < KEPT_MAX {
            kept.insert(Key::of(question), Kept { answer, since: Instant::now(), ttl });
        }
    }
}

impl Key {
    fn of(question: &Question) -> Key {
        let Question { message, name, .. } = question;
        Key {
            name: name.clone(),
            ty: question.query_type(),
            dnssec_ok: message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
            checking_disabled: message.metadata.checking_disabled,
        }
    }
}

/// For how many seconds an answer may be kept: the shortest of its records; of a name without any,
/// what its zone says of that (RFC 2308 5).
fn keepable(answer: &Message) -> Option<u32> {
    let code = answer.metadata.response_code;
    if answer.metadata.truncation || !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
    {
        return None;
    }
    let zone = answer.authorities.iter().filter_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    });
    let ttl = match (code, answer.answers.is_empty()) {
        (ResponseCode::NoError, false) => answer.answers.iter().map(|record| record.ttl).min(),
        _ => zone.min(),
    };
    ttl.map(|ttl| ttl.min(KEPT_SECONDS_MAX)).filter(|ttl| *ttl > 0)
}

/// What a name server said, under the client's id.
struct Answer {
    bytes: Vec<u8>,
    /// If we can read it; the client may know records that we do not.
    message: Option<Message>,
}

impl Answer {
    /// Of the server, not of the name.
    fn is_failure(&self) -> bool {
        let code = self.message.as_ref().map(|message| message.metadata.response_code);
        matches!(code, Some(ResponseCode::ServFail | ResponseCode::Refused))
    }
}

async fn over_udp(server: SocketAddr, question: &[u8]) -> io::Result<Answer> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A port and an id of its own for each question: answers cannot be guessed.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let id = rand::random::<u16>();
    socket.send(&with_id(question, id)).await?;
    let mut buffer = [0; UDP_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = accept(&buffer[..length], id, question) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(server).await?;
    let id = rand::random::<u16>();
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &with_id(question, id)].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    accept(&answer, id, question).ok_or_else(|| io::Error::other("no answer to the question"))
}

fn with_id(bytes: &[u8], id: u16) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[..2].copy_from_slice(&id.to_be_bytes());
    bytes
}

/// Takes an answer to exactly this question.
fn accept(bytes: &[u8], id: u16, question: &[u8]) -> Option<Answer> {
    let end = question_end(question)?;
    let asked = bytes.get(HEADER..end)?.eq_ignore_ascii_case(question.get(HEADER..end)?);
    let is_response = bytes[2] & 0x80 != 0;
    if !(asked && is_response && bytes[..2] == id.to_be_bytes()) {
        return None;
    }
    let message = Message::from_vec(bytes).ok();
    Some(Answer { bytes: with_id(bytes, u16::from_be_bytes([question[0], question[1]])), message })
}

/// Where the first entry of the question section ends: labels, type and class. RFC 1035 4.1.2.
fn question_end(bytes: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 5),
            length @ 1..=63 => at += usize::from(length) + 1,
            // A pointer in the only name of a message leads nowhere.
            _ => return None,
        }
    }
}

/// Nothing under this lock can leave data half-written, so poisoning changes nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
