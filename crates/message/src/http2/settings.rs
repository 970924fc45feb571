//! What we announce and enforce, and what the peer announced.

use super::frame::setting;
use super::hpack::TABLE_BYTES;

/// Largest window and largest window update. RFC 9113 §6.9.1.
pub(super) const WINDOW_MAX: u32 = 0x7fff_ffff;
/// Every window before anybody says otherwise. RFC 9113 §6.9.2.
pub(super) const WINDOW_INITIAL: u32 = 65_535;
/// Smallest value of MAX_FRAME_SIZE, and the one before anybody says otherwise. RFC 9113 §6.5.2.
pub(super) const FRAME_SIZE_MIN: u32 = 16_384;
/// Largest value of MAX_FRAME_SIZE: what 24 bits hold.
pub(super) const FRAME_SIZE_MAX: u32 = 0x00ff_ffff;

/// What we announce to the peer and enforce. Values outside a field's range are moved to its nearest end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Streams that the peer may have open at a time. Default 256. Each open stream costs about 200 bytes, its head and its inbox.
    pub max_concurrent_streams: u32,
    /// Bytes of a stream's body that may wait for the application. Default 256 KiB, at most 2^31-1. Bounds a stream's inbox.
    pub stream_window: u32,
    /// Bytes of all bodies that may wait for the application. Default 1 MiB, 65,535 to 2^31-1. Bounds all inboxes together.
    pub connection_window: u32,
    /// Longest payload of a frame that we take, in bytes. Default 16,384, up to 2^24-1. The driver must be able to hold one whole
    /// frame, which is 9 bytes more.
    pub max_frame_size: u32,
    /// Decoded size of a head that is still given to the application: names, values and 32 bytes a line (RFC 9113 §10.5.1).
    /// Default 32 KiB. A larger one arrives as [`ArrivalKind::TooLarge`](super::ArrivalKind::TooLarge).
    pub head_bytes_max: u32,
    /// Field lines of a head that is still given to the application, pseudo-headers counted. Default 128.
    pub fields_max: usize,
    /// A server allows requests with `:protocol`, which begin WebSocket and the like. RFC 8441. Default false.
    pub enable_connect_protocol: bool,
    /// Size of the table that the peer may compress fields with, in bytes. Default 4096.
    pub header_table_bytes: u32,
    /// Bytes waiting to be written beyond which bodies are refused room, and with control frames alone (answers to PING and
    /// SETTINGS, window updates, resets) beyond which [`Connection::receive`](super::Connection::receive) takes no input.
    /// Default 256 KiB.
    pub output_bytes_max: usize,
    /// Whether `authorization`, `cookie` and their like may enter the table of this connection, where they become one byte when
    /// they come again. Default true.
    ///
    /// The concern is CRIME: who can add lines of his own choice to a connection that carries another's secret, and can see the
    /// lengths of its blocks, learns when he has guessed a line as a whole (HPACK matches whole lines only, so there is no
    /// guessing byte by byte; RFC 7541 §7.1). Between our sidecars, and on loopback, one workload's requests share a connection.
    /// Set false where requests of parties that do not trust each other do, and an observer is near.
    pub index_secrets: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 256,
            stream_window: 256 * 1024,
            connection_window: 1024 * 1024,
            max_frame_size: FRAME_SIZE_MIN,
            head_bytes_max: 32 * 1024,
            fields_max: 128,
            enable_connect_protocol: false,
            header_table_bytes: TABLE_BYTES,
            output_bytes_max: 256 * 1024,
            index_secrets: true,
        }
    }
}

impl Settings {
    /// The same with every value in its range.
    pub(super) fn in_range(mut self) -> Self {
        self.stream_window = self.stream_window.min(WINDOW_MAX);
        self.connection_window = self.connection_window.clamp(WINDOW_INITIAL, WINDOW_MAX);
        self.max_frame_size = self.max_frame_size.clamp(FRAME_SIZE_MIN, FRAME_SIZE_MAX);
        self
    }

    /// What is announced, as pairs of the SETTINGS frame. `server`: as a server announces.
    pub(super) fn announced(&self, server: bool) -> Vec<(u16, u32)> {
        let mut pairs = vec![
            (setting::HEADER_TABLE_SIZE, self.header_table_bytes),
            (setting::INITIAL_WINDOW_SIZE, self.stream_window),
            (setting::MAX_FRAME_SIZE, self.max_frame_size),
            (setting::MAX_HEADER_LIST_SIZE, self.head_bytes_max),
        ];
        if server {
            pairs.push((setting::MAX_CONCURRENT_STREAMS, self.max_concurrent_streams));
            pairs.push((setting::ENABLE_CONNECT_PROTOCOL, u32::from(self.enable_connect_protocol)));
        } else {
            pairs.push((setting::ENABLE_PUSH, 0));
        }
        pairs
    }
}

/// What the peer announced last; before that, what RFC 9113 §6.5.2 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    /// Bytes of its compression table.
    pub header_table_bytes: u32,
    /// Streams that we may have open at a time.
    pub max_concurrent_streams: u32,
    /// First window of each stream that we send on, in bytes.
    pub stream_window: u32,
    /// Longest payload of a frame that it takes, in bytes.
    pub max_frame_size: u32,
    /// Largest head that it wants to see, if it said so: names, values and 32 bytes a line.
    pub head_bytes_max: Option<u32>,
    /// It is a server that takes requests with `:protocol`. RFC 8441.
    pub connect_protocol: bool,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self {
            header_table_bytes: TABLE_BYTES,
            // RFC 9113 §6.5.2 sets no bound before the first SETTINGS; it recommends that a peer allows at least this many.
            max_concurrent_streams: 100,
            stream_window: WINDOW_INITIAL,
            max_frame_size: FRAME_SIZE_MIN,
            head_bytes_max: None,
            connect_protocol: false,
        }
    }
}
