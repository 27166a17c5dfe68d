//! Leads kubelet's probes and HTTP lifecycle hooks to the sidecar, which replays them: kubelet has no identity in the
//! mesh, and so a Strict namespace needs no hole for it. Port 15020 is open to everyone, and a hook does something, so hooks
//! are asked for with a token that nobody can guess: it stands in the pod's spec, for kubelet and the sidecar.
//!
//! Left alone: `exec` and `sleep`, which do not come by the network; what names a `host` of its own; `tcpSocket` hooks,
//! which Kubernetes ignores.

use heddle_api::{
    ports,
    probe::{Action, HttpGet, Kind, LONGEST_SECONDS, Probe, Probes, Token},
};
use k8s_openapi::{
    api::core::v1::{
        Container, GRPCAction, HTTPGetAction, LifecycleHandler, PodSpec, Probe as Declared, TCPSocketAction,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};

use super::{NewToken, edit::Edits, init_containers, sidecar};

/// Where the sidecar replays.
const PREFIX: &str = "/probe/";
/// Kubelet's default for `timeoutSeconds`.
const DEFAULT_TIMEOUT: i32 = 1;
/// Kubernetes' default for `terminationGracePeriodSeconds`.
const DEFAULT_GRACE: i64 = 30;
/// Kubelet waits for a `postStart` hook as long as it takes. This is longer than a start-up that anybody waits for.
const POST_START_SECONDS: i64 = 600;

/// Why a probe stays as it is, in words; or it is none of those that come by the network.
enum Left {
    Quietly,
    Saying(String),
}

/// A token, from the system's generator.
#[must_use]
pub fn random_token() -> Token {
    let mut bits = [0; 16];
    aws_lc_rs::rand::fill(&mut bits).expect("the system has randomness");
    Token::new(bits)
}

/// Rewrites all of the pod's that are not yet; `all` gains what they were. The pod's token stays what it is.
pub(super) fn rewrite(
    spec: &PodSpec,
    pod: &Value,
    edits: &mut Edits<'_>,
    all: &mut Probes,
    new_token: NewToken,
    warnings: &mut Vec<String>,
) {
    let mut token = all.token();
    let grace = spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE);
    let lists = [("initContainers", init_containers(spec)), ("containers", spec.containers.as_slice())];
    for (list, containers) in lists {
        for (index, container) in containers.iter().enumerate() {
            if sidecar::CONTAINERS.contains(&container.name.as_str()) {
                continue;
            }
            let place = index.to_string();
            for asked in questions(container, grace) {
                let path = [&["spec", list, place.as_str()][..], asked.path].concat();
                match action(container, &asked) {
                    Ok(action) => {
                        let probe = Probe { action, timeout_seconds: seconds(asked.timeout) };
                        let (name, kind) = (&container.name, asked.kind);
                        let mut get = format!("{PREFIX}{name}/{kind}");
                        if kind.is_hook() {
                            let token = token.get_or_insert_with(new_token);
                            all.insert(&token.place(name), kind, probe);
                            get = format!("{get}?{}", token.query());
                        } else {
                            all.insert(name, kind, probe);
                        }
                        edits.replace(&path, rewritten(pod, &path, &get));
                    }
                    Err(Left::Quietly) => {}
                    Err(Left::Saying(why)) => {
                        let (name, what) = (&container.name, asked.path.join("."));
                        warnings.push(format!("the {what} of container {name} stays as it is: {why}"));
                    }
                }
            }
        }
    }
}

/// A probe or hook, whatever it does.
struct Question<'a> {
    kind: Kind,
    path: &'static [&'static str],
    timeout: i64,
    http: Option<&'a HTTPGetAction>,
    tcp: Option<&'a TCPSocketAction>,
    grpc: Option<&'a GRPCAction>,
}

fn questions(container: &Container, grace: i64) -> Vec<Question<'_>> {
    let hooks = container.lifecycle.as_ref();
    let after_start = hooks.and_then(|hooks| hooks.post_start.as_ref());
    let before_stop = hooks.and_then(|hooks| hooks.pre_stop.as_ref());
    [
        probe(Kind::Startup, &["startupProbe"], container.startup_probe.as_ref()),
        probe(Kind::Liveness, &["livenessProbe"], container.liveness_probe.as_ref()),
        probe(Kind::Readiness, &["readinessProbe"], container.readiness_probe.as_ref()),
        hook(Kind::PostStart, &["lifecycle", "postStart"], after_start, POST_START_SECONDS),
        hook(Kind::PreStop, &["lifecycle", "preStop"], before_stop, grace),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn probe<'a>(
    kind: Kind,
    path: &'static [&'static str],
    declared: Option<&'a Declared>,
) -> Option<Question<'a>> {
    let declared = declared?;
    Some(Question {
        kind,
        path,
        timeout: declared.timeout_seconds.unwrap_or(DEFAULT_TIMEOUT).into(),
        http: declared.http_get.as_ref(),
        tcp: declared.tcp_socket.as_ref(),
        grpc: declared.grpc.as_ref(),
    })
}

fn hook<'a>(
    kind: Kind,
    path: &'static [&'static str],
    declared: Option<&'a LifecycleHandler>,
    timeout: i64,
) -> Option<Question<'a>> {
    Some(Question { kind, path, timeout, http: declared?.http_get.as_ref(), tcp: None, grpc: None })
}

fn action(container: &Container, asked: &Question<'_>) -> Result<Action, Left> {
    match (asked.http, asked.tcp, asked.grpc) {
        (Some(http), ..) => get(container, http).map(Action::HttpGet),
        (_, Some(tcp), _) => {
            elsewhere(tcp.host.as_deref())?;
            Ok(Action::TcpSocket { port: port(container, &tcp.port)? })
        }
        (.., Some(grpc)) => Ok(Action::Grpc {
            port: port(container, &IntOrString::Int(grpc.port))?,
            service: grpc.service.clone().unwrap_or_default(),
        }),
        _ => Err(Left::Quietly),
    }
}

fn get(container: &Container, http: &HTTPGetAction) -> Result<HttpGet, Left> {
    let path = http.path.as_deref().unwrap_or_default();
    if http.port == IntOrString::Int(ports::METRICS.into()) && path.starts_with(PREFIX) {
        // It is rewritten already.
        return Err(Left::Quietly);
    }
    elsewhere(http.host.as_deref())?;
    // As kubelet completes it.
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    if path.parse::<http::uri::PathAndQuery>().is_err() {
        return Err(Left::Saying(format!("its path {path:?} is none that a request can carry")));
    }
    let headers = http.http_headers.iter().flatten();
    Ok(HttpGet {
        port: port(container, &http.port)?,
        path,
        https: http.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
        headers: headers.map(|header| (header.name.clone(), header.value.clone())).collect(),
    })
}

fn elsewhere(host: Option<&str>) -> Result<(), Left> {
    match host {
        None | Some("") => Ok(()),
        Some(host) => Err(Left::Saying(format!("it asks {host}, not the pod"))),
    }
}

/// A number, or a name among the container's own ports, which is where kubelet looks.
fn port(container: &Container, port: &IntOrString) -> Result<u16, Left> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut named = container.ports.iter().flatten().filter(|port| port.name.as_ref() == Some(name));
            let Some(port) = named.next() else {
                return Err(Left::Saying(format!("the container declares no port named {name}")));
            };
            port.container_port
        }
    };
    match u16::try_from(number) {
        Ok(port @ 1..) if !ports::SIDECAR.contains(&port) => Ok(port),
        Ok(port @ 1..) => Err(Left::Saying(format!("port {port} is the sidecar's own"))),
        _ => Err(Left::Saying(format!("{number} is no port"))),
    }
}

fn seconds(timeout: i64) -> u32 {
    u32::try_from(timeout).unwrap_or(1).clamp(1, LONGEST_SECONDS)
}

/// What was there, but for what it does: periods, thresholds and whatever else kubelet knows stay.
fn rewritten(pod: &Value, path: &[&str], get: &str) -> Value {
    let at: String = path.iter().flat_map(|name| ["/", name]).collect();
    let mut declared = pod.pointer(&at).and_then(Value::as_object).cloned().unwrap_or_default();
    for action in ["httpGet", "tcpSocket", "grpc"] {
        declared.remove(action);
    }
    declared.insert("httpGet".to_owned(), json!({ "path": get, "port": ports::METRICS }));
    Value::Object(declared)
}
