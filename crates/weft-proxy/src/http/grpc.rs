//! What is read out of gRPC while it passes through: its status and how many messages went by.

use weft_http::{HeaderList, Known};

use super::conn::HttpConn;

/// The status in a gRPC head or trailer section.
pub(crate) fn status(headers: &HeaderList) -> Option<u8> {
    let digits = headers.get_known(Known::GrpcStatus)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// gRPC messages counted in both directions.
pub(crate) struct Messages {
    pub(crate) request: MessageCounter,
    pub(crate) response: MessageCounter,
    /// The round of the last report.
    round: u32,
}

impl Messages {
    pub(crate) fn new(conn: &HttpConn) -> Messages {
        let round = conn.worker.report_round();
        Messages { request: MessageCounter::default(), response: MessageCounter::default(), round }
    }

    /// Messages each way that were not reported, once for each `round`.
    pub(crate) fn due(&mut self, round: u32) -> Option<(u64, u64)> {
        if std::mem::replace(&mut self.round, round) == round {
            return None;
        }
        let request = std::mem::take(&mut self.request.unreported);
        let response = std::mem::take(&mut self.response.unreported);
        (request > 0 || response > 0).then_some((request.into(), response.into()))
    }
}

/// Counts length-prefixed messages in a stream of bytes, however it is cut.
#[derive(Default)]
pub(crate) struct MessageCounter {
    /// Those that metrics have not counted.
    unreported: u32,
    /// Bytes left of the current message; within its prefix, what that said of the length so far.
    left: u32,
    /// Bytes of the current prefix.
    prefix: u8,
}

/// A flag byte and a 32-bit length.
const PREFIX_BYTES: u8 = 5;

impl MessageCounter {
    /// Messages that metrics have not counted.
    pub(crate) fn unreported(&self) -> u64 {
        self.unreported.into()
    }

    /// The next bytes of the stream.
    pub(crate) fn see(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.prefix == 0 && self.left > 0 {
                let skip = data.len().min(self.left as usize);
                self.left -= skip as u32;
                data = &data[skip..];
                continue;
            }
            if self.prefix > 0 {
                self.left = self.left << 8 | u32::from(data[0]);
            }
            self.prefix += 1;
            data = &data[1..];
            if self.prefix == PREFIX_BYTES {
                self.unreported = self.unreported.saturating_add(1);
                self.prefix = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::MessageCounter;

    #[test]
    fn messages_are_counted_however_the_stream_is_cut() {
        let mut stream = Vec::new();
        for size in [0_u32, 1, 300, 70_000] {
            stream.push(0);
            stream.extend_from_slice(&size.to_be_bytes());
            stream.resize(stream.len() + size as usize, b'x');
        }
        for cut in [1, 2, 3, 5, 7, 1000, 100_000] {
            let mut counter = MessageCounter::default();
            stream.chunks(cut).for_each(|part| counter.see(part));
            assert_eq!(counter.unreported, 4, "cut into {cut}");
        }
    }
}
