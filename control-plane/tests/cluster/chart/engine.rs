//! Helm's engine in a Python process, and what it renders as objects.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::server::Server;

/// An API server that can describe itself does so in this time.
const DESCRIBED: Duration = Duration::from_secs(10);

/// The chart.
pub(crate) fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/heddle")
}

/// Helm.
pub(crate) struct Engine {
    pub(crate) python: PathBuf,
    /// Of the cluster, where there is one.
    pub(crate) kubeconfig: PathBuf,
    /// Whether the API server there can describe itself to Helm.
    pub(crate) described: bool,
}

impl Engine {
    /// `None`, with a word, where it is not to be had.
    pub(crate) fn find() -> Option<Self> {
        match heddle_tests::python::environment("heddle-tests-helm", &["helm-python-sdk==0.2.2"]) {
            Ok(python) => Some(Self { python, kubeconfig: PathBuf::from("/nowhere"), described: false }),
            Err(error) => {
                println!("skipped: needs helm-python-sdk ({error:#})");
                None
            }
        }
    }

    /// The same for a cluster.
    pub(crate) async fn of(self, server: &Server) -> Self {
        let request = http::Request::get("/openapi/v2")
            .header("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")
            .body(kube::client::Body::empty())
            .unwrap();
        // The client asks again and again where the answer is 503.
        let answer = tokio::time::timeout(DESCRIBED, server.client.send(request)).await;
        let described = matches!(answer, Ok(Ok(answer)) if answer.status().is_success());
        if !described {
            println!(
                "not done: Helm's look for misspelt fields (this API server cannot write its OpenAPI v2 as protobuf)"
            );
        }
        Self { kubeconfig: server.kubeconfig(), described, ..self }
    }

    /// Does one thing after another.
    pub(crate) fn all(&self, operations: &[Value]) -> Vec<Result<Value, String>> {
        let mut child = Command::new(&self.python)
            .arg(heddle_tests::python::script("helm.py"))
            .arg(chart())
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HEDDLE_TEST_OPENAPI", if self.described { "served" } else { "not served" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(json!(operations).to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "helm.py failed: {}", output.status);
        let results: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let read = |result: &Value| match result["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(result["ok"].clone()),
        };
        results.iter().map(read).collect()
    }

    /// Does one thing.
    pub(crate) fn one(&self, operation: Value) -> Result<Value, String> {
        self.all(&[operation]).remove(0)
    }

    /// The objects of the chart with these values.
    pub(crate) fn render(&self, values: &Value) -> Objects {
        Objects::of(&self.one(json!({"do": "render", "values": values})).unwrap())
    }
}

/// What was rendered.
pub(crate) struct Objects(pub(crate) Vec<Value>);

impl Objects {
    pub(crate) fn of(rendered: &Value) -> Self {
        let files = rendered.as_object().unwrap().iter().filter(|(path, _)| path.ends_with(".yaml"));
        let documents = files.flat_map(|(_, text)| {
            serde_norway::Deserializer::from_str(text.as_str().unwrap())
                .map(|document| Value::deserialize(document).unwrap())
                .collect::<Vec<_>>()
        });
        Self(documents.filter(|object| !object.is_null()).collect())
    }

    pub(crate) fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        self.0.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
    }

    /// One, as Kubernetes' type.
    pub(crate) fn typed<T: DeserializeOwned>(&self, kind: &str, name: &str) -> T {
        let found = self.find(kind, name).unwrap_or_else(|| panic!("no {kind} {name}"));
        serde_json::from_value(found.clone()).unwrap()
    }

    pub(crate) fn kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<&str> = self.0.iter().filter_map(|object| object["kind"].as_str()).collect();
        kinds.sort_unstable();
        kinds
    }
}

/// Values worth trying, each with what it is about.
pub(crate) fn matrix() -> Vec<(&'static str, Value)> {
    vec![
        ("defaults", json!({})),
        (
            "autoscaled, on IPv6",
            json!({"controlPlane": {"autoscaling": {"enabled": true, "maxReplicas": 9}, "listenAddress": "::"}}),
        ),
        (
            "one replica without a budget",
            json!({"controlPlane": {"replicas": 1, "podDisruptionBudget": {"enabled": false}, "antiAffinity": "none"}}),
        ),
        (
            "everything optional",
            json!({
                "networkPolicy": {"enabled": true, "metricsFrom": [{"namespaceSelector": {"matchLabels": {"team": "o11y"}}}]},
                "podMonitor": {"enabled": true, "labels": {"release": "prometheus"}, "interval": "1m"},
                "serviceMonitor": {"enabled": true, "labels": {"release": "prometheus"}, "interval": "15s"},
                "injection": {"failurePolicy": "Ignore", "timeoutSeconds": 3, "excludedNamespaces": ["batch"]},
            }),
        ),
        (
            "somebody's own registry and scheduling",
            json!({
                "image": {"registry": "registry.example/mesh", "tag": "1.2.3", "pullPolicy": "Always", "pullSecrets": ["mine"]},
                "sidecar": {"image": {"digest": format!("sha256:{}", "a".repeat(64))}, "logLevel": "warn,heddle_proxy=debug",
                    "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": 2, "memory": "1Gi"}}},
                "controlPlane": {
                    "antiAffinity": "required", "nodeSelector": {"kubernetes.io/os": "linux"},
                    "tolerations": [{"key": "dedicated", "operator": "Exists"}], "priorityClassName": "system-cluster-critical",
                    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "heddle-control-plane"}}}],
                    "podAnnotations": {"a": "b"}, "podLabels": {"c": "d"}, "serviceAccountAnnotations": {"e": "f"},
                    "podDisruptionBudget": {"maxUnavailable": "50%"}, "webhookGrace": "0s", "logLevel": "info,kube=warn",
                },
                "trustDomain": "example.org", "certificateLifetime": "90m",
            }),
        ),
        (
            "its own affinity",
            json!({"controlPlane": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": ["system"]}]}]}}}}}),
        ),
    ]
}
