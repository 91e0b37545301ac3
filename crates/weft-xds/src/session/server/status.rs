//! What was sent, acknowledged and rejected, for readiness and status pages.
//!
//! Must not know resources.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::ServerSession;
use crate::type_url::ResourceType;

/// Most responses of a type we remember as unanswered; older ones count as ignored.
const OUTSTANDING_MAX: usize = 64;

/// One response: the version of the set it brought the client to, and its nonce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub version: Arc<str>,
    pub nonce: Arc<str>,
}

/// A rejected response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    pub stamp: Stamp,
    /// The client's words.
    pub message: String,
}

/// The state of one type on one stream.
#[derive(Clone, Debug)]
pub struct TypeStatus {
    /// The client asked for this type.
    pub asked: bool,
    /// How many resources the client was sent and should hold.
    pub resources: usize,
    /// Version of the set the client should hold.
    pub version: String,
    /// The newest response.
    pub sent: Option<Stamp>,
    /// The newest acknowledged one.
    pub acked: Option<Stamp>,
    /// What the client still refuses: the newest rejection that nothing has put right since.
    pub nacked: Option<Nack>,
    /// Responses not answered yet.
    pub outstanding: usize,
}

impl ServerSession {
    /// The state of a type.
    pub fn status(&self, ty: ResourceType) -> TypeStatus {
        let state = &self.types[ty.index()];
        TypeStatus {
            asked: state.asked,
            resources: state.held.len(),
            version: state.held.version(),
            sent: state.answers.sent.clone(),
            acked: state.answers.acked.clone(),
            nacked: state.answers.nacked().cloned(),
            outstanding: state.answers.outstanding.len(),
        }
    }
}

/// The client's answers to the responses of one type.
///
/// A rejection is of single resources: the client uses the others of the response, and goes on
/// refusing these whatever else it acknowledges. Which they are, only the text says. A text that
/// names none of them counts until the next acknowledgement.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// Sent and not answered yet, oldest first.
    pub(super) outstanding: VecDeque<Sent>,
    pub(super) sent: Option<Stamp>,
    pub(super) acked: Option<Stamp>,
    refused: BTreeMap<Arc<str>, Nack>,
    refused_unnamed: Option<Nack>,
}

#[derive(Debug)]
pub(super) struct Sent {
    stamp: Stamp,
    names: Vec<Arc<str>>,
}

impl Answers {
    pub(super) fn note_sent(&mut self, stamp: Stamp, names: Vec<Arc<str>>) {
        if self.outstanding.len() == OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back(Sent { stamp: stamp.clone(), names });
        self.sent = Some(stamp);
    }

    /// Takes an answered response off the outstanding ones. Earlier ones that a
    /// client skipped count as answered with it. `None` for an unknown nonce.
    pub(super) fn take(&mut self, nonce: &str) -> Option<Sent> {
        let at = self.outstanding.iter().position(|sent| &*sent.stamp.nonce == nonce)?;
        self.outstanding.drain(..=at).next_back()
    }

    pub(super) fn ack(&mut self, sent: Sent) -> Stamp {
        for name in &sent.names {
            self.refused.remove(name);
        }
        self.refused_unnamed = None;
        self.acked = Some(sent.stamp.clone());
        sent.stamp
    }

    pub(super) fn nack(&mut self, sent: Sent, message: String) -> Nack {
        let nack = Nack { stamp: sent.stamp, message };
        let mut named = false;
        for name in sent.names {
            match mentions(&nack.message, &name) {
                true => {
                    named = true;
                    self.refused.insert(name, nack.clone());
                }
                false => _ = self.refused.remove(&name),
            }
        }
        if !named {
            self.refused_unnamed = Some(nack.clone());
        }
        nack
    }

    /// Resources the client has no more, or wants no more, are not refused any longer.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.refused.retain(|name, _| keep(name));
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.refused.remove(name);
    }

    pub(super) fn nacked(&self) -> Option<&Nack> {
        let newest = |nack: &&Nack| nack.stamp.nonce.parse::<u64>().unwrap_or(0);
        self.refused.values().chain(&self.refused_unnamed).max_by_key(newest)
    }

    /// Everything sent was answered, and nothing is refused.
    pub(super) fn are_good(&self) -> bool {
        self.outstanding.is_empty() && self.nacked().is_none()
    }
}

/// Whether a text holds a name as a word of its own: `0.0.0.0_80` is not in `0.0.0.0_8080`.
fn mentions(text: &str, name: &str) -> bool {
    let inside =
        |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '|'));
    text.match_indices(name).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + name.len()..].chars().next();
        !inside(before) && !inside(after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(nonce: &str) -> Stamp {
        Stamp { version: "v".into(), nonce: nonce.into() }
    }

    #[test]
    fn a_named_refusal_outlives_other_acknowledgements() {
        let mut answers = Answers::default();
        answers.note_sent(stamp("1"), vec!["0.0.0.0_80".into(), "0.0.0.0_8080".into()]);
        let sent = answers.take("1").unwrap();
        answers.nack(sent, "Error adding listener(s) 0.0.0.0_8080: no such filter".into());
        assert_eq!(answers.refused.keys().map(|n| &**n).collect::<Vec<_>>(), ["0.0.0.0_8080"]);
        answers.note_sent(stamp("2"), vec!["0.0.0.0_80".into()]);
        let sent = answers.take("2").unwrap();
        answers.ack(sent);
        assert!(!answers.are_good());
        answers.note_sent(stamp("3"), vec!["0.0.0.0_8080".into()]);
        let sent = answers.take("3").unwrap();
        answers.ack(sent);
        assert!(answers.are_good());
    }

    #[test]
    fn an_unnamed_refusal_ends_with_the_next_acknowledgement() {
        let mut answers = Answers::default();
        answers.note_sent(stamp("1"), vec!["a".into(), "b".into()]);
        let sent = answers.take("1").unwrap();
        answers.nack(sent, "no".into());
        assert_eq!(answers.nacked().map(|nack| nack.message.as_str()), Some("no"));
        answers.note_sent(stamp("2"), vec!["b".into()]);
        let sent = answers.take("2").unwrap();
        answers.ack(sent);
        assert!(answers.are_good());
    }
}
