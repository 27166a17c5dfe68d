//! `heddle-proxy redirect` and the sidecar that relies on it, in network namespaces.

use std::{
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
};

use anyhow::ensure;
use heddle_api::ports;
use heddle_tests::{
    World,
    app::{HttpApp, TcpApp},
    binaries,
    client::{Client, Raw},
    eventually, manifest,
    netns::{Family, Flags, Namespace, NetPod, Wire, missing},
    skip,
};
use serde_norway::Value;

/// Ends the test where pods cannot be namespaces.
macro_rules! need_namespaces {
    () => {
        if let Some(what) = missing() {
            skip!(what);
        }
    };
}

/// All rules of a namespace.
fn rules(of: &Namespace) -> String {
    of.must("nft", &["list", "ruleset"]).unwrap()
}

#[tokio::test]
async fn what_redirect_prints_is_what_it_writes_once_or_twice_and_removes() {
    const FLAGS: [&str; 6] = [
        "--exclude-outbound-ports=3306,6000-6010",
        "--exclude-inbound-ports=9000",
        "--exclude-outbound-cidrs=10.1.0.0/16",
        "--exclude-outbound-cidrs=192.0.2.1/32",
        "--exclude-outbound-cidrs=fd00::/8",
        "--exclude-outbound-cidrs=fd12:3400::/22",
    ];
    need_namespaces!();
    let world = World::new().unwrap();
    let written = Namespace::new(&world, "written").await.unwrap();
    let printed = Namespace::new(&world, "printed").await.unwrap();
    // Somebody else's rules are nobody's business.
    for namespace in [&written, &printed] {
        namespace
            .nft("table ip somebody {\nchain input {\ntype filter hook input priority 0;\n}\n}")
            .unwrap();
    }
    let before = rules(&written);

    let text = written.redirect(&[&FLAGS[..], &["--dry-run"]].concat()).unwrap();
    assert_eq!(rules(&written), before, "--dry-run changes nothing");
    printed.nft(&text).unwrap();
    written.redirect(&FLAGS).unwrap();
    let once = rules(&written);
    assert_eq!(once, rules(&printed));
    assert!(once.contains("redirect to :15001") && once.contains("ip6 daddr fd12:3400::/22"), "{once}");

    written.redirect(&FLAGS).unwrap();
    assert_eq!(rules(&written), once, "twice is the same as once");
    written.redirect(&[]).unwrap();
    let other = rules(&written);
    assert!(!other.contains("3306") && other.contains("redirect to :15006"), "{other}");
    for _ in 0..2 {
        written.redirect(&["--undo"]).unwrap();
        assert_eq!(rules(&written), before);
    }
}

#[tokio::test]
async fn without_the_right_to_it_redirect_says_what_is_missing() {
    need_namespaces!();
    let world = World::new().unwrap();
    let namespace = Namespace::new(&world, "powerless").await.unwrap();
    let mut command = namespace.command("setpriv");
    command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"]);
    let output = command.arg(binaries::path(binaries::PROXY).unwrap()).arg("redirect").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("NET_ADMIN"), "{said}");
    assert_eq!(rules(&namespace), "");
}

/// What the sidecar says of its readiness.
async fn readiness(wire: &Wire, pod: &NetPod) -> anyhow::Result<(u16, String)> {
    let address = pod.port(ports::METRICS);
    let ask = async move { Client::http1(address).await?.get(&address.to_string(), "/ready").await };
    let answer = wire.outside.run(ask).await?;
    Ok((answer.status, answer.text()))
}

#[tokio::test]
async fn a_sidecar_whose_rules_are_gone_says_so_and_is_not_ready_until_they_are_back() {
    need_namespaces!();
    let wire = Wire::new(Family::V4).await.unwrap();
    let web = wire.pod("web", 2, &[], &[]).await.unwrap();
    assert_eq!(readiness(&wire, &web).await.unwrap().0, 200);
    web.inside.must("nft", &["flush", "ruleset"]).unwrap();
    eventually("the sidecar notices", || async {
        let (status, text) = readiness(&wire, &web).await?;
        ensure!(
            status == 503 && text.contains("netfilter rules") && text.contains("pass"),
            "{status} {text}"
        );
        Ok(())
    })
    .await;
    web.inside.redirect(&[]).unwrap();
    eventually("the sidecar is ready again", || async {
        let (status, text) = readiness(&wire, &web).await?;
        ensure!(status == 200, "{status} {text}");
        Ok(())
    })
    .await;
}

/// Bytes that went out by the sidecar to what is not in the mesh.
async fn passed(wire: &Wire, pod: &NetPod) -> f64 {
    pod.scrape(wire).await.unwrap().sum("heddle_tcp_bytes_total", &[("direction", "outbound")])
}

async fn echo(from: &NetPod, to: SocketAddr) {
    echo_from(&from.inside, to).await;
}

async fn echo_from(from: &Namespace, to: SocketAddr) {
    let talk = async move {
        let mut connection = Raw::connect(to).await?;
        connection.send("hello").await?;
        connection.finish().await?;
        connection.read_to_end().await
    };
    assert_eq!(from.run(talk).await.unwrap(), "hellobye");
}

#[tokio::test]
async fn excluded_ports_and_addresses_pass_by_the_sidecar_and_others_do_not() {
    need_namespaces!();
    let wire = Wire::new(Family::V4).await.unwrap();
    let [by_port, captured] = [7001, 7002].map(|port| SocketAddr::new(wire.family().host(1), port));
    let by_address: SocketAddr = "10.98.0.1:7002".parse().unwrap();
    wire.outside.must("ip", &["address", "add", "10.98.0.1/32", "dev", "bridge"]).unwrap();
    let mut apps = Vec::new();
    for address in [by_port, captured, by_address] {
        apps.push(wire.outside.run(TcpApp::echo(address)).await.unwrap());
    }
    let redirect = ["--exclude-outbound-ports=7000-7001", "--exclude-outbound-cidrs=10.98.0.0/16"];
    let web = wire.pod_with("web", 2, &[], &redirect, &Flags::Usual(&[])).await.unwrap();
    echo(&web, by_port).await;
    echo(&web, by_address).await;
    let before = passed(&wire, &web).await;
    assert!(before.abs() < f64::EPSILON, "{before} bytes went through the sidecar");
    echo(&web, captured).await;
    eventually("what is not excluded goes through it", || async {
        let bytes = passed(&wire, &web).await;
        ensure!(bytes > 0.0, "{bytes}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn what_a_pod_forwards_for_others_within_it_is_left_alone_and_what_comes_for_it_is_not() {
    need_namespaces!();
    for family in [Family::V4, Family::V6] {
        let wire = Wire::new(family).await.unwrap();
        let outside = SocketAddr::new(family.host(1), 7001);
        let _echo = wire.outside.run(TcpApp::echo(outside)).await.unwrap();
        let web = wire.pod("web", 2, &[9080], &[]).await.unwrap();
        let _app = web.inside.run(TcpApp::echo(web.app())).await.unwrap();
        let within = web.within(&wire).await.unwrap();
        echo_from(&within, outside).await;
        // To the pod's own address it comes in as if by the wire.
        let inbound = async || {
            let scrape = web.scrape(&wire).await.unwrap();
            scrape.sum("heddle_tcp_bytes_total", &[("direction", "inbound")])
        };
        assert!(inbound().await.abs() < f64::EPSILON);
        echo_from(&within, web.app()).await;
        eventually("it went through the sidecar", || async {
            let bytes = inbound().await;
            ensure!(bytes > 0.0, "{bytes}");
            Ok(())
        })
        .await;
    }
}

/// Whether somebody without a sidecar gets an answer, or none in plaintext.
async fn answered(wire: &Wire, address: SocketAddr, path: &str) -> bool {
    let output = wire.outside.curl(&[&format!("http://{address}{path}")]).await.unwrap();
    output.status.success() && String::from_utf8_lossy(&output.stdout).starts_with("HTTP/1.1 200")
}

#[tokio::test]
async fn strict_needs_no_hole_for_kubelet() {
    const PROBES: &str = r#"{"reviews": {
        "readiness": {"httpGet": {"port": 9080, "path": "/ready"}, "timeoutSeconds": 2},
        "liveness": {"tcpSocket": {"port": 9080}, "timeoutSeconds": 2}}}"#;
    need_namespaces!();
    let wire = Wire::new(Family::V4).await.unwrap();
    wire.world
        .save("strict.yaml", &manifest::policy("MeshPolicy", "shop/strict", "  mtls: Strict\n"))
        .unwrap();
    wire.service("reviews", 10, 9080, "http", "reviews").unwrap();
    let flags = ["--probes".to_owned(), PROBES.to_owned()];
    let redirect = ["--exclude-inbound-ports=9081"];
    let reviews = wire.pod_with("reviews", 3, &[9080], &redirect, &Flags::Usual(&flags)).await.unwrap();
    let sidecar = reviews.port(ports::METRICS);
    for kind in ["readiness", "liveness"] {
        assert!(!answered(&wire, sidecar, &format!("/probe/reviews/{kind}")).await, "nobody listens");
    }
    let app = reviews.inside.run(HttpApp::start(reviews.app(), "v1")).await.unwrap();
    let _metrics = reviews.inside.run(HttpApp::start(reviews.port(9081), "metrics")).await.unwrap();
    for kind in ["readiness", "liveness"] {
        assert!(answered(&wire, sidecar, &format!("/probe/reviews/{kind}")).await, "{kind}");
    }
    assert_eq!(app.seen()[0].uri.path(), "/ready");
    assert!(!answered(&wire, reviews.app(), "/ready").await, "plaintext is refused");
    assert!(!answered(&wire, sidecar, "/probe/reviews/startup").await, "the spec declares none");
    assert!(answered(&wire, reviews.port(9081), "/").await, "an excluded port is nobody's business");
    app.stop();
    eventually("a probe fails when the application is gone", || async {
        ensure!(!answered(&wire, sidecar, "/probe/reviews/liveness").await, "it still succeeds");
        Ok(())
    })
    .await;
}

/// What `heddle inject` makes of a manifest.
fn injected(manifest: &str) -> Value {
    let mut command = Command::new(binaries::path(binaries::HEDDLE).unwrap());
    command.args(["inject", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_norway::from_slice(&output.stdout).unwrap()
}

/// A container's arguments, as kubelet expands them.
fn arguments(container: &Value, ip: &str) -> Vec<String> {
    let texts = container["args"].as_sequence().unwrap().iter().filter_map(Value::as_str);
    let expand =
        |text: &str| text.replace("$(POD_NAMESPACE)/$(POD_NAME)", "shop/reviews").replace("$(POD_IPS)", ip);
    texts.map(expand).collect()
}

#[tokio::test]
async fn an_injected_pod_runs_as_the_injector_wrote_it() {
    need_namespaces!();
    let pod = injected(
        "apiVersion: v1
kind: Pod
metadata:
  name: reviews
  annotations: {heddle.dev/workers: '1', heddle.dev/exclude-inbound-ports: '9081'}
spec:
  containers:
  - name: reviews
    image: reviews:1
    ports: [{name: http, containerPort: 9080}]
    readinessProbe: {httpGet: {path: /ready, port: http}}
",
    );
    let wire = Wire::new(Family::V4).await.unwrap();
    let service = SocketAddr::new(wire.service("reviews", 10, 9080, "http", "reviews").unwrap(), 9080);
    let ip = wire.family().host(3).to_string();
    let [redirect, proxy] = [0, 1].map(|at| &pod["spec"]["initContainers"][at]);
    let redirect: Vec<String> =
        arguments(redirect, &ip).into_iter().filter(|flag| flag.starts_with("--exclude")).collect();
    assert_eq!(redirect, ["--exclude-inbound-ports=9081"]);
    let redirect: Vec<&str> = redirect.iter().map(String::as_str).collect();
    let mut flags = arguments(proxy, &ip);
    let env = proxy["env"].as_sequence().unwrap();
    let probes = env.iter().find(|one| one["name"] == "HEDDLE_PROBES").unwrap();
    flags.push(format!("--probes={}", probes["value"].as_str().unwrap()));

    let reviews = wire.pod_with("reviews", 3, &[9080], &redirect, &Flags::Injected(&flags)).await.unwrap();
    let _app = reviews.inside.run(HttpApp::start(reviews.app(), "v1")).await.unwrap();
    let web = wire.pod("web", 2, &[], &[]).await.unwrap();
    let output = web.inside.curl(&[&format!("http://{service}/")]).await.unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("HTTP/1.1 200"), "{output:?}");
    let probe = &pod["spec"]["containers"][0]["readinessProbe"]["httpGet"];
    let port = u16::try_from(probe["port"].as_u64().unwrap()).unwrap();
    assert!(answered(&wire, reviews.port(port), probe["path"].as_str().unwrap()).await);
}
