//! Identity: who is refused at a sidecar's mesh port, at the control plane, and at the other doors.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use heddle_api::{
    ports,
    v1::{DiscoveryRequest, Hello, ResourceName, ResourceType},
};
use heddle_tests::{
    Pod, World,
    app::TcpApp,
    client::{Client, Raw},
    eventually, manifest,
    peer::{self, Credentials},
};
use http::{Request, Response};
use tokio::net::TcpSocket;

use crate::shop::{self, HOST, Shop};

/// A GET on a mesh connection with this server name and certificate.
async fn get_over_mesh(
    pod: &Pod,
    server_name: &str,
    credentials: Option<&Credentials>,
) -> anyhow::Result<Response<h2::RecvStream>> {
    let request = Request::builder().uri(format!("http://{HOST}/")).body(())?;
    send_over_mesh(pod, server_name, credentials, request).await
}

async fn send_over_mesh(
    pod: &Pod,
    server_name: &str,
    credentials: Option<&Credentials>,
    request: Request<()>,
) -> anyhow::Result<Response<h2::RecvStream>> {
    let stream = peer::dial(pod.port(ports::MESH), server_name, credentials).await?;
    let exchange = async {
        let (mut sender, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        sender = sender.ready().await?;
        let is_connect = request.method() == http::Method::CONNECT;
        let (response, mut body) = sender.send_request(request, false)?;
        if !is_connect {
            body.send_data(Bytes::new(), true)?;
        }
        Ok(response.await?)
    };
    tokio::time::timeout(Duration::from_secs(10), exchange).await?
}

async fn refusals(pod: &Pod, reason: &str) -> f64 {
    let labels = [("direction", "inbound"), ("reason", reason)];
    pod.scrape().await.unwrap().sum("heddle_peer_refused_total", &labels)
}

fn token(shop: &Shop, account: &str) -> String {
    let file = shop.world.token("shop", account, "1h").unwrap();
    std::fs::read_to_string(file).unwrap()
}

async fn web_credentials(shop: &Shop) -> Credentials {
    Credentials::join(shop.world.discovery(), &token(shop, "web"), "shop/web").await.unwrap()
}

#[tokio::test]
async fn a_websocket_that_is_open_is_ended_when_an_access_policy_comes_to_deny_it() {
    let shop = shop::open(1).await;
    let upgrade =
        format!("GET /upgrade HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    let mut open = Vec::new();
    for to in [shop.web.outbound(), shop.reviews[0].port(ports::INBOUND)] {
        let mut socket = Raw::connect(to).await.unwrap();
        socket.send(&upgrade).await.unwrap();
        assert!(socket.read_until("\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 101"));
        open.push(socket);
    }
    shop.access_policy("no-admin", "Deny", "  - to: [{paths: [\"/admin/*\"]}]");
    shop.web.answers(HOST, "/admin/x", |answer| answer.status == 403).await;
    for socket in &mut open {
        socket.send("still there").await.unwrap();
        socket.read_until("still there").await.unwrap();
    }
    shop.access_policy("no-upgrade", "Deny", "  - to: [{paths: [\"/upgrade\"]}]");
    for socket in &mut open {
        assert!(socket.read_exact(1).await.is_err(), "it must end");
    }
}

#[tokio::test]
async fn a_peer_is_judged_by_its_certificate_and_each_refusal_is_counted() {
    let shop = shop::open(1).await;
    let reviews = &shop.reviews[0];
    let good = web_credentials(&shop).await;
    let answer = get_over_mesh(reviews, "http1.9080.heddle", Some(&good)).await.unwrap();
    assert_eq!(answer.status(), 200, "the real certificate opens the door");

    let spiffe = "spiffe://cluster.local/ns/shop/sa/web";
    let strangers = [
        ("no certificate", None, "NoCertificate"),
        ("another authority", Some(Credentials::of_another_authority(spiffe).unwrap()), "OtherAuthority"),
        ("a leaf that plays authority", Some(good.issue(spiffe).unwrap()), ""),
    ];
    for (who, credentials, reason) in strangers {
        let labels: Vec<_> = [("direction", "inbound"), ("reason", reason)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .collect();
        let counted = async || reviews.scrape().await.unwrap().sum("heddle_peer_refused_total", &labels);
        let (before, requests) = (counted().await, reviews.app().requests());
        let refused = get_over_mesh(reviews, "http1.9080.heddle", credentials.as_ref()).await;
        assert!(refused.is_err(), "{who}: {refused:?}");
        assert_eq!(reviews.app().requests(), requests, "{who} reached the application");
        eventually(&format!("the refusal of {who} is counted"), || async {
            let after = counted().await;
            anyhow::ensure!(after > before, "{reason}: {before} then {after}");
            Ok(())
        })
        .await;
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused_and_connections_made_before_live_on() {
    let mut world = World::new().unwrap();
    world.certificates_live(Duration::from_secs(6));
    shop::declare(&world, 1);
    world.start_control_plane().await.unwrap();
    let shop = shop::fill(world, 1).await;
    let reviews = &shop.reviews[0];
    let short = web_credentials(&shop).await;
    assert!(get_over_mesh(reviews, "http1.9080.heddle", Some(&short)).await.is_ok());
    eventually("the certificate expires", || async {
        let refused = get_over_mesh(reviews, "http1.9080.heddle", Some(&short)).await;
        anyhow::ensure!(refused.is_err(), "still accepted");
        Ok(())
    })
    .await;
    eventually("the refusal is counted", || async {
        anyhow::ensure!(refusals(reviews, "Expired").await >= 1.0, "not yet");
        Ok(())
    })
    .await;
    let answer = shop.web.http1().await.unwrap().get(HOST, "/").await.unwrap();
    assert_eq!(answer.status, 200, "the sidecars themselves have renewed: {}", answer.reason());
}

#[tokio::test]
async fn an_endpoint_that_shows_another_identity_than_declared_gets_nothing() {
    let shop = &mut shop::open(1).await;
    // At this address another service account's sidecar answers than the Pod's manifest says.
    let ip = shop.world.new_address();
    let impostor = shop.world.pod("shop/impostor-v1").at(ip).answering("evil").start().await.unwrap();
    let mut lie = impostor.manifest.clone();
    lie.name = "reviews-v9".to_owned();
    lie.service_account = "reviews".to_owned();
    lie.labels = vec![("app".to_owned(), "vault".to_owned())];
    shop.world.remove("pod-shop-impostor-v1.yaml").unwrap();
    shop.world.save("lie.yaml", &lie.yaml()).unwrap();
    shop.world.save("vault.yaml", &manifest::service("shop/vault", 9080, "http", "app: vault")).unwrap();
    shop.web.answers("vault:9080", "/", |answer| answer.reason() == "PeerIdentity").await;
    let answer = shop.web.http1().await.unwrap().get("vault:9080", "/").await.unwrap();
    assert_eq!((answer.status, answer.reason()), (503, "PeerIdentity"));
    assert_eq!(impostor.app().requests(), 0);
    let counted = shop.web.scrape().await.unwrap();
    assert!(
        counted.sum("heddle_peer_refused_total", &[("direction", "outbound"), ("reason", "WrongIdentity")])
            >= 1.0,
        "{}",
        counted.text
    );
}

#[tokio::test]
async fn a_join_token_is_refused_with_the_reason() {
    let shop = shop::open(1).await;
    let control_plane = shop.world.discovery();
    let join = |token: String, pod: &'static str| async move {
        match Credentials::join(control_plane, &token, pod).await {
            Ok(_) => "accepted".to_owned(),
            Err(refusal) => format!("{refusal:#}"),
        }
    };
    let good = token(&shop, "web");
    assert_eq!(join(good.clone(), "shop/web").await, "accepted");

    // One letter of the signature's middle: the last one's bits may be padding.
    let mut forged = good.trim().to_owned();
    let at = forged.rfind('.').unwrap() + 10;
    let letter = if &forged[at..=at] == "A" { "B" } else { "A" };
    forged.replace_range(at..=at, letter);
    let short = std::fs::read_to_string(shop.world.token("shop", "web", "1s").unwrap()).unwrap();
    let foreign = {
        let other = World::new().unwrap();
        std::fs::read_to_string(other.token("shop", "web", "1h").unwrap()).unwrap()
    };
    for (token, pod, word) in [
        (forged, "shop/web", "forged"),
        (foreign, "shop/web", "foreign"),
        ("nonsense".to_owned(), "shop/web", "malformed"),
        (good.clone(), "shop/reviews-v1", "web"),
        (good, "shop/no-such-pod", "no-such-pod"),
    ] {
        let said = join(token, pod).await;
        assert!(said.contains(word), "wanted {word:?} for {pod}: {said}");
    }
    eventually("the short token has expired", || async {
        let said = join(short.clone(), "shop/web").await;
        anyhow::ensure!(said.contains("expired"), "{said}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_sidecar_is_told_of_its_own_pod_alone() {
    let shop = shop::open(1).await;
    let web = web_credentials(&shop).await;
    let ask = |credentials: Option<Credentials>, pod: &'static str, inbound: &'static str| {
        let control_plane = shop.world.discovery();
        async move {
            let mut client = peer::discovery(control_plane, credentials.as_ref()).await?;
            let request = DiscoveryRequest {
                hello: Some(Hello { pod: pod.to_owned(), version: "0.1.0".to_owned(), held: Vec::new() }),
                subscribe: vec![ResourceName {
                    r#type: ResourceType::Inbound.into(),
                    name: inbound.to_owned(),
                }],
                ..DiscoveryRequest::default()
            };
            let requests =
                tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
            let mut answers = client.stream(requests).await?.into_inner();
            let limit = Duration::from_secs(10);
            let answer = tokio::time::timeout(limit, answers.message()).await??;
            anyhow::Ok(answer.map(|answer| answer.changed.len()).unwrap_or_default())
        }
    };
    assert_eq!(ask(Some(web.clone()), "shop/web", "shop/web").await.unwrap(), 1, "its own");
    for (credentials, pod, inbound) in [
        (Some(web.clone()), "shop/web", "shop/reviews-v1"),
        (Some(web), "shop/reviews-v1", "shop/reviews-v1"),
        (None, "shop/web", "shop/web"),
    ] {
        let told = ask(credentials, pod, inbound).await;
        assert!(!matches!(told, Ok(1..)), "{pod} asked for {inbound}: {told:?}");
    }
}

#[tokio::test]
async fn the_outbound_port_refuses_a_source_that_is_not_its_pod() {
    let mut shop = shop::open(1).await;
    let neighbour = shop.world.new_address();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(neighbour, 0)).unwrap();
    let before = shop.reviews[0].app().requests();
    // The reset may come as early as the connection itself.
    let answer = async {
        let stream = socket.connect(shop.web.outbound()).await?;
        Client::http1_over(stream).await?.get(HOST, "/").await
    }
    .await;
    if let Ok(answer) = answer {
        assert_eq!((answer.status, answer.reason()), (403, "ForeignSource"));
    }
    assert_eq!(shop.reviews[0].app().requests(), before);
    eventually("the refusal is counted", || async {
        let labels = [("reason", "ForeignSource")];
        let counted = shop.web.scrape().await?.sum("heddle_refused_total", &labels);
        anyhow::ensure!(counted >= 1.0, "not yet");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn nothing_dials_the_sidecars_own_ports() {
    let shop = shop::open(1).await;
    let mut client = shop.web.http1().await.unwrap();
    for port in [ports::OUTBOUND, ports::INBOUND, ports::MESH, ports::ADMIN, ports::METRICS] {
        for ip in [shop.web.ip, shop.reviews[0].ip] {
            let answer = client.get(&format!("{ip}:{port}"), "/config").await.unwrap();
            assert!(answer.status >= 400, "{ip}:{port} answered {} {}", answer.status, answer.text());
            assert_ne!(answer.reason(), "", "{ip}:{port} was dialled");
            if client.is_closed() {
                client = shop.web.http1().await.unwrap();
            }
        }
    }
    let web = web_credentials(&shop).await;
    for name in ["tcp.15000.heddle", "http1.15000.heddle", "http2.15020.heddle"] {
        let reached = get_over_mesh(&shop.reviews[0], name, Some(&web)).await;
        assert!(!matches!(&reached, Ok(answer) if answer.status() == 200), "{name}: {reached:?}");
    }
}

#[tokio::test]
async fn a_connect_reaches_no_other_port_or_host_than_its_connection_is_for() {
    let shop = shop::open(1).await;
    let reviews = &shop.reviews[0];
    // What must not be reached: a second application of the same pod, and one of another.
    let other_port = TcpApp::echo(reviews.port(7001)).await.unwrap();
    let other_host = TcpApp::echo(shop.web.port(7001)).await.unwrap();
    let web = web_credentials(&shop).await;
    let connect = |authority: String| Request::builder().method("CONNECT").uri(authority).body(()).unwrap();
    for authority in [reviews.port(7001).to_string(), shop.web.port(7001).to_string()] {
        // On a connection for port 9080 the authority is not obeyed …
        let tunnel = send_over_mesh(reviews, "tcp.9080.heddle", Some(&web), connect(authority.clone())).await;
        drop(tunnel);
        // … and one that carries HTTP opens no tunnel.
        let refused =
            send_over_mesh(reviews, "http1.9080.heddle", Some(&web), connect(authority.clone())).await;
        assert!(!matches!(&refused, Ok(answer) if answer.status() == 200), "{authority}: {refused:?}");
    }
    for name in ["nonsense.example", "tcp.0.heddle", "tcp.9080.heddle.example", "http3.9080.heddle"] {
        let refused = get_over_mesh(reviews, name, Some(&web)).await;
        assert!(refused.is_err(), "{name}: {refused:?}");
    }
    assert_eq!((other_port.connections(), other_host.connections()), (0, 0));
}

#[tokio::test]
async fn a_connect_does_not_lead_past_the_destination_that_a_connection_has() {
    let mut world = World::new().unwrap();
    shop::declare(&world, 1);
    world.start_control_plane().await.unwrap();
    let mut shop = shop::fill(world, 1).await;
    let ip = shop.world.new_address();
    let forward = format!("{ip}:9080=reviews:9080");
    let client = shop.world.pod("shop/client").at(ip).sidecar_args(["--forward", &forward]).start();
    let client = client.await.unwrap();
    client.answers(HOST, "/", |answer| answer.status == 200).await;
    let elsewhere = TcpApp::echo(shop.web.port(7001)).await.unwrap();
    let authority = shop.web.port(7001).to_string();
    let mut forwarded = Raw::connect(client.port(9080)).await.unwrap();
    forwarded.send(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")).await.unwrap();
    let (status, head, _) = forwarded.read_response().await.unwrap();
    assert!(status == 400 && head.contains("BadRequest"), "{head}");
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn a_tunnel_cannot_carry_http_past_an_access_rule() {
    let shop = shop::open(1).await;
    shop.access_policy("no-secrets", "Deny", "  - to: [{paths: [\"/secret/*\"]}]");
    shop.web.answers(HOST, "/secret/x", |answer| answer.status == 403).await;
    let web = web_credentials(&shop).await;
    let reviews = &shop.reviews[0];
    let before = reviews.app().connections();
    let connect = Request::builder().method("CONNECT").uri(HOST).body(()).unwrap();
    let refused = send_over_mesh(reviews, "tcp.9080.heddle", Some(&web), connect).await;
    assert!(!matches!(&refused, Ok(answer) if answer.status() == 200), "{refused:?}");
    assert_eq!(reviews.app().connections(), before, "the tunnel reached the application");
}

#[tokio::test]
async fn plaintext_does_not_slip_past_a_deny() {
    let shop = shop::open(1).await;
    let plaintext = shop.reviews[0].port(ports::INBOUND);
    let get = async || Client::http1(plaintext).await?.get(HOST, "/").await;
    assert_eq!(get().await.unwrap().status, 200, "Permissive takes plaintext");
    shop.access_policy("not-web", "Deny", "  - from: [{serviceAccounts: [shop/web]}]");
    eventually("without identity every Deny matches", || async {
        let answer = get().await?;
        anyhow::ensure!((answer.status, answer.reason()) == (403, "AccessDenied"), "{}", answer.status);
        Ok(())
    })
    .await;
    shop.web.answers(HOST, "/", |answer| answer.status == 403).await;
}

#[tokio::test]
async fn strict_takes_no_plaintext_and_the_plaintext_port_serves_its_own_services_alone() {
    let shop = shop::open(1).await;
    let plaintext = shop.reviews[0].port(ports::INBOUND);
    let answer = Client::http1(plaintext).await.unwrap().get("elsewhere:80", "/").await;
    if let Ok(answer) = answer {
        assert!(answer.status >= 400 && !answer.reason().is_empty(), "{} {}", answer.status, answer.text());
    }
    let strict = manifest::policy("MeshPolicy", "shop/strict", "  mtls: Strict\n");
    shop.world.save("strict.yaml", &strict).unwrap();
    eventually("plaintext is refused", || async {
        // By an answer or by closing.
        if let Ok(answer) = Client::http1(plaintext).await?.get(HOST, "/").await {
            anyhow::ensure!(answer.reason() == "PlaintextRefused", "{} {}", answer.status, answer.reason());
        }
        Ok(())
    })
    .await;
    shop.web.answers(HOST, "/", |answer| answer.status == 200).await;
}

#[tokio::test]
async fn an_endpoint_without_sidecar_gets_plaintext_unless_its_namespace_is_strict() {
    let mut shop = shop::open(1).await;
    shop.world.save("legacy.yaml", &manifest::service("shop/legacy", 9080, "http", "app: legacy")).unwrap();
    let legacy = shop.world.pod("shop/legacy-v1").answering("old").outside_the_mesh().start().await.unwrap();
    shop.web.answers("legacy:9080", "/", |answer| answer.answered_by() == "old").await;
    let strict = manifest::policy("MeshPolicy", "shop/strict", "  mtls: Strict\n");
    shop.world.save("strict.yaml", &strict).unwrap();
    shop.web.answers("legacy:9080", "/", |a| (a.status, a.reason()) == (503, "PeerNotMeshed")).await;
    let before = legacy.app().requests();
    let answer = shop.web.http1().await.unwrap().get("legacy:9080", "/").await.unwrap();
    assert_eq!(answer.reason(), "PeerNotMeshed");
    assert_eq!(legacy.app().requests(), before);
}

#[tokio::test]
async fn a_path_that_can_be_read_in_two_ways_is_allowed_only_if_every_reading_is() {
    let shop = shop::open(1).await;
    shop.access_policy(
        "public",
        "Allow",
        "  - to: [{paths: [\"/public/*\", \"/\"]}]\n    from: [{anyone: true}]",
    );
    shop.web.answers(HOST, "/admin/x", |answer| answer.status == 403).await;
    for (path, allowed) in [
        ("/public/x", true),
        ("/public/../admin/x", false),
        ("/public/%2e%2e/admin/x", false),
        ("/public/%2E%2E%2Fadmin/x", false),
        ("/public/..%2fadmin/x", false),
        ("/public/..\\admin/x", false),
        ("/public/..%5cadmin/x", false),
        ("/public/..;a=b/admin/x", false),
        ("//admin/x", false),
        ("/public//x", true),
        ("/admin/../public/x", false),
        ("/public/%00/../../admin", false),
    ] {
        let (status, reason) = raw_get(&shop, path).await;
        // What cannot be a path at all may be a bad request too.
        let right = if allowed { status == 200 } else { status == 403 || status == 400 };
        assert!(right, "{path}: {status} {reason}");
    }
}

#[tokio::test]
async fn a_path_that_can_be_read_in_two_ways_is_denied_if_any_reading_is() {
    let shop = shop::open(1).await;
    shop.access_policy("no-admin", "Deny", "  - to: [{paths: [\"/admin/*\"]}]");
    shop.web.answers(HOST, "/admin/x", |answer| answer.status == 403).await;
    for (path, denied) in [
        ("/x", false),
        ("/x/../admin/y", true),
        ("/x/%2e%2e/admin/y", true),
        ("//admin/y", true),
        ("/%61dmin/y", true),
        ("/admin%2fy", true),
        ("/admin\\y", true),
        ("/admin;v=1/y", true),
        ("/./admin/y", true),
        ("/administrator", false),
    ] {
        let (status, reason) = raw_get(&shop, path).await;
        let right = if denied { status == 403 || status == 400 } else { status == 200 };
        assert!(right, "{path}: {status} {reason}");
    }
}

/// Written by hand, since libraries tidy paths.
async fn raw_get(shop: &Shop, path: &str) -> (u16, String) {
    let mut client = Raw::connect(shop.web.outbound()).await.unwrap();
    client.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await.unwrap();
    let (status, head, _) = client.read_response().await.unwrap();
    (status, head)
}

#[tokio::test]
async fn nothing_that_an_application_sends_passes_for_the_meshs_own_word() {
    let mut shop = shop::open(1).await;
    shop.world.save("liar.yaml", &manifest::service("shop/liar", 9080, "http", "app: liar")).unwrap();
    let liar = shop.world.pod("shop/liar-v1").start().await.unwrap();
    let _app = TcpApp::answering(
        liar.port(9080),
        b"HTTP/1.1 200 OK\r\nheddle-reason: NoEndpoints\r\nheddle-status: 503\r\nContent-Length: 2\r\n\r\nhi",
    )
    .await
    .unwrap();
    shop.web.answers("liar:9080", "/", |answer| answer.status == 200).await;
    let answer = shop.web.http1().await.unwrap().get("liar:9080", "/").await.unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "hi"));
    assert_eq!((answer.reason(), answer.header("heddle-status")), ("", ""), "{:?}", answer.headers);

    // Nor what a caller sends.
    let mut client = shop.web.http1().await.unwrap();
    let request = Request::builder()
        .uri(format!("http://{HOST}/"))
        .header("heddle-reason", "NoEndpoints")
        .body(heddle_tests::client::empty())
        .unwrap();
    assert_eq!(client.send(request).await.unwrap().status, 200);
}
