//! A page's body. Metrics are written as the client takes them: after a scan they are many times
//! as long as what they were counted in. Must not know where pages come from.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use crate::runtime::Exposition;

/// Body of a reply.
pub(crate) enum Page {
    /// Known in full.
    Whole(Option<Bytes>),
    /// Metrics; as `name: value` lines that contain a text instead, if one is given.
    /// What is to follow them is in `end`.
    Metrics { pieces: Exposition, as_stats: Option<String>, end: Bytes },
}

impl Page {
    pub(crate) fn whole(body: Vec<u8>) -> Page {
        Page::Whole(Some(Bytes::from(body)))
    }

    fn next(&mut self) -> Option<Bytes> {
        match self {
            Page::Whole(body) => body.take(),
            Page::Metrics { pieces, as_stats: None, end } => {
                let end = || Some(std::mem::take(end)).filter(|end| !end.is_empty());
                pieces.next().map(Bytes::from).or_else(end)
            }
            Page::Metrics { pieces, as_stats: Some(filter), .. } => pieces
                .map(|piece| stats(&String::from_utf8_lossy(&piece), filter))
                .find(|lines| !lines.is_empty())
                .map(Bytes::from),
        }
    }
}

/// As Envoy's `/stats`: one value a line, here with labels in the name.
fn stats(piece: &str, filter: &str) -> String {
    let mut out = String::new();
    for line in piece.lines().filter(|line| !line.starts_with('#') && line.contains(filter)) {
        if let Some((name, value)) = line.rsplit_once(' ') {
            out.push_str(&format!("{name}: {value}\n"));
        }
    }
    out
}

impl Body for Page {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.get_mut().next().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Page::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Page::Whole(body) => {
                SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64))
            }
            Page::Metrics { .. } => SizeHint::default(),
        }
    }
}
