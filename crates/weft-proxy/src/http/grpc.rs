//! What is read out of gRPC while it passes through: its status and how many messages went by.

use weft_http::{HeaderList, Known};

/// The status in a gRPC head or trailer section.
pub(crate) fn status(headers: &HeaderList) -> Option<u8> {
    let digits = headers.get_known(Known::GrpcStatus)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// gRPC messages counted in both directions.
#[derive(Default)]
pub(crate) struct Messages {
    pub(crate) request: MessageCounter,
    pub(crate) response: MessageCounter,
}

/// Counts length-prefixed messages in a stream of bytes, however it is cut.
#[derive(Default)]
pub(crate) struct MessageCounter {
    pub(crate) count: u64,
    /// Bytes left of the current message.
    left: usize,
    /// Bytes of the current prefix, and what of the length they said.
    prefix: u8,
    length: u32,
}

/// A flag byte and a 32-bit length.
const PREFIX_BYTES: u8 = 5;

impl MessageCounter {
    /// The next bytes of the stream.
    pub(crate) fn see(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.left > 0 {
                let skip = self.left.min(data.len());
                self.left -= skip;
                data = &data[skip..];
                continue;
            }
            if self.prefix > 0 {
                self.length = self.length << 8 | u32::from(data[0]);
            }
            self.prefix += 1;
            data = &data[1..];
            if self.prefix == PREFIX_BYTES {
                self.count += 1;
                self.left = self.length as usize;
                self.prefix = 0;
                self.length = 0;
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
            assert_eq!(counter.count, 4, "cut into {cut}");
        }
    }
}
