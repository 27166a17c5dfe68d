//! What is wrong with an object by itself, as an API server with the right schema would say it.
//!
//! What needs other objects to be judged (does the backend exist?) is in `compile::check`.

use std::net::IpAddr;

use heddle_api::resources::{
    AccessOperation, AccessRule, AccessSource, Backoff, TargetKind, TargetRef, TrafficPolicySpec,
};
use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};

use super::{Kind, Object, name_of, route::Route};
use crate::diagnostics::FieldError;

/// Everything that makes the object unusable; empty when it can be used.
#[must_use]
pub fn check(object: &Object) -> Vec<FieldError> {
    let mut errors = Vec::new();
    names(object, &mut errors);
    match object {
        Object::Service(service) => check_service(service, &mut errors),
        Object::Pod(pod) => check_pod(pod, &mut errors),
        Object::EndpointSlice(slice) => check_slice(slice, &mut errors),
        Object::HttpRoute(_) | Object::GrpcRoute(_) | Object::TcpRoute(_) => {
            if let Some(Err(problems)) = Route::read(object) {
                errors.extend(problems);
            }
        }
        Object::TrafficPolicy(policy) => {
            targets(&policy.spec.target_refs, None, &mut errors);
            durations(&policy.spec, &mut errors);
        }
        Object::AccessPolicy(policy) => {
            let own = name_of(&policy.metadata).namespace;
            targets(&policy.spec.target_refs, Some(&own), &mut errors);
            for (i, rule) in policy.spec.rules.iter().enumerate() {
                access_rule(&format!("spec.rules[{i}]"), rule, &mut errors);
            }
        }
        Object::Namespace(_)
        | Object::Node(_)
        | Object::NetworkPolicy(_)
        | Object::ReferenceGrant(_)
        | Object::MeshPolicy(_) => {}
    }
    errors
}

/// Names end up in identities and host names, so they hold to RFC 1123.
fn names(object: &Object, errors: &mut Vec<FieldError>) {
    let plain = |text: &str, dots: bool| {
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = text.as_bytes();
        bytes.len() <= if dots { 253 } else { 63 }
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes
                .iter()
                .all(|&b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.'))
    };
    let meant = "is not a name of small letters, digits and '-' (RFC 1123)";
    let name = name_of(object.meta());
    let dots = !matches!(object.kind(), Kind::Namespace | Kind::Service);
    if !plain(&name.name, dots) {
        errors.push(FieldError::error("metadata.name", format!("{:?} {meant}", name.name)));
    }
    if object.kind().is_namespaced() && !plain(&name.namespace, false) {
        errors.push(FieldError::error("metadata.namespace", format!("{:?} {meant}", name.namespace)));
    }
}

fn port(field: impl FnOnce() -> String, number: i32, errors: &mut Vec<FieldError>) {
    if !(1..=65535).contains(&number) {
        errors.push(FieldError::error(field(), format!("{number} is not a port number (1 to 65535)")));
    }
}

fn address(field: impl FnOnce() -> String, text: &str, errors: &mut Vec<FieldError>) {
    if text.parse::<IpAddr>().is_err() {
        errors.push(FieldError::error(field(), format!("{text:?} is not an IP address")));
    }
}

fn check_service(service: &Service, errors: &mut Vec<FieldError>) {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    let Some(spec) = &service.spec else { return };
    let ports = spec.ports.as_deref().unwrap_or_default();
    for (i, service_port) in ports.iter().enumerate() {
        port(|| format!("spec.ports[{i}].port"), service_port.port, errors);
        if let Some(IntOrString::Int(target)) = service_port.target_port {
            port(|| format!("spec.ports[{i}].targetPort"), target, errors);
        }
        if ports.len() > 1 && service_port.name.as_deref().unwrap_or_default().is_empty() {
            errors.push(FieldError::error(
                format!("spec.ports[{i}].name"),
                "is needed where a Service has more than one port",
            ));
        }
        let same = |other: &&k8s_openapi::api::core::v1::ServicePort| {
            other.port == service_port.port && other.protocol == service_port.protocol
        };
        if ports[..i].iter().any(|other| same(&other)) {
            errors.push(FieldError::error(
                format!("spec.ports[{i}].port"),
                format!("{} is there twice", service_port.port),
            ));
        }
    }
    for ip in spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()) {
        if !ip.is_empty() && ip != "None" {
            address(|| "spec.clusterIP".to_owned(), ip, errors);
        }
    }
}

fn check_pod(pod: &Pod, errors: &mut Vec<FieldError>) {
    if let Some(status) = &pod.status {
        if let Some(ip) = &status.pod_ip {
            address(|| "status.podIP".to_owned(), ip, errors);
        }
        for (i, ip) in status.pod_ips.iter().flatten().enumerate() {
            address(|| format!("status.podIPs[{i}].ip"), &ip.ip, errors);
        }
    }
    for (c, container) in pod.spec.iter().flat_map(|spec| &spec.containers).enumerate() {
        for (p, container_port) in container.ports.iter().flatten().enumerate() {
            let field = || format!("spec.containers[{c}].ports[{p}].containerPort");
            port(field, container_port.container_port, errors);
        }
    }
}

fn check_slice(slice: &EndpointSlice, errors: &mut Vec<FieldError>) {
    for (i, slice_port) in slice.ports.iter().flatten().enumerate() {
        if let Some(number) = slice_port.port {
            port(|| format!("ports[{i}].port"), number, errors);
        }
    }
    if slice.address_type == "FQDN" {
        errors.push(FieldError::error("addressType", "FQDN is not supported, IPv4 and IPv6 are"));
        return;
    }
    for (e, endpoint) in slice.endpoints.iter().flatten().enumerate() {
        for (a, text) in endpoint.addresses.iter().enumerate() {
            address(|| format!("endpoints[{e}].addresses[{a}]"), text, errors);
        }
    }
}

/// `namespace`: that a Namespace may be targeted, and must be this one.
fn targets(targets: &[TargetRef], namespace: Option<&str>, errors: &mut Vec<FieldError>) {
    if targets.is_empty() {
        errors.push(FieldError::error("spec.targetRefs", "names nothing"));
    }
    for (i, target) in targets.iter().enumerate() {
        if !target.group.is_empty() {
            errors.push(FieldError::error(
                format!("spec.targetRefs[{i}].group"),
                format!("{:?} is not supported; a {:?} is in the group \"\"", target.group, target.kind),
            ));
        }
        match (target.kind, namespace) {
            (TargetKind::Service, _) => {}
            (TargetKind::Namespace, Some(own)) if own == target.name => {}
            (TargetKind::Namespace, Some(own)) => errors.push(FieldError::error(
                format!("spec.targetRefs[{i}].name"),
                format!("{:?} is another namespace than the policy's own, {own:?}", target.name),
            )),
            (TargetKind::Namespace, None) => errors.push(FieldError::error(
                format!("spec.targetRefs[{i}].kind"),
                "Namespace cannot be targeted here, a Service can",
            )),
        }
    }
}

/// Where no time at all would mean the default to the sidecar, it is refused rather than misread.
fn durations(spec: &TrafficPolicySpec, errors: &mut Vec<FieldError>) {
    let ejection = spec.outlier_ejection.as_ref();
    let backoff = spec.retries.as_ref().and_then(|retries| retries.backoff.as_ref());
    let timeouts = spec.timeouts.as_ref();
    for (field, duration) in [
        ("spec.outlierEjection.interval", ejection.and_then(|e| e.interval)),
        ("spec.outlierEjection.baseEjection", ejection.and_then(|e| e.base_ejection)),
        ("spec.retries.backoff.base", backoff.and_then(|b| b.base)),
        ("spec.retries.backoff.max", backoff.and_then(|b| b.max)),
        ("spec.timeouts.connect", timeouts.and_then(|t| t.connect)),
        ("spec.timeouts.idle", timeouts.and_then(|t| t.idle)),
    ] {
        if duration.is_some_and(|duration| duration.as_millis() == 0) {
            errors.push(FieldError::error(field, "must be longer than 0s"));
        }
    }
    if let Some(Backoff { base: Some(base), max: Some(max) }) = backoff
        && base > max
    {
        errors.push(FieldError::error(
            "spec.retries.backoff.base",
            format!("{base} is longer than max, {max}"),
        ));
    }
}

/// An entry that says nothing would match everything or nothing; whoever wrote it meant something else.
fn access_rule(at: &str, rule: &AccessRule, errors: &mut Vec<FieldError>) {
    for (i, source) in rule.from.iter().enumerate() {
        if *source == AccessSource::default() {
            let meant = "names nobody: give serviceAccounts, namespaces, cidrs or anyone";
            errors.push(FieldError::error(format!("{at}.from[{i}]"), meant));
        }
    }
    for (i, operation) in rule.to.iter().enumerate() {
        if *operation == AccessOperation::default() {
            errors.push(FieldError::error(format!("{at}.to[{i}]"), "names nothing: give methods or paths"));
        }
        for (m, method) in operation.methods.iter().enumerate() {
            if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
                let message = format!("{method:?} is not a method in capitals");
                errors.push(FieldError::error(format!("{at}.to[{i}].methods[{m}]"), message));
            }
        }
    }
}
