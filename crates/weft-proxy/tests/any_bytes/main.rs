//! The first bytes of a connection and the secrets of the control plane never make the proxy panic
//! or change its mind: replays the committed fuzzing corpora.

mod checks;

use weft_testkit::corpus;

#[test]
fn committed_corpora_pass() {
    corpus::replay("proxy_protocol", checks::proxy_protocol);
    corpus::replay("sniff", checks::sniff);
    corpus::replay("secret", checks::secret);
}
