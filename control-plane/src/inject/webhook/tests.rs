//! The webhook as an API server uses it, over TLS.

use std::{collections::BTreeMap, time::SystemTime};

use http::Uri;
use json_patch::Patch;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;
use crate::ca::{Authority, CurrentAuthority};

const NAME: &str = "heddle-injector.heddle-system.svc";

struct Labelled(&'static str);

impl Namespaces for Labelled {
    fn labels(&self, namespace: &str) -> Option<BTreeMap<String, String>> {
        let label = ("pod-security.kubernetes.io/enforce".to_owned(), self.0.to_owned());
        (namespace == "shop").then(|| BTreeMap::from([label]))
    }
}

fn ask(body: &Value, asked: Asked) -> (StatusCode, Value) {
    let (status, review) =
        review(body.to_string().as_bytes(), asked, &Settings::default(), &Labelled("restricted"));
    (status, serde_json::from_slice(&wire(review).unwrap()).unwrap())
}

fn pod(annotations: &Value, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"generateName": "web-", "namespace": "shop", "annotations": annotations},
    })
}

fn question(object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "e911857d-c318-11e8-bbad-025000000001",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": object,
            "oldObject": null,
            "dryRun": false,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
        },
    })
}

fn plain_spec() -> Value {
    json!({"containers": [{"name": "web", "image": "web:1", "fieldOfTomorrow": {"a": 1}}]})
}

/// The patch, applied to the object of the question.
fn patched(question: &Value, answer: &Value) -> Value {
    let bytes: ByteString = serde_json::from_value(answer["response"]["patch"].clone()).unwrap();
    let patch: Patch = serde_json::from_slice(&bytes.0).unwrap();
    let mut object = question["request"]["object"].clone();
    json_patch::patch(&mut object, &patch).unwrap();
    object
}

#[test]
fn a_pod_of_a_labelled_namespace_gets_its_sidecar_and_keeps_what_we_do_not_know() {
    let question = question(&pod(&json!({}), &plain_spec()));
    let (status, answer) = ask(&question, Asked::ByNamespace);
    let response = &answer["response"];
    assert_eq!((status, &answer["apiVersion"]), (StatusCode::OK, &json!("admission.k8s.io/v1")));
    assert_eq!((&response["uid"], &response["allowed"]), (&question["request"]["uid"], &json!(true)));
    assert_eq!(response["patchType"], "JSONPatch");
    let pod = patched(&question, &answer);
    let names: Vec<&str> = pod["spec"]["initContainers"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert_eq!(names, ["heddle-redirect", "heddle-proxy"]);
    assert_eq!(pod["spec"]["containers"], plain_spec()["containers"]);
    assert_eq!(pod["metadata"]["annotations"]["heddle.dev/sidecar"], "true");

    // Another webhook was called in between, and we are asked again.
    let again = self::question(&pod);
    let (_, answer) = ask(&again, Asked::ByNamespace);
    assert_eq!((&answer["response"]["allowed"], answer["response"].get("patch")), (&json!(true), None));
    let mut extended = pod.clone();
    extended["spec"]["containers"].as_array_mut().unwrap().push(
        json!({"name": "late", "image": "late:1", "readinessProbe": {"tcpSocket": {"port": 9000}, "periodSeconds": 7}}),
    );
    let again = self::question(&extended);
    let (_, answer) = ask(&again, Asked::ByNamespace);
    let extended = patched(&again, &answer);
    let probe = json!({"httpGet": {"path": "/probe/late/readiness", "port": 15020}, "periodSeconds": 7});
    assert_eq!(extended["spec"]["containers"][1]["readinessProbe"], probe);
    let env = extended["spec"]["initContainers"][1]["env"].as_array().unwrap();
    let probes = env.iter().find(|one| one["name"] == "HEDDLE_PROBES").unwrap()["value"].as_str().unwrap();
    assert_eq!(probes, r#"{"late":{"readiness":{"tcpSocket":{"port":9000},"timeoutSeconds":1}}}"#);
    assert_eq!(extended["spec"]["initContainers"].as_array().unwrap().len(), 2);
}

#[test]
fn the_annotation_has_the_last_word() {
    for (annotations, asked, injected) in [
        (json!({}), Asked::ByNamespace, true),
        (json!({}), Asked::ByAnnotation, false),
        (json!({"heddle.dev/inject": "enabled"}), Asked::ByAnnotation, true),
        (json!({"heddle.dev/inject": "disabled"}), Asked::ByNamespace, false),
    ] {
        let (_, answer) = ask(&question(&pod(&annotations, &plain_spec())), asked);
        assert_eq!(answer["response"]["allowed"], true);
        assert_eq!(answer["response"].get("patch").is_some(), injected, "{annotations} {asked:?}");
    }
}

#[test]
fn a_pod_that_cannot_have_its_sidecar_is_denied_with_the_reason() {
    let mut spec = plain_spec();
    spec["hostNetwork"] = true.into();
    let (status, answer) = ask(&question(&pod(&json!({}), &spec)), Asked::ByNamespace);
    assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(false)));
    let message = answer["response"]["status"]["message"].as_str().unwrap();
    assert!(message.contains("pod web-… of namespace shop") && message.contains("hostNetwork"), "{message}");
}

#[test]
fn a_namespace_that_forbids_the_redirect_step_is_named_in_a_warning() {
    let question = question(&pod(&json!({}), &plain_spec()));
    let (_, answer) = ask(&question, Asked::ByNamespace);
    let warnings = answer["response"]["warnings"].to_string();
    assert!(warnings.contains("restricted") && warnings.contains("heddle-redirect"), "{warnings}");
    let open = review(
        question.to_string().as_bytes(),
        Asked::ByNamespace,
        &Settings::default(),
        &Labelled("privileged"),
    );
    assert_eq!(open.1.response.unwrap().warnings, None);
}

#[test]
fn what_is_no_new_pod_is_let_through() {
    let mut update = question(&pod(&json!({}), &plain_spec()));
    update["request"]["operation"] = "UPDATE".into();
    let mut other = question(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}}));
    other["request"]["resource"]["resource"] = "configmaps".into();
    let mut sub = question(&json!({"apiVersion": "v1", "kind": "Binding", "metadata": {}}));
    sub["request"]["subResource"] = "binding".into();
    for question in [update, other, sub] {
        let (status, answer) = ask(&question, Asked::ByNamespace);
        assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(true)), "{question}");
        assert_eq!(answer["response"].get("patch"), None);
    }
}

#[test]
fn nonsense_gets_an_admission_review_that_says_so() {
    let mut old = question(&pod(&json!({}), &plain_spec()));
    old["apiVersion"] = "admission.k8s.io/v1beta1".into();
    let empty = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"});
    let broken = question(&pod(&json!({}), &json!({"containers": "none"})));
    for (body, status, word) in [
        (json!("hello"), 400, "AdmissionReview"),
        (json!({}), 400, "AdmissionReview"),
        (old, 400, "v1beta1"),
        (empty, 400, "without a request"),
        (broken, 200, "no pod"),
    ] {
        let (code, answer) = ask(&body, Asked::ByNamespace);
        assert_eq!((code.as_u16(), &answer["kind"]), (status, &json!("AdmissionReview")), "{body}");
        assert_eq!(answer["response"]["allowed"], false);
        let message = answer["response"]["status"]["message"].as_str().unwrap();
        assert!(message.contains(word), "{message}");
    }
}

/// A webhook on loopback, and who trusts it.
struct Served {
    address: std::net::SocketAddr,
    tls: Arc<ServingTls>,
    authority: Arc<CurrentAuthority>,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Served {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let authority =
            Authority::open(directory.path(), "cluster.local", Duration::from_secs(3600), now).unwrap();
        let authority = CurrentAuthority::new(authority);
        let (tls, _) =
            tls::for_service(Arc::clone(&authority), "heddle-injector", "heddle-system", now).unwrap();
        let stop = CancellationToken::new();
        let namespaces = Arc::new(Labelled("privileged"));
        let webhook =
            Webhook::new(Settings::default(), namespaces, Arc::clone(&tls), Metrics::new(), stop.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let running = tokio::spawn(webhook.run(listener));
        Self { address, tls, authority, stop, running, _directory: directory }
    }

    async fn dial(&self, from: [u8; 4]) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// As an API server connects, with the roots for its `caBundle`.
    async fn connect(&self) -> TlsStream<TcpStream> {
        self.shake(self.dial([127, 0, 0, 1]).await).await
    }

    async fn shake(&self, io: TcpStream) -> TlsStream<TcpStream> {
        self.try_shake(io).await.unwrap()
    }

    async fn try_shake(&self, io: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        for root in self.authority.load().roots() {
            roots.add(root.clone()).unwrap();
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME).unwrap(), io).await
    }

    async fn post(&self, path: &str, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await)).await.unwrap();
        let connection = tokio::spawn(connection);
        let uri: Uri = path.parse().unwrap();
        let request = Request::post(uri).header("host", NAME).body(Full::new(Bytes::from(body))).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes().to_vec();
        connection.abort();
        (status, body)
    }
}

#[tokio::test]
async fn an_api_server_is_answered_over_tls_and_a_stop_waits_for_nobody_idle() {
    let served = Served::new().await;
    let question = question(&pod(&json!({}), &plain_spec())).to_string();
    let (status, body) = served.post(NAMESPACE_PATH, question.clone().into()).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(true)));
    assert!(answer["response"]["patch"].is_string(), "{answer}");
    let (_, body) = served.post(POD_PATH, question.into()).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(answer["response"].get("patch"), None);
    assert_eq!(served.post("/", Vec::new()).await.0, StatusCode::NOT_FOUND);
    let _idle = served.connect().await;
    served.stop.cancel();
    served.running.await.unwrap();
}

#[tokio::test]
async fn a_question_that_is_too_long_is_refused() {
    let served = Served::new().await;
    let (status, body) = served.post(NAMESPACE_PATH, vec![b' '; LONGEST + 1]).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::PAYLOAD_TOO_LARGE, &json!(false)));
}

#[tokio::test]
async fn the_certificate_is_replaced_when_it_is_due_while_connections_live() {
    let served = Served::new().await;
    let serial = |io: &TlsStream<TcpStream>| io.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let before = served.connect().await;
    let rotating = tokio::spawn(Arc::clone(&served.tls).rotate(SystemTime::now()));
    let mut after = serial(&before);
    for _ in 0..500 {
        after = serial(&served.connect().await);
        if after != serial(&before) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_ne!(after, serial(&before), "the old certificate is still served");
    rotating.abort();
}

/// An API server waits no longer than some seconds; while nobody is in its way, milliseconds do.
const SOON: Duration = Duration::from_secs(2);

#[tokio::test]
async fn one_address_that_never_finishes_its_handshakes_delays_no_api_server() {
    let served = Served::new().await;
    let stranger = [127, 0, 0, 66];
    let mut silent = Vec::new();
    for _ in 0..=HANDSHAKES_OF_ONE_ADDRESS {
        silent.push(served.dial(stranger).await);
    }
    let question = question(&pod(&json!({}), &plain_spec())).to_string();
    let answer = tokio::time::timeout(SOON, served.post(NAMESPACE_PATH, question.into())).await;
    assert_eq!(answer.expect("answered soon").0, StatusCode::OK);
    // What is beyond its share is closed at once, not when its time for the handshake is over.
    let ended = tokio::time::timeout(SOON, silent.pop().unwrap().read(&mut [0; 1])).await;
    assert!(matches!(ended.expect("ended soon"), Ok(0) | Err(_)));
    // One that leaves makes room.
    drop(silent);
    let again = async {
        while served.try_shake(served.dial(stranger).await).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, again).await.unwrap();
}

#[tokio::test]
async fn an_address_has_more_connections_than_handshakes() {
    let served = Served::new().await;
    let mut shaken = Vec::new();
    for _ in 0..HANDSHAKES_OF_ONE_ADDRESS {
        shaken.push(served.shake(served.dial([127, 0, 0, 66]).await).await);
    }
    let io = served.dial([127, 0, 0, 66]).await;
    assert!(served.try_shake(io).await.is_ok());
}

#[tokio::test]
async fn questions_that_never_end_delay_no_api_server() {
    let served = Served::new().await;
    let mut slow = Vec::new();
    for _ in 0..2 * BODIES {
        let mut io = served.shake(served.dial([127, 0, 0, 66]).await).await;
        io.write_all(b"POST /inject/namespace HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{")
            .await
            .unwrap();
        slow.push(io);
    }
    let question = question(&pod(&json!({}), &plain_spec())).to_string();
    let answer = tokio::time::timeout(SOON, served.post(NAMESPACE_PATH, question.into())).await;
    assert_eq!(answer.expect("answered soon").0, StatusCode::OK);
}
