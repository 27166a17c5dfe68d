//! Whether the sidecar can serve, as the sum of what its parts say.

use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The parts that must be ready; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Vec<Part>>>);

#[derive(Debug)]
struct Part {
    name: &'static str,
    /// None: it is ready.
    waiting_for: Option<String>,
}

impl Readiness {
    /// A part that is not ready yet, and what it waits for, in words. A name that was handed out before is the same
    /// part again, and waits again.
    #[must_use]
    pub fn part(&self, name: &'static str, waiting_for: &str) -> Token {
        let token = Token { readiness: self.clone(), name };
        token.not_ready(waiting_for);
        token
    }

    /// Whether every part is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().iter().all(|part| part.waiting_for.is_none())
    }

    /// What is missing, a line each; None when all are ready.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let mut text = String::new();
        for part in self.lock().iter() {
            if let Some(waiting_for) = &part.waiting_for {
                writeln!(text, "{}: {waiting_for}", part.name).expect("writing to a String does not fail");
            }
        }
        (!text.is_empty()).then_some(text)
    }

    fn set(&self, name: &'static str, waiting_for: Option<String>) {
        let mut parts = self.lock();
        match parts.iter_mut().find(|part| part.name == name) {
            Some(part) => part.waiting_for = waiting_for,
            None => parts.push(Part { name, waiting_for }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Part>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held by a part, to say whether it is ready. A token that is dropped leaves what was said last: a part that ends
/// before it was ready never makes the sidecar ready.
#[derive(Debug)]
pub struct Token {
    readiness: Readiness,
    name: &'static str,
}

impl Token {
    /// It can serve.
    pub fn ready(&self) {
        self.readiness.set(self.name, None);
    }

    /// It cannot, or no longer, and this is what it waits for.
    pub fn not_ready(&self, waiting_for: &str) {
        self.readiness.set(self.name, Some(waiting_for.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_must_be_ready_and_each_says_what_it_waits_for() {
        let readiness = Readiness::default();
        let certificate = readiness.part("certificate", "the control plane");
        let inbound = readiness.part("inbound", "discovery");
        inbound.ready();
        assert_eq!(readiness.missing().unwrap(), "certificate: the control plane\n");
        certificate.not_ready("the token expired");
        assert_eq!(readiness.missing().unwrap(), "certificate: the token expired\n");
        certificate.ready();
        assert!(readiness.is_ready());
        inbound.not_ready("discovery");
        assert!(!readiness.is_ready());
    }

    #[test]
    fn a_part_that_ends_unready_stays_unready() {
        let readiness = Readiness::default();
        drop(readiness.part("certificate", "the control plane"));
        assert!(!readiness.is_ready());
        readiness.part("certificate", "again").ready();
        assert_eq!(readiness.missing(), None);
    }
}
