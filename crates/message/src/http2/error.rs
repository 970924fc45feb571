//! What goes wrong, and the code that the peer is told.

use std::fmt;

/// Error code of RST_STREAM and GOAWAY. RFC 9113 §7. A code that nobody knows is kept as it came.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// Nothing is wrong: a graceful end.
    pub const NO_ERROR: Self = Self(0x0);
    /// A rule of the protocol is broken.
    pub const PROTOCOL_ERROR: Self = Self(0x1);
    /// Something of the sender's own failed.
    pub const INTERNAL_ERROR: Self = Self(0x2);
    /// More data than the window allows.
    pub const FLOW_CONTROL_ERROR: Self = Self(0x3);
    /// Settings were not acknowledged in time.
    pub const SETTINGS_TIMEOUT: Self = Self(0x4);
    /// A frame for a stream that is closed already.
    pub const STREAM_CLOSED: Self = Self(0x5);
    /// A frame has a size that it must not have.
    pub const FRAME_SIZE_ERROR: Self = Self(0x6);
    /// The request was not looked at and may be sent again.
    pub const REFUSED_STREAM: Self = Self(0x7);
    /// The stream is not needed any more.
    pub const CANCEL: Self = Self(0x8);
    /// The state of field compression is lost.
    pub const COMPRESSION_ERROR: Self = Self(0x9);
    /// The connection of a CONNECT request was reset.
    pub const CONNECT_ERROR: Self = Self(0xa);
    /// The peer makes too much work.
    pub const ENHANCE_YOUR_CALM: Self = Self(0xb);
    /// The transport is not secure enough.
    pub const INADEQUATE_SECURITY: Self = Self(0xc);
    /// The request needs HTTP/1.1.
    pub const HTTP_1_1_REQUIRED: Self = Self(0xd);

    /// The name in RFC 9113 §7, `UNKNOWN` for a code that is not there.
    pub fn name(self) -> &'static str {
        match self {
            Self::NO_ERROR => "NO_ERROR",
            Self::PROTOCOL_ERROR => "PROTOCOL_ERROR",
            Self::INTERNAL_ERROR => "INTERNAL_ERROR",
            Self::FLOW_CONTROL_ERROR => "FLOW_CONTROL_ERROR",
            Self::SETTINGS_TIMEOUT => "SETTINGS_TIMEOUT",
            Self::STREAM_CLOSED => "STREAM_CLOSED",
            Self::FRAME_SIZE_ERROR => "FRAME_SIZE_ERROR",
            Self::REFUSED_STREAM => "REFUSED_STREAM",
            Self::CANCEL => "CANCEL",
            Self::COMPRESSION_ERROR => "COMPRESSION_ERROR",
            Self::CONNECT_ERROR => "CONNECT_ERROR",
            Self::ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM",
            Self::INADEQUATE_SECURITY => "INADEQUATE_SECURITY",
            Self::HTTP_1_1_REQUIRED => "HTTP_1_1_REQUIRED",
            Self(_) => "UNKNOWN",
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

/// Why a connection cannot go on. Always the peer's doing; a GOAWAY with [`ConnectionError::code`] lies in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// The client does not begin with the preface: it speaks something else. RFC 9113 §3.4.
    #[error("the connection does not begin with the preface of HTTP/2")]
    Preface,
    /// The first frame is not SETTINGS. RFC 9113 §3.4.
    #[error("the first frame is not SETTINGS")]
    SettingsMissing,
    /// A frame is longer than we allow. RFC 9113 §4.2.
    #[error("a frame of {length} bytes is longer than allowed")]
    FrameTooLong {
        /// Bytes that the frame says it has.
        length: u32,
    },
    /// A frame has a length that its type does not allow. RFC 9113 §4.2, §6.
    #[error("a frame of type {kind} must not have {length} bytes")]
    FrameSize {
        /// Type of the frame.
        kind: u8,
        /// Bytes of its payload.
        length: u32,
    },
    /// A frame that belongs to a stream names none, or one that belongs to the connection names one. RFC 9113 §6.
    #[error("a frame of type {kind} must not name stream {stream}")]
    StreamMisplaced {
        /// Type of the frame.
        kind: u8,
        /// The stream that it names.
        stream: u32,
    },
    /// A frame for a stream that was never opened. RFC 9113 §5.1.
    #[error("stream {stream} was never opened")]
    StreamIdle {
        /// The stream.
        stream: u32,
    },
    /// A stream is opened with a number that is even or not larger than those before. RFC 9113 §5.1.1.
    #[error("stream {stream} cannot be opened with this number")]
    StreamNumber {
        /// The stream.
        stream: u32,
    },
    /// A frame for a stream that has ended. RFC 9113 §5.1.
    #[error("stream {stream} is closed")]
    StreamClosed {
        /// The stream.
        stream: u32,
    },
    /// Padding that is longer than its frame. RFC 9113 §6.1, §6.2.
    #[error("padding is longer than its frame")]
    Padding,
    /// Something else came where the rest of a field block was due. RFC 9113 §6.10.
    #[error("a field block is interrupted by a frame of type {kind}")]
    BlockInterrupted {
        /// Type of the frame.
        kind: u8,
    },
    /// CONTINUATION without a field block to continue. RFC 9113 §6.10.
    #[error("there is no field block to continue")]
    ContinuationAlone,
    /// PUSH_PROMISE, which we forbid and a client must never send. RFC 9113 §8.4.
    #[error("server push is not allowed")]
    Push,
    /// A setting has a value that it must not have. RFC 9113 §6.5.2, RFC 8441 §3.
    #[error("setting {setting} must not be {value}")]
    SettingValue {
        /// Number of the setting.
        setting: u16,
        /// Its value.
        value: u32,
    },
    /// WINDOW_UPDATE of the connection that adds nothing. RFC 9113 §6.9.
    #[error("a window update adds nothing")]
    WindowUpdateEmpty,
    /// A window is opened beyond 2^31-1. RFC 9113 §6.9.1, §6.9.2.
    #[error("a window is larger than allowed")]
    WindowOverflow,
    /// More data than the connection's window allows. RFC 9113 §6.9.
    #[error("more data than the connection's window allows")]
    WindowExceeded,
    /// A stream depends on itself, and is not open, so that it cannot be reset. RFC 7540 §5.3.1.
    #[error("stream {stream} depends on itself")]
    DependsOnItself {
        /// The stream.
        stream: u32,
    },
    /// A field block cannot be decoded. RFC 7541, RFC 9113 §4.3.
    #[error("a field block cannot be decoded")]
    Compression,
    /// Too many requests were reset before they were answered (CVE-2023-44487), or were malformed. RFC 9113 §10.5.
    #[error("too many streams were reset before they were answered")]
    TooManyResets,
    /// A field block comes in too many parts, or is many times larger than we allow. RFC 9113 §10.5.1.
    #[error("a field block is far too large")]
    BlockTooLarge,
    /// Too many frames that ask for nothing: PING, SETTINGS, PRIORITY, empty DATA. RFC 9113 §10.5.
    #[error("too many frames that carry nothing")]
    TooManyIdleFrames,
}

impl ConnectionError {
    /// Whether the peer makes work that leads nowhere, and breaks no rule else.
    pub const fn is_flood(self) -> bool {
        matches!(self, Self::TooManyResets | Self::TooManyIdleFrames | Self::BlockTooLarge)
    }

    /// The code of the GOAWAY that the peer is sent.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Preface
            | Self::SettingsMissing
            | Self::StreamMisplaced { .. }
            | Self::StreamIdle { .. }
            | Self::StreamNumber { .. }
            | Self::Padding
            | Self::BlockInterrupted { .. }
            | Self::ContinuationAlone
            | Self::Push
            | Self::WindowUpdateEmpty
            | Self::DependsOnItself { .. } => ErrorCode::PROTOCOL_ERROR,
            // RFC 9113 §6.5.2: the only setting whose wrong value has its own code is INITIAL_WINDOW_SIZE.
            Self::SettingValue { setting: 4, .. } => ErrorCode::FLOW_CONTROL_ERROR,
            Self::SettingValue { .. } => ErrorCode::PROTOCOL_ERROR,
            Self::FrameTooLong { .. } | Self::FrameSize { .. } => ErrorCode::FRAME_SIZE_ERROR,
            Self::StreamClosed { .. } => ErrorCode::STREAM_CLOSED,
            Self::WindowOverflow | Self::WindowExceeded => ErrorCode::FLOW_CONTROL_ERROR,
            Self::Compression => ErrorCode::COMPRESSION_ERROR,
            Self::TooManyResets | Self::BlockTooLarge | Self::TooManyIdleFrames => ErrorCode::ENHANCE_YOUR_CALM,
        }
    }
}

/// Why a client cannot open a stream now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotOpen {
    /// As many streams are open as the peer allows. Wait for one to end, or use another connection.
    #[error("as many streams are open as the peer allows")]
    TooMany,
    /// One side has said that the connection ends. Use another connection.
    #[error("the connection is about to end")]
    GoingAway,
    /// There are no stream numbers left. Use another connection. RFC 9113 §5.1.1.
    #[error("there are no stream numbers left")]
    Exhausted,
    /// A server does not open streams.
    #[error("a server does not open streams")]
    Server,
}

/// Why something cannot be sent on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotSend {
    /// The stream was released, never existed, or the whole connection failed.
    #[error("there is no such stream")]
    Gone,
    /// The stream was reset, by the peer or by us.
    #[error("the stream was reset with {0}")]
    Reset(ErrorCode),
    /// It does not come in this order: data before the head, or anything after the end.
    #[error("it cannot be sent in this state of the stream")]
    OutOfOrder,
}
