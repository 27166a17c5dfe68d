//! The names of one request that were not taken in yet. A request may hold more of them than should be worked through at
//! one go, and none but the last slice has the answer's place in it.

use heddle_api::v1;

/// Names that are taken in before others get their turn: some milliseconds of work.
pub const SLICE: usize = 512;

/// What is left of a request.
#[derive(Default)]
pub struct Backlog {
    unsubscribe: std::vec::IntoIter<v1::ResourceName>,
    subscribe: std::vec::IntoIter<v1::ResourceName>,
}

impl Backlog {
    /// Takes the names out of `request`, which keeps its answer.
    pub fn of(request: &mut v1::DiscoveryRequest) -> Self {
        Self {
            unsubscribe: std::mem::take(&mut request.unsubscribe).into_iter(),
            subscribe: std::mem::take(&mut request.subscribe).into_iter(),
        }
    }

    /// The next ones, in the order of the protocol: what is given up, then what is asked for. None: there are no more.
    pub fn next(&mut self) -> Option<v1::DiscoveryRequest> {
        let unsubscribe: Vec<_> = self.unsubscribe.by_ref().take(SLICE).collect();
        let subscribe: Vec<_> = self.subscribe.by_ref().take(SLICE - unsubscribe.len()).collect();
        if unsubscribe.is_empty() && subscribe.is_empty() {
            return None;
        }
        Some(v1::DiscoveryRequest { subscribe, unsubscribe, ..Default::default() })
    }

    /// Whether all was taken in.
    pub fn is_empty(&self) -> bool {
        self.unsubscribe.len() == 0 && self.subscribe.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<v1::ResourceName> {
        (0..count).map(|n| v1::ResourceName { name: n.to_string(), ..Default::default() }).collect()
    }

    #[test]
    fn a_request_is_taken_in_by_slices_and_gives_up_before_it_asks() {
        let mut request = v1::DiscoveryRequest {
            nonce: 7,
            unsubscribe: names(SLICE + 1),
            subscribe: names(SLICE),
            ..Default::default()
        };
        let mut backlog = Backlog::of(&mut request);
        assert_eq!(request, v1::DiscoveryRequest { nonce: 7, ..Default::default() });
        let mut sizes = Vec::new();
        while let Some(slice) = backlog.next() {
            sizes.push((slice.unsubscribe.len(), slice.subscribe.len()));
        }
        assert_eq!(sizes, [(SLICE, 0), (1, SLICE - 1), (0, 1)]);
        assert!(backlog.is_empty());
    }
}
