//! A real API server, with etcd, on the wire: the objects of the cases are there, and so is what the control plane writes
//! into their status.
//!
//! Both programs are children in the wire's own network namespace, where nobody else has their ports; `curl` speaks to the
//! API server from there.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use heddle_tests::{netns::Wire, process::Process};
use serde_json::{Value, json};

use super::{
    case::Route,
    ground::{display, until},
};

const GROUP: &str = "gateway.networking.k8s.io";
const TOKEN: &str = "of-this-wire-alone";
const PORT: u16 = 6443;
/// No body; its kind is of no account.
const NOTHING: (&str, &str) = ("json", "");
/// Who writes status (contract).
const CONTROLLER: &str = "heddle.dev/control-plane";

/// An API server; ends with this.
pub(super) struct Cluster {
    _programs: [Process; 2],
    url: String,
}

impl Cluster {
    /// Starts it, with the namespace of the control plane and the definitions of routes.
    pub(super) async fn start(wire: &Wire, assets: &Path) -> anyhow::Result<Self> {
        let dir = wire.world.directory().join("cluster");
        std::fs::create_dir(&dir)?;
        let path = |name: &str| display(&dir.join(name));
        let ip = wire.family().host(1);
        let key = rcgen::KeyPair::generate()?;
        std::fs::write(path("sa.key"), key.serialize_pem())?;
        std::fs::write(path("sa.pub"), key.public_key_pem())?;
        std::fs::write(path("tokens.csv"), format!("{TOKEN},admin,1,\"system:masters\"\n"))?;
        let program = |name: &str| -> Command { wire.outside.command(&display(&assets.join(name))) };
        let mut etcd = program("etcd");
        etcd.args(["--data-dir", &path("etcd"), "--unsafe-no-fsync"]);
        let etcd = wire.world.run("etcd", &etcd)?;
        let mut api = program("kube-apiserver");
        api.args(["--etcd-servers=http://127.0.0.1:2379", "--authorization-mode=RBAC"]);
        api.args([&format!("--bind-address={ip}"), &format!("--advertise-address={ip}")]);
        api.args([&format!("--secure-port={PORT}"), &format!("--cert-dir={}", path("certs"))]);
        api.args([
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
        ]);
        api.arg(format!("--service-account-key-file={}", path("sa.pub")));
        api.arg(format!("--service-account-signing-key-file={}", path("sa.key")));
        api.arg(format!("--token-auth-file={}", path("tokens.csv")));
        // There is no controller to make each namespace's default account.
        api.arg("--disable-admission-plugins=ServiceAccount");
        let api = wire.world.run("kube-apiserver", &api)?;
        let cluster = Self { _programs: [etcd, api], url: format!("https://{ip}:{PORT}") };
        let ready = async || {
            let (status, text) = cluster.ask(wire, "GET", "/readyz", NOTHING).await?;
            ensure!(status == 200, "/readyz: {status} {text}");
            Ok(())
        };
        // It brings its own tables up first; twice the patience of what follows.
        let _first = until(&ready).await;
        until(&ready).await.context("the API server does not become ready")?;
        cluster.apply(wire, "apiVersion: v1\nkind: Namespace\nmetadata: {name: heddle-system}\n").await?;
        for definition in definitions()? {
            cluster.apply(wire, &definition).await?;
            until(async || {
                let (_, found) = cluster.get(wire, &definition).await?;
                let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let served = conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True");
                ensure!(served, "{} is not served", found["metadata"]["name"]);
                Ok(())
            })
            .await?;
        }
        Ok(cluster)
    }

    /// The control plane's way in.
    pub(super) fn kubeconfig(&self, wire: &Wire) -> anyhow::Result<PathBuf> {
        let file = wire.world.directory().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "wire",
            "contexts": [{"name": "wire", "context": {"cluster": "wire", "user": "wire", "namespace": "heddle-system"}}],
            "clusters": [{"name": "wire", "cluster": {"server": self.url, "insecure-skip-tls-verify": true}}],
            "users": [{"name": "wire", "user": {"token": TOKEN}}]});
        std::fs::write(&file, config.to_string())?;
        Ok(file)
    }

    async fn ask(
        &self,
        wire: &Wire,
        method: &str,
        path: &str,
        (kind, body): (&str, &str),
    ) -> anyhow::Result<(u16, String)> {
        let headers = [format!("Authorization: Bearer {TOKEN}"), format!("Content-Type: application/{kind}")];
        let url = format!("{}{path}", self.url);
        let mut args = vec!["--insecure", "--http1.1", "--request", method, &url, "-H", "Expect:"];
        args.extend(["-H", &headers[0], "-H", &headers[1]]);
        // In a file: the definitions of routes are longer than an argument may be.
        let file = wire.world.directory().join("request-body");
        let at = format!("@{}", display(&file));
        if !body.is_empty() {
            std::fs::write(&file, body)?;
            args.extend(["--data-binary", &at]);
        }
        let output = wire.outside.curl(&args).await?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "curl {url}: {}", String::from_utf8_lossy(&output.stderr));
        let (head, body) = text.split_once("\r\n\r\n").context("an answer has a head")?;
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        Ok((status.context("an answer has a status")?, body.to_owned()))
    }

    async fn must(&self, wire: &Wire, method: &str, path: &str, body: (&str, &str)) -> anyhow::Result<Value> {
        let (status, text) = self.ask(wire, method, path, body).await?;
        ensure!((200..300).contains(&status), "{method} {path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// As `kubectl apply --server-side`; a Pod's status, which nobody else would write, with it.
    pub(super) async fn apply(&self, wire: &Wire, yaml: &str) -> anyhow::Result<Value> {
        let object: Value = serde_norway::from_str(yaml)?;
        let path = path(&object);
        let applied = self
            .must(wire, "PATCH", &format!("{path}?fieldManager=test&force=true"), ("apply-patch+yaml", yaml))
            .await?;
        if object["kind"] == "Pod" {
            let status = json!({"status": object["status"]}).to_string();
            self.must(wire, "PATCH", &format!("{path}/status"), ("merge-patch+json", &status)).await?;
        }
        Ok(applied)
    }

    pub(super) async fn delete(&self, wire: &Wire, yaml: &str) -> anyhow::Result<()> {
        self.must(wire, "DELETE", &path(&serde_norway::from_str(yaml)?), NOTHING).await.map(drop)
    }

    async fn get(&self, wire: &Wire, yaml: &str) -> anyhow::Result<(u16, Value)> {
        let (status, text) = self.ask(wire, "GET", &path(&serde_norway::from_str(yaml)?), NOTHING).await?;
        Ok((status, serde_json::from_str(&text)?))
    }

    /// The mesh's roots as they are published in a namespace.
    pub(super) async fn roots(&self, wire: &Wire, namespace: &str) -> anyhow::Result<String> {
        let map = self
            .must(wire, "GET", &format!("/api/v1/namespaces/{namespace}/configmaps/heddle-ca"), NOTHING)
            .await?;
        Ok(map["data"]["ca.pem"].as_str().context("no ca.pem")?.to_owned())
    }

    /// A pod's projected token, as its kubelet asks for it.
    pub(super) async fn token(
        &self,
        wire: &Wire,
        pod: &str,
        namespace: &str,
        uid: &str,
    ) -> anyhow::Result<String> {
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": ["heddle.dev"], "expirationSeconds": 3600,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}}});
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default/token");
        let answer = self.must(wire, "POST", &path, ("json", &request.to_string())).await?;
        Ok(answer["status"]["token"].as_str().context("no token")?.to_owned())
    }

    /// Whether a route's status is what is stated: for each parent, of this generation, by this controller.
    pub(super) async fn conditions_hold(&self, wire: &Wire, route: &Route, yaml: &str) -> anyhow::Result<()> {
        let (_, found) = self.get(wire, yaml).await?;
        let parents = found["status"]["parents"].as_array().cloned().unwrap_or_default();
        let references = found["spec"]["parentRefs"].as_array().cloned().unwrap_or_default();
        ensure!(parents.len() == references.len(), "{} parents have a status: {parents:?}", parents.len());
        for (parent, reference) in parents.iter().zip(&references) {
            ensure!(parent["parentRef"] == *reference, "{} is not {reference}", parent["parentRef"]);
            ensure!(parent["controllerName"] == CONTROLLER, "by {}", parent["controllerName"]);
            for (kind, reason) in [("Accepted", route.accepted), ("ResolvedRefs", route.resolved)] {
                let conditions = parent["conditions"].as_array().into_iter().flatten();
                let condition =
                    conditions.clone().find(|c| c["type"] == kind).with_context(|| format!("no {kind}"))?;
                let status = if reason == kind { "True" } else { "False" };
                ensure!(
                    condition["status"] == status
                        && condition["reason"] == reason
                        && condition["observedGeneration"] == found["metadata"]["generation"]
                        && condition["message"].as_str().is_some_and(|message| !message.is_empty())
                        && condition["lastTransitionTime"].is_string(),
                    "not {kind} {status} {reason} but {condition}"
                );
            }
        }
        Ok(())
    }
}

/// Where an object is.
fn path(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&object["apiVersion"]);
    let prefix = if version.contains('/') { "apis" } else { "api" };
    let plural = text(&object["kind"]).to_lowercase() + "s";
    let name = text(&object["metadata"]["name"]);
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("/{prefix}/{version}/namespaces/{namespace}/{plural}/{name}"),
        None => format!("/{prefix}/{version}/{plural}/{name}"),
    }
}

/// The definitions of what the cases are made of: the Gateway API's own from the directory in `HEDDLE_TEST_GATEWAY_API` (its
/// `config/crd/standard`), or else some without schema.
fn definitions() -> anyhow::Result<Vec<String>> {
    let kinds = [("HTTPRoute", "v1"), ("GRPCRoute", "v1"), ("ReferenceGrant", "v1beta1")];
    let Some(directory) = std::env::var_os("HEDDLE_TEST_GATEWAY_API") else {
        return Ok(kinds.into_iter().map(|(kind, version)| definition(kind, version)).collect());
    };
    let read = |(kind, _): (&str, &str)| {
        let file = Path::new(&directory).join(format!("{GROUP}_{}s.yaml", kind.to_lowercase()));
        std::fs::read_to_string(&file)
            .with_context(|| format!("HEDDLE_TEST_GATEWAY_API: reading {}", display(&file)))
    };
    kinds.into_iter().map(read).collect()
}

fn definition(kind: &str, version: &str) -> String {
    let singular = kind.to_lowercase();
    // Without the approval an API server takes none of this group.
    format!(
        "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: {singular}s.{GROUP}
  annotations: {{api-approved.kubernetes.io: \"unapproved, a test\"}}
spec:
  group: {GROUP}
  scope: Namespaced
  names: {{kind: {kind}, listKind: {kind}List, plural: {singular}s, singular: {singular}}}
  versions:
  - name: {version}
    served: true
    storage: true
    subresources: {{status: {{}}}}
    schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}
"
    )
}
