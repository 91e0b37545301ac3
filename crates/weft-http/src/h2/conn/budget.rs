//! What a peer may make us do for nothing (CVE-2019-9511 to -9518, CVE-2023-44487,
//! CVE-2025-8671 and their kin).
//!
//! Each budget is a number of credits. An event that costs us work without moving a request takes
//! one, useful traffic and time ([`super::Connection::refill`]) give some back, and a peer that has
//! none left is told ENHANCE_YOUR_CALM. Must not know frames.

/// The limits of one connection. `Default` is ample for every real peer we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Streams that the peer reset before they were complete (rapid reset).
    pub resets_max: u32,
    /// Streams that the peer made us reset by breaking the protocol on them or by exceeding the
    /// stream limit (made-you-reset).
    pub errors_max: u32,
    /// PING, SETTINGS, PRIORITY, WINDOW_UPDATE and unknown frames, and frames on closed streams,
    /// beyond those that useful traffic explains.
    pub control_max: u32,
    /// DATA frames without content that do not end their stream.
    pub empty_max: u32,
    /// CONTINUATION frames of one header block. Its bytes are bounded by the head limit.
    pub continuations_max: u32,
    /// Acknowledgements and resets waiting to be written to a peer that does not read.
    pub control_queued_max: u32,
    /// 1xx heads of one response that wait to be taken (client).
    pub informational_max: usize,
}

impl Default for Budgets {
    fn default() -> Self {
        Budgets {
            resets_max: 500,
            errors_max: 200,
            control_max: 4000,
            empty_max: 200,
            continuations_max: 64,
            control_queued_max: 4000,
            informational_max: 100,
        }
    }
}

/// Which budget a peer has exceeded; the names are those of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abuse {
    Resets,
    Errors,
    Control,
    Empty,
    Continuations,
    ControlQueued,
    Informational,
}

impl Abuse {
    /// For counters and logs.
    pub fn name(self) -> &'static str {
        match self {
            Abuse::Resets => "rapid_reset",
            Abuse::Errors => "stream_errors",
            Abuse::Control => "control_flood",
            Abuse::Empty => "empty_frames",
            Abuse::Continuations => "continuation_flood",
            Abuse::ControlQueued => "never_reads",
            Abuse::Informational => "informational_flood",
        }
    }
}

/// Control frames that one useful frame explains: gRPC peers answer each message with a
/// WINDOW_UPDATE or two and a PING.
const CONTROL_PER_USEFUL: u32 = 4;

/// What is left.
#[derive(Debug)]
pub(super) struct Credits {
    max: Budgets,
    resets: u32,
    errors: u32,
    control: u32,
    empty: u32,
}

impl Credits {
    pub(super) fn new(max: Budgets) -> Self {
        Self {
            max,
            resets: max.resets_max,
            errors: max.errors_max,
            control: max.control_max,
            empty: max.empty_max,
        }
    }

    pub(super) fn max(&self) -> &Budgets {
        &self.max
    }

    pub(super) fn reset(&mut self) -> Result<(), Abuse> {
        take(&mut self.resets, Abuse::Resets)
    }

    pub(super) fn error(&mut self) -> Result<(), Abuse> {
        take(&mut self.errors, Abuse::Errors)
    }

    pub(super) fn control(&mut self) -> Result<(), Abuse> {
        take(&mut self.control, Abuse::Control)
    }

    pub(super) fn empty(&mut self) -> Result<(), Abuse> {
        take(&mut self.empty, Abuse::Empty)
    }

    /// A frame that moved a request.
    pub(super) fn useful(&mut self) {
        self.control = (self.control + CONTROL_PER_USEFUL).min(self.max.control_max);
    }

    /// A request that was answered whole.
    pub(super) fn completed(&mut self) {
        self.resets = (self.resets + 1).min(self.max.resets_max);
        self.empty = self.max.empty_max;
    }

    /// About a second has passed: a fifth of everything is given back.
    pub(super) fn refill(&mut self) {
        let max = self.max;
        give(&mut self.resets, max.resets_max);
        give(&mut self.errors, max.errors_max);
        give(&mut self.control, max.control_max);
        give(&mut self.empty, max.empty_max);
    }
}

fn take(credit: &mut u32, abuse: Abuse) -> Result<(), Abuse> {
    *credit = credit.checked_sub(1).ok_or(abuse)?;
    Ok(())
}

fn give(credit: &mut u32, max: u32) {
    *credit = credit.saturating_add(max.div_ceil(5)).min(max);
}
