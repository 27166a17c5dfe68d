//! HTTP/2 frames written by hand (RFC 9113), for what no HTTP library would send.

/// What a client sends first (section 3.4), with empty SETTINGS.
#[must_use]
pub fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(Kind::Settings, 0, 0, &[])].concat()
}

/// Types of frames (section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// DATA.
    Data = 0,
    /// HEADERS.
    Headers = 1,
    /// PRIORITY.
    Priority = 2,
    /// RST_STREAM.
    Reset = 3,
    /// SETTINGS.
    Settings = 4,
    /// PUSH_PROMISE.
    PushPromise = 5,
    /// PING.
    Ping = 6,
    /// GOAWAY.
    GoAway = 7,
    /// WINDOW_UPDATE.
    WindowUpdate = 8,
    /// CONTINUATION.
    Continuation = 9,
}

/// END_STREAM of DATA and HEADERS.
pub const END_STREAM: u8 = 0x1;
/// END_HEADERS of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 0x4;

/// One frame.
#[must_use]
pub fn frame(kind: Kind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind as u8, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block of these fields, each a literal that is never indexed (RFC 7541, 6.2.3), without Huffman. What is
/// not allowed in a field goes in as it is.
#[must_use]
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0x10);
        string(&mut bytes, name);
        string(&mut bytes, value);
    }
    bytes
}

/// The fields of a GET.
#[must_use]
pub fn get<'a>(authority: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![(":method", "GET"), (":scheme", "http"), (":authority", authority), (":path", path)]
}

/// A string literal (RFC 7541, 5.2), its length as an integer with a prefix of 7 bits (5.1).
fn string(bytes: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    if length < 127 {
        bytes.push(length as u8);
    } else {
        bytes.push(127);
        length -= 127;
        while length >= 128 {
            bytes.push((length % 128) as u8 | 0x80);
            length /= 128;
        }
        bytes.push(length as u8);
    }
    bytes.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_written_as_rfc_7541_c_1_2_says() {
        let mut bytes = Vec::new();
        string(&mut bytes, &"x".repeat(1337));
        // 1337 - 127 = 1210 = 9 * 128 + 58.
        assert_eq!(bytes[..3], [127, 58 | 0x80, 9]);
        assert_eq!(bytes.len(), 3 + 1337);
    }

    #[test]
    fn a_frame_has_nine_bytes_before_its_payload() {
        assert_eq!(frame(Kind::Ping, 1, 0, &[7; 8]), [&[0, 0, 8, 6, 1, 0, 0, 0, 0][..], &[7; 8]].concat());
    }
}
