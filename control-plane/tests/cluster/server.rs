//! An API server of a test's own, and what tests do with it.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use heddle_control_plane::cluster::Cluster;
use kube::{
    Api, Client, Config,
    api::{DynamicObject, Patch, PatchParams},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use rcgen::KeyPair;
use serde_json::Value;

use crate::world::PATIENCE;

/// The control plane's namespace.
pub(crate) const SYSTEM: &str = "heddle-system";
const TOKEN: &str = "only-on-loopback";

/// What the control plane does as the chart's ServiceAccount is written down; nobody else's doings are.
const AUDIT: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, users: ['system:serviceaccount:heddle-system:heddle-control-plane']}
- {level: None}
";

/// An API server; ends with this.
pub(crate) struct Server {
    /// None in a cluster of somebody else's.
    own: Option<Own>,
    config: Config,
    pub(crate) client: Client,
}

struct Own {
    dir: tempfile::TempDir,
    assets: PathBuf,
    ports: [u16; 3],
    etcd: Child,
    api: Child,
}

impl Server {
    /// Starts one with namespaces `heddle-system` and `shop`; `None`, with a word, where there is none to be had.
    pub(crate) async fn start() -> Option<Self> {
        // Both ring and aws-lc-rs may be there in a test build.
        let _first = rustls::crypto::aws_lc_rs::default_provider().install_default();
        if let Ok(filter) = std::env::var("HEDDLE_TEST_LOG") {
            // Another test of this process may have been first.
            let _first = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        }
        let server = if let Some(path) = std::env::var_os("HEDDLE_TEST_KUBECONFIG") {
            let kubeconfig = Kubeconfig::read_from(path).unwrap();
            let config =
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
            Self { own: None, client: Client::try_from(config.clone()).unwrap(), config }
        } else if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS") {
            Self::own(PathBuf::from(assets)).await
        } else {
            println!("skipped: needs KUBEBUILDER_ASSETS");
            return None;
        };
        for namespace in [SYSTEM, "shop"] {
            server
                .apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}"))
                .await;
        }
        Some(server)
    }

    async fn own(assets: PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        std::fs::write(dir.path().join("sa.key"), key.serialize_pem()).unwrap();
        std::fs::write(dir.path().join("sa.pub"), key.public_key_pem()).unwrap();
        std::fs::write(dir.path().join("tokens.csv"), format!("{TOKEN},admin,1,\"system:masters\"\n"))
            .unwrap();
        // Held until all three are known, so that they differ.
        let free: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports = [0, 1, 2].map(|i: usize| free[i].local_addr().unwrap().port());
        drop(free);
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let etcd = Command::new(assets.join("etcd"))
            .args(["--data-dir".into(), dir.path().join("etcd")])
            .args(["--listen-client-urls", &url(ports[0]), "--advertise-client-urls", &url(ports[0])])
            .args(["--listen-peer-urls", &url(ports[1]), "--initial-advertise-peer-urls", &url(ports[1])])
            .args(["--initial-cluster", &format!("default={}", url(ports[1]))])
            .args(["--unsafe-no-fsync"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::fs::write(dir.path().join("audit.yaml"), AUDIT).unwrap();
        let api = Self::api(&assets, &dir, ports);
        let mut config = Config::new(format!("https://127.0.0.1:{}", ports[2]).parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info = AuthInfo { token: Some(TOKEN.to_owned().into()), ..AuthInfo::default() };
        let client = Client::try_from(config.clone()).unwrap();
        let server = Self { own: Some(Own { dir, assets, ports, etcd, api }), config, client };
        server.ready().await;
        server
    }

    fn api(assets: &std::path::Path, dir: &tempfile::TempDir, ports: [u16; 3]) -> Child {
        let path = |name: &str| dir.path().join(name).display().to_string();
        let log = std::fs::File::create(dir.path().join("api.log")).unwrap();
        Command::new(assets.join("kube-apiserver"))
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", ports[0]))
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={}", ports[2]))
            .arg(format!("--cert-dir={}", path("certs")))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", path("sa.pub")))
            .arg(format!("--service-account-signing-key-file={}", path("sa.key")))
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            .arg("--authorization-mode=RBAC")
            .arg(format!("--token-auth-file={}", path("tokens.csv")))
            .arg(format!("--audit-policy-file={}", path("audit.yaml")))
            .arg(format!("--audit-log-path={}", path("audit.log")))
            .arg("--disable-admission-plugins=ServiceAccount")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    async fn ready(&self) {
        wait("the API server", async || {
            let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
            self.client.request_text(request).await.ok().filter(|text| text == "ok")
        })
        .await;
    }

    /// Whether it runs on this machine, and so reaches this process.
    pub(crate) fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// Kills the API server, as a crash does. `None` in somebody else's cluster.
    pub(crate) fn kill_api(&mut self) -> Option<()> {
        let own = self.own.as_mut()?;
        own.api.kill().unwrap();
        own.api.wait().unwrap();
        Some(())
    }

    /// Starts it again.
    pub(crate) async fn start_api(&mut self) {
        let own = self.own.as_mut().unwrap();
        own.api = Self::api(&own.assets, &own.dir, own.ports);
        self.ready().await;
    }

    /// A replica's view of it.
    pub(crate) fn cluster(&self, instance: &str) -> Cluster {
        let cluster = Cluster::of(self.config.clone()).unwrap();
        Cluster { namespace: SYSTEM.to_owned(), instance: instance.to_owned(), ..cluster }
    }

    /// The same as somebody else, by a token.
    pub(crate) fn cluster_as(&self, instance: &str, token: String) -> Cluster {
        let auth_info = AuthInfo { token: Some(token.into()), ..AuthInfo::default() };
        let mut config = self.config.clone();
        config.auth_info = auth_info;
        let cluster = Cluster::of(config).unwrap();
        Cluster { namespace: SYSTEM.to_owned(), instance: instance.to_owned(), ..cluster }
    }

    /// A kubeconfig of an API server of our own.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let own = self.own.as_ref().unwrap();
        let path = own.dir.path().join("kubeconfig");
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: own, contexts: [{{name: own, context: {{cluster: own, user: own}}}}], \
             clusters: [{{name: own, cluster: {{server: 'https://127.0.0.1:{}', insecure-skip-tls-verify: true}}}}], \
             users: [{{name: own, user: {{token: {TOKEN}}}}}]}}",
            own.ports[2]
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// What the chart's ServiceAccount did so far, an entry for each request.
    pub(crate) fn audited(&self) -> Vec<Value> {
        let own = self.own.as_ref().unwrap();
        let text = std::fs::read_to_string(own.dir.path().join("audit.log")).unwrap_or_default();
        // The last line may be half written.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Whether the API server would take an object as it is spelt, to the last field.
    pub(crate) async fn would_take(&self, object: &Value) -> Result<(), kube::Error> {
        let (api, name) = self.api_of(object);
        let params = PatchParams {
            dry_run: true,
            field_validation: Some(kube::api::ValidationDirective::Strict),
            ..PatchParams::apply("test").force()
        };
        api.patch(&name, &params, &Patch::Apply(object)).await.map(drop)
    }

    /// Where an object of a manifest is, and its API.
    fn api_of(&self, value: &Value) -> (Api<DynamicObject>, String) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let version = text(&value["apiVersion"]);
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let kind = text(&value["kind"]);
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        let api = match value["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        (api, text(&value["metadata"]["name"]))
    }

    /// As `kubectl apply --server-side`.
    pub(crate) async fn try_apply(&self, manifest: &str) -> Result<DynamicObject, kube::Error> {
        let value: Value = serde_norway::from_str(manifest).unwrap();
        let (api, name) = self.api_of(&value);
        api.patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(&value)).await
    }

    /// The same, which must go well. A `status` is written, too.
    pub(crate) async fn apply(&self, manifest: &str) -> DynamicObject {
        let applied = self.try_apply(manifest).await.unwrap_or_else(|error| panic!("{manifest}: {error}"));
        let value: Value = serde_norway::from_str(manifest).unwrap();
        if value["status"].is_object() {
            let (api, name) = self.api_of(&value);
            let patch = serde_json::json!({"status": value["status"]});
            api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        }
        applied
    }

    /// As `kubectl replace`: what is not in the manifest is gone.
    pub(crate) async fn replace(&self, manifest: &str) -> DynamicObject {
        let value: Value = serde_norway::from_str(manifest).unwrap();
        let (api, name) = self.api_of(&value);
        let mut object: DynamicObject = serde_json::from_value(value).unwrap();
        object.metadata.resource_version = api.get(&name).await.unwrap().metadata.resource_version;
        api.replace(&name, &kube::api::PostParams::default(), &object).await.unwrap()
    }

    /// Changes an object as it is then; again where somebody else changed it meanwhile.
    pub(crate) async fn edit(&self, manifest: &str, change: impl Fn(&mut DynamicObject)) {
        let value: Value = serde_norway::from_str(manifest).unwrap();
        let (api, name) = self.api_of(&value);
        wait("nobody else writes it", async || {
            let mut object = api.get(&name).await.unwrap();
            change(&mut object);
            match api.replace(&name, &kube::api::PostParams::default(), &object).await {
                Ok(_) => Some(()),
                Err(kube::Error::Api(status)) if status.code == 409 => None,
                Err(error) => panic!("{name}: {error}"),
            }
        })
        .await;
    }

    /// An object as it is now.
    pub(crate) async fn get(&self, manifest: &str) -> Option<DynamicObject> {
        let value: Value = serde_norway::from_str(manifest).unwrap();
        let (api, name) = self.api_of(&value);
        api.get_opt(&name).await.unwrap()
    }

    /// Deletes it at once.
    pub(crate) async fn delete(&self, manifest: &str) {
        let value: Value = serde_norway::from_str(manifest).unwrap();
        let (api, name) = self.api_of(&value);
        let params = kube::api::DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
        api.delete(&name, &params).await.unwrap();
    }

    /// Begins to delete it: a Pod on a node stays until its kubelet is done with it.
    pub(crate) async fn delete_slowly(&self, manifest: &str) {
        let value: Value = serde_norway::from_str(manifest).unwrap();
        let (api, name) = self.api_of(&value);
        api.delete(&name, &kube::api::DeleteParams::default()).await.unwrap();
    }

    /// Installs definitions and waits until they are served.
    pub(crate) async fn define(&self, definitions: &[impl serde::Serialize]) {
        for definition in definitions {
            let text = serde_norway::to_string(definition).unwrap();
            self.apply(&text).await;
            wait("a definition", async || {
                let found = self.get(&text).await?;
                let conditions = found.data["status"]["conditions"].as_array()?.clone();
                conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True").then_some(())
            })
            .await;
        }
    }

    /// Installs Heddle's and the Gateway API's.
    pub(crate) async fn define_all(&self) {
        use gateway_api::experimental::{
            grpcroutes::GrpcRoute, httproutes::HttpRoute, referencegrants::ReferenceGrant,
            tcproutes::TcpRoute,
        };
        use heddle_api::resources::{AccessPolicy, MeshPolicy, TrafficPolicy};
        use kube::CustomResourceExt as _;
        self.define(&[TrafficPolicy::crd(), AccessPolicy::crd(), MeshPolicy::crd()]).await;
        let mut gateway = [HttpRoute::crd(), GrpcRoute::crd(), TcpRoute::crd(), ReferenceGrant::crd()];
        for definition in &mut gateway {
            // Without the approval an API server takes none of this group.
            let annotations = definition.metadata.annotations.get_or_insert_default();
            annotations.insert("api-approved.kubernetes.io".to_owned(), "unapproved, a test".to_owned());
        }
        self.define(&gateway).await;
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        for child in [&mut self.api, &mut self.etcd] {
            // It may be dead already.
            let _killed = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// Asks until there is an answer.
pub(crate) async fn wait<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("no sign of {what}"))
}

/// A meshed Pod.
pub(crate) fn pod(name: &str, app: &str, ip: &str, node: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}, annotations: {{heddle.dev/sidecar: 'true'}}}}, \
         spec: {{serviceAccountName: {app}, nodeName: {node}, containers: [{{name: app, image: none, ports: [{{name: http, containerPort: 8080}}]}}]}}, \
         status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: 'True'}}]}}}}"
    )
}

/// A Service that selects `app`.
pub(crate) fn service(name: &str, app: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{selector: {{app: {app}}}, ports: [{{name: http, port: 9080, targetPort: http, appProtocol: http}}]}}}}"
    )
}

/// An HTTPRoute `r` from one Service to another.
pub(crate) fn route(parent: &str, backend: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: r, namespace: shop}}, \
         spec: {{parentRefs: [{{group: '', kind: Service, name: {parent}, port: 9080}}], rules: [{{backendRefs: [{backend}]}}]}}}}"
    )
}
