//! The borders of HTTP/2 frames in a stream of bytes (RFC 9113, 4.1), and of what is in them the little that the meter
//! needs: reset codes, window updates, and the initial window. It knows nothing of what they mean.

/// Bytes of a frame's head.
pub const HEAD_BYTES: usize = 9;
/// The client's first bytes, no frame (RFC 9113, 3.4).
pub const PREFACE: usize = 24;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Of DATA and HEADERS: the stream's last.
pub const END_STREAM: u8 = 1;
/// Of PING: an answer.
pub const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream; 0 is the connection.
    pub stream: u32,
    /// Bytes of its payload, padding included, as flow control counts them (RFC 9113, 6.9.1).
    pub length: u32,
}

/// What has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A frame, of which the head has passed; of RST_STREAM and WINDOW_UPDATE the value too.
    Frame(Head, u32),
    /// SETTINGS_INITIAL_WINDOW_SIZE, after its SETTINGS frame.
    InitialWindow(u32),
}

/// Follows frames in a stream of bytes.
#[derive(Debug)]
pub struct Frames {
    /// Bytes that are neither head nor value, still to pass.
    skip: usize,
    /// A head, or a value of a payload, as far as it has passed.
    held: [u8; HEAD_BYTES],
    filled: usize,
    /// What `held` collects: no head, but a value of this frame.
    within: Option<Head>,
    /// A header block has begun, and its last byte has not passed.
    in_block: bool,
    /// The frame that passes is the block's last.
    ends_block: bool,
    /// Header blocks that passed whole.
    blocks: u64,
}

impl Frames {
    /// Follows what comes after `skip` bytes that are no frames.
    pub const fn new(skip: usize) -> Self {
        Self {
            skip,
            held: [0; HEAD_BYTES],
            filled: 0,
            within: None,
            in_block: false,
            ends_block: false,
            blocks: 0,
        }
    }

    /// The header block that is passing, by its number; none between two.
    pub const fn block(&self) -> Option<u64> {
        if self.in_block { Some(self.blocks) } else { None }
    }

    /// Whether another frame might stand here: between two frames, and in no header block (RFC 9113, 4.3).
    pub const fn at_border(&self) -> bool {
        self.skip == 0 && self.filled == 0 && self.within.is_none() && !self.in_block
    }

    /// Bytes of the value that is collected: a setting, or one of four bytes.
    const fn wanted(&self) -> usize {
        match self.within {
            Some(Head { kind: SETTINGS, .. }) => 6,
            Some(_) => 4,
            None => HEAD_BYTES,
        }
    }

    /// Lets bytes pass, and says what was seen in them until `each` says no. Whether it never did.
    pub fn follow(&mut self, mut bytes: &[u8], mut each: impl FnMut(Seen) -> bool) -> bool {
        loop {
            if self.within.is_none() {
                let passing = self.skip.min(bytes.len());
                self.skip -= passing;
                bytes = &bytes[passing..];
                if self.skip == 0 && self.ends_block {
                    (self.in_block, self.ends_block) = (false, false);
                    self.blocks += 1;
                }
            }
            if bytes.is_empty() {
                return true;
            }
            let wanted = self.wanted();
            let taken = bytes.len().min(wanted - self.filled);
            self.held[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled < wanted {
                return true;
            }
            self.filled = 0;
            let seen = match self.within {
                Some(head) => self.value(head),
                None => self.head(),
            };
            if seen.is_some_and(|seen| !each(seen)) {
                return false;
            }
        }
    }

    /// A head has passed.
    fn head(&mut self) -> Option<Seen> {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = self.held;
        let length = u32::from_be_bytes([0, a, b, c]);
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        let head = Head { kind, flags, stream, length };
        self.skip = length as usize;
        if matches!(kind, HEADERS | PUSH_PROMISE | CONTINUATION) {
            (self.in_block, self.ends_block) = (true, flags & END_HEADERS != 0);
        }
        if matches!(kind, RST_STREAM | WINDOW_UPDATE) && length >= 4 {
            self.skip -= 4;
            self.within = Some(head);
            return None;
        }
        self.expect_setting(head);
        Some(Seen::Frame(head, 0))
    }

    /// A value has passed.
    fn value(&mut self, head: Head) -> Option<Seen> {
        self.within = None;
        let [a, b, c, d, e, f, ..] = self.held;
        if head.kind != SETTINGS {
            return Some(Seen::Frame(head, u32::from_be_bytes([a, b, c, d])));
        }
        self.expect_setting(head);
        let is_window = u16::from_be_bytes([a, b]) == INITIAL_WINDOW_SIZE;
        is_window.then(|| Seen::InitialWindow(u32::from_be_bytes([c, d, e, f])))
    }

    fn expect_setting(&mut self, head: Head) {
        if head.kind == SETTINGS && self.skip >= 6 {
            self.skip -= 6;
            self.within = Some(head);
        }
    }
}
