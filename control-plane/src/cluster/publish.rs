//! Into which namespaces what is trusted is to be written, and when again. Pure.
//!
//! Nobody reads back what was written: watching the ConfigMaps of all namespaces would cost more than writing them
//! now and then, and a server-side apply that changes nothing is not even stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

/// What was written is written again after so long: somebody may have deleted it.
const AGAIN: Duration = Duration::from_secs(60);
/// In one look so much is written again at most, the oldest first. With ten a second a mesh of thousands of namespaces takes
/// minutes for all, and the API server hardly notices.
const ROUND: usize = 20;

/// What a namespace is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Of the Namespace: one that was deleted and made anew has nothing of the former.
    pub uid: String,
    /// The whole of what is written; namespaces that get the same share it.
    pub state: Arc<str>,
}

/// What was written, by namespace.
#[derive(Debug, Default)]
pub(super) struct Published(BTreeMap<String, (Wanted, Instant)>);

impl Published {
    /// The namespaces to write into now: those with something new, then those whose time has come.
    pub(super) fn due(&mut self, wanted: &BTreeMap<String, Wanted>, now: Instant) -> Vec<String> {
        self.0.retain(|namespace, _| wanted.contains_key(namespace));
        let is_news = |(namespace, wanted): &(&String, &Wanted)| {
            self.0.get(*namespace).is_none_or(|(written, _)| written != *wanted)
        };
        let news: BTreeSet<_> = wanted.iter().filter(is_news).map(|(namespace, _)| namespace).collect();
        let old = self.0.iter().filter(|(_, (_, at))| *at + AGAIN <= now);
        let mut old: Vec<_> = old.filter(|(namespace, _)| !news.contains(namespace)).collect();
        old.sort_by_key(|(_, (_, at))| *at);
        let old = old.into_iter().take(ROUND).map(|(namespace, _)| namespace);
        news.iter().copied().chain(old).cloned().collect()
    }

    /// It was written.
    pub(super) fn wrote(&mut self, namespace: String, wanted: Wanted, now: Instant) {
        self.0.insert(namespace, (wanted, now));
    }

    /// It could not be written, so it is news again.
    pub(super) fn failed(&mut self, namespace: &str) {
        self.0.remove(namespace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_written_at_once_and_the_rest_a_few_at_a_time() {
        let wanted = |uid: &str, state: &str| Wanted { uid: uid.to_owned(), state: state.into() };
        let mut all: BTreeMap<_, _> = (0..100).map(|n| (format!("n{n:02}"), wanted("u", "x"))).collect();
        let (mut published, start) = (Published::default(), Instant::now());
        assert_eq!(published.due(&all, start).len(), 100);
        for (index, (namespace, wanted)) in all.iter().enumerate() {
            let at = start + Duration::from_millis(index as u64);
            published.wrote(namespace.clone(), wanted.clone(), at);
        }
        assert!(published.due(&all, start + AGAIN - Duration::from_secs(1)).is_empty());
        let late = start + 2 * AGAIN;
        let due = published.due(&all, late);
        assert_eq!((due.len(), &*due[0]), (ROUND, "n00"), "the oldest first");
        for namespace in due {
            published.wrote(namespace.clone(), all[&namespace].clone(), late);
        }
        assert_eq!(published.due(&all, late)[0], "n20", "then the others");

        all.insert("n98".to_owned(), wanted("another", "x"));
        all.insert("n99".to_owned(), wanted("u", "y"));
        published.failed("n97");
        let due = published.due(&all, late);
        assert_eq!((&due[..3], due.len()), (&["n97", "n98", "n99"].map(str::to_owned)[..], 3 + ROUND));
        all.clear();
        assert!(published.due(&all, late).is_empty());
    }
}
