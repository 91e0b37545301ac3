//! SETTINGS: values, their ranges, and reading them (RFC 9113 §6.5, RFC 8441 §3).

use super::error::{ErrorCode, FrameError};
use super::frame::MAX_31;

/// One parameter, in range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    HeaderTableSize(u32),
    EnablePush(bool),
    MaxConcurrentStreams(u32),
    /// At most 2^31 − 1.
    InitialWindowSize(u32),
    /// 2^14 to 2^24 − 1.
    MaxFrameSize(u32),
    MaxHeaderListSize(u32),
    EnableConnectProtocol(bool),
    /// To be ignored.
    Unknown(u16, u32),
}

/// What one side asks of the other. `Default` is what holds before any SETTINGS frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub header_table_size: u32,
    pub enable_push: bool,
    /// `u32::MAX` for no limit.
    pub max_concurrent_streams: u32,
    pub initial_window_size: u32,
    pub max_frame_size: u32,
    /// `u32::MAX` for no limit.
    pub max_header_list_size: u32,
    pub enable_connect_protocol: bool,
}

/// Smallest and initial SETTINGS_MAX_FRAME_SIZE.
pub const FRAME_SIZE_MIN: u32 = 1 << 14;
const FRAME_SIZE_MAX: u32 = (1 << 24) - 1;

impl Default for Settings {
    fn default() -> Self {
        Settings {
            header_table_size: 4096,
            enable_push: true,
            max_concurrent_streams: u32::MAX,
            initial_window_size: 65_535,
            max_frame_size: FRAME_SIZE_MIN,
            max_header_list_size: u32::MAX,
            enable_connect_protocol: false,
        }
    }
}

impl Settings {
    /// Takes over one parameter.
    pub fn apply(&mut self, setting: Setting) {
        match setting {
            Setting::HeaderTableSize(value) => self.header_table_size = value,
            Setting::EnablePush(value) => self.enable_push = value,
            Setting::MaxConcurrentStreams(value) => self.max_concurrent_streams = value,
            Setting::InitialWindowSize(value) => self.initial_window_size = value,
            Setting::MaxFrameSize(value) => self.max_frame_size = value,
            Setting::MaxHeaderListSize(value) => self.max_header_list_size = value,
            Setting::EnableConnectProtocol(value) => self.enable_connect_protocol = value,
            Setting::Unknown(..) => {}
        }
    }

    /// The parameters that differ from `before`, to be sent. All others stay as they are.
    pub fn changes_from(&self, before: &Settings) -> impl Iterator<Item = Setting> {
        let all = |settings: &Settings| {
            [
                Setting::HeaderTableSize(settings.header_table_size),
                Setting::EnablePush(settings.enable_push),
                Setting::MaxConcurrentStreams(settings.max_concurrent_streams),
                Setting::InitialWindowSize(settings.initial_window_size),
                Setting::MaxFrameSize(settings.max_frame_size),
                Setting::MaxHeaderListSize(settings.max_header_list_size),
                Setting::EnableConnectProtocol(settings.enable_connect_protocol),
            ]
        };
        let (new, old) = (all(self), all(before));
        new.into_iter().zip(old).filter(|(new, old)| new != old).map(|(new, _)| new)
    }
}

impl Setting {
    /// Reads one parameter.
    ///
    /// # Errors
    /// When the value is out of range: PROTOCOL_ERROR, or FLOW_CONTROL_ERROR for a window.
    pub fn parse(id: u16, value: u32) -> Result<Setting, FrameError> {
        Ok(match id {
            0x1 => Setting::HeaderTableSize(value),
            0x2 => Setting::EnablePush(switch(value)?),
            0x3 => Setting::MaxConcurrentStreams(value),
            0x4 if value > MAX_31 => {
                return Err(FrameError::connection(ErrorCode::FLOW_CONTROL_ERROR, "settings"));
            }
            0x4 => Setting::InitialWindowSize(value),
            0x5 if !(FRAME_SIZE_MIN..=FRAME_SIZE_MAX).contains(&value) => return Err(RANGE),
            0x5 => Setting::MaxFrameSize(value),
            0x6 => Setting::MaxHeaderListSize(value),
            0x8 => Setting::EnableConnectProtocol(switch(value)?),
            other => Setting::Unknown(other, value),
        })
    }

    /// Identifier and value on the wire.
    pub fn as_pair(self) -> (u16, u32) {
        match self {
            Setting::HeaderTableSize(value) => (0x1, value),
            Setting::EnablePush(value) => (0x2, value.into()),
            Setting::MaxConcurrentStreams(value) => (0x3, value),
            Setting::InitialWindowSize(value) => (0x4, value),
            Setting::MaxFrameSize(value) => (0x5, value),
            Setting::MaxHeaderListSize(value) => (0x6, value),
            Setting::EnableConnectProtocol(value) => (0x8, value.into()),
            Setting::Unknown(id, value) => (id, value),
        }
    }
}

const RANGE: FrameError = FrameError::connection(ErrorCode::PROTOCOL_ERROR, "settings");

fn switch(value: u32) -> Result<bool, FrameError> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(RANGE),
    }
}

/// The parameters of a SETTINGS payload in order, whose length
/// [`FrameHead::check`](super::FrameHead::check) has seen.
pub fn parse_settings(payload: &[u8]) -> impl Iterator<Item = Result<Setting, FrameError>> + '_ {
    payload.as_chunks::<6>().0.iter().map(|&[i1, i0, value @ ..]| {
        Setting::parse(u16::from_be_bytes([i1, i0]), u32::from_be_bytes(value))
    })
}
