//! Manifests as users write them, for the objects that nearly every world has.

use std::net::IpAddr;

/// A Pod of one container.
#[derive(Clone, Debug)]
pub struct PodManifest {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whose identity it has.
    pub service_account: String,
    /// What Services select it by.
    pub labels: Vec<(String, String)>,
    /// `status.podIP`.
    pub ip: IpAddr,
    /// The container's ports.
    pub ports: Vec<u16>,
    /// Whether it carries the sidecar's annotation.
    pub meshed: bool,
    /// Its Ready condition.
    pub ready: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
}

impl PodManifest {
    /// The file that a world keeps it in.
    #[must_use]
    pub fn file(&self) -> String {
        format!("pod-{}-{}.yaml", self.namespace, self.name)
    }

    /// As YAML.
    #[must_use]
    pub fn yaml(&self) -> String {
        let Self { namespace, name, service_account, ip, .. } = self;
        let labels: Vec<_> = self.labels.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        let labels = labels.join(", ");
        let ports: Vec<_> = self.ports.iter().map(|port| format!("{{containerPort: {port}}}")).collect();
        let ports = ports.join(", ");
        let annotations = if self.meshed { "\n  annotations: {heddle.dev/sidecar: \"true\"}" } else { "" };
        let deletion = if self.terminating { "\n  deletionTimestamp: \"2026-01-01T00:00:00Z\"" } else { "" };
        let ready = if self.ready { "True" } else { "False" };
        format!(
            "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
  labels: {{{labels}}}{annotations}{deletion}
spec:
  serviceAccountName: {service_account}
  containers:
  - {{name: app, image: example/app, ports: [{ports}]}}
status:
  phase: Running
  podIP: {ip}
  conditions: [{{type: Ready, status: \"{ready}\"}}]
"
        )
    }
}

/// A Service `namespace/name` whose one port leads to the same port of the pods with these labels.
///
/// `declares` is the port's `appProtocol`; empty: none.
#[must_use]
pub fn service(full_name: &str, port: u16, declares: &str, selector: &str) -> String {
    let (namespace, name) = split(full_name);
    let protocol = if declares.is_empty() { String::new() } else { format!(", appProtocol: {declares}") };
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{{selector}}}
  ports: [{{name: main, port: {port}, targetPort: {port}{protocol}}}]
"
    )
}

/// An HTTPRoute for a Service that splits by weight over other Services of the namespace.
#[must_use]
pub fn split_route(full_name: &str, service: &str, port: u16, shares: &[(&str, i32)]) -> String {
    let backends: Vec<_> = shares
        .iter()
        .map(|(name, weight)| format!("    - {{name: {name}, port: {port}, weight: {weight}}}\n"))
        .collect();
    http_route(full_name, service, port, &format!("  - backendRefs:\n{}", backends.concat()))
}

/// An HTTPRoute for a Service with these rules, which are YAML indented by two spaces.
#[must_use]
pub fn http_route(full_name: &str, service: &str, port: u16, rules: &str) -> String {
    let (namespace, name) = split(full_name);
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: {service}, port: {port}}}]
  rules:
{rules}"
    )
}

/// A policy of Heddle's own kinds; `spec` is YAML indented by two spaces.
#[must_use]
pub fn policy(kind: &str, full_name: &str, spec: &str) -> String {
    let (namespace, name) = split(full_name);
    format!(
        "apiVersion: heddle.dev/v1alpha1
kind: {kind}
metadata: {{name: {name}, namespace: {namespace}}}
spec:
{spec}"
    )
}

/// `namespace/name` in its two parts; a bare name is in `default`.
#[must_use]
pub fn split(full_name: &str) -> (&str, &str) {
    full_name.split_once('/').unwrap_or(("default", full_name))
}
