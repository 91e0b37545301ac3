//! What is to happen on one stream, known to both sides from its number; and the random numbers.

use bytes::Bytes;
use weft_http::h2::ErrorCode;
use weft_http::{HeaderList, Method, RequestHead, ResponseHead, Scheme, Target, Version};

/// splitmix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `end` − 1.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub id: u64,
    pub request_bytes: usize,
    pub request_trailers: bool,
    pub response_bytes: usize,
    pub response_trailers: bool,
    pub informational: bool,
    /// The server answers without waiting for the end of the request.
    pub early: bool,
    /// The client gives up when its task has run so often.
    pub cancel_at: Option<u32>,
    /// The server resets when its task has run so often, unless it was done before.
    pub reset_at: Option<(u32, ErrorCode)>,
}

impl Plan {
    pub fn of(id: u64) -> Plan {
        let mut random = Random::new(id ^ 0x77ef_7000_0000);
        let bytes = |random: &mut Random| match random.below(200) {
            0..60 => 0,
            60..190 => random.below(200),
            190..199 => random.below(5_000),
            _ => random.below(150_000),
        };
        let runs = |random: &mut Random| random.below(6) as u32;
        Plan {
            id,
            request_bytes: bytes(&mut random),
            request_trailers: random.one_in(20),
            response_bytes: bytes(&mut random),
            response_trailers: random.one_in(3),
            informational: random.one_in(30),
            early: random.one_in(5),
            cancel_at: random.one_in(15).then(|| runs(&mut random)),
            reset_at: random
                .one_in(20)
                .then(|| (runs(&mut random), ErrorCode(random.below(16) as u32 + 1))),
        }
    }

    /// Content of one direction from `at` on.
    pub fn content(&self, response: bool, at: usize, len: usize) -> Vec<u8> {
        let key = self.id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(response);
        (at..at + len).map(|at| (key >> (at % 48)) as u8 ^ at as u8).collect()
    }

    pub fn request(&self) -> RequestHead {
        RequestHead {
            method: Method::Post,
            scheme: Scheme::Http,
            authority: Some(Bytes::from_static(b"app")),
            target: Target::Path(Bytes::from(format!("/{}", self.id))),
            version: Version::H2,
            headers: self.fields(),
        }
    }

    pub fn request_ends_with_head(&self) -> bool {
        self.request_bytes == 0 && !self.request_trailers
    }

    pub fn response(&self) -> ResponseHead {
        let status = 200 + (self.id % 99) as u16;
        let headers = self.fields();
        ResponseHead { version: Version::H2, headers, ..ResponseHead::new(status) }
    }

    pub fn response_ends_with_head(&self) -> bool {
        self.response_bytes == 0 && !self.response_trailers
    }

    /// Lines of which some are new each time, some repeat, and some repeat seldom.
    pub fn fields(&self) -> HeaderList {
        let mut fields = HeaderList::new();
        fields.append("x-id", self.id.to_string());
        fields.append("x-group", (self.id % 5).to_string());
        if self.id.is_multiple_of(3) {
            fields.append(format!("x-name-{}", self.id % 40), "a value that fills the table");
        }
        if self.id.is_multiple_of(500) {
            // More than one frame holds.
            fields.append("x-large", "v".repeat(20_000));
        }
        fields
    }

    /// What ends the content of both directions, if anything.
    pub fn trailers(&self) -> HeaderList {
        [("x-trailer-id", self.id.to_string())].into_iter().collect()
    }
}
