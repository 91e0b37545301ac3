//! gRPC-Web (grpc's PROTOCOL-WEB.md): browsers cannot read trailers, so they get them as a last
//! frame in the body, and perhaps all of it in base64. The application sees plain gRPC. What comes
//! out is what Envoy's filter sends, byte for byte.
//!
//! Owns the translation of heads and bytes. Must not know connections; nothing is buffered but the
//! rest of a base64 group, and the text of an answer that is no gRPC.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use weft_http::{BodyLength, Frame, HeaderList, RequestHead, ResponseHead, rules};
use weft_traffic::HttpConfig;
use weft_traffic::http::HttpFilter;

use crate::error::{ErrorKind, ProxyError};

/// How one caller speaks gRPC-Web.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Web {
    /// The request comes in base64.
    text_request: bool,
    /// The response is wanted in base64.
    text_response: bool,
}

/// Text of an answer that is no gRPC, kept for `grpc-message`; Envoy's limit.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 * 1024;

const BINARY: [&[u8]; 2] = [b"application/grpc-web", b"application/grpc-web+proto"];
const TEXT: [&[u8]; 2] = [b"application/grpc-web-text", b"application/grpc-web-text+proto"];

impl Web {
    /// How this request speaks gRPC-Web, if it does and the listener takes it.
    pub(crate) fn of(http: &HttpConfig, head: &RequestHead) -> Option<Web> {
        if !http.filters.iter().any(|filter| matches!(filter, HttpFilter::GrpcWeb)) {
            return None;
        }
        let kind = head.headers.get("content-type")?;
        let text_request = TEXT.contains(&kind);
        let accepts = head.headers.get("accept").unwrap_or_default();
        let web = Web { text_request, text_response: TEXT.contains(&accepts) };
        (text_request || BINARY.contains(&kind)).then_some(web)
    }

    /// Makes the request's head plain gRPC.
    pub(crate) fn open(head: &mut RequestHead, body: &mut BodyLength) {
        let headers = &mut head.headers;
        headers.remove("content-length");
        headers.set("content-type", "application/grpc");
        headers.set("te", "trailers");
        if !headers.contains("grpc-accept-encoding") {
            headers.append("grpc-accept-encoding", "identity");
        }
        if !body.is_empty() {
            *body = BodyLength::Streamed;
        }
    }

    /// Whether a response is neither gRPC nor gRPC-Web, so that its body is but an explanation.
    pub(crate) fn is_foreign(head: &ResponseHead) -> bool {
        let kind = head.headers.get("content-type").unwrap_or_default();
        let end = memchr::memchr(b';', kind).unwrap_or(kind.len());
        let web = BINARY.iter().any(|binary| kind[..end].trim_ascii().eq_ignore_ascii_case(binary));
        head.status != 200 || !(web || rules::is_grpc(&head.headers))
    }

    /// Says in the head alone what a body of no gRPC said; call after [`Web::answer`].
    pub(crate) fn explain(head: &mut ResponseHead, message: &[u8]) {
        let headers = &mut head.headers;
        headers.set("grpc-message", rules::grpc_message(message));
        if !headers.contains("grpc-status") {
            headers.append("grpc-status", rules::grpc_status_of(head.status).to_string());
        }
        headers.set("content-length", "0");
    }

    /// Makes a response's head gRPC-Web.
    pub(crate) fn answer(self, head: &mut ResponseHead) {
        head.headers.remove("content-length");
        let kind = if self.text_response { TEXT[1] } else { BINARY[1] };
        head.headers.set("content-type", kind);
    }
}

/// The bodies of one exchange.
pub(crate) struct Codec {
    web: Web,
    /// Base64 of the request that does not make a group of four yet.
    rest: BytesMut,
    response: Encoder,
}

impl Codec {
    pub(crate) fn new(web: Web) -> Self {
        Self { web, rest: BytesMut::new(), response: Encoder::default() }
    }

    pub(crate) fn web(&self) -> Web {
        self.web
    }

    /// Bytes of the request as gRPC; they may have to wait for more.
    ///
    /// # Errors
    /// 400 for what is no base64.
    pub(crate) fn request(&mut self, data: Bytes) -> Result<Bytes, ProxyError> {
        if !self.web.text_request {
            return Ok(data);
        }
        self.rest.extend_from_slice(&data);
        let whole = self.rest.split_to(self.rest.len() / 4 * 4);
        let mut decoded = Vec::with_capacity(whole.len() / 4 * 3);
        // Each message may be padded for itself: what follows padding starts anew.
        let mut text = &whole[..];
        while !text.is_empty() {
            let padding = memchr::memchr(b'=', text).map_or(text.len(), |at| at / 4 * 4 + 4);
            let (part, rest) = text.split_at(padding);
            STANDARD.decode_vec(part, &mut decoded).map_err(|_| ErrorKind::GrpcWebText)?;
            text = rest;
        }
        Ok(decoded.into())
    }

    /// The request has ended.
    ///
    /// # Errors
    /// 400 if it ended within a group.
    pub(crate) fn request_ended(&self) -> Result<(), ProxyError> {
        match self.rest.is_empty() {
            true => Ok(()),
            false => Err(ErrorKind::GrpcWebText.into()),
        }
    }

    /// A frame of the response in the caller's dialect; None: it waits for more.
    pub(crate) fn response(&mut self, frame: Frame) -> Option<Frame> {
        let data = match (frame, self.web.text_response) {
            (Frame::Data(data), false) => data,
            (Frame::Data(data), true) => self.response.encode(&data),
            (Frame::Trailers(trailers), false) => trailers_frame(&trailers),
            (Frame::Trailers(trailers), true) => STANDARD.encode(trailers_frame(&trailers)).into(),
        };
        (!data.is_empty()).then_some(Frame::Data(data))
    }
}

/// The trailers as the last frame of the body, its flag set to tell it from a message.
fn trailers_frame(trailers: &HeaderList) -> Bytes {
    let lines: usize =
        trailers.iter().map(|header| header.name.len() + header.value.len() + 3).sum();
    let mut frame = BytesMut::with_capacity(5 + lines);
    frame.put_u8(0x80);
    frame.put_u32(u32::try_from(lines).unwrap_or(u32::MAX));
    for header in trailers {
        frame.put_slice(&header.name.to_ascii_lowercase());
        frame.put_u8(b':');
        frame.put_slice(header.value);
        frame.put_slice(b"\r\n");
    }
    frame.freeze()
}

/// Base64 of length-prefixed messages, each padded for itself, however the stream is cut.
#[derive(Default)]
struct Encoder {
    /// Bytes left of the current message; unknown within its prefix.
    left: Option<u32>,
    /// What there is of the current prefix.
    prefix: Vec<u8>,
    /// Bytes of the message that do not make a group of three yet, its prefix included.
    rest: Vec<u8>,
}

const PREFIX_BYTES: usize = 5;

impl Encoder {
    fn encode(&mut self, mut data: &[u8]) -> Bytes {
        let mut out = String::with_capacity(data.len() / 3 * 4 + 16);
        while !data.is_empty() || self.left == Some(0) {
            let Some(left) = self.left else {
                let count = (PREFIX_BYTES - self.prefix.len()).min(data.len());
                self.prefix.extend_from_slice(&data[..count]);
                data = &data[count..];
                if let [_, length @ ..] = &self.prefix[..]
                    && let Ok(length) = <[u8; 4]>::try_from(length)
                {
                    self.left = Some(u32::from_be_bytes(length));
                    let prefix = std::mem::take(&mut self.prefix);
                    self.push(&prefix, &mut out);
                }
                continue;
            };
            let count = data.len().min(left as usize);
            self.push(&data[..count], &mut out);
            data = &data[count..];
            self.left = match left as usize - count {
                0 => {
                    STANDARD.encode_string(std::mem::take(&mut self.rest), &mut out);
                    None
                }
                more => Some(more as u32),
            };
        }
        out.into()
    }

    fn push(&mut self, mut data: &[u8], out: &mut String) {
        if !self.rest.is_empty() {
            let count = (3 - self.rest.len()).min(data.len());
            self.rest.extend_from_slice(&data[..count]);
            data = &data[count..];
            if self.rest.len() < 3 {
                return;
            }
            STANDARD.encode_string(&self.rest, out);
            self.rest.clear();
        }
        let (whole, rest) = data.split_at(data.len() / 3 * 3);
        STANDARD.encode_string(whole, out);
        self.rest.extend_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages() -> (Vec<u8>, String) {
        let (mut stream, mut text) = (Vec::new(), String::new());
        for size in [0_u32, 1, 2, 3, 300, 70_000] {
            let mut message = vec![0];
            message.extend_from_slice(&size.to_be_bytes());
            message.resize(message.len() + size as usize, b'x');
            STANDARD.encode_string(&message, &mut text);
            stream.extend_from_slice(&message);
        }
        (stream, text)
    }

    #[test]
    fn text_is_the_same_however_the_stream_is_cut() {
        let (stream, text) = messages();
        let web = Web { text_request: true, text_response: true };
        for cut in [1, 2, 3, 4, 5, 7, 1000, 100_000] {
            let mut codec = Codec::new(web);
            let mut encoded = Vec::new();
            for part in stream.chunks(cut) {
                match codec.response(Frame::Data(Bytes::copy_from_slice(part))) {
                    Some(Frame::Data(data)) => encoded.extend_from_slice(&data),
                    Some(Frame::Trailers(_)) => panic!("no trailers"),
                    None => {}
                }
            }
            assert!(encoded == text.as_bytes(), "encoded, cut into {cut}");
            let mut decoded = Vec::new();
            for part in text.as_bytes().chunks(cut) {
                decoded.extend_from_slice(&codec.request(Bytes::copy_from_slice(part)).unwrap());
            }
            codec.request_ended().unwrap();
            assert!(decoded == stream, "decoded, cut into {cut}");
        }
    }

    #[test]
    fn bad_text_is_refused() {
        let codec = || Codec::new(Web { text_request: true, text_response: true });
        for text in ["!!!!", "AA=A", "====", "A===", "AAA\n"] {
            assert!(codec().request(Bytes::from(text)).is_err(), "{text}");
        }
        let mut cut = codec();
        assert_eq!(cut.request("AAAAA".into()).unwrap(), &[0; 3][..]);
        assert!(cut.request_ended().is_err());
    }

    #[test]
    fn trailers_are_the_last_frame() {
        let mut trailers = HeaderList::new();
        trailers.append("Grpc-Status", "5");
        trailers.append("x-bin", "AQI=");
        let frame = trailers_frame(&trailers);
        assert_eq!(&frame[..], b"\x80\0\0\0\x1bgrpc-status:5\r\nx-bin:AQI=\r\n");
    }
}
