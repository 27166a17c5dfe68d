//! What is to be said to the server: coalesced, so that it stays bounded by what is held while the stream is slow.

use std::collections::{BTreeSet, VecDeque};

use heddle_api::v1::{DiscoveryRequest, Refusal, ResourceName, ResourceType};

/// Names in one request.
const CHUNK: usize = 512;
/// Acknowledgements that may wait; beyond it no response is read.
const ACKS: usize = 64;

type Name = (i32, String);

/// Requests in the making.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    unsubscribe: BTreeSet<Name>,
    subscribe: BTreeSet<Name>,
    acks: VecDeque<(u64, Vec<Refusal>)>,
}

impl Outgoing {
    pub(super) fn subscribe(&mut self, kind: ResourceType, name: &str) {
        self.subscribe.insert((kind.into(), name.to_owned()));
    }

    /// Takes back a subscription that was not sent yet, or ends one that was.
    pub(super) fn unsubscribe(&mut self, kind: ResourceType, name: &str) {
        let name = (kind.into(), name.to_owned());
        if !self.subscribe.remove(&name) {
            self.unsubscribe.insert(name);
        }
    }

    /// Has the server say it all again: what it believes us to hold is not what we hold.
    pub(super) fn renew(&mut self, kind: ResourceType, name: &str) {
        self.unsubscribe.insert((kind.into(), name.to_owned()));
        self.subscribe(kind, name);
    }

    pub(super) fn answer(&mut self, nonce: u64, refused: Vec<Refusal>) {
        self.acks.push_back((nonce, refused));
    }

    /// Whether so many answers wait that reading on would only add to them.
    pub(super) fn is_congested(&self) -> bool {
        self.acks.len() >= ACKS
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unsubscribe.is_empty() && self.subscribe.is_empty() && self.acks.is_empty()
    }

    /// The next request. Unsubscriptions go before subscriptions, in a request of their own, so that a name which is
    /// in both is answered anew.
    pub(super) fn next(&mut self) -> Option<DiscoveryRequest> {
        if self.is_empty() {
            return None;
        }
        let mut request = DiscoveryRequest::default();
        if let Some((nonce, refused)) = self.acks.pop_front() {
            request.nonce = nonce;
            request.refused = refused;
        }
        if self.unsubscribe.is_empty() {
            request.subscribe = take(&mut self.subscribe);
        } else {
            request.unsubscribe = take(&mut self.unsubscribe);
        }
        Some(request)
    }
}

fn take(names: &mut BTreeSet<Name>) -> Vec<ResourceName> {
    let mut taken = Vec::with_capacity(names.len().min(CHUNK));
    while taken.len() < CHUNK
        && let Some((r#type, name)) = names.pop_first()
    {
        taken.push(ResourceName { r#type, name });
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[ResourceName]) -> Vec<&str> {
        list.iter().map(|n| n.name.as_str()).collect()
    }

    #[test]
    fn what_was_not_sent_yet_is_taken_back_silently() {
        let mut outgoing = Outgoing::default();
        outgoing.subscribe(ResourceType::Destination, "a:80");
        outgoing.unsubscribe(ResourceType::Destination, "a:80");
        assert_eq!(outgoing.next(), None);
    }

    #[test]
    fn a_name_given_up_and_wanted_again_is_unsubscribed_first() {
        let mut outgoing = Outgoing::default();
        outgoing.unsubscribe(ResourceType::Destination, "a:80");
        outgoing.subscribe(ResourceType::Destination, "a:80");
        let first = outgoing.next().unwrap();
        assert_eq!((names(&first.unsubscribe), names(&first.subscribe)), (vec!["a:80"], vec![]));
        let second = outgoing.next().unwrap();
        assert_eq!((names(&second.unsubscribe), names(&second.subscribe)), (vec![], vec!["a:80"]));
        assert_eq!(outgoing.next(), None);
    }

    #[test]
    fn every_response_has_an_answer_of_its_own() {
        let mut outgoing = Outgoing::default();
        outgoing.answer(1, vec![]);
        outgoing.answer(2, vec![Refusal { reason: "no".to_owned(), ..Refusal::default() }]);
        outgoing.subscribe(ResourceType::Destination, "a:80");
        let first = outgoing.next().unwrap();
        assert_eq!((first.nonce, first.refused.len(), first.subscribe.len()), (1, 0, 1));
        let second = outgoing.next().unwrap();
        assert_eq!((second.nonce, second.refused.len(), second.subscribe.len()), (2, 1, 0));
        assert!(outgoing.is_empty());
    }

    #[test]
    fn a_thousand_names_travel_in_requests_of_bounded_size() {
        let mut outgoing = Outgoing::default();
        for i in 0..1000 {
            outgoing.subscribe(ResourceType::Destination, &format!("n{i}:80"));
        }
        let sizes: Vec<_> = std::iter::from_fn(|| outgoing.next()).map(|r| r.subscribe.len()).collect();
        assert_eq!(sizes, [512, 488]);
    }
}
