//! The two containers and two volumes that a pod gets.
//!
//! `heddle-redirect` runs first, as root with `CAP_NET_ADMIN` and nothing else, and ends: Kubernetes gives capabilities
//! to root alone. `heddle-proxy` is a native sidecar (an init container with `restartPolicy: Always`), so the
//! application starts when it is ready, Jobs finish, and it leaves last. They come before the pod's own init containers,
//! which are then in the mesh too.

use heddle_api::{ports, probe::Probes};
use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction,
        KeyToPath, ObjectFieldSelector, PodSpec, Probe, ProjectedVolumeSource, ResourceRequirements,
        SeccompProfile, SecurityContext, ServiceAccountTokenProjection, Volume, VolumeMount,
        VolumeProjection,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    Settings,
    edit::Edits,
    init_containers,
    options::Options,
    settings::{CA_KEY, quantities},
};

/// The sidecar.
pub const PROXY: &str = "heddle-proxy";
/// What writes the rules.
pub const REDIRECT: &str = "heddle-redirect";
/// Both.
pub(super) const CONTAINERS: [&str; 2] = [PROXY, REDIRECT];
const TOKEN_VOLUME: &str = "heddle-token";
const CA_VOLUME: &str = "heddle-ca";
/// Both.
pub(super) const VOLUMES: [&str; 2] = [TOKEN_VOLUME, CA_VOLUME];

const TOKEN_DIRECTORY: &str = "/var/run/secrets/heddle.dev/token";
const CA_DIRECTORY: &str = "/var/run/secrets/heddle.dev/ca";
/// Kubelet renews a token at four fifths of this. An hour; ten minutes is the least that it allows.
const TOKEN_SECONDS: i64 = 3600;
/// The application waits this long for its sidecar before kubelet restarts it.
const STARTUP_SECONDS: i32 = 120;
/// The sidecar's variable that holds the pod's probes.
const PROBES: &str = "HEDDLE_PROBES";

/// Where the sidecar is among the init containers; none: there is none.
pub(super) fn position(spec: &PodSpec) -> Option<usize> {
    init_containers(spec).iter().position(|container| {
        container.name == PROXY && container.restart_policy.as_deref() == Some("Always")
    })
}

/// The probes that a sidecar replays. What cannot be read is none: then the pod was not injected by us.
pub(super) fn probes(container: &Container) -> Probes {
    let value =
        container.env.iter().flatten().find(|env| env.name == PROBES).and_then(|env| env.value.as_deref());
    value.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Gives the sidecar that is there other probes.
pub(super) fn set_probes(container: &Container, at: usize, all: &Probes, edits: &mut Edits<'_>) {
    let at = at.to_string();
    let env = ["spec", "initContainers", &at, "env"];
    match container.env.iter().flatten().position(|env| env.name == PROBES) {
        Some(index) => {
            let index = index.to_string();
            let path = [&env[..], &[index.as_str(), "value"]].concat();
            edits.replace(&path, all.to_string().into());
        }
        None => edits.append(&env, &value(PROBES, all.to_string())),
    }
}

/// Adds everything.
pub(super) fn add(all: &Probes, options: &Options, settings: &Settings, edits: &mut Edits<'_>) {
    for volume in volumes(settings) {
        edits.append(&["spec", "volumes"], &volume);
    }
    let list = ["spec", "initContainers"];
    edits.prepend(&list, &proxy(all, options, settings));
    edits.prepend(&list, &redirect(options, settings));
}

fn redirect(options: &Options, settings: &Settings) -> Container {
    let args = ["redirect".to_owned(), format!("--proxy-uid={}", settings.proxy_uid)];
    let small = quantities(&[("cpu", "100m"), ("memory", "64Mi")]);
    let capabilities =
        Capabilities { add: Some(vec!["NET_ADMIN".to_owned()]), drop: Some(vec!["ALL".to_owned()]) };
    Container {
        name: REDIRECT.to_owned(),
        args: Some(args.into_iter().chain(options.redirect.iter().cloned()).collect()),
        // It ends within a moment; requests that equal limits leave the pod's quality of service alone.
        resources: Some(ResourceRequirements {
            requests: Some(small.clone()),
            limits: Some(small),
            claims: None,
        }),
        security_context: Some(SecurityContext {
            capabilities: Some(capabilities),
            run_as_user: Some(0),
            run_as_group: Some(0),
            run_as_non_root: Some(false),
            ..confined()
        }),
        ..container(settings)
    }
}

fn proxy(all: &Probes, options: &Options, settings: &Settings) -> Container {
    let mut args: Vec<String> = [
        "run".to_owned(),
        format!("--control-plane={}", settings.control_plane),
        format!("--control-plane-ca={CA_DIRECTORY}/{CA_KEY}"),
        format!("--token-file={TOKEN_DIRECTORY}/token"),
        "--pod=$(POD_NAMESPACE)/$(POD_NAME)".to_owned(),
        "--pod-ip=$(POD_IPS)".to_owned(),
        "--expect-redirect".to_owned(),
    ]
    .into();
    args.extend(options.run.iter().cloned());
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_IPS", "status.podIPs"),
    ];
    if !all.is_empty() {
        env.push(value(PROBES, all.to_string()));
    }
    let uid = Some(i64::from(settings.proxy_uid));
    Container {
        name: PROXY.to_owned(),
        args: Some(args),
        env: Some(env),
        restart_policy: Some("Always".to_owned()),
        ports: Some(vec![port("heddle-mesh", ports::MESH), port("heddle-metrics", ports::METRICS)]),
        startup_probe: Some(ready(1, STARTUP_SECONDS)),
        readiness_probe: Some(ready(5, 3)),
        resources: Some(options.resources.clone()),
        security_context: Some(SecurityContext {
            capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
            run_as_user: uid,
            run_as_group: uid,
            run_as_non_root: Some(true),
            ..confined()
        }),
        volume_mounts: Some(vec![mount(TOKEN_VOLUME, TOKEN_DIRECTORY), mount(CA_VOLUME, CA_DIRECTORY)]),
        ..container(settings)
    }
}

fn container(settings: &Settings) -> Container {
    Container {
        image: Some(settings.image.clone()),
        image_pull_policy: settings.image_pull_policy.clone(),
        ..Container::default()
    }
}

fn confined() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..SecurityContext::default()
    }
}

fn ready(period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some("/ready".to_owned()),
            port: IntOrString::Int(ports::METRICS.into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn volumes(settings: &Settings) -> [Volume; 2] {
    let token = ServiceAccountTokenProjection {
        audience: Some(settings.token_audience.clone()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: "token".to_owned(),
    };
    let projection = VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    let roots = ConfigMapVolumeSource {
        name: settings.ca_config_map.clone(),
        items: Some(vec![KeyToPath { key: CA_KEY.to_owned(), path: CA_KEY.to_owned(), mode: None }]),
        ..ConfigMapVolumeSource::default()
    };
    [
        Volume {
            name: TOKEN_VOLUME.to_owned(),
            projected: Some(ProjectedVolumeSource { sources: Some(vec![projection]), default_mode: None }),
            ..Volume::default()
        },
        Volume { name: CA_VOLUME.to_owned(), config_map: Some(roots), ..Volume::default() },
    ]
}

fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

fn port(name: &str, port: u16) -> ContainerPort {
    ContainerPort { name: Some(name.to_owned()), container_port: port.into(), ..ContainerPort::default() }
}

fn value(name: &str, value: String) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value), value_from: None }
}

fn field(name: &str, path: &str) -> EnvVar {
    let selector = ObjectFieldSelector { api_version: None, field_path: path.to_owned() };
    let source = EnvVarSource { field_ref: Some(selector), ..EnvVarSource::default() };
    EnvVar { name: name.to_owned(), value: None, value_from: Some(source) }
}
