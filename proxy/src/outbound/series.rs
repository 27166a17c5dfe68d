//! A worker's handles on its outbound series, found without hashing a string.
//!
//! The names of a service, backend and route are `Arc<str>`s that live as long as the config that made them, so
//! their addresses identify them while an entry here keeps them alive.

use std::{cell::RefCell, sync::Arc};

use http::Version;

use crate::metrics::{Direction, HttpLabels, HttpSeries, WorkerMetrics};

/// Entries, a power of two; one that collides replaces the other, and costs it a look-up by name.
const SLOTS: usize = 256;

/// What tells series apart.
#[derive(Clone, Debug)]
pub struct SeriesKey {
    /// The Service port.
    pub service: Arc<str>,
    /// The backend; the service again where there is none.
    pub backend: Arc<str>,
    /// The route; none: no route attached.
    pub route: Option<Arc<str>>,
    /// What the client spoke.
    pub version: Version,
    /// Whether the endpoint has a sidecar.
    pub mtls: bool,
}

/// A direct-mapped cache of handles.
#[derive(Debug)]
pub struct SeriesCache(RefCell<Box<[Slot]>>);

type Slot = Option<(SeriesKey, Arc<HttpSeries>)>;

impl Default for SeriesCache {
    fn default() -> Self {
        Self(RefCell::new(vec![None; SLOTS].into_boxed_slice()))
    }
}

impl SeriesCache {
    /// The handle for a key.
    pub fn get(&self, metrics: &WorkerMetrics, key: &SeriesKey) -> Arc<HttpSeries> {
        let mut slots = self.0.borrow_mut();
        let slot = &mut slots[key.slot()];
        if let Some((held, series)) = slot
            && held.same(key)
        {
            return Arc::clone(series);
        }
        let labels = HttpLabels {
            service: &key.service,
            backend: &key.backend,
            route: key.route.as_deref().unwrap_or(""),
            protocol: key.version,
            mtls: key.mtls,
        };
        let series = metrics.http(Direction::Outbound, labels);
        *slot = Some((key.clone(), Arc::clone(&series)));
        series
    }
}

impl SeriesKey {
    fn same(&self, other: &Self) -> bool {
        let route = match (&self.route, &other.route) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        route
            && Arc::ptr_eq(&self.service, &other.service)
            && Arc::ptr_eq(&self.backend, &other.backend)
            && self.version == other.version
            && self.mtls == other.mtls
    }

    fn slot(&self) -> usize {
        let address = |text: &Arc<str>| text.as_ptr() as usize;
        let mixed = address(&self.service)
            ^ address(&self.backend).rotate_left(7)
            ^ self.route.as_ref().map_or(0, address).rotate_left(13)
            ^ usize::from(self.mtls)
            ^ (usize::from(self.version == Version::HTTP_2) << 1);
        // Fibonacci hashing: the high bits of the product depend on all of the low ones.
        mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (usize::BITS - SLOTS.trailing_zeros())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn key(service: &Arc<str>, mtls: bool) -> SeriesKey {
        SeriesKey {
            service: Arc::clone(service),
            backend: Arc::clone(service),
            route: None,
            version: Version::HTTP_11,
            mtls,
        }
    }

    #[test]
    fn one_key_finds_one_series_and_another_key_another() {
        let metrics = Metrics::new(1).worker(0);
        let cache = SeriesCache::default();
        let service: Arc<str> = "shop/reviews:9080".into();
        let first = cache.get(&metrics, &key(&service, true));
        assert!(Arc::ptr_eq(&first, &cache.get(&metrics, &key(&service, true))));
        assert!(!Arc::ptr_eq(&first, &cache.get(&metrics, &key(&service, false))));
        // A new config brings new strings of the same text: the same series again.
        let again: Arc<str> = "shop/reviews:9080".into();
        assert!(Arc::ptr_eq(&first, &cache.get(&metrics, &key(&again, true))));
    }
}
