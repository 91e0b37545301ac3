//! Mutates encoded protobuf messages without breaking the lengths around the change, so that a
//! fuzzer gets past the first nested message. Knows the wire format only, no schema: bytes that read
//! as fields are taken for a nested message half of the time.

/// One field, as it stands in its message.
struct Field {
    /// Key (number and wire type), encoded.
    key: u64,
    /// What follows the key; for wire type 2 without its length.
    value: Vec<u8>,
}

/// How deep messages are taken apart.
const DEPTH_MAX: u32 = 24;

/// A small generator (xorshift*), seeded by libFuzzer.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u32) -> Random {
        Random(u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(drawn).unwrap_or(0) % bound.max(1)
    }
}

/// `message` with one change somewhere inside.
pub fn mutate(message: &[u8], random: &mut Random) -> Vec<u8> {
    change(message, random, DEPTH_MAX)
}

fn change(message: &[u8], random: &mut Random, depth: u32) -> Vec<u8> {
    let mut fields = match split(message) {
        Some(fields) if !fields.is_empty() && depth > 0 => fields,
        _ => return bytes(message, random),
    };
    let at = random.below(fields.len());
    match random.below(12) {
        0 => {
            fields.remove(at);
        }
        1 => {
            let copy = Field { key: fields[at].key, value: fields[at].value.clone() };
            fields.insert(at, copy);
        }
        2 => {
            let other = random.below(fields.len());
            fields.swap(at, other);
        }
        // Another field of the same type, such as the other arm of a oneof.
        3 => fields[at].key = (fields[at].key & 7) | ((1 + random.below(40) as u64) << 3),
        4 => {
            let other = random.below(fields.len());
            if fields[other].key & 7 == fields[at].key & 7 {
                fields[at].value = fields[other].value.clone();
            }
        }
        _ => {
            let field = &mut fields[at];
            field.value = match field.key & 7 {
                2 if random.below(8) > 0 => change(&field.value, random, depth - 1),
                2 => bytes(&field.value, random),
                0 => varint(number(random)),
                _ => field.value.iter().map(|_| random.below(256) as u8).collect(),
            };
        }
    }
    join(&fields)
}

/// Plain bytes, changed as libFuzzer does it (with its dictionary).
fn bytes(value: &[u8], random: &mut Random) -> Vec<u8> {
    let room = value.len() + 1 + random.below(64);
    let mut buffer = value.to_vec();
    buffer.resize(room, 0);
    let size = libfuzzer_sys::fuzzer_mutate(&mut buffer, value.len(), room);
    buffer.truncate(size);
    buffer
}

/// Numbers at the edges of types, more often than others.
fn number(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => u64::from(u32::MAX),
        4 => i64::MAX as u64,
        5 => 1 << random.below(64),
        _ => random.below(70_000) as u64,
    }
}

fn split(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = read_varint(&mut bytes)?;
        if key >> 3 == 0 {
            return None;
        }
        let length = match key & 7 {
            0 => {
                let value = varint(read_varint(&mut bytes)?);
                fields.push(Field { key, value });
                continue;
            }
            1 => 8,
            2 => usize::try_from(read_varint(&mut bytes)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (value, rest) = bytes.split_at_checked(length)?;
        fields.push(Field { key, value: value.to_vec() });
        bytes = rest;
    }
    Some(fields)
}

fn join(fields: &[Field]) -> Vec<u8> {
    let mut message = Vec::new();
    for Field { key, value } in fields {
        message.extend_from_slice(&varint(*key));
        if key & 7 == 2 {
            message.extend_from_slice(&varint(value.len() as u64));
        }
        message.extend_from_slice(value);
    }
    message
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}
