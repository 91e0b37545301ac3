//! A client that sends frames as they are and notes what comes back, stage by stage.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use weft_http::h2::{
    FrameHead, FrameType,
    frame::{Flags, goaway, headers_payload},
    hpack::{Decoder, FieldSink, HeadLimits},
    write,
};

const LIMITS: HeadLimits = HeadLimits { list_bytes_max: 1 << 20, fields_max: 1000 };

/// One connection.
pub struct Talk {
    stream: TcpStream,
    input: Vec<u8>,
    decoder: Decoder,
    pongs: u64,
    pub answers: BTreeMap<u32, Answer>,
    /// GOAWAY with an error, or the end.
    pub gone: bool,
}

/// What came back on one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub ended: bool,
    pub reset: Option<u32>,
}

impl Talk {
    pub async fn connect(address: SocketAddr) -> Talk {
        let stream = TcpStream::connect(address).await.expect("the proxy listens");
        let _ = stream.set_nodelay(true);
        Talk {
            stream,
            input: Vec::new(),
            decoder: Decoder::new(4096),
            pongs: 0,
            answers: BTreeMap::new(),
            gone: false,
        }
    }

    /// Sends `bytes` and a PING, and reads until the PING is answered and nothing more comes.
    pub async fn say(&mut self, bytes: &[u8], quiet: Duration) {
        if self.gone {
            return;
        }
        let mut bytes = bytes.to_vec();
        write::head(&mut bytes, FrameType::Ping, 0, 0, 8);
        bytes.extend_from_slice(b"are you?");
        // Whoever has given up may have closed already.
        let _ = self.stream.write_all(&bytes).await;
        let answered = self.pongs + 1;
        let mut part = vec![0; 16 * 1024];
        loop {
            // Who has not answered the PING is still at work, or waits for the rest of a frame.
            let patience = if self.pongs < answered { 4 * quiet } else { quiet };
            match tokio::time::timeout(patience, self.stream.read(&mut part)).await {
                Ok(Ok(0) | Err(_)) => {
                    self.gone = true;
                    return;
                }
                Ok(Ok(count)) => {
                    self.input.extend_from_slice(&part[..count]);
                    self.take_frames();
                }
                Err(_) => return,
            }
        }
    }

    fn take_frames(&mut self) {
        while let Some(head) = FrameHead::peek(&self.input) {
            if self.input.len() < head.frame_len() {
                return;
            }
            let frame: Vec<u8> = self.input.drain(..head.frame_len()).collect();
            self.note(&head, &frame[9..]);
        }
    }

    fn note(&mut self, head: &FrameHead, payload: &[u8]) {
        match head.kind {
            FrameType::Headers => {
                assert!(head.flags.has(Flags::END_HEADERS), "the application's heads are short");
                let at = headers_payload(head, payload).expect("a sound frame").fragment;
                let mut sink = FieldSink::new();
                self.decoder.decode(&payload[at], &LIMITS, &mut sink).expect("a sound block");
                let answer = self.answers.entry(head.stream).or_default();
                // Trailers have no status.
                answer.status = sink.take_response().map_or(answer.status, |head| head.status);
                answer.ended |= head.end_stream();
            }
            FrameType::Data => {
                self.answers.entry(head.stream).or_default().ended |= head.end_stream();
            }
            FrameType::RstStream => {
                let code = u32::from_be_bytes(payload.try_into().expect("four bytes"));
                self.answers.entry(head.stream).or_default().reset = Some(code);
            }
            FrameType::Ping if head.is_ack() => self.pongs += u64::from(payload == b"are you?"),
            FrameType::GoAway => {
                let code = goaway(payload).expect("a sound frame").code;
                self.gone |= code.0 != 0;
            }
            _ => {}
        }
    }
}
