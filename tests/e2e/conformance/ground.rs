//! The ground of all cases: the pods of the Gateway API's suite, their names and Services, and where objects are kept.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use heddle_tests::{
    binaries,
    client::Client,
    echo::report::{self, Report},
    netns::{Credentials, Family, Flags, NetPod, Wire},
    process::Process,
};
use serde_json::Value;

use super::{
    case::{CONSUMER, Case, From, MESH, Route, Row, Spread},
    cluster::Cluster,
};

/// What has not come within this does not come. A busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(15);
/// Requests that are counted for a spread, and how far a share may be off: over three standard deviations.
const COUNTED: usize = 400;
const TOLERANCE: f64 = 0.08;

/// `name namespace version host`; all are of the application `echo`.
const PODS: [(From, &str, &str, &str, u8); 3] = [
    (From::V1, "echo-v1", MESH, "v1", 11),
    (From::V2, "echo-v2", MESH, "v2", 12),
    (From::Consumer, "consumer-v1", CONSUMER, "v1", 13),
];

/// `name namespace selector host`.
const SERVICES: [(&str, &str, &str, u8); 5] = [
    ("echo", MESH, "{app: echo}", 20),
    ("echo-v1", MESH, "{app: echo, version: v1}", 21),
    ("echo-v2", MESH, "{app: echo, version: v2}", 22),
    ("own", CONSUMER, "{app: echo}", 23),
    ("marker", MESH, "{app: echo, version: v1}", 24),
];

/// Comes after a case's objects and goes after them: who sees it sees them, who no longer sees it no longer sees them.
/// Without it a case's first requests would meet the routes of the case before, which go a moment later than a file does,
/// and by chance be answered as they should.
const MARKER: Route = Route::http(
    "marker",
    r#"  - {group: "", kind: Service, name: marker}"#,
    "
  - filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-marker, value: here}]}}]
    backendRefs: [{name: marker, port: 80}]
",
);
const UNMARKED: Row =
    Row { unanswered: &["x-marker"], ..Row::to("http://marker.gateway-conformance-mesh/", "echo-v1") };
const MARKED: Row = Row { answer: &[("x-marker", "here")], unanswered: &[], ..UNMARKED };

/// Where objects are kept.
enum Objects {
    Directory,
    Cluster(Cluster),
}

/// Pods, Services, a control plane.
pub(super) struct Ground {
    wire: Wire,
    objects: Objects,
    echo: PathBuf,
    pods: Vec<(From, NetPod, PathBuf)>,
    servers: Vec<Process>,
}

impl Ground {
    /// With manifests in a directory.
    pub(super) async fn in_directory() -> anyhow::Result<Self> {
        Self::new(Wire::new(Family::V4).await?, Objects::Directory).await
    }

    /// With an API server of its own, whose programs are in `assets`.
    pub(super) async fn on_api_server(assets: PathBuf) -> anyhow::Result<Self> {
        let mut wire = Wire::bare(Family::V4).await?;
        let cluster = Cluster::start(&wire, &assets).await?;
        let kubeconfig = cluster.kubeconfig(&wire)?;
        wire.start_control_plane(|command| {
            command.env("KUBECONFIG", kubeconfig).args(["--webhook-grace", "0s"]);
        })
        .await?;
        Self::new(wire, Objects::Cluster(cluster)).await
    }

    async fn new(wire: Wire, objects: Objects) -> anyhow::Result<Self> {
        let echo = binaries::beside("echo")?;
        let mut ground = Self { wire, objects, echo, pods: Vec::new(), servers: Vec::new() };
        for namespace in [MESH, CONSUMER] {
            ground
                .apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n"))
                .await?;
            let account = format!(
                "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: default, namespace: {namespace}}}\n"
            );
            if let Objects::Cluster(_) = ground.objects {
                ground.apply(&account).await?;
            }
        }
        for (name, namespace, selector, host) in SERVICES {
            ground.apply(&service(name, namespace, selector, Family::V4.service(host))).await?;
        }
        for (from, name, namespace, version, host) in PODS {
            let applied = ground.apply(&pod(name, namespace, version, Family::V4.host(host))).await?;
            let files = ground.credentials(name, namespace, &applied).await?;
            let flags = Flags::Usual(&[]);
            let pod =
                ground.wire.start_pod(&format!("{namespace}/{name}"), host, &[], &files, &flags).await?;
            let mut server = pod.inside.command(&ground.echo.to_string_lossy());
            server.args(["server", "--version", version]).env("HOSTNAME", name);
            ground.servers.push(ground.wire.world.run(&format!("echo-{name}"), &server)?);
            let hosts = ground.wire.world.directory().join(format!("hosts-{namespace}"));
            std::fs::write(&hosts, names(namespace))?;
            ground.pods.push((from, pod, hosts));
        }
        Ok(ground)
    }

    async fn credentials(&self, name: &str, namespace: &str, pod: &Value) -> anyhow::Result<Credentials> {
        let world = &self.wire.world;
        match &self.objects {
            Objects::Directory => Ok(Credentials {
                ca: world.state().join("ca.pem"),
                token: world.token(namespace, "default", "1h")?,
            }),
            Objects::Cluster(cluster) => {
                let uid = pod["metadata"]["uid"].as_str().context("a Pod has a uid")?;
                let ca = until(|| cluster.roots(&self.wire, namespace)).await?;
                let token = cluster.token(&self.wire, name, namespace, uid).await?;
                let files = Credentials {
                    ca: world.directory().join(format!("ca-{name}.pem")),
                    token: world.directory().join(format!("token-{name}")),
                };
                std::fs::write(&files.ca, ca)?;
                std::fs::write(&files.token, token)?;
                Ok(files)
            }
        }
    }

    /// Applies an object; what the API server made of it.
    async fn apply(&self, yaml: &str) -> anyhow::Result<Value> {
        match &self.objects {
            Objects::Directory => {
                let value = serde_norway::from_str(yaml)?;
                self.wire.world.save(&file(&value), yaml)?;
                Ok(value)
            }
            Objects::Cluster(cluster) => cluster.apply(&self.wire, yaml).await,
        }
    }

    async fn delete(&self, yaml: &str) -> anyhow::Result<()> {
        match &self.objects {
            Objects::Directory => self.wire.world.remove(&file(&serde_norway::from_str(yaml)?)),
            Objects::Cluster(cluster) => cluster.delete(&self.wire, yaml).await,
        }
    }

    /// Runs a case; what does not hold.
    pub(super) async fn run(&self, case: &Case) -> Vec<String> {
        let routes: Vec<_> = case.routes.iter().map(|route| (route, route.yaml())).collect();
        let others = case.others.iter().map(|yaml| (*yaml).to_owned());
        let objects: Vec<_> =
            others.chain(routes.iter().map(|(_, yaml)| yaml.clone())).chain([MARKER.yaml()]).collect();
        let mut wrong = Vec::new();
        for yaml in &objects {
            wrong.extend(self.apply(yaml).await.err().map(|error| format!("{error:#}:\n{yaml}")));
        }
        for (route, yaml) in &routes {
            let condition = until(|| self.conditions_hold(route, yaml)).await;
            wrong.extend(condition.err().map(|error| format!("{} {}: {error:#}", route.kind, route.name)));
        }
        wrong.extend(self.everywhere(MARKED).await.err().map(|error| format!("it comes: {error:#}")));
        let failed = |row: &Row, error: anyhow::Error| format!("{} {}: {error:#}", row.method, row.url);
        for row in case.rows {
            wrong.extend(until(|| self.holds(row)).await.err().map(|error| failed(row, error)));
        }
        // Now that all of it is in force, at once.
        if wrong.is_empty() {
            for row in case.rows {
                let error = self.holds(row).await.err();
                wrong.extend(
                    error.map(|error| failed(row, error.context("it held before, and then no more"))),
                );
            }
            for (route, yaml) in &routes {
                let error = self.conditions_hold(route, yaml).await.err();
                wrong.extend(
                    error.map(|error| format!("{} {}, once in force: {error:#}", route.kind, route.name)),
                );
            }
            for spread in case.spreads {
                let error = self.spreads(spread).await.err();
                wrong.extend(error.map(|error| format!("{}: {error:#}", spread.url)));
            }
        }
        for yaml in &objects {
            wrong.extend(self.delete(yaml).await.err().map(|error| format!("{error:#}:\n{yaml}")));
        }
        wrong.extend(self.everywhere(UNMARKED).await.err().map(|error| format!("it goes: {error:#}")));
        wrong
    }

    /// Returns once this holds for every pod.
    async fn everywhere(&self, row: Row) -> anyhow::Result<()> {
        for (from, ..) in PODS {
            let row = Row { from, ..row };
            until(|| self.holds(&row)).await.with_context(|| format!("for {from:?}"))?;
        }
        Ok(())
    }

    /// In a directory the conditions are not written anywhere; what they would be made of is at `/diagnostics`. Where nothing is
    /// wrong that says little before the route is in force.
    async fn conditions_hold(&self, route: &Route, yaml: &str) -> anyhow::Result<()> {
        match &self.objects {
            Objects::Cluster(cluster) => cluster.conditions_hold(&self.wire, route, yaml).await,
            Objects::Directory => {
                let admin = self.wire.world.control_plane_admin();
                let ask =
                    async move { Client::http1(admin).await?.get(&admin.to_string(), "/diagnostics").await };
                let all: Value = serde_json::from_slice(&self.wire.outside.run(ask).await?.body)?;
                let mut found: Vec<_> = all
                    .as_array()
                    .context("/diagnostics is a list")?
                    .iter()
                    .filter(|problem| {
                        let object = &problem["object"];
                        problem["severity"] == "Error"
                            && object["name"] == route.name
                            && object["namespace"] == route.namespace
                    })
                    .filter_map(|problem| problem["reason"].as_str())
                    // Of a route it is this that the condition says (`cluster/status/conditions.rs`).
                    .map(|reason| if reason == "Invalid" { "UnsupportedValue" } else { reason })
                    .collect();
                found.sort_unstable();
                found.dedup();
                let stated = [(route.accepted, "Accepted"), (route.resolved, "ResolvedRefs")];
                let mut stated: Vec<_> = stated
                    .into_iter()
                    .filter(|(reason, good)| reason != good)
                    .map(|(reason, _)| reason)
                    .collect();
                stated.sort_unstable();
                ensure!(found == stated, "the control plane says {found:?}, not {stated:?}");
                Ok(())
            }
        }
    }

    /// What the echo client of a pod prints.
    async fn client(&self, from: From, args: &[String]) -> anyhow::Result<Vec<Report>> {
        let (_, pod, hosts) = self.pods.iter().find(|(name, ..)| *name == from).context("no such pod")?;
        // The names of Services are in a file, where a cluster has a DNS server; programs look in both.
        let mut command = pod.inside.command("unshare");
        command.args(["--mount", "sh", "-c", r#"mount --bind "$1" /etc/hosts && shift && exec "$@""#, "sh"]);
        command.arg(hosts).arg(&self.echo).arg("client").args(args);
        let output = tokio::process::Command::from(command).kill_on_drop(true).output().await?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the client failed: {}", complaint.trim());
        report::parse(&String::from_utf8_lossy(&output.stdout))
    }

    async fn holds(&self, row: &Row) -> anyhow::Result<()> {
        let address = Family::V4.host(PODS[1].4).to_string();
        let url = row.url.replace("//V2", &format!("//{address}"));
        let grpc = url.starts_with("grpc");
        let mut args = vec![url.clone()];
        if !grpc {
            args.push(format!("--method={}", row.method));
        }
        if row.http2 {
            args.push("--http2".to_owned());
        }
        for (name, value) in row.headers {
            args.extend(["-H".to_owned(), format!("{name}:{value}")]);
        }
        let reports = self.client(row.from, &args).await;
        if grpc && row.status != 200 {
            // As the gRPC specification maps it (http-grpc-status-mapping): 404 is Unimplemented.
            let Err(error) = reports else { bail!("the call was answered") };
            ensure!(row.status == 404 && format!("{error:#}").contains("Unimplemented"), "{error:#}");
            return Ok(());
        }
        let reports = reports?;
        let report = &reports[0];
        ensure!(report.status == row.status, "status {}, not {}: {report:?}", report.status, row.status);
        ensure!(
            row.backend.is_empty() || report.field("Hostname") == row.backend,
            "not {} but {report:?}",
            row.backend
        );
        if row.status == 200 && url.starts_with("http") {
            let sent = url.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
            let path = row.path.or(sent).unwrap_or("/");
            ensure!(report.field("URL") == path, "the backend saw {}, not {path}", report.field("URL"));
            ensure!(report.field("Method") == row.method, "the backend saw {}", report.field("Method"));
        }
        let has = |headers: &BTreeMap<String, String>, stated: &[(&str, &str)]| -> anyhow::Result<()> {
            for (name, value) in stated {
                let found = headers.get(*name).map_or("", String::as_str);
                ensure!(found == *value, "{name}: {found:?}, not {value:?}");
            }
            Ok(())
        };
        let lacks = |headers: &BTreeMap<String, String>, stated: &[&str]| -> anyhow::Result<()> {
            let found = stated.iter().find(|name| headers.contains_key(**name));
            found.map_or(Ok(()), |name| bail!("there is a header {name}"))
        };
        has(&report.request_headers, row.seen).context("the backend saw")?;
        lacks(&report.request_headers, row.unseen).context("the backend saw")?;
        has(&report.response_headers, row.answer).context("in the answer")?;
        lacks(&report.response_headers, row.unanswered).context("in the answer")
    }

    /// Chance may be unkind once, hardly twice.
    async fn spreads(&self, spread: &Spread) -> anyhow::Result<()> {
        match self.spreads_now(spread).await {
            Ok(()) => Ok(()),
            Err(_) => self.spreads_now(spread).await,
        }
    }

    async fn spreads_now(&self, spread: &Spread) -> anyhow::Result<()> {
        let reports = self.client(From::V1, &[spread.url.to_owned(), format!("--count={COUNTED}")]).await?;
        ensure!(reports.len() == COUNTED, "{} answers to {COUNTED} requests", reports.len());
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for report in &reports {
            let who = if report.status == 200 {
                report.field("Hostname").to_owned()
            } else {
                report.status.to_string()
            };
            *counts.entry(who).or_default() += 1;
        }
        ensure!(counts.len() == spread.shares.len(), "{counts:?}, not {:?}", spread.shares);
        for (name, share) in spread.shares {
            #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
            let found = counts.get(*name).copied().unwrap_or_default() as f64 / COUNTED as f64;
            ensure!((found - share).abs() <= TOLERANCE, "{counts:?}, not {:?}", spread.shares);
        }
        Ok(())
    }
}

/// Tries until it goes well, or gives the last error.
pub(super) async fn until<T, F>(mut attempt: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The file that a directory keeps an object in.
fn file(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
    let meta = &object["metadata"];
    format!("{}-{}-{}.yaml", text(&object["kind"]), text(&meta["namespace"]), text(&meta["name"]))
}

/// What `/etc/hosts` says in the pods of a namespace: every Service's names, as a cluster's DNS has them.
fn names(namespace: &str) -> String {
    let mut text = "127.0.0.1 localhost\n".to_owned();
    for (name, of, _, host) in SERVICES {
        let short = if of == namespace { name } else { "" };
        let ip = Family::V4.service(host);
        // Writing to a String cannot fail.
        let _written =
            writeln!(text, "{ip} {name}.{of}.svc.cluster.local {name}.{of}.svc {name}.{of} {short}");
    }
    text
}

/// With the ports of the Gateway API's own manifests, and what they declare.
fn service(name: &str, namespace: &str, selector: &str, ip: IpAddr) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  clusterIP: {ip}
  selector: {selector}
  ports:
  - {{name: http, port: 80, targetPort: 8080, appProtocol: http}}
  - {{name: http-alt, port: 8080, targetPort: 8080, appProtocol: http}}
  - {{name: https, port: 443, targetPort: 8443}}
  - {{name: tcp, port: 9090, targetPort: 9090}}
  - {{name: grpc, port: 7070, targetPort: 7070}}
"
    )
}

fn pod(name: &str, namespace: &str, version: &str, ip: IpAddr) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
  labels: {{app: echo, version: {version}}}
  annotations: {{heddle.dev/sidecar: \"true\"}}
spec:
  serviceAccountName: default
  nodeName: here
  containers:
  - name: echo
    image: example/echo
    ports: [{{containerPort: 8080}}, {{containerPort: 8443}}, {{containerPort: 9090}}, {{containerPort: 7070}}]
status:
  phase: Running
  podIP: {ip}
  podIPs: [{{ip: {ip}}}]
  conditions: [{{type: Ready, status: \"True\"}}]
"
    )
}

/// A path as text.
pub(super) fn display(path: &Path) -> String {
    path.display().to_string()
}
