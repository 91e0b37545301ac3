//! What a gateway must do to a message between its two sides (RFC 9110 §7, RFC 9112 §§6-9, RFC 9113
//! §8): hop-by-hop fields, framing for the other version, HTTP/1 and HTTP/2 head conversion,
//! `X-Forwarded-*`, and the heads of replies made here.
//!
//! Pure decisions on heads. Must not know routes, connections or configuration sources.

mod forwarded;
mod framing;
mod h2;
mod hop;
mod reply;
mod singleton;
mod spelling;

pub use forwarded::{append_forwarded_for, client_address, forwarded_scheme, set_forwarded_proto};
pub use framing::{Framing, is_transfer_coded, request_framing, response_framing, set_connection};
pub use h2::{
    H2Error, PseudoFields, RequestPseudo, h1_switch_to_h2, h2_connect_to_h1, h2_switch_to_h1,
    join_cookies, request_from_h2, request_pseudo, request_to_h1, request_to_h2, response_from_h2,
    response_to_h2, trailers_to_h2,
};
pub(crate) use h2::{RequestParts, assemble_request, assemble_response, name_fault, value_fault};
pub use hop::{names_trailers, strip_request, strip_response, strip_trailers};
pub use reply::{grpc_message, grpc_status_of, into_grpc_reply, is_grpc, local_reply};
pub use singleton::{Singleton, SingletonRepeated, apply_singleton};
pub use spelling::{SPELLING_BYTES_MAX, note_spelling, respell, take_spelling};

#[cfg(test)]
mod tests;
