//! Durations of HTTP requests: one handle for each (direction, service, backend, route, protocol, mTLS), and in it
//! a histogram for each (method, status, reason) that occurred.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Method, StatusCode, Version};

use super::histogram::{Histogram, Totals};
use super::{Direction, MAX_HISTOGRAMS, OTHER, label};
use crate::reason::Reason;

/// Outcomes that one handle tells apart; further ones go to the worker's `other`. An application may answer any
/// status from 100 to 999, and must not fill the worker's room with them.
const MAX_OUTCOMES: usize = 32;

/// The methods that the OpenTelemetry conventions know (RFC 9110 and RFC 5789).
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
/// What the conventions call every other method.
const OTHER_METHOD: &str = "_OTHER";

/// What a handle is looked up by.
#[derive(Clone, Copy, Debug)]
pub struct HttpLabels<'a> {
    /// `namespace/name:port` of the Service, or what stands for it.
    pub service: &'a str,
    /// The backend's key; empty where none was picked.
    pub backend: &'a str,
    /// `namespace/name` of the route; empty where none matched.
    pub route: &'a str,
    /// The version that the client spoke.
    pub protocol: Version,
    /// Whether the connection between the pods is mTLS.
    pub mtls: bool,
}

/// The labels as kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Labels {
    pub(super) direction: Direction,
    pub(super) service: Box<str>,
    /// The conventions' server.address and server.port: `name.namespace` and the port; of another form, none.
    pub(super) server: Option<(Box<str>, Box<str>)>,
    pub(super) backend: Box<str>,
    pub(super) route: Box<str>,
    pub(super) protocol: &'static str,
    pub(super) mtls: &'static str,
}

impl Labels {
    pub(super) fn new(direction: Direction, labels: HttpLabels<'_>) -> Self {
        // The conventions' spelling of network.protocol.version.
        let protocol = match labels.protocol {
            Version::HTTP_09 => "0.9",
            Version::HTTP_10 => "1.0",
            Version::HTTP_11 => "1.1",
            Version::HTTP_2 => "2",
            Version::HTTP_3 => "3",
            _ => OTHER,
        };
        Self {
            direction,
            service: label(labels.service),
            server: server(labels.service),
            backend: label(labels.backend),
            route: label(labels.route),
            protocol,
            mtls: if labels.mtls { "true" } else { "false" },
        }
    }

    fn other(direction: Direction) -> Self {
        let other: Box<str> = OTHER.into();
        Self {
            direction,
            service: other.clone(),
            server: None,
            backend: other.clone(),
            route: other,
            protocol: OTHER,
            mtls: OTHER,
        }
    }
}

/// `name.namespace` and the port of `namespace/name:port`.
fn server(service: &str) -> Option<(Box<str>, Box<str>)> {
    let (namespace, rest) = service.split_once('/')?;
    let (name, port) = rest.rsplit_once(':')?;
    Some((label(&format!("{name}.{namespace}")), label(port)))
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Outcome {
    /// Index into [`METHODS`], or past its end.
    method: u8,
    /// 0: none was received or sent.
    status: u16,
    /// Index into [`Reason::ALL`] plus one; 0: none.
    reason: u8,
}

impl Outcome {
    /// Stands for all that found no room even in `other`.
    const REST: Self = Self { method: u8::MAX, status: 0, reason: 0 };

    fn new(method: &Method, status: Option<StatusCode>, reason: Option<Reason>) -> Self {
        let method = METHODS.iter().position(|known| *known == method.as_str());
        Self {
            // Both lists are far shorter than 255.
            method: method.map_or(u8::MAX, |index| index as u8),
            status: status.map_or(0, |status| status.as_u16()),
            // `Reason::ALL` lists the variants in their order.
            reason: reason.map_or(0, |reason| reason as u8 + 1),
        }
    }

    pub(super) fn method(self) -> &'static str {
        METHODS.get(usize::from(self.method)).copied().unwrap_or(OTHER_METHOD)
    }

    pub(super) fn status(self) -> Option<u16> {
        (self.status != 0).then_some(self.status)
    }

    pub(super) fn reason(self) -> Option<Reason> {
        usize::from(self.reason).checked_sub(1).and_then(|index| Reason::ALL.get(index).copied())
    }
}

#[derive(Debug)]
struct Cell {
    outcome: Outcome,
    durations: Histogram,
}

impl Cell {
    fn new(outcome: Outcome) -> Box<Self> {
        Box::new(Self { outcome, durations: Histogram::default() })
    }
}

/// How many histograms a worker may still make.
#[derive(Debug)]
pub(super) struct Room(AtomicUsize);

impl Room {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(MAX_HISTOGRAMS)))
    }

    fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn give_back(&self, histograms: usize) {
        self.0.fetch_add(histograms, Ordering::Relaxed);
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

/// Where outcomes go that find no room in a handle.
#[derive(Debug)]
enum Overflow {
    /// To the worker's `other`.
    Series { room: Arc<Room>, other: Arc<HttpSeries> },
    /// This is `other`.
    Rest(Box<Cell>),
}

/// A handle on one series: look it up once, keep it, record many times.
#[derive(Debug)]
pub struct HttpSeries {
    pub(super) labels: Labels,
    /// Filled from the front, never emptied.
    cells: [OnceLock<Box<Cell>>; MAX_OUTCOMES],
    overflow: Overflow,
}

impl HttpSeries {
    pub(super) fn new(labels: Labels, room: Arc<Room>, other: Arc<Self>) -> Self {
        Self { labels, cells: Default::default(), overflow: Overflow::Series { room, other } }
    }

    pub(super) fn other(direction: Direction) -> Arc<Self> {
        Arc::new(Self {
            labels: Labels::other(direction),
            cells: Default::default(),
            overflow: Overflow::Rest(Cell::new(Outcome::REST)),
        })
    }

    /// Records a request that ended. `status` is what the client got or would have got, None where it got nothing;
    /// `reason` is set where the sidecar itself refused or gave up.
    ///
    /// Two relaxed additions, after a look along the outcomes that this handle has seen: mostly the first is it.
    pub fn record(
        &self,
        method: &Method,
        status: Option<StatusCode>,
        reason: Option<Reason>,
        elapsed: Duration,
    ) {
        self.histogram(Outcome::new(method, status, reason)).record(elapsed);
    }

    fn histogram(&self, outcome: Outcome) -> &Histogram {
        for slot in &self.cells {
            let cell = match slot.get() {
                Some(cell) => cell,
                None if self.has_room() => slot.get_or_init(|| Cell::new(outcome)),
                None => break,
            };
            if cell.outcome == outcome {
                return &cell.durations;
            }
        }
        match &self.overflow {
            Overflow::Series { other, .. } => other.histogram(outcome),
            Overflow::Rest(rest) => &rest.durations,
        }
    }

    fn has_room(&self) -> bool {
        match &self.overflow {
            Overflow::Series { room, .. } => room.take(),
            Overflow::Rest(_) => true,
        }
    }

    pub(super) fn totals(&self) -> Vec<(Outcome, Totals)> {
        let rest = match &self.overflow {
            Overflow::Rest(rest) => Some(rest),
            Overflow::Series { .. } => None,
        };
        let cells = self.cells.iter().map_while(OnceLock::get).chain(rest);
        cells.map(|cell| (cell.outcome, cell.durations.totals())).filter(|(_, t)| t.count() > 0).collect()
    }
}

impl Drop for HttpSeries {
    fn drop(&mut self) {
        if let Overflow::Series { room, .. } = &self.overflow {
            room.give_back(self.cells.iter().filter(|cell| cell.get().is_some()).count());
        }
    }
}
