//! What a NetworkPolicy means, as Kubernetes defines it (networking.k8s.io/v1): whom it selects, in which directions it
//! isolates, and what its rules admit. Rules of all policies that select a pod add up.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
        util::intstr::IntOrString,
    },
};

use super::{super::selection::Labels, Shape};

/// A direction of traffic, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

/// A rule, of either direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule<'a> {
    /// Empty: all, of every protocol.
    pub ports: &'a [NetworkPolicyPort],
    /// Empty: everyone.
    pub peers: &'a [NetworkPolicyPeer],
}

/// Whether a policy selects a pod of its namespace.
pub(super) fn selects(policy: &NetworkPolicy, labels: &Labels) -> bool {
    let Some(spec) = &policy.spec else { return false };
    // Without a selector it selects all, as an empty one does.
    spec.pod_selector.as_ref().is_none_or(|selector| matches(selector, labels))
}

/// Whether a policy isolates the pods that it selects in this direction. Without `policyTypes` it does for Ingress, and for
/// Egress where it has such rules.
pub(super) fn isolates(policy: &NetworkPolicy, direction: Direction) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let word = match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    };
    match spec.policy_types.as_deref() {
        Some(types) if !types.is_empty() => types.iter().any(|one| one == word),
        _ => direction == Direction::Ingress || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    }
}

/// The rules of a direction, in their order.
pub(super) fn rules(policy: &NetworkPolicy, direction: Direction) -> Vec<Rule<'_>> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    match direction {
        Direction::Ingress => spec
            .ingress
            .iter()
            .flatten()
            .map(|rule| Rule {
                ports: rule.ports.as_deref().unwrap_or_default(),
                peers: rule.from.as_deref().unwrap_or_default(),
            })
            .collect(),
        Direction::Egress => spec
            .egress
            .iter()
            .flatten()
            .map(|rule| Rule {
                ports: rule.ports.as_deref().unwrap_or_default(),
                peers: rule.to.as_deref().unwrap_or_default(),
            })
            .collect(),
    }
}

/// The TCP ports that an entry admits, from the first to the last; none for another protocol, or a name that nobody has.
pub(super) fn tcp_range(port: &NetworkPolicyPort, named: &dyn Fn(&str) -> Option<u16>) -> Option<(u16, u16)> {
    if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
        return None;
    }
    match &port.port {
        None => Some((0, u16::MAX)),
        Some(IntOrString::Int(number)) => {
            let first = u16::try_from(*number).ok()?;
            let last = port.end_port.and_then(|last| u16::try_from(last).ok()).unwrap_or(first);
            Some((first, last))
        }
        // An end to a named port is refused by the API server.
        Some(IntOrString::String(name)) => named(name).map(|number| (number, number)),
    }
}

impl Rule<'_> {
    /// Whether it admits a TCP port of a pod that has these named ports.
    pub(super) fn admits(&self, number: u16, named: &dyn Fn(&str) -> Option<u16>) -> bool {
        let within = |(first, last): (u16, u16)| (first..=last).contains(&number);
        self.ports.is_empty() || self.ports.iter().filter_map(|port| tcp_range(port, named)).any(within)
    }
}

/// A pod's port by its name.
pub(super) fn port_of(shape: &Shape) -> impl Fn(&str) -> Option<u16> {
    |name| shape.ports.get(name).copied()
}

/// Whether a selector selects these labels. An empty one selects everything.
pub(super) fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let labelled = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    labelled && selector.match_expressions.iter().flatten().all(|one| holds(one, labels))
}

fn holds(one: &LabelSelectorRequirement, labels: &Labels) -> bool {
    let listed = |value: &String| one.values.iter().flatten().any(|other| other == value);
    let value = labels.get(&one.key);
    match one.operator.as_str() {
        "In" => value.is_some_and(listed),
        // What has no such label is not in it.
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        // Refused by the API server. Nothing is admitted by what nobody knows.
        _ => false,
    }
}

/// Whether everything that `narrow` selects is selected by `wide`, as far as the selectors alone tell: yes is sure, no is not.
pub(super) fn implies(narrow: &LabelSelector, wide: &LabelSelector) -> bool {
    let mut known = narrow.match_labels.clone().unwrap_or_default();
    for one in narrow.match_expressions.iter().flatten() {
        if let ("In", Some([value])) = (one.operator.as_str(), one.values.as_deref()) {
            known.insert(one.key.clone(), value.clone());
        }
    }
    let labelled = wide.match_labels.iter().flatten().all(|(key, value)| known.get(key) == Some(value));
    let expressed = |one: &LabelSelectorRequirement| {
        // A label that is not said may have any value.
        let follows = known.contains_key(&one.key) && holds(one, &known);
        follows || narrow.match_expressions.iter().flatten().any(|other| says(other, one))
    };
    labelled && wide.match_expressions.iter().flatten().all(expressed)
}

/// Whether what holds for `one` holds for `other`.
fn says(one: &LabelSelectorRequirement, other: &LabelSelectorRequirement) -> bool {
    let within = |some: &LabelSelectorRequirement, all: &LabelSelectorRequirement| {
        some.values.iter().flatten().all(|value| all.values.iter().flatten().any(|one| one == value))
    };
    one.key == other.key
        && match (one.operator.as_str(), other.operator.as_str()) {
            ("In", "In") => within(one, other),
            ("NotIn", "NotIn") => within(other, one),
            ("In" | "Exists", "Exists") | ("DoesNotExist", "DoesNotExist" | "NotIn") => true,
            _ => false,
        }
}

/// Whether an address is in a block and in none of its exceptions.
pub(super) fn holds_address(block: &IPBlock, ip: IpAddr) -> bool {
    let within = |cidr: &String| cidr.parse::<IpNet>().is_ok_and(|net| net.contains(&ip));
    within(&block.cidr) && !block.except.iter().flatten().any(within)
}
