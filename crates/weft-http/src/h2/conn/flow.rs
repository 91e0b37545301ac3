//! The connection's receiving window (RFC 9113 §6.9). Window is given back in halves, so that a
//! fast peer never waits and updates stay rare. Must not know streams.

use super::super::frame::MAX_31;

#[derive(Debug)]
pub(super) struct Window {
    /// What the peer may have under way. Bytes.
    size: u32,
    /// What it may still send now.
    left: i64,
    /// Released and not given back yet.
    released: u64,
}

impl Window {
    /// The protocol has no way to ask for less than its initial window.
    pub(super) fn new(size: u32) -> Self {
        let size = size.clamp(super::INITIAL_WINDOW_BYTES, MAX_31);
        Self { size, left: i64::from(size), released: 0 }
    }

    /// The first WINDOW_UPDATE, from the `initial` size that every connection starts with.
    pub(super) fn grant_beyond(&self, initial: u32) -> Option<u32> {
        Some(self.size - initial).filter(|&grant| grant > 0)
    }

    /// Counts received bytes; false when they were more than granted.
    pub(super) fn take(&mut self, bytes: u32) -> bool {
        self.left -= i64::from(bytes);
        self.left >= 0
    }

    pub(super) fn release(&mut self, bytes: u64) {
        self.released += bytes;
    }

    /// The update to send now, if one is due: when half the window is ours, or more than the peer
    /// has left, which unread content of other streams may hold for long.
    pub(super) fn due(&mut self) -> Option<u32> {
        let left = u64::try_from(self.left).unwrap_or(0);
        if self.released < u64::from(self.size / 2).min(left).max(1) {
            return None;
        }
        let grant = u32::try_from(self.released).expect("no more is released than was granted");
        self.released = 0;
        self.left += i64::from(grant);
        Some(grant)
    }
}
