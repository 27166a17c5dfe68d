//! What the control plane asks of the API server, in one list. The chart grants exactly this: a test compares its roles
//! with the list, and another the list with what an API server saw the control plane do.

use k8s_openapi::api::rbac::v1::PolicyRule;

use super::{lease, root, status::health};
use crate::inject::webhook::registration;

/// Where a right holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everywhere: a rule of the ClusterRole.
    Cluster,
    /// In the control plane's namespace: a rule of the Role.
    Own,
}

/// One right.
#[derive(Clone, Copy, Debug)]
pub struct Right {
    /// Where.
    pub scope: Scope,
    /// The API group; empty for the core.
    pub group: &'static str,
    /// Plurals, with their subresources.
    pub resources: &'static [&'static str],
    /// The objects' names; empty: all.
    pub names: &'static [&'static str],
    /// Verbs.
    pub verbs: &'static [&'static str],
}

const READ: &[&str] = &["get", "list", "watch"];

/// All of them.
pub const RIGHTS: [Right; 18] = [
    // What the mesh is made of.
    everywhere("", &["namespaces", "nodes", "pods", "services"], READ),
    everywhere("discovery.k8s.io", &["endpointslices"], READ),
    everywhere("networking.k8s.io", &["networkpolicies"], READ),
    everywhere(
        "gateway.networking.k8s.io",
        &["grpcroutes", "httproutes", "referencegrants", "tcproutes"],
        READ,
    ),
    everywhere("heddle.dev", &["accesspolicies", "meshpolicies", "trafficpolicies"], READ),
    // What people read with kubectl.
    everywhere(
        "gateway.networking.k8s.io",
        &["grpcroutes/status", "httproutes/status", "tcproutes/status"],
        &["patch"],
    ),
    everywhere(
        "heddle.dev",
        &["accesspolicies/status", "meshpolicies/status", "trafficpolicies/status"],
        &["patch"],
    ),
    everywhere("events.k8s.io", &["events"], &["create", "patch"]),
    // Who a pod is.
    everywhere("authentication.k8s.io", &["tokenreviews"], &["create"]),
    // What pods know the control plane by, in their own namespaces. Written by server-side apply, which names what it
    // creates, so that a name can bound it.
    Right { names: &[root::BUNDLE], ..everywhere("", &["configmaps"], &["create", "patch"]) },
    // What the API server knows the webhook by.
    Right {
        names: &[registration::NAME],
        ..everywhere("admissionregistration.k8s.io", &["mutatingwebhookconfigurations"], &["get", "patch"])
    },
    // How long roots are needed.
    Right { names: &[root::BUNDLE], ..own("", &["configmaps"], &["get"]) },
    // The root. A name cannot bound what is created.
    own("", &["secrets"], &["create"]),
    Right { names: &[root::SECRET], ..own("", &["secrets"], READ) },
    // Who leads.
    own("coordination.k8s.io", &["leases"], &["create"]),
    Right { names: &[lease::NAME], ..own("coordination.k8s.io", &["leases"], &["get", "update"]) },
    // How the root fares.
    Right { names: &[health::DEPLOYMENT], ..own("apps", &["deployments"], &["get"]) },
    Right { names: &[health::DEPLOYMENT], ..own("apps", &["deployments/status"], &["patch"]) },
];

const fn everywhere(
    group: &'static str,
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
) -> Right {
    Right { scope: Scope::Cluster, group, resources, names: &[], verbs }
}

const fn own(
    group: &'static str,
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
) -> Right {
    Right { scope: Scope::Own, ..everywhere(group, resources, verbs) }
}

/// As a Role or ClusterRole has them.
#[must_use]
pub fn rules(scope: Scope) -> Vec<PolicyRule> {
    let strings = |all: &[&str]| all.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let rule = |right: &Right| PolicyRule {
        api_groups: Some(strings(&[right.group])),
        resources: Some(strings(right.resources)),
        resource_names: Some(strings(right.names)).filter(|names| !names.is_empty()),
        verbs: strings(right.verbs),
        ..PolicyRule::default()
    };
    RIGHTS.iter().filter(|right| right.scope == scope).map(rule).collect()
}
