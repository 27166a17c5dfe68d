//! Which streams wait for their reader: the windows that a client has opened (RFC 9113, 5.2), counted along.
//!
//! A stream whose window is used up is one whose reader has not taken what it was sent. That is nothing bad: an
//! application may pause. But it holds what is waiting for it, and so a client that opens no windows, or by the byte,
//! could hold that for ever, on as many streams as it likes. [`Windows`] is looked at now and then while a window is used
//! up, and costs no clock and no timer while none is. A stream that has nothing to send and has room is never blamed,
//! however long it rests. Whether the peer answers PINGs is looked at in the same way, since `h2` waits for that answer
//! before it ends a connection in good order.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Bytes that a reader must take within the time that it is given, or it stalls.
pub const LEAST: u64 = 1024;
/// Streams that may stall before the connection goes …
const STRIKES: u32 = 16;
/// … and are forgiven after so many times the time that a stream is given.
const FORGIVEN_AFTER: u32 = 10;
/// Looks within the time that a stream is given.
pub const LOOKS: u32 = 4;
/// Streams that are followed: far above what either end allows, which is what bounds them.
const STREAMS: usize = 1024;

/// What the windows say.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// These streams' readers stall. Maybe none.
    Reset(Vec<u32>),
    /// The whole connection does.
    End(&'static str),
}

#[derive(Debug)]
struct Stream {
    id: u32,
    window: i64,
    /// Its answer has begun.
    answered: bool,
    /// Seen waiting since then, and the bytes sent on it meanwhile.
    waits: Option<(Instant, u64)>,
}

/// The windows of a connection, as the answering side may use them.
#[derive(Debug)]
pub struct Windows {
    initial: i64,
    connection: i64,
    /// The connection's window was used up in all looks since then, but for so many bytes.
    connection_waits: Option<(Instant, u64)>,
    /// PINGs that the peer has not answered, and since when.
    pings: u32,
    pings_wait: Option<(Instant, u64)>,
    /// By their number: they begin in that order, and mostly end in it.
    streams: VecDeque<Stream>,
    newest: u32,
    /// Something may wait: it is worth a look.
    suspect: bool,
    /// Whether a request or an answer began or ended since the look before, and when that was last so.
    moved: bool,
    moved_at: Option<Instant>,
    strikes: u32,
    struck_at: Option<Instant>,
}

/// What a client's window is before it says otherwise (RFC 9113, 6.9.2).
const DEFAULT_WINDOW: i64 = 65_535;

impl Windows {
    pub const fn new() -> Self {
        Self {
            initial: DEFAULT_WINDOW,
            connection: DEFAULT_WINDOW,
            connection_waits: None,
            pings: 0,
            pings_wait: None,
            streams: VecDeque::new(),
            newest: 0,
            suspect: false,
            moved: false,
            moved_at: None,
            strikes: 0,
            struck_at: None,
        }
    }

    /// Whether [`Self::look`] should be called in a while.
    pub const fn is_suspect(&self) -> bool {
        self.suspect
    }

    fn position(&self, id: u32) -> Option<usize> {
        self.streams.binary_search_by_key(&id, |stream| stream.id).ok()
    }

    fn find(&mut self, id: u32) -> Option<&mut Stream> {
        self.position(id).map(|at| &mut self.streams[at])
    }

    /// The client sent HEADERS: a request, or its trailers.
    pub fn asked(&mut self, id: u32) {
        if id <= self.newest || self.streams.len() >= STREAMS {
            return;
        }
        self.newest = id;
        self.moved = true;
        self.streams.push_back(Stream { id, window: self.initial, answered: false, waits: None });
    }

    /// HEADERS went out.
    pub fn answered(&mut self, id: u32, ends: bool) {
        self.moved = true;
        if ends {
            return self.closed(id);
        }
        let connection = self.connection;
        if let Some(stream) = self.find(id) {
            stream.answered = true;
            self.suspect |= stream.window <= 0 || connection <= 0;
        }
    }

    /// DATA went out.
    pub fn sent(&mut self, id: u32, bytes: u32, ends: bool) {
        self.moved |= ends;
        self.connection -= i64::from(bytes);
        if let Some((_, taken)) = &mut self.connection_waits {
            *taken += u64::from(bytes);
        }
        self.suspect |= self.connection <= 0;
        if ends {
            return self.closed(id);
        }
        if let Some(stream) = self.find(id) {
            stream.window -= i64::from(bytes);
            if let Some((_, taken)) = &mut stream.waits {
                *taken += u64::from(bytes);
            }
            self.suspect |= stream.window <= 0;
        }
    }

    /// The stream has ended, or was reset by either side.
    pub fn closed(&mut self, id: u32) {
        if let Some(at) = self.position(id) {
            self.streams.remove(at);
        }
    }

    /// A PING went out.
    pub const fn pinged(&mut self) {
        self.pings += 1;
        self.suspect = true;
    }

    /// The client answered one.
    pub const fn ponged(&mut self) {
        self.pings = self.pings.saturating_sub(1);
        self.pings_wait = None;
    }

    /// The client opened a window.
    pub fn opened(&mut self, id: u32, bytes: u32) {
        let bytes = i64::from(bytes & 0x7fff_ffff);
        if id == 0 {
            self.connection += bytes;
        } else if let Some(stream) = self.find(id) {
            stream.window += bytes;
        }
    }

    /// The client said how large streams' windows are at first, which moves those that are open (RFC 9113, 6.9.2).
    pub fn resized(&mut self, initial: u32) {
        let by = i64::from(initial) - self.initial;
        self.initial += by;
        for stream in &mut self.streams {
            stream.window += by;
        }
        self.suspect |= by < 0;
    }

    /// A stream was given up because its client stalls.
    pub fn strike(&mut self, now: Instant, patience: Duration) -> Verdict {
        if self.struck_at.is_some_and(|at| now - at > FORGIVEN_AFTER * patience) {
            self.strikes = 0;
        }
        self.struck_at = Some(now);
        self.strikes += 1;
        if self.strikes > STRIKES {
            Verdict::End("the peer stalls on one stream after the other")
        } else {
            Verdict::Reset(Vec::new())
        }
    }

    /// Looks for streams that have waited for their reader longer than `patience`: the ones to reset.
    pub fn look(&mut self, now: Instant, patience: Duration) -> Verdict {
        if std::mem::take(&mut self.moved) || self.moved_at.is_none() {
            self.moved_at = Some(now);
        }
        if overdue(&mut self.pings_wait, self.pings > 0, now, patience) {
            return Verdict::End("the peer does not answer PING");
        }
        let waiting = self.streams.iter().any(|stream| stream.answered);
        if overdue(&mut self.connection_waits, waiting && self.connection <= 0, now, patience) {
            return Verdict::End("the peer takes nothing: the connection's window stays shut");
        }
        let mut stalled = Vec::new();
        for stream in &mut self.streams {
            if overdue(&mut stream.waits, stream.answered && stream.window <= 0, now, patience) {
                stalled.push(stream.id);
            }
        }
        let rests = self.moved_at.is_some_and(|at| now - at >= patience / 2);
        if !stalled.is_empty() && stalled.len() == self.streams.len() && rests {
            return Verdict::End("the peer takes nothing on any of its streams");
        }
        for &id in &stalled {
            self.closed(id);
            if let end @ Verdict::End(_) = self.strike(now, patience) {
                return end;
            }
        }
        let of_connection = self.pings_wait.is_some() || self.connection_waits.is_some();
        self.suspect = of_connection || self.streams.iter().any(|s| s.waits.is_some());
        if !self.suspect {
            self.moved_at = None;
        }
        Verdict::Reset(stalled)
    }
}

/// Whether something has waited too long; notes when it began, or that it does not wait any more.
fn overdue(waits: &mut Option<(Instant, u64)>, waits_now: bool, now: Instant, patience: Duration) -> bool {
    if !waits_now {
        *waits = None;
        return false;
    }
    let (since, taken) = waits.get_or_insert((now, 0));
    if now - *since < patience {
        return false;
    }
    if *taken >= LEAST {
        *waits = Some((now, 0));
        return false;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Looks four times in each `PATIENCE`, after letting the client do something, until something is said or an hour is over.
    fn watch(windows: &mut Windows, mut client: impl FnMut(&mut Windows)) -> Option<(Duration, Verdict)> {
        let start = Instant::now();
        for look in 1..=60 * LOOKS {
            client(windows);
            let passed = PATIENCE / LOOKS * look;
            let verdict = windows.look(start + passed, PATIENCE);
            if verdict != Verdict::Reset(Vec::new()) {
                return Some((passed, verdict));
            }
        }
        None
    }

    fn answering(initial: u32, streams: &[u32]) -> Windows {
        let mut windows = Windows::new();
        windows.resized(initial);
        windows.opened(0, 1 << 30);
        for &id in streams {
            windows.asked(id);
            windows.answered(id, false);
        }
        windows
    }

    #[test]
    fn a_stream_with_room_may_rest_as_long_as_it_likes() {
        let mut windows = answering(65_535, &[1, 3]);
        windows.sent(1, 65_534, false);
        assert!(!windows.is_suspect());
        assert_eq!(watch(&mut windows, |_| ()), None);
    }

    #[test]
    fn a_client_that_opens_no_window_on_any_stream_loses_its_connection() {
        let mut windows = answering(0, &[1, 3, 5]);
        assert!(windows.is_suspect());
        let (after, verdict) = watch(&mut windows, |_| ()).unwrap();
        assert!(matches!(verdict, Verdict::End(_)) && after <= PATIENCE * 5 / 4, "{after:?} {verdict:?}");
    }

    #[test]
    fn one_stalled_reader_among_others_is_reset_and_the_others_stay() {
        let mut windows = answering(1000, &[1, 3, 5]);
        windows.sent(3, 1000, false);
        let (_, verdict) = watch(&mut windows, |_| ()).unwrap();
        assert_eq!(verdict, Verdict::Reset(vec![3]));
        assert!(!windows.is_suspect(), "nothing waits any more");
    }

    #[test]
    fn a_reader_that_takes_a_byte_now_and_then_stalls_and_one_that_takes_a_kilobyte_a_minute_does_not() {
        for (bytes, stalls) in [(1, true), (LEAST as u32, false)] {
            let mut windows = answering(1, &[1, 3]);
            windows.sent(1, 1, false);
            let verdict = watch(&mut windows, |windows| {
                windows.opened(1, bytes);
                windows.sent(1, bytes, false);
            });
            let expected = stalls.then(|| Verdict::Reset(vec![1]));
            assert_eq!(verdict.map(|(_, verdict)| verdict), expected, "{bytes}");
        }
    }

    #[test]
    fn a_shut_window_of_the_connection_ends_it_and_one_that_opens_does_not() {
        let mut windows = answering(1 << 20, &[1, 3]);
        windows.connection = 10_000;
        windows.sent(1, 10_000, false);
        let (after, verdict) = watch(&mut windows, |_| ()).unwrap();
        assert!(matches!(verdict, Verdict::End(_)) && after > PATIENCE, "{verdict:?}");

        windows = answering(1 << 20, &[1, 3]);
        windows.connection = 10_000;
        windows.sent(1, 10_000, false);
        let moving = watch(&mut windows, |windows| {
            windows.opened(0, 500);
            windows.sent(3, 500, false);
        });
        assert_eq!(moving, None);
    }

    #[test]
    fn who_stalls_on_one_stream_after_the_other_loses_the_connection_and_after_a_rest_is_forgiven() {
        let mut windows = answering(0, &[]);
        let start = Instant::now();
        let mut reset = 0;
        for look in 1..=1000 {
            // A new one with each look: something always moves.
            windows.asked(2 * look + 1);
            windows.answered(2 * look + 1, false);
            match windows.look(start + PATIENCE / LOOKS * look, PATIENCE) {
                Verdict::Reset(streams) => reset += streams.len(),
                Verdict::End(_) => break,
            }
        }
        assert_eq!(reset, STRIKES as usize);

        windows = Windows::new();
        let mut now = Instant::now();
        for _ in 0..100 {
            assert_eq!(windows.strike(now, PATIENCE), Verdict::Reset(Vec::new()));
            now += 11 * PATIENCE;
        }
        let ended = (0..=STRIKES).any(|_| windows.strike(now, PATIENCE) != Verdict::Reset(Vec::new()));
        assert!(ended);
    }

    #[test]
    fn a_client_that_answers_no_ping_is_gone_and_one_that_does_may_be_silent_for_the_rest() {
        let mut windows = answering(65_535, &[1]);
        windows.pinged();
        let answered = watch(&mut windows, |windows| {
            windows.ponged();
            windows.pinged();
        });
        assert_eq!(answered, None);
        windows = answering(65_535, &[1]);
        windows.pinged();
        assert!(matches!(watch(&mut windows, |_| ()), Some((_, Verdict::End(_)))));
    }

    #[test]
    fn smaller_windows_for_all_are_smaller_windows_for_those_that_are_open() {
        let mut windows = answering(65_535, &[1, 3]);
        windows.sent(1, 40_000, false);
        windows.resized(30_000);
        assert!(windows.is_suspect());
        assert_eq!(windows.find(1).unwrap().window, -10_000);
        windows.opened(1, 10_001);
        windows.look(Instant::now(), PATIENCE);
        assert!(!windows.is_suspect());
    }

    #[test]
    fn streams_that_ended_are_forgotten() {
        let mut windows = answering(0, &[1, 3, 5, 7]);
        windows.answered(1, true);
        windows.sent(3, 10, true);
        windows.closed(5);
        windows.asked(3);
        assert_eq!(windows.streams.len(), 1, "and trailers open none");
    }
}
