//! Whether a pod wants a sidecar, and whether it may have one.

use heddle_api::ports;
use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{INJECT, Refusal, Settings, init_containers, sidecar};

/// The label of nodes that says what runs there.
const OS_LABEL: &str = "kubernetes.io/os";
const LINUX: &str = "linux";

/// What the pod's surroundings say; its annotation has the last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Its namespace is labelled, or somebody named the file.
    ByNamespace,
    /// Nothing: only the pod's own annotation can ask.
    ByAnnotation,
}

/// Whether it asks for a sidecar.
pub(super) fn wants(metadata: &ObjectMeta, asked: Asked) -> Result<bool, Refusal> {
    let annotations = metadata.annotations.as_ref();
    match annotations.and_then(|all| all.get(INJECT)).map(String::as_str) {
        Some("enabled") => Ok(true),
        Some("disabled") => Ok(false),
        None => Ok(asked == Asked::ByNamespace),
        Some(other) => Err(Refusal::Annotation {
            name: INJECT.to_owned(),
            problem: format!("it is {other:?}, and must be enabled or disabled"),
        }),
    }
}

/// Whether it may have one.
pub(super) fn may(spec: &PodSpec, settings: &Settings) -> Result<(), Refusal> {
    if spec.host_network == Some(true) {
        return Err(Refusal::HostNetwork);
    }
    if let Some(os) = other_system(spec) {
        return Err(Refusal::System(os.to_owned()));
    }
    let present = sidecar::position(spec).is_some();
    let containers = init_containers(spec).iter().chain(&spec.containers);
    for container in containers {
        let name = container.name.as_str();
        if sidecar::CONTAINERS.contains(&name) {
            if present {
                continue;
            }
            return Err(Refusal::Taken { what: "container", name: name.to_owned() });
        }
        not_as_the_sidecar(spec, container, settings)?;
        for port in container.ports.iter().flatten() {
            if ports::SIDECAR.iter().any(|own| i32::from(*own) == port.container_port) {
                let container = name.to_owned();
                return Err(Refusal::OwnPort { container, port: port.container_port });
            }
        }
    }
    if !present {
        for volume in spec.volumes.iter().flatten() {
            if sidecar::VOLUMES.contains(&volume.name.as_str()) {
                return Err(Refusal::Taken { what: "volume", name: volume.name.clone() });
            }
        }
    }
    Ok(())
}

/// The system that it runs on, where that cannot be Linux: by its own word, or by the nodes that it may be on.
fn other_system(spec: &PodSpec) -> Option<&str> {
    let own = spec.os.as_ref().map(|os| os.name.as_str());
    let selected = spec.node_selector.as_ref().and_then(|labels| labels.get(OS_LABEL)).map(String::as_str);
    own.filter(|os| *os != LINUX).or(selected.filter(|os| *os != LINUX)).or_else(|| {
        let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
        // One of these must hold, so all must lead elsewhere.
        let terms =
            &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
        let systems = terms.iter().map(|term| {
            let all = term.match_expressions.iter().flatten();
            let mut of_system = all.filter(|one| one.key == OS_LABEL && one.operator == "In");
            of_system.find_map(|one| {
                let values = one.values.as_deref()?;
                values.iter().all(|os| os != LINUX).then(|| values.first())?
            })
        });
        systems.collect::<Option<Vec<_>>>()?.first().map(|os| os.as_str())
    })
}

/// A container's own user, or else the pod's. What an image says cannot be known here.
fn not_as_the_sidecar(spec: &PodSpec, container: &Container, settings: &Settings) -> Result<(), Refusal> {
    let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
    let pods = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    match own.or(pods) {
        Some(uid) if uid == i64::from(settings.proxy_uid) => {
            Err(Refusal::ProxyUser { container: container.name.clone(), uid })
        }
        _ => Ok(()),
    }
}
