//! The judgement of one NetworkPolicy. Pure.
//!
//! Sidecars speak to each other on port 15008, whatever port the application has. So a policy that was written for the
//! application's port, and was right, keeps meshed callers out once both ends have a sidecar. That is looked for rule by
//! rule: whom it lets in to the application's port, and whether any policy lets the same in to 15008. Callers that are no
//! pods of the mesh (addresses, namespaces without sidecars) need no 15008.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use heddle_api::ports;
use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{
    super::selection::Labels,
    Replica, Shape,
    policy::{
        Direction, Rule, holds_address, implies, isolates, matches, port_of, rules, selects, tcp_range,
    },
};
use crate::diagnostics::{FieldError, Reason};

/// Not in the mesh, whoever asks.
const DNS: u16 = 53;
/// Workloads that are named in a sentence.
const NAMED: usize = 3;

/// What a policy is judged by.
pub(super) struct Around<'a> {
    /// The policy's.
    pub namespace: &'a str,
    /// All of its namespace.
    pub policies: &'a BTreeMap<String, Arc<NetworkPolicy>>,
    /// Pods with a sidecar in its namespace.
    pub shapes: Vec<&'a Shape>,
    /// Whether a Service leads to them.
    pub called: &'a dyn Fn(&Shape) -> bool,
    /// Namespaces with sidecars, and their labels.
    pub meshed: BTreeMap<&'a str, Labels>,
    /// The control plane's; none where it is elsewhere.
    pub replicas: Vec<&'a Replica>,
    /// The labels of the control plane's namespace.
    pub system: Labels,
}

/// What is wrong with the policy of this name.
pub(super) fn problems(name: &str, around: &Around<'_>) -> Vec<FieldError> {
    let Some(policy) = around.policies.get(name) else { return Vec::new() };
    let mut errors = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        if !isolates(policy, direction) {
            continue;
        }
        let selected = || around.shapes.iter().copied().filter(|shape| selects(policy, &shape.labels));
        errors.extend(traps(policy, direction, selected(), around));
        match direction {
            Direction::Ingress => errors.extend(closed(name, selected(), around)),
            Direction::Egress => errors.extend(cut_off(name, selected(), around)),
        }
    }
    errors
}

impl Around<'_> {
    /// The policies that isolate a pod in a direction, by name.
    fn on(&self, shape: &Shape, direction: Direction) -> impl Iterator<Item = (&str, &NetworkPolicy)> {
        self.policies
            .iter()
            .map(|(name, policy)| (name.as_str(), &**policy))
            .filter(move |(_, policy)| isolates(policy, direction) && selects(policy, &shape.labels))
    }

    /// All rules that hold for a pod.
    fn rules(&self, shape: &Shape, direction: Direction) -> Vec<Rule<'_>> {
        self.on(shape, direction).flat_map(|(_, policy)| rules(policy, direction)).collect()
    }

    /// The pods of the mesh that a rule is about.
    fn peers(&self, rule: &Rule<'_>) -> Vec<Peer<'_>> {
        if rule.peers.is_empty() {
            let namespaces = self.meshed.keys().copied().collect();
            return vec![Peer { namespaces, pods: LabelSelector::default() }];
        }
        let peer = |peer: &NetworkPolicyPeer| {
            if peer.ip_block.is_some() {
                return None;
            }
            let namespaces = match &peer.namespace_selector {
                None => [self.namespace].into(),
                Some(selector) => {
                    let found = self.meshed.iter().filter(|(_, labels)| matches(selector, labels));
                    found.map(|(name, _)| *name).collect()
                }
            };
            Some(Peer { namespaces, pods: peer.pod_selector.clone().unwrap_or_default() })
        };
        rule.peers.iter().filter_map(peer).collect()
    }
}

/// Pods of the mesh that a rule admits.
struct Peer<'a> {
    namespaces: BTreeSet<&'a str>,
    pods: LabelSelector,
}

/// Rules that admit an application's port and not the mesh's.
fn traps<'a>(
    policy: &NetworkPolicy,
    direction: Direction,
    selected: impl Iterator<Item = &'a Shape>,
    around: &Around<'_>,
) -> Vec<FieldError> {
    let rules = rules(policy, direction);
    let mut found: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    for shape in selected {
        let own = port_of(shape);
        // Whose named ports the rule means: this pod's, or some other's that is not known.
        let named = |name: &str| match direction {
            Direction::Ingress => own(name),
            Direction::Egress => None,
        };
        let open: Vec<_> = around
            .rules(shape, direction)
            .into_iter()
            .filter(|rule| rule.admits(ports::MESH, &named))
            .flat_map(|rule| around.peers(&rule))
            .collect();
        let let_in = |peer: &Peer<'_>| {
            peer.namespaces.iter().all(|namespace| {
                open.iter().any(|wide| wide.namespaces.contains(namespace) && implies(&peer.pods, &wide.pods))
            })
        };
        for (index, rule) in rules.iter().enumerate() {
            let for_application = rule.ports.iter().any(|port| is_of_application(port, direction, &own));
            if for_application && !rule.admits(ports::MESH, &named) && !around.peers(rule).iter().all(let_in)
            {
                found.entry(index).or_default().insert(&shape.workload);
            }
        }
    }
    found.into_iter().map(|(index, workloads)| trap(direction, index, &rules[index], &workloads)).collect()
}

fn trap(direction: Direction, index: usize, rule: &Rule<'_>, workloads: &BTreeSet<&str>) -> FieldError {
    let ports = rule.ports.iter().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP").map(said);
    let ports: Vec<_> = ports.collect();
    let (ports, workloads, mesh) = (ports.join(", "), listed(workloads), ports::MESH);
    let (field, message) = match direction {
        Direction::Ingress => (
            format!("spec.ingress[{index}].ports"),
            format!(
                "admits port {ports} of {workloads} but not {mesh}, where their sidecars are reached: meshed \
                 callers that it means to let in cannot connect; add {{port: {mesh}}}, and say with an \
                 AccessPolicy who may call what"
            ),
        ),
        Direction::Egress => (
            format!("spec.egress[{index}].ports"),
            format!(
                "lets {workloads} out to port {ports} but not to {mesh}, where the sidecars of others are \
                 reached: what has a sidecar there cannot be called; add {{port: {mesh}}}"
            ),
        ),
    };
    // A way out to everyone is mostly meant for what is outside.
    let sure = direction == Direction::Ingress || !rule.peers.is_empty();
    let error = if sure { FieldError::error(field, message) } else { FieldError::warning(field, message) };
    error.because(Reason::MeshPortBlocked)
}

/// Whether an entry of a rule's ports is for something that goes by the mesh.
fn is_of_application(
    port: &NetworkPolicyPort,
    direction: Direction,
    own: &dyn Fn(&str) -> Option<u16>,
) -> bool {
    let named = |name: &str| match direction {
        Direction::Ingress => own(name),
        // Some port of another pod, which is not known.
        Direction::Egress => Some(1),
    };
    let aside = |number: u16| ports::SIDECAR.contains(&number) || number == DNS || number == ports::DISCOVERY;
    tcp_range(port, &named).is_some_and(|(first, last)| first < last || !aside(first))
}

/// Pods that a Service leads to and that nobody may call, said once, of the first of the policies.
fn closed<'a>(name: &str, selected: impl Iterator<Item = &'a Shape>, around: &Around<'_>) -> Vec<FieldError> {
    let closed = selected.filter(|shape| {
        around.rules(shape, Direction::Ingress).is_empty()
            && around.on(shape, Direction::Ingress).next().is_some_and(|(first, _)| first == name)
    });
    let (called, alone): (Vec<_>, Vec<_>) = closed.partition(|shape| (around.called)(shape));
    let names = |shapes: Vec<&'a Shape>| shapes.iter().map(|shape| shape.workload.as_str()).collect();
    let (called, alone): (BTreeSet<&str>, BTreeSet<&str>) = (names(called), names(alone));
    let mesh = ports::MESH;
    let mut errors = Vec::new();
    if !called.is_empty() {
        let message = format!(
            "admits nothing to {}, to which a Service leads, and no other policy admits port {mesh}, where \
             their sidecars are reached: add a rule with {{port: {mesh}}} for those who may call",
            listed(&called)
        );
        errors.push(FieldError::error("spec.ingress", message).because(Reason::MeshPortBlocked));
    }
    if !alone.is_empty() {
        let message = format!(
            "admits nothing to {}: right for what is never called, as no Service leads there",
            listed(&alone)
        );
        errors.push(FieldError::warning("spec.ingress", message).because(Reason::MeshPortBlocked));
    }
    errors
}

/// Sidecars that cannot reach the control plane, said once, of the first of the policies.
fn cut_off<'a>(
    name: &str,
    selected: impl Iterator<Item = &'a Shape>,
    around: &Around<'_>,
) -> Option<FieldError> {
    if around.replicas.is_empty() {
        return None;
    }
    let reached = |rule: &Rule<'_>| {
        // The control plane's port has a name of its own.
        let named = |name: &str| (name == "discovery").then_some(ports::DISCOVERY);
        let peer = |peer: &NetworkPolicyPeer| around.replicas.iter().any(|replica| is(peer, replica, around));
        rule.admits(ports::DISCOVERY, &named) && (rule.peers.is_empty() || rule.peers.iter().any(peer))
    };
    let cut = selected.filter(|shape| {
        !around.rules(shape, Direction::Egress).iter().any(reached)
            && around.on(shape, Direction::Egress).next().is_some_and(|(first, _)| first == name)
    });
    let cut: BTreeSet<_> = cut.map(|shape| shape.workload.as_str()).collect();
    if cut.is_empty() {
        return None;
    }
    let discovery = ports::DISCOVERY;
    let message = format!(
        "neither it nor another policy lets {} out to port {discovery} of the control plane, without which \
         a sidecar gets no certificate and no configuration: add {{to: [{{namespaceSelector: {{matchLabels: \
         {{{}: {}}}}}}}], ports: [{{port: {discovery}}}]}}",
        listed(&cut),
        super::NAME_LABEL,
        heddle_api::SYSTEM_NAMESPACE,
    );
    Some(FieldError::error("spec.egress", message).because(Reason::ControlPlaneBlocked))
}

/// Whether a peer is a replica of the control plane.
fn is(peer: &NetworkPolicyPeer, replica: &Replica, around: &Around<'_>) -> bool {
    if let Some(block) = &peer.ip_block {
        return replica.ips.iter().any(|ip| holds_address(block, *ip));
    }
    let namespace = match &peer.namespace_selector {
        Some(selector) => matches(selector, &around.system),
        None => around.namespace == heddle_api::SYSTEM_NAMESPACE,
    };
    namespace && peer.pod_selector.as_ref().is_none_or(|selector| matches(selector, &replica.labels))
}

fn said(port: &NetworkPolicyPort) -> String {
    match (&port.port, port.end_port) {
        (None, _) => "all".to_owned(),
        (Some(IntOrString::Int(first)), Some(last)) => format!("{first}-{last}"),
        (Some(IntOrString::Int(number)), None) => number.to_string(),
        (Some(IntOrString::String(name)), _) => format!("{name:?}"),
    }
}

/// `a, b, c and 4 more`.
fn listed(workloads: &BTreeSet<&str>) -> String {
    let named: Vec<_> = workloads.iter().take(NAMED).copied().collect();
    let more = workloads.len() - named.len();
    let tail = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{tail}", named.join(", "))
}
