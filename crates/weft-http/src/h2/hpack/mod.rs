//! Header compression (RFC 7541), one decoder and one encoder per connection.
//!
//! Table entries are whole lines (`name: value CR LF`) with what there is to know about the field
//! already worked out. A field named by index is one copy into the head's block, and a decoded head
//! goes out over HTTP/1 as runs of lines, without being formatted.
//!
//! Must not know frames or streams.

mod class;
mod decode;
mod encode;
mod huffman;
mod integer;
mod lookup;
mod sink;
mod statics;
mod table;

pub use decode::Decoder;
pub use encode::{Encoder, Indexing};
pub use sink::{FieldSink, HeadError, HeadLimits};

/// Why a block cannot be decoded: the connection must end with COMPRESSION_ERROR (RFC 9113 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    /// The block ends inside a field.
    #[error("hpack.truncated")]
    Truncated,
    /// An integer is longer or larger than anything it could mean (RFC 7541 §5.1).
    #[error("hpack.integer")]
    Integer,
    /// No entry has this index, or it is 0.
    #[error("hpack.index")]
    Index,
    /// A Huffman-coded string holds EOS, or its padding is not the start of EOS (RFC 7541 §5.2).
    #[error("hpack.huffman")]
    Huffman,
    /// A table size update above our limit, not at the start of a block, or missing after the limit
    /// was lowered (RFC 7541 §4.2, RFC 9113 §4.3.1).
    #[error("hpack.size_update")]
    SizeUpdate,
}

#[cfg(test)]
mod tests;
