//! The ways in which one path can be read, so that no policy is passed by writing a path oddly.
//!
//! Servers disagree about dot segments, `//`, encoded slashes, backslashes, NUL, `;` parameters and how often to
//! decode. [`Readings`] is the set of what they may come to; access rules must allow all of it, a Deny or a route
//! matches when any of it does. What is forwarded is not decided here: it is the path as it came.
//!
//! Not among the readings: letter case, a trailing slash, and encodings that are not UTF-8 (overlong forms).

/// More readings than this are not enumerated; see [`Readings::complete`].
const MAX_READINGS: usize = 64;
/// Nor more bytes of them, since a path may be long.
const MAX_BYTES: usize = 64 * 1024;

/// Everything that a path may mean. Costs one scan and no allocation where there is only one reading.
#[derive(Debug)]
pub struct Readings<'a> {
    came: &'a str,
    others: Vec<String>,
    complete: bool,
}

impl<'a> Readings<'a> {
    /// The readings of a request's path (without query). An empty one means `/` (RFC 9110, 4.2.3).
    #[must_use]
    pub fn of(path: &'a str) -> Self {
        let came = if path.is_empty() { "/" } else { path };
        let mut readings = Self { came, others: Vec::new(), complete: true };
        if !is_plain(came) {
            readings.expand();
        }
        readings
    }

    /// The path as it came.
    #[must_use]
    pub fn came(&self) -> &'a str {
        self.came
    }

    /// All of them, the path as it came first. At least one.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.came).chain(self.others.iter().map(String::as_str))
    }

    /// False when the path was so involved that some readings are missing: then it must be held to match every
    /// Deny and no Allow.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.complete
    }

    /// The first reading for which `matches` holds.
    pub fn find(&self, matches: impl Fn(&str) -> bool) -> Option<&str> {
        self.iter().find(|reading| matches(reading))
    }

    /// Every step is taken or left out by some server, so each one may double the set; in practice a path has one
    /// or two oddities and the set stays small.
    fn expand(&mut self) {
        let mut bytes = 0;
        for step in STEPS {
            for index in 0..=self.others.len() {
                let from = if index == 0 { self.came } else { &self.others[index - 1] };
                let Some(reading) = step(from) else { continue };
                if reading == self.came || self.others.contains(&reading) {
                    continue;
                }
                bytes += reading.len();
                if self.others.len() + 1 == MAX_READINGS || bytes > MAX_BYTES {
                    self.complete = false;
                    return;
                }
                self.others.push(reading);
            }
        }
    }
}

/// How a path that a policy names may be spelled: as it is written, and with its escapes read as far as that leaves it
/// the same path. An escaped slash stays escaped: servers that tell the two apart mean another path by it.
#[must_use]
pub fn spellings(path: &str) -> Vec<String> {
    let mut all = vec![path.to_owned()];
    for spelling in [decode_unreserved(path), decode_but_slashes(path)].into_iter().flatten() {
        if !all.contains(&spelling) {
            all.push(spelling);
        }
    }
    all
}

/// What a server may do to a path, in the order in which servers do it. Each gives nothing where it changes nothing.
const STEPS: [fn(&str) -> Option<String>; 12] = [
    without_authority,
    without_parameters,
    without_dots,
    decode_unreserved,
    decode_but_slashes,
    decode,
    cut_at_nul,
    with_backslashes_turned,
    without_parameters,
    with_slashes_merged,
    without_dots,
    with_slashes_merged,
];

/// Whether no step would change the path. One scan.
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    let ends_segment = |at: usize| bytes.get(at).is_none_or(|&b| b == b'/');
    for (at, &byte) in bytes.iter().enumerate() {
        match byte {
            b'%' | b'\\' | b';' | 0 => return false,
            b'/' => match bytes.get(at + 1) {
                Some(b'/') => return false,
                Some(b'.') if ends_segment(at + 2) => return false,
                Some(b'.') if bytes[at + 2] == b'.' && ends_segment(at + 3) => return false,
                _ => {}
            },
            _ => {}
        }
    }
    true
}

/// `//host/path` is a network-path reference to URL parsers (RFC 3986, 4.2; WHATWG takes `\` for `/`).
fn without_authority(path: &str) -> Option<String> {
    let rest = path.strip_prefix("//").or_else(|| path.strip_prefix("/\\"))?;
    let path = rest.find(['/', '\\']).map_or("/", |at| &rest[at..]);
    Some(path.to_owned())
}

/// Cuts `;name=value` off every segment (RFC 3986, 3.3; servlet containers).
fn without_parameters(path: &str) -> Option<String> {
    if !path.contains(';') {
        return None;
    }
    let segments: Vec<_> =
        path.split('/').map(|segment| segment.split_once(';').map_or(segment, |(name, _)| name)).collect();
    Some(segments.join("/"))
}

/// RFC 3986, 5.2.4.
fn without_dots(path: &str) -> Option<String> {
    let segments = path.strip_prefix('/')?.split('/');
    if !segments.clone().any(|segment| segment == "." || segment == "..") {
        return None;
    }
    let mut kept = Vec::new();
    let mut ends_open = false;
    for segment in segments {
        ends_open = segment == "." || segment == "..";
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            _ => kept.push(segment),
        }
    }
    if ends_open {
        kept.push("");
    }
    Some(format!("/{}", kept.join("/")))
}

/// RFC 3986, 6.2.2: escapes that never needed to be, and the case of hexadecimal digits.
fn decode_unreserved(path: &str) -> Option<String> {
    decode_where(path, |byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
}

/// As servers that keep an encoded slash apart from a slash. With [`decode`] after it, what was encoded twice is read too.
fn decode_but_slashes(path: &str) -> Option<String> {
    decode_where(path, |byte| byte != b'/' && byte != b'\\')
}

fn decode(path: &str) -> Option<String> {
    decode_where(path, |_| true)
}

fn decode_where(path: &str, wanted: impl Fn(u8) -> bool) -> Option<String> {
    if !path.contains('%') {
        return None;
    }
    let decoded = String::from_utf8(decode_bytes(path, &wanted)).unwrap_or_else(|_| {
        // Escapes that make no UTF-8 stay as they are, so that a reading is always text.
        String::from_utf8_lossy(&decode_bytes(path, |byte| byte.is_ascii() && wanted(byte))).into_owned()
    });
    (decoded != path).then_some(decoded)
}

fn decode_bytes(path: &str, wanted: impl Fn(u8) -> bool) -> Vec<u8> {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match escape_at(bytes, at) {
            Some(byte) if wanted(byte) => decoded.push(byte),
            Some(byte) => decoded.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            None => {
                decoded.push(bytes[at]);
                at += 1;
                continue;
            }
        }
        at += 3;
    }
    decoded
}

/// The byte that `%XX` at `at` stands for, if it is one.
pub(crate) fn escape_at(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|&b| char::from(b).to_digit(16));
    if bytes.get(at) != Some(&b'%') {
        return None;
    }
    // Two hexadecimal digits are below 256.
    Some((digit(at + 1)? * 16 + digit(at + 2)?) as u8)
}

/// C strings end here.
fn cut_at_nul(path: &str) -> Option<String> {
    let (before, _) = path.split_once('\0')?;
    Some(if before.is_empty() { "/" } else { before }.to_owned())
}

fn with_backslashes_turned(path: &str) -> Option<String> {
    path.contains('\\').then(|| path.replace('\\', "/"))
}

fn with_slashes_merged(path: &str) -> Option<String> {
    if !path.contains("//") {
        return None;
    }
    let mut merged = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !merged.ends_with('/') {
            merged.push(c);
        }
    }
    Some(merged)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn readings(path: &str) -> Vec<String> {
        Readings::of(path).iter().map(str::to_owned).collect()
    }

    #[test]
    fn a_plain_path_has_one_reading_and_allocates_nothing() {
        for path in ["/", "/a", "/a/b/", "/.well-known/x", "/a/..b/...", "/a.b/c..", "*", "/a?", "/ü"] {
            let readings = Readings::of(path);
            assert_eq!(readings.iter().collect::<Vec<_>>(), [path]);
            assert_eq!(readings.others.capacity(), 0, "{path}");
            assert!(readings.complete());
        }
        assert_eq!(readings(""), ["/"]);
    }

    #[test]
    fn every_oddity_is_read_in_each_of_its_ways() {
        let cases: &[(&str, &[&str])] = &[
            ("/public/../admin", &["/public/../admin", "/admin"]),
            ("/public/./admin", &["/public/admin"]),
            ("/public/..", &["/"]),
            ("/../../admin", &["/admin"]),
            ("//admin", &["//admin", "/admin"]),
            ("//host/admin", &["/host/admin", "/admin"]),
            ("/\\host/admin", &["/admin"]),
            ("/public/%2e%2E/admin", &["/admin", "/public/../admin"]),
            ("/public%2f..%2fadmin", &["/admin", "/public%2F..%2Fadmin"]),
            ("/a%2fb", &["/a%2fb", "/a/b"]),
            ("/public\\..\\admin", &["/admin"]),
            ("/public%5c..%5cadmin", &["/admin", "/public\\..\\admin"]),
            ("/admin%00.png", &["/admin", "/admin\0.png"]),
            ("/%00", &["/"]),
            ("/admin;x=1/users", &["/admin/users"]),
            ("/public/..;x/admin", &["/admin"]),
            ("/public/..%3bx/admin", &["/admin"]),
            ("/admin;%2fb", &["/admin", "/admin/b"]),
            ("/%61dmin", &["/admin"]),
            ("/%2561dmin", &["/admin", "/%61dmin"]),
            ("/public/%252e%252e/admin", &["/admin"]),
            ("/public%252f..%252fadmin", &["/admin"]),
            // Slashes merged before dots are resolved, or not, or after.
            ("/a//../b", &["/b", "/a/b"]),
            ("/x/a//../..//b", &["/b", "/x//b", "/x/b"]),
            ("/x/a//%2e./..//b", &["/x//b", "/x/b"]),
            // Parameters cut before decoding, which may go on; and slashes that stay encoded.
            ("/%2561dmin;%2fb", &["/admin", "/admin/b"]),
            ("/a%20b%2Fc", &["/a b%2Fc", "/a b/c"]),
            // Dots resolved before decoding alone.
            ("/x/../a/%2e%2e/b", &["/a/../b", "/b"]),
        ];
        for (path, expected) in cases {
            let found = readings(path);
            assert_eq!(found[0], *path);
            for reading in *expected {
                assert!(found.iter().any(|r| r == reading), "{path} is not read as {reading}: {found:?}");
            }
        }
    }

    #[test]
    fn an_escape_that_is_none_stays_as_it_is() {
        assert_eq!(readings("/a%"), ["/a%"]);
        assert_eq!(readings("/a%zz/%4"), ["/a%zz/%4"]);
        assert_eq!(readings("/%ff"), ["/%ff", "/%FF"]);
        assert_eq!(readings("/caf%c3%a9"), ["/caf%c3%a9", "/caf%C3%A9", "/café"]);
    }

    #[test]
    fn a_policys_path_is_spelled_in_each_way_that_is_the_same_path() {
        for (path, others) in [
            ("/a", &[][..]),
            ("/a%2fb", &["/a%2Fb"]),
            ("/a%40b", &["/a@b"]),
            ("/%61%2fb", &["/a%2Fb"]),
            ("/caf%c3%a9", &["/caf%C3%A9", "/café"]),
            ("/half%4", &[]),
        ] {
            let found = spellings(path);
            assert_eq!(
                (found[0].as_str(), &found[1..]),
                (path, others.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>().as_slice())
            );
        }
    }

    #[test]
    fn what_honest_clients_send_is_read_completely() {
        for path in [
            "/files/a%20b/%C3%BC.pdf",
            "/projects/group%2Fsub%2Fname/issues",
            "/map;lat=50;long=20/tiles//3",
            "/a/../b/./c%20d",
            "/search/100%25%20cotton",
            "/proxy/https://example.org/a%20b?c",
        ] {
            let readings = Readings::of(path);
            assert!(readings.complete(), "{path}");
            assert!(readings.iter().count() <= 24, "{path}: {}", readings.iter().count());
        }
        let long = format!("/q/{}", "word%20".repeat(4_000));
        assert!(Readings::of(&long).complete());
    }

    #[test]
    fn a_path_too_involved_to_be_read_says_so() {
        let path = "//h\\x/;a/..%2f%5c%00;b%252f%252e%252e//%2e/./..;/%25%32%66/".repeat(3);
        let readings = Readings::of(&path);
        assert!(!readings.complete());
        assert!(readings.iter().count() <= MAX_READINGS);
        let long = format!("/%61//;{}", "x/".repeat(30_000));
        assert!(!Readings::of(&long).complete());
    }

    proptest! {
        #[test]
        fn the_set_is_bounded_without_doubles_and_holds_the_path(
            path in "/([a-c./;\\\\]|%2f|%2e|%5c|%00|%25|%3b|%|%c3|é){0,24}"
        ) {
            let found = readings(&path);
            prop_assert!(found.len() <= MAX_READINGS);
            prop_assert_eq!(&found[0], &path);
            let distinct: std::collections::HashSet<_> = found.iter().collect();
            prop_assert_eq!(distinct.len(), found.len());
        }

        #[test]
        fn a_path_is_plain_exactly_when_no_step_changes_it(path in "/([ab./;\\\\%]|%2e|\\.\\./){0,12}") {
            let changed = STEPS.iter().any(|step| step(&path).is_some());
            // A lone percent sign is looked at and found harmless.
            prop_assert!(!(is_plain(&path) && changed));
            prop_assert!(changed || is_plain(&path) || path.contains('%'));
        }

        #[test]
        fn whatever_is_written_to_hide_a_segment_is_read_as_that_segment(
            // Each entry spells the slash before, or noise after, in a way some server undoes.
            slash in prop::sample::select(vec!["/", "//", "/./", "%2f", "%2F", "\\", "%5c", "/x/../", "/x/%2e%2e/", "%252f", "/;v=1/../"]),
            tail in prop::sample::select(vec!["", ";v=1", "%00", "%00.html", "/.", "/x/..", "%3bv"]),
        ) {
            let path = format!("/public{slash}admin{tail}");
            let found = readings(&path);
            prop_assert!(
                found.iter().any(|r| r.trim_end_matches('/') == "/public/admin"),
                "{} {:?}", path, found
            );
        }
    }
}
