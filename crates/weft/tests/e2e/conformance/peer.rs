//! A client that says exactly what a case says, and sees what comes back.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    Expect, Verdict,
    cases::{self, Case, Step},
};

/// What has come back so far.
#[derive(Debug, Default)]
struct Seen {
    settings: bool,
    settings_acks: usize,
    pongs: Vec<[u8; 8]>,
    goaway: Option<u32>,
    resets: BTreeMap<u32, u32>,
    /// Content bytes by stream, and whether the stream has ended.
    answers: BTreeMap<u32, (usize, bool)>,
    /// Streams whose answer is 400.
    bad_request: BTreeSet<u32>,
    closed: bool,
}

struct Peer {
    stream: TcpStream,
    input: Vec<u8>,
    seen: Seen,
    until: Instant,
}

/// Runs one case on a connection of its own, which may take as long as `patience`.
pub async fn run(address: SocketAddr, case: &Case, patience: Duration) -> Verdict {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let _ = stream.set_nodelay(true);
    let until = Instant::now() + patience;
    let mut peer = Peer { stream, input: Vec::new(), seen: Seen::default(), until };
    for step in &case.steps {
        let alive = match step {
            Step::Send(bytes) => peer.send(bytes).await,
            Step::Settled => peer.wait(|seen| seen.settings && seen.settings_acks > 0).await,
            Step::Answered(id) => {
                peer.wait(|seen| seen.answers.get(id).is_some_and(|(_, ended)| *ended)).await
            }
            Step::Content(id, bytes) => {
                peer.wait(|seen| seen.answers.get(id).is_some_and(|(got, _)| got >= bytes)).await
            }
        };
        if !alive {
            break;
        }
    }
    match &case.expect {
        // Whatever came before has been dealt with once a PING behind it is answered.
        Expect::Ignored | Expect::Held(..) | Expect::Pongs(_) => {
            peer.send(&cases::ping(*b"are you?")).await;
            peer.wait(|seen| seen.pongs.contains(b"are you?")).await;
        }
        _ => {}
    }
    peer.wait(|seen| met(&case.expect, seen)).await;
    match met(&case.expect, &peer.seen) {
        true => Ok(()),
        false => Err(format!("{:?}", peer.seen)),
    }
}

/// A client that asks the same again and again on one connection.
pub struct Client {
    peer: Peer,
    next: u32,
}

impl Client {
    pub async fn connect(address: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let until = Instant::now() + patience;
        let mut peer = Peer { stream, input: Vec::new(), seen: Seen::default(), until };
        peer.send(&cases::opening(&[])).await;
        peer.wait(|seen| seen.settings && seen.settings_acks > 0).await;
        Ok(Self { peer, next: 1 })
    }

    /// One request; false when its answer did not come whole.
    pub async fn ask(&mut self, patience: Duration) -> bool {
        let id = self.next;
        self.next += 2;
        self.peer.until = Instant::now() + patience;
        // Its answers are small, but they add up.
        let asked = [cases::window(0, 1024), cases::get(id)].concat();
        self.peer.seen.answers.clear();
        self.peer.send(&asked).await
            && self.peer.wait(|seen| seen.answers.get(&id).is_some_and(|(_, ended)| *ended)).await
    }
}

/// As the public suites judge: who has closed the connection or said GOAWAY with the right code has
/// also dealt with an error of a stream.
fn met(expect: &Expect, seen: &Seen) -> bool {
    let gone = |codes: &[u32]| match seen.goaway {
        Some(code) => codes.contains(&code),
        None => seen.closed,
    };
    match expect {
        Expect::Answer(id) => seen.answers.get(id).is_some_and(|(_, ended)| *ended),
        Expect::Ignored => seen.pongs.contains(b"are you?") && seen.goaway.is_none(),
        Expect::Connection(codes) => gone(codes),
        Expect::Stream(id, codes) => {
            gone(codes) || seen.resets.get(id).is_some_and(|code| codes.contains(code))
        }
        Expect::Malformed(id) => {
            met(&Expect::Stream(*id, &[0x1]), seen) || seen.bad_request.contains(id)
        }
        Expect::SettingsAcks(count) => seen.settings_acks >= *count,
        Expect::Pongs(opaque) => {
            seen.pongs.iter().filter(|pong| *pong != b"are you?").eq(opaque.iter())
                && seen.pongs.contains(b"are you?")
        }
        Expect::Held(id, bytes) => {
            seen.pongs.contains(b"are you?")
                && seen.answers.get(id).is_some_and(|(got, ended)| got == bytes && !ended)
        }
        Expect::Refused(codes) => {
            gone(codes) || seen.resets.values().any(|code| codes.contains(code))
        }
    }
}

impl Peer {
    /// False when the proxy has closed.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Reads until `enough`; false when that does not come.
    async fn wait(&mut self, enough: impl Fn(&Seen) -> bool) -> bool {
        while !enough(&self.seen) {
            if self.seen.closed {
                return false;
            }
            let mut part = [0; 2 * 1024];
            match timeout_at(self.until, self.stream.read(&mut part)).await {
                Err(_) => return false,
                Ok(Ok(0)) => self.seen.closed = true,
                Ok(Err(error)) => self.seen.closed = error.kind() != io::ErrorKind::Interrupted,
                Ok(Ok(count)) => {
                    self.input.extend_from_slice(&part[..count]);
                    self.take_frames();
                }
            }
        }
        true
    }

    fn take_frames(&mut self) {
        while let Some(head) = self.input.first_chunk::<9>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (kind, flags) = (head[3], head[4]);
            let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
            if self.input.len() < 9 + length {
                return;
            }
            let payload: Vec<u8> = self.input.drain(..9 + length).skip(9).collect();
            self.note(kind, flags, id, &payload);
        }
    }

    fn note(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) {
        let seen = &mut self.seen;
        let number = |at: usize| {
            payload
                .get(at..at + 4)
                .map_or(u32::MAX, |four| u32::from_be_bytes(four.try_into().expect("four bytes")))
        };
        let ends = flags & 0x1 != 0;
        match kind {
            0x0 => {
                let answer = seen.answers.entry(id).or_default();
                answer.0 += payload.len();
                answer.1 |= ends;
            }
            0x1 => {
                seen.answers.entry(id).or_default().1 |= ends;
                // `:status: 400` of the static table; nobody says it in another way.
                if payload.first() == Some(&0x8c) {
                    seen.bad_request.insert(id);
                }
            }
            0x3 => drop(seen.resets.insert(id, number(0))),
            0x4 if ends => seen.settings_acks += 1,
            0x4 => seen.settings = true,
            0x6 if ends => seen.pongs.extend(<[u8; 8]>::try_from(payload).ok()),
            0x7 => seen.goaway = Some(number(4)),
            _ => {}
        }
    }
}
